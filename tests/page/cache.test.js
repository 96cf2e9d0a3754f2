// node --test tests/page
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  bytesOfPosition,
  bytesOfQuery,
  cellEffect,
  cellsOf,
  cellState,
  countStates,
  effectsOf,
  keyState,
  logPart,
  productsOfAll,
  productsOfQuery,
  productsOfStep,
  queryAt,
  queryState,
  shapeOf,
  sumsOfSteps,
} from "../../kvgen/page/web/pure/cache.js";

const states = (length, stateAt) => Array.from({ length }, (_, position) => stateAt(position)).join(" ");

/** Every pair of query and key that a causal window lets through, counted one by one. */
function pairs(queries, window) {
  let count = 0;
  for (const query of queries) {
    for (let key = 0; key <= query; key++) if (window === null || query - key < window) count++;
  }
  return count;
}

const upTo = (n) => [...Array(n).keys()];

test("the prefill computes and keeps k and v of the whole prompt", () => {
  assert.equal(
    states(5, (position) => keyState(position, 0, 3)),
    "new new new future future",
  );
});

test("a decode step reads the earlier k and v and appends its own", () => {
  assert.equal(
    states(6, (position) => keyState(position, 2, 3)),
    "read read read read new future",
  );
});

test("k and v outside the window are kept and not read", () => {
  assert.equal(
    states(6, (position) => keyState(position, 3, 3, 2)),
    "outside outside outside outside read new",
  );
  assert.equal(
    states(3, (position) => keyState(position, 0, 3, 2)),
    "new new new",
  );
});

test("only the step's own q is live, and every older q is gone", () => {
  assert.equal(
    states(5, (position) => queryState(position, 0, 3)),
    "live live live future future",
  );
  assert.equal(
    states(5, (position) => queryState(position, 1, 3)),
    "gone gone gone live future",
  );
  assert.equal(queryAt(1, 3), 3);
});

test("no q is read by a step that did not compute it", () => {
  for (const position of upTo(9)) {
    const live = upTo(7).filter((step) => queryState(position, step, 3) === "live");
    assert.equal(live.length, 1);
    assert.equal(keyState(position, live[0], 3), "new");
  }
});

test("states are counted", () => {
  assert.deepEqual(
    countStates(6, (position) => keyState(position, 2, 3)),
    { read: 4, new: 1, future: 1 },
  );
});

test("positions share cells only where there is no room", () => {
  assert.equal(cellsOf(24, 17, 24).cells.length, 24);
  const { cells, promptBin, decodeBin } = cellsOf(300, 292, 100);
  assert.deepEqual([promptBin, decodeBin], [4, 1]);
  assert.equal(cells.length, 73 + 8);
  assert.deepEqual(cells[73], { first: 292, last: 292 });
  assert.equal(cellsOf(989, 970, 34).decodeBin, 2);
});

test("cells hold every position once, in order, and fit into the room", () => {
  for (const [length, nPrompt] of [
    [1, 1],
    [24, 17],
    [300, 300],
    [300, 292],
    [1000, 200],
    [1000, 999],
    [513, 1],
  ]) {
    for (const room of [2, 8, 20, 34, 128]) {
      const { cells } = cellsOf(length, nPrompt, room);
      assert.ok(cells.length <= room, `${length} ${nPrompt} ${room}: ${cells.length}`);
      assert.deepEqual(
        cells.flatMap(({ first, last }) => upTo(last - first + 1).map((i) => first + i)),
        upTo(length),
      );
      assert.ok(cells.every(({ first, last }) => last < nPrompt || first >= nPrompt));
    }
  }
});

test("a cell of several positions is named by what happens now", () => {
  const stateAt = (position) => keyState(position, 2, 3, 3);
  assert.equal(cellState({ first: 0, last: 1 }, stateAt), "outside");
  assert.equal(cellState({ first: 1, last: 2 }, stateAt), "read");
  assert.equal(cellState({ first: 3, last: 5 }, stateAt), "new");
  assert.equal(cellState({ first: 5, last: 5 }, stateAt), "future");
});

