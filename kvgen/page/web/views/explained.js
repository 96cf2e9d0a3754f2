// The pinned query's walk through the formula, as a table that can be read aloud and copied.
import { element, fill } from "../dom.js";
import { explainRow } from "../pure/formula.js";
import { fixed, signed } from "../pure/numbers.js";

const MOST = 16;
const KEPT = 12;

export function mountExplained(root, app) {
  // Kept from draw to draw, so that it keeps the keyboard's focus and its place.
  const region = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "numbers of the pinned query" });
  const { recording, store } = app;
  const { tokens, names, predictions, ids, sampledLast, nPrompt } = recording.facts;

  function predicted(query) {
    if (!predictions) return [];
    const name = (id) => names[id] ?? `id ${id}`;
    const likely = predictions.ids[query].slice(0, 4).map((id, i) => `${name(id)} ${fixed(predictions.probabilities[query][i], 2)}`);
    const next = ids[query + 1] ?? sampledLast;
    const came = next === null || next === undefined ? "" : ` · next came ${name(next)} ${fixed(predictions.nextProbabilities[query], 2)}`;
    return [element("p", { class: "predicts" }, element("b", {}, "predicts "), likely.join(", "), came)];
  }

  function table(row, state) {
    const order = [...row.shares.keys()];
    const shown =
      order.length <= MOST
        ? order
        : order
            .sort((a, b) => Math.abs(row.shares[b]) - Math.abs(row.shares[a]) || a - b)
            .slice(0, KEPT)
            .sort((a, b) => a - b);
    const others = row.shares.length - shown.length;
    const sum = (numbers, places) => places.reduce((total, j) => total + numbers[j], 0);
    const rest = [...row.shares.keys()].filter((j) => !shown.includes(j));
    const line = (j) =>
      element(
        "tr",
        { class: j === state.key ? "key" : "", click: () => store.set({ key: j }) },
        element("td", {}, j),
        element("th", { scope: "row" }, tokens[j]),
        ...[
          fixed(row.products[j], 2),
          signed(row.cosines[j], 3),
          fixed(row.scaled[j], 3),
          fixed(row.weights[j], 4),
          fixed(row.valueLengths[j], 2),
          signed(row.shares[j], 3),
        ].map((cell) => element("td", {}, cell)),
      );
    const foot = [];
    if (others)
      foot.push(
        element(
          "tr",
          {},
          element("td"),
          element("th", { scope: "row" }, `${others} others`),
          ...["", "", "", fixed(sum(row.weights, rest), 4), "", signed(sum(row.shares, rest), 3)].map((cell) => element("td", {}, cell)),
        ),
      );
    foot.push(
      element(
        "tr",
        {},
        element("td"),
        element("th", { scope: "row" }, "sum"),
        ...["", "", "", fixed(sum(row.weights, [...row.weights.keys()]), 4), "", signed(sum(row.shares, [...row.shares.keys()]), 3)].map(
          (cell) => element("td", {}, cell),
        ),
      ),
    );
    const heads = ["j", "key", "q·k", "cos", "scaled", "weight", "|v|", "share"];
    fill(
      region,
      element(
        "table",
        { class: "numbers", id: "explained-table" },
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
        element("tbody", {}, ...shown.map(line)),
        element("tfoot", {}, ...foot),
      ),
    );
    return region;
  }

  return (state) => {
    const query = state.query;
    const heading = element("h2", {}, "Query ", element("b", {}, `${query} ${tokens[query]}`));
    const head = recording.head(app.row(), app.column());
    if (!head) {
      fill(
        root,
        heading,
        ...predicted(query),
        element(
          "p",
          { class: "hint" },
          `Layer ${state.layer} was written as maps only (8 bits a weight): its q, k and v are not in this file. Record fewer layers for exact numbers.`,
        ),
      );
      return;
    }
    const rule = recording.rule(app.row());
    const row = explainRow(head, query, rule);
    const origin =
      query < nPrompt
        ? `prefill: k and v of 0..${query} are computed and kept`
        : `decode: k and v of 0..${query - 1} come from the cache, those of ${query} are new`;
    const focused = document.activeElement === region;
    fill(
      root,
      heading,
      element("p", { class: "formula" }, `o = Σ softmax(q·k × ${rule.scale.toPrecision(4)}) v over j ≤ ${query}`),
      ...predicted(query),
      table(row, state),
      element(
        "p",
        { class: "hint" },
        `|q| ${fixed(row.queryLength, 2)} · entropy ${fixed(row.entropy, 2)} nats · ${origin} · q is used once and not kept`,
      ),
    );
    if (focused) region.focus();
    if (state.key !== null && state.key <= query) {
      app.say(`query ${query} ${tokens[query]}, key ${state.key} ${tokens[state.key]}, weight ${fixed(row.weights[state.key], 3)}`);
    }
  };
}
