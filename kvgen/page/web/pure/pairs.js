// q . k number by number: which numbers RoPE turns together, and what each adds (Su et al. 2021).

/**
 * The numbers of a head in the order of drawing: RoPE's pairs [i, i + dim / 2], from the one that turns fastest
 * (shortest wavelength) to the slowest, then each number alone that is not turned: [d].
 */
export function groupsOf(size, ropeDim) {
  const half = Math.floor((ropeDim ?? 0) / 2);
  const groups = Array.from({ length: half }, (_, i) => [i, i + half]);
  for (let d = 2 * half; d < size; d++) groups.push([d]);
  return groups;
}

/**
 * Where groups lie on a line of `room` pixels: {places: [{x, width}], unit, compact}. Pairs stand apart by half
 * the width of a number, `unit`. Where that would be below `narrowest`, each group has one column (compact).
 */
export function placesOf(groups, nPairs, room, narrowest) {
  const size = groups.length + nPairs;
  const still = nPairs && nPairs < groups.length ? 2 : 0; // units before the numbers that are not turned
  const columns = size + nPairs / 2 + still;
  const compact = room / columns < narrowest;
  const unit = room / (compact ? groups.length : columns);
  let x = 0;
  const places = groups.map((group, g) => {
    if (!compact && g === nPairs) x += still * unit;
    const place = { x, width: compact ? unit : unit * group.length };
    x += place.width + (!compact && group.length === 2 ? unit / 2 : 0);
    return place;
  });
  return { places, unit, compact };
}

/**
 * One query and one key, number by number: `q`, `k` and `products` [size]; for each group its `sums`, and
 * `running`, the sum up to and with it, so that the last one is q . k. `head` holds q and k [T, size] as flat arrays.
 */
export function explainProduct(head, query, key, groups) {
  const { size } = head;
  const q = head.q.subarray(query * size, (query + 1) * size);
  const k = head.k.subarray(key * size, (key + 1) * size);
  const products = Float64Array.from(q, (number, d) => number * k[d]);
  const sums = Float64Array.from(groups, (group) => group.reduce((sum, d) => sum + products[d], 0));
  const running = new Float64Array(groups.length);
  let total = 0;
  sums.forEach((sum, g) => {
    total += sum;
    running[g] = total;
  });
  return { q, k, products, sums, running, total };
}

/** The indices of the greatest sums either side of 0, greatest first. */
export function strongestGroups(sums, most) {
  return [...sums.keys()].sort((a, b) => Math.abs(sums[b]) - Math.abs(sums[a]) || a - b).slice(0, most);
}

/** The sums of the faster half of RoPE's pairs, of the slower half, and of the numbers that are not turned. */
export function partsOf(sums, nPairs) {
  const middle = Math.ceil(nPairs / 2);
  const total = (from, to) => sums.slice(from, to).reduce((sum, number) => sum + number, 0);
  return { faster: total(0, middle), slower: total(middle, nPairs), still: total(nPairs, sums.length) };
}

/** The place of the greatest number; of equal ones the first. */
export function greatestOf(numbers) {
  let best = 0;
  for (let i = 1; i < numbers.length; i++) if (numbers[i] > numbers[best]) best = i;
  return best;
}
