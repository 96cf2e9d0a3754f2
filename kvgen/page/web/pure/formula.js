// Attention(Q, K, V) = softmax(Q K^T scale) V for one query at a time, as kvgen/engine/formula.py.
// `rule` is what a layer does to its scores: {scale, softcap, window}.

/** a . b of two vectors inside flat arrays, from `i` and `j` on. */
export function dot(a, i, b, j, size) {
  let sum = 0;
  for (let d = 0; d < size; d++) sum += a[i + d] * b[j + d];
  return sum;
}

/** The first key that a query sees: 0, or where its window begins. */
export function firstKey(query, rule) {
  return rule.window === null ? 0 : Math.max(0, query - rule.window + 1);
}

/** q_i . k_j of one query with every key up to its own, [query + 1]. */
export function productsOf(q, k, query, size) {
  const products = new Float64Array(query + 1);
  for (let j = 0; j <= query; j++) products[j] = dot(q, query * size, k, j * size, size);
  return products;
}

/** Products times the scale, soft-capped where there is a cap. */
export function scaledOf(products, rule) {
  return products.map((product) => {
    const scaled = product * rule.scale;
    return rule.softcap === null ? scaled : rule.softcap * Math.tanh(scaled / rule.softcap);
  });
}

/** What the softmax takes: -Infinity for keys outside the window. */
export function scoresOf(products, rule) {
  const first = firstKey(products.length - 1, rule);
  return scaledOf(products, rule).map((score, j) => (j < first ? -Infinity : score));
}

/** The softmax of a row of scores; they need not be finite. */
export function softmax(scores) {
  let greatest = -Infinity;
  for (const score of scores) greatest = Math.max(greatest, score);
  const weights = Float64Array.from(scores, (score) => Math.exp(score - greatest));
  let total = 0;
  for (const weight of weights) total += weight;
  return weights.map((weight) => weight / total);
}

/** sum_j w_j v_j, [size]. */
export function weightedSum(weights, v, size) {
  const output = new Float64Array(size);
  for (let j = 0; j < weights.length; j++) {
    for (let d = 0; d < size; d++) output[d] += weights[j] * v[j * size + d];
  }
  return output;
}

/** The length of a vector inside a flat array. */
export function lengthOf(a, i, size) {
  return Math.sqrt(dot(a, i, a, i, size));
}

/** -sum w ln w of a row, in nats. */
export function entropyOf(weights) {
  let sum = 0;
  for (const weight of weights) if (weight > 0) sum -= weight * Math.log(weight);
  return sum;
}

/**
 * One query's walk through the formula, a number for each key up to its own: `products`, `cosines`,
 * `scaled`, `exponentials`, `weights`, `keyLengths`, `valueLengths`, `shares`; and `queryLength`,
 * `output`, `entropy`. `head` holds q, k and v [T, size] as flat arrays.
 */
export function explainRow(head, query, rule) {
  const { q, k, v, size } = head;
  const products = productsOf(q, k, query, size);
  const scaled = scaledOf(products, rule);
  const scores = scoresOf(products, rule);
  const weights = softmax(scores);
  const greatest = Math.max(...scores);
  const queryLength = lengthOf(q, query * size, size);
  const keyLengths = products.map((_, j) => lengthOf(k, j * size, size));
  const output = weightedSum(weights, v, size);
  const energy = dot(output, 0, output, 0, size);
  return {
    queryLength,
    keyLengths,
    products,
    cosines: products.map((product, j) => product / (queryLength * keyLengths[j] || 1)),
    scaled,
    exponentials: scores.map((score) => Math.exp(score - greatest)),
    weights,
    valueLengths: products.map((_, j) => lengthOf(v, j * size, size)),
    output,
    shares: weights.map((weight, j) => (energy > 0 ? (weight * dot(v, j * size, output, 0, size)) / energy : 0)),
    entropy: entropyOf(weights),
  };
}
