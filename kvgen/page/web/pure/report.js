// A benchmark's report: which results belong together, its axes, heights of strips, sums of counts.

const OVERFLOWN = 3.4e38; // what the report writes where logits were no numbers
const DECADES = 6; // of the greatest change, drawn at different heights, as kvgen/render/need.py

/** The results of `kvgen bench -o FILE.json` run by run: [{prefill, arms}]; each run begins with its prefill. */
export function runsOf(results) {
  const runs = [];
  for (const result of results) {
    if (result.test.startsWith("pp")) runs.push({ prefill: result, arms: [] });
    else runs[runs.length - 1].arms.push(result);
  }
  return runs;
}

/** One arm's curves in milliseconds: its `positions`, and `median`, `least`, `most`, `predicted` of each step. */
export function curveOf(result) {
  const steps = result.seconds_per_step.map((_, step) => step);
  const samples = steps.map((step) => result.samples.map((one) => 1e3 * one[step]));
  return {
    name: result.cache,
    positions: steps.map((step) => result.depth + step),
    median: result.seconds_per_step.map((seconds) => 1e3 * seconds),
    least: samples.map((of) => Math.min(...of)),
    most: samples.map((of) => Math.max(...of)),
    predicted: result.predicted_seconds_per_step.map((seconds) => 1e3 * seconds),
    passes: result.samples.length,
  };
}

/** A logarithmic axis around numbers above 0: {bottom, top} as logarithms, and `ticks` with room between them. */
export function logAxis(numbers, most = 7) {
  const low = Math.log10(Math.min(...numbers));
  const high = Math.log10(Math.max(...numbers));
  const bottom = low - 0.1;
  const top = Math.max(high, low + 1) + 0.1; // a decade at least, so that noise does not look like growth
  const decades = [];
  for (let decade = Math.floor(bottom); decade <= Math.ceil(top); decade++) decades.push(decade);
  let ticks = [];
  for (const multiples of [[1], [1, 3], [1, 2, 5]]) {
    const finer = decades
      .flatMap((decade) => multiples.map((multiple) => Number(`${multiple}e${decade}`)))
      .filter((value) => Math.log10(value) >= bottom && Math.log10(value) <= top);
    if (ticks.length >= 3 || (ticks.length > 0 && finer.length > most)) break;
    ticks = finer;
  }
  return { bottom, top, ticks };
}

/** Round numbers from `first` to `last`, both included where they are not crowded; whole numbers alone. */
export function wholeTicks(first, last, most) {
  const span = last - first;
  if (span === 0) return [first];
  const rough = Math.max(1, span / Math.max(1, most));
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((multiple) => multiple * power).find((one) => one >= rough);
  const ticks = [];
  for (let at = Math.ceil(first / step) * step; at <= last; at += step) ticks.push(at);
  if (ticks[0] - first > step / 2) ticks.unshift(first);
  if (last - ticks[ticks.length - 1] > step / 2) ticks.push(last);
  return ticks;
}

/** Milliseconds as an axis writes them: `0.3 ms`, `2 s`. */
export function milliseconds(value) {
  return value >= 1000 ? `${value / 1000} s` : `${value} ms`;
}

/** A number as Python's format(number, ".2g") writes it. */
export function general(number, digits = 2) {
  if (number === 0) return "0";
  const [mantissa, power] = number.toExponential(digits - 1).split("e");
  const exponent = Number(power);
  const short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent >= -4 && exponent < digits) return short(number.toFixed(Math.max(0, digits - 1 - exponent)));
  const size = String(Math.abs(exponent)).padStart(2, "0");
  return `${short(mantissa)}e${exponent < 0 ? "-" : "+"}${size}`;
}

/** A change of logits in words. */
export function changeWords(change) {
  if (change === 0) return "not one bit";
  return change >= OVERFLOWN ? "no numbers" : general(change);
}

/** 0 for no change, else 1/9 to 1 by the change's logarithm, 1 for `most` and more. */
export function changeHeight(change, most) {
  if (change === 0) return 0;
  if (change >= most) return 1;
  return 1 / 9 + (8 / 9) * Math.max(0, 1 + Math.log10(change / most) / DECADES);
}

/** The interventions on one engine: {positions, k, v, q}, each the layers in turn: {layer, changes, firstVisible, own}. */
export function needsOf(interventions, backend) {
  const found = { positions: [], k: [], v: [], q: [] };
  for (const one of interventions) {
    if (one.backend !== backend) continue;
    found.positions = one.positions;
    found[one.row].push({
      layer: one.layer,
      changes: one.max_abs_logit_change,
      firstVisible: one.first_visible,
      other: one.with_other_key,
      own: one.q_live ?? null,
    });
  }
  return found;
}

/** The greatest of several lists, place by place. */
export function greatestOf(lists) {
  return lists[0].map((_, place) => Math.max(...lists.map((list) => list[place])));
}

/** The list in at most `room` parts of neighbours, as evenly as possible: [from, to) of each. */
export function partsOf(length, room) {
  const count = Math.max(1, Math.min(length, Math.floor(room)));
  return Array.from({ length: count }, (_, part) => [Math.floor((part * length) / count), Math.floor(((part + 1) * length) / count)]);
}

/** The sum of a list up to a place, that included. */
export function sumTo(list, place) {
  let sum = 0;
  for (let at = 0; at <= place; at++) sum += list[at];
  return sum;
}

/** The decode steps that can be drawn: all where rows stay as they are and a triangle holds them, else the captured ones. */
export function stepsOf(maps) {
  if (!maps.rowsStay || !maps.scoresOff) return maps.steps;
  return Array.from({ length: maps.steps[maps.steps.length - 1] + 1 }, (_, step) => step);
}

/** The captured step whose triangle holds a step's rows: its own, else the last. */
export function heldIn(step, captured) {
  return captured.includes(step) ? step : captured[captured.length - 1];
}

/** A triangle's rows one after another as a square [n, n] of weights, NaN beyond `rows` rows. */
export function squareOf(bytes, n, rows, weightOf) {
  const numbers = new Float64Array(n * n).fill(NaN);
  let at = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j <= i; j++) numbers[i * n + j] = weightOf(bytes[at++]);
  }
  return numbers;
}
