/** The table of layers: one row per layer and run, the worst first. */

import { element } from './dom.js';
import { sparkline } from './sparkline.js';
import { count, percent, rate } from './text.js';

// A common scale makes the rows comparable; below this, a flat line would look like a mountain.
const LEAST_TOP = 0.05;

const COLUMNS = [
  { key: 'layer', title: 'Layer' },
  { key: 'run', title: 'Run' },
  { key: 'num_units', title: 'Units' },
  { key: 'dead', title: 'Dead now' },
  { key: 'dead_fraction', title: 'Dead fraction' },
  { key: 'zero_rate', title: 'Zero rate' },
  { key: 'born_dead', title: 'Born dead' },
  { key: 'died', title: 'Died' },
  { key: 'revived', title: 'Revived' },
  { key: 'reinitialised', title: 'Re-initialised' },
];

/**
 * Make the table.
 *
 * @param rows Layers of all chosen runs, each with `run` and `colour`.
 * @param choices `sort` (a column, "-" before it for descending) and `filter`.
 * @param on `sort(sort)` and `open(layer)`.
 */
export function overviewTable(rows, { sort, filter }, on) {
  const columns = COLUMNS.filter(({ key }) => key !== 'run' || new Set(rows.map((r) => r.run)).size > 1);
  const shown = sorted(rows.filter((row) => matches(row, filter)), sort);
  const top = Math.max(LEAST_TOP, ...rows.flatMap((row) => row.sparkline?.dead_fraction ?? []));
  const caption = `${shown.length} of ${rows.length} rows, fractions on a scale of 0 to ${percent(top)}`;
  return element('div', { class: 'table-frame' },
    element('table', { class: 'overview' },
      element('caption', {}, caption),
      element('thead', {}, element('tr', {}, columns.map((column) => head(column, sort, on)))),
      element('tbody', {}, shown.map((row) => line(row, columns, top, on)))));
}

function matches({ layer }, filter) {
  return layer.toLowerCase().includes(filter.trim().toLowerCase());
}

function sorted(rows, sort) {
  const descending = sort.startsWith('-');
  const wanted = descending ? sort.slice(1) : sort;
  const { key } = COLUMNS.find((column) => column.key === wanted) ?? COLUMNS[4];
  // What has no value goes last in either direction, and ties go by how many are dead, then by name.
  return [...rows].sort((one, other) =>
    Number(missing(one[key])) - Number(missing(other[key]))
    || (descending ? -1 : 1) * compared(one[key], other[key])
    || (other.dead ?? 0) - (one.dead ?? 0)
    || compared(one.layer, other.layer)
    || compared(one.run, other.run));
}

function missing(value) {
  return value === null || value === undefined;
}

function compared(one, other) {
  if (missing(one) || missing(other)) return 0;
  if (typeof one === 'string') return one.localeCompare(other, 'en', { numeric: true });
  return one - other;
}

function head({ key, title }, sort, on) {
  const active = sort === key || sort === `-${key}`;
  const descending = sort.startsWith('-');
  const text = key === 'layer' || key === 'run';
  // Numbers start with the worst, names with A; a second click turns it round.
  const next = active ? (descending ? key : `-${key}`) : (text ? key : `-${key}`);
  const order = active ? (descending ? 'descending' : 'ascending') : 'none';
  return element('th', { scope: 'col', 'aria-sort': order, class: text ? 'text' : '' },
    element('button', { type: 'button', 'data-column': key, onclick: () => on.sort(next) },
      title, element('span', { class: 'arrow', 'aria-hidden': 'true' },
        active ? (descending ? '↓' : '↑') : '')));
}

function line(row, columns, top, on) {
  const open = () => on.open(row.layer);
  return element('tr', { class: state(row), 'data-layer': row.layer, 'data-run': row.run, onclick: open },
    columns.map(({ key }) => cell(key, row, top, open)));
}

function state(row) {
  if (row.problem && row.dead === undefined) return 'problem';
  if (!row.seen) return 'unseen';
  return row.dead === 0 ? 'fine' : '';
}

function cell(key, row, top, open) {
  if (key === 'layer') return nameCell(row, open);
  if (key === 'run') return runCell(row);
  if (row.dead === undefined) return element('td', {});
  if (key === 'dead_fraction') return fractionCell(row, top);
  const text = key === 'zero_rate' ? zeroRate(row) : key === 'dead' && !row.seen ? '–' : count(row[key]);
  return element('td', { class: row[key] && key !== 'num_units' ? `number ${key}` : 'number' }, text);
}

function nameCell(row, open) {
  const button = element('button', {
    type: 'button',
    class: 'layer-name',
    onclick: (event) => {
      event.stopPropagation(); // or the row would open it once more
      open();
    },
  }, row.layer);
  const unseen = row.seen === false
    ? element('span', { class: 'badge' }, `saw nothing at step ${count(row.step)}`) : null;
  const problem = row.problem ? element('p', { class: 'problem-text' }, row.problem) : null;
  return element('th', { scope: 'row', class: 'text' }, button, ' ', unseen, problem);
}

function runCell({ run, colour }) {
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  return element('td', { class: 'text run-cell', title: run }, dot, run);
}

function fractionCell(row, top) {
  return element('td', {}, element('div', { class: 'fraction' }, sparkline(row.sparkline, top),
    element('span', { class: 'value' }, percent(row.dead_fraction))));
}

function zeroRate(row) {
  return row.zero_rate === null ? '–' : rate(row.zero_rate).replace(/(\.\d{3})\d$/, '$1');
}
