/** Draws one unit's zero rate over the steps, one line per run. */

import { svg } from './dom.js';
import { isDead } from './matrix.js';
import { count, rate } from './text.js';

const SIZE = { width: 900, height: 190 };
const PLOT = { x: 44, y: 12, width: SIZE.width - 60, height: SIZE.height - 42 };

/** Make the chart of some `unit` answers, each with the `colour` of its run. */
export function unitChart(stories) {
  const first = Math.min(...stories.map((story) => story.steps[0]));
  const span = Math.max(...stories.map((story) => story.steps.at(-1))) - first || 1;
  const x = (step) => PLOT.x + ((step - first) / span) * PLOT.width;
  const y = (value) => PLOT.y + (1 - value) * PLOT.height;
  const label = `Zero rate of unit ${stories[0].unit} over the steps`;
  return svg(
    'svg',
    { class: 'curve', viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: 'img', 'aria-label': label },
    axes(first, first + span, x, y),
    stories.flatMap((story) => [...deadBands(story, x), ...reinitLines(story, x)]),
    stories.map((story) => line(story, x, y)),
    stories.flatMap((story) => dots(story, x, y)),
  );
}

function axes(first, last, x, y) {
  const rates = [0, 0.5, 1].flatMap((value) => [
    svg('line', { class: 'grid', x1: PLOT.x, x2: PLOT.x + PLOT.width, y1: y(value), y2: y(value) }),
    svg('text', { x: PLOT.x - 8, y: y(value) + 4, 'text-anchor': 'end' }, String(value)),
  ]);
  const middle = Math.round((first + last) / 2);
  const steps = [first, middle, last].map((step, place) =>
    svg('text', { x: x(step), y: SIZE.height - 8, 'text-anchor': ['start', 'middle', 'end'][place] },
      count(step)));
  return [...rates, ...steps];
}

/** The stretches in which the unit was dead, from each dead step to the next. */
function deadBands({ steps, zero_rate: rates, dead_threshold: threshold }, x) {
  const widest = PLOT.x + PLOT.width;
  return steps.flatMap((step, at) => {
    if (rates[at] === null || !isDead(rates[at], threshold)) return [];
    const from = x(step);
    const to = at + 1 < steps.length ? x(steps[at + 1]) : Math.min(widest, from + 6);
    const width = Math.max(1, to - from);
    return [svg('rect', { class: 'dead-band', x: from, y: PLOT.y, width, height: PLOT.height })];
  });
}

function reinitLines({ reinitialised_at: steps }, x) {
  return steps.map((step) =>
    svg('g', { class: 'reinit' },
      svg('line', { x1: x(step), x2: x(step), y1: PLOT.y, y2: PLOT.y + PLOT.height }),
      svg('title', {}, `re-initialised at step ${count(step)}`)));
}

function line({ steps, zero_rate: rates, colour }, x, y) {
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
function dots({ run, steps, zero_rate: rates, colour }, x, y) {
  const radius = steps.length > 120 ? 0 : 2.5;
  return rates.flatMap((value, at) => (value === null || !radius ? [] : [
    svg('circle', { cx: x(steps[at]), cy: y(value), r: radius, fill: colour },
      svg('title', {}, `${run}: step ${count(steps[at])}, zero rate ${rate(value)}`)),
  ]));
}
