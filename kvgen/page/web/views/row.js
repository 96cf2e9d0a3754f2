// One query and one key, number by number: what each number, and each pair that RoPE turns, adds to q . k.
import { element, fill, shape } from "../dom.js";
import { explainRow, firstKey } from "../pure/formula.js";
import { cssColor } from "../pure/ink.js";
import { fixed, signed } from "../pure/numbers.js";
import { explainProduct, greatestOf, groupsOf, partsOf, strongestGroups } from "../pure/pairs.js";

const STRONGEST = 8;
const LEFT = 44; // pixels for the lanes' names
const RIGHT = 8;
const LANE = 62; // pixels, of bars
const STRIP = 13; // pixels, of colours
const NARROWEST = 3; // pixels of a bar; colours take less

/** Mount the tab of one row, number by number. */
export function mountRow(root, app) {
  const { recording, store } = app;
  const { tokens } = recording.facts;
  const chosen = element("div", { class: "controls" });
  const steps = element("dl", { class: "row-steps" });
  const box = element("div", { class: "row-box" });
  const note = element("p", { class: "hint" });
  const readout = element("p", { class: "readout" });
  const table = element("div");
  const all = element("details", { toggle: () => drawAll() }, element("summary", {}, "All numbers as a table"), element("div"));
  const parts = [chosen, steps, box, note, readout, table, all];
  let shown = null;
  let compact = false;
  let picked = null; // the group whose numbers the readout tells

  const move = (by) => store.set({ key: Math.min(store.get().query, Math.max(0, shown.key + by)) });
  const name = element("b", { class: "row-name" });
  fill(
    chosen,
    name,
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
    const best = Math.max(...row.scaled);
    const how = seen
      ? `e^(${fixed(row.scaled[key], 2)} − ${fixed(best, 2)}) / sum over the keys`
      : `outside the window of ${rule.window} keys: not read`;
    items.push(step("weight", fixed(row.weights[key], 4), how));
    fill(steps, ...items);
  }

  function draw(state) {
    const { groups, nPairs, q, k, products, sums, running, total, head } = shown;
    const width = Math.max(280, Math.min(900, root.clientWidth));
    // Pairs stand apart by a gap of a third of a bar, the numbers that are not turned by a wider one.
    const gapOfPairs = nPairs ? 0.5 : 0;
    const columns = head.size + gapOfPairs * nPairs + (nPairs && nPairs < groups.length ? 2 : 0);
    compact = (width - LEFT - RIGHT) / columns < NARROWEST;
    const places = []; // of each group: {x, width}
    let x = LEFT;
    const unit = compact ? (width - LEFT - RIGHT) / groups.length : (width - LEFT - RIGHT) / columns;
    groups.forEach((group, g) => {
      if (!compact && g === nPairs && nPairs) x += 2 * unit;
      const room = compact ? unit : unit * group.length;
      places.push({ x, width: room });
      x += room + (!compact && group.length === 2 ? gapOfPairs * unit : 0);
    });

    const drawn = [];
    let y = 4;
    const heading = (words, at) => drawn.push(shape("text", { x: LEFT - 6, y: at, "text-anchor": "end" }, words));
    const value = (words, at) => drawn.push(shape("text", { class: "quiet", x: LEFT - 6, y: at, "text-anchor": "end" }, words));

    /** Bars either side of 0: {x, width, value}; one path for each sign. */
    const bars = (words, list, tall) => {
      const most = Math.max(0, ...list.map((one) => one.value));
      const least = Math.min(0, ...list.map((one) => one.value));
      const scale = tall / (most - least || 1);
      const zero = y + most * scale;
      const thin = (one) => Math.max(0.8, one.width - Math.min(1, one.width / 4)).toFixed(2);
      for (const [sign, classes] of [
        [1, "positive"],
        [-1, "negative"],
      ]) {
        const path = list
          .filter((one) => one.value * sign > 0)
          .map((one) => `M${one.x.toFixed(2)} ${zero.toFixed(2)}h${thin(one)}v${(-one.value * scale).toFixed(2)}h-${thin(one)}z`)
          .join("");
        drawn.push(shape("path", { class: classes, d: path }));
      }
      drawn.push(shape("path", { class: "axis", d: `M${LEFT} ${zero.toFixed(2)}H${width - RIGHT}` }));
      heading(words, y + tall / 2);
      if (most > 0) value(signed(most, most >= 10 ? 0 : 1), y + 5);
      if (least < 0) value(signed(least, least <= -10 ? 0 : 1), y + tall - 5);
      y += tall + 20;
    };
    const single = (vector) =>
      groups.flatMap((group, g) => group.map((d, n) => ({ x: places[g].x + n * unit, width: unit, value: vector[d] })));
    const together = sums.length ? [...sums].map((sum, g) => ({ ...places[g], value: sum })) : [];

    /** Two rows of colours, the first and the second number of each pair. */
    const strips = (words, vector) => {
      const most = vector.reduce((most, number) => Math.max(most, Math.abs(number)), 0) || 1;
      const ink = { scale: "linear", most, signed: true };
      const rows = nPairs ? 2 : 1;
      heading(words, y + (rows * STRIP) / 2 - 5);
      value(`±${short(most)}`, y + (rows * STRIP) / 2 + 7);
      groups.forEach((group, g) => {
        group.forEach((d, n) => {
          const tall = group.length === 2 ? STRIP : rows * STRIP;
          drawn.push(
            shape("rect", {
              x: places[g].x.toFixed(2),
              y: y + n * STRIP,
              width: (places[g].width + 0.3).toFixed(2),
              height: tall,
              fill: cssColor(vector[d], ink, state.theme),
            }),
          );
        });
      });
      y += rows * STRIP + 14;
    };

    if (compact) {
      strips("q", q);
      strips("k", k);
      strips("q × k", products);
    } else {
      bars("q", single(q), LANE);
      bars("k", single(k), LANE);
      bars("q × k", single(products), LANE);
    }
    if (nPairs) bars("pairs", together, LANE);
    y = drawRunning(drawn, places, y, width, running, total);
    drawn.push(...axis(places, y, width));
    y += 30;

    const marked = picked !== null && picked < groups.length ? places[picked] : null;
    const marker = marked ? shape("rect", { class: "picked", x: marked.x - 1.5, y: 1, width: marked.width + 2, height: y - 30 }) : null;
    const svg = shape(
      "svg",
      {
        class: "row-bars",
        ...{ width, height: y, viewBox: `0 0 ${width} ${y}`, role: "img" },
        "aria-label": `q, k and q × k, ${head.size} numbers, and their sum up to ${fixed(total, 3)}; the strongest are in the table below`,
        click: (event) => pick(event, svg, places),
      },
      ...drawn,
      marker,
    );
    fill(box, svg);
  }

  function drawRunning(drawn, places, y, width, running, total) {
    const tall = LANE;
    const most = Math.max(0, ...running);
    const least = Math.min(0, ...running);
    const scale = (tall - 10) / (most - least || 1);
    const at = (number) => y + 5 + (most - number) * scale;
    const first = `M${LEFT} ${at(0).toFixed(2)}`;
    const path = places
      .map((place, g) => `H${place.x.toFixed(2)}V${at(running[g]).toFixed(2)}H${(place.x + place.width).toFixed(2)}`)
      .join("");
    drawn.push(
      shape("path", { class: "axis", d: `M${LEFT} ${at(0).toFixed(2)}H${width - RIGHT}` }),
      shape("path", { class: "running", d: first + path }),
      shape("text", { x: LEFT - 6, y: y + tall / 2 - 6, "text-anchor": "end" }, "sum"),
      shape("text", { class: "quiet", x: LEFT - 6, y: y + tall / 2 + 7, "text-anchor": "end" }, short(total)),
      shape("circle", { class: "end", cx: places[places.length - 1].x + places[places.length - 1].width, cy: at(total).toFixed(2), r: 3 }),
    );
    return y + tall + 6;
  }

  /** Numbers of the pairs below the lanes, and where wavelengths are short and long. */
  function axis(places, y, width) {
    const { nPairs, groups } = shown;
    const marks = [];
    const every = [1, 2, 4, 8, 16, 32].find((step) => (step * (width - LEFT)) / groups.length >= 26) ?? 64;
    const text = (x, y, words, anchor) => shape("text", { class: "quiet", x, y, "text-anchor": anchor }, words);
    groups.forEach((group, g) => {
      if (g % every) return;
      marks.push(text(places[g].x + places[g].width / 2, y + 6, String(group[0]), "middle"));
    });
    if (nPairs) {
      const end = places[nPairs - 1].x + places[nPairs - 1].width;
      const roomy = end - LEFT > 150;
      marks.push(text(LEFT, y + 21, roomy ? "short wavelength" : end - LEFT > 95 ? "λ short … long" : "RoPE", "start"));
      if (roomy) marks.push(text(end, y + 21, "long", "end"));
      if (nPairs < groups.length && width - end > 80) marks.push(text(width - RIGHT, y + 21, "not turned", "end"));
    }
    return marks;
  }

  function pick(event, svg, places) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
    const found = places.findIndex((place) => x >= place.x - 1 && x < place.x + place.width + 1);
    choose(found < 0 || found === picked ? null : found);
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
    const state = store.get();
    width = root.clientWidth;
    const greatest = shown.given ? "" : " (greatest weight)";
    name.textContent = `query ${shown.query} ${tokens[shown.query]} · key ${shown.key} ${tokens[shown.key]}${greatest}`;
    drawSteps();
    draw(state);
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

/** A number in at most four characters or so. */
function short(number) {
  return Math.abs(number) >= 100 ? fixed(number, 0) : Math.abs(number) >= 10 ? fixed(number, 1) : fixed(number, 2);
}
