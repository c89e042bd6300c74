/** Which rows of a heat map are in view, and how keys move the cell in focus. */

/** The whole of a matrix, nothing in focus. */
export function wholeView(matrix) {
  return { first: 0, last: matrix.numRows, focus: null, unitRow: null };
}

/** Show `factor` times as many rows, around the focus or the middle. */
export function zoomed(view, matrix, factor) {
  const shown = view.last - view.first;
  const wanted = Math.max(1, Math.min(matrix.numRows, Math.round(shown * factor)));
  const anchor = view.focus ? view.focus.row : (view.first + view.last) / 2;
  return shifted({ ...view, last: view.first + wanted }, matrix, Math.round(anchor - wanted / 2));
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
