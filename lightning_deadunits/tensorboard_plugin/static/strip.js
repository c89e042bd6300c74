/**
 * The strip of scalars: loss, learning rate, dead units and re-initialisations over the steps.
 *
 * It has the margins of a heat map, so that above one a step stands where the map has it.
 */

import { element, svg } from './dom.js';
import { MARGIN } from './heatmap.js';
import { flags, LANES, levels, sentenceAt, valueAt } from './lanes.js';
import { listenToSteps, pointAt, roundSteps } from './steps.js';
import { count, plural } from './text.js';

const HEAD = 17;
const PLOT = 34;
const GAP = 6;
const EVENT_ROW = 15;
const AXIS = 34;
const FLAG_ROOM = 46;

/**
 * Make a strip, empty at first.
 *
 * @param label What it is for who cannot see it.
 * @param options `axisTitle`: write steps below, as no heat map does it; then the strip is also
 *   walked with the keyboard.
 */
export function makeStrip(label, { axisTitle = false } = {}) {
  const cursor = element('div', { class: 'cursor', hidden: true });
  const chart = element('div', { class: 'strip-chart' });
  const walked = axisTitle ? { tabindex: 0, role: 'slider', 'aria-orientation': 'horizontal' } : {};
  const root = element('div', { class: 'strip', 'aria-label': label, role: 'group', ...walked }, chart, cursor);
  const strip = { root, chart, cursor, axisTitle, stories: [], axis: null, step: null, width: 0 };
  root.addEventListener('pointermove', (event) => pointAt(stepUnder(strip, event)));
  root.addEventListener('pointerleave', () => pointAt(null));
  if (axisTitle) root.addEventListener('keydown', (event) => walk(strip, event));
  listenToSteps(root, (step) => pointed(strip, step));
  // Width comes from the page; of the height it is the drawing itself that changes it.
  new ResizeObserver(() => root.clientWidth !== strip.width && draw(strip)).observe(root);
  return {
    root,
    show: (stories, axis) => {
      strip.stories = stories;
      strip.axis = axis;
      draw(strip);
    },
  };
}

function draw(strip) {
  const width = strip.root.clientWidth;
  if (!strip.axis || !strip.stories.length || width <= MARGIN.left + MARGIN.right) return;
  strip.width = width;
  const frame = { width, plot: width - MARGIN.left - MARGIN.right, axis: strip.axis };
  frame.x = (place) => MARGIN.left + place * frame.plot;
  const pieces = [];
  let y = 0;
  for (const lane of LANES) {
    pieces.push(...laneOf(lane, strip.stories, frame, y));
    y += HEAD + (hasPoints(lane, strip.stories) ? PLOT + GAP : 0);
  }
  const events = strip.stories.filter(({ reinitialisations: them }) => them.length);
  if (events.length) {
    pieces.push(heading('re-initialised units of all layers', y));
    y += HEAD;
    events.forEach((story) => {
      pieces.push(eventRow(story, frame, y, strip.stories.length > 1));
      y += EVENT_ROW;
    });
  }
  if (strip.axisTitle) {
    pieces.push(...stepLabels(frame, y));
    y += AXIS;
  }
  strip.chart.replaceChildren(svg('svg', {
    class: 'lanes', width, height: y, viewBox: `0 0 ${width} ${y}`, 'aria-hidden': 'true',
  }, pieces));
  pointed(strip, strip.step);
}

function hasPoints(lane, stories) {
  return stories.some((story) => lane.points(story));
}

function laneOf(lane, stories, frame, y) {
  const lines = stories.map((story) => ({ ...story, points: lane.points(story) }))
    .filter(({ points }) => points);
  if (!lines.length) return [heading(`${lane.title}: ${lane.missing}`, y)];
  const shown = lines.map(({ points }) => points.values
    .filter((_, at) => frame.axis.place(points.steps[at]) !== null));
  const scale = levels(shown.some((it) => it.length) ? shown.flat() : [0], lane.least);
  const top = y + HEAD;
  const level = (value) => top + (1 - scale.level(value)) * PLOT;
  const tags = [...new Set(lines.map(({ points }) => points.tag).filter(Boolean))].join(', ');
  const title = [lane.title, tags && tags !== lane.title ? ` · ${tags}` : '', scale.log ? ' (log)' : ''].join('');
  return [
    heading(title, y),
    svg('text', { class: 'values', x: frame.width - MARGIN.right, y: y + 12, 'text-anchor': 'end', 'data-lane': lane.key }),
    svg('rect', { class: 'lane', x: MARGIN.left, y: top, width: frame.plot, height: PLOT }),
    ...[scale.top, scale.bottom].slice(0, scale.top === scale.bottom ? 1 : 2).map((value, at) => svg('text', {
      class: 'tick', x: MARGIN.left - 8, y: top + (at ? PLOT - 1 : 9), 'text-anchor': 'end',
    }, lane.format(value))),
    ...lines.map((line) => curve(line, frame, level, lane)),
  ];
}

