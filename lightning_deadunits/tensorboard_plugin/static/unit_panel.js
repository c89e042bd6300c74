/** One unit over the steps: its curve in every chosen run, and what became of it in words. */

import { unitChart } from './curve.js';
import { element } from './dom.js';
import { listenToSteps } from './steps.js';
import { count } from './text.js';

/** Make the panel; `onClose` is called when the user closes the unit. */
export function makeUnitPanel(onClose) {
  const root = element('section', { class: 'unit-panel', 'aria-label': 'Unit' });
  const panel = { root, stories: [], chart: null };
  // The chart is drawn for a width; text in it would shrink with a narrower page.
  new ResizeObserver(() => panel.chart && draw(panel)).observe(root);
  listenToSteps(root, (step) => panel.chart?.pointAt(step));
  return { root, show: (unit, stories) => show(panel, unit, stories, onClose) };
}

function show(panel, unit, stories, onClose) {
  panel.stories = stories;
  panel.chart = null;
  panel.root.classList.toggle('with-unit', unit !== null); // only then it stays in sight
  panel.root.replaceChildren(...blocks(panel, unit, stories, onClose));
}

function draw(panel) {
  const chart = unitChart(panel.stories, Math.max(240, panel.root.clientWidth - 32));
  panel.chart?.root.replaceWith(chart.root);
  panel.chart = chart;
  return chart.root;
}

function blocks(panel, unit, stories, onClose) {
  if (unit === null) {
    return [element('p', { class: 'hint' }, 'Choose a unit in the heat map to see its own curve.')];
  }
  const close = element('button', {
    type: 'button', 'aria-label': 'Close the unit', title: 'Close the unit (Escape)', class: 'close', onclick: onClose,
  }, '×');
  const header = element('header', {}, element('h3', {}, `Unit ${count(unit)}`), close);
  if (!stories.length) return [header, element('p', { class: 'hint' }, 'No chosen run has this unit.')];
  return [header, draw(panel), element('ul', { class: 'stories' }, stories.map(story))];
}

function story({ run, colour, state, dead, dead_since: since, reinitialised_at: marks }) {
  const dot = element('span', { class: 'dot', 'aria-hidden': 'true' });
  dot.style.background = colour;
  const words = dead && state !== 'born dead' ? `${state}${state === 'dead' ? '' : ','} since step ${count(since)}` : state;
  const again = marks.length ? `; re-initialised at step ${marks.map(count).join(', ')}` : '';
  return element('li', { class: dead ? 'dead' : '' }, dot, element('strong', {}, run), ` ${words}${again}`);
}
