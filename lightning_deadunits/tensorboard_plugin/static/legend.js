/** What the colours of the heat map mean. */

import { element } from './dom.js';

/** Make the legend; the style sheet colours it, in light and dark. */
export function legend() {
  return element('p', { class: 'legend' },
    'zero rate 0', element('span', { class: 'scale', 'aria-hidden': 'true' }), '1',
    entry('dead-swatch', 'dead'), entry('unseen-swatch', 'not seen'),
    entry('mark-swatch', 're-initialised'));
}

function entry(swatch, text) {
  return element('span', { class: 'entry' },
    element('span', { class: `swatch ${swatch}`, 'aria-hidden': 'true' }), text);
}
