/**
 * How numbers read, and the words for what became of units: the same as in the terminal.
 *
 * One rule of rounding, in the same IEEE arithmetic as reporting/figures.py: to thousandths, half
 * up. A little is never written as nothing, nor almost all as all.
 */

const WHOLE = new Intl.NumberFormat('en', { useGrouping: true });
const FINE = 1e12;
const THOUSANDTH = 1e9;
const STEPS_SHOWN = 3;

/** A count or a step, as in 16,384. */
export function count(value) {
  return WHOLE.format(value);
}

/** A number and its noun, as in "1 unit", "2 units". */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? '' : 's'}`;
}

const MOST_MAKERS = 8;

/** The first of what makes a layer's units, and how many more there are: a sum may have a hundred. */
export function makers(names) {
  const more = names.length - MOST_MAKERS;
  return [...names.slice(0, MOST_MAKERS), ...(more > 0 ? [`${count(more)} more`] : [])].join(', ');
}

/** A share as a percentage, as in "46.9%". */
export function percent(fraction) {
  if (missing(fraction)) return '–';
  if (fraction === 0 || fraction === 1) return `${100 * fraction}%`;
  const rounded = thousandths(fraction);
  if (rounded === 0) return '<0.1%';
  if (rounded === 1000) return '>99.9%';
  return `${Math.floor(rounded / 10)}.${rounded % 10}%`;
}

/** A zero-activation rate, as in "0.909"; only exactly 1 reads 1, since that is what dead means. */
export function rate(value) {
  if (missing(value)) return 'not seen';
  if (value === 0 || value === 1) return String(value);
  const rounded = thousandths(value);
  if (rounded === 0) return '<0.001';
  if (rounded === 1000) return '>0.999';
  return `0.${String(rounded).padStart(3, '0')}`;
}

/** How many are dead, as in "15 (46.9%)". */
export function share(dead, units) {
  return dead ? `${count(dead)} (${percent(dead / units)})` : count(dead);
}

/** A loss or a learning rate with three significant digits, as in "2.3" or "1e-05". */
export function magnitude(value) {
  if (missing(value)) return '–';
  if (value === 0) return '0';
  const [digits, power] = value.toExponential(2).split('e').map(Number);
  if (power >= -4 && power < 3) return String(Number(value.toPrecision(3)));
  const sign = power < 0 ? '-' : '+';
  return `${digits}e${sign}${String(Math.abs(power)).padStart(2, '0')}`;
}

/**
 * Since when a layer's dead units are dead, the earliest first.
 *
 * @param born How many were born dead.
 * @param again How many died again after re-initialisation.
 * @param dates Of the others, pairs of a step and how many are dead since then, in order.
 * @param shown How many of these to name; where there is little room, none but the first.
 */
export function deadSince(born, again, dates, shown = STEPS_SHOWN) {
  const later = dates.slice(shown).reduce((sum, [, units]) => sum + units, 0);
  return [
    born ? `${count(born)} born dead` : '',
    ...dates.slice(0, shown).map(([step, units]) => `${count(units)} at step ${count(step)}`),
    later ? `${count(later)} ${shown ? 'later' : `from step ${count(dates[0][0])} on`}` : '',
    again ? `${count(again)} died again` : '',
  ].filter(Boolean).join(', ');
}

function missing(value) {
  return value === null || value === undefined || Number.isNaN(value);
}

/** Half up, after a rounding so fine that a tie is one however the number came about. */
function thousandths(value) {
  return Math.floor((Math.floor(value * FINE + 0.5) + THOUSANDTH / 2) / THOUSANDTH);
}
