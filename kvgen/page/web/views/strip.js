// Three rows of cells, K, V and Q: a cell for each position, or for several where there is no room.
import { element, fill } from "../dom.js";
import { cellEffect, cellState, cellsOf, queryAt } from "../pure/cache.js";
import { plural } from "../pure/numbers.js";

const NARROWEST = 9; // pixels of a cell, with its gap
const WIDEST = 52;
const NAMED = 34; // pixels of a cell that has its token above it
const NARROW = 44; // pixels of the words "prompt" and "decode"
const BAR = 18; // pixels of the greatest measured change
const DECADES = 4; // of the bars, which are logarithmic
const ROWS = ["k", "v", "q"];

/** The strip: layOut() makes the cells for the width, reach(position) moves the Tab stop, draw(...) says what they are. */
export function mountStrip(root, app, shape) {
  const { recording, store } = app;
  const { length } = recording;
  const { tokens, nPrompt } = recording.facts;
  const steps = length - nPrompt;
  const name = "Rows of K, V and Q, a cell for each position; arrow keys move between cells";
  const strip = element("div", { class: "kv-strip", role: "group", "aria-label": name });
  const pooling = element("p", { class: "hint kv-pooling" });
  fill(root, strip, pooling);
  const buttons = { k: [], v: [], q: [] };
  let cells = [];
  let room = 0;
  let focused = [0, 0]; // row and place of the cell that the Tab key reaches

  /** Make the cells anew where the width asks for it; whether it did. */
  function layOut() {
    const inside = root.clientWidth - (matchMedia("(max-width: 700px)").matches ? 30 : 124);
    const now = Math.max(8, Math.floor(inside / NARROWEST));
    if (now === room) return false;
    room = now;
    const found = cellsOf(length, nPrompt, room);
    ({ cells } = found);
    const first = cells.filter((cell) => cell.first < nPrompt).length;
    const columns = cells.map((_, i) => i + (i < first ? 2 : 3)); // names come first, a gap before the decode steps
    const width = `minmax(0, ${WIDEST}px)`;
    const decode = steps ? ` 5px repeat(${cells.length - first}, ${width})` : "";
    strip.style.gridTemplateColumns = `max-content repeat(${first}, ${width})${decode}`;
    strip.dataset.dense = cells.length > 70;
    const children = [];
    const put = (child, row, column, span = 1) => {
      child.style.gridArea = `${row} / ${column} / auto / span ${span}`;
      children.push(child);
    };
    const quiet = (kind, words) => element("span", { class: kind, "aria-hidden": "true" }, words);
    const pixels = Math.min(WIDEST, inside / cells.length);
    const narrow = (cells.length - first) * pixels < NARROW;
    put(quiet("kv-part", first * pixels < NARROW ? "\u00a0" : "prompt"), 1, 2, first);
    if (steps) put(quiet(`kv-part kv-decode${narrow ? " kv-narrow" : ""}`, "decode"), 1, first + 3, cells.length - first);
    const named = pixels >= NAMED && found.promptBin === 1;
    const digits = String(length - 1).length * 7; // pixels of the longest number
    const every = named ? 1 : Math.ceil((digits + 8) / pixels);
    cells.forEach((cell, i) => {
      const [start, end] = i < first ? [0, first] : [first, cells.length];
      const left = (end - i) * pixels;
      if ((i - start) % every || (!named && i > start && left < digits + (i < first ? 6 : 0))) return;
      const kind = named ? " kv-token" : left < digits ? " kv-narrow" : "";
      put(quiet(`kv-place${kind}`, named ? tokens[cell.first] : cell.first), 2, columns[i]);
    });

    ROWS.forEach((kind, row) => {
      const heads =
        kind === "q" ? plural(shape.kvHeads * shape.groupSize, "query head", "query heads") : plural(shape.kvHeads, "kv head", "kv heads");
      put(element("span", { class: "kv-name" }, element("b", {}, kind.toUpperCase()), element("small", {}, ` ${heads}`)), row + 3, 1);
      buttons[kind] = cells.map((cell, i) => {
        const button = element("button", { type: "button", click: () => pin(kind, cell), keydown: (event) => move(event, row, i) });
        put(button, row + 3, columns[i]);
        return button;
      });
    });
    fill(strip, ...children);
    const bins = [
      found.promptBin > 1 && `${found.promptBin} positions of the prompt`,
      found.decodeBin > 1 && steps && `${found.decodeBin} decode positions`,
    ].filter(Boolean);
    const rest = found.promptBin > 1 && found.decodeBin === 1 && steps ? "; each decode position has its own" : "";
    pooling.hidden = !bins.length;
    pooling.textContent = `One cell holds ${bins.join(", or ")}${rest}.`;
    return true;
  }

  /** A cell of K or V is a key of the step's query; a cell of Q, or of a later step, is a query. */
  function pin(kind, { first }) {
    const query = queryAt(store.get().step, nPrompt);
    store.set(kind !== "q" && first <= query ? { query, key: first } : { query: first, key: null });
  }

  function move(event, row, place) {
    const to = {
      ArrowLeft: [row, place - 1],
      ArrowRight: [row, place + 1],
      ArrowUp: [row - 1, place],
      ArrowDown: [row + 1, place],
      Home: [row, 0],
      End: [row, cells.length - 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    event.stopPropagation();
    const next = buttons[ROWS[to[0]]]?.[to[1]];
    if (!next) return;
    reachable(to);
    next.focus();
  }

  function reachable([row, place]) {
    focused = [row, place];
    ROWS.forEach((kind, r) => buttons[kind].forEach((button, i) => (button.tabIndex = r === row && i === place ? 0 : -1)));
  }

  /** What each cell is: `stateOf(kind)` gives a position's state, `words` what a state is called. */
  function draw(state, stateOf, words, effects) {
    const most = effects ? Math.max(...ROWS.flatMap((kind) => [...effects[kind].values()])) : 0;
    strip.classList.toggle("kv-measured", Boolean(effects));
    for (const kind of ROWS) {
      const target = kind === "q" ? state.query : state.key;
      cells.forEach((cell, i) => {
        const button = buttons[kind][i];
        const now = cellState(cell, stateOf(kind));
        const pinned = target !== null && target >= cell.first && target <= cell.last;
        // Measured were rows that an earlier step had kept; the prefill's are those of the step behind it.
        const old = now !== "future" && (state.step === 0 || (now !== "new" && now !== "live"));
        const effect = effects && old ? cellEffect(cell, effects[kind]) : null;
        const place = cell.first === cell.last ? `position ${cell.first} ${tokens[cell.first]}` : `positions ${cell.first} to ${cell.last}`;
        const label = `${kind} of ${place}: ${words[now]}${effect === null ? "" : `; measured: ${changeOf(effect)}`}`;
        button.className = `kv-cell kv-${now}${pinned ? (kind === "q" ? " pinned" : " key") : ""}`;
        button.setAttribute("aria-pressed", String(pinned));
        if (button.title === label) return;
        button.title = label;
        button.setAttribute("aria-label", label);
        if (effects) fill(button, effect === null ? null : bar(effect, most));
      });
    }
  }

  const reach = (position) => reachable([focused[0], cells.findIndex((cell) => cell.last >= position)]);
  return { layOut, reach, draw };
}

function changeOf(effect) {
  return effect === 0 ? "changing it changes no bit of the logits" : `changing it changes the logits by up to ${effect.toPrecision(2)}`;
}

function bar(effect, most) {
  if (effect === 0) return element("i", { class: "kv-none", "aria-hidden": "true" });
  const made = element("i", { class: "kv-bar" });
  made.style.height = `${Math.max(2, BAR * (1 + Math.log10(effect / most) / DECADES)).toFixed(1)}px`;
  return made;
}
