// Which kept rows a step needs: one strip each for K, V and Q, and what was run again.
import { choice, element, fill } from "../../dom.js";
import { changeHeight, changeWords, greatestOf, needsOf } from "../../pure/report.js";
import { stripLine } from "./strip.js";

export function mountRows(root, app) {
  const { need, again } = app.facts.words;
  root.hidden = !need;
  if (!need) return () => {};
  const { store } = app;
  const found = needsOf(app.facts.report.interventions, app.facts.report.results[0].backend);
  const { positions } = found;
  const layers = found.k.map((one) => one.layer);
  const kinds = ["k", "v", "q"];
  const strips = Object.fromEntries(kinds.map((kind) => [kind, stripLine(kind.toUpperCase(), need.of_kinds[kind])]));
  const box = element(
    "div",
    {
      class: "strips",
      id: "need",
      tabindex: 0,
      role: "slider",
      "aria-label": "position whose rows were changed",
      "aria-valuemin": positions[0],
      "aria-valuemax": positions.at(-1),
    },
    ...kinds.map((kind) => strips[kind].root),
  );
  const readout = element("p", { class: "readout" });
  const pick = choice("layer", [["", "any layer"], ...layers.map((layer) => [String(layer), `layer ${layer}`])], "", (name) =>
    store.set({ layer: name === "" ? null : Number(name) }),
  );
  const others = again.map(({ title, strips: of, lesson, by }) => ({
    of,
    color: by === "layer" ? "--off" : "--need", // the first is a run of the uncached arm
    columns: by === "layer" ? Math.max(...of.map((strip) => strip.changes.length)) : 1, // a bar for each layer
    lines: of.map((strip) => stripLine(strip.name, strip.words)),
    title: element("h3", {}, `${title} · by ${by}`),
    lesson: lesson ? element("p", { class: "note" }, lesson) : null,
  }));
  fill(
    root,
    element("div", { class: "bar" }, element("h2", {}, "Rows that a step needs"), pick),
    element("p", { class: "hint" }, need.title),
    box,
    element("p", { class: "legend" }, need.legend.join(" · ")),
    readout,
    ...others.flatMap(({ title, lines, lesson }) => [
      title,
      element("div", { class: "strips" }, ...lines.map((line) => line.root)),
      lesson,
    ]),
  );
  let hovered = null;

  function changesOf(kind, layer) {
    return layer === null ? greatestOf(found[kind].map((one) => one.changes)) : found[kind].find((one) => one.layer === layer).changes;
  }

  function wordsAt(place, layer) {
    return kinds.map((kind) => `${kind.toUpperCase()} ${changeWords(changesOf(kind, layer)[place])}`).join(" · ");
  }

  function say(state) {
    const place = hovered ?? positions.indexOf(state.position);
    const where = state.layer === null ? "the greatest change in any layer" : `layer ${state.layer}`;
    const text = place < 0 ? "" : `position ${positions[place].toLocaleString("en")} · ${where}: ${wordsAt(place, state.layer)}`;
    readout.textContent = text || "Point at a position, or use the arrow keys, for the change of each row.";
    box.setAttribute("aria-valuenow", place < 0 ? positions[0] : positions[place]);
    box.setAttribute("aria-valuetext", text || "no position chosen");
  }

  function placeOf(event) {
    const area = strips.k.canvas.getBoundingClientRect();
    const part = (event.clientX - area.left) / area.width;
    return part < 0 || part >= 1 ? null : Math.floor(part * positions.length);
  }
  box.addEventListener("pointermove", (event) => {
    hovered = placeOf(event);
    say(store.get());
  });
  box.addEventListener("pointerleave", () => {
    hovered = null;
    say(store.get());
  });
  box.addEventListener("click", (event) => {
    const place = placeOf(event);
    if (place !== null) store.set({ position: positions[place] });
  });
  box.addEventListener("keydown", (event) => {
    const by = {
      ArrowLeft: -1,
      ArrowDown: -1,
      ArrowRight: 1,
      ArrowUp: 1,
      PageUp: 10,
      PageDown: -10,
      Home: -positions.length,
      End: positions.length,
    }[event.key];
    if (!by) return;
    store.set(app.moved(by));
    event.preventDefault();
    event.stopPropagation();
  });

  function drawStrips(state) {
    const chosen = positions.indexOf(state.position);
    for (const kind of kinds) {
      const changes = changesOf(kind, state.layer);
      strips[kind].draw(changes, (change) => changeHeight(change, need.greatest), {
        color: "--need",
        chosen: chosen < 0 ? null : chosen,
        nothing: "not one bit",
      });
      strips[kind].words(state.layer === null ? need.of_kinds[kind] : wordsOfLayer(kind, state.layer, changes));
    }
  }

  function wordsOfLayer(kind, layer, changes) {
    const one = found[kind].find((each) => each.layer === layer);
    const changing = changes.filter((change) => change > 0).length;
    let words = `${changing.toLocaleString("en")} of ${changes.length.toLocaleString("en")} rows matter`;
    if (kind === "q") words += one.own ? `; its own q does (${changeWords(one.own)})` : "; its own q does not";
    else if (one.firstVisible > 0) words += `; the window begins at position ${one.firstVisible.toLocaleString("en")}`;
    return words;
  }

  function drawOthers() {
    for (const { of, lines, color, columns } of others) {
      lines.forEach((line, place) =>
        line.draw(of[place].changes, (change) => changeHeight(change, of[place].most), { color, columns, nothing: "not one bit" }),
      );
    }
  }

  return (state, before) => {
    if (["layer", "position", "theme"].some((name) => state[name] !== before[name])) drawStrips(state);
    if (state.theme !== before.theme) drawOthers();
    pick.querySelector("select").value = state.layer === null ? "" : String(state.layer);
    say(state);
  };
}
