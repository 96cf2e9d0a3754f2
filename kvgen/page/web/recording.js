// The recording inside the page: its facts, and each layer's numbers when they are asked for.
import { arraysOf, bytesOfBase64, inflate, vectorsOf, weightOfByte } from "./pure/decode.js";
import { measuredRow } from "./pure/measures.js";

// The ways to write a layer from which this page can compute maps; of any other it shows the weights.
const COMPUTED = new Set(["exact", "full"]);

/**
 * `facts` is the JSON of kvgen/page/content.py; `blockOf(name)` gives a block's text. Layers and heads
 * go by their rows in `facts.layers` and `facts.heads`.
 */
export class Recording {
  constructor(facts, blockOf) {
    this.facts = facts;
    this.length = facts.ids.length;
    this.layers = facts.layers.map((layer) => layer.number);
    this.heads = facts.heads;
    this._blockOf = blockOf;
    this._arrays = new Map();
    this._maps = new Map();
  }

  /** What a layer does to its scores: {scale, softcap, window}; null where it is not understood. */
  rule(row) {
    const { scale, softcap, window, tier } = this.facts.layers[row];
    return COMPUTED.has(tier) ? { scale, softcap, window } : null;
  }

  /** The key/value head that a query head reads. */
  kvHead(column) {
    return Math.floor(this.heads[column] / this.facts.groupSize);
  }

  /** Decode a layer, once; its numbers can be asked for from then on. */
  async open(row) {
    if (!this._arrays.has(row)) {
      const layer = this.facts.layers[row];
      const bytes = await inflate(bytesOfBase64(this._blockOf(`layer-${layer.number}`)));
      const arrays = arraysOf(bytes, layer.arrays);
      if (COMPUTED.has(layer.tier)) {
        for (const name of ["q", "k", "v"]) {
          arrays[name] = { numbers: vectorsOf(arrays, name), shape: arrays[name].shape };
        }
      }
      this._arrays.set(row, arrays);
    }
  }

  /** Whether a layer is decoded. */
  isOpen(row) {
    return this._arrays.has(row);
  }

  /** One head's {q, k, v, valueNorms, size}, flat [T, size]; null where only maps were written. */
  head(row, column) {
    const arrays = this._arrays.get(row);
    if (!arrays.q) return null;
    const [, T, size] = arrays.q.shape;
    const part = (name, index) => arrays[name].numbers.subarray(index * T * size, (index + 1) * T * size);
    const kv = this.kvHead(column);
    const norms = arrays.valueNorms;
    return {
      q: part("q", column),
      k: part("k", kv),
      v: part("v", kv),
      size,
      valueNorms: norms ? norms.numbers.subarray(column * T, (column + 1) * T) : null,
    };
  }

  /** The measures that a layer's numbers are enough for. */
  measures(row) {
    if (!COMPUTED.has(this.facts.layers[row].tier)) return ["weights"];
    const all = ["weights", "scores", "scaled", "norm", "share", "cos"];
    return this._arrays.get(row)?.valueNorms ? all : all.filter((name) => name !== "norm");
  }

  /** One head's map: {numbers [n, n], n, bin}, NaN where a query does not see a key. */
  map(row, column, measure) {
    const key = `${row} ${column} ${measure}`;
    if (!this._maps.has(key)) {
      if (this._maps.size > 64) this._maps.clear();
      this._maps.set(key, this._computed(row, column, measure));
    }
    return this._maps.get(key);
  }

  /** One row of a map; of pooled maps the row of the bin that holds the query. */
  row(row, column, query, measure) {
    const head = this.head(row, column);
    if (head) return measuredRow(measure, head, query, this.rule(row));
    const { numbers, n, bin } = this.map(row, column, "weights");
    const at = Math.floor(query / bin);
    return numbers.slice(at * n, at * n + at + 1);
  }

  _computed(row, column, measure) {
    const head = this.head(row, column);
    if (!head) return this._written(row, column);
    const n = this.length;
    const numbers = new Float64Array(n * n).fill(NaN);
    const rule = this.rule(row);
    for (let i = 0; i < n; i++) numbers.set(measuredRow(measure, head, i, rule), i * n);
    return { numbers, n, bin: 1 };
  }

  _written(row, column) {
    const { bin } = this.facts.layers[row];
    const { numbers: bytes, shape } = this._arrays.get(row).weights;
    const size = shape[1];
    const n = Math.ceil(this.length / bin);
    const numbers = new Float64Array(n * n).fill(NaN);
    let at = column * size;
    for (let i = 0; i < n; i++) {
      for (let j = 0; j <= i; j++) numbers[i * n + j] = weightOfByte(bytes[at++]);
    }
    return { numbers, n, bin };
  }
}
