// Comparing numbers that were computed in another order.
import assert from "node:assert/strict";

/** Each number of two lists differs by at most `tolerance`; NaN and infinities are equal to themselves. */
export function close(actual, expected, tolerance = 1e-12) {
  assert.equal(actual.length, expected.length);
  for (let i = 0; i < expected.length; i++) {
    const same = Object.is(actual[i], expected[i]) || Math.abs(actual[i] - expected[i]) <= tolerance;
    assert.ok(same, `number ${i} is ${actual[i]}, not ${expected[i]}`);
  }
}

/** Numbers that look random and are the same each time: a linear congruential generator, -1 to 1. */
export function numbers(count, seed = 1) {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (1664525 * state + 1013904223) % 2 ** 32;
    return (2 * state) / 2 ** 32 - 1;
  });
}
