// The steps, and what each does with K, V and Q: which rows it reads and keeps, in how many bytes and products.
import { element, fill } from "../dom.js";
import { bytesOfQuery, countStates, effectsOf, keyState, queryAt, queryState, shapeOf, sumsOfSteps } from "../pure/cache.js";
import { byteSize, grouped, plural } from "../pure/numbers.js";
import { mountFigures } from "./figures.js";
import { mountStrip } from "./strip.js";
import { drawSums } from "./sums.js";
import { mountTransport } from "./transport.js";

const PREFILL = { new: "computed and kept", live: "computed, used, thrown away", future: "not there yet" };
const DECODE = {
  read: "read from the cache",
  new: "appended now",
  outside: "kept, outside the window: not read",
  live: "computed, used, thrown away",
  gone: "thrown away, never read again",
  future: "not there yet",
};
const LEGEND = [
  ["k", "read"],
  ["k", "outside"],
  ["k", "new"],
  ["q", "live"],
  ["q", "gone"],
  ["q", "future"],
];

/** Controls of the step, the strip of cells, its legend, the numbers and the chart. */
export function mountSteps(root, app) {
  const { recording } = app;
  const { facts, length } = recording;
  const { nPrompt } = facts;
  const steps = length - nPrompt;
  const shape = shapeOf(facts);
  const made = { transport: element("div"), strip: element("div"), figures: element("dl", { class: "kv-figures" }) };
  const sentence = element("p", { class: "kv-sentence" });
  const legend = element("div", { class: "legend" });
  const chart = element("figure", { class: "kv-chart", hidden: steps === 0 });
  const where = shape.everyLayer ? "" : " in the recorded layers";
  const why = element(
    "p",
    { class: "kv-why" },
    element("b", {}, "Why K and V are kept, and Q is not. "),
    "A step multiplies its own q with the k of every position that it sees, and adds up their v, each times its weight. ",
    "Later steps need these k and v again. A q is read only in the step that computes it. ",
    `Keeping Q too would take ${byteSize(bytesOfQuery(shape))} more for each position${where}, and no step would read it.`,
  );
  const numbers = element("div", { class: steps ? "kv-numbers" : "kv-numbers kv-alone" }, made.figures, chart);
  fill(root, made.transport, sentence, made.strip, legend, why, numbers);
  const drawTransport = mountTransport(made.transport, app);
  const strip = mountStrip(made.strip, app, shape);
  const drawFigures = mountFigures(made.figures, facts, shape);

  function drawLegend(words, stateOf, effects) {
    const counts = { k: countStates(length, stateOf("k")), q: countStates(length, stateOf("q")) };
    const entries = LEGEND.filter(([kind, name]) => counts[kind][name]).map(([kind, name]) => {
      const swatch = element("span", { class: `kv-cell kv-${name}`, "aria-hidden": "true" });
      const rows = name === "future" ? "" : { k: "K, V ", q: "Q " }[kind];
      return element("span", { class: "kv-entry" }, swatch, ` ${rows}${words[name]}: `, element("b", {}, grouped(counts[kind][name])));
    });
    fill(legend, ...entries, element("span", { class: "kv-measure" }, ...measuredWords(effects)));
  }

  return (state, before) => {
    const { step } = state;
    const changed = (...names) => names.some((name) => state[name] !== before[name]);
    const laid = strip.layOut();
    if (!laid && !changed("step", "layer", "query", "key")) return;
    const window = facts.layers[app.row()].window ?? null;
    const effects = effectsOf(facts.interventions, state.layer);
    const words = step === 0 ? PREFILL : DECODE;
    const stateOf = (kind) => (position) =>
      kind === "q" ? queryState(position, step, nPrompt) : keyState(position, step, nPrompt, window);
    if (laid || changed("step")) strip.reach(queryAt(step, nPrompt));
    strip.draw(state, stateOf, words, effects);
    if (!laid && !changed("step", "layer")) return;
    const sums = sumsOfSteps(steps, nPrompt, window);
    sentence.textContent = sentenceOf(step, nPrompt, steps, window);
    drawTransport(state);
    drawLegend(words, stateOf, effects);
    drawFigures(step, window, sums);
    if (steps) drawSums(chart, sums, step);
    if (before.step !== undefined && changed("step")) app.say(sentence.textContent);
  };
}

/** What a step does, in sentences. */
export function sentenceOf(step, nPrompt, steps, window) {
  if (step === 0) {
    const end = steps ? "" : " This recording has no decode step; -n 8 records some.";
    const kept = nPrompt === 1 ? "k and v; q is used" : "every k and v; each q is used for its own row";
    const prompt = `the prompt's ${plural(nPrompt, "position", "positions")}`;
    return `The prefill computes q, k and v of ${prompt}. It keeps ${kept} and thrown away.${end}`;
  }
  const query = queryAt(step, nPrompt);
  const first = window === null ? 0 : Math.max(0, query - window + 1);
  const rows = first === query - 1 ? `position ${first}` : `positions ${first} to ${query - 1}`;
  const read = first < query ? `It reads k and v of ${rows} from the cache, and no older q.` : "It reads no older k, v or q.";
  const kept = `The window of this layer holds ${plural(window ?? 0, "key", "keys")}: earlier ones stay in the cache and are not read.`;
  const own = `Decode step ${step} computes q, k and v of position ${query} alone and appends k and v to the cache.`;
  return [own, read, ...(first > 0 ? [kept] : [])].join(" ");
}

/** What is known of changed rows, and how to know more. */
function measuredWords(effects) {
  if (!effects) {
    const command = element("code", {}, "kvgen bench --no-cache");
    return ["Not measured in this file: ", command, " changes each kept row and shows which ones the next logits need."];
  }
  const found = [...effects.q.values()].every((change) => change === 0)
    ? "measured: changing an old q changes no bit of the logits; changing a k or v does"
    : "measured: how far the logits change when a row is changed";
  const where = effects.layer === null ? "the greatest of all layers" : `layer ${effects.layer}`;
  return [element("b", {}, found), ` (height of the bar, logarithmic, ${where}; 0: not one bit)`];
}
