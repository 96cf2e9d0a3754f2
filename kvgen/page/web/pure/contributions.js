// What each part of a model adds to a logit (kvgen/attention/contributions.py): sums and the greatest.

const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

/** [name, sum] of each kind of part, and of all of them together; a position only where one is learned. */
export function sumsOf({ embedding, position, heads, mlps, attentionBiases, bias }) {
  const kinds = [
    ["embedding", embedding],
    ["position", position],
    ["heads", total(heads.map(total))],
    ["MLPs", total(mlps)],
    ["biases", total(attentionBiases) + bias],
  ].filter(([, sum]) => sum !== null);
  return [...kinds, ["sum", total(kinds.map(([, sum]) => sum))]];
}

/** The parts that add most, either way: {name, adds, layer, head}; of what is no head, head is null. */
export function greatestParts({ embedding, position, heads, mlps }, count) {
  const parts = heads.flatMap((row, layer) => row.map((adds, head) => ({ name: `head ${layer}.${head}`, adds, layer, head })));
  mlps.forEach((adds, layer) => parts.push({ name: `MLP ${layer}`, adds, layer, head: null }));
  parts.push({ name: "embedding", adds: embedding, layer: null, head: null });
  if (position !== null) parts.push({ name: "position", adds: position, layer: null, head: null });
  return parts.sort((one, other) => Math.abs(other.adds) - Math.abs(one.adds)).slice(0, count);
}

/** The greatest of some numbers, either way. */
export function greatestOf(numbers) {
  return numbers.reduce((most, number) => Math.max(most, Math.abs(number)), 0);
}
