// The scores that each arm computed at one decode step: one row with the cache, the whole triangle without.
import { element, fill, paint, themeColor } from "../../dom.js";
import { weightOfByte } from "../../pure/decode.js";
import { cssColor, valueAt } from "../../pure/ink.js";
import { heldIn, squareOf, stepsOf, sumTo } from "../../pure/report.js";
import { drawSquare } from "../heads.js";

const INK = { scale: "sqrt", most: 1, signed: false };
const LARGEST = 420;
const LEFT = 44;
const TOP = 22;
const LEAST_ROW = 4; // pixels of the cached arm's row, which would else be too thin to be seen
const ENLARGED = 20; // of the same row below the map

export function mountMaps(root, app) {
  const { maps } = app.facts;
  root.hidden = !maps;
  if (!maps) return () => {};
  const { store, arrays } = app;
  const { bin, length, scoresOn, scoresOff } = maps;
  const steps = stepsOf(maps);
  const n = Math.ceil((length + steps.at(-1) + 1) / bin);
  const slider = element("input", {
    type: "range",
    id: "step",
    min: 0,
    max: steps.length - 1,
    "aria-label": "decode step",
    input: () => store.set({ step: steps[Number(slider.value)] }),
  });
  const go = (by) => () => store.set({ step: steps[Math.min(Math.max(placeOf(store.get().step) + by, 0), steps.length - 1)] });
  const before = element("button", { type: "button", title: "step before ([)", click: go(-1) }, "◀ before");
  const next = element("button", { type: "button", title: "next step (])", click: go(1) }, "next ▶");
  const ends = element("button", { type: "button", click: () => store.set({ step: steps[0] }) }, "first");
  const last = element("button", { type: "button", click: () => store.set({ step: steps.at(-1) }) }, "last");
  const title = element("h3", { id: "step-title", "aria-live": "polite" });
  const arms = ["on", ...(scoresOff ? ["off"] : [])];
  const canvases = Object.fromEntries(arms.map((arm) => [arm, element("canvas", { role: "img" })]));
  const captions = Object.fromEntries(arms.map((arm) => [arm, element("figcaption", {})]));
  const figures = arms.map((arm) => element("figure", {}, element("h3", {}, `cache ${arm}`), canvases[arm], captions[arm]));
  const counts = element("table", { class: "numbers still", id: "scores" });
  const legend = element("div", { class: "legend" });
  const note = element("p", { class: "hint" });
  fill(
    root,
    element(
      "div",
      { class: "bar" },
      element("h2", {}, "Scores that each arm computes"),
      element("span", { class: "choice" }, `layer ${maps.layer} head ${maps.head}`),
    ),
    element("div", { class: "stepper" }, ends, before, slider, next, last, title),
    element(
      "div",
      { class: scoresOff ? "arms" : "arms single" },
      ...figures,
      element("div", { class: "counts" }, element("div", { class: "scroll" }, counts), legend, note),
    ),
  );
  let square = null;
  let held = null;
  let shownWidth = 0;

  /** The place of a step among those that can be drawn: its own, or the nearest. */
  function placeOf(step) {
    let nearest = 0;
    steps.forEach((one, place) => {
      if (Math.abs(one - step) < Math.abs(steps[nearest] - step)) nearest = place;
    });
    return nearest;
  }

  /** The weights of the one row that the cached arm computed, key by key. */
  function rowOf(step) {
    const own = arrays[`on-${step}`];
    if (own) return own.numbers;
    const S = length + step + 1;
    const i = Math.floor((S - 1) / bin);
    return Float64Array.from({ length: S }, (_, j) => square[i * n + Math.floor(j / bin)]);
  }

  function openSquare(step) {
    if (!scoresOff) return;
    const holding = heldIn(step, maps.steps);
    if (held === holding) return;
    held = holding;
    const rows = Math.ceil((length + holding + 1) / bin);
    square = squareOf(arrays[`off-${holding}`].numbers, n, rows, weightOfByte);
  }

  function axes(context, side, S) {
    context.fillStyle = themeColor("--quiet");
    context.font = "11px ui-monospace, monospace";
    const at = (position) => ((position / bin) * side) / n;
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.fillText("0", LEFT - 6, TOP + 6);
    context.fillText(String(S - 1), LEFT - 6, TOP + Math.max(20, at(S - 0.5)));
    context.textAlign = "left";
    context.fillText("key 0", LEFT, TOP - 11);
    context.textAlign = "right";
    context.fillText(String(S - 1), LEFT + Math.max(62, at(S)), TOP - 11);
    context.save();
    context.translate(12, TOP + side / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText("query", 0, 0);
    context.restore();
  }

  /** The triangle that this step does not compute, as a tint with a line around it. */
  function outline(context, side, S) {
    const edge = ((S / bin) * side) / n;
    context.beginPath();
    context.moveTo(LEFT, TOP);
    context.lineTo(LEFT + edge, TOP + edge);
    context.lineTo(LEFT, TOP + edge);
    context.closePath();
    context.fillStyle = themeColor("--field");
    context.fill();
    context.strokeStyle = themeColor("--line");
    context.stroke();
  }

  function draw(step) {
    const S = length + step + 1;
    const width = figures[0].clientWidth;
    shownWidth = width;
    const side = Math.max(160, Math.min(LARGEST, width - LEFT - 4));
    const { theme } = store.get();
    const rowHeight = Math.max(LEAST_ROW, side / n);
    paint(canvases.on, LEFT + side, TOP + side + 2 * ENLARGED, (context) => {
      outline(context, side, S);
      const row = rowOf(step);
      const below = TOP + side + ENLARGED - 4;
      const y = TOP + Math.min(side - rowHeight, (Math.floor((S - 1) / bin) * side) / n);
      const across = ((S / bin) * side) / n;
      const cells = Math.min(S, Math.ceil(across * (window.devicePixelRatio || 1)));
      for (let cell = 0; cell < cells; cell++) {
        let most = 0;
        for (let j = Math.floor((cell * S) / cells); j < Math.floor(((cell + 1) * S) / cells); j++) most = Math.max(most, row[j]);
        context.fillStyle = cssColor(most, INK, theme);
        const left = Math.floor(LEFT + (cell * across) / cells);
        const right = Math.ceil(LEFT + ((cell + 1) * across) / cells);
        for (const [top, height] of [
          [y, rowHeight],
          [below, ENLARGED],
        ])
          context.fillRect(left, top, right - left, height);
      }
      context.strokeStyle = themeColor("--accent");
      context.strokeRect(LEFT - 0.5, y - 1.5, across + 1, rowHeight + 2);
      context.strokeRect(LEFT - 0.5, below - 0.5, across + 1, ENLARGED + 1);
      axes(context, side, S);
    });
    if (!scoresOff) return;
    const beside = figures[0].offsetTop === figures[1].offsetTop; // then their captions stand side by side
    paint(canvases.off, LEFT + side, TOP + side + (beside ? 2 * ENLARGED : 0), (context) => {
      const rows = Math.ceil(S / bin);
      const shown = square.slice();
      shown.fill(NaN, rows * n);
      context.save();
      context.translate(LEFT, TOP);
      drawSquare(context, shown, n, side, INK, theme);
      context.restore();
      axes(context, side, S);
    });
  }

  function say(step) {
    const grouped = (number) => number.toLocaleString("en");
    const S = length + step + 1;
    title.textContent = `step ${step + 1} of ${scoresOn.length} · ${grouped(S)} positions`;
    captions.on.textContent = `one row, and the same enlarged below: the new query with ${grouped(S)} keys, ${grouped(S - 1)} of them kept`;
    canvases.on.setAttribute("aria-label", `cache on, step ${step + 1}: one row of ${grouped(scoresOn[step])} scores`);
    if (scoresOff) {
      captions.off.textContent = `the whole triangle: ${grouped(S)} queries, each with the keys up to its own`;
      canvases.off.setAttribute("aria-label", `cache off, step ${step + 1}: a triangle of ${grouped(scoresOff[step])} scores`);
    }
    const rows = [
      ["this step", (scores) => scores[step]],
      ["steps so far", (scores) => sumTo(scores, step)],
    ];
    const times = (of) => `${(of(scoresOff) / of(scoresOn)).toFixed(1)} ×`;
    fill(
      counts,
      element("caption", {}, "scores q · k of this head"),
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "col" }, ""),
          ...arms.map((arm) => element("th", { scope: "col" }, `cache ${arm}`)),
          scoresOff ? element("th", { scope: "col" }, "times") : null,
        ),
      ),
      element(
        "tbody",
        {},
        ...rows.map(([name, of]) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, name),
            element("td", {}, grouped(of(scoresOn))),
            scoresOff ? element("td", {}, grouped(of(scoresOff))) : null,
            scoresOff ? element("td", {}, times(of)) : null,
          ),
        ),
      ),
    );
  }

  function drawLegend(theme) {
    const parts = [0, 0.25, 0.5, 0.75, 1].map((place) => {
      const value = valueAt(place, INK);
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = cssColor(value, INK, theme);
      return element("span", {}, swatch, ` ${Number(value.toPrecision(2))}`);
    });
    const none = element("span", { class: "swatch", "aria-hidden": "true" });
    none.style.background = "var(--field)";
    fill(legend, element("span", {}, "weight"), ...parts, element("span", {}, none, " not computed at this step"));
    const notes = ["Counted by the timed engine at every step."];
    if (steps.length > maps.steps.length)
      notes.push(
        `Weights were captured at steps ${maps.steps.map((step) => step + 1).join(", ")}; other steps show the rows of the last one: a row stays the same while the text grows.`,
      );
    else if (scoresOn.length > steps.length) notes.push(`Weights were captured at these ${steps.length} steps.`);
    if (bin > 1) notes.push(`A cell is the greatest of ${bin} × ${bin} neighbours.`);
    note.textContent = notes.join(" ");
  }

  return (state, from) => {
    const place = placeOf(state.step);
    const step = steps[place];
    const changed = ["step", "theme"].some((name) => state[name] !== from[name]);
    slider.value = String(place);
    slider.setAttribute("aria-valuetext", `step ${step + 1}`);
    before.disabled = ends.disabled = place === 0;
    next.disabled = last.disabled = place === steps.length - 1;
    if (state.theme !== from.theme) drawLegend(state.theme);
    if (!changed && shownWidth === figures[0].clientWidth) return;
    openSquare(step);
    draw(step);
    say(step);
  };
}
