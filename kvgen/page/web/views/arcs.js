// The edges of the pinned token: the keys that it reads on the left, the later queries that read it on the right.
import { choice, element, fill, shape } from "../dom.js";
import { placesShown, readBy, readersOf, strongest, withGaps, withoutFirstKey } from "../pure/edges.js";
import { fixed } from "../pure/numbers.js";
import { shortened } from "../pure/text.js";

const EDGES = 8; // on each side
const LEAST = 0.0005; // the least weight that is not written as 0.000
const MOST_ROWS = 40; // on each side
const TOP = 24; // pixels above the first row
const ROW = 20; // pixels
const CHARACTER = 7.3; // pixels, of 12px monospace
const WIDEST = 13; // pixels, of a weight of 1

/** Mount the tab of arcs. */
export function mountArcs(root, app) {
  const { recording, store } = app;
  const { tokens } = recording.facts;
  const sink = choice(
    "first key",
    [
      ["keep", "shown"],
      ["drop", "left out"],
    ],
    store.get().sink,
    (value) => store.set({ sink: value }),
  );
  const box = element("div", { class: "arcs-box" });
  const note = element("p", { class: "hint" });
  const lists = element("div", { class: "arcs-lists" });
  fill(root, element("div", { class: "controls" }, sink), box, note, lists);

  /** All that is drawn; of pooled maps a place is a bin of neighbouring tokens. */
  function edgesOf(state) {
    const written = recording.map(app.row(), app.column(), "weights");
    const { n, bin } = written;
    const numbers = state.sink === "drop" ? withoutFirstKey(written.numbers, n, bin === 1) : written.numbers;
    const pinned = Math.floor(state.query / bin);
    const reads = strongest(readBy(numbers, n, pinned), EDGES, LEAST);
    const readers = strongest(readersOf(numbers, n, pinned), EDGES, LEAST);
    const chosen = state.key === null || state.key > state.query ? null : Math.floor(state.key / bin);
    const rows = (from, to, center, wanted) => withGaps(placesShown(from, to, center, wanted, MOST_ROWS), from, to);
    const places = (edges) => edges.map((edge) => edge.place);
    return {
      ...{ n, bin, pinned, chosen, reads, readers },
      keyRows: rows(0, pinned + 1, pinned, chosen === null ? places(reads) : [...places(reads), chosen]),
      queryRows: rows(pinned + 1, n, pinned + 1, places(readers)),
    };
  }

  const label = (place, bin) => (bin === 1 ? tokens[place] : `${tokens[place * bin]}…`);
  const number = (place, bin) => (bin === 1 ? String(place) : `${place * bin}–${Math.min(recording.length, (place + 1) * bin) - 1}`);
  const pin = (place, bin) => store.set({ query: Math.min(recording.length - 1, place * bin), key: null });

  function draw(edges) {
    const { n, bin, pinned, chosen, reads, readers, keyRows, queryRows } = edges;
    const width = Math.max(300, Math.min(720, root.clientWidth));
    const wide = width >= 480;
    const digits = wide ? (String((n - 1) * bin).length + 1) * CHARACTER : 0;
    const column = Math.floor(Math.min(190, width * 0.25)) + digits;
    const room = Math.floor((column - digits) / CHARACTER) - 1;
    const weightRoom = 6 * CHARACTER;
    const middle = shortened(label(pinned, bin), wide ? 14 : 7);
    const half = ([...middle].length * CHARACTER) / 2 + 8;
    const height = TOP + Math.max(keyRows.length, queryRows.length, 2) * ROW + 4;
    const center = width / 2;
    const at = TOP + (height - TOP) / 2;
    const yOf = (index) => TOP + (index + 0.5) * ROW;

    /** One side: -1 for the keys on the left, 1 for the queries on the right. */
    function side(sign, rows, found) {
      const inner = center + sign * (center - column); // where the tokens end
      const anchor = sign < 0 ? "end" : "start";
      const arcs = [];
      const texts = [];
      rows.forEach(({ gap, place }, index) => {
        const y = yOf(index);
        if (gap) {
          texts.push(shape("text", { class: "gap", x: inner + sign * 5, y, "text-anchor": anchor }, `⋮ ${gap} more`));
          return;
        }
        const edge = found.find((one) => one.place === place);
        const chosenKey = sign < 0 && place === chosen;
        texts.push(
          shape(
            "g",
            { class: ["token-row", edge && "told", chosenKey && "key"].filter(Boolean).join(" "), click: () => pin(place, bin) },
            shape("title", {}, `${number(place, bin)} ${label(place, bin)}: click to pin it`),
            shape("rect", { x: sign < 0 ? 1 : inner, y: y - ROW / 2 + 1, width: column - 1, height: ROW - 2, rx: 3 }),
            shape("text", { x: inner + sign * (digits + 5), y, "text-anchor": anchor }, shortened(label(place, bin), room)),
            wide ? shape("text", { class: "number", x: inner + sign * 5, y, "text-anchor": anchor }, String(place * bin)) : null,
          ),
        );
        if (!edge) return;
        texts.push(shape("text", { x: inner - sign * 5, y, "text-anchor": sign < 0 ? "start" : "end" }, fixed(edge.weight, 3)));
        arcs.push({ ...edge, path: arc(edge, sign, center + sign * half, inner - sign * weightRoom, y) });
      });
      return [...arcs.sort((a, b) => a.weight - b.weight).map((one) => one.path), ...texts];
    }

    function arc({ place, weight }, sign, from, to, y) {
      const bend = (from + to) / 2;
      const [query, key] = sign < 0 ? [pinned, place] : [place, pinned];
      const named = (one) => `${number(one, bin)} ${label(one, bin)}`;
      const words = `query ${named(query)} reads key ${named(key)} with weight ${fixed(weight, 3)}`;
      return shape(
        "path",
        {
          class: sign < 0 ? "arc reads" : "arc readers",
          d: `M${from} ${at}C${bend} ${at} ${bend} ${y} ${to} ${y}`,
          "stroke-width": (1 + (WIDEST - 1) * weight).toFixed(2),
          "stroke-opacity": (0.4 + 0.55 * Math.sqrt(weight)).toFixed(2),
        },
        shape("title", {}, words),
      );
    }

    const head = (x, anchor, words) => shape("text", { class: "head", x, y: 10, "text-anchor": anchor }, words);
    fill(
      box,
      shape(
        "svg",
        {
          class: "arcs",
          width,
          height,
          viewBox: `0 0 ${width} ${height}`,
          role: "img",
          "aria-label": `edges of token ${number(pinned, bin)} ${label(pinned, bin)}; the same as lists below`,
        },
        head(column - 5, "end", wide ? "keys that it reads" : "it reads"),
        head(center, "middle", wide ? "pinned token" : "pinned"),
        head(width - column + 5, "start", wide ? "queries that read it" : "read by"),
        ...side(-1, keyRows, reads),
        ...side(1, queryRows, readers),
        queryRows.length ? null : shape("text", { class: "gap", x: width - column + 5, y: at }, wide ? "no later query" : "none"),
        shape("rect", { class: "pinned", x: center - half, y: at - 11, width: 2 * half, height: 22, rx: 4 }),
        shape("text", { x: center, y: at, "text-anchor": "middle" }, middle),
      ),
    );
  }

  function drawLists(edges, state) {
    const { n, bin, pinned, reads, readers } = edges;
    const sum = reads.reduce((total, edge) => total + edge.weight, 0);
    const list = (words, found, none) =>
      element(
        "div",
        {},
        element("h3", {}, words),
        found.length
          ? element(
              "ol",
              {},
              ...found.map(({ place, weight }) =>
                element(
                  "li",
                  {},
                  element(
                    "button",
                    {
                      type: "button",
                      title: "pin this token",

                      click: () => pin(place, bin),
                    },
                    element("span", { class: "number" }, number(place, bin)),
                    element("span", { class: "name" }, label(place, bin)),
                    element("span", {}, fixed(weight, 3)),
                  ),
                ),
              ),
            )
          : element("p", { class: "hint" }, none),
      );
    const last = pinned === n - 1;
    fill(
      lists,
      list("Keys that it reads most", reads, "No key has a weight of 0.001 or more."),
      list(
        "Later queries that read it most",
        readers,
        last ? "It is the last token: no later query was run." : "No later query gives it a weight of 0.001 or more.",
      ),
    );
    const shown = [...edges.keyRows, ...edges.queryRows].filter((row) => !row.gap).length;
    const words = [
      `${reads.length} of ${pinned + 1} ${bin === 1 ? "keys" : "groups of keys"}${bin === 1 ? ` hold ${fixed(sum, 3)} of the weight` : ""}`,
    ];
    if (shown < n)
      words.push(`${shown} of ${n} ${bin === 1 ? "tokens" : "groups"} are shown: the ends of the arcs and the nearest to the pinned token`);
    if (bin > 1) words.push(`a row stands for ${bin} neighbouring tokens and names the first; its weight is the greatest of them`);
    if (state.sink === "drop") words.push(bin === 1 ? "without key 0, the rest scaled to sum to 1" : "without the first group");
    if (recording.facts.layers[app.row()].tier === "maps") words.push("≈ 8 bits a weight");
    note.textContent = `${words.join(" · ")} · click a token to pin it`;
  }

  let width = 0;
  return (state, before) => {
    sink.lastChild.value = state.sink;
    const drawn = ["layer", "head", "query", "key", "sink", "opened"];
    if (root.clientWidth === width && drawn.every((name) => state[name] === before[name])) return;
    width = root.clientWidth;
    const edges = edgesOf(state);
    draw(edges);
    const focused = [...lists.querySelectorAll("button")].indexOf(document.activeElement);
    drawLists(edges, state);
    if (focused >= 0) (lists.querySelectorAll("button")[focused] ?? lists.querySelector("button"))?.focus();
  };
}
