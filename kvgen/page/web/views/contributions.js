// Direct logit attribution: what the embedding, each head and each MLP adds to a logit.
import { element, fill, scaleChoice } from "../dom.js";
import { greatestOf, greatestParts, sumsOf } from "../pure/contributions.js";
import { cssColor, valueAt } from "../pure/ink.js";
import { fixed, signed } from "../pure/numbers.js";

const TOP = 10;

/** The contributions of a recording: {part, draw}. */
export function contributionsPart(app) {
  const { recording, store } = app;
  const { contributions: found, tokens, names } = recording.facts;
  const nameOf = (id) => names[id] ?? `id ${id}`;
  const token = (name) => element("code", { class: "name" }, name);
  const what =
    found.against === null
      ? ["the logit of ", token(nameOf(found.token))]
      : ["the logit of ", token(nameOf(found.token)), " less that of ", token(nameOf(found.against))];
  const where = element("p", { class: "hint" });
  const map = element("table", { class: "cells contributions" });
  const legend = element("div", {});
  const scale = scaleChoice(store);
  const about = element("p", { class: "readout", "aria-live": "off" });
  const greatest = greatestParts(found, TOP);
  const lines = greatest.map(listed);
  const part = element(
    "section",
    { class: "part" },
    element("h3", {}, "Contributions to ", ...what, ` behind position ${found.query} `, token(tokens[found.query])),
    where,
    element(
      "div",
      { class: "sums-beside" },
      sumTable(),
      element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "what each head and MLP adds" }, map),
    ),
    element("div", { class: "bar" }, legend, scale),
    about,
    element("h3", {}, "The greatest parts"),
    listTable(),
    element(
      "p",
      { class: "hint" },
      "A part counts for what it writes itself, with the final norm's scale as it is, not for what later layers make of it. ",
      "Copies: what the head adds to the logit of the token that it reads most.",
    ),
    element("p", { class: "hint" }, verified(found)),
  );

  function recorded(layer, head) {
    return recording.layers.includes(layer) && recording.heads.includes(head);
  }

  function choose(layer, head) {
    store.set({ layer, head, query: found.query, key: found.read[layer][head] });
  }

  function sumTable() {
    const sums = sumsOf(found);
    const most = Math.max(...sums.map(([, sum]) => Math.abs(sum))) || 1;
    const lines = sums.map(([name, sum]) =>
      element(
        "tr",
        { class: name === "sum" ? "total" : "" },
        element("th", { scope: "row" }, name),
        signedBar(sum / most),
        element("td", {}, signed(sum, 3)),
      ),
    );
    return element(
      "table",
      { class: "numbers words sums" },
      element("caption", { class: "visually-hidden" }, "sums of the parts"),
      element("tbody", {}, ...lines),
    );
  }

  function drawMap(state) {
    const ink = (most) => ({ scale: state.scale, most: most || 1, signed: true });
    const inks = { heads: ink(greatestOf(found.heads.flat())), MLPs: ink(greatestOf(found.mlps)) };
    const colored = (made, value, ink) => {
      made.style.background = cssColor(value, ink, state.theme);
      return made;
    };
    const nHeads = found.heads[0].length;
    const heading = element(
      "tr",
      {},
      element("th", { scope: "col" }, "layer"),
      ...found.heads[0].map((_, head) => element("th", { scope: "col" }, head)),
      element("th", { scope: "col" }, "MLP"),
    );
    const rows = found.heads.map((row, layer) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, layer),
        ...row.map((value, head) => {
          const chosen = layer === state.layer && head === state.head;
          const words = `head ${layer}.${head} adds ${signed(value, 3)}, reads ${reads(layer, head)}`;
          const there = recorded(layer, head);
          return element(
            "td",
            {},
            colored(
              element("button", {
                type: "button",
                class: chosen ? "cell chosen" : "cell",
                disabled: !there,
                "aria-pressed": String(chosen),
                "aria-label": words,
                title: words,
                tabindex: chosen ? 0 : -1,
                click: () => choose(layer, head),
              }),
              value,
              inks.heads,
            ),
          );
        }),
        element(
          "td",
          { class: "mlp" },
          colored(
            element("span", {
              class: "cell",
              role: "img",
              "aria-label": `MLP ${layer} adds ${signed(found.mlps[layer], 3)}`,
              title: `MLP ${layer} adds ${signed(found.mlps[layer], 3)}`,
            }),
            found.mlps[layer],
            inks.MLPs,
          ),
        ),
      ),
    );
    const focused = map.contains(document.activeElement);
    fill(
      map,
      element("caption", { class: "visually-hidden" }, `what each of ${nHeads} heads and the MLP of each layer add`),
      element("thead", {}, heading),
      element("tbody", {}, ...rows),
    );
    if (focused) map.querySelector(".chosen")?.focus();
    const swatches = (ink) =>
      [-1, -0.5, 0, 0.5, 1].map((step) => {
        const value = valueAt(step, ink);
        return element(
          "span",
          {},
          colored(element("span", { class: "swatch", "aria-hidden": "true" }), value, ink),
          ` ${signed(value, 2)}`,
        );
      });
    const legends = Object.entries(inks).map(([name, ink]) =>
      element("div", { class: "legend" }, element("span", {}, name), ...swatches(ink)),
    );
    fill(legend, ...legends, element("p", { class: "hint" }, "Heads and MLPs have each their own scale of colours."));
    scale.querySelector("select").value = state.scale;
  }

  function reads(layer, head) {
    const place = found.read[layer][head];
    return `${place} ${tokens[place]} ${fixed(found.readWeights[layer][head], 2)}`;
  }

  function listTable() {
    const heads = ["part", "", "adds", "reads most", "weight", "copies"].map((name) =>
      element("th", { scope: "col", class: ["part", "reads most"].includes(name) ? "left" : "" }, name),
    );
    const table = element(
      "table",
      { class: "numbers words" },
      element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...lines),
    );
    return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "the parts that add most" }, table);
  }

  function listed({ name, adds, layer, head }) {
    const isHead = head !== null;
    const there = isHead && recorded(layer, head);
    const label = there ? element("button", { type: "button", class: "link", click: () => choose(layer, head) }, name) : name;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, label),
      signedBar(adds / (Math.abs(greatest[0].adds) || 1)),
      element("td", {}, signed(adds, 3)),
      element("td", { class: "left" }, isHead ? `${found.read[layer][head]} ${tokens[found.read[layer][head]]}` : ""),
      element("td", {}, isHead ? fixed(found.readWeights[layer][head], 2) : ""),
      element("td", {}, isHead ? signed(found.copies[layer][head], 3) : ""),
    );
  }

  function wordsOf(layer, head) {
    const adds = found.heads[layer]?.[head];
    if (adds === undefined) return "";
    const copies = signed(found.copies[layer][head], 3);
    return `head ${layer}.${head} adds ${signed(adds, 3)}; it reads ${reads(layer, head)} most and adds ${copies} to that token's logit`;
  }

  function draw(state, before) {
    if (["layer", "head", "scale", "theme"].some((name) => state[name] !== before[name])) {
      drawMap(state);
      greatest.forEach(({ layer, head }, at) =>
        lines[at].classList.toggle("chosen", head !== null && layer === state.layer && head === state.head),
      );
    }
    const pinned = state.query === found.query;
    where.hidden = pinned;
    fill(
      where,
      `The pinned query is ${state.query}. `,
      element(
        "button",
        { type: "button", class: "link", click: () => store.set({ query: found.query, key: null }) },
        `Pin ${found.query} ${tokens[found.query]}`,
      ),
    );
    about.textContent = wordsOf(state.layer, state.head);
  }
  return { part, draw };
}

/** A cell of a table with a bar from its middle, to the right above 0 and to the left below it. */
function signedBar(share) {
  const bar = element("span", { class: share < 0 ? "signed-bar below" : "signed-bar" });
  bar.style.width = `${50 * Math.abs(share)}%`;
  return element("td", { class: "bars signed", "aria-hidden": "true" }, element("div", {}, bar));
}

function verified({ softcap, logit, error }) {
  const by = error.toExponential(1);
  return softcap === null
    ? `verified: |sum − the model's own logit ${fixed(logit, 3)}| ≤ ${by}`
    : `verified: the sum is before the soft cap of ${softcap}; |capped sum − the model's own logit| ≤ ${by}`;
}
