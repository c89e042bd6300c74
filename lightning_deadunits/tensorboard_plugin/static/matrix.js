/** The rates of a layer as rows of a heat map, each one unit or several neighbours. */

import { columnAxis } from './steps.js';

/** Wrap an unpacked answer of `layer` with what drawing and reading out need to know. */
export function matrixOf(answer) {
  const { rates, dead_share: deadShare, units } = answer.arrays;
  const numColumns = answer.steps.length;
  const rowOfUnit = new Uint32Array(units.length);
  units.forEach((unit, place) => {
    rowOfUnit[unit] = Math.floor(place / answer.units_per_row);
  });
  return {
    ...answer,
    axis: columnAxis(answer.steps),
    numColumns,
    numRows: answer.num_rows,
    rowOfUnit,
    rateAt: (row, column) => rates[column * answer.num_rows + row],
    deadShareAt: (row, column) => {
      const at = column * answer.num_rows + row;
      return deadShare ? deadShare[at] : Number(isDead(rates[at], answer.dead_threshold));
    },
    unitsOf: (row) => units.subarray(row * answer.units_per_row, (row + 1) * answer.units_per_row),
  };
}

/** Whether a rate is a dead unit's, in the float32 in which rates are kept. */
export function isDead(rate, threshold) {
  return rate >= Math.fround(threshold);
}

/**
 * Shrink the rows first..last-1 to at most `height` x `width` cells.
 *
 * Returns, for every cell, the mean rate of the living (NaN if none) and the share of the dead (NaN
 * if no unit was seen): both, because a mean alone would hide one dead unit among many.
 */
export function shrink(matrix, first, last, width, height) {
  const rows = Math.min(last - first, height);
  const columns = Math.min(matrix.numColumns, width);
  const living = new Float32Array(rows * columns);
  const sum = new Float32Array(rows * columns);
  const dead = new Float32Array(rows * columns);
  const startOf = Uint32Array.from({ length: last - first }, (_, row) =>
    Math.floor((row * rows) / (last - first)) * columns);
  for (let column = 0; column < matrix.numColumns; column += 1) {
    const shift = Math.floor((column * columns) / matrix.numColumns);
    addColumn(matrix, column * matrix.numRows + first, startOf, shift, { living, sum, dead });
  }
  return { rows, columns, ...means(living, sum, dead) };
}

function addColumn(matrix, offset, startOf, shift, { living, sum, dead }) {
  const { rates, dead_share: shares } = matrix.arrays;
  const threshold = Math.fround(matrix.dead_threshold);
  for (let row = 0; row < startOf.length; row += 1) {
    const rate = rates[offset + row];
    if (rate !== rate) continue; // NaN: not seen
    const cell = startOf[row] + shift;
    const share = shares ? shares[offset + row] : Number(rate >= threshold);
    dead[cell] += share;
    living[cell] += 1 - share;
    sum[cell] += rate * (1 - share);
  }
}

function means(living, sum, dead) {
  return {
    meanRate: sum.map((total, cell) => total / living[cell]),
    deadShare: dead.map((share, cell) => share / (share + living[cell])),
  };
}
