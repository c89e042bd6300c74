/** Draws a dead fraction over training, small. */

import { svg } from './dom.js';
import { percent } from './text.js';

const WIDTH = 132;
const HEIGHT = 26;

/** Make a sparkline; `top` is the fraction at its upper edge, shared by a table's rows. */
export function sparkline({ steps, dead_fraction: fractions }, top) {
  const first = steps[0];
  const span = steps.at(-1) - first || 1;
  const points = fractions.map((fraction, at) => ({
    x: steps.length > 1 ? ((steps[at] - first) / span) * WIDTH : WIDTH,
    y: HEIGHT - 1.5 - ((fraction ?? 0) / top) * (HEIGHT - 4),
  }));
  // One validation is a level, not a point that nobody sees.
  if (points.length === 1) points.unshift({ ...points[0], x: 0 });
  const line = points.map(({ x, y }, at) => `${at ? 'L' : 'M'}${x.toFixed(1)},${y.toFixed(1)}`).join('');
  const peak = Math.max(...fractions.map((fraction) => fraction ?? 0));
  return svg(
    'svg',
    {
      class: peak > 0 ? 'sparkline' : 'sparkline flat',
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      width: WIDTH,
      height: HEIGHT,
      role: 'img',
      'aria-label': `Dead fraction over training, at most ${percent(peak)}`,
    },
    svg('path', { class: 'area', d: `${line}L${WIDTH},${HEIGHT}L0,${HEIGHT}Z` }),
    svg('path', { class: 'line', d: line }),
  );
}
