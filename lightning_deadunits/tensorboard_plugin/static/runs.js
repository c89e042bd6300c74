/** The run picker: which runs are shown, and which have nothing to show. */

import { element } from './dom.js';
import { OF_RUNS, shortNames } from './names.js';
import { plural } from './text.js';

// A handful of runs is compared at once; of a long list, the newest is what one came to see.
const SHOWN_UNASKED = 4;
const WORTH_FILTERING = 8;
const NAME_LENGTH = 44;

/** The runs to show when the user has not chosen any. */
export function unaskedRuns(runs) {
  const withData = runs.filter((run) => run.num_layers > 0);
  if (withData.length <= SHOWN_UNASKED) return withData.map(({ run }) => run);
  const newest = withData.reduce((one, other) =>
    ((other.start_time ?? 0) > (one.start_time ?? 0) ? other : one));
  return [newest.run];
}

/** Make the picker; `onPick` is called with the names of the runs that are now chosen. */
export function makeRunPicker(onPick) {
  const list = element('ul', { class: 'run-list' });
  const search = element('input', {
    type: 'search',
    placeholder: 'Filter runs',
    'aria-label': 'Filter runs',
    oninput: () => applyFilter(list, search.value),
  });
  const root = element('nav', { class: 'runs', 'aria-label': 'Runs' },
    element('h2', {}, 'Runs'), search, list);
  return {
    root,
    show: (runs, chosen) => {
      search.hidden = runs.length < WORTH_FILTERING;
      refill(list, runs, chosen, onPick);
      applyFilter(list, search.value);
    },
  };
}

/** Rebuild the list only if it changed, so that a reload takes no focus away. */
function refill(list, runs, chosen, onPick) {
  const key = JSON.stringify([runs, chosen]);
  if (list.dataset.key === key) return;
  const focused = list.contains(document.activeElement) ? document.activeElement.value : null;
  list.dataset.key = key;
  const short = shortNames(runs.map(({ run }) => run), NAME_LENGTH, OF_RUNS);
  list.replaceChildren(...runs.map((run) => item(run, short.get(run.run), chosen, onPick)));
  boxes(list).find((box) => box.value === focused)?.focus();
}

function item(run, short, chosen, onPick) {
  const box = element('input', {
    type: 'checkbox',
    value: run.run,
    'aria-label': run.run,
    checked: chosen.includes(run.run),
    onchange: (event) => onPick(picked(event.target.closest('ul'))),
  });
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = run.colour;
  const note = run.num_layers ? plural(run.num_layers, 'layer') : 'no data of dead units';
  return element('li', { class: run.num_layers ? '' : 'empty' },
    element('label', { title: run.run }, box, dot,
      element('span', { class: 'run-name' }, short), element('small', {}, note)));
}

function boxes(list) {
  return [...list.querySelectorAll('input')];
}

function picked(list) {
  return boxes(list).filter((box) => box.checked).map((box) => box.value);
}

function applyFilter(list, text) {
  const wanted = text.toLowerCase();
  for (const box of boxes(list)) {
    box.closest('li').hidden = !box.value.toLowerCase().includes(wanted);
  }
}
