/** A layer's life: one heat map per chosen run, side by side, and the curve of one unit. */

import { csvUrl, fetchLayer, fetchUnit } from './api.js';
import { element } from './dom.js';
import { noSuchLayer, sawNothing } from './empty.js';
import { unitChart } from './curve.js';
import { legend } from './legend.js';
import { matrixOf } from './matrix.js';
import { makePane } from './pane.js';
import { count, plural } from './text.js';

const ORDER_NAMES = { death: 'when they died', index: 'index', rate: 'current rate' };

/** Make the view; `on` has `back()`, `order(order)` and `unit(unit or null)`. */
export function makeLayerView(on) {
  const title = element('h2', { class: 'layer-title' });
  const panes = element('div', { class: 'panes' });
  const unitPanel = element('section', { class: 'unit-panel', 'aria-label': 'Unit' });
  const order = element('select', { onchange: () => on.order(order.value) },
    Object.entries(ORDER_NAMES).map(([value, text]) => element('option', { value }, text)));
  const unit = element('input', {
    type: 'number', min: 0, step: 1, class: 'unit-number', 'aria-label': 'Unit number', onchange: () => on.unit(wanted(unit)),
  });
  const view = { title, panes, unitPanel, order, unit, on, key: null, shown: new Map(), stories: [] };
  const zoomIn = zoomButton(view, 'Zoom in', '+', 0.5);
  const zoomOut = zoomButton(view, 'Zoom out', '−', 2);
  new ResizeObserver(() => redrawChart(view)).observe(unitPanel);
  const root = element('section', { class: 'view', 'aria-label': 'Layer' },
    element('div', { class: 'bar' },
      element('button', { type: 'button', class: 'back', onclick: on.back }, '‹ All layers'), title,
      element('span', { class: 'gap' }),
      element('label', {}, 'Units by ', order), element('label', {}, 'Unit ', unit),
      element('span', { class: 'zoom', role: 'group', 'aria-label': 'Zoom' }, zoomOut, zoomIn)),
    legend(), panes, unitPanel);
  return {
    root,
    load: (runs, choices) => load(view, runs, choices),
    loadUnit: (runs, choices) => loadUnit(view, runs, choices),
    redraw: () => view.shown.forEach(({ pane }) => pane.redraw()),
  };
}

function wanted(input) {
  return /^\d+$/.test(input.value) ? Number(input.value) : null;
}

function zoomButton(view, label, text, factor) {
  const zoom = () => view.shown.forEach(({ pane, matrix }) => matrix && pane.zoom(factor));
  return element('button', { type: 'button', 'aria-label': label, title: label, onclick: zoom }, text);
}

/** Fetch the heat maps; what comes back shows them. */
async function load(view, runs, { layer, order, unit }) {
  const answers = await Promise.all(runs.map(async (run) => {
    try {
      return { ...run, matrix: matrixOf(await fetchLayer(run.run, layer, order)) };
    } catch (error) {
      return { ...run, error };
    }
  }));
  return () => {
    view.title.textContent = layer;
    view.order.value = order;
    arrangePanes(view, answers, layer);
    answers.forEach((answer) => answer.matrix && showAnswer(view, answer, layer, unit));
  };
}

/** Keep the panes of a reload, so that focus and zoom survive; make new ones for other runs. */
function arrangePanes(view, answers, layer) {
  const key = JSON.stringify([layer, answers.map(({ run, error }) => [run, error?.message])]);
  if (view.key === key) return;
  view.key = key;
  view.shown = new Map(answers.map((answer) => [answer.run, makeCard(view, answer, layer)]));
  view.panes.replaceChildren(...[...view.shown.values()].map(({ root }) => root));
}

function makeCard(view, { run, colour, error }, layer) {
  if (error) return { root: noSuchLayer(run, layer, error.message), pane: { redraw() {} } };
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  const facts = element('p', { class: 'facts' });
  const exports = element('p', { class: 'exports' });
  const pane = makePane(`layer ${layer}, run ${run}`, view.on.unit);
  const root = element('article', { class: 'pane', 'aria-label': `Run ${run}` },
    element('header', {}, element('h3', { title: run }, dot, run), exports), facts, pane.root);
  return { root, pane, facts, exports, matrix: null };
}

