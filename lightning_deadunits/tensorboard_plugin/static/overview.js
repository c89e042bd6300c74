/**
 * The table of layers, one row each, in network order unless the user sorts. Of one run it tells
 * all that is known; of several, each run is a column.
 */

import { element } from './dom.js';
import { copyButton, OF_LAYERS, OF_RUNS, shortNames } from './names.js';
import { sparkline } from './sparkline.js';
import { count, deadSince, makers, percent, rate, share } from './text.js';

// A common scale makes the rows comparable; below this, a flat line would look like a mountain.
const LEAST_TOP = 0.05;
const NAME_LENGTH = 44;
const RUN_LENGTH = 18;
const ROOM_FOR_DATES = 3; // runs side by side, each with since when its units are dead

const ONE_RUN = [
  { key: 'network', title: '#', hint: 'The order in which the layers ran' },
  { key: 'layer', title: 'Layer', text: true },
  { key: 'made_by', title: 'Made by', text: true, hint: 'The modules or parameters that make the units' },
  { key: 'num_units', title: 'Units' },
  { key: 'dead_fraction', title: 'Dead', hint: 'Dead at the latest validation, and over training' },
  { key: 'zero_rate', title: 'Zero rate', hint: 'Mean share of zeros: sparsity, which says nothing about death' },
  { key: 'dead_since', title: 'Dead since', text: true },
  { key: 'recovered', title: 'Recovered', hint: 'Was dead and came back by itself' },
  { key: 'reinitialised', title: 'Re-initialised', hint: 'How often units were re-initialised' },
];
const RUN_PREFIX = 'run:';

/**
 * Make the table.
 *
 * @param runs The chosen runs that have layers, each {run, colour, layers}.
 * @param choices `sort` (a column, "-" before it for descending) and `filter`.
 * @param on `sort(sort)` and `open(layer)`.
 */
export function overviewTable(runs, { sort, filter }, on) {
  const rows = rowsOf(runs);
  const columns = runs.length > 1 ? columnsOf(runs) : ONE_RUN;
  const shown = sorted(rows.filter((row) => matches(row, filter)), columns, sort);
  const curves = runs.flatMap(({ layers }) => layers.map(({ sparkline: it }) => it?.dead_fraction ?? []));
  const top = Math.max(LEAST_TOP, ...curves.flat());
  const short = shortNames(rows.map(({ layer }) => layer), NAME_LENGTH);
  const caption = `${shown.length} of ${rows.length} layers; small curves: dead fraction over training, 0 to ${percent(top)}`;
  const frame = element('div', { class: 'table-frame', tabindex: 0, role: 'region', 'aria-label': 'Table of layers' },
    element('table', { class: runs.length > 1 ? 'overview several' : 'overview' },
      element('thead', {}, element('tr', {}, columns.map((column) => head(column, sort, on)))),
      element('tbody', {}, shown.map((row) => line(row, columns, { top, short }, on)))));
  return element('div', {}, frame, element('p', { class: 'table-caption' }, caption));
}

/** One row per layer: its place in the network, and its summary in every run that has it. */
function rowsOf(runs) {
  const rows = new Map();
  for (const { run, layers } of runs) {
    layers.forEach((summary, place) => {
      const row = rows.get(summary.layer) ?? { layer: summary.layer, network: place, of: new Map() };
      row.of.set(run, summary);
      rows.set(summary.layer, row);
    });
  }
  return [...rows.values()].sort((one, other) => one.network - other.network)
    .map((row, place) => ({ ...row, network: place + 1 }));
}

function columnsOf(runs) {
  const short = shortNames(runs.map(({ run }) => run), RUN_LENGTH, OF_RUNS);
  const roomy = runs.length <= ROOM_FOR_DATES;
  return [...ONE_RUN.slice(0, roomy ? 3 : 2), ONE_RUN[3], ...runs.map(({ run, colour }) => (
    { key: RUN_PREFIX + run, title: short.get(run), hint: `Dead in run ${run}`, run, colour, roomy }))];
}

function matches({ layer }, filter) {
  return layer.toLowerCase().includes(filter.trim().toLowerCase());
}

function sorted(rows, columns, sort) {
  const descending = sort.startsWith('-');
  const wanted = descending ? sort.slice(1) : sort;
  const column = columns.find(({ key }) => key === wanted) ?? columns[0];
  // What has no value goes last in either direction, and ties go by network order.
  return [...rows].sort((one, other) => {
    const [left, right] = [sortValue(one, column), sortValue(other, column)];
    return Number(missing(left)) - Number(missing(right))
      || (descending ? -1 : 1) * compared(left, right)
      || one.network - other.network;
  });
}

function sortValue(row, { key, run }) {
  if (key === 'network' || key === 'layer') return row[key];
  const summary = run ? row.of.get(run) : first(row);
  if (run) return summary?.dead_fraction;
  if (key === 'dead_since') return summary.born_dead ? 0 : summary.died_at?.[0][0];
  if (key === 'made_by') return summary.made_by?.join(', ') || null;
  return summary[key];
}

function first(row) {
  return row.of.values().next().value;
}

function missing(value) {
  return value === null || value === undefined;
}

function compared(one, other) {
  if (missing(one) || missing(other)) return 0;
  if (typeof one === 'string') return one.localeCompare(other, 'en', { numeric: true });
  return one - other;
}