function heading(text, y) {
  return svg('text', { class: 'lane-title', x: MARGIN.left, y: y + 12 }, text);
}

function curve({ run, colour, points }, frame, level, lane) {
  let pen = 'M';
  const path = points.values.map((value, at) => {
    const place = frame.axis.place(points.steps[at]);
    if (place === null) return '';
    if (value === null || !Number.isFinite(value)) {
      pen = 'M'; // NaN or infinite: the line breaks
      return '';
    }
    const piece = `${pen}${frame.x(place).toFixed(1)},${level(value).toFixed(1)}`;
    pen = 'L';
    return piece;
  }).join('');
  // A lone point is a dot: a line of no length that has round ends.
  return svg('path', { class: 'scalar', d: path.includes('L') ? path : `${path}h0.01`, stroke: colour,
    'data-lane': lane.key, 'data-run': run });
}

function eventRow({ run, colour, reinitialisations: events }, frame, y, several) {
  const groups = flags(events, frame.axis, FLAG_ROOM / frame.plot);
  return svg('g', { class: 'events', 'data-run': run }, groups.map(({ place, units, steps }) => {
    const x = frame.x(place);
    const turned = x > frame.width - MARGIN.right - FLAG_ROOM; // its number would be cut off
    const when = steps.length === 1 ? `at step ${count(steps[0])}`
      : `in ${count(steps.length)} events from step ${count(steps[0])} to ${count(steps.at(-1))}`;
    return svg('g', { class: 'flag' },
      svg('title', {}, `${plural(units, 'unit')} re-initialised ${when}`),
      svg('path', { d: `M${x},${y + 2}l5,5l-5,5l-5,-5z`, ...(several && { fill: colour }) }),
      svg('text', { x: x + (turned ? -8 : 8), y: y + 11, 'text-anchor': turned ? 'end' : 'start' }, count(units)));
  }));
}

function stepLabels(frame, y) {
  const steps = roundSteps(frame.axis.first, frame.axis.last, Math.max(1, Math.floor(frame.plot / 110)));
  const labels = steps.map((step) =>
    svg('text', { class: 'tick', x: frame.x(frame.axis.place(step)), y: y + 14, 'text-anchor': 'middle' }, count(step)));
  return [...labels, svg('text', { class: 'tick', x: frame.x(0.5), y: y + 29, 'text-anchor': 'middle' }, 'training step')];
}

function stepUnder({ root, axis }, event) {
  if (!axis) return null;
  const across = event.clientX - root.getBoundingClientRect().left - MARGIN.left;
  const place = across / (root.clientWidth - MARGIN.left - MARGIN.right);
  return place < 0 || place > 1 ? null : axis.step(place);
}

/** Show the step that the pointer is on, here or elsewhere: a line, and the values there. */
function pointed(strip, step) {
  strip.step = step;
  if (!strip.axis) return;
  const place = step === null ? null : strip.axis.place(step);
  strip.cursor.hidden = place === null;
  const plot = strip.root.clientWidth - MARGIN.left - MARGIN.right;
  strip.cursor.style.left = `${MARGIN.left + (place ?? 0) * plot}px`;
  const at = place === null ? null : step;
  for (const lane of LANES) {
    const text = strip.chart.querySelector(`text.values[data-lane="${lane.key}"]`);
    if (text) text.replaceChildren(...values(lane, strip.stories, at));
  }
  if (strip.axisTitle) announce(strip, at);
}

function values(lane, stories, step) {
  const known = stories.map((story) => [story, valueAt(lane, story, step)]).filter(([, text]) => text !== null);
  return known.flatMap(([{ colour }, text]) => [
    ...(stories.length > 1 ? [svg('tspan', { fill: colour }, ' ● ')] : []),
    svg('tspan', {}, text),
  ]);
}

function announce({ root, axis, stories }, step) {
  const now = Math.round(step ?? axis.last);
  const said = stories.map((story) => `${stories.length > 1 ? `${story.run}: ` : ''}${sentenceAt(story, now)}`);
  root.setAttribute('aria-valuemin', Math.round(axis.first));
  root.setAttribute('aria-valuemax', Math.round(axis.last));
  root.setAttribute('aria-valuenow', now);
  root.setAttribute('aria-valuetext', `step ${count(now)}: ${said.join('; ')}`);
}

function walk(strip, event) {
  if (!strip.axis || event.altKey || event.metaKey || event.ctrlKey) return;
  const steps = [...new Set(strip.stories.flatMap(({ total }) => total.steps))].sort((one, other) => one - other);
  const now = strip.step ?? Infinity;
  const next = {
    ArrowLeft: steps.findLast((step) => step < now) ?? steps[0],
    ArrowRight: steps.find((step) => step > now) ?? steps.at(-1),
    Home: steps[0],
    End: steps.at(-1),
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  pointAt(next);
}
