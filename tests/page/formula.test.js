import assert from "node:assert/strict";
import test from "node:test";
import { entropyOf, explainRow, firstKey, productsOf, scoresOf, softmax, weightedSum } from "../../kvgen/page/web/pure/formula.js";
import { close, numbers } from "./close.js";

const PLAIN = { scale: 1, softcap: null, window: null };

test("one query of two numbers, by hand", () => {
  const q = [0, 0, 1, 2]; // the second query is [1, 2]
  const k = [3, 0, 1, 1];
  assert.deepEqual([...productsOf(q, k, 1, 2)], [3, 3]);
  assert.deepEqual([...softmax([3, 3])], [0.5, 0.5]);
  assert.deepEqual([...weightedSum([0.5, 0.5], [2, 4, 6, 0], 2)], [4, 2]);
});

test("a score is the product times the scale, capped", () => {
  assert.deepEqual([...scoresOf(Float64Array.of(8, -4), { ...PLAIN, scale: 0.25 })], [2, -1]);
  close(scoresOf(Float64Array.of(8, -4), { scale: 0.25, softcap: 3, window: null }), [3 * Math.tanh(2 / 3), 3 * Math.tanh(-1 / 3)]);
});

test("a window of two lets a query see itself and the key before", () => {
  const rule = { ...PLAIN, window: 2 };
  assert.deepEqual(
    [0, 1, 2, 5].map((query) => firstKey(query, rule)),
    [0, 0, 1, 4],
  );
  const scores = scoresOf(Float64Array.of(5, 1, 1), rule);
  assert.deepEqual([...scores], [-Infinity, 1, 1]);
  assert.deepEqual([...softmax(scores)], [0, 0.5, 0.5]);
});

test("softmax does not overflow and sums to one", () => {
  close(softmax([1000, 1000 + Math.log(3)]), [0.25, 0.75]);
});

test("entropy of equal weights is the logarithm of their number", () => {
  close([entropyOf([0.25, 0.25, 0.25, 0.25, 0])], [Math.log(4)]);
  assert.equal(entropyOf([1, 0]), 0);
});

test("a walk through the formula agrees with loops over all numbers", () => {
  const [T, size, query] = [5, 3, 3];
  const head = { q: numbers(T * size, 1), k: numbers(T * size, 2), v: numbers(T * size, 3), size };
  const rule = { scale: 0.7, softcap: 2, window: 3 };
  const row = explainRow(head, query, rule);
  const exponentials = [];
  for (let j = 0; j <= query; j++) {
    let product = 0;
    for (let d = 0; d < size; d++) product += head.q[query * size + d] * head.k[j * size + d];
    const score = 2 * Math.tanh((product * 0.7) / 2);
    exponentials.push(j > query - 3 ? Math.exp(score) : 0);
    close([row.products[j]], [product]);
    const lengths =
      Math.hypot(...head.q.subarray(query * size, (query + 1) * size)) * Math.hypot(...head.k.subarray(j * size, (j + 1) * size));
    close([row.cosines[j]], [product / lengths]);
  }
  const total = exponentials.reduce((sum, one) => sum + one);
  close(
    row.weights,
    exponentials.map((one) => one / total),
  );
  close(
    row.output,
    [0, 1, 2].map((d) => row.weights.reduce((sum, weight, j) => sum + weight * head.v[j * size + d], 0)),
  );
  close([row.shares.reduce((sum, share) => sum + share)], [1]);
});
