import assert from "node:assert/strict";
import test from "node:test";
import { pooledMap, poolFactor } from "../../kvgen/page/web/pure/pool.js";

test("so many neighbours share a cell that all fit", () => {
  assert.deepEqual([poolFactor(10, 20), poolFactor(20, 20), poolFactor(21, 20), poolFactor(5, 0)], [1, 1, 2, 5]);
});

test("a cell has the number that is furthest from 0, with its sign", () => {
  const { numbers, bins } = pooledMap([1, NaN, NaN, -3, 2, NaN, 4, 5, -6], 3, 2);
  assert.equal(bins, 2);
  assert.deepEqual([...numbers], [-3, NaN, 5, -6]);
});

test("a map that fits stays as it is", () => {
  assert.deepEqual([...pooledMap([1, NaN, 2, 3], 2, 1).numbers], [1, NaN, 2, 3]);
});
