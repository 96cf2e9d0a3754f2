// The page of a benchmark: one state, the views that draw it, and its keys.
import { fail } from "./dom.js";
import { hashOf, stateOf } from "./pure/hash.js";
import { arraysOf, bytesOfBase64, inflate } from "./pure/decode.js";
import { runsOf, stepsOf } from "./pure/report.js";
import { startKeys } from "./keys.js";
import { createStore } from "./store.js";
import { mountHelp } from "./views/help.js";
import { mountAnswer, mountTop } from "./views/report/answer.js";
import { mountCurves } from "./views/report/curves.js";
import { mountLedger, mountRates } from "./views/report/tables.js";
import { mountMaps } from "./views/report/maps.js";
import { mountRows } from "./views/report/rows.js";

const ADDRESS = { s: "step", r: "run", y: "layer", p: "position" };
const WHOLE = new Set(["step", "run", "layer", "position"]);

const KEYS = [
  [["["], "decode step before", (app) => ({ step: Math.max(0, app.store.get().step - 1) })],
  [["]"], "next decode step", (app) => ({ step: Math.min(app.lastStep(), app.store.get().step + 1) })],
  [["Home"], "first decode step", () => ({ step: 0 })],
  [["End"], "last decode step", (app) => ({ step: app.lastStep() })],
  [["h"], "position before, in the rows", (app) => app.moved(-1)],
  [["l"], "next position, in the rows", (app) => app.moved(1)],
  [["t"], "dark or light", (app) => ({ theme: app.store.get().theme === "dark" ? "light" : "dark" })],
  [["?"], "this help", () => document.getElementById("help").showModal()],
];

async function start() {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const runs = runsOf(facts.report.results);
  const block = document.getElementById("maps-block");
  const arrays = facts.maps ? arraysOf(await inflate(bytesOfBase64(block.textContent)), facts.maps.arrays) : null;
  const nSteps = (run) => runs[run].arms[0]?.seconds_per_step.length ?? 0;
  const positions = facts.words.need ? facts.report.interventions[0].positions : [];

  /** A state in which everything exists. */
  function mended(state) {
    const run = state.run < runs.length ? state.run : 0;
    const step = Math.max(0, Math.min(state.step, nSteps(run) - 1));
    const layer = facts.words.need && facts.report.interventions.some((one) => one.layer === state.layer) ? state.layer : null;
    return { ...state, run, step, layer, position: positions.includes(state.position) ? state.position : null };
  }

  const last = facts.maps ? stepsOf(facts.maps).at(-1) : nSteps(0) - 1;
  const theme = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
  const first = { run: 0, step: last, layer: null, position: null, theme };
  const store = createStore(mended({ ...first, ...stateOf(location.hash, ADDRESS, WHOLE) }));
  const app = {
    facts,
    runs,
    arrays,
    store,
    keys: KEYS,
    lastStep: () => nSteps(store.get().run) - 1,
    moved(by) {
      if (!positions.length) return null;
      const at = positions.indexOf(store.get().position) + by; // without a position from before the first
      return { position: positions[Math.min(Math.max(at, 0), positions.length - 1)] };
    },
  };
  const parts = {
    header: mountTop,
    answer: mountAnswer,
    curves: mountCurves,
    maps: mountMaps,
    rows: mountRows,
    ledger: mountLedger,
    rates: mountRates,
    help: mountHelp,
  };
  const views = Object.entries(parts).map(([id, mount]) => mount(document.getElementById(id), app));

  let frame = 0;
  let from = null;
  function draw() {
    frame = 0;
    const before = from ?? {};
    from = null;
    document.documentElement.dataset.theme = store.get().theme;
    for (const view of views) view(store.get(), before);
  }
  function later() {
    if (!frame) frame = requestAnimationFrame(draw);
  }
  store.subscribe((state, before) => {
    from ??= before;
    try {
      history.replaceState(null, "", hashOf(state, ADDRESS));
    } catch {
      // A notebook's frame has no address to write to; the page works without it.
    }
    later();
  });
  addEventListener("hashchange", () => store.set(mended({ ...store.get(), ...stateOf(location.hash, ADDRESS, WHOLE) })));
  addEventListener("resize", () => {
    from = null;
    later();
  });
  startKeys(app, KEYS);
  draw();
  document.documentElement.dataset.ready = "true";
}

start().catch(fail);
