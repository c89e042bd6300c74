/** Fetches. Paths are relative to the page's base, which knows TensorBoard's path prefix. */

import { unpack } from './bundle.js';

/** The colours of the page. */
export async function fetchColours() {
  return (await get('static/colours.json', {})).json();
}

/** All runs, with how many layers each has. */
export async function fetchRuns() {
  return (await (await get('runs', {})).json()).runs;
}

/** One summary per layer of a run. */
export async function fetchOverview(run) {
  return (await (await get('overview', { run })).json()).layers;
}

/** A run over its steps; `tags` are the scalars that the user chose as `loss` and `learning_rate`. */
export async function fetchTimeline(run, tags) {
  return (await get('timeline', { run, ...given(tags) })).json();
}

/** The heat map of a layer, its units in the order of the run `like`. */
export async function fetchLayer(run, layer, order, like) {
  return unpack(await (await get('layer', { run, layer, order, ...given({ like }) })).arrayBuffer());
}

/** One unit's story. */
export async function fetchUnit(run, layer, unit) {
  return (await get('unit', { run, layer, unit })).json();
}

/** Address of a layer's rates as CSV, or of some of its units, as in "0-99". */
export function csvUrl(run, layer, units) {
  return address('csv', units ? { run, layer, units } : { run, layer });
}

function given(query) {
  return Object.fromEntries(Object.entries(query).filter(([, value]) => value));
}

async function get(path, query) {
  const response = await fetch(address(path, query));
  if (!response.ok) throw new Error((await response.text()) || `status ${response.status}`);
  return response;
}

function address(path, query) {
  const search = new URLSearchParams(query).toString();
  return search ? `${path}?${search}` : path;
}