function showAnswer(view, { run, matrix }, layer, unit) {
  const card = view.shown.get(run);
  card.matrix = matrix;
  card.facts.replaceChildren(...factsOf(matrix));
  card.exports.replaceChildren(...exportLinks(run, layer, matrix));
  card.pane.show(matrix, unit);
}

function factsOf(matrix) {
  const since = matrix.arrays.dead_since;
  const dead = since.reduce((number, step) => number + Number(!Number.isNaN(step)), 0);
  const born = matrix.arrays.born_dead.reduce((number, flag) => number + flag, 0);
  const facts = [
    plural(matrix.num_units, 'unit'),
    `${count(dead)} dead (${count(born)} born dead)`,
    `${plural(matrix.num_steps, 'validation')} up to step ${count(matrix.steps.at(-1))}`,
  ];
  if (matrix.units_per_row > 1) facts.push(`${count(matrix.units_per_row)} units per row`);
  const pieces = [element('span', {}, facts.join(' · '))];
  return matrix.saw_nothing ? [...pieces, sawNothing()] : pieces;
}

/** One link, or several where one file would be larger than TensorBoard should send. */
function exportLinks(run, layer, { csv_parts: parts }) {
  const link = (text, units) =>
    element('a', { href: csvUrl(run, layer, units), download: '', 'aria-label': `Export ${text} of ${run}` }, text);
  if (parts.length === 1) return [link('CSV')];
  return parts.flatMap((units) => [link(`CSV ${units}`, units), ' ']);
}

/** Fetch the curve of the chosen unit in every run that has it. */
async function loadUnit(view, runs, { layer, unit }) {
  const stories = unit === null ? [] : (await Promise.all(runs.map(async (run) => {
    try {
      return { ...(await fetchUnit(run.run, layer, unit)), colour: run.colour };
    } catch {
      return null; // a run without this layer or unit has no curve; its pane says why
    }
  }))).filter(Boolean);
  return () => {
    view.shown.forEach(({ pane, matrix }) => matrix && pane.markUnit(unit));
    view.unit.value = unit ?? '';
    view.stories = stories;
    view.unitPanel.replaceChildren(...unitBlocks(view, unit, stories));
  };
}

/** The chart is drawn for a width; text in it would shrink with a narrower page. */
function redrawChart({ unitPanel, stories }) {
  const chart = unitPanel.querySelector('.curve');
  if (chart) chart.replaceWith(unitChart(stories, chartWidth(unitPanel)));
}

function chartWidth(panel) {
  return Math.max(240, panel.clientWidth - 32);
}

function unitBlocks(view, unit, stories) {
  if (unit === null) {
    return [element('p', { class: 'hint' }, 'Choose a unit in the heat map to see its own curve.')];
  }
  const close = element('button', {
    type: 'button', 'aria-label': 'Close the unit', title: 'Close the unit', class: 'close',
    onclick: () => view.on.unit(null),
  }, '×');
  const header = element('header', {}, element('h3', {}, `Unit ${count(unit)}`), close);
  if (!stories.length) return [header, element('p', { class: 'hint' }, 'No chosen run has this unit.')];
  return [header, unitChart(stories, chartWidth(view.unitPanel)), element('ul', { class: 'stories' }, stories.map(story))];
}

function story({ run, colour, dead, born_dead: born, dead_since: since, revived, reinitialised_at: marks }) {
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  const state = dead ? (born ? 'born dead, never alive since' : `dead since step ${count(since)}`)
    : (revived ? 'revived: was dead, is alive now' : 'alive');
  const again = marks.length ? `; re-initialised at step ${marks.map(count).join(', ')}` : '';
  return element('li', { class: dead ? 'dead' : '' }, dot, element('strong', {}, run), ` ${state}${again}`);
}
