/**
 * The colours of rates. From never zero to always zero runs one blue of rising strength, safe for
 * every kind of colour vision (ColorBrewer's Blues, Brewer and Harrower 2013, in the light). Dead is
 * the vermilion that the scale does not hold.
 */

const LIGHT = {
  name: 'light',
  scale: ['#f4f8fc', '#deebf7', '#c6dbef', '#9ecae1', '#6baed6', '#4292c6', '#2171b5', '#0b4a8f', '#082f63'],
  dead: '#ea580c',
};
const DARK = {
  name: 'dark',
  scale: ['#1d242c', '#203244', '#244460', '#2a597f', '#33729f', '#4a8fbf', '#70addb', '#9fcbee', '#cfe6fa'],
  dead: '#ff7a29',
};
const RUNS = ['#0072b2', '#cc79a7', '#009e73', '#b8860b', '#7a5cc7', '#56b4e9', '#8c6d46', '#888888'];
const LEVELS = 256;
// One dead unit among hundreds in a pixel is still seen as a tint, never as part of the scale.
const LEAST_TINT = 0.4;

let palette = made(LIGHT);

/** Switch between the light and the dark colours. */
export function setDark(dark) {
  palette = made(dark ? DARK : LIGHT);
}

/** The colours in use: `name`, `scale` (256 RGB triples) and `dead` (one). */
export function colours() {
  return palette;
}

/** The scale as a CSS gradient, for the legend. */
export function gradient() {
  return `linear-gradient(to right, ${palette.stops.join(', ')})`;
}

/** A run's colour, by its place in the list of all runs. */
export function runColour(index) {
  return RUNS[index % RUNS.length];
}

/** Write the colour of a cell into RGBA pixels: mean rate of the living, and share of the dead. */
export function paint(pixels, at, meanRate, deadShare) {
  const { scale, dead } = palette;
  const base = Number.isNaN(meanRate) ? 0 : 3 * Math.round(meanRate * (LEVELS - 1));
  const tint = deadShare > 0 && deadShare < 1 ? LEAST_TINT + (1 - LEAST_TINT) * deadShare : deadShare;
  for (let channel = 0; channel < 3; channel += 1) {
    pixels[at + channel] = scale[base + channel] * (1 - tint) + dead[channel] * tint;
  }
  pixels[at + 3] = 255;
}

function made({ name, scale, dead }) {
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
