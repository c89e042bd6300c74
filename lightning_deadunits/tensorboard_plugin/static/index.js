/** Puts the page together: the run picker, and either the overview or one layer. */

import { fetchRuns } from './api.js';
import { gradient, runColour, setDark } from './colours.js';
import { element } from './dom.js';
import { failure, noData, noRuns } from './empty.js';
import { onDarkMode, onReload } from './host.js';
import { makeLayerView } from './layer_view.js';
import { makeOverview } from './overview_view.js';
import { makeRunPicker, unaskedRuns } from './runs.js';
import { choose, current, onChoice } from './state.js';

let known = [];
let latest = 0;

/** Called by TensorBoard once the module is loaded. */
export async function render() {
  prepare();
  const page = makePage();
  document.body.append(page.root);
  onDarkMode((dark) => {
    const html = document.documentElement;
    html.classList.toggle('dark', dark);
    setDark(dark);
    html.style.setProperty('--scale', gradient());
    page.layer.redraw();
  });
  await reload(page);
  let before = current();
  onChoice((now) => {
    refresh(page, changeOf(before, now));
    before = now;
  });
  onReload(() => reload(page));
}

function prepare() {
  document.documentElement.lang = 'en';
  document.title = 'Dead Units';
  document.head.append(element('link', { rel: 'stylesheet', href: './static/style.css' }));
}

function makePage() {
  const picker = makeRunPicker((runs) => choose({ runs }));
  const overview = makeOverview({
    sort: (sort) => choose({ sort }),
    filter: (filter) => choose({ filter }),
    // With the runs that are shown, so that the address says all of what is on screen.
    open: (layer) => choose({ layer, unit: null, runs: names(chosenRuns()) }, { push: true }),
  });
  const layer = makeLayerView({
    back: () => choose({ layer: null, unit: null }, { push: true }),
    order: (order) => choose({ order }),
    unit: (unit) => choose({ unit }),
  });
  const main = element('main', { 'aria-busy': 'true' });
  const root = element('div', { class: 'page' }, picker.root, main);
  return { root, main, picker, overview, layer };
}

/** What has to be done: `data` needs the server, `unit` only the curve, `table` nothing. */
function changeOf(before, now) {
  const same = (key) => JSON.stringify(before[key]) === JSON.stringify(now[key]);
  if (!['runs', 'layer', 'order'].every(same)) return 'data';
  return same('unit') ? 'table' : 'unit';
}

async function reload(page) {
  try {
    known = (await fetchRuns()).map((run, at) => ({ ...run, colour: runColour(at) }));
  } catch (error) {
    page.main.replaceChildren(failure(error));
    return;
  }
  await refresh(page, 'data');
}

async function refresh(page, change) {
  latest += 1;
  const turn = latest;
  const chosen = chosenRuns();
  page.picker.show(known.map(({ colour, ...run }) => run), names(chosen));
  page.main.setAttribute('aria-busy', 'true');
  const show = await (change === 'table' ? arrangement(page) : content(page, chosen, change));
  if (turn !== latest) return; // the user has gone on meanwhile
  show();
  page.main.setAttribute('aria-busy', 'false');
}

/** The chosen runs that exist, or, if the user has not chosen, those worth showing. */
function chosenRuns() {
  const wanted = current().runs ?? unaskedRuns(known);
  return known.filter(({ run }) => wanted.includes(run));
}

function names(runs) {
  return runs.map(({ run }) => run);
}

function arrangement(page) {
  return () => page.overview.arrange(current());
}

async function content(page, chosen, change) {
  if (!known.some((run) => run.num_layers)) return () => page.main.replaceChildren(noData(known));
  if (!chosen.length) return () => page.main.replaceChildren(noRuns());
  return current().layer === null ? overview(page, chosen) : layer(page, chosen, change);
}

async function overview(page, chosen) {
  const show = await page.overview.load(chosen);
  return () => {
    show();
    page.overview.arrange(current());
    put(page, page.overview.root);
  };
}

async function layer(page, chosen, change) {
  const runs = chosen.filter((run) => run.num_layers);
  const loads = [page.layer.loadUnit(runs, current())];
  if (change === 'data') loads.unshift(page.layer.load(runs, current()));
  const shows = await Promise.all(loads);
  return () => {
    put(page, page.layer.root);
    shows.forEach((show) => show());
  };
}

/** Swap the view only if it is another one: a swap would take focus and scroll position away. */
function put(page, view) {
  if (page.main.firstChild !== view || page.main.childNodes.length > 1) page.main.replaceChildren(view);
}
