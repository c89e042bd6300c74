/** Which rows of a heat map are in view, and how keys move the cell in focus. */

import { count } from './text.js';

/** The whole of a matrix, nothing in focus. */
export function wholeView(matrix) {
  return { first: 0, last: matrix.numRows, focus: null, unitRow: null };
}

/**
 * Show `factor` times as many rows, around the focus or the chosen unit. Where there is neither,
 * the first dead unit in view stays in view: the dead are what one zooms in for.
 */
export function zoomed(view, matrix, factor) {
  const shown = view.last - view.first;
  const wanted = Math.max(1, Math.min(matrix.numRows, Math.round(shown * factor)));
  const grown = { ...view, last: view.first + wanted };
  const centre = view.focus?.row ?? view.unitRow;
  if (centre !== null) return shifted(grown, matrix, Math.round(centre - (wanted - 1) / 2));
  const dead = firstDeadRow(view, matrix);
  const first = dead === null ? Math.round((view.first + view.last - wanted) / 2)
    : Math.max(view.first, Math.round(dead - wanted / 4));
  return shifted(grown, matrix, first);
}

/** The first row in view that holds a unit that is dead now, or null. */
function firstDeadRow(view, matrix) {
  for (let row = view.first; row < view.last; row += 1) {
    const units = matrix.unitsOf(row);
    if (units.some((unit) => !Number.isNaN(matrix.arrays.dead_since[unit]))) return row;
  }
  return null;
}

/** Which rows are in view, in words; empty if all are. */
export function rowsShown({ first, last }, { numRows, units_per_row: perRow }) {
  if (last - first === numRows) return '';
  const what = perRow > 1 ? `rows of ${count(perRow)} units` : 'units';
  return `Zoomed in: ${what} ${count(first + 1)} to ${count(last)} of ${count(numRows)}, from the top`;
}

/** Scroll by some rows. */
export function scrolled(view, matrix, rows) {
  return shifted(view, matrix, view.first + rows);
}

/** Put the focus on a cell, scrolled into view and kept inside of the matrix. */
export function focused(view, matrix, { row, column }) {
  const focus = {
    row: clamp(row, 0, matrix.numRows - 1),
    column: clamp(column, 0, matrix.numColumns - 1),
  };
  const shown = view.last - view.first;
  const first = clamp(view.first, focus.row - shown + 1, focus.row);
  return shifted({ ...view, focus }, matrix, first);
}

/** Where a key moves the focus, or null if it is not a key of the map. */
export function moved(focus, key, matrix, { ctrl }) {
  const { row, column } = focus ?? { row: 0, column: matrix.numColumns - 1 };
  const moves = {
    ArrowUp: { row: row - 1, column },
    ArrowDown: { row: row + 1, column },
    ArrowLeft: { row, column: column - 1 },
    ArrowRight: { row, column: column + 1 },
    PageUp: { row: row - 10, column },
    PageDown: { row: row + 10, column },
    Home: ctrl ? { row: 0, column } : { row, column: 0 },
    End: ctrl ? { row: matrix.numRows - 1, column } : { row, column: matrix.numColumns - 1 },
  };
  return moves[key] ?? null;
}

function shifted(view, matrix, first) {
  const shown = view.last - view.first;
  const start = clamp(first, 0, matrix.numRows - shown);
  return { ...view, first: start, last: start + shown };
}

function clamp(value, least, most) {
  return Math.max(least, Math.min(most, value));
}
