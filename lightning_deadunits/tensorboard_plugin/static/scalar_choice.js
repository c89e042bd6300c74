/** Which of a run's scalars is its loss and which its learning rate: chosen by name, changeable. */

import { element } from './dom.js';

const TITLES = { loss: 'Loss', learning_rate: 'Learning rate' };
const UNASKED = '';

/** Make the two lists; `onPick` is called with a kind and a tag, null for the choice by name. */
export function makeScalarChoice(onPick) {
  const lists = Object.fromEntries(Object.keys(TITLES).map((kind) => [kind, element('select', {
    class: 'tag-choice',
    'aria-label': TITLES[kind],
    onchange: (event) => onPick(kind, event.target.value || null),
  })]));
  const root = element('div', { class: 'bar scalar-choice' }, Object.entries(TITLES)
    .map(([kind, title]) => element('label', {}, `${title} `, lists[kind])));
  return { root, show: (timelines, chosen) => show(root, lists, timelines, chosen) };
}

function show(root, lists, timelines, chosen) {
  const tags = [...new Set(timelines.flatMap((it) => it.tags))].sort();
  root.hidden = tags.length === 0;
  for (const [kind, list] of Object.entries(lists)) {
    const found = [...new Set(timelines.map((it) => it[kind]?.tag).filter(Boolean))];
    const unasked = `by name${chosen[kind] || !found.length ? '' : `: ${found.join(', ')}`}`;
    const key = JSON.stringify([tags, unasked]);
    if (list.dataset.key !== key) { // an open list must not be rebuilt under the pointer
      list.dataset.key = key;
      list.replaceChildren(element('option', { value: UNASKED }, unasked),
        ...tags.map((tag) => element('option', { value: tag }, tag)));
    }
    list.value = tags.includes(chosen[kind]) ? chosen[kind] : UNASKED;
  }
}
