/** Long names, shortened in the middle so that different ones stay different. */

import { element } from './dom.js';

const GAP = '…';

/** How a name of a layer, and one of a run, falls into parts; each keeps what ends it. */
export const OF_LAYERS = /(?<=\.)/;
export const OF_RUNS = /(?<=[/,])/;

/**
 * Shorten names to about `limit` characters; returns a map from each to its short form.
 *
 * The parts that most names share go first, of these the ones nearest to the middle: what tells
 * `blocks.10` from `blocks.11` stays. A name that would read like another one stays whole.
 */
export function shortNames(names, limit, into = OF_LAYERS) {
  const shares = new Map();
  names.forEach((name) => new Set(name.split(into)).forEach((part) =>
    shares.set(part, (shares.get(part) ?? 0) + 1)));
  const short = names.map((name) => withoutCommon(name, limit, shares, into));
  const uses = new Map();
  short.forEach((form) => uses.set(form, (uses.get(form) ?? 0) + 1));
  return new Map(names.map((name, at) => [name, uses.get(short[at]) > 1 ? name : short[at]]));
}

function withoutCommon(name, limit, shares, into) {
  if (name.length <= limit) return name;
  const parts = name.split(into);
  const middle = (parts.length - 1) / 2;
  const order = [...parts.keys()].slice(1, -1).sort((one, other) =>
    shares.get(parts[other]) - shares.get(parts[one])
    || Math.abs(one - middle) - Math.abs(other - middle));
  const kept = new Set(parts.keys());
  let form = name;
  while (form.length > limit && order.length) {
    kept.delete(order.shift());
    form = joined(parts, kept);
  }
  return form.length <= 1.25 * limit ? form : cut(form, limit);
}

function joined(parts, kept) {
  return parts.map((part, at) => (kept.has(at) ? part : GAP))
    .filter((part, at, all) => part !== GAP || all[at - 1] !== GAP)
    .join('');
}

function cut(text, limit) {
  const tail = Math.floor((limit - 1) / 2);
  return text.slice(0, limit - 1 - tail) + GAP + text.slice(-tail);
}

/** A button that puts a whole name onto the clipboard and says so. */
export function copyButton(name) {
  const button = element('button', {
    type: 'button', class: 'copy', title: 'Copy the whole name', 'aria-label': `Copy the name ${name}`,
    onclick: async (event) => {
      event.stopPropagation();
      const copied = await copy(name);
      button.textContent = copied ? 'Copied' : 'Press Ctrl+C';
      setTimeout(() => { button.textContent = 'Copy'; }, 1500);
    },
  }, 'Copy');
  return button;
}

/** The clipboard's own interface is there on HTTPS and on this machine only. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element('textarea', { class: 'offscreen', 'aria-hidden': 'true' });
    field.value = text;
    const before = document.activeElement;
    document.body.append(field);
    field.select();
    const done = document.execCommand('copy');
    field.remove();
    before?.focus();
    return done;
  }
}
