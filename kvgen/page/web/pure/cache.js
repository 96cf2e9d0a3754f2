// What the KV cache holds and what a step reads: counted from the shapes, nothing measured.
// Step 0 is the prefill of `nPrompt` positions; decode step n brings position nPrompt - 1 + n.

const ITEM_BYTES = { f32: 4, f16: 2, bf16: 2 };
// Of several positions that share a cell, the first of these states names the cell.
const ORDER = ["new", "live", "read", "outside", "gone", "future"];

/** Positions that are known at a step: those of the prompt and one for each decode step. */
export function positionsAt(step, nPrompt) {
  return nPrompt + step;
}

/** The query that a step asks last: the only one of a decode step. */
export function queryAt(step, nPrompt) {
  return nPrompt - 1 + step;
}

/** A row of K or V at a step: `new`, `read`, `outside` (kept, but not in the window) or `future`. */
export function keyState(position, step, nPrompt, window = null) {
  const query = queryAt(step, nPrompt);
  if (position > query) return "future";
  if (step === 0 || position === query) return "new";
  return window !== null && position <= query - window ? "outside" : "read";
}

/** A row of Q at a step: `live` (used now), `gone` (never read again) or `future`. */
export function queryState(position, step, nPrompt) {
  const query = queryAt(step, nPrompt);
  if (position > query) return "future";
  return step === 0 || position === query ? "live" : "gone";
}

/** How many of `length` positions are in each state. */
export function countStates(length, stateAt) {
  const counts = {};
  for (let position = 0; position < length; position++) {
    const state = stateAt(position);
    counts[state] = (counts[state] ?? 0) + 1;
  }
  return counts;
}

/**
 * Cells {first, last} for all positions, at most `room` of them (at least 2). None holds positions of
 * both prompt and decode. Decode positions get half of the room, or more where they are more, so that
 * few of them keep a cell each.
 */
export function cellsOf(length, nPrompt, room) {
  const decode = length - nPrompt;
  let promptBin = 1;
  let decodeBin = 1;
  if (length > room) {
    const most = Math.min(Math.floor(room) - 1, Math.floor(room * Math.max(0.5, decode / length)));
    decodeBin = Math.max(1, Math.ceil(decode / most));
    promptBin = Math.ceil(nPrompt / (Math.floor(room) - Math.ceil(decode / decodeBin)));
  }
  const cells = [];
  const add = (from, to, bin) => {
    for (let first = from; first < to; first += bin) cells.push({ first, last: Math.min(first + bin, to) - 1 });
  };
  add(0, nPrompt, promptBin);
  add(nPrompt, length, decodeBin);
  return { cells, promptBin, decodeBin };
}

/** The state that names a cell of one or several positions. */
export function cellState({ first, last }, stateAt) {
  let found = ORDER.length - 1;
  for (let position = first; position <= last; position++) found = Math.min(found, ORDER.indexOf(stateAt(position)));
  return ORDER[found];
}

/**
 * The sizes that decide the bytes of the cache: {layers, everyLayer, kvHeads, groupSize, headDim, dtype,
 * itemBytes}. `layers` are those of the model where the facts say so, else the recorded ones.
 */
export function shapeOf(facts) {
  const { run, layers, heads, groupSize, headDim } = facts;
  const keys = layers.flatMap((layer) => layer.arrays ?? []).find((array) => array.name === "k");
  const dtype = run.cache_dtype ?? "f32";
  return {
    layers: run.n_layers ?? layers.length,
    everyLayer: Number.isInteger(run.n_layers),
    kvHeads: run.n_kv_heads ?? keys?.shape[0] ?? Math.floor(Math.max(...heads) / groupSize) + 1,
    groupSize,
    headDim,
    dtype,
    itemBytes: ITEM_BYTES[dtype] ?? 4,
  };
}

/** Bytes of K and V of one position: 2 x layers x kv heads x head size x bytes of a number. */
export function bytesOfPosition(shape) {
  return 2 * shape.layers * shape.kvHeads * shape.headDim * shape.itemBytes;
}

/** Bytes that Q of one position would take if it were kept: layers x query heads x size x bytes. */
export function bytesOfQuery(shape) {
  return shape.layers * shape.kvHeads * shape.groupSize * shape.headDim * shape.itemBytes;
}

/** Keys that the query at the end of `positions` sees: its dot products q.k, for one head. */
export function productsOfQuery(positions, window = null) {
  return window === null ? positions : Math.min(positions, window);
}

/** Dot products of all queries up to `positions`, each with the keys up to its own: S (S + 1) / 2. */
export function productsOfAll(positions, window = null) {
  const growing = window === null ? positions : Math.min(positions, window);
  return (growing * (growing + 1)) / 2 + (positions - growing) * growing;
}

/** Dot products of a step for one head: {cached, uncached}. The prefill is the same work in both. */
export function productsOfStep(step, nPrompt, window = null) {
  const positions = positionsAt(step, nPrompt);
  const uncached = productsOfAll(positions, window);
  return { cached: step === 0 ? uncached : productsOfQuery(positions, window), uncached };
}

/** Sums over decode steps 1..n for each n up to `steps`: {cached, uncached}, lists of that length. */
export function sumsOfSteps(steps, nPrompt, window = null) {
  const sums = { cached: [], uncached: [] };
  const total = { cached: 0, uncached: 0 };
  for (let step = 1; step <= steps; step++) {
    const products = productsOfStep(step, nPrompt, window);
    for (const name of ["cached", "uncached"]) {
      total[name] += products[name];
      sums[name].push(total[name]);
    }
  }
  return sums;
}

/**
 * What was measured when a kept row was replaced: {k, v, q}, each a Map from position to the greatest
 * change of the next logits; null without measurements. Of the layer where it was measured, else of all.
 */
export function effectsOf(interventions, layer) {
  if (!interventions?.length) return null;
  const here = interventions.filter((one) => one.layer === layer);
  const effects = { k: new Map(), v: new Map(), q: new Map(), layer: here.length ? layer : null };
  for (const { kind, positions, changes } of here.length ? here : interventions) {
    positions.forEach((position, i) => effects[kind].set(position, Math.max(changes[i], effects[kind].get(position) ?? 0)));
  }
  return effects;
}

/** The greatest measured change of a cell's positions; null where none was measured. */
export function cellEffect({ first, last }, effects) {
  let greatest = null;
  for (let position = first; position <= last; position++) {
    if (effects.has(position)) greatest = Math.max(greatest ?? 0, effects.get(position));
  }
  return greatest;
}

/** Where a number of 1 or more lies between two powers of ten, 0..1. */
export function logPart(number, low, high) {
  return (Math.log10(number) - low) / (high - low);
}
