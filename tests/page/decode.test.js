import assert from "node:assert/strict";
import test from "node:test";
import { deflateSync } from "node:zlib";
import { arraysOf, bytesOfBase64, inflate, vectorsOf, weightOfByte } from "../../kvgen/page/web/pure/decode.js";

// A zlib stream of one stored block, by hand: header 78 01, block 01 10 00 ef ff, 16 bytes, Adler-32.
// float32 1.5 and -2 | int16 1 and -2 | uint8 255, 0, 51 and a filler.
const BLOCK = "eAEBEADv/wAAwD8AAADAAQD+//8AMwAj3ATw";
const PLACES = [
  { name: "a", dtype: "f32", shape: [2], offset: 0 },
  { name: "b", dtype: "i16", shape: [1, 2], offset: 8 },
  { name: "c", dtype: "u8", shape: [3], offset: 12 },
];

test("a block gives the arrays that were put into it", async () => {
  const arrays = arraysOf(await inflate(bytesOfBase64(BLOCK)), PLACES);
  assert.deepEqual(arrays.a, { numbers: Float32Array.of(1.5, -2), shape: [2] });
  assert.deepEqual(arrays.b, { numbers: Int16Array.of(1, -2), shape: [1, 2] });
  assert.deepEqual(arrays.c, { numbers: Uint8Array.of(255, 0, 51), shape: [3] });
});

test("a compressed stream gives its bytes", async () => {
  const bytes = Uint8Array.from({ length: 5000 }, (_, i) => (i * i) % 251);
  assert.deepEqual(await inflate(new Uint8Array(deflateSync(bytes))), bytes);
});

test("a broken stream is refused", async () => {
  const bytes = bytesOfBase64(BLOCK);
  bytes[bytes.length - 1] ^= 1; // the checksum
  await assert.rejects(inflate(bytes));
});

test("vectors of whole numbers are multiplied with their row's scale", () => {
  const arrays = {
    q: { numbers: Int16Array.of(32767, -2, 3, 4), shape: [1, 2, 2] },
    qScales: { numbers: Float32Array.of(0.5, 0.25), shape: [1, 2] },
  };
  assert.deepEqual(vectorsOf(arrays, "q"), Float32Array.of(16383.5, -1, 0.75, 1));
});

test("vectors of float32 are taken as they are", () => {
  const numbers = Float32Array.of(1, 2);
  assert.equal(vectorsOf({ q: { numbers, shape: [1, 2] } }, "q"), numbers);
});

test("a byte is 255 times the root of its weight", () => {
  assert.equal(weightOfByte(0), 0);
  assert.equal(weightOfByte(255), 1);
  assert.equal(Math.round(255 * Math.sqrt(weightOfByte(51))), 51);
});
