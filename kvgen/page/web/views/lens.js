// The logit lens: what each layer would predict if the model ended there; below it, what each part adds.
import { element, fill } from "../dom.js";
import { colorOf, cssColor, inkOn } from "../pure/ink.js";
import { fixed, grouped } from "../pure/numbers.js";
import { contributionsPart } from "./contributions.js";
import { rankChart } from "./rankchart.js";

const INK = { scale: "linear", most: 1, signed: false };
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** The tab of the lens and of the contributions. */
export function mountLens(root, app) {
  const { lens, contributions } = app.recording.facts;
  const drawLens = lens
    ? lensPart(app)
    : missing("The logit lens", "what each layer would predict if the model ended there", "--lens", "recording.lens()");
  const drawSums = contributions
    ? contributionsPart(app)
    : missing(
        "Contributions",
        "what the embedding, each head and each MLP adds to the logit of the next token",
        "--contributions",
        "recording.contributions()",
      );
  fill(root, drawLens.part, drawSums.part);
  return (state, before) => {
    drawLens.draw(state, before);
    drawSums.draw(state, before);
  };
}

/** A line that says how to record what is not in the file. */
function missing(title, what, option, call) {
  const how = element(
    "p",
    { class: "hint" },
    `Not in this file: ${what}. Record it with `,
    element("code", {}, option),
    " of ",
    element("code", {}, "kvgen inspect-attention"),
    ", or ",
    element("code", {}, call),
    " in Python before the page is written.",
  );
  return { part: element("section", { class: "part" }, element("h3", {}, title), how), draw() {} };
}

