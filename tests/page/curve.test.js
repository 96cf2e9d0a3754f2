import assert from "node:assert/strict";
import test from "node:test";
import { linePath, rankPlace, rankTicks } from "../../kvgen/page/web/pure/curve.js";
import { close } from "./close.js";

test("ranks lie on a log scale from the first to the last", () => {
  close([rankPlace(1, 1000), rankPlace(10, 1000), rankPlace(1000, 1000)], [0, 1 / 3, 1]);
  assert.equal(rankPlace(1, 1), 0);
});

test("an axis of ranks has its ends and the powers of ten that are not too near to the last", () => {
  assert.deepEqual(rankTicks(1), [1]);
  assert.deepEqual(rankTicks(9), [1, 9]);
  assert.deepEqual(rankTicks(150), [1, 10, 150]);
  assert.deepEqual(rankTicks(4096), [1, 10, 100, 1000, 4096]);
});

test("a path goes through its points", () => {
  assert.equal(
    linePath([
      [0, 1],
      [2.25, 3],
    ]),
    "M0.0 1.0L2.3 3.0",
  );
  assert.equal(linePath([]), "");
});
