import assert from "node:assert/strict";
import test from "node:test";
import { placesShown, readBy, readersOf, strongest, withGaps, withoutFirstKey } from "../../kvgen/page/web/pure/edges.js";
import { close } from "./close.js";

const MAP = [1, NaN, NaN, 0.75, 0.25, NaN, 0.5, 0.375, 0.125];

test("the strongest weights come first, of equal ones the earlier", () => {
  assert.deepEqual(strongest([0.1, 0.4, NaN, 0.4, 0.01], 3, 0.05), [
    { place: 1, weight: 0.4 },
    { place: 3, weight: 0.4 },
    { place: 0, weight: 0.1 },
  ]);
});

test("a token reads its row and is read by the later queries of its column", () => {
  assert.deepEqual([...readBy(MAP, 3, 1)], [0.75, 0.25]);
  assert.deepEqual([...readersOf(MAP, 3, 0)], [0, 0.75, 0.5]);
  assert.deepEqual([...readersOf(MAP, 3, 2)], [0, 0, 0]);
});

test("without the first key the rest of each row sums to one", () => {
  close(withoutFirstKey(MAP, 3, true), [NaN, NaN, NaN, NaN, 1, NaN, NaN, 0.75, 0.25]);
  close(withoutFirstKey(MAP, 3, false), [NaN, NaN, NaN, NaN, 0.25, NaN, NaN, 0.375, 0.125]);
  assert.equal(MAP[0], 1);
});

test("wanted places are shown, then the nearest to the centre", () => {
  assert.deepEqual(placesShown(0, 10, 9, [2], 4), [2, 7, 8, 9]);
  assert.deepEqual(placesShown(4, 10, 4, [], 3), [4, 5, 6]);
  assert.deepEqual(placesShown(0, 3, 1, [], 9), [0, 1, 2]);
  assert.deepEqual(placesShown(3, 3, 3, [], 9), []);
  assert.deepEqual(placesShown(0, 10, 5, [1, 2, 3], 2), [1, 2, 3]);
});

test("gaps tell how many places are left out, and shown and left out are all", () => {
  const rows = withGaps([2, 3, 7], 1, 10);
  assert.deepEqual(rows, [{ gap: 1 }, { place: 2 }, { place: 3 }, { gap: 3 }, { place: 7 }, { gap: 2 }]);
  assert.equal(
    rows.reduce((sum, row) => sum + (row.gap ?? 1), 0),
    9,
  );
});
