// The numbers that a map can show, row by row, by the names of `--show`.
import { dot, firstKey, lengthOf, productsOf, scoresOf, softmax, weightedSum } from "./formula.js";

/** Each measure: its words, whether it has a sign, and whether it lies within 0..1 or -1..1. */
export const MEASURES = {
  weights: { title: "weight", signed: false, bounded: true },
  scores: { title: "q·k", signed: true, bounded: false },
  scaled: { title: "q·k, scaled", signed: true, bounded: false },
  norm: { title: "|w v W_O|", signed: false, bounded: false },
  share: { title: "share of o", signed: true, bounded: true },
  cos: { title: "cos(q, k)", signed: true, bounded: true },
};

/** One row [query + 1] of a measure; NaN for keys outside the window. */
export function measuredRow(name, head, query, rule) {
  const { q, k, v, size, valueNorms } = head;
  const products = productsOf(q, k, query, size);
  const first = firstKey(query, rule);
  const seen = (numbers) => numbers.map((number, j) => (j < first ? NaN : number));
  if (name === "scores") return seen(products);
  if (name === "cos") {
    const length = lengthOf(q, query * size, size);
    return seen(products.map((product, j) => product / (length * lengthOf(k, j * size, size) || 1)));
  }
  const scores = scoresOf(products, rule);
  if (name === "scaled") return seen(scores);
  const weights = softmax(scores);
  if (name === "norm") return seen(weights.map((weight, j) => weight * valueNorms[j]));
  if (name === "share") {
    const output = weightedSum(weights, v, size);
    const energy = dot(output, 0, output, 0, size);
    return seen(weights.map((weight, j) => (weight * dot(v, j * size, output, 0, size)) / energy));
  }
  return seen(weights);
}
