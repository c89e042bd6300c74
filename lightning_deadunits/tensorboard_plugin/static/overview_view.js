/** The first view: cards, the strip of scalars, filter and table of all layers of the chosen runs. */

import { fetchOverview } from './api.js';
import { element } from './dom.js';
import { failure, runWithoutData } from './empty.js';
import { overviewTable } from './overview.js';
import { evenAxis } from './steps.js';
import { makeStrip } from './strip.js';
import { runCards } from './summary.js';

/** Make the view; `on` has `sort(sort)`, `filter(text)` and `open(layer)`. */
export function makeOverview(on, scalarChoice) {
  const cards = element('div', { class: 'cards' });
  const notices = element('div', {});
  const strip = makeStrip('Scalars of the chosen runs', { axisTitle: true });
  const scalars = element('section', { class: 'scalars', 'aria-label': 'Scalars', hidden: true },
    scalarChoice.root, strip.root);
  const table = element('div', {});
  const filter = element('input', {
    type: 'search',
    placeholder: 'Filter layers by name',
    'aria-label': 'Filter layers by name',
    oninput: () => on.filter(filter.value),
  });
  const bar = element('div', { class: 'bar' }, element('h2', {}, 'Layers'), filter);
  const root = element('section', { class: 'view', 'aria-label': 'Overview of layers' },
    cards, notices, scalars, bar, table);
  const parts = { root, cards, notices, strip, scalars, scalarChoice, bar, table, filter, runs: [], on };
  return {
    root,
    load: (runs) => load(parts, runs),
    tell: (stories) => tell(parts, stories),
    arrange: (choices) => arrange(parts, choices),
    focusLayer: (layer) => focusLayer(parts, layer),
  };
}

/** Fetch the layers of some runs, each `{run, colour, num_layers}`. */
async function load(parts, runs) {
  const answers = await Promise.all(runs.map(layersOf));
  return () => {
    parts.runs = answers.filter(({ layers }) => layers.length);
    parts.notices.replaceChildren(...answers.flatMap(notice));
    parts.bar.hidden = parts.runs.length === 0;
  };
}

async function layersOf(run) {
  if (!run.num_layers) return { ...run, layers: [] };
  try {
    return { ...run, layers: await fetchOverview(run.run) };
  } catch (error) {
    return { ...run, layers: [], error };
  }
}

function notice({ run, layers, error }) {
  if (error) return [failure(error)];
  return layers.length ? [] : [runWithoutData(run)];
}

/** Show the runs over their steps, each a timeline with `colour`, and what to make of them. */
function tell(parts, stories) {
  if (parts.scalarChoice.root.parentNode !== parts.scalars) parts.scalars.prepend(parts.scalarChoice.root);
  const told = new Map(stories.map(({ run, diagnosis }) => [run, diagnosis]));
  parts.runs = parts.runs.map((it) => ({ ...it, diagnosis: told.get(it.run) }));
  parts.cards.replaceChildren(...runCards(parts.runs));
  const steps = stories.flatMap(({ loss, learning_rate: learningRate, total, reinitialisations }) => [
    ...(loss?.steps ?? []), ...(learningRate?.steps ?? []), ...total.steps, ...reinitialisations.map(({ step }) => step)]);
  parts.scalars.hidden = steps.length === 0;
  if (!steps.length) return;
  const [first, last] = steps.reduce(([low, high], step) => [Math.min(low, step), Math.max(high, step)], [Infinity, -Infinity]);
  parts.strip.show(stories, evenAxis(first, last));
}

/** Sort and filter what was fetched; no request is needed. */
function arrange({ table, filter, runs, on }, choices) {
  if (filter.value !== choices.filter) filter.value = choices.filter;
  const focused = table.contains(document.activeElement) ? document.activeElement : null;
  const column = focused?.dataset.column;
  const layer = focused?.closest('tr')?.dataset.layer;
  const scrolled = table.querySelector('.table-frame')?.scrollTop ?? 0;
  table.replaceChildren(...(runs.length ? [overviewTable(runs, choices, on)] : []));
  if (runs.length) table.querySelector('.table-frame').scrollTop = scrolled;
  // The button that was pressed is gone with the old table: its successor gets the focus.
  if (column) table.querySelector(`[data-column="${CSS.escape(column)}"]`)?.focus();
  else if (layer) focusLayer({ table }, layer);
}

function focusLayer({ table }, layer) {
  [...table.querySelectorAll('tbody tr')].find((row) => row.dataset.layer === layer)
    ?.querySelector('button').focus();
}