function lensPart(app) {
  const { recording, store } = app;
  const { lens, tokens, names } = recording.facts;
  const nameOf = (id) => names[id] ?? `id ${id}`;
  const cells = lens.layers.map((layer, row) => lens.positions.map((_, column) => cellOf(layer, row, column)));
  const table = gridOf();
  const scroll = element("div", { class: "scroll lens-scroll" }, table);
  const chosenBox = element("div", { class: "lens-chosen" });
  const part = element(
    "section",
    { class: "part" },
    element("h3", {}, "Logit lens: the likeliest next token behind each layer"),
    element(
      "p",
      { class: "hint" },
      "The final norm and the head behind each block, as if the model ended there. ◂ marks the token that the whole model ",
      "finds likeliest. Choose a cell by a click, the arrow keys or the pinned query.",
    ),
    scroll,
    legend(),
    chosenBox,
    element("p", { class: "hint" }, `verified: |last layer − the model's own logits| ≤ ${lens.error.toExponential(1)}`),
  );
  let marked = null;
  let room = 0; // how wide the table was when it was last scrolled
  let entry = cells[0][0]; // the cell that the tab key leads to
  entry.tabIndex = 0;

  function cellOf(layer, row, column) {
    const id = lens.ids[row][column][0];
    const probability = lens.probabilities[row][column][0];
    const final = id === lens.finalIds[column];
    const place = lens.positions[column];
    const guess = `${nameOf(id)} ${fixed(probability, 2)}${final ? ", the final choice" : ""}`;
    const words = `layer ${layer}, position ${place} ${tokens[place]}: ${guess}`;
    const color = colorOf(probability, INK, "dark");
    const cell = element(
      "td",
      { class: final ? "final" : "", tabindex: -1, "aria-label": words, title: words },
      element("span", {}, nameOf(id)),
    );
    cell.style.background = `rgb(${color.join(" ")})`;
    cell.style.color = inkOn(color);
    cell.dataset.row = row;
    cell.dataset.column = column;
    return cell;
  }

  function gridOf() {
    const head = element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th", { scope: "col", class: "corner" }, "layer"),
        ...lens.positions.map((place) =>
          element(
            "th",
            { scope: "col", title: `${place} ${tokens[place]}` },
            element("small", {}, place),
            element("span", {}, tokens[place]),
          ),
        ),
      ),
    );
    const body = element(
      "tbody",
      {},
      ...lens.layers.map((layer, row) => element("tr", {}, element("th", { scope: "row" }, layer), ...cells[row])),
    );
    const made = element(
      "table",
      { class: "lens", role: "grid", "aria-label": "the likeliest next token behind each layer at each position" },
      head,
      body,
    );
    made.addEventListener("click", (event) => {
      const cell = event.target.closest("td");
      if (cell) choose(Number(cell.dataset.row), Number(cell.dataset.column));
    });
    made.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation(); // here arrows go from cell to cell, elsewhere from head to head
      const row = Number(entry.dataset.row) + move[0];
      const column = Number(entry.dataset.column) + move[1];
      if (cells[row]?.[column]) choose(row, column);
    });
    return made;
  }

  /** A layer whose maps are not in the file is chosen for the lens alone. */
  function choose(row, column) {
    const layer = lens.layers[row];
    const recorded = recording.layers.includes(layer);
    const state = store.get();
    store.set({
      query: lens.positions[column],
      key: lens.positions[column] === state.query ? state.key : null,
      layer: recorded ? layer : state.layer,
      lensLayer: recorded ? null : { layer, beside: state.layer },
    });
  }

  function chosenRow(state) {
    const wanted = state.lensLayer?.beside === state.layer ? state.lensLayer.layer : state.layer;
    const row = lens.layers.indexOf(wanted);
    return row < 0 ? lens.layers.length - 1 : row;
  }

  function mark(row, column) {
    const cell = column < 0 ? null : cells[row][column];
    const width = scroll.clientWidth;
    if (cell === marked && width === room) return;
    room = width;
    const focused = marked !== null && marked === document.activeElement;
    marked?.classList.remove("chosen");
    marked?.removeAttribute("aria-selected");
    entry.tabIndex = -1;
    marked = cell;
    entry = cell ?? cells[row][0];
    entry.tabIndex = 0;
    if (!cell) return;
    cell.classList.add("chosen");
    cell.setAttribute("aria-selected", "true");
    if (focused) cell.focus({ preventScroll: true });
    reveal(cell);
  }

  /** Scroll the table, and never the page, to where a cell is seen. */
  function reveal(cell) {
    const margin = table.querySelector(".corner").offsetWidth + 4;
    const from = cell.offsetLeft - margin;
    const to = cell.offsetLeft + cell.offsetWidth + 4 - scroll.clientWidth;
    if (scroll.scrollLeft > from) scroll.scrollLeft = from;
    else if (scroll.scrollLeft < to) scroll.scrollLeft = to;
  }

  function candidates(row, column) {
    const ids = lens.ids[row][column];
    const lines = ids.map((id, place) => {
      const probability = lens.probabilities[row][column][place];
      const bar = element("span", { class: "weight-bar" });
      bar.style.width = `${100 * probability}%`;
      return element(
        "tr",
        {},
        element("th", { scope: "row", class: id === lens.finalIds[column] ? "final" : "" }, nameOf(id)),
        element("td", { class: "bars", "aria-hidden": "true" }, element("div", {}, bar)),
        element("td", {}, fixed(probability, 3)),
      );
    });
    return element(
      "table",
      { class: "numbers words before-after" },
      element("caption", {}, `layer ${lens.layers[row]}, entropy ${fixed(lens.entropies[row][column], 2)} nats`),
      element("tbody", {}, ...lines),
    );
  }

  function numbers(row, column) {
    const head = ["layer", "rank", "p", "H/nats", "likeliest"].map((name) =>
      element("th", { scope: "col", class: name === "likeliest" ? "left" : "" }, name),
    );
    const lines = lens.layers.map((layer, at) =>
      element(
        "tr",
        { class: at === row ? "chosen" : "", click: () => choose(at, column) },
        element("th", { scope: "row" }, layer),
        ...[grouped(lens.ranks[at][column]), fixed(lens.finalProbabilities[at][column], 3), fixed(lens.entropies[at][column], 2)].map(
          (cell) => element("td", {}, cell),
        ),
        element("td", { class: "left" }, nameOf(lens.ids[at][column][0])),
      ),
    );
    return element(
      "table",
      { class: "numbers words by-layer" },
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...lines),
    );
  }

  function legend() {
    const swatches = [0, 0.25, 0.5, 0.75, 1].map((value) => {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = cssColor(value, INK, "dark");
      return element("span", {}, swatch, ` ${value}`);
    });
    return element("div", { class: "legend" }, element("span", {}, "probability"), ...swatches);
  }

  /** Half of the place where there is room for two beside each other, else all of it. */
  function chartWidth() {
    const room = chosenBox.clientWidth || 300;
    return Math.min(420, room < 470 ? room : Math.floor((room - 20) / 2));
  }

  let open = false;
  function draw(state) {
    const row = chosenRow(state);
    const column = lens.positions.indexOf(state.query);
    mark(row, column);
    if (column < 0) {
      fill(
        chosenBox,
        element(
          "p",
          { class: "hint" },
          `The lens was not recorded at position ${state.query}; it was at ${lens.positions.length} others: choose one of its cells.`,
        ),
      );
      return;
    }
    const final = nameOf(lens.finalIds[column]);
    const details = element(
      "details",
      { open, toggle: () => (open = details.open) },
      element("summary", {}, "the chart's numbers as a table"),
      element("div", { class: "scroll" }, numbers(row, column)),
    );
    fill(
      chosenBox,
      element(
        "h3",
        {},
        `Position ${state.query} `,
        element("code", { class: "name" }, tokens[state.query]),
        ": the final choice is ",
        element("code", { class: "name" }, final),
      ),
      element(
        "div",
        { class: "lens-beside" },
        candidates(row, column),
        rankChart(lens, column, { chosen: row, final, width: chartWidth() }),
      ),
      details,
    );
  }
  return { part, draw };
}
