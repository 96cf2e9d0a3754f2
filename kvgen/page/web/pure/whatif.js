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

/** The weights [T, T] of a head under an edit (null: as it is), flat; 0 where a query does not see a key. */
export function editedWeights(edit, { q, k, size }, rule) {
  const T = q.length / size;
  const [rows, columns] = edit === "kq" ? [k, q] : [q, k];
  const scale = edit === "unscaled" ? 1 : rule.scale;
  const weights = new Float64Array(T * T);
  const scores = new Float64Array(T);
  for (let i = 0; i < T; i++) {
    const end = edit === "unmasked" ? T : i + 1;
    for (let j = 0; j < end; j++) {
      if (!sees(edit, rule, i, j)) {
        scores[j] = -Infinity;
        continue;
      }
      const scaled = scale * dot(rows, i * size, columns, j * size, size);
      scores[j] = rule.softcap === null ? scaled : rule.softcap * Math.tanh(scaled / rule.softcap);
    }
    weights.set(softmax(scores.subarray(0, end)), i * T);
  }
  return weights;
}

/** What to draw of a map [T, T]: NaN where no edit of a list lets a query see a key. */
export function drawn(weights, T, edits, rule) {
  return weights.map((weight, at) => (edits.some((edit) => sees(edit, rule, Math.floor(at / T), at % T)) ? weight : NaN));
}

/** How far each row of one map [T, T] lies from another's: half the sum of |w - w'|, 0..1. */
export function rowDistances(weights, others, T) {
  const distances = new Float64Array(T);
  for (let at = 0; at < T * T; at++) distances[Math.floor(at / T)] += Math.abs(weights[at] - others[at]) / 2;
  return distances;
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
