// Maps larger than their place: neighbouring cells share one, by the greatest number either side of 0.

/** How many neighbours share a cell, so that `count` of them fit into `room`. */
export function poolFactor(count, room) {
  return Math.max(1, Math.ceil(count / Math.max(1, room)));
}

/** A square map [T, T] pooled to [bins, bins]; NaN is no number, unless a whole cell is NaN. */
export function pooledMap(numbers, T, factor) {
  const bins = Math.ceil(T / factor);
  const pooled = new Float64Array(bins * bins).fill(NaN);
  for (let i = 0; i < T; i++) {
    const row = Math.floor(i / factor) * bins;
    for (let j = 0; j < T; j++) {
      const number = numbers[i * T + j];
      if (Number.isNaN(number)) continue;
      const cell = row + Math.floor(j / factor);
      if (Number.isNaN(pooled[cell]) || Math.abs(number) > Math.abs(pooled[cell])) pooled[cell] = number;
    }
  }
  return { numbers: pooled, bins };
}
