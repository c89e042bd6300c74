/** Unpacks the binary answers described in HTTP.md. */

const TYPES = {
  '<f4': Float32Array,
  '<f8': Float64Array,
  '<u4': Uint32Array,
  '|u1': Uint8Array,
};

/** Return the header with, under `arrays`, typed arrays that share the buffer. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const start = 4 + length;
  const arrays = {};
  for (const [name, { dtype, shape, offset }] of Object.entries(header.arrays)) {
    const size = shape.reduce((product, side) => product * side, 1);
    arrays[name] = new TYPES[dtype](buffer, start + offset, size);
  }
  return { ...header, arrays };
}
