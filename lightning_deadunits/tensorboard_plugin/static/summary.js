/** One card per run above the table: how the run stands, and what to make of it. */

import { element } from './dom.js';
import { OF_RUNS, shortNames } from './names.js';
import { count, percent, plural } from './text.js';

const NAME_LENGTH = 40;

/** Make the cards of some runs, each {run, colour, layers} and, once it is known, `diagnosis`. */
export function runCards(runs) {
  const short = shortNames(runs.map(({ run }) => run), NAME_LENGTH, OF_RUNS);
  return runs.map((run) => runCard(run, short.get(run.run)));
}

function runCard({ run, colour, layers, diagnosis }, short) {
  // Every unit once: windows of training batches beside a validation judge the same ones again.
  const seen = layers.filter((layer) => layer.seen && !layer.beside);
  const dead = total(seen, 'dead');
  const units = total(seen, 'num_units');
  const step = Math.max(0, ...seen.map((layer) => layer.step ?? 0));
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  const cut = seen.filter((layer) => layer.wholly_dead).length;
  return element('section', { class: dead ? 'card' : 'card fine', 'aria-label': `Run ${run}` },
    element('h3', { title: run }, dot, short,
      cut ? element('span', { class: 'badge cut' }, `${plural(cut, 'layer')} wholly dead`) : null),
    element('p', {},
      element('strong', { class: 'big' }, units ? percent(dead / units) : '–'),
      ` ${count(dead)} of ${plural(units, 'unit')} are dead, in ${plural(seen.length, 'layer')}, at step ${count(step)}`),
    diagnosis ? element('p', { class: 'diagnosis' }, diagnosis) : null);
}

function total(layers, key) {
  return layers.reduce((sum, layer) => sum + layer[key], 0);
}
