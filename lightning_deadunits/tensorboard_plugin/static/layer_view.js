/** A layer's life: one heat map per chosen run, side by side, and the curve of one unit. */

import { fetchLayer, fetchUnit } from './api.js';
import { element } from './dom.js';
import { noSuchLayer } from './empty.js';
import { makeCard, showAnswer } from './layer_card.js';
import { legend } from './legend.js';
import { matrixOf } from './matrix.js';
import { copyButton, OF_RUNS, shortNames } from './names.js';
import { makeUnitPanel } from './unit_panel.js';

const RUN_LENGTH = 44;
const ORDER_NAMES = { death: 'when they died', index: 'index', rate: 'current rate' };

/** Make the view; `on` has `back()`, `order(order)`, `like(run)` and `unit(unit or null)`. */
export function makeLayerView(on, scalarChoice) {
  const title = element('h2', { class: 'layer-title', tabindex: -1 });
  const copy = element('span', {});
  const panes = element('div', { class: 'panes' });
  const unitPanel = makeUnitPanel(() => {
    on.unit(null);
    view.focusMap();
  });
  const order = element('select', { onchange: () => on.order(order.value) },
    Object.entries(ORDER_NAMES).map(([value, text]) => element('option', { value }, text)));
  const like = element('select', { class: 'run-choice', onchange: () => on.like(like.value) });
  const likeLabel = element('label', {}, 'as in ', like);
  const unit = element('input', {
    type: 'number', min: 0, step: 1, class: 'unit-number', 'aria-label': 'Unit number', onchange: () => on.unit(wanted(unit)),
  });
  const view = { title, copy, panes, unitPanel, order, like, likeLabel, unit, on, key: null, shown: new Map(), stories: [] };
  view.focusMap = () => [...view.shown.values()].find(({ matrix }) => matrix)?.pane.focus();
  const zoomIn = zoomButton(view, 'Zoom in', '+', 0.5);
  const zoomOut = zoomButton(view, 'Zoom out', '−', 2);
  const meaning = element('div', { class: 'bar' }, legend());
  const root = element('section', { class: 'view', 'aria-label': 'Layer' },
    element('div', { class: 'bar' },
      element('button', { type: 'button', class: 'back', onclick: on.back }, '‹ All layers'), title, copy),
    element('div', { class: 'bar' },
      element('label', {}, 'Units by ', order), likeLabel, element('label', {}, 'Unit ', unit),
      element('span', { class: 'zoom', role: 'group', 'aria-label': 'Zoom' }, zoomOut, zoomIn)),
    meaning, panes, unitPanel.root);
  return {
    root,
    load: (runs, choices) => load(view, runs, choices),
    loadUnit: (runs, choices) => loadUnit(view, runs, choices),
    tell: (stories) => {
      if (scalarChoice.root.parentNode !== meaning) meaning.append(scalarChoice.root);
      stories.forEach((story) => view.shown.get(story.run)?.pane.tell?.(story));
    },
    redraw: () => view.shown.forEach(({ pane }) => pane.redraw()),
    focusTitle: () => title.focus(),
    focusMap: () => view.focusMap(),
  };
}

function wanted(input) {
  return /^\d+$/.test(input.value) ? Number(input.value) : null;
}

function zoomButton(view, label, text, factor) {
  const zoom = () => view.shown.forEach(({ pane, matrix }) => matrix && pane.zoom(factor));
  return element('button', { type: 'button', 'aria-label': label, title: label, onclick: zoom }, text);
}

/** Fetch the heat maps, the units of all in the order of one run; what comes back shows them. */
async function load(view, runs, { layer, order, unit, like }) {
  const reference = runs.find(({ run }) => run === like)?.run ?? runs[0]?.run;
  const answers = await Promise.all(runs.map(async (run) => {
    try {
      return { ...run, matrix: matrixOf(await fetchLayer(run.run, layer, order, reference)) };
    } catch (error) {
      return { ...run, error };
    }
  }));
  return () => {
    if (view.title.textContent !== layer) {
      view.title.textContent = layer;
      view.copy.replaceChildren(copyButton(layer));
    }
    view.order.value = order;
    showReference(view, answers, order, reference);
    arrangePanes(view, answers, layer);
    answers.forEach((answer) => answer.matrix && showAnswer(view.shown.get(answer.run), answer, layer, unit));
  };
}

/** Whose order of units the maps share; of one map, or by index, there is nothing to choose. */
function showReference({ like, likeLabel }, answers, order, reference) {
  likeLabel.hidden = answers.length < 2 || order === 'index';
  const short = shortNames(answers.map(({ run }) => run), RUN_LENGTH, OF_RUNS);
  like.replaceChildren(...answers.map(({ run }) => element('option', { value: run }, short.get(run))));
  like.value = reference;
}

/** Keep the panes of a reload, so that focus and zoom survive; make new ones for other runs. */
function arrangePanes(view, answers, layer) {
  const key = JSON.stringify([layer, answers.map(({ run, colour, error }) => [run, colour, error?.message])]);
  if (view.key === key) return;
  view.key = key;
  const short = shortNames(answers.map(({ run }) => run), RUN_LENGTH, OF_RUNS);
  view.shown = new Map(answers.map((answer) =>
    [answer.run, cardOf(view, answer, layer, short.get(answer.run))]));
  view.panes.replaceChildren(...[...view.shown.values()].map(({ root }) => root));
}

function cardOf(view, answer, layer, short) {
  if (!answer.error) return makeCard({ ...answer, short }, layer, view.on.unit);
  return { root: noSuchLayer(answer.run, layer, answer.error.message), pane: { redraw() {} } };
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
    view.unitPanel.show(unit, stories);
  };
}
