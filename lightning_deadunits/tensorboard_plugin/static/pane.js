/** The heat map of one run as something to point at, to walk with the keyboard and to zoom. */

import { element } from './dom.js';
import { cellAt, drawHeatMap, MARGIN, plotHeight, plotOf } from './heatmap.js';
import { sentenceAt } from './lanes.js';
import { describe } from './readout.js';
import { listenToSteps, pointAt } from './steps.js';
import { makeStrip } from './strip.js';
import { focused, moved, rowsShown, scrolled, wholeView, zoomed } from './viewport.js';

const HELP = 'Arrow keys move over units and steps, Enter shows the unit, plus and minus zoom, Escape leaves.';

/** Make the heat map of a run; `onUnit` is called with the unit that was chosen. */
export function makePane(label, onUnit) {
  const canvas = element('canvas', {
    class: 'heatmap',
    tabindex: 0,
    role: 'application',
    'aria-roledescription': 'heat map',
    'aria-label': `Zero rates of ${label}. ${HELP}`,
  });
  const strip = makeStrip(`Scalars of ${label}`);
  const readout = element('p', { class: 'readout', role: 'status', 'aria-live': 'polite' });
  const rows = element('p', { class: 'rows-shown' });
  const tooltip = element('div', { class: 'tooltip', hidden: true, 'aria-hidden': 'true' });
  const cursor = element('div', { class: 'cursor', hidden: true });
  const map = element('div', { class: 'map' }, canvas, cursor, tooltip);
  const root = element('div', { class: 'pane-body' }, strip.root, map, rows, readout);
  const pane = { canvas, strip, map, readout, rows, tooltip, cursor, root, onUnit, matrix: null, view: null, story: null, width: 0 };
  listen(pane);
  listenToSteps(map, (step) => pointed(pane, step));
  // Width comes from the page, and it is the one who knows when it changes.
  new ResizeObserver(() => pane.matrix && map.clientWidth !== pane.width && draw(pane)).observe(root);
  return {
    root,
    show: (matrix, unit) => show(pane, matrix, unit),
    tell: (story) => tell(pane, story),
    markUnit: (unit) => markUnit(pane, unit),
    redraw: () => pane.matrix && draw(pane),
    zoom: (factor) => look(pane, zoomed(pane.view, pane.matrix, factor)),
    focus: () => canvas.focus(),
  };
}

/** Show a matrix; if it is the same layer grown by some steps, stay where the user is looking. */
function show(pane, matrix, unit) {
  const stays = pane.matrix && pane.matrix.numRows === matrix.numRows
    && pane.matrix.order === matrix.order;
  pane.matrix = matrix;
  pane.view = stays ? { ...pane.view } : wholeView(matrix);
  if (pane.view.focus) pane.view = focused(pane.view, matrix, pane.view.focus);
  markUnit(pane, unit);
  if (pane.story) tell(pane, pane.story);
  else if (pane.view.focus) say(pane);
}

/** Show the run's scalars above the map. */
function tell(pane, story) {
  pane.story = story;
  if (pane.matrix) pane.strip.show([story], pane.matrix.axis);
  if (pane.matrix && pane.view.focus) say(pane);
}

function markUnit(pane, unit) {
  const known = unit !== null && unit < pane.matrix.rowOfUnit.length;
  look(pane, { ...pane.view, unitRow: known ? pane.matrix.rowOfUnit[unit] : null });
}

function look(pane, view) {
  pane.view = view;
  pane.rows.textContent = rowsShown(view, pane.matrix);
  draw(pane);
}

function draw(pane) {
  const size = sizeOf(pane);
  if (size.width <= MARGIN.left + MARGIN.right) return; // not laid out yet
  pane.width = size.width;
  pane.canvas.style.height = `${size.height}px`;
  drawHeatMap(pane.canvas, pane.matrix, pane.view, size);
  const { x, y, width, height } = plotOf(size);
  Object.assign(pane.canvas.dataset, {
    rows: `${pane.view.first}-${pane.view.last - 1}`,
    steps: pane.matrix.numColumns,
    plot: [x, y, width, height].join(),
  });
}

