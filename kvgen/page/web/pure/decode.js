// Blocks of numbers: base64 of a zlib stream of typed arrays (kvgen/page/blocks.py).

const TYPES = { f32: Float32Array, i16: Int16Array, u8: Uint8Array };

/** The bytes of a text in base64. */
export function bytesOfBase64(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < characters.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** The bytes that a zlib stream (RFC 1950) holds. */
export async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The arrays of a block by name: {numbers, shape}. `places` say where each lies. */
export function arraysOf(bytes, places) {
  const arrays = {};
  for (const { name, dtype, shape, offset } of places) {
    const Type = TYPES[dtype];
    const length = shape.reduce((product, n) => product * n, 1);
    arrays[name] = { numbers: new Type(bytes.buffer, bytes.byteOffset + offset, length), shape };
  }
  return arrays;
}

/** Vectors [rows, D] as float32; of whole numbers each row times its scale. */
export function vectorsOf(arrays, name) {
  const { numbers, shape } = arrays[name];
  if (numbers instanceof Float32Array) return numbers;
  const scales = arrays[`${name}Scales`].numbers;
  const size = shape[shape.length - 1];
  const vectors = new Float32Array(numbers.length);
  for (let i = 0; i < numbers.length; i++) vectors[i] = numbers[i] * scales[Math.floor(i / size)];
  return vectors;
}

/** A weight of 0..1 from a byte: (byte / 255)^2. */
export function weightOfByte(byte) {
  return (byte / 255) ** 2;
}
