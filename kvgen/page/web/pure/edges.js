// The edges of one token: the keys that it reads and the later queries that read it.

/** The greatest weights of a list, greatest first: [{place, weight}], at most `most`, none below `least`. */
export function strongest(weights, most, least) {
  const found = [];
  for (let place = 0; place < weights.length; place++) {
    if (weights[place] >= least) found.push({ place, weight: weights[place] });
  }
  return found.sort((a, b) => b.weight - a.weight || a.place - b.place).slice(0, most);
}

/** The weights of a map [n, n] that one query gives its keys, 0 where it does not see them. */
export function readBy(numbers, n, query) {
  return Float64Array.from({ length: query + 1 }, (_, key) => numbers[query * n + key] || 0);
}

/** The weights of a map [n, n] that each query gives one key, [n]; 0 up to the key's own query. */
export function readersOf(numbers, n, key) {
  return Float64Array.from({ length: n }, (_, query) => (query > key ? numbers[query * n + key] || 0 : 0));
}

/** A map of weights without its first key; what is left of each row sums to 1 again, if `scaled`. */
export function withoutFirstKey(numbers, n, scaled) {
  const rest = numbers.slice();
  for (let i = 0; i < n; i++) {
    const first = rest[i * n] || 0;
    rest[i * n] = NaN;
    if (!scaled) continue;
    for (let j = 1; j <= i; j++) rest[i * n + j] = first < 1 ? rest[i * n + j] / (1 - first) : NaN;
  }
  return rest;
}

/**
 * Which places of `from` up to `to` (without it) to show, in order, at most `most`: the wanted ones, then
 * the nearest to `center`. Wanted places are never left out.
 */
export function placesShown(from, to, center, wanted, most) {
  const shown = new Set(wanted);
  for (let far = 0; far < to - from && shown.size < most; far++) {
    for (const place of [center - far, center + far]) {
      if (place >= from && place < to && shown.size < most) shown.add(place);
    }
  }
  return [...shown].sort((a, b) => a - b);
}

/** Rows {place}, and {gap: count} where places of `from` up to `to` (without it) are left out. */
export function withGaps(places, from, to) {
  const rows = [];
  let next = from;
  for (const place of places) {
    if (place > next) rows.push({ gap: place - next });
    rows.push({ place });
    next = place + 1;
  }
  if (next < to) rows.push({ gap: to - next });
  return rows;
}
