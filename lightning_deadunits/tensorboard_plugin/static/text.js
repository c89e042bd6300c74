/** How numbers read. */

const WHOLE = new Intl.NumberFormat('en', { useGrouping: true });

/** A count or a step, as in 16,384. */
export function count(value) {
  return WHOLE.format(value);
}

/** A share as a percentage; a little is never shown as nothing, almost all never as all. */
export function percent(fraction) {
  if (fraction === null) return '–';
  if (fraction > 0 && fraction < 0.001) return '<0.1%';
  if (fraction < 1 && fraction > 0.999) return '>99.9%';
  return `${Number((100 * fraction).toFixed(1))}%`;
}

/** A zero-activation rate; only exactly 1 reads 1, since that is what dead means. */
export function rate(value) {
  if (value === null || Number.isNaN(value)) return 'not seen';
  if (value < 1 && value > 0.9999) return '>0.9999';
  if (value > 0 && value < 0.0001) return '<0.0001';
  return value === 1 || value === 0 ? String(value) : value.toFixed(4);
}

/** A number and its noun, as in "1 unit", "2 units". */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? '' : 's'}`;
}
