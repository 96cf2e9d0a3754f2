// The page: one state, the views that draw it, and the keys that change it.
import { fail } from "./dom.js";
import { stateOf, hashOf } from "./pure/hash.js";
import { startKeys } from "./keys.js";
import { Recording } from "./recording.js";
import { createStore } from "./store.js";
import { mountExplained } from "./views/explained.js";
import { mountHeader } from "./views/header.js";
import { mountHeads } from "./views/heads.js";
import { mountHelp } from "./views/help.js";
import { mountRibbon } from "./views/ribbon.js";
import { mountStage } from "./views/stage.js";
import { mountSteps } from "./views/steps.js";

/** Facts and blocks out of the document that holds them. */
function readDocument() {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  return new Recording(facts, (name) => document.getElementById(name).textContent);
}

/** The layer and head to show first: of the most telling kind that there is, the clearest one. */
function firstState(recording) {
  const { labels } = recording.facts.diagnostics;
  const heads = labels.flatMap((row, layer) => row.map((label, column) => ({ row: layer, column, label })));
  const score = ({ label }) => Number(label.split(" ")[1]);
  const kinds = ["induction", "previous", "duplicate"].map((kind) => heads.filter(({ label }) => label.startsWith(kind)));
  const [named = heads[0]] = (kinds.find((found) => found.length) ?? []).sort((one, other) => score(other) - score(one));
  return {
    layer: recording.layers[named.row],
    head: recording.heads[named.column],
    query: recording.length - 1,
    key: null,
    tab: "map",
    measure: "weights",
    scale: "sqrt",
    sink: "keep",
    metric: "sink-later",
    step: recording.length - recording.facts.nPrompt,
    theme: matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark",
    opened: null,
    find: "",
  };
}

/** Write the state into the address; a notebook's frame has none to write to. */
function remember(state) {
  try {
    history.replaceState(null, "", hashOf(state));
  } catch {
    // The page works without it.
  }
}

/** A state in which everything exists. */
function mended(state, recording) {
  const within = (value, list, usual) => (list.includes(value) ? value : usual);
  return {
    ...state,
    layer: within(state.layer, recording.layers, recording.layers[0]),
    head: within(state.head, recording.heads, recording.heads[0]),
    query: Math.min(Math.max(state.query ?? 0, 0), recording.length - 1),
    tab: within(state.tab, ["map", "arcs", "row", "lens", "what-if"], "map"),
    measure: within(state.measure, ["weights", "scores", "scaled", "norm", "share", "cos"], "weights"),
    scale: within(state.scale, ["sqrt", "linear", "log"], "sqrt"),
    sink: within(state.sink, ["keep", "drop"], "keep"),
    metric: within(
      state.metric,
      recording.facts.diagnostics.metrics.map((one) => one.name),
      "sink-later",
    ),
    step: Math.min(Math.max(state.step ?? 0, 0), recording.length - recording.facts.nPrompt),
  };
}

function start() {
  const recording = readDocument();
  const store = createStore(mended({ ...firstState(recording), ...stateOf(location.hash) }, recording));
  const app = {
    recording,
    store,
    row: () => recording.layers.indexOf(store.get().layer),
    column: () => recording.heads.indexOf(store.get().head),
    say(words) {
      document.getElementById("live").textContent = words;
    },
  };
  const parts = {
    header: mountHeader,
    heads: mountHeads,
    stage: mountStage,
    explained: mountExplained,
    ribbon: mountRibbon,
    steps: mountSteps,
    help: mountHelp,
  };
  const views = Object.entries(parts).map(([id, mount]) => mount(document.getElementById(id), app));

  let frame = 0;
  let from = null;
  async function draw() {
    const began = performance.now();
    frame = 0;
    const before = from;
    from = null;
    const state = store.get();
    document.documentElement.dataset.theme = state.theme;
    // While one layer is decoded, a key may choose another one.
    while (!recording.isOpen(app.row())) await recording.open(app.row());
    if (store.get().opened !== store.get().layer) store.set({ opened: store.get().layer });
    for (const view of views) view(store.get(), before ?? {});
    performance.measure("draw", { start: began }); // for whoever looks with the browser's own tools
  }
  store.subscribe((state, before) => {
    from ??= before;
    remember(state);
    if (!frame) frame = requestAnimationFrame(draw);
  });
  addEventListener("hashchange", () => store.set(mended({ ...store.get(), ...stateOf(location.hash) }, recording)));
  addEventListener("resize", () => {
    if (!frame) frame = requestAnimationFrame(draw);
  });
  startKeys(app);
  document.documentElement.dataset.theme = store.get().theme;
  draw().then(() => {
    document.documentElement.dataset.ready = "true";
  });
}

addEventListener("unhandledrejection", (event) => fail(event.reason));
try {
  start();
} catch (error) {
  fail(error);
}
