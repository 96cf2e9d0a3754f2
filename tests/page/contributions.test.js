// Contributions and the lens's chart in the page, by numbers small enough to add by hand.
import assert from "node:assert/strict";
import { test } from "node:test";
import { greatestOf, greatestParts, sumsOf } from "../../kvgen/page/web/pure/contributions.js";
import { linePath, rankPlace, rankTicks } from "../../kvgen/page/web/pure/curve.js";

const FOUND = {
  embedding: 0.5,
  position: null,
  heads: [
    [1, -2],
    [0.25, 4],
  ],
  mlps: [-3, 8],
  attentionBiases: [0.125, 0],
  bias: 0.25,
};

test("the parts add up to the logit", () => {
  assert.deepEqual(sumsOf(FOUND), [
    ["embedding", 0.5],
    ["heads", 3.25],
    ["MLPs", 5],
    ["biases", 0.375],
    ["sum", 9.125],
  ]);
});

test("a learned position is a part as well", () => {
  assert.deepEqual(sumsOf({ ...FOUND, position: -0.125 }).slice(0, 2), [
    ["embedding", 0.5],
    ["position", -0.125],
  ]);
  assert.equal(sumsOf({ ...FOUND, position: -0.125 }).at(-1)[1], 9);
});

test("the greatest parts come first, whatever their sign", () => {
  assert.deepEqual(
    greatestParts(FOUND, 4).map(({ name, head }) => [name, head]),
    [
      ["MLP 1", null],
      ["head 1.1", 1],
      ["MLP 0", null],
      ["head 0.1", 1],
    ],
  );
  assert.equal(greatestOf([1, -3, 2]), 3);
});

test("rank 1 stands at 0 and the greatest rank at 1, with the middle at its square root", () => {
  assert.equal(rankPlace(1, 10000), 0);
  assert.equal(rankPlace(10000, 10000), 1);
  assert.ok(Math.abs(rankPlace(100, 10000) - 0.5) < 1e-12);
  assert.equal(rankPlace(1, 1), 0);
});

test("an axis of ranks names no two that would touch", () => {
  assert.deepEqual(rankTicks(1), [1]);
  assert.deepEqual(rankTicks(15), [1, 15]);
  assert.deepEqual(rankTicks(2801), [1, 10, 100, 1000, 2801]);
});

test("a path goes from its first point to the others", () => {
  assert.equal(
    linePath([
      [0, 1],
      [2.55, 3],
    ]),
    "M0.0 1.0L2.5 3.0",
  );
});
