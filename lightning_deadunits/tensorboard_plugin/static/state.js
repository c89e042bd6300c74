/** What the user chose, kept in the address so that a link brings it back. */

import { decoded, onAddress, readAddress, writeAddress } from './host.js';

const PREFIX = 'lightning_deadunits.';
const ORDERS = ['death', 'index', 'rate'];

const DEFAULTS = {
  runs: null, // null: not chosen yet
  layer: null,
  unit: null,
  order: 'death',
  like: null, // the run whose order of units the maps share; null: the first
  filter: '',
  sort: 'network',
  // Tags of the run's own scalars; null: found by their names.
  loss: null,
  learning_rate: null,
};
// Not of one page but of a user's habits: remembered also where no link brings them.
const REMEMBERED = ['loss', 'learning_rate'];

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
  remember(changes);
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

function parsed({ run, layer, unit, order, like, filter, sort, ...tags }) {
  return {
    ...DEFAULTS,
    ...remembered(),
    ...(run !== undefined && { runs: run.split(',').map(decoded) }),
    ...(layer !== undefined && { layer }),
    ...(/^\d{1,9}$/.test(unit) && { unit: Number(unit) }),
    ...(ORDERS.includes(order) && { order }),
    ...(like !== undefined && { like }),
    ...(filter !== undefined && { filter }),
    ...(sort !== undefined && { sort }),
    ...Object.fromEntries(REMEMBERED.filter((kind) => tags[kind]).map((kind) => [kind, tags[kind]])),
  };
}

function remember(changes) {
  for (const kind of REMEMBERED.filter((it) => it in changes)) {
    try {
      if (changes[kind]) localStorage.setItem(PREFIX + kind, changes[kind]);
      else localStorage.removeItem(PREFIX + kind);
    } catch {
      // a browser that keeps nothing: then it lasts as long as the page
    }
  }
}

function remembered() {
  try {
    const kept = REMEMBERED.map((kind) => [kind, localStorage.getItem(PREFIX + kind)]);
    return Object.fromEntries(kept.filter(([, tag]) => tag));
  } catch {
    return {};
  }
}

/** Only what differs from the default, so that addresses stay short. */
function written({ runs, layer, unit, order, like, filter, sort, loss, learning_rate: learningRate }) {
  return {
    // Each name is encoded once more, since a name may hold the comma that joins them.
    ...(runs && { run: runs.map(encodeURIComponent).join(',') }),
    ...(layer !== null && { layer }),
    ...(layer !== null && unit !== null && { unit: String(unit) }),
    ...(order !== DEFAULTS.order && { order }),
    ...(filter !== DEFAULTS.filter && { filter }),
    ...(sort !== DEFAULTS.sort && { sort }),
    ...(like !== null && { like }),
    ...(loss !== null && { loss }),
    ...(learningRate !== null && { learning_rate: learningRate }),
  };
}
