import assert from "node:assert/strict";
import test from "node:test";
import { dot } from "../../kvgen/page/web/pure/formula.js";
import { explainProduct, greatestOf, groupsOf, partsOf, placesOf, strongestGroups } from "../../kvgen/page/web/pure/pairs.js";
import { close, numbers } from "./close.js";

test("RoPE's pairs come first, then what is not turned", () => {
  assert.deepEqual(groupsOf(6, 4), [[0, 2], [1, 3], [4], [5]]);
  assert.deepEqual(groupsOf(4, 4), [
    [0, 2],
    [1, 3],
  ]);
  for (const none of [0, null]) assert.deepEqual(groupsOf(3, none), [[0], [1], [2]]);
});

test("every number is in one group", () => {
  for (const [size, dim] of [
    [64, 64],
    [64, 16],
    [128, 128],
    [256, 64],
    [5, 4],
  ]) {
    assert.deepEqual(
      groupsOf(size, dim)
        .flat()
        .sort((a, b) => a - b),
      [...Array(size).keys()],
    );
  }
});

test("the running sum ends at q . k", () => {
  const [T, size] = [3, 8];
  const head = { q: numbers(T * size, 7), k: numbers(T * size, 8), size };
  const groups = groupsOf(size, 4);
  const { products, sums, running, total } = explainProduct(head, 2, 1, groups);
  const expected = dot(head.q, 2 * size, head.k, size, size);
  close([total, running[running.length - 1], sums.reduce((sum, one) => sum + one)], [expected, expected, expected]);
  close([products[5]], [head.q[2 * size + 5] * head.k[size + 5]]);
  close([sums[1]], [products[1] + products[3]]);
});

test("a pair's sum keeps when both vectors are turned by the same angle", () => {
  const turned = (x, y, angle) => [x * Math.cos(angle) - y * Math.sin(angle), x * Math.sin(angle) + y * Math.cos(angle)];
  const sum = (q, k) => explainProduct({ q: Float64Array.from(q), k: Float64Array.from(k), size: 2 }, 0, 0, [[0, 1]]).sums[0];
  close([sum(turned(1, 2, 0.7), turned(3, -1, 0.7))], [sum([1, 2], [3, -1])]);
});

test("the strongest groups are those furthest from 0", () => {
  assert.deepEqual(strongestGroups([1, -5, 3, -3], 3), [1, 2, 3]);
});

test("the sums of faster, slower and still numbers are all", () => {
  assert.deepEqual(partsOf([1, 2, 4, 8, 16], 3), { faster: 3, slower: 4, still: 24 });
  assert.deepEqual(partsOf([1, 2], 0), { faster: 0, slower: 0, still: 3 });
});

test("the greatest of equal weights is the first", () => {
  assert.equal(greatestOf([0.1, 0.4, 0.4]), 1);
});

test("groups lie beside each other and fill the room", () => {
  for (const [size, dim, room, compact] of [
    [64, 64, 500, false],
    [64, 0, 300, false],
    [64, 16, 300, false],
    [256, 256, 500, true],
    [128, 32, 300, true],
  ]) {
    const groups = groupsOf(size, dim);
    const { places, ...rest } = placesOf(groups, dim / 2, room, 3);
    assert.equal(rest.compact, compact);
    places.slice(1).forEach((place, g) => {
      assert.ok(place.x >= places[g].x + places[g].width - 1e-9);
    });
    const last = places[places.length - 1];
    const gap = !compact && dim === size ? rest.unit / 2 : 0;
    close([places[0].x, last.x + last.width + gap], [0, room], 1e-9);
  }
});
