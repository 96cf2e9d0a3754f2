// The keyboard: every key in one table, which the help shows too.

/** Keys, what they do, and how: (app) => the change of the state, if any. */
export const KEYS = [
  [["ArrowLeft"], "head before", (app) => beside(app, "head", "heads", -1)],
  [["ArrowRight"], "next head", (app) => beside(app, "head", "heads", 1)],
  [["ArrowUp"], "layer before", (app) => beside(app, "layer", "layers", -1)],
  [["ArrowDown"], "next layer", (app) => beside(app, "layer", "layers", 1)],
  [["k"], "query before", (app) => moved(app, -1)],
  [["j"], "next query", (app) => moved(app, 1)],
  [["h"], "key before", (app) => ({ key: Math.max(0, (app.store.get().key ?? app.store.get().query) - 1) })],
  [["l"], "next key", (app) => ({ key: Math.min(app.store.get().query, (app.store.get().key ?? -1) + 1) })],
  [["["], "decode step before", (app) => stepped(app, -1)],
  [["]"], "next decode step", (app) => stepped(app, 1)],
  [["v"], "next measure", (app) => ({ measure: after(app.recording.measures(app.row()), app.store.get().measure) })],
  [["c"], "next scale of colours", (app) => ({ scale: after(["sqrt", "linear", "log"], app.store.get().scale) })],
  [["s"], "with or without the first key", (app) => ({ sink: after(["keep", "drop"], app.store.get().sink) })],
  [["1"], "map", () => ({ tab: "map" })],
  [["2"], "arcs", () => ({ tab: "arcs" })],
  [["3"], "row, number by number", () => ({ tab: "row" })],
  [["4"], "lens", () => ({ tab: "lens" })],
  [["w", "5"], "what if", () => ({ tab: "what-if" })],
  [["t"], "dark or light", (app) => ({ theme: after(["dark", "light"], app.store.get().theme) })],
  [["/"], "find a token", () => document.getElementById("find").focus()],
  [["Escape"], "no key chosen", () => ({ key: null })],
  [["?"], "this help", () => document.getElementById("help").showModal()],
];

function after(list, value) {
  return list[(list.indexOf(value) + 1) % list.length];
}

function beside(app, name, list, by) {
  const all = app.recording[list];
  const at = all.indexOf(app.store.get()[name]) + by;
  return at < 0 || at >= all.length ? null : { [name]: all[at] };
}

function moved(app, by) {
  const query = app.store.get().query + by;
  return query < 0 || query >= app.recording.length ? null : { query, key: null };
}

function stepped(app, by) {
  const step = app.store.get().step + by;
  const { nPrompt } = app.recording.facts;
  if (step < 0 || step > app.recording.length - nPrompt) return null;
  return { step, query: nPrompt - 1 + step, key: null };
}

/** Listen for some keys, but for what is written into a field. */
export function startKeys(app, all = KEYS) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("help").open) return;
    const at = event.target instanceof Element ? event.target : document.body;
    if (at.closest("input, select, textarea") && event.key !== "Escape") return;
    if (at.closest('[role="tablist"]') && event.key.startsWith("Arrow")) return;
    const found = all.find(([keys]) => keys.includes(event.key));
    if (!found) return;
    const changes = found[2](app);
    if (changes) app.store.set(changes);
    event.preventDefault();
  });
}
