import assert from "node:assert/strict";
import test from "node:test";
import { deflateSync } from "node:zlib";
import { Recording } from "../../kvgen/page/web/recording.js";
import { close, numbers } from "./close.js";

const layer = (number, tier, bin, arrays) => ({ number, scale: 0.5, softcap: null, window: null, tier, bin, arrays });
const base64 = (array) => deflateSync(new Uint8Array(array.buffer, array.byteOffset, array.byteLength)).toString("base64");

test("query heads read the key/value head of their group", async () => {
  const [T, size] = [2, 2];
  const vectors = numbers(4 * T * size + 2 * T * size * 2, 9); // q of heads 2..5; k and v of heads 1, 2
  const place = (name, heads, offset) => ({ name, dtype: "f32", shape: [heads, T, size], offset });
  const arrays = [place("q", 4, 0), place("k", 3, 64), place("v", 3, 64)];
  const facts = { ids: [1, 2], heads: [2, 3, 4, 5], groupSize: 2, layers: [layer(7, "exact", 1, arrays)] };
  const recording = new Recording(facts, (name) => (name === "layer-7" ? base64(vectors) : null));
  assert.deepEqual(
    [0, 1, 2, 3].map((column) => recording.kvHead(column)),
    [1, 1, 2, 2],
  );
  await recording.open(0);
  assert.deepEqual(recording.head(0, 3).q, vectors.subarray(12, 16));
  assert.deepEqual(recording.measures(0), ["weights", "scores", "scaled", "share", "cos"]);
  const { numbers: map, n } = recording.map(0, 1, "weights");
  assert.equal(n, 2);
  close([map[0], map[2] + map[3]], [1, 1]);
  assert.ok(Number.isNaN(map[1]));
});

test("pooled maps are read back row by row", async () => {
  const bytes = Uint8Array.of(255, 51, 204);
  const facts = {
    ids: [1, 2, 3],
    heads: [0],
    groupSize: 1,
    layers: [layer(0, "maps", 2, [{ name: "weights", dtype: "u8", shape: [1, 3], offset: 0 }])],
  };
  const recording = new Recording(facts, () => base64(bytes));
  await recording.open(0);
  assert.equal(recording.head(0, 0), null);
  assert.equal(recording.rule(0), null);
  const { numbers: map, n, bin } = recording.map(0, 0, "weights");
  assert.deepEqual([n, bin], [2, 2]);
  close(map, [1, NaN, 0.04, 0.64], 1e-9);
  close(recording.row(0, 0, 2, "weights"), [0.04, 0.64], 1e-9);
});
