// Layers x heads as cells coloured by a diagnostic, and the chosen layer's heads as small maps.
import { choice, element, fill, paint } from "../dom.js";
import { colorOf, cssColor } from "../pure/ink.js";
import { poolFactor, pooledMap } from "../pure/pool.js";

const THUMB = 56;

export function mountHeads(root, app) {
  const { recording, store } = app;
  const { metrics, labels } = recording.facts.diagnostics;
  const longest = recording.length - 1;
  const table = element("table", { class: "cells" });
  const thumbs = element("div", { class: "thumbs", role: "group", "aria-label": "Heads of the layer" });
  const meaning = element("p", { class: "hint" });
  const legend = element("p", { class: "legend", "aria-hidden": "true" });
  const metric = choice(
    "colour",
    metrics.map((one) => [one.name, one.title]),
    store.get().metric,
    (name) => store.set({ metric: name }),
  );
  fill(
    root,
    element("div", { class: "bar" }, element("h2", {}, "Heads"), metric),
    table,
    legend,
    meaning,
    element("h3", { id: "layer-title" }),
    thumbs,
  );

  const part = (name, value) => (name.startsWith("distance") ? value / Math.max(1, longest) : value);

  function drawCells(state) {
    const { values, meaning: words, name } = metrics.find((one) => one.name === state.metric);
    meaning.textContent = words;
    const ink = { scale: "linear", most: 1, signed: false };
    const heading = element(
      "tr",
      {},
      element("th", { scope: "col" }, "layer"),
      ...recording.heads.map((head) => element("th", { scope: "col" }, head)),
    );
    const rows = recording.layers.map((layer, row) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, layer),
        ...recording.heads.map((head, column) => {
          const value = values[row][column];
          const words = value === null ? "nothing counted" : value.toFixed(2);
          const cell = element("button", {
            type: "button",
            class: "cell",
            "aria-label": `head ${layer}.${head}: ${words}`,
            title: `${layer}.${head} ${labels[row][column]} · ${name} ${words}`,
            click: () => store.set({ layer, head, key: null }),
          });
          if (value !== null) cell.style.background = cssColor(part(name, value), ink, state.theme);
          return element("td", {}, cell);
        }),
      ),
    );
    fill(
      table,
      element("caption", { class: "visually-hidden" }, `${name} of each head`),
      element("thead", {}, heading),
      element("tbody", {}, ...rows),
    );
    const stops = [0, 0.25, 0.5, 0.75, 1].map((value) => cssColor(value, ink, state.theme));
    const ramp = element("span", { class: "ramp" });
    ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    fill(legend, "0 ", ramp, " 1");
  }

  function drawThumbs(state) {
    const row = app.row();
    document.getElementById("layer-title").textContent = `Layer ${state.layer}`;
    fill(
      thumbs,
      ...recording.heads.map((head, column) => {
        const canvas = element("canvas", { "aria-hidden": "true" });
        const { numbers, n } = recording.map(row, column, "weights");
        paint(canvas, THUMB, THUMB, (context) =>
          drawSquare(context, numbers, n, THUMB, { scale: "sqrt", most: 1, signed: false }, state.theme),
        );
        const label = labels[row][column];
        return element(
          "button",
          { type: "button", class: "thumb", click: () => store.set({ head, key: null }) },
          canvas,
          element("span", {}, `${state.layer}.${head}`),
          element("small", {}, label || `kv ${recording.kvHead(column)}`),
        );
      }),
    );
  }

  /** Mark the chosen head; nothing is drawn again. */
  function choose(state) {
    const cells = table.querySelectorAll(".cell");
    const chosen = app.row() * recording.heads.length + app.column();
    cells.forEach((cell, place) => {
      cell.className = place === chosen ? "cell chosen" : "cell";
      cell.setAttribute("aria-pressed", String(place === chosen));
      cell.tabIndex = place === chosen ? 0 : -1;
    });
    thumbs.querySelectorAll(".thumb").forEach((thumb, column) => {
      const is = recording.heads[column] === state.head;
      thumb.className = is ? "thumb chosen" : "thumb";
      thumb.setAttribute("aria-pressed", String(is));
    });
  }

  return (state, before) => {
    if (["metric", "theme"].some((name) => state[name] !== before[name])) drawCells(state);
    if (["layer", "theme", "opened"].some((name) => state[name] !== before[name])) drawThumbs(state);
    if (["layer", "head", "metric", "theme", "opened"].some((name) => state[name] !== before[name])) choose(state);
  };
}

/** Draw a map into a square of so many pixels, pooled where it is larger. */
export function drawSquare(context, numbers, n, side, ink, theme) {
  const ratio = window.devicePixelRatio || 1;
  const { numbers: cells, bins } = pooledMap(numbers, n, poolFactor(n, Math.floor(side * ratio)));
  const image = new ImageData(bins, bins);
  for (let i = 0; i < cells.length; i++) {
    if (Number.isNaN(cells[i])) continue;
    const color = colorOf(cells[i], ink, theme);
    image.data.set([...color, 255], 4 * i);
  }
  const buffer = document.createElement("canvas");
  buffer.width = bins;
  buffer.height = bins;
  buffer.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(buffer, 0, 0, side, side);
}
