/** Draws one unit's zero rate over the steps, one line per run. */

import { svg } from './dom.js';
import { isDead } from './matrix.js';
import { count, rate } from './text.js';

const PLOT_HEIGHT = 120;
const STRIP = 9; // one per run, above the plot: when the unit was dead
const LEFT = 44;
const RIGHT = 16;
const BELOW = 24;
const ROOM_FOR_DOTS = 120;

/** Make the chart of some `unit` answers, each with the `colour` of its run, `width` pixels wide. */
export function unitChart(stories, width) {
  const frame = frameOf(stories, width);
  const label = `Zero rate of unit ${stories[0].unit} over the steps`;
  return svg(
    'svg',
    {
      class: 'curve',
      viewBox: `0 0 ${width} ${frame.bottom + BELOW}`,
      role: 'img',
      'aria-label': label,
    },
    axes(frame),
    stories.flatMap((story, place) => deadStrip(story, place, frame)),
    stories.flatMap((story) => reinitLines(story, frame)),
    stories.map((story) => line(story, frame)),
    stories.flatMap((story) => dots(story, frame)),
  );
}

/** Where things are: steps across, rates up, below one strip per run. */
function frameOf(stories, width) {
  const first = Math.min(...stories.map((story) => story.steps[0]));
  const last = Math.max(...stories.map((story) => story.steps.at(-1)));
  const top = STRIP * stories.length + 8;
  const across = width - LEFT - RIGHT;
  return {
    first,
    last,
    top,
    bottom: top + PLOT_HEIGHT,
    right: width - RIGHT,
    x: (step) => LEFT + ((step - first) / (last - first || 1)) * across,
    y: (value) => top + (1 - value) * PLOT_HEIGHT,
  };
}

function axes({ first, last, bottom, right, x, y }) {
  const rates = [0, 0.5, 1].flatMap((value) => [
    svg('line', { class: 'grid', x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
    svg('text', { x: LEFT - 8, y: y(value) + 4, 'text-anchor': 'end' }, String(value)),
  ]);
  const steps = first === last ? [first] : [first, last];
  const labels = steps.map((step, place) =>
    svg('text', { x: x(step), y: bottom + 18, 'text-anchor': place ? 'end' : 'start' },
      `step ${count(step)}`));
  return [...rates, ...labels];
}

/** The stretches in which the unit was dead, from each dead step to the next. */
function deadStrip(story, place, { x, right }) {
  const { steps, zero_rate: rates, dead_threshold: threshold, colour } = story;
  const y = 4 + place * STRIP;
  const key = svg('circle', { cx: LEFT - 12, cy: y + 2.5, r: 3, fill: colour });
  const stretches = steps.flatMap((step, at) => {
    if (rates[at] === null || !isDead(rates[at], threshold)) return [];
    const end = at + 1 < steps.length ? x(steps[at + 1]) : Math.min(right, x(step) + 6);
    const width = Math.max(2, end - x(step));
    return [svg('rect', { class: 'dead-band', x: x(step), y, width, height: 5 })];
  });
  return [key, ...stretches];
}

function reinitLines({ reinitialised_at: steps }, { x, top, bottom }) {
  return steps.map((step) =>
    svg('g', { class: 'reinit' },
      svg('line', { x1: x(step), x2: x(step), y1: top, y2: bottom }),
      svg('title', {}, `re-initialised at step ${count(step)}`)));
}

function line({ steps, zero_rate: rates, colour }, { x, y }) {
  let pen = 'M';
  const path = rates.map((value, at) => {
    if (value === null) {
      pen = 'M'; // not seen: the line breaks
      return '';
    }
    const piece = `${pen}${x(steps[at]).toFixed(1)},${y(value).toFixed(1)}`;
    pen = 'L';
    return piece;
  });
  return svg('path', { class: 'rate', d: path.join(''), stroke: colour });
}

/** Points to hover, as long as there is room to tell them apart. */
function dots({ run, steps, zero_rate: rates, colour }, { x, y }) {
  if (steps.length > ROOM_FOR_DOTS) return [];
  return rates.flatMap((value, at) => (value === null ? [] : [
    svg('circle', { cx: x(steps[at]), cy: y(value), r: 2.5, fill: colour },
      svg('title', {}, `${run}: step ${count(steps[at])}, zero rate ${rate(value)}`)),
  ]));
}
