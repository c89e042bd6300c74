/** What the tab says when there is nothing to draw: what to do about it. */

import { element } from './dom.js';

const SNIPPET = `from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_deadunits import DeadUnitCallback

trainer = Trainer(
    logger=TensorBoardLogger("logs"),
    callbacks=[DeadUnitCallback()],
)`;

/** No run has any data. */
export function noData(runs) {
  const seen = runs.length
    ? 'TensorBoard found runs here, but none was written with the callback.'
    : 'TensorBoard has found no run in this log directory yet.';
  return message('No dead units to show yet', seen,
    'Add the callback to the Trainer. The first data arrives with the first validation:',
    element('pre', {}, element('code', {}, SNIPPET)),
    'Data that is being written appears at TensorBoard’s next reload.');
}

/** No run is chosen. */
export function noRuns() {
  return message('No run is chosen', 'Choose one or more runs in the list of runs.');
}

/** A chosen run was written without the callback. */
export function runWithoutData(run) {
  return element('div', { class: 'notice' },
    element('strong', {}, run), ' has no data of dead units. It was written without ',
    element('code', {}, 'DeadUnitCallback'), ', or no validation has finished yet.');
}

/** A chosen run has not the layer that is shown. */
export function noSuchLayer(run, layer, reason) {
  return element('div', { class: 'notice' },
    element('strong', {}, run), ': ', element('code', {}, layer), ` cannot be shown. ${reason}`);
}

/** The layer was not reached in the latest validation. */
export function sawNothing() {
  return element('div', { class: 'notice' },
    'This layer saw nothing in the latest validation, so nothing is known of its units. Its ',
    'activation was not called: a branch that was not taken, a model in another mode, or no ',
    'validation batch.');
}

/** Something went wrong between here and the data. */
export function failure(error) {
  return element('div', { class: 'notice failure', role: 'alert' },
    'TensorBoard did not answer: ', error.message,
    ' The reload button of TensorBoard tries again.');
}

function message(title, ...paragraphs) {
  const blocks = paragraphs.map((it) => (typeof it === 'string' ? element('p', {}, it) : it));
  return element('section', { class: 'empty-state' }, element('h2', {}, title), blocks);
}
