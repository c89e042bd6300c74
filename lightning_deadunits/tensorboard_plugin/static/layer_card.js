/** The card of a layer in one run: its facts, its export, its heat map. */

import { csvUrl } from './api.js';
import { element } from './dom.js';
import { sawNothing } from './empty.js';
import { whollyDead } from './overview.js';
import { makePane } from './pane.js';
import { count, deadSince, makers, plural, share } from './text.js';

/** Make the card of a run; `onUnit` is called with the unit that was chosen. */
export function makeCard({ run, colour, short }, layer, onUnit) {
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  const facts = element('p', { class: 'facts' });
  const exports = element('p', { class: 'exports' });
  const pane = makePane(`layer ${layer}, run ${run}`, onUnit);
  const name = short;
  const root = element('article', { class: 'pane', 'aria-label': `Run ${run}` },
    element('header', {}, element('h3', { title: run }, dot, name), exports), facts, pane.root);
  return { root, pane, facts, exports, matrix: null };
}

/** Show what was fetched for a run in its card. */
export function showAnswer(card, { run, matrix }, layer, unit) {
  card.matrix = matrix;
  card.facts.replaceChildren(...factsOf(matrix, layer));
  card.exports.replaceChildren(...exportLinks(run, layer, matrix));
  card.pane.show(matrix, unit);
}

function factsOf(matrix, layer) {
  const { dead, since } = deadOf(matrix);
  const facts = [
    `${share(dead, matrix.num_units)} of ${plural(matrix.num_units, 'unit')} dead${since ? `: ${since}` : ''}`,
    `${plural(matrix.num_steps, 'validation')} up to step ${count(matrix.steps.at(-1))}`,
  ];
  if (matrix.made_by.length) facts.push(`made by ${makers(matrix.made_by)}`);
  if (matrix.units_per_row > 1) facts.push(`${count(matrix.units_per_row)} units per row`);
  const pieces = [element('span', {}, facts.join(' · '))];
  if (dead && dead === matrix.num_units) pieces.push(' ', whollyDead(layer));
  return matrix.saw_nothing ? [...pieces, sawNothing()] : pieces;
}

/** How many units are dead, and since when, in the words of the table. */
function deadOf({ states, arrays: { state, dead_since: since } }) {
  const numbers = new Uint32Array(states.length);
  const dates = new Map();
  const died = states.indexOf('dead');
  state.forEach((of, unit) => {
    numbers[of] += 1;
    if (of === died) dates.set(since[unit], (dates.get(since[unit]) ?? 0) + 1);
  });
  const born = numbers[states.indexOf('born dead')];
  const again = numbers[states.indexOf('died again after re-initialisation')];
  const steps = [...dates].sort(([one], [other]) => one - other);
  return { dead: born + again + numbers[died], since: deadSince(born, again, steps) };
}

/** One link, or several where one file would be larger than TensorBoard should send. */
function exportLinks(run, layer, { csv_parts: parts }) {
  const link = (text, units) =>
    element('a', { href: csvUrl(run, layer, units), download: '', 'aria-label': `Export ${text} of ${run}` }, text);
  if (parts.length === 1) return [link('CSV')];
  return parts.flatMap((units) => [link(`CSV ${units}`, units), ' ']);
}
