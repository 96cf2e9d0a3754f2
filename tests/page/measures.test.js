import assert from "node:assert/strict";
import test from "node:test";
import { explainRow } from "../../kvgen/page/web/pure/formula.js";
import { MEASURES, measuredRow } from "../../kvgen/page/web/pure/measures.js";
import { close, numbers } from "./close.js";

const [T, size] = [4, 2];
const HEAD = { q: numbers(T * size, 4), k: numbers(T * size, 5), v: numbers(T * size, 6), size, valueNorms: Float32Array.of(1, 2, 3, 4) };
const RULE = { scale: 0.5, softcap: null, window: null };

test("measures are the columns of the walk through the formula", () => {
  const row = explainRow(HEAD, 3, RULE);
  const columns = { weights: row.weights, scores: row.products, scaled: row.scaled, cos: row.cosines, share: row.shares };
  for (const [name, column] of Object.entries(columns)) close(measuredRow(name, HEAD, 3, RULE), column);
  close(
    measuredRow("norm", HEAD, 3, RULE),
    row.weights.map((weight, j) => weight * (j + 1)),
  );
});

test("keys outside the window are no numbers in every measure", () => {
  for (const name of Object.keys(MEASURES)) {
    const row = measuredRow(name, HEAD, 3, { ...RULE, window: 2 });
    assert.deepEqual([...row].map(Number.isNaN), [true, true, false, false], name);
  }
});

test("the first query gives its own key all its weight", () => {
  assert.deepEqual([...measuredRow("weights", HEAD, 0, RULE)], [1]);
});
