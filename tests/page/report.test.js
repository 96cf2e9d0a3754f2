import assert from "node:assert/strict";
import test from "node:test";
import {
  changeHeight,
  changeWords,
  curveOf,
  general,
  greatestOf,
  heldIn,
  logAxis,
  milliseconds,
  needsOf,
  partsOf,
  runsOf,
  squareOf,
  stepsOf,
  sumTo,
  wholeTicks,
} from "../../kvgen/page/web/pure/report.js";

test("a run is a prefill and the arms behind it", () => {
  const names = ["pp4", "tg2", "tg2", "pp8", "tg2"];
  const runs = runsOf(names.map((name) => ({ test: name })));
  assert.deepEqual(
    runs.map(({ prefill, arms }) => [prefill.test, arms.length]),
    [
      ["pp4", 2],
      ["pp8", 1],
    ],
  );
});

test("a curve is in milliseconds, with the least and the most of its passes", () => {
  const curve = curveOf({
    cache: "on",
    depth: 7,
    seconds_per_step: [0.002, 0.003],
    predicted_seconds_per_step: [0.001, 0.001],
    samples: [
      [0.001, 0.003],
      [0.002, 0.003],
      [0.004, 0.003],
    ],
  });
  assert.deepEqual(curve, {
    name: "on",
    positions: [7, 8],
    median: [2, 3],
    least: [1, 3],
    most: [4, 3],
    predicted: [1, 1],
    passes: 3,
  });
});

test("a logarithmic axis has at least a decade, and ticks inside it", () => {
  for (const numbers of [[0.25], [1, 1.1], [0.01, 5000], [3, 90], [1e-3, 2e-3]]) {
    const { bottom, top, ticks } = logAxis(numbers);
    assert.ok(top - bottom >= 1.2 - 1e-9);
    assert.ok(ticks.length >= 2 && ticks.length <= 7, `${numbers}: ${ticks}`);
    for (const value of [...ticks, ...numbers]) assert.ok(Math.log10(value) >= bottom && Math.log10(value) <= top);
  }
  assert.deepEqual(logAxis([0.25, 12]).ticks, [0.3, 1, 3, 10]);
});

test("ticks of positions are whole, in order, and not crowded", () => {
  assert.deepEqual(wholeTicks(64, 64, 5), [64]);
  assert.deepEqual(wholeTicks(64, 71, 10), [64, 65, 66, 67, 68, 69, 70, 71]);
  for (const [first, last, most] of [
    [5, 6, 3],
    [120, 143, 12],
    [512, 639, 4],
    [1, 100_000, 8],
  ]) {
    const ticks = wholeTicks(first, last, most);
    assert.ok(ticks.length <= most + 3 && ticks[0] >= first && ticks.at(-1) <= last);
    assert.deepEqual(
      ticks,
      [...new Set(ticks)].sort((a, b) => a - b),
    );
    assert.ok(ticks.every(Number.isInteger));
  }
});

test("an axis says milliseconds or seconds", () => {
  assert.deepEqual([0.3, 20, 1000, 2000].map(milliseconds), ["0.3 ms", "20 ms", "1 s", "2 s"]);
});

test("numbers are written as Python's .2g", () => {
  const expected = {
    0: "0",
    0.5: "0.5",
    1: "1",
    10: "10",
    99.5: "1e+02",
    123: "1.2e+02",
    0.00012345: "0.00012",
    0.000012345: "1.2e-05",
    23.4: "23",
    0.0999: "0.1",
  };
  for (const [number, text] of Object.entries(expected)) assert.equal(general(Number(number)), text);
});

test("a change in words says where not one bit differs", () => {
  assert.equal(changeWords(0), "not one bit");
  assert.equal(changeWords(1.401298464324817e-45), "1.4e-45");
  assert.equal(changeWords(3.4028234663852886e38), "no numbers");
});

test("heights of changes grow by the logarithm, and nothing has the height 0", () => {
  assert.equal(changeHeight(0, 10), 0);
  assert.equal(changeHeight(10, 10), 1);
  assert.equal(changeHeight(1e30, 10), 1);
  assert.ok(Math.abs(changeHeight(0.01, 10) - (1 / 9 + 4 / 9)) < 1e-12);
  assert.equal(changeHeight(1e-40, 10), 1 / 9);
});

test("interventions are those of one engine, layer by layer", () => {
  const one = (backend, layer, row, changes) => ({
    backend,
    layer,
    row,
    positions: [0, 1],
    max_abs_logit_change: changes,
    first_visible: 0,
    with_other_key: [],
    q_live: row === "q" ? 0.25 : undefined,
  });
  const found = needsOf(
    [one("numba", 0, "k", [1, 2]), one("numpy", 0, "k", [9, 9]), one("numba", 1, "k", [3, 0]), one("numba", 0, "q", [0, 0])],
    "numba",
  );
  assert.deepEqual(greatestOf(found.k.map((each) => each.changes)), [3, 2]);
  assert.deepEqual(
    found.q.map((each) => each.own),
    [0.25],
  );
  assert.deepEqual(found.positions, [0, 1]);
});

test("parts cover a list without gaps, each with something in it", () => {
  for (const [length, room] of [
    [1, 100],
    [7, 3],
    [256, 100.5],
    [10, 0.2],
  ]) {
    const parts = partsOf(length, room);
    assert.equal(parts[0][0], 0);
    assert.equal(parts.at(-1)[1], length);
    parts.forEach(([from, to], place) => {
      assert.ok(from < to);
      if (place) assert.equal(from, parts[place - 1][1]);
    });
  }
});

test("sums go up to a step, that included", () => {
  assert.equal(sumTo([5, 6, 7], 0), 5);
  assert.equal(sumTo([5, 6, 7], 2), 18);
});

test("all steps can be drawn where rows stay and a triangle holds them, else the captured ones", () => {
  const maps = { steps: [0, 3], rowsStay: true, scoresOff: [1, 2, 3, 4] };
  assert.deepEqual(stepsOf(maps), [0, 1, 2, 3]);
  assert.deepEqual(stepsOf({ ...maps, rowsStay: false }), [0, 3]);
  assert.deepEqual(stepsOf({ ...maps, scoresOff: null }), [0, 3]);
  assert.equal(heldIn(3, [0, 3]), 3);
  assert.equal(heldIn(1, [0, 3]), 3);
  assert.equal(heldIn(0, [0, 3]), 0);
});

test("a triangle becomes a square with nothing above its diagonal and below its rows", () => {
  const square = squareOf([1, 2, 3], 3, 2, (byte) => byte * 10);
  assert.deepEqual([...square], [10, NaN, NaN, 20, 30, NaN, NaN, NaN, NaN]);
});
