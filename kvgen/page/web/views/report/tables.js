// The rows that were counted, and what was predicted beside what was measured.
import { element, fill } from "../../dom.js";
import { stripLine } from "./strip.js";
import { tableOf } from "./table.js";

export function mountLedger(root, app) {
  const { ledger, reads, counted } = app.facts.words;
  root.hidden = !ledger;
  if (!ledger) return () => {};
  const strips = reads.map((strip) => stripLine(strip.name, strip.words));
  fill(
    root,
    element("h2", {}, "Rows computed, kept and read"),
    element("p", { class: "hint" }, "Counted by the reference engine, which writes each row into the cache and reads it from there."),
    tableOf(ledger, { keys: ["cache"], label: "Rows of each decode step" }),
    element("h3", {}, "By position, in all counted steps"),
    element("div", { class: "strips" }, ...strips.map((strip) => strip.root)),
    ...counted.map((line) => element("p", { class: "hint" }, line)),
  );
  return (state, before) => {
    if (state.theme === before.theme && before.theme) return;
    strips.forEach((strip, place) => {
      const { of_rows, most } = reads[place];
      strip.draw(of_rows, (number) => number / Math.max(1, most), { color: place === 3 ? "--off" : "--on" });
    });
  };
}

export function mountRates(root, app) {
  const { rates, terms, computed } = app.facts.words;
  const keys = ["test", "cache", "dtype", "kv", "backend"];
  const columns = "predicted" in rates.headings;
  fill(
    root,
    element("h2", {}, columns ? "Prediction beside measurement" : "Rates"),
    tableOf(rates, { keys, label: "Tokens per second" }),
    element(
      "p",
      { class: "hint terms" },
      Object.entries(terms)
        .map(([name, meaning]) => `${name}: ${meaning}`)
        .join(" · "),
    ),
    ...computed.map((line) => element("p", { class: "note" }, line)),
  );
  return () => {};
}
