// The title, what was run, and how exact it is.
import { element, fill } from "../dom.js";
import { buttons } from "./buttons.js";

export function mountHeader(root, app) {
  const { facts } = app.recording;
  const { model, dtype, backend } = facts.run;
  const decode = app.recording.length - facts.nPrompt;
  const words = [
    `${app.recording.layers.length} layers × ${app.recording.heads.length} heads`,
    `${facts.nPrompt} prompt + ${decode} decode tokens`,
    [dtype, backend].filter(Boolean).join(", "),
  ];
  const exact = facts.verified;
  const verified = `verified: |recomputed − kernel| ≤ ${exact.recomputed.toExponential(1)}`;
  fill(
    root,
    element("h1", {}, "Attention", element("span", { class: "model" }, ` · ${model ?? "a model"}`)),
    element("p", { class: "facts" }, words.filter(Boolean).join(" · ")),
    element(
      "p",
      { class: "verified", title: "weights times values, recomputed from q, k and v, against what the inference kernel wrote" },
      verified,
    ),
    buttons(app),
  );
  return () => {};
}
