// What-ifs that Python has run through the whole model: the effect on the next token and the loss.
import { element } from "../dom.js";
import { mean } from "../pure/whatif.js";
import { fixed, signed } from "../pure/numbers.js";

/** The what-ifs of a recording (facts.whatIfs), or how to record one. `nameOf` gives a token's name. */
export function propagatedPart(whatIfs, nameOf) {
  const title = element("h3", {}, "Propagated: the model is run again with the edit, all later layers see it");
  if (!whatIfs.length) {
    const how = element(
      "p",
      { class: "hint" },
      "None in this file. ",
      element("code", {}, "kvgen inspect-attention PROMPT --what-if kq"),
      " runs one (also unscaled, unmasked, drop-sink, ablate=LAYER.HEAD).",
    );
    return element("section", { class: "part" }, title, how);
  }
  return element(
    "section",
    { class: "part" },
    title,
    lossTable(whatIfs),
    ...whatIfs.map((one) => nextTokens(one, nameOf)),
    element(
      "p",
      { class: "hint" },
      "loss: −ln of the probability of the text's next token, mean in nats · KL: how far the probabilities of the next token ",
      "moved, 0 = not at all · distance: mean over rows of ½ Σ |w − w′|",
    ),
  );
}

/** An edit in words: `kq in layer 5 head 1`. */
function describe({ edit, layer, heads }) {
  const kind = typeof edit === "string" ? edit : edit.kind;
  if (layer === null || layer === undefined) return `${kind} in all layers`;
  if (!heads?.length) return `${kind} in layer ${layer}`;
  return `${kind} in layer ${layer} head${heads.length > 1 ? "s" : ""} ${heads.join(", ")}`;
}

function greatest(distances) {
  let best = null;
  distances.forEach((heads, layer) =>
    heads.forEach((distance, head) => {
      if (best === null || distance > best.distance) best = { layer, head, distance };
    }),
  );
  return best === null ? "" : `${fixed(best.distance, 2)} in ${best.layer}.${best.head}`;
}

function lossTable(whatIfs) {
  const heads = ["edit", "loss", "edited", "change", "KL", "greatest distance"];
  const lines = whatIfs.map((one) => {
    const [before, after] = [mean(one.losses), mean(one.editedLosses)];
    const cells = [fixed(before, 2), fixed(after, 2), signed(after - before, 2), fixed(one.divergence, 2), greatest(one.distances)];
    const visible = describe(one).startsWith("unmasked") ? " (targets visible: no measure)" : "";
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, `${describe(one)}${visible}`),
      ...cells.map((cell) => element("td", {}, cell)),
    );
  });
  return scrolled(
    "the effect of each edit",
    element("table", { class: "numbers words whole" }, head(heads), element("tbody", {}, ...lines)),
  );
}

function nextTokens(one, nameOf) {
  const lines = one.nextTokens.map(([id, before, after]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, nameOf(id)),
      ...[fixed(before, 3), fixed(after, 3), signed(after - before, 3)].map((cell) => element("td", {}, cell)),
    ),
  );
  return element(
    "div",
    {},
    element("h3", {}, `Next token: ${describe(one)}`),
    scrolled(
      `next token, ${describe(one)}`,
      element("table", { class: "numbers words" }, head(["token", "as it is", "edited", "change"]), element("tbody", {}, ...lines)),
    ),
  );
}

function head(names) {
  return element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));
}

function scrolled(label, table) {
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
}
