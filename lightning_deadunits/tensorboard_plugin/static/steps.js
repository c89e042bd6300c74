/**
 * The axis of training steps, and the step that the pointer is on, which all charts share.
 *
 * Above a heat map a step stands where the map has it: a column is a validation, and reaches from
 * the step of the validation before to its own, since that is the training that it judges. So what
 * happened between two validations lies between their columns' right edges.
 */

/** Axis of a heat map with one column per step of `steps`. */
export function columnAxis(steps) {
  const edges = [start(steps), ...steps];
  const columns = steps.length;
  return {
    first: edges[0],
    last: edges.at(-1),
    place: (step) => {
      if (step < edges[0] || step > edges[columns]) return null;
      const column = columnOf(edges, step);
      const width = edges[column + 1] - edges[column] || 1;
      return (column + (step - edges[column]) / width) / columns;
    },
    step: (place) => {
      const column = Math.min(columns - 1, Math.floor(place * columns));
      return edges[column] + (place * columns - column) * (edges[column + 1] - edges[column]);
    },
  };
}

/** Axis on which equal steps have equal room. */
export function evenAxis(first, last) {
  const span = last - first || 1;
  return {
    first,
    last,
    place: (step) => (step < first || step > last ? null : (step - first) / span),
    step: (place) => first + place * span,
  };
}

/** Round steps from `first` to `last`, about `number` of them, to write below an axis. */
export function roundSteps(first, last, number) {
  const least = Math.max(1, (last - first) / number);
  const power = 10 ** Math.floor(Math.log10(least));
  const apart = [1, 2, 5, 10].find((factor) => factor * power >= least) * power;
  const steps = [];
  for (let step = Math.ceil(first / apart) * apart; step <= last; step += apart) steps.push(step);
  return steps.length ? steps : [first];
}

/** Place of the value of `sorted` that is nearest to `step`, -1 if there is none. */
export function nearest(sorted, step) {
  const right = firstAtLeast(sorted, step);
  if (right === 0) return sorted.length ? 0 : -1;
  if (right === sorted.length) return right - 1;
  return sorted[right] - step < step - sorted[right - 1] ? right : right - 1;
}

/** Point at a step, or at none (null): every chart on the page that shows steps is told. */
export function pointAt(step) {
  document.querySelectorAll('[data-points]').forEach((chart) => chart.onStep(step));
}

/** Make an element one of the charts that `pointAt` tells. */
export function listenToSteps(chart, callback) {
  chart.dataset.points = '';
  chart.onStep = callback;
}

function start(steps) {
  const gap = steps.length > 1 ? steps[1] - steps[0] : Math.max(1, steps[0]);
  const before = steps[0] - gap;
  // The first validation judges what was trained since step 0, if that is about as long.
  return steps[0] > 0 && Math.abs(before) <= gap / 2 ? 0 : before;
}

function columnOf(edges, step) {
  return Math.max(0, Math.min(edges.length - 2, firstAtLeast(edges, step) - 1));
}

function firstAtLeast(sorted, value) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
