/** Puts the page together: the run picker, and either the overview or one layer. */

import { fetchColours, fetchRuns, fetchTimeline } from './api.js';
import { gradient, runColour, setColours, setDark } from './colours.js';
import { element } from './dom.js';
import { failure, noData, noRuns } from './empty.js';
import { hostColour, onDarkMode, onReload } from './host.js';
import { makeLayerView } from './layer_view.js';
import { makeOverview } from './overview_view.js';
import { makeRunPicker, unaskedRuns } from './runs.js';
import { makeScalarChoice } from './scalar_choice.js';
import { choose, current, onChoice } from './state.js';

let known = [];
let latest = 0;

/** Called by TensorBoard once the module is loaded. */
export async function render() {
  prepare();
  const [colours, runs] = await Promise.all([fetchColours(), fetchRuns().catch((error) => error)]);
  setColours(colours);
  const page = makePage();
  document.body.append(page.root);
  onDarkMode((dark) => {
    const html = document.documentElement;
    html.classList.toggle('dark', dark);
    setDark(dark);
    html.style.setProperty('--scale', gradient());
    page.layer.redraw();
  });
  let before = current();
  onChoice((now) => {
    const left = before.layer;
    const focus = left === now.layer ? null
      : () => (now.layer === null ? page.overview.focusLayer(left) : page.layer.focusTitle());
    refresh(page, changeOf(before, now), focus);
    before = now;
  });
  onReload(async () => reload(page, await fetchRuns().catch((error) => error)));
  document.addEventListener('keydown', (event) => event.key === 'Escape' && escape(page, event));
  // Last, since whoever chooses something before all is there must be heard.
  await reload(page, runs);
}

function prepare() {
  document.documentElement.lang = 'en';
  document.title = 'Dead Units';
  document.head.append(element('link', { rel: 'stylesheet', href: './static/style.css' }));
}

function makePage() {
  const picker = makeRunPicker((runs) => choose({ runs }));
  // One choice of scalars, shown in whichever view there is.
  const scalarChoice = makeScalarChoice((kind, tag) => choose({ [kind]: tag }));
  const overviewView = makeOverview({
    sort: (sort) => choose({ sort }),
    filter: (filter) => choose({ filter }),
    // With the runs that are shown, so that the address says all of what is on screen.
    open: (name) => choose({ layer: name, unit: null, runs: names(chosenRuns()) }, { push: true }),
  }, scalarChoice);
  const layerView = makeLayerView({
    back,
    order: (order) => choose({ order }),
    like: (like) => choose({ like }),
    unit: (unit) => choose({ unit }),
  }, scalarChoice);
  const main = element('main', { 'aria-busy': 'true' });
  const root = element('div', { class: 'page' }, picker.root, main);
  return { root, main, picker, overview: overviewView, layer: layerView, scalarChoice };
}

function back() {
  choose({ layer: null, unit: null }, { push: true });
}

/** Escape closes what was opened last: the unit, then the layer. */
function escape(page, event) {
  if (event.defaultPrevented || event.target.matches('select, input')) return; // theirs to close or clear
  if (current().layer === null) return;
  if (current().unit === null) back();
  else {
    choose({ unit: null });
    page.layer.focusMap();
  }
}

/** What has to be done: `data` needs the server, `scalars` and `unit` a part, `table` nothing. */
function changeOf(before, now) {
  const same = (key) => JSON.stringify(before[key]) === JSON.stringify(now[key]);
  if (!['runs', 'layer', 'order', 'like'].every(same)) return 'data';
  if (!['loss', 'learning_rate'].every(same)) return 'scalars';
  return same('unit') ? 'table' : 'unit';
}

async function reload(page, runs) {
  if (runs instanceof Error) {
    page.main.replaceChildren(failure(runs));
    return;
  }
  known = coloured(runs);
  await refresh(page, 'data');
}

/** Give each run TensorBoard's colour; where it does not tell, the one that it would choose. */
function coloured(runs) {
  const asListed = [...runs].sort((one, other) => (one.start_time ?? Infinity) - (other.start_time ?? Infinity));
  return runs.map((run) => ({ ...run, colour: hostColour(run.run) ?? runColour(asListed.indexOf(run)) }));
}

async function refresh(page, change, focus = null) {
  latest += 1;
  const turn = latest;
  const chosen = chosenRuns();
  page.picker.show(known, names(chosen));
  page.main.setAttribute('aria-busy', 'true');
  const show = await steps[change](page, chosen);
  if (turn !== latest) return; // the user has gone on meanwhile
  show();
  page.main.setAttribute('aria-busy', 'false');
  focus?.();
  // A map is on screen before its scalars, which need a look at every layer of the run.
  if (change === 'data' && current().layer !== null) await tellScalars(page, chosen, turn);
}

const steps = {
  data: content,
  unit: async (page, chosen) => {
    const show = await page.layer.loadUnit(withLayers(chosen), current());
    return show;
  },
  scalars: async (page, chosen) => {
    const stories = await timelines(chosen);
    return () => tell(page, stories);
  },
  table: async (page) => () => page.overview.arrange(current()),
};

/** The chosen runs that exist, or, if the user has not chosen, those worth showing. */
function chosenRuns() {
  const wanted = current().runs ?? unaskedRuns(known);
  return known.filter(({ run }) => wanted.includes(run));
}

function withLayers(runs) {
  return runs.filter((run) => run.num_layers);
}

function names(runs) {
  return runs.map(({ run }) => run);
}

async function content(page, chosen) {
  if (!known.some((run) => run.num_layers)) return () => page.main.replaceChildren(noData(known));
  if (!chosen.length) return () => page.main.replaceChildren(noRuns());
  return current().layer === null ? overview(page, chosen) : layer(page, chosen);
}

async function overview(page, chosen) {
  const show = await page.overview.load(chosen);
  // After the layers, since both read the same; on screen together, since what has been read must
  // not jump when the scalars arrive above it.
  const stories = await timelines(chosen);
  return () => {
    show();
    tell(page, stories);
    page.overview.arrange(current());
    put(page, page.overview.root);
  };
}

async function layer(page, chosen) {
  const runs = withLayers(chosen);
  const shows = await Promise.all([page.layer.load(runs, current()), page.layer.loadUnit(runs, current())]);
  return () => {
    put(page, page.layer.root);
    shows.forEach((show) => show());
  };
}

async function tellScalars(page, chosen, turn) {
  page.main.dataset.scalars = 'loading';
  const stories = await timelines(chosen);
  if (turn !== latest) return;
  tell(page, stories);
}

/** The runs over their steps; one that cannot be told now is left out, and its layers stay. */
async function timelines(chosen) {
  const { loss, learning_rate: learningRate } = current();
  const tags = { loss, learning_rate: learningRate };
  const answers = await Promise.all(withLayers(chosen).map(async ({ run, colour }) =>
    ({ ...(await fetchTimeline(run, tags).catch(() => null)), colour })));
  return answers.filter((story) => story.total);
}

function tell(page, stories) {
  page.scalarChoice.show(stories, current());
  (current().layer === null ? page.overview : page.layer).tell(stories);
  page.main.dataset.scalars = 'shown';
}

/** Swap the view only if it is another one: a swap would take focus and scroll position away. */
function put(page, view) {
  if (page.main.firstChild !== view || page.main.childNodes.length > 1) page.main.replaceChildren(view);
}
