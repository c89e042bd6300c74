/** One card per run above the table: how the run stands in one glance. */

import { element } from './dom.js';
import { count, percent, plural } from './text.js';

/** Make the card of a run from its layers. */
export function runCard(run, colour, layers) {
  const seen = layers.filter((layer) => layer.seen);
  const dead = total(seen, 'dead');
  const units = total(seen, 'num_units');
  const steps = layers.map((layer) => layer.step ?? 0);
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  return element('section', { class: dead ? 'card' : 'card fine', 'aria-label': `Run ${run}` },
    element('h3', { title: run }, dot, run),
    element('p', { class: 'big' }, units ? percent(dead / units) : '–', element('small', {}, ' dead')),
    element('p', {}, `${count(dead)} of ${plural(units, 'unit')} at step ${count(Math.max(0, ...steps))}`),
    element('p', {}, layersText(seen)));
}

function layersText(layers) {
  const touched = layers.filter((layer) => layer.dead > 0).length;
  const whole = layers.filter((layer) => layer.dead > 0 && layer.dead === layer.num_units).length;
  const wholly = whole ? `, ${count(whole)} wholly dead` : '';
  return `${count(touched)} of ${plural(layers.length, 'layer')} with dead units${wholly}`;
}

function total(layers, key) {
  return layers.reduce((sum, layer) => sum + layer[key], 0);
}
