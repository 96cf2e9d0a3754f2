// Milliseconds per token by position, in every arm: medians, their spread, and what was predicted.
import { choice, element, fill } from "../../dom.js";
import { curveOf, logAxis, milliseconds, wholeTicks } from "../../pure/report.js";
import { tableOf } from "./table.js";

const HEIGHT = 300;
const MARGIN = { left: 56, right: 16, top: 14, bottom: 40 };
const MOST_MARKS = 40; // of a curve; more would hide it

/** An element of SVG. */
function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/** An arm's mark at a place: a dot, a ring or a cross, told apart without colour. */
function markAt(name, x, y) {
  if (name === "on+q") return drawn("path", { class: "cross", d: `M${x - 4} ${y}h8M${x} ${y - 4}v8` });
  return drawn("circle", { class: name === "off" ? "ring" : "dot", cx: x, cy: y, r: 3.2 });
}

const classOf = (name) => `arm arm-${name.replace("+", "-")}`;

export function mountCurves(root, app) {
  const { store, facts } = app;
  const runs = app.runs.map((run) => run.arms.map(curveOf));
  root.hidden = !runs.some((curves) => curves.length);
  if (root.hidden) return () => {};
  const names = facts.words.runs.map((run, place) => [String(place), run.name || `run ${place + 1}`]);
  const pick =
    names.length > 1
      ? choice("run", names, "0", (name) => store.set({ run: Number(name), step: Math.min(store.get().step, app.lastStep()) }))
      : null;
  const figure = element("div", {
    class: "figure",
    id: "chart",
    tabindex: 0,
    role: "slider",
    "aria-label": "decode step",
    "aria-valuemin": 1,
  });
  const legend = element("div", { class: "legend" });
  const readout = element("p", { class: "readout", id: "times" });
  const table = element("details", { id: "times-table" }, element("summary", {}, "All steps as a table"));
  fill(
    root,
    element("div", { class: "bar" }, element("h2", {}, "Time per token by position"), pick),
    legend,
    figure,
    readout,
    table,
    ...facts.words.timed.map((line) => element("p", { class: "note" }, line)),
  );
  let geometry = null;
  let hovered = null;
  let rows = [];

  function wordsAt(step, state) {
    const curves = runs[state.run];
    const parts = curves.map((curve) => {
      const range = curve.passes > 1 ? ` (${curve.least[step].toFixed(2)}..${curve.most[step].toFixed(2)})` : "";
      return `cache ${curve.name} ${curve.median[step].toFixed(2)} ms${range}, predicted ${curve.predicted[step].toFixed(2)}`;
    });
    const [on, off] = ["on", "off"].map((name) => curves.find((curve) => curve.name === name));
    if (on && off) parts.push(`${(off.median[step] / on.median[step]).toFixed(1)} times slower`);
    return `step ${step + 1} · position ${curves[0].positions[step].toLocaleString("en")} · ${parts.join(" · ")}`;
  }

  function say(state) {
    const step = hovered ?? state.step;
    readout.textContent = wordsAt(step, state);
    figure.setAttribute("aria-valuemax", runs[state.run][0].positions.length);
    figure.setAttribute("aria-valuenow", state.step + 1);
    figure.setAttribute("aria-valuetext", wordsAt(state.step, state));
  }

  function stepAt(event) {
    const { x, count, width } = geometry;
    const at = event.clientX - figure.getBoundingClientRect().left;
    if (at < MARGIN.left - 8 || at > width) return null;
    let nearest = 0;
    for (let step = 1; step < count; step++) if (Math.abs(x(step) - at) < Math.abs(x(nearest) - at)) nearest = step;
    return nearest;
  }
  figure.addEventListener("pointermove", (event) => {
    hovered = stepAt(event);
    say(store.get());
    drawCursor(store.get());
  });
  figure.addEventListener("pointerleave", () => {
    hovered = null;
    say(store.get());
    drawCursor(store.get());
  });
  figure.addEventListener("click", (event) => {
    const step = stepAt(event);
    if (step !== null) store.set({ step });
  });
  figure.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!by) return;
    store.set({ step: Math.min(Math.max(store.get().step + by, 0), app.lastStep()) });
    event.preventDefault();
    event.stopPropagation();
  });

  function draw(state) {
    const curves = runs[state.run];
    const { positions } = curves[0];
    const width = Math.max(260, figure.clientWidth);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
    const axis = logAxis(curves.flatMap((curve) => [...curve.least, ...curve.most, ...curve.predicted]));
    const [first, last] = [positions[0], Math.max(positions.at(-1), positions[0] + 1)];
    const place = (position) => MARGIN.left + ((position - first) / (last - first)) * inner.width;
    const x = (step) => place(positions[step]);
    const y = (value) => MARGIN.top + (1 - (Math.log10(value) - axis.bottom) / (axis.top - axis.bottom)) * inner.height;
    geometry = { x, y, count: positions.length, width, inner };
    const line = (values) => values.map((value, step) => `${step ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const svg = drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    for (const tick of axis.ticks) {
      svg.append(drawn("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
      svg.append(drawn("text", { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, milliseconds(tick)));
    }
    for (const tick of wholeTicks(positions[0], positions.at(-1), Math.floor(inner.width / 70))) {
      svg.append(
        drawn("line", { class: "tick", x1: place(tick), x2: place(tick), y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom + 5 }),
      );
      svg.append(drawn("text", { x: place(tick), y: HEIGHT - MARGIN.bottom + 18, "text-anchor": "middle" }, tick.toLocaleString("en")));
    }
    svg.append(
      drawn("line", { class: "tick", x1: MARGIN.left, x2: width - MARGIN.right, y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom }),
    );
    svg.append(drawn("text", { x: MARGIN.left + inner.width / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "position of the token"));
    const every = Math.ceil(positions.length / MOST_MARKS);
    for (const curve of curves) {
      const group = drawn("g", { class: classOf(curve.name) });
      if (curve.passes > 1) {
        const back = curve.least
          .map((value, step) => `L${x(step).toFixed(1)} ${y(value).toFixed(1)}`)
          .reverse()
          .join("");
        group.append(drawn("path", { class: "spread", d: `${line(curve.most)}${back}Z` }));
      }
      group.append(
        drawn("path", { class: "predicted", d: line(curve.predicted) }),
        drawn("path", { class: "median", d: line(curve.median) }),
      );
      curve.median.forEach((value, step) => {
        if (step % every === 0) group.append(markAt(curve.name, x(step), y(value)));
      });
      svg.append(group);
    }
    svg.append(drawn("g", { id: "cursor" }));
    figure.replaceChildren(svg);
    drawLegend(curves);
  }

  function drawCursor(state) {
    const cursor = figure.querySelector("#cursor");
    const lines = [
      [state.step, "pinned"],
      [hovered, "hovered"],
    ].filter(([step]) => step !== null && step < geometry.count);
    cursor.replaceChildren(
      ...lines.map(([step, kind]) =>
        drawn("line", { class: kind, x1: geometry.x(step), x2: geometry.x(step), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      ),
    );
  }

  function drawLegend(curves) {
    const sample = (kind, name) => {
      const group = drawn("g", { class: name ? classOf(name) : "arm" });
      if (kind === "spread") group.append(drawn("rect", { class: "spread", x: 1, y: 2, width: 26, height: 10 }));
      else group.append(drawn("path", { class: kind, d: "M1 7h26" }));
      if (kind === "median") group.append(markAt(name, 14, 7));
      return drawn("svg", { width: 28, height: 14, "aria-hidden": "true" }, group);
    };
    const item = (svg, words) => element("span", { class: "item" }, svg, words);
    const { passes } = curves[0];
    fill(
      legend,
      ...curves.map((curve) => item(sample("median", curve.name), `cache ${curve.name}${passes > 1 ? ", median" : ""}`)),
      passes > 1 ? item(sample("spread"), `least to most of ${passes} passes`) : null,
      item(sample("predicted"), "predicted"),
      element("span", {}, "logarithmic"),
    );
  }

  function drawTable(state) {
    const { positions } = facts.words.runs[state.run];
    const box = tableOf(positions, { onRow: (step) => store.set({ step }) });
    rows = [...box.querySelectorAll("tbody tr")];
    table.replaceChildren(table.querySelector("summary"), box);
  }

  return (state, before) => {
    const width = figure.clientWidth;
    if (state.run !== before.run || width !== geometry?.shown) {
      draw(state);
      geometry.shown = width;
    }
    if (state.run !== before.run) drawTable(state);
    if (pick) pick.querySelector("select").value = String(state.run);
    rows.forEach((row, step) => row.classList.toggle("chosen", step === state.step));
    drawCursor(state);
    say(state);
  };
}