function sizeOf({ map, matrix }) {
  return {
    width: map.clientWidth,
    height: plotHeight(matrix.numRows) + MARGIN.top + MARGIN.bottom,
  };
}

function listen(pane) {
  const { canvas } = pane;
  canvas.addEventListener('pointermove', (event) => hover(pane, event));
  canvas.addEventListener('pointerleave', () => {
    pane.tooltip.hidden = true;
    pointAt(null);
  });
  canvas.addEventListener('click', (event) => choose(pane, cellUnder(pane, event)));
  canvas.addEventListener('keydown', (event) => press(pane, event));
  canvas.addEventListener('focus', () => enter(pane));
  canvas.addEventListener('blur', () => pointAt(null));
  canvas.addEventListener('wheel', (event) => roll(pane, event), { passive: false });
}

function cellUnder(pane, event) {
  const point = { x: event.offsetX, y: event.offsetY };
  return pane.matrix && cellAt(point, sizeOf(pane), pane.matrix, pane.view);
}

function hover(pane, event) {
  const cell = cellUnder(pane, event);
  pane.tooltip.hidden = !cell;
  const { width } = sizeOf(pane);
  const place = (event.offsetX - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
  pointAt(pane.matrix && place >= 0 && place <= 1 ? pane.matrix.axis.step(place) : null);
  if (!cell) return;
  pane.tooltip.textContent = describe(pane.matrix, cell);
  const onRight = event.offsetX > width / 2;
  pane.tooltip.style.top = `${event.offsetY + 14}px`;
  pane.tooltip.style.left = onRight ? 'auto' : `${event.offsetX + 12}px`;
  pane.tooltip.style.right = onRight ? `${width - event.offsetX + 12}px` : 'auto';
}

/** Show the step that the pointer is on, on this map or on any other chart. */
function pointed(pane, step) {
  const place = step === null || !pane.matrix ? null : pane.matrix.axis.place(step);
  pane.cursor.hidden = place === null;
  if (place === null) return;
  const { x, y, width, height } = plotOf(sizeOf(pane));
  Object.assign(pane.cursor.style, { left: `${x + place * width}px`, top: `${y}px`, height: `${height}px` });
}

function enter(pane) {
  // A click focuses too, but there the pointer says which cell is meant.
  if (pane.matrix && !pane.view.focus && pane.canvas.matches(':focus-visible')) {
    focusOn(pane, { row: Math.max(pane.view.first, pane.view.unitRow ?? 0), column: Infinity });
  }
}

function press(pane, event) {
  if (!pane.matrix || event.altKey || event.metaKey) return;
  const { focus } = pane.view;
  const next = moved(focus, event.key, pane.matrix, { ctrl: event.ctrlKey });
  if (next) focusOn(pane, next);
  else if (event.key === '+' || event.key === '=') look(pane, zoomed(pane.view, pane.matrix, 0.5));
  else if (event.key === '-') look(pane, zoomed(pane.view, pane.matrix, 2));
  else if (event.key === 'Enter' || event.key === ' ') choose(pane, focus);
  else return;
  event.preventDefault();
}

function focusOn(pane, cell) {
  look(pane, focused(pane.view, pane.matrix, cell));
  pointAt(pane.matrix.steps[pane.view.focus.column]);
  say(pane);
}

function say(pane) {
  const { focus } = pane.view;
  const scalars = pane.story ? sentenceAt(pane.story, pane.matrix.steps[focus.column]) : '';
  pane.readout.textContent = [describe(pane.matrix, focus), scalars].filter(Boolean).join(' · ');
}

function choose(pane, cell) {
  if (!cell) return;
  focusOn(pane, cell);
  pane.onUnit(pane.matrix.unitsOf(cell.row)[0]);
}

/** The wheel scrolls a zoomed map, and the page when the map has nothing more to scroll. */
function roll(pane, event) {
  if (!pane.matrix) return;
  const shown = pane.view.last - pane.view.first;
  const rows = Math.sign(event.deltaY) * Math.max(1, Math.round(shown / 12));
  const next = scrolled(pane.view, pane.matrix, rows);
  if (next.first === pane.view.first) return;
  event.preventDefault();
  look(pane, next);
}