function head({ key, title, hint, text, run, colour }, sort, on) {
  const active = sort === key || sort === `-${key}`;
  const descending = sort.startsWith('-');
  const upFirst = text || key === 'network';
  // Numbers start with the worst, names with A; a second click turns it round.
  const next = active ? (descending ? key : `-${key}`) : (upFirst ? key : `-${key}`);
  const order = active ? (descending ? 'descending' : 'ascending') : 'none';
  const arrow = element('span', { class: 'arrow', 'aria-hidden': 'true' }, active ? (descending ? '↓' : '↑') : '');
  return element('th', { scope: 'col', 'aria-sort': order, class: text ? 'text' : run ? 'figure of-run' : 'figure' },
    element('button', {
      type: 'button', 'data-column': key, title: hint, onclick: () => on.sort(next),
      'aria-label': run ? `Run ${run}` : title === '#' ? 'Network order' : null,
    }, text ? [title, arrow] : [arrow, run ? dotOf(colour) : null, title]));
}

function dotOf(colour) {
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  return dot;
}

function line(row, columns, drawing, on) {
  const open = () => on.open(row.layer);
  const worst = [...row.of.values()];
  const state = worst.every((it) => it.problem && it.dead === undefined) ? 'problem'
    : worst.every((it) => it.seen === false) ? 'unseen' : worst.some((it) => it.dead) ? '' : 'fine';
  return element('tr', { class: state, 'data-layer': row.layer, onclick: open },
    columns.map((column) => cell(row, column, drawing, open)));
}

function cell(row, column, { top, short }, open) {
  const { key, run } = column;
  if (key === 'network') return element('td', { class: 'place' }, count(row.network));
  if (key === 'layer') return nameCell(row, short.get(row.layer), open);
  const summary = run ? row.of.get(run) : first(row);
  if (!summary || summary.dead === undefined) {
    const why = summary?.problem ?? 'This run has not this layer.';
    return element('td', { title: why, class: column.text ? 'text' : '' }, run ? '–' : '');
  }
  if (run || key === 'dead_fraction') return deadCell(summary, top, column);
  if (key === 'made_by') return madeByCell(summary.made_by);
  if (key === 'dead_since') return element('td', { class: 'text since' }, sinceOf(summary));
  const text = key === 'zero_rate' ? (summary.seen ? rate(summary.zero_rate) : '–') : count(summary[key]);
  return element('td', { class: 'number' }, text);
}

function nameCell(row, short, open) {
  const summaries = [...row.of.values()];
  const button = element('button', {
    type: 'button',
    class: 'layer-name',
    title: row.layer,
    'aria-label': row.layer,
    onclick: (event) => {
      event.stopPropagation(); // or the row would open it once more
      open();
    },
  }, short);
  const whole = short === row.layer ? null : copyButton(row.layer);
  const single = summaries.length === 1 ? badges(summaries[0]) : [];
  const problems = [...new Set(summaries.map(({ problem }) => problem).filter(Boolean))];
  return element('th', { scope: 'row', class: 'text' }, button, whole, ...single,
    problems.map((problem) => element('p', { class: 'problem-text' }, problem)));
}

function badges(summary) {
  const all = [];
  if (summary.wholly_dead) all.push(whollyDead(summary.layer));
  if (summary.seen === false) all.push(element('span', { class: 'badge' }, `saw nothing at step ${count(summary.step)}`));
  return all.flatMap((badge) => [' ', badge]);
}

/** The badge of a layer that lets nothing through. */
export function whollyDead(layer) {
  const title = `Wholly dead: nothing gets through '${layer}', the network is cut there.`;
  return element('span', { class: 'badge cut', title }, 'wholly dead');
}

function deadCell(summary, top, { run: several, roomy }) {
  const text = summary.seen ? share(summary.dead, summary.num_units) : 'not seen';
  const badge = several && summary.wholly_dead ? whollyDead(summary.layer) : null;
  const since = sinceOf(summary);
  const title = several ? [since, summary.made_by.length ? `made by ${summary.made_by.join(', ')}` : '']
    .filter(Boolean).join('; ') || null : null;
  return element('td', { class: summary.dead ? 'number dead' : 'number', title },
    element('div', { class: 'fraction' }, sparkline(summary.sparkline, top), element('span', { class: 'value' }, text)),
    badge, roomy ? element('p', { class: 'since' }, sinceOf(summary, 0)) : null);
}

function madeByCell(names) {
  const whole = names.join(', ');
  const short = shortNames(names, NAME_LENGTH);
  // A line may end behind a dot, rather than anywhere.
  const parts = (makers(names.map((name) => short.get(name))) || '–').split(OF_LAYERS);
  const told = parts.flatMap((part) => [part, element('wbr')]);
  return element('td', { class: 'text made-by', title: whole }, ...told);
}

/**
 * Since when a layer's units are dead: the terminal's words, where the run holds them; where there
 * is little room, `shown` = 0, the same with one step.
 */
function sinceOf({ dead_since: said, born_dead: born, died_again: again, died_at: [steps, units] }, shown) {
  if (said !== null && shown === undefined) return said;
  return deadSince(born, again, steps.map((step, at) => [step, units[at]]), shown);
}
