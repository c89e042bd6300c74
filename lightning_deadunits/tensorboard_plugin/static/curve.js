/**
 * Draws one unit's zero rate over the steps, one line per run.
 *
 * Units that are about to die differ in the third or fourth nine, which a linear axis shows as one
 * line at 1. So the axis is the distance to 1 on a logarithmic scale: 0, 0.9, 0.99, ..., and 1.
 */

import { svg } from './dom.js';
import { isDead } from './matrix.js';
import { pointAt } from './steps.js';
import { count, rate } from './text.js';

const PLOT_HEIGHT = 104;
const STRIP = 9; // one per run, above the plot: when the unit was dead
const LEFT = 64;
const RIGHT = 16;
const BELOW = 38;
const ROOM_FOR_DOTS = 120;
const LEAST_NINES = 2;
const MOST_NINES = 7; // float32 knows no rate nearer to 1
const ABOVE = 0.6; // between the last of the nines and 1 itself

/** How many nines a rate has: 0 for 0, 1 for 0.9, 2 for 0.99; Infinity for 1. */
export function nines(value) {
  return value >= 1 ? Infinity : -Math.log10(1 - value) + 0;
}

/** Ticks of the axis up to the given number of nines: pairs of a label and its level. */
export function ticks(most) {
  const below = Array.from({ length: most + 1 }, (_, at) => [at ? `0.${'9'.repeat(at)}` : '0', at]);
  return [...below, ['1', most + ABOVE]];
}

/** Make the chart of some `unit` answers, each with the `colour` of its run, `width` pixels wide. */
export function unitChart(stories, width) {
  const frame = frameOf(stories, width);
  const label = `Zero rate of unit ${stories[0].unit} over the steps`;
  const cursor = svg('line', { class: 'cursor-line', y1: frame.top, y2: frame.bottom, visibility: 'hidden' });
  const root = svg(
    'svg',
    {
      class: 'curve',
      viewBox: `0 0 ${width} ${frame.bottom + BELOW}`,
      role: 'img',
      'aria-label': label,
      onpointermove: (event) => pointAt(frame.step(event.offsetX)),
      onpointerleave: () => pointAt(null),
    },
    axes(frame),
    stories.flatMap((story, place) => deadStrip(story, place, frame)),
    stories.flatMap((story) => reinitLines(story, frame)),
    cursor,
    stories.map((story) => line(story, frame)),
    stories.flatMap((story) => dots(story, frame)),
  );
  return { root, pointAt: (step) => pointed(cursor, frame, step) };
}

/** Where things are: steps across, rates up, below one strip per run. */
function frameOf(stories, width) {
  const first = Math.min(...stories.map((story) => story.steps[0]));
  const last = Math.max(...stories.map((story) => story.steps.at(-1)));
  const top = STRIP * stories.length + 22;
  const across = width - LEFT - RIGHT;
  const known = stories.flatMap((story) => story.zero_rate).filter((value) => value !== null && value < 1);
  const most = Math.max(LEAST_NINES, Math.min(MOST_NINES, Math.ceil(Math.max(0, ...known.map(nines)))));
  const level = (value) => (value >= 1 ? most + ABOVE : Math.min(most, nines(value)));
  return {
    first,
    last,
    top,
    most,
    bottom: top + PLOT_HEIGHT,
    right: width - RIGHT,
    x: (step) => LEFT + ((step - first) / (last - first || 1)) * across,
    step: (x) => (x < LEFT || x > width - RIGHT ? null : first + ((x - LEFT) / across) * (last - first)),
    height: (at) => top + (1 - at / (most + ABOVE)) * PLOT_HEIGHT,
    y: (value) => top + (1 - level(value) / (most + ABOVE)) * PLOT_HEIGHT,
  };
}

function axes({ first, last, most, top, bottom, right, x, height }) {
  const rates = ticks(most).flatMap(([label, at]) => [
    svg('line', { class: 'grid', x1: LEFT, x2: right, y1: height(at), y2: height(at) }),
    svg('text', { x: LEFT - 8, y: height(at) + 4, 'text-anchor': 'end' }, label),
  ]);
  const steps = first === last ? [first] : [first, last];
  const labels = steps.map((step, place) =>
    svg('text', { x: x(step), y: bottom + 16, 'text-anchor': place ? 'end' : 'start' }, count(step)));
  return [
    ...rates, ...labels,
    svg('text', { x: 0, y: top - 12 }, 'zero rate'),
    svg('text', { x: (LEFT + right) / 2, y: bottom + 32, 'text-anchor': 'middle' }, 'training step'),
  ];
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

function reinitLines({ reinitialised_at: steps, steps: [first], ...story }, { x, top, bottom, right }) {
  return steps.filter((step) => step >= first).map((step) => {
    const at = Math.min(right, x(step)); // one after the latest validation stands at the edge
    return svg('g', { class: 'reinit' },
      svg('line', { x1: at, x2: at, y1: top, y2: bottom }),
      svg('title', {}, `${story.run}: re-initialised at step ${count(step)}`));
  });
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

function pointed(cursor, { first, last, x }, step) {
  const shown = step !== null && step >= first && step <= last;
  cursor.setAttribute('visibility', shown ? 'visible' : 'hidden');
  if (!shown) return;
  cursor.setAttribute('x1', x(step));
  cursor.setAttribute('x2', x(step));
}
