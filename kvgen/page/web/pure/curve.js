// Places of numbers on a small chart.

/** Where a rank stands between 0 (rank 1) and 1 (the greatest rank), on a log scale. */
export function rankPlace(rank, greatest) {
  return greatest > 1 ? Math.log(rank) / Math.log(greatest) : 0;
}

/** The ranks to write beside a log axis: 1, the powers of ten and the end, but for powers too near to it. */
export function rankTicks(greatest) {
  const ticks = [1];
  for (let tick = 10; tick < greatest / 2; tick *= 10) ticks.push(tick);
  if (greatest > 1) ticks.push(greatest);
  return ticks;
}

/** The `d` of an SVG path through points [x, y]. */
export function linePath(points) {
  return points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}
