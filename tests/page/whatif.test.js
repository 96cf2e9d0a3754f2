// What-ifs in the page against kvgen.engine.edits.edited_weights, whose numbers stand here.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  difference,
  editedMap,
  EDITS,
  keysToShow,
  mean,
  rowDistances,
  rowEntropies,
  rowOf,
  sees,
} from "../../kvgen/page/web/pure/whatif.js";

// Four positions of size 2.
const HEAD = { q: [1, 0, 0, 2, 1, 1, -1, 2], k: [1, 1, 2, 0, 0, -1, 1, 2], size: 2 };
const RULE = { scale: 0.5, softcap: null, window: null };

function close(found, wanted, tolerance = 6e-6) {
  assert.equal(found.length, wanted.length);
  wanted.forEach((number, at) => assert.ok(Math.abs(found[at] - number) <= tolerance, `${at}: ${found[at]}, not ${number}`));
}

const weightsOf = (edit, rule) => editedMap(edit, HEAD, rule).map((weight) => weight || 0);

const AS_IT_IS = [
  [1, 0, 0, 0],
  [0.73106, 0.26894, 0, 0],
  [0.44982, 0.44982, 0.10037, 0],
  [0.24012, 0.05358, 0.05358, 0.65272],
];
const EDITED = {
  kq: [
    [1, 0, 0, 0],
    [0.73106, 0.26894, 0, 0],
    [0.50648, 0.18632, 0.3072, 0],
    [0.09159, 0.41048, 0.24897, 0.24897],
  ],
  unscaled: [
    [1, 0, 0, 0],
    [0.8808, 0.1192, 0, 0],
    [0.48786, 0.48786, 0.02429, 0],
    [0.1178, 0.00587, 0.00587, 0.87047],
  ],
  unmasked: [
    [0.235, 0.38746, 0.14254, 0.235],
    [0.23688, 0.08714, 0.03206, 0.64391],
    [0.25827, 0.25827, 0.05763, 0.42582],
    [0.24012, 0.05358, 0.05358, 0.65272],
  ],
  "drop-sink": [
    [1, 0, 0, 0],
    [0, 1, 0, 0],
    [0, 0.81757, 0.18243, 0],
    [0, 0.07051, 0.07051, 0.85898],
  ],
};
const IN_A_WINDOW_OF_2 = {
  kq: [
    [1, 0, 0, 0],
    [0.73106, 0.26894, 0, 0],
    [0, 0.37754, 0.62246, 0],
    [0, 0, 0.5, 0.5],
  ],
  unscaled: [
    [1, 0, 0, 0],
    [0.8808, 0.1192, 0, 0],
    [0, 0.95257, 0.04743, 0],
    [0, 0, 0.00669, 0.99331],
  ],
  unmasked: EDITED.unmasked, // the window goes with the mask
  "drop-sink": [
    [1, 0, 0, 0],
    [0, 1, 0, 0],
    [0, 0.81757, 0.18243, 0],
    [0, 0, 0.07586, 0.92414],
  ],
};
const UNDER_A_CAP_OF_1 = {
  kq: [
    [1, 0, 0, 0],
    [0.6817, 0.3183, 0, 0],
    [0.4769, 0.22268, 0.30042, 0],
    [0.17341, 0.28645, 0.27007, 0.27007],
  ],
  unscaled: [
    [1, 0, 0, 0],
    [0.72393, 0.27607, 0, 0],
    [0.45912, 0.45912, 0.08175, 0],
    [0.38181, 0.06799, 0.06799, 0.48221],
  ],
  unmasked: [
    [0.25131, 0.33906, 0.15831, 0.25131],
    [0.34372, 0.16049, 0.07494, 0.42085],
    [0.28998, 0.28998, 0.08529, 0.33474],
    [0.31789, 0.0935, 0.0935, 0.4951],
  ],
  "drop-sink": [
    [1, 0, 0, 0],
    [0, 1, 0, 0],
    [0, 0.77272, 0.22728, 0],
    [0, 0.13708, 0.13708, 0.72584],
  ],
};

test("without an edit the weights are those of the model", () => {
  close(weightsOf(null, RULE), AS_IT_IS.flat());
});

for (const edit of EDITS) {
  test(`${edit} gives the weights of kvgen.engine.edits`, () => {
    close(weightsOf(edit, RULE), EDITED[edit].flat());
  });
  test(`${edit} gives them in a window, too`, () => {
    close(weightsOf(edit, { ...RULE, window: 2 }), IN_A_WINDOW_OF_2[edit].flat());
  });
  test(`${edit} gives them under a soft cap, too`, () => {
    close(weightsOf(edit, { ...RULE, softcap: 1 }), UNDER_A_CAP_OF_1[edit].flat());
  });
  test(`rows sum to 1 under ${edit}, even where a window holds one key`, () => {
    const weights = weightsOf(edit, { ...RULE, window: 1 });
    close(
      [0, 1, 2, 3].map((i) => weights.slice(4 * i, 4 * i + 4).reduce((sum, weight) => sum + weight, 0)),
      [1, 1, 1, 1],
    );
  });
  test(`a weight under ${edit} is above 0 exactly where the query sees the key`, () => {
    const rule = { ...RULE, window: 3 };
    weightsOf(edit, rule).forEach((weight, at) => assert.equal(weight > 0, sees(edit, rule, Math.floor(at / 4), at % 4)));
  });
}

test("the first row is its own first key, with the first column dropped or not", () => {
  assert.equal(sees("drop-sink", RULE, 0, 0), true);
  assert.equal(sees("drop-sink", RULE, 1, 0), false);
});

test("a map has no number where a query does not see a key", () => {
  const map = editedMap(null, HEAD, { ...RULE, window: 2 });
  assert.deepEqual(
    [...map.keys()].filter((at) => !Number.isNaN(map[at])),
    [0, 4, 5, 9, 10, 14, 15],
  );
  assert.ok(!editedMap("unmasked", HEAD, { ...RULE, window: 2 }).some(Number.isNaN));
});

test("a difference has a number where either map has one", () => {
  assert.deepEqual([...difference(Float64Array.of(0.75, NaN, 0.5, NaN), [0.5, 0.25, NaN, NaN])], [0.25, -0.25, 0.5, NaN]);
  assert.deepEqual([...rowOf(Float64Array.of(1, NaN, 0.5, 0.5), 2, 0)], [1, 0]);
});

test("the distance of rows is half the sum of what changes", () => {
  const change = difference(editedMap("drop-sink", HEAD, RULE), editedMap(null, HEAD, RULE));
  // Each row has given the weight of key 0 to its other keys.
  close(rowDistances(change, 4), [0, 0.73106, 0.44982, 0.24012], 1e-5);
  assert.ok(Math.abs(mean(rowDistances(change, 4)) - 0.35525) < 1e-5);
});

test("the entropy of a row is 0 where one key has all and ln n where n keys share it", () => {
  close(rowEntropies(Float64Array.from([1, 0, 0.5, 0.5]), 2), [0, Math.log(2)]);
});

test("a short row shows each key that has a weight before or after", () => {
  assert.deepEqual(keysToShow([0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], { most: 4, kept: 2 }), [0, 1, 2]);
});

test("a long row shows the keys with the greatest weights, in their order", () => {
  assert.deepEqual(keysToShow([0.1, 0.2, 0.3, 0.4], [0.9, 0.05, 0.05, 0], { most: 3, kept: 2 }), [0, 3]);
});
