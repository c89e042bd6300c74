/** The TensorBoard page around this one: its reloads, its dark mode, its address bar. */

const PREFIX = 'p.dead_units.';
const TAB = 'dead_units';

// Opened on its own, or framed by a stranger, the page is its own host.
const host = accessible(window.parent) ? window.parent : window;

let written = {};

function accessible(other) {
  try {
    return Boolean(other.document.body);
  } catch {
    return false;
  }
}

/**
 * Call back when TensorBoard reloaded its data, by its button or by its timer.
 *
 * TensorBoard announces that to plugins over a message channel that the plugin opens. It does so
 * for hidden tabs too: those wait until they are shown.
 */
export function onReload(callback) {
  const { port1, port2 } = new MessageChannel();
  let missed = false;
  const reload = () => {
    missed = hidden();
    if (!missed) callback();
  };
  port1.onmessage = ({ data }) => {
    const { type, id, isReply } = JSON.parse(data);
    if (isReply) return;
    port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
    if (type === 'experimental.DataReloaded') reload();
  };
  window.parent.postMessage('experimental.bootstrap', '*', [port2]);
  onShown(() => missed && reload());
}

function frame() {
  return host === window ? null : window.frameElement;
}

function hidden() {
  return frame()?.style.visibility === 'hidden';
}

function onShown(callback) {
  if (!frame()) return;
  new MutationObserver(() => hidden() || callback()).observe(frame(), { attributeFilter: ['style'] });
}

/** Call back with whether the page is dark, now and at every switch. */
export function onDarkMode(callback) {
  const preference = window.matchMedia('(prefers-color-scheme: dark)');
  if (host === window) {
    preference.addEventListener('change', () => callback(preference.matches));
    callback(preference.matches);
    return;
  }
  const { body } = host.document;
  const tell = () => callback(body.classList.contains('dark-mode'));
  new MutationObserver(tell).observe(body, { attributeFilter: ['class'] });
  tell();
}

/**
 * The colour that TensorBoard's own charts give a run, or null if it does not tell.
 *
 * An element without content is how TensorBoard hands its scale of colours to whoever asks.
 */
export function hostColour(run) {
  try {
    return host.document.createElement('tf-color-scale').runsColorScale(run);
  } catch {
    return null; // a page without TensorBoard around it, or a run that it has not listed yet
  }
}

/** Read what the address says for this tab, as an object of strings. */
export function readAddress() {
  const own = parts().filter(([key]) => key.startsWith(PREFIX));
  return Object.fromEntries(own.map(([key, value]) => [key.slice(PREFIX.length), value]));
}

/** Write an object of strings into the address; `push` makes it a stop of the Back button. */
export function writeAddress(values, push) {
  written = values;
  if (elsewhere()) return; // another tab's address is not ours to change
  const others = parts().filter(([key]) => !key.startsWith(PREFIX));
  const own = Object.entries(values).map(([key, value]) => [PREFIX + key, value]);
  const hash = '#' + [...others, ...own].map(joined).join('&');
  if (hash === host.location.hash) return;
  if (push) host.history.pushState(host.history.state, '', hash);
  else host.history.replaceState(host.history.state, '', hash);
}

/**
 * Call back when the user changed the address, also by Back and Forward.
 *
 * Some of TensorBoard's other tabs clear the address. Coming back from them is no change of mind:
 * what was written last is written again.
 */
export function onAddress(callback) {
  let away = false;
  const changed = () => {
    const lost = away && Object.keys(readAddress()).length === 0;
    away = elsewhere();
    if (away) return;
    if (lost) writeAddress(written, false);
    else callback();
  };
  host.addEventListener('hashchange', changed);
  host.addEventListener('popstate', changed);
  // TensorBoard changes the address after it shows the tab.
  onShown(() => setTimeout(changed));
}

function elsewhere() {
  return host !== window && parts()[0]?.[0] !== TAB;
}

function parts() {
  const pieces = host.location.hash.slice(1).split('&').filter(Boolean);
  return pieces.map((piece) => piece.split('=').map(decoded));
}

/** Decode what came from an address, which may have been typed by hand. */
export function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone percent sign
  }
}

function joined([key, value]) {
  const name = encodeURIComponent(key);
  return value === undefined ? name : `${name}=${encodeURIComponent(value)}`;
}
