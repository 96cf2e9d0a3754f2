// Controls of the step: first, before, play, after, last, and a slider from the prefill to the last decode step.
import { element, fill } from "../dom.js";
import { queryAt } from "../pure/cache.js";
import { svgElement } from "./sums.js";

const SECOND = 1000; // milliseconds of a step while it plays
const ICONS = {
  first: "M3 3h2v10H3zM13 3v10L6 8z",
  before: "M11 3v10L4 8z",
  play: "M4 3l9 5-9 5z",
  pause: "M4 3h3v10H4zM9 3h3v10H9z",
  after: "M5 3l7 5-7 5z",
  last: "M11 3h2v10h-2zM3 3l7 5-7 5z",
};

/** Buttons, slider and what they say of the step. */
export function mountTransport(root, app) {
  const { recording, store } = app;
  const { tokens, nPrompt } = recording.facts;
  const steps = recording.length - nPrompt;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let playing = 0;

  const go = (step) => store.set({ step, query: queryAt(step, nPrompt), key: null });
  const button = (icon, words, title, click) =>
    element("button", { type: "button", "aria-label": words, title, disabled: steps === 0, click }, iconOf(icon));
  const first = button("first", "first: the prefill", "first: the prefill", () => moved(0));
  const back = button("before", "step before", "step before ([)", () => moved(store.get().step - 1));
  const play = button("play", "play", "play, one step a second", () => (playing ? stop() : start()));
  const forward = button("after", "step after", "step after (])", () => moved(store.get().step + 1));
  const last = button("last", "last step", "last step", () => moved(steps));
  const input = () => moved(Number(slider.value));
  const slider = element("input", { type: "range", min: 0, max: steps, step: 1, "aria-label": "step", disabled: steps === 0, input });
  const place = element("output", { class: "kv-step" });
  fill(
    root,
    element(
      "div",
      { class: "bar kv-transport" },
      element("h2", {}, "Steps and the KV cache"),
      element("div", { class: "controls", role: "group", "aria-label": "step" }, first, back, play, forward, last),
      slider,
      place,
    ),
  );

  function moved(step) {
    stop();
    if (step >= 0 && step <= steps) go(step);
  }
  function start() {
    if (store.get().step >= steps) go(0);
    playing = setInterval(() => {
      const { step } = store.get();
      go(Math.min(step + 1, steps));
      if (step + 1 >= steps) stop();
    }, SECOND);
    show();
  }
  function stop() {
    clearInterval(playing);
    playing = 0;
    show();
  }
  function show() {
    fill(play, iconOf(playing ? "pause" : "play"));
    play.setAttribute("aria-label", playing ? "pause" : "play");
    play.hidden = still.matches;
  }
  still.addEventListener("change", stop);
  show();

  return (state) => {
    const query = queryAt(state.step, nPrompt);
    const prompt = nPrompt === 1 ? `prefill, query 0 ${tokens[0]}` : `prefill, queries 0 to ${query}`;
    const words = state.step === 0 ? prompt : `decode step ${state.step} of ${steps}, query ${query} ${tokens[query]}`;
    slider.value = state.step;
    slider.setAttribute("aria-valuetext", words);
    place.textContent = words;
    for (const one of [first, back]) one.disabled = state.step === 0;
    for (const one of [forward, last]) one.disabled = state.step === steps;
  };
}

function iconOf(name) {
  const box = { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true", fill: "currentColor" };
  return svgElement("svg", box, svgElement("path", { d: ICONS[name] }));
}
