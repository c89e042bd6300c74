/** What a cell of the heat map says in words. */

import { isDead } from './matrix.js';
import { count, percent, plural, rate } from './text.js';

/** Describe a cell, for the tooltip and for who listens instead of looking. */
export function describe(matrix, { row, column }) {
  const units = matrix.unitsOf(row);
  const step = `step ${count(matrix.steps[column])}`;
  if (units.length > 1) return describeMany(matrix, units, row, column, step);
  const value = matrix.rateAt(row, column);
  const verdict = isDead(value, matrix.dead_threshold) ? 'dead' : 'alive';
  const said = Number.isNaN(value) ? 'not seen' : `zero rate ${rate(value)}, ${verdict}`;
  return [`unit ${count(units[0])}`, step, said, ...sinceWhen(matrix, units[0])].join(' · ');
}

function describeMany(matrix, units, row, column, step) {
  const share = matrix.deadShareAt(row, column);
  const names = `${plural(units.length, 'unit')} from ${count(units[0])}`;
  if (Number.isNaN(share)) return [names, step, 'not seen'].join(' · ');
  const mean = rate(matrix.rateAt(row, column));
  const rest = share < 1 ? `the living have a mean zero rate of ${mean}` : 'none alive';
  return [names, step, `${percent(share)} dead`, rest].join(' · ');
}

function sinceWhen(matrix, unit) {
  const since = matrix.arrays.dead_since[unit];
  if (Number.isNaN(since)) return [];
  const state = matrix.states[matrix.arrays.state[unit]];
  return [state === 'dead' ? `dead since step ${count(since)}` : state];
}
