/** What the colours of the heat map mean. */

import { gradient } from './colours.js';
import { element } from './dom.js';

/** Make the legend; its colours follow `restyleLegend`. */
export function legend() {
  const scale = element('span', { class: 'scale', 'aria-hidden': 'true' });
  scale.style.background = gradient();
  return element('p', { class: 'legend' },
    'zero rate 0', scale, '1',
    entry('dead-swatch', 'dead'), entry('unseen-swatch', 'not seen'), entry('mark-swatch', 're-initialised'));
}

/** Follow a switch between light and dark. */
export function restyleLegend() {
  document.querySelectorAll('.legend .scale').forEach((scale) => {
    scale.style.background = gradient();
  });
}

function entry(swatch, text) {
  return element('span', { class: 'entry' },
    element('span', { class: `swatch ${swatch}`, 'aria-hidden': 'true' }), text);
}
