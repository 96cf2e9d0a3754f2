// What-ifs on one head's map as it stands, its q and k as they are: kvgen/engine/edits.py.
import { dot, entropyOf, firstKey, softmax } from "./formula.js";

/** The edits that need nothing but a head's q and k. */
export const EDITS = ["kq", "unscaled", "unmasked", "drop-sink"];

/** Whether a query sees a key under an edit (null: as it is). */
export function sees(edit, rule, query, key) {
  if (edit === "unmasked") return true;
  if (key > query) return false;
  // A row whose window holds nothing else keeps itself.
  if (edit === "drop-sink" && key === 0) return query === 0;
  return key >= firstKey(query, rule);
}

/** The map [T, T] of a head's weights under an edit (null: as it is), flat; NaN where a query does not see a key. */
export function editedMap(edit, { q, k, size }, rule) {
  const T = q.length / size;
  const [rows, columns] = edit === "kq" ? [k, q] : [q, k];
  const scale = edit === "unscaled" ? 1 : rule.scale;
  const map = new Float64Array(T * T).fill(NaN);
  for (let i = 0; i < T; i++) {
    const keys = [];
    const scores = [];
    for (let j = 0; j < (edit === "unmasked" ? T : i + 1); j++) {
      if (!sees(edit, rule, i, j)) continue;
      const scaled = scale * dot(rows, i * size, columns, j * size, size);
      keys.push(j);
      scores.push(rule.softcap === null ? scaled : rule.softcap * Math.tanh(scaled / rule.softcap));
    }
    softmax(scores).forEach((weight, at) => (map[i * T + keys[at]] = weight));
  }
  return map;
}

/** One map less another, a weight that is not seen counted as 0; NaN where neither has one. */
export function difference(map, other) {
  return map.map((weight, at) => (Number.isNaN(weight) && Number.isNaN(other[at]) ? NaN : (weight || 0) - (other[at] || 0)));
}

/** One row of a map [T, T], with 0 for what is not seen. */
export function rowOf(map, T, query) {
  return map.slice(query * T, (query + 1) * T).map((weight) => weight || 0);
}

/** How far each row of a map [T, T] has moved, by the difference of two: half the sum of |w - w'|, 0..1. */
export function rowDistances(change, T) {
  return Float64Array.from({ length: T }, (_, i) => rowOf(change, T, i).reduce((sum, number) => sum + Math.abs(number), 0) / 2);
}

/** The entropy of each row of a map [T, T], in nats. */
export function rowEntropies(weights, T) {
  return Float64Array.from({ length: T }, (_, i) => entropyOf(weights.subarray(i * T, (i + 1) * T)));
}

/** The mean of some numbers. */
export function mean(numbers) {
  return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
}

/** The keys to name of a row before and after: all of a short row, else those that get or lose most. */
export function keysToShow(before, after, { most, kept }) {
  const places = [...before.keys()].filter((j) => before[j] > 0 || after[j] > 0);
  if (places.length <= most) return places;
  const weight = (j) => Math.max(before[j], after[j]);
  return places
    .sort((a, b) => weight(b) - weight(a) || a - b)
    .slice(0, kept)
    .sort((a, b) => a - b);
}
