// One head's map on a canvas: rows are queries, columns are keys, with a crosshair and exact numbers.
import { choice, element, fill, paint, scaleChoice, themeColor } from "../dom.js";
import { MEASURES } from "../pure/measures.js";
import { cssColor, valueAt } from "../pure/ink.js";
import { drawSquare } from "./heads.js";

const LARGEST = 560;

export function mountMap(root, app) {
  const { recording, store } = app;
  const { tokens, nPrompt } = recording.facts;
  const controls = element("div", { class: "controls" });
  const canvas = element("canvas", { class: "map", tabindex: 0, role: "img" });
  const legend = element("div", { class: "legend" });
  const readout = element("p", { class: "readout" });
  fill(root, controls, element("div", { class: "map-box" }, canvas), legend, readout);
  let geometry = null;
  let hovered = null;

  function place(event) {
    if (!geometry) return null;
    const box = canvas.getBoundingClientRect();
    const cell = geometry.side / geometry.n;
    const i = Math.floor((event.clientY - box.top - geometry.top) / cell);
    const j = Math.floor((event.clientX - box.left - geometry.left) / cell);
    if (i < 0 || j < 0 || i >= geometry.n || j > i) return null;
    return { query: Math.min(recording.length - 1, i * geometry.bin), key: j * geometry.bin };
  }
  canvas.addEventListener("pointermove", (event) => {
    hovered = place(event);
    say(store.get());
    drawCrosshair(store.get());
  });
  canvas.addEventListener("pointerleave", () => {
    hovered = null;
    say(store.get());
    drawCrosshair(store.get());
  });
  canvas.addEventListener("click", (event) => {
    const at = place(event);
    if (at) store.set(at);
  });

  function say(state) {
    const at = hovered ?? (state.key === null ? null : { query: state.query, key: state.key });
    if (!at) {
      readout.textContent = "Point at a cell for its numbers; click to pin its query and key.";
      return;
    }
    const names = recording.measures(app.row());
    const about = names.includes("scores") ? "" : "≈ ";
    const words = names.map((name) => {
      const value = recording.row(app.row(), app.column(), at.query, name)[
        Math.floor(at.key / (recording.head(app.row(), app.column()) ? 1 : geometry.bin))
      ];
      return `${MEASURES[name].title} ${about}${Number.isNaN(value) ? "–" : value.toFixed(name === "weights" ? 4 : 3)}`;
    });
    readout.textContent = `query ${at.query} ${tokens[at.query]} · key ${at.key} ${tokens[at.key]} · ${words.join(" · ")}`;
  }

  function inkOf(state) {
    const { signed, bounded } = MEASURES[state.measure];
    const { numbers } = recording.map(app.row(), app.column(), state.measure);
    let most = 1;
    if (!bounded) {
      most = 0;
      for (const number of numbers) if (Number.isFinite(number)) most = Math.max(most, Math.abs(number));
    }
    return { scale: state.scale, most: most || 1, signed };
  }

  /** The map without its first column, rows of weights scaled to sum to 1 again. */
  function withoutSink(numbers, n, state) {
    if (state.sink === "keep") return numbers;
    const rest = numbers.slice();
    for (let i = 0; i < n; i++) {
      const first = rest[i * n];
      rest[i * n] = NaN;
      if (state.measure !== "weights") continue;
      for (let j = 1; j <= i; j++) rest[i * n + j] = first < 1 ? rest[i * n + j] / (1 - first) : NaN;
    }
    return rest;
  }

  function draw(state) {
    const measure = recording.measures(app.row()).includes(state.measure) ? state.measure : "weights";
    const shown = { ...state, measure };
    const { numbers, n, bin } = recording.map(app.row(), app.column(), measure);
    const labels = n <= 40 && bin === 1;
    const left = labels ? 96 : 28;
    const top = 22;
    const side = Math.max(160, Math.min(LARGEST, root.clientWidth - left - 8, labels ? 22 * n : LARGEST));
    geometry = { n, bin, side, left, top };
    const ink = inkOf(shown);
    paint(canvas, left + side, top + side, (context) => {
      context.save();
      context.translate(left, top);
      drawSquare(context, withoutSink(numbers, n, shown), n, side, ink, state.theme);
      context.restore();
      drawLabels(context, labels);
    });
    const copy = document.createElement("canvas");
    copy.width = canvas.width;
    copy.height = canvas.height;
    copy.getContext("2d").drawImage(canvas, 0, 0);
    geometry.copy = copy;
    canvas.setAttribute(
      "aria-label",
      `${MEASURES[measure].title} of head ${state.layer}.${state.head}: rows are queries, columns are keys; the numbers of the pinned query are in the table`,
    );
    drawLegend(shown, ink, bin);
  }

  function drawLabels(context, labels) {
    const { n, side, left, top, bin } = geometry;
    const cell = side / n;
    context.fillStyle = themeColor("--quiet");
    context.font = "11px ui-monospace, monospace";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.max(1, Math.ceil(14 / cell));
    for (let i = 0; i < n; i += labels ? 1 : every) {
      const y = top + (i + 0.5) * cell;
      context.fillStyle = i * bin >= nPrompt ? themeColor("--accent") : themeColor("--quiet");
      if (labels && cell >= 11) context.fillText(shortened(tokens[i], 11), left - 22, y);
      if (cell >= 11 || !labels) context.fillText(String(i * bin), left - 4, y);
    }
    context.textAlign = "center";
    context.fillStyle = themeColor("--quiet");
    const across = Math.max(1, Math.ceil(24 / cell));
    for (let j = 0; j < n; j += across) context.fillText(String(j * bin), left + (j + 0.5) * cell, top - 10);
  }

  function drawCrosshair(state) {
    if (!geometry?.copy) return;
    const context = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(geometry.copy, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const { n, side, left, top, bin } = geometry;
    const cell = side / n;
    const shown = Math.min(side, Math.ceil((nPrompt + state.step) / bin) * cell); // later rows are not there yet
    context.globalAlpha = 0.8;
    context.fillStyle = themeColor("--panel");
    context.fillRect(left, top + shown, side, side - shown);
    context.globalAlpha = 1;
    const row = (query, key, color) => {
      context.strokeStyle = themeColor(color);
      context.lineWidth = 1.5;
      const i = Math.floor(query / bin);
      context.strokeRect(left + 0.5, top + i * cell, Math.max(cell, (i + 1) * cell) - 1, cell);
      if (key !== null) context.strokeRect(left + Math.floor(key / bin) * cell, top + 0.5, cell, Math.max(cell, (i + 1) * cell) - 1);
    };
    row(state.query, state.key, "--accent");
    if (hovered) row(hovered.query, hovered.key, "--text");
  }

  function drawLegend(state, ink, bin) {
    const steps = ink.signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
    const parts = steps.map((step) => {
      const value = valueAt(step, ink);
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = cssColor(value, ink, state.theme);
      return element("span", {}, swatch, ` ${Number(value.toPrecision(2))}`);
    });
    const notes = [];
    if (bin > 1) notes.push(`the greatest of ${bin} × ${bin} neighbours`);
    if (state.sink === "drop") notes.push(state.measure === "weights" ? "without key 0, the rest scaled to sum to 1" : "without key 0");
    if (recording.facts.layers[app.row()].tier === "maps") notes.push("≈ 8 bits a weight");
    fill(legend, ...parts, ...notes.map((note) => element("span", { class: "hint" }, note)));
  }

  function drawControls(state) {
    const measures = recording.measures(app.row());
    fill(
      controls,
      choice(
        "show",
        measures.map((name) => [name, MEASURES[name].title]),
        measures.includes(state.measure) ? state.measure : "weights",
        (measure) => store.set({ measure }),
      ),
      scaleChoice(store),
      choice(
        "first key",
        [
          ["keep", "shown"],
          ["drop", "left out"],
        ],
        state.sink,
        (sink) => store.set({ sink }),
      ),
    );
  }

  return (state, before) => {
    if (["layer", "measure", "scale", "sink"].some((name) => state[name] !== before[name])) drawControls(state);
    const drawn = ["layer", "head", "measure", "scale", "sink", "theme", "opened"];
    const width = root.clientWidth;
    if (drawn.some((name) => state[name] !== before[name]) || width !== geometry?.width) {
      draw(state);
      geometry.width = width;
    }
    drawCrosshair(state);
    say(state);
  };
}

/** A text of at most so many characters. */
function shortened(text, most) {
  const characters = [...text];
  return characters.length <= most ? text : `${characters.slice(0, most - 1).join("")}…`;
}
