/** Draws the heat map of one layer: its cells, and all that annotates them. */

import {
  drawFocus, drawGaps, drawMarks, drawSteps, drawUnit, drawUnits,
} from './annotations.js';
import { colours, paint } from './colours.js';
import { shrink } from './matrix.js';

export const MARGIN = { left: 64, right: 16, top: 20, bottom: 42 };
const MOST_HEIGHT = 520;
// Bars above the map, and the unit's curve below it: what is clicked and what answers fit together.
const REST_OF_PAGE = 700;
const LEAST_HEIGHT = 44;
const TALLEST_ROW = 26;

const sheets = new WeakMap();

/** Height of the cells: few units get tall rows, many share the screen. */
export function plotHeight(numRows) {
  const room = Math.max(MOST_HEIGHT / 2, Math.min(MOST_HEIGHT, window.innerHeight - REST_OF_PAGE));
  return Math.max(LEAST_HEIGHT, Math.min(room, numRows * TALLEST_ROW));
}

/** Draw everything into a canvas of `size` CSS pixels; `view` is {first, last, focus, unitRow}. */
export function drawHeatMap(canvas, matrix, view, size) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(size.width * scale);
  canvas.height = Math.round(size.height * scale);
  const context = canvas.getContext('2d');
  context.setTransform(scale, 0, 0, scale, 0, 0);
  const plot = plotOf(size);
  const ink = inkOf(canvas);
  drawUnseen(context, plot, ink);
  drawCells(context, plot, matrix, view, scale);
  drawGaps(context, plot, view, ink);
  drawSteps(context, plot, matrix, ink);
  drawUnits(context, plot, matrix, view, ink);
  drawMarks(context, plot, matrix, view, ink);
  if (view.unitRow !== null) drawUnit(context, plot, view, ink);
  if (view.focus) drawFocus(context, plot, matrix, view, ink);
}

/** Rectangle of the cells inside a canvas of `size`. */
export function plotOf({ width, height }) {
  return {
    x: MARGIN.left,
    y: MARGIN.top,
    width: Math.max(1, width - MARGIN.left - MARGIN.right),
    height: Math.max(1, height - MARGIN.top - MARGIN.bottom),
  };
}

/** Row and column under a point of the canvas, or null outside of the cells. */
export function cellAt(point, size, matrix, view) {
  const plot = plotOf(size);
  const across = (point.x - plot.x) / plot.width;
  const down = (point.y - plot.y) / plot.height;
  if (across < 0 || across >= 1 || down < 0 || down >= 1) return null;
  return {
    row: view.first + Math.floor(down * (view.last - view.first)),
    column: Math.floor(across * matrix.numColumns),
  };
}

function inkOf(canvas) {
  const style = getComputedStyle(canvas);
  const value = (name) => style.getPropertyValue(name).trim();
  return {
    text: value('--muted'),
    strong: value('--text'),
    paper: value('--paper'),
    line: value('--line'),
    font: `11px ${style.fontFamily}`,
  };
}

/** Cells that no value reached stay open and show this hatching. */
function drawUnseen(context, plot, ink) {
  context.save();
  context.beginPath();
  context.rect(plot.x, plot.y, plot.width, plot.height);
  context.clip();
  context.strokeStyle = ink.line;
  context.lineWidth = 1.5;
  context.beginPath();
  for (let x = plot.x - plot.height; x < plot.x + plot.width; x += 6) {
    context.moveTo(x, plot.y + plot.height);
    context.lineTo(x + plot.height, plot.y);
  }
  context.stroke();
  context.restore();
}

function drawCells(context, plot, matrix, view, scale) {
  const width = Math.max(1, Math.floor(plot.width * scale));
  const height = Math.max(1, Math.floor(plot.height * scale));
  context.imageSmoothingEnabled = false;
  context.drawImage(sheetOf(matrix, view, width, height), plot.x, plot.y, plot.width, plot.height);
}

/** The painted cells of a view; kept, because the focus moves more often than the view. */
function sheetOf(matrix, view, width, height) {
  const key = [view.first, view.last, width, height, colours().name].join();
  if (sheets.get(matrix)?.key !== key) {
    const cells = shrink(matrix, view.first, view.last, width, height);
    sheets.set(matrix, { key, sheet: painted(cells, width) });
  }
  return sheets.get(matrix).sheet;
}

function painted(cells, width) {
  const wide = Math.max(1, Math.floor(width / cells.columns)); // pixels per cell
  const image = new ImageData(cells.columns * wide, cells.rows);
  for (let cell = 0; cell < cells.deadShare.length; cell += 1) {
    const share = cells.deadShare[cell];
    if (share === share) paint(image.data, cell * wide, wide, cells.meanRate[cell], share);
  }
  const sheet = new OffscreenCanvas(image.width, image.height);
  sheet.getContext('2d').putImageData(image, 0, 0);
  return sheet;
}
