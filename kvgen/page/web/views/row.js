// One query and one key, number by number: what each number, and each pair that RoPE turns, adds to q . k.
import { element, fill } from "../dom.js";
import { explainRow, firstKey } from "../pure/formula.js";
import { fixed, signed } from "../pure/numbers.js";
import { explainProduct, greatestOf, groupsOf, partsOf, strongestGroups } from "../pure/pairs.js";
import { barsOf } from "./bars.js";

const STRONGEST = 8;

/** Mount the tab of one row, number by number. */
export function mountRow(root, app) {
  const { recording, store } = app;
  const { tokens } = recording.facts;
  const name = element("p", { class: "row-name" });
  const chosen = element("div", { class: "controls" });
  const steps = element("dl", { class: "row-steps" });
  const box = element("div", { class: "row-box" });
  const note = element("p", { class: "hint" });
  const readout = element("p", { class: "readout" });
  const table = element("div");
  const all = element("details", { toggle: () => drawAll() }, element("summary", {}, "All numbers as a table"), element("div"));
  const parts = [name, chosen, steps, box, note, readout, table, all];
  let shown = null;
  let compact = false;
  let picked = null; // the group whose numbers the readout tells

  const move = (by) => store.set({ key: Math.min(store.get().query, Math.max(0, shown.key + by)) });
  fill(
    chosen,
    element("button", { type: "button", title: "key before (h)", click: () => move(-1) }, "‹ key"),
    element("button", { type: "button", title: "next key (l)", click: () => move(1) }, "key ›"),
    element("button", { type: "button", title: "no key chosen (Esc)", click: () => store.set({ key: null }) }, "greatest weight"),
  );

  /** Everything about the pinned query and the chosen key. */
  function explained(state, head) {
    const rule = recording.rule(app.row());
    const row = explainRow(head, state.query, rule);
    const given = state.key !== null && state.key <= state.query;
    const key = given ? state.key : greatestOf(row.weights);
    const { ropeDim } = recording.facts.layers[app.row()];
    const groups = groupsOf(head.size, ropeDim);
    const nPairs = Math.floor((ropeDim ?? 0) / 2);
    return { head, rule, row, given, key, query: state.query, ropeDim, groups, nPairs, ...explainProduct(head, state.query, key, groups) };
  }

  function drawSteps() {
    const { rule, row, key, query, total } = shown;
    const scaled = total * rule.scale;
    const seen = key >= firstKey(query, rule);
    const step = (title, value, words = "") =>
      element("div", {}, element("dt", {}, title), element("dd", {}, value), element("dd", { class: "how" }, words));
    const items = [
      step(
        "q·k",
        fixed(total, 3),
        `|q| ${fixed(row.queryLength, 2)} · |k| ${fixed(row.keyLengths[key], 2)} · cos ${signed(row.cosines[key], 3)}`,
      ),
      step("scaled", fixed(scaled, 3), `× ${rule.scale.toPrecision(4)}`),
    ];
    if (rule.softcap !== null) {
      items.push(
        step("capped", fixed(rule.softcap * Math.tanh(scaled / rule.softcap), 3), `${rule.softcap} tanh(scaled / ${rule.softcap})`),
      );
    }
    const best = Math.max(...row.scaled.slice(firstKey(query, rule))); // of the keys that it sees
    const how = seen
      ? `e^(${fixed(row.scaled[key], 2)} − ${fixed(best, 2)}) / sum over the keys`
      : `outside the window of ${rule.window} keys: not read`;
    items.push(step("weight", fixed(row.weights[key], 4), how));
    fill(steps, ...items);
  }

  function choose(group) {
    picked = group;
    redraw();
  }

  const titleOf = (group) => (group.length === 2 ? `pair ${group[0]} + ${group[1]}` : `number ${group[0]}`);
  const list = (group, vector, digits = 2) => group.map((d) => signed(vector[d], digits)).join(", ");

  function say() {
    const { groups, q, k, products, sums, total, nPairs } = shown;
    const at = picked !== null && picked < groups.length ? picked : null;
    if (at === null) {
      readout.textContent = `Click a ${nPairs ? "pair" : "number"} for its numbers.`;
      return;
    }
    const group = groups[at];
    readout.textContent = [
      titleOf(group),
      `q ${list(group, q, 3)}`,
      `k ${list(group, k, 3)}`,
      `products ${list(group, products, 3)}`,
      `sum ${signed(sums[at], 3)} of ${fixed(total, 3)}`,
    ].join(" · ");
  }

  function tableOf(order, label) {
    const { groups, q, k, products, sums, running, nPairs } = shown;
    const full = order.length === groups.length;
    const heads = [nPairs ? "pair" : "number", ...(nPairs ? ["λ", "sum"] : []), "products", "q", "k", ...(full ? ["running sum"] : [])];
    const wavelength = (group) => (group.length === 2 ? String(group[0] + 1) : "–");
    const line = (g) => {
      const group = groups[g];
      const cells = [
        ...(nPairs ? [wavelength(group), signed(sums[g], 2)] : []),
        list(group, products),
        list(group, q),
        list(group, k),
        ...(full ? [fixed(running[g], 2)] : []),
      ];
      return element(
        "tr",
        { class: g === picked ? "chosen" : "", click: () => choose(g) },
        element("th", { scope: "row" }, group.join(" + ")),
        ...cells.map((cell) => element("td", {}, cell)),
      );
    };
    return element(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
      element(
        "table",
        { class: "numbers row-numbers" },
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
        element("tbody", {}, ...order.map(line)),
      ),
    );
  }

  function drawAll() {
    if (all.open && shown) fill(all.lastChild, tableOf([...shown.groups.keys()], "all numbers of q and k"));
    else fill(all.lastChild);
  }

  function drawNote() {
    const { ropeDim, sums, nPairs, head, groups } = shown;
    const words = [];
    if (ropeDim === null) words.push("the recording does not say which numbers RoPE turns: each stands alone");
    else if (nPairs === 0) words.push("no RoPE in this layer: each number stands alone");
    else {
      const { faster, slower, still } = partsOf(sums, nPairs);
      words.push(`q and k after RoPE, which turns number i together with number i + ${nPairs}: they stand side by side`);
      words.push(`shorter wavelengths (pairs 0..${Math.ceil(nPairs / 2) - 1}) add ${signed(faster, 2)}, longer ones ${signed(slower, 2)}`);
      if (nPairs < groups.length) words.push(`the ${head.size - 2 * nPairs} numbers that are not turned ${signed(still, 2)}`);
    }
    if (compact) words.push("narrow: q and k as colours, blue for negative and orange for positive");
    note.textContent = `${words.join(" · ")}.`;
  }

  let width = 0;
  function redraw() {
    width = root.clientWidth;
    const greatest = shown.given ? "" : " (greatest weight)";
    name.textContent = `query ${shown.query} ${tokens[shown.query]} · key ${shown.key} ${tokens[shown.key]}${greatest}`;
    drawSteps();
    const drawn = barsOf(shown, { width, theme: store.get().theme, picked, choose });
    compact = drawn.compact;
    fill(box, drawn.svg);
    drawNote();
    say();
    const order = strongestGroups(shown.sums, STRONGEST);
    fill(
      table,
      element(
        "h3",
        {},
        shown.nPairs
          ? `The strongest pairs (λ: order of wavelength, 1 is the shortest, ${shown.nPairs} the longest)`
          : "The strongest numbers",
      ),
      tableOf(order, "the strongest numbers of q and k"),
    );
    drawAll();
  }

  return (state, before) => {
    const head = recording.head(app.row(), app.column());
    if (!head) {
      shown = null;
      fill(
        root,
        element(
          "p",
          { class: "hint" },
          `Layer ${state.layer} was written as maps only (8 bits a weight), without q and k. Record fewer layers to see them.`,
        ),
      );
      return;
    }
    if (box.parentNode !== root) fill(root, ...parts);
    const drawn = ["layer", "head", "query", "key", "theme", "opened"];
    if (shown && root.clientWidth === width && drawn.every((name) => state[name] === before[name])) return;
    shown = explained(state, head);
    redraw();
  };
}
