/**
 * The colours of rates. From never zero to always zero runs one blue of rising strength, safe for
 * every kind of colour vision (ColorBrewer's Blues, Brewer and Harrower 2013, in the light). Dead is
 * the vermilion that the scale does not hold.
 */

const LEVELS = 256;

let schemes = null;
let palette = null;

/** Take the colours, as `colours.json` has them for this page and for report.plot() alike. */
export function setColours(read) {
  schemes = read;
  setDark(false);
}

/** Switch between the light and the dark colours. */
export function setDark(dark) {
  palette = made(dark ? 'dark' : 'light');
}

/** The colours in use: `name`, `scale` (256 RGB triples) and `dead` (one). */
export function colours() {
  return palette;
}

/** The scale as a CSS gradient, for the legend. */
export function gradient() {
  return `linear-gradient(to right, ${palette.stops.join(', ')})`;
}

/** The colour that TensorBoard gives a run, by its place in the list of all runs. */
export function runColour(index) {
  return schemes.runs[index % schemes.runs.length];
}

/**
 * Paint a cell, `width` RGBA pixels from `start`: from the left as much of it dead as units are,
 * at least one pixel, the rest in the colour of the living. Mixing the two would give a mud that is
 * neither, and of one dead unit among hundreds nothing would be seen.
 */
export function paint(pixels, start, width, meanRate, deadShare) {
  const { scale, dead } = palette;
  const numDead = Math.ceil(deadShare * width);
  const level = 3 * Math.round(meanRate * (LEVELS - 1));
  for (let pixel = 0; pixel < width; pixel += 1) {
    const [colour, from] = pixel < numDead ? [dead, 0] : [scale, level];
    const at = 4 * (start + pixel);
    for (let channel = 0; channel < 3; channel += 1) pixels[at + channel] = colour[from + channel];
    pixels[at + 3] = 255;
  }
}

function made(name) {
  const { scale, dead } = schemes[name];
  const stops = scale.map(rgb);
  const table = new Float32Array(3 * LEVELS);
  for (let level = 0; level < LEVELS; level += 1) {
    table.set(between(stops, level / (LEVELS - 1)), 3 * level);
  }
  return { name, scale: table, dead: rgb(dead), stops: scale };
}

function between(stops, position) {
  const place = position * (stops.length - 1);
  const left = Math.min(Math.floor(place), stops.length - 2);
  const share = place - left;
  return stops[left].map((value, channel) => value * (1 - share) + stops[left + 1][channel] * share);
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}
