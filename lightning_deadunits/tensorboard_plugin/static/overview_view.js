/** The first view: cards, filter and table of all layers of the chosen runs. */

import { fetchOverview } from './api.js';
import { element } from './dom.js';
import { failure, runWithoutData } from './empty.js';
import { overviewTable } from './overview.js';
import { runCard } from './summary.js';

/** Make the view; `on` has `sort(sort)`, `filter(text)` and `open(layer)`. */
export function makeOverview(on) {
  const cards = element('div', { class: 'cards' });
  const notices = element('div', {});
  const table = element('div', {});
  const filter = element('input', {
    type: 'search',
    placeholder: 'Filter layers by name',
    'aria-label': 'Filter layers by name',
    oninput: () => on.filter(filter.value),
  });
  const bar = element('div', { class: 'bar' }, element('h2', {}, 'Layers'), filter);
  const root = element('section', { class: 'view', 'aria-label': 'Overview of layers' },
    cards, notices, bar, table);
  const parts = { cards, notices, bar, table, filter, rows: [], on };
  return {
    root,
    load: (runs) => load(parts, runs),
    arrange: (choices) => arrange(parts, choices),
  };
}

/** Fetch the layers of some runs, each `{run, colour, num_layers}`. */
async function load(parts, runs) {
  const answers = await Promise.all(runs.map(layersOf));
  return () => {
    parts.rows = answers.flatMap(({ run, colour, layers }) =>
      layers.map((layer) => ({ ...layer, run, colour })));
    parts.cards.replaceChildren(...answers.filter(({ layers }) => layers.length)
      .map(({ run, colour, layers }) => runCard(run, colour, layers)));
    parts.notices.replaceChildren(...answers.flatMap(notice));
    parts.bar.hidden = parts.rows.length === 0;
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

/** Sort and filter what was fetched; no request is needed. */
function arrange({ table, filter, rows, on }, choices) {
  if (filter.value !== choices.filter) filter.value = choices.filter;
  const focused = table.contains(document.activeElement) ? document.activeElement : null;
  const column = focused?.dataset.column;
  const layer = focused?.closest('tr')?.dataset.layer;
  table.replaceChildren(...(rows.length ? [overviewTable(rows, choices, on)] : []));
  // The button that was pressed is gone with the old table: its successor gets the focus.
  if (column) table.querySelector(`[data-column="${column}"]`).focus();
  else if (layer) [...table.querySelectorAll('tbody tr')]
    .find((row) => row.dataset.layer === layer)?.querySelector('button').focus();
}
