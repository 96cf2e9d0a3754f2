// The numbers of a step: bytes that it appends, bytes of the cache, dot products with the cache and without it.
import { element, fill } from "../dom.js";
import { bytesOfPosition, positionsAt, productsOfStep } from "../pure/cache.js";
import { byteSize, grouped, plural } from "../pure/numbers.js";

/** Tiles of a title, a number and how it comes about; gives draw(step, window, sums). */
export function mountFigures(root, facts, shape) {
  const { nPrompt } = facts;
  const perPosition = bytesOfPosition(shape);
  const heads = `${plural(shape.layers, "layer", "layers")} × ${plural(shape.kvHeads, "kv head", "kv heads")}`;
  const product = `2 (K and V) × ${heads} × ${shape.headDim} numbers × ${shape.itemBytes} bytes (${shape.dtype})`;
  const where = shape.everyLayer ? "" : ", in the recorded layers";
  const readers = `${plural(shape.groupSize, "query head reads", "query heads read")} each kv head`;
  const tile = (title, number, words) =>
    element("div", {}, element("dt", {}, title), element("dd", {}, element("b", {}, number), element("span", {}, words)));

  return (step, window, sums) => {
    const positions = positionsAt(step, nPrompt);
    const appended = step === 0 ? nPrompt : 1;
    const bytes = appended * perPosition;
    const times = appended === 1 ? "" : `${grouped(appended)} positions × `;
    const kept = `${plural(positions, "position", "positions")} × ${grouped(perPosition)} bytes${where}`;
    const { cached, uncached } = productsOfStep(step, nPrompt, window);
    const pairs =
      window === null || window >= positions
        ? `${grouped(positions)} × ${grouped(positions + 1)} / 2`.replaceAll(" ", "\u00a0")
        : `a query sees ${plural(window, "key", "keys")} at most, its window`;
    const title = "dot products q·k of this step, each head";
    const tiles = [
      tile("appended to the cache", `+ ${byteSize(bytes)}`, `${times}${product} = ${grouped(bytes)} bytes${where}`),
      tile("the whole cache now", byteSize(positions * perPosition), `${kept}; ${readers}`),
    ];
    if (step === 0) {
      const all = `each query with its own key and earlier keys: ${pairs}; the same with a cache and without it`;
      tiles.push(tile(title, grouped(uncached), all));
      if (sums.cached.length) tiles.push(tile("dot products of the decode steps so far", "none", "the chart begins with decode step 1"));
    } else {
      const one = `with the cache, one query with ${plural(cached, "key", "keys")}`;
      const again = `without it, the queries of all ${grouped(positions)} positions again: ${pairs}`;
      const [on, off] = [sums.cached[step - 1], sums.uncached[step - 1]];
      tiles.push(tile(title, `${grouped(cached)} instead of ${grouped(uncached)}`, `${one}; ${again}`));
      const ratio = `${(off / on).toFixed(1)} times as many without the cache`;
      const all = `dot products of decode ${step === 1 ? "step 1" : `steps 1 to ${step}`}`;
      tiles.push(tile(all, `${grouped(on)} instead of ${grouped(off)}`, ratio));
    }
    fill(root, ...tiles);
  };
}
