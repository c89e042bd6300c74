/** What the user chose, kept in the address so that a link brings it back. */

import { decoded, onAddress, readAddress, writeAddress } from './host.js';

const ORDERS = ['death', 'index', 'rate'];

const DEFAULTS = {
  runs: null, // null: not chosen yet
  layer: null,
  unit: null,
  order: 'death',
  filter: '',
  sort: '-dead_fraction',
};

let state = parsed(readAddress());
const listeners = [];
writeAddress(written(state), false);

/** The current choices; never changed in place. */
export function current() {
  return state;
}

/** Change some choices; `push` makes it a stop of the Back button. */
export function choose(changes, { push = false } = {}) {
  state = { ...state, ...changes };
  writeAddress(written(state), push);
  listeners.forEach((listener) => listener(state));
}

/** Call back when a choice changed. */
export function onChoice(listener) {
  listeners.push(listener);
}

onAddress(() => {
  const next = parsed(readAddress());
  if (JSON.stringify(written(next)) === JSON.stringify(written(state))) return;
  state = next;
  listeners.forEach((listener) => listener(state));
});

function parsed({ run, layer, unit, order, filter, sort }) {
  return {
    ...DEFAULTS,
    ...(run !== undefined && { runs: run.split(',').map(decoded) }),
    ...(layer !== undefined && { layer }),
    ...(/^\d{1,9}$/.test(unit) && { unit: Number(unit) }),
    ...(ORDERS.includes(order) && { order }),
    ...(filter !== undefined && { filter }),
    ...(sort !== undefined && { sort }),
  };
}

/** Only what differs from the default, so that addresses stay short. */
function written({ runs, layer, unit, order, filter, sort }) {
  return {
    // Each name is encoded once more, since a name may hold the comma that joins them.
    ...(runs && { run: runs.map(encodeURIComponent).join(',') }),
    ...(layer !== null && { layer }),
    ...(layer !== null && unit !== null && { unit: String(unit) }),
    ...(order !== DEFAULTS.order && { order }),
    ...(filter !== DEFAULTS.filter && { filter }),
    ...(sort !== DEFAULTS.sort && { sort }),
  };
}
