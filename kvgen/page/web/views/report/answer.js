// The title, and the answer in the terminal's sentences: what was found, on what, and whether it holds.
import { element, fill } from "../../dom.js";
import { buttons } from "../buttons.js";

export function mountTop(root, app) {
  const { model } = app.facts.report;
  fill(
    root,
    element("h1", {}, "KV cache", element("span", { class: "model" }, ` · ${model}`)),
    element("p", { class: "facts" }, "the same tokens with the cache and without"),
    buttons(app),
  );
  if (!app.facts.report.results.some((result) => result.cache === "off")) root.querySelector(".facts").remove();
  return () => {};
}

export function mountAnswer(root, app) {
  const { words, passed } = app.facts;
  const checks = [...words.verdicts, ...words.counts].map((line) => {
    const wrong = /NOT|DIFFERENT/.test(line);
    return element(
      "li",
      { class: wrong ? "wrong" : "right" },
      element("span", { class: "mark", "aria-hidden": "true" }, wrong ? "✗" : "✓"),
      line,
    );
  });
  fill(
    root,
    element("div", { class: "answers" }, ...words.answers.map((line) => element("p", {}, line))),
    checks.length ? element("ul", { class: "checks" }, ...checks) : null,
    passed ? null : element("p", { class: "wrong" }, "✗ not everything is as expected"),
    element("div", { class: "setting" }, ...words.setting.map((line) => element("p", {}, line))),
    words.missing.length
      ? element("ul", { class: "missing", "aria-label": "Not in this report" }, ...words.missing.map((line) => element("li", {}, line)))
      : null,
  );
  return () => {};
}