test("bytes are 2 x layers x kv heads x head size x bytes of a number", () => {
  const layer = {
    arrays: [
      { name: "q", shape: [9, 5, 64] },
      { name: "k", shape: [3, 5, 64] },
    ],
  };
  const facts = { run: { cache_dtype: "f32" }, layers: Array(30).fill(layer), heads: upTo(9), groupSize: 3, headDim: 64 };
  const shape = shapeOf(facts);
  assert.equal(bytesOfPosition(shape), 46080);
  assert.equal(bytesOfQuery(shape), 69120);
  assert.equal(shape.everyLayer, false);
  assert.equal(bytesOfPosition(shapeOf({ ...facts, run: { cache_dtype: "f16" } })), 23040);
});

test("the model's layers count where the facts name them, and maps alone are enough for the heads", () => {
  const layers = [{ arrays: [{ name: "weights", shape: [9, 15] }] }];
  const facts = { run: { cache_dtype: "f32", n_layers: 30 }, layers, heads: upTo(9), groupSize: 3, headDim: 64 };
  const shape = shapeOf(facts);
  assert.deepEqual([shape.layers, shape.everyLayer, shape.kvHeads], [30, true, 3]);
});

test("dot products are the pairs that mask and window let through", () => {
  for (const window of [null, 1, 3, 8, 50]) {
    for (const positions of [1, 2, 7, 40]) {
      assert.equal(productsOfQuery(positions, window), pairs([positions - 1], window));
      assert.equal(productsOfAll(positions, window), pairs(upTo(positions), window));
    }
  }
  assert.equal(productsOfAll(40), 820);
});

test("the prefill is the same work with the cache and without it", () => {
  assert.deepEqual(productsOfStep(0, 17), { cached: 153, uncached: 153 });
  assert.deepEqual(productsOfStep(7, 17), { cached: 24, uncached: 300 });
});

test("sums begin with decode step 1", () => {
  for (const window of [null, 4]) {
    const { cached, uncached } = sumsOfSteps(3, 5, window);
    assert.deepEqual(
      cached,
      [1, 2, 3].map((n) =>
        pairs(
          upTo(n).map((step) => 5 + step),
          window,
        ),
      ),
    );
    assert.deepEqual(
      uncached,
      [1, 2, 3].map((n) => upTo(n).reduce((sum, step) => sum + pairs(upTo(6 + step), window), 0)),
    );
  }
  assert.deepEqual(sumsOfSteps(0, 5), { cached: [], uncached: [] });
});

test("measured effects are of the layer, or the greatest of all layers", () => {
  const measured = [
    { kind: "k", layer: 0, positions: [0, 2], changes: [0.5, 0.25] },
    { kind: "k", layer: 1, positions: [0], changes: [0.75] },
    { kind: "q", layer: 0, positions: [0], changes: [0] },
  ];
  assert.equal(effectsOf(undefined, 0), null);
  assert.equal(effectsOf([], 0), null);
  assert.equal(effectsOf(measured, 1).k.get(0), 0.75);
  assert.deepEqual(
    [...effectsOf(measured, 5).k],
    [
      [0, 0.75],
      [2, 0.25],
    ],
  );
  const { k, v, q } = effectsOf(measured, 0);
  assert.equal(cellEffect({ first: 0, last: 2 }, k), 0.5);
  assert.equal(cellEffect({ first: 0, last: 0 }, q), 0);
  assert.equal(cellEffect({ first: 1, last: 1 }, k), null);
  assert.equal(cellEffect({ first: 0, last: 2 }, v), null);
});

test("a logarithmic axis goes from one power of ten to another", () => {
  assert.equal(logPart(10, 1, 3), 0);
  assert.equal(logPart(100, 1, 3), 0.5);
});
