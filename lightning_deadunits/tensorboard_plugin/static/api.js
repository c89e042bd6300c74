/** Fetches. Paths are relative to the page's base, which knows TensorBoard's path prefix. */

import { unpack } from './bundle.js';

/** All runs, with how many layers each has. */
export async function fetchRuns() {
  return (await (await get('runs', {})).json()).runs;
}

/** One summary per layer of a run. */
export async function fetchOverview(run) {
  return (await (await get('overview', { run })).json()).layers;
}

/** The heat map of a layer. */
export async function fetchLayer(run, layer, order) {
  return unpack(await (await get('layer', { run, layer, order })).arrayBuffer());
}

/** One unit's story. */
export async function fetchUnit(run, layer, unit) {
  return (await get('unit', { run, layer, unit })).json();
}

/** Address of a layer's rates as CSV, or of some of its units, as in "0-99". */
export function csvUrl(run, layer, units) {
  return address('csv', units ? { run, layer, units } : { run, layer });
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
