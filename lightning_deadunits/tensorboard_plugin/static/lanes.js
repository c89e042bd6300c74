/** What the strip of scalars shows: its lanes, and their values at a step. Pure; draws nothing. */

import { nearest } from './steps.js';
import { count, magnitude, percent } from './text.js';

/** The lanes from top to bottom; `missing` says how to get one that a run has not. */
export const LANES = [
  {
    key: 'loss',
    title: 'loss',
    missing: 'none logged: self.log("train_loss", loss)',
    format: magnitude,
    points: ({ loss }) => loss,
  },
  {
    key: 'learning_rate',
    title: 'learning rate',
    missing: 'none logged: add LearningRateMonitor()',
    format: magnitude,
    points: ({ learning_rate: learningRate }) => learningRate,
  },
  {
    key: 'dead',
    title: 'dead units of all layers',
    missing: 'no validation yet',
    format: percent,
    least: 0.05, // below this, a flat line would look like a mountain
    points: ({ total }) => (total.steps.length
      ? { steps: total.steps, values: total.dead.map((dead, at) => dead / total.units[at]) }
      : null),
  },
];

/** Value of a lane of a run at the step that is nearest to `step`, as text; null if it has none. */
export function valueAt(lane, story, step) {
  const points = lane.points(story);
  if (!points) return null;
  const at = step === null ? points.steps.length - 1 : nearest(points.steps, step);
  const text = lane.format(points.values[at]);
  return lane.key === 'dead' ? `${text} (${count(story.total.dead[at])})` : text;
}

/** What the lanes of a run hold at a step, in one sentence. */
export function sentenceAt(story, step) {
  return LANES.flatMap((lane) => {
    const value = valueAt(lane, story, step);
    return value === null ? [] : [`${lane.title} ${value}`];
  }).join(', ');
}

/**
 * How a lane's values lie on its height: {bottom, top, level(value) in [0, 1], log}.
 *
 * Over more than a factor of 50 a linear scale would show its largest values alone.
 */
export function levels(values, least = 0) {
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  if (least) return linear(0, Math.max(least, ...known));
  const bottom = Math.min(...known);
  const top = Math.max(...known);
  if (bottom > 0 && top > 50 * bottom) {
    const span = Math.log(top / bottom);
    return { bottom, top, log: true, level: (value) => Math.log(value / bottom) / span };
  }
  return linear(bottom, top);
}

/**
 * Put events that would stand on each other into one flag: [{place, units, steps}].
 *
 * @param events Each {step, units}, in order.
 * @param axis Where steps stand, 0 to 1.
 * @param room How far flags must be apart, as a share of the width.
 */
export function flags(events, axis, room) {
  const grouped = [];
  for (const { step, units } of events) {
    const place = axis.place(step);
    if (place === null) continue;
    const before = grouped.at(-1);
    if (before && place - before.place < room) {
      before.units += units;
      before.steps.push(step);
    } else grouped.push({ place, units, steps: [step] });
  }
  return grouped;
}

function linear(bottom, top) {
  const span = top - bottom;
  return { bottom, top, log: false, level: (value) => (span ? (value - bottom) / span : 0.5) };
}
