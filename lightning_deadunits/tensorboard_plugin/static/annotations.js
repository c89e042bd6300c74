/** What is drawn around and upon a heat map: axes, marks of re-initialisation, the cell in focus. */

import { count } from './text.js';

const ROOM_FOR_GAPS = 7;
const ROOM_AT_RIGHT = 12;

/** Hairlines between rows that are tall enough: neighbours of one colour stay countable. */
export function drawGaps(context, plot, view, ink) {
  const shown = view.last - view.first;
  const height = plot.height / shown;
  if (height < ROOM_FOR_GAPS) return;
  context.fillStyle = ink.paper;
  for (let row = 1; row < shown; row += 1) {
    context.fillRect(plot.x, plot.y + row * height - 0.5, plot.width, 1);
  }
}

/** A column is a validation and ends at its step: labels stand under the right edges. */
export function drawSteps(context, plot, matrix, ink) {
  context.fillStyle = ink.text;
  context.font = ink.font;
  context.textBaseline = 'top';
  context.textAlign = 'center';
  const bottom = plot.y + plot.height;
  const widest = context.measureText(count(matrix.steps.at(-1))).width;
  const stride = Math.ceil(((widest + 24) * matrix.numColumns) / plot.width);
  // Counted from the latest step, the one that matters most.
  for (let column = matrix.numColumns - 1; column >= 0; column -= stride) {
    const x = plot.x + ((column + 1) / matrix.numColumns) * plot.width;
    const label = count(matrix.steps[column]);
    const half = context.measureText(label).width / 2;
    const inside = Math.min(x, plot.x + plot.width - half + ROOM_AT_RIGHT);
    context.fillText(label, inside, bottom + 9);
    context.fillRect(x - 0.5, bottom + 2, 1, 4);
  }
  context.fillText('training step', plot.x + plot.width / 2, bottom + 24);
}

export function drawUnits(context, plot, matrix, view, ink) {
  const shown = view.last - view.first;
  context.fillStyle = ink.text;
  context.font = ink.font;
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  context.fillText('unit', plot.x - 8, plot.y - 9);
  const stride = Math.ceil((14 * shown) / plot.height);
  // In an order other than the indices' a label names the unit that is there.
  for (let row = 0; row < shown; row += stride) {
    const y = plot.y + ((row + 0.5) / shown) * plot.height;
    context.fillText(count(matrix.unitsOf(view.first + row)[0]), plot.x - 8, y);
  }
}

/** A re-initialisation stands where its step is; how many there were the strip above says. */
export function drawMarks(context, plot, matrix, view, ink) {
  const { reinit_steps: steps, reinit_units: units } = matrix.arrays;
  const shown = view.last - view.first;
  const rowHeight = plot.height / shown;
  for (let mark = 0; mark < steps.length; mark += 1) {
    // One that no validation followed yet stands at the right edge.
    const x = plot.x + (matrix.axis.place(steps[mark]) ?? 1) * plot.width;
    const row = matrix.rowOfUnit[units[mark]] - view.first;
    if (row >= 0 && row < shown) {
      drawMark(context, x, plot.y + (row + 0.5) * rowHeight, Math.min(rowHeight, 14), ink);
    }
  }
}

function drawMark(context, x, y, height, ink) {
  const half = Math.max(1.5, Math.min(5, height / 3));
  context.beginPath();
  context.moveTo(x, y - half);
  context.lineTo(x + half, y);
  context.lineTo(x, y + half);
  context.lineTo(x - half, y);
  context.closePath();
  context.fillStyle = ink.strong;
  context.strokeStyle = ink.paper;
  context.lineWidth = height > 5 ? 1.5 : 0.75;
  context.stroke();
  context.fill();
}

export function drawUnit(context, plot, view, ink) {
  const shown = view.last - view.first;
  const place = view.unitRow - view.first;
  if (place < 0 || place >= shown) return;
  const height = plot.height / shown;
  const y = plot.y + place * height;
  context.strokeStyle = ink.strong;
  context.lineWidth = 1.5;
  if (height >= 4) context.strokeRect(plot.x - 1, y, plot.width + 2, height);
  pointer(context, plot.x - 2, y + height / 2, -1, ink);
  pointer(context, plot.x + plot.width + 2, y + height / 2, 1, ink);
}

function pointer(context, x, y, direction, ink) {
  context.fillStyle = ink.strong;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + 6 * direction, y - 4);
  context.lineTo(x + 6 * direction, y + 4);
  context.fill();
}

export function drawFocus(context, plot, matrix, view, ink) {
  const shown = view.last - view.first;
  const width = plot.width / matrix.numColumns;
  const height = plot.height / shown;
  const x = plot.x + view.focus.column * width;
  const y = plot.y + (view.focus.row - view.first) * height;
  // A ring of at least 7 pixels, so that a cell of less than a pixel can be found.
  const ring = { w: Math.max(7, width), h: Math.max(7, height) };
  const left = x + width / 2 - ring.w / 2;
  const top = y + height / 2 - ring.h / 2;
  context.lineWidth = 4;
  context.strokeStyle = ink.paper;
  context.strokeRect(left, top, ring.w, ring.h);
  context.lineWidth = 2;
  context.strokeStyle = ink.strong;
  context.strokeRect(left, top, ring.w, ring.h);
}
