// What-ifs: the chosen head's map with one thing changed, computed here; and what Python measured.
import { element, fill, paint, scaleChoice, themeColor } from "../dom.js";
import { cssColor, valueAt } from "../pure/ink.js";
import { fixed, signed } from "../pure/numbers.js";
import { difference, EDITS, editedMap, keysToShow, mean, rowDistances, rowEntropies, rowOf } from "../pure/whatif.js";
import { drawSquare } from "./heads.js";
import { propagatedPart } from "./propagated.js";

const MOST = 16;
const KEPT = 12;
const LESSONS = {
  kq: [
    "Keys look for queries: S′ = Sᵀ. One would have to cache Q (after RoPE, of every query head) and V, and not K.",
    "Beware: the mask hides these scores from the model, so it was never trained on them; with RoPE their offsets have the other sign.",
  ],
  unscaled: [
    "Without the factor, mostly 1/√d, large products saturate the softmax: fewer keys get all.",
    "Beware: the model was trained with the factor; a norm of q and k, or a soft cap, limits the scores as well.",
  ],
  unmasked: [
    "Each row sees all keys, later ones too. A new token changes old rows, so kept rows of K and V of later layers would be wrong.",
    "Beware: in the model every position would see the token that it should predict, so a lower loss would mean nothing.",
  ],
  "drop-sink": [
    "The weight that this head puts on the first token has to go to other keys.",
    "Beware: a value of the first token is often short, so weight on it writes little; the other keys get weight that they would not have.",
  ],
};

const TITLES = ["as it is", "edited", "edited − as it is"];

/** The tab of the what-ifs: local ones of the chosen head, and those that the recording holds. */
export function mountWhatIf(root, app) {
  const { recording, store } = app;
  const { tokens, whatIfs, names } = recording.facts;
  // Made once, so that the keyboard's focus stays where it is.
  const buttons = EDITS.map((edit) => element("button", { type: "button", click: () => store.set({ edit }) }, edit));
  const lesson = element("p", {});
  const beware = element("p", { class: "hint" });
  const canvases = TITLES.map(() => element("canvas", { role: "img", click: pin }));
  const legends = element("div", {});
  const scale = scaleChoice(store);
  const facts = element("dl", { class: "before-after-facts" });
  const rowTitle = element("h3", {});
  const rowBox = element("div", {
    class: "scroll",
    tabindex: 0,
    role: "region",
    "aria-label": "the pinned query's weights before and after",
  });
  const missing = element("p", { class: "hint" });
  const local = element(
    "div",
    { class: "local-edit" },
    element("div", { class: "edits", role: "group", "aria-label": "edit" }, ...buttons),
    lesson,
    beware,
    element(
      "div",
      { class: "three-maps" },
      ...canvases.map((canvas, at) => element("figure", {}, element("figcaption", {}, TITLES[at]), canvas)),
    ),
    element("div", { class: "bar" }, legends, scale),
    facts,
    rowTitle,
    rowBox,
  );
  fill(
    root,
    element("h3", {}, "Local: this head's map alone, its inputs as they are"),
    missing,
    local,
    propagatedPart(whatIfs ?? [], (id) => names[id] ?? `id ${id}`),
  );
  let last = null;

  function pin(event) {
    const box = event.target.getBoundingClientRect();
    const query = Math.floor(((event.clientY - box.top) / box.height) * recording.length);
    store.set({ query: Math.min(recording.length - 1, Math.max(0, query)), key: null });
  }

  /** The maps before, after and their difference, kept until something else is chosen. */
  function computed(edit, state) {
    const key = `${edit} ${state.layer} ${state.head}`;
    if (last?.key === key) return last;
    const T = recording.length;
    const before = recording.map(app.row(), app.column(), "weights").numbers;
    const after = editedMap(edit, recording.head(app.row(), app.column()), recording.rule(app.row()));
    const change = difference(after, before);
    const entropies = [rowEntropies(before, T), rowEntropies(after, T)];
    last = { key, T, before, after, maps: [before, after, change], distances: rowDistances(change, T), entropies, pictures: null };
    return last;
  }

  /** The three maps as pictures, drawn again only where they look different; the pinned row comes on top. */
  function picturesOf(found, side, state) {
    const look = `${side} ${state.scale} ${state.theme} ${window.devicePixelRatio}`;
    if (found.pictures?.look !== look) {
      const drawn = found.maps.map((numbers, at) => {
        const canvas = document.createElement("canvas");
        paint(canvas, side, side, (context) => drawSquare(context, numbers, found.T, side, inkOf(at === 2, state), state.theme));
        return canvas;
      });
      found.pictures = { look, drawn };
    }
    return found.pictures.drawn;
  }

  function drawMaps(found, state) {
    const side = Math.max(72, Math.min(240, Math.floor((root.clientWidth - 20) / 3)));
    const cell = side / found.T;
    picturesOf(found, side, state).forEach((picture, at) => {
      canvases[at].setAttribute(
        "aria-label",
        `${TITLES[at]}, head ${state.layer}.${state.head}: rows are queries, columns are keys; the pinned row is in the table below`,
      );
      paint(canvases[at], side, side, (context) => {
        context.drawImage(picture, 0, 0, side, side);
        context.strokeStyle = themeColor("--accent");
        context.lineWidth = 1.5;
        context.strokeRect(0.75, Math.min(side - 3, state.query * cell), side - 1.5, Math.max(cell, 2.5));
      });
    });
  }

  function legend(title, isSigned, state) {
    const ink = inkOf(isSigned, state);
    const swatches = (isSigned ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((step) => {
      const value = valueAt(step, ink);
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = cssColor(value, ink, state.theme);
      return element("span", {}, swatch, ` ${isSigned ? signed(value, 2) : Number(value.toPrecision(2))}`);
    });
    return element("div", { class: "legend" }, element("span", {}, title), ...swatches);
  }

  function rowTable({ T, before, after }, state) {
    const [was, now] = [rowOf(before, T, state.query), rowOf(after, T, state.query)];
    const shown = keysToShow(was, now, { most: MOST, kept: KEPT });
    const sum = (row, places) => places.reduce((total, j) => total + row[j], 0);
    const rest = [...was.keys()].filter((j) => (was[j] > 0 || now[j] > 0) && !shown.includes(j));
    const bars = (j) => {
      const bar = (weight, name) => {
        const made = element("span", { class: `weight-bar ${name}` });
        made.style.width = `${100 * weight}%`;
        return made;
      };
      return element("td", { class: "bars", "aria-hidden": "true" }, element("div", {}, bar(was[j], "before"), bar(now[j], "after")));
    };
    const cells = (one, other) => [fixed(one, 3), fixed(other, 3), signed(other - one, 3)].map((text) => element("td", {}, text));
    const lines = shown.map((j) =>
      element(
        "tr",
        { class: j === state.key ? "key" : "", click: () => j <= state.query && store.set({ key: j }) },
        element("td", {}, j),
        element("th", { scope: "row" }, tokens[j]),
        bars(j),
        ...cells(was[j], now[j]),
      ),
    );
    if (rest.length)
      lines.push(
        element(
          "tr",
          {},
          element("td"),
          element("th", { scope: "row" }, `${rest.length} others`),
          element("td"),
          ...cells(sum(was, rest), sum(now, rest)),
        ),
      );
    const key = (name) => element("span", { class: `weight-key ${name}`, "aria-hidden": "true" });
    const heads = [["j"], ["key"], [""], [key("before"), "as it is"], [key("after"), "edited"], ["change"]];
    return element(
      "table",
      { class: "numbers before-after" },
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, ...head)))),
      element("tbody", {}, ...lines),
    );
  }

  return (state) => {
    const edit = EDITS.includes(state.edit) ? state.edit : EDITS[0];
    const there = recording.head(app.row(), app.column()) !== null;
    local.hidden = !there;
    missing.hidden = there;
    missing.textContent = `Layer ${state.layer} was written as maps only: an edit needs its q and k. Record fewer layers or fewer tokens.`;
    if (!there) return;
    const found = computed(edit, state);
    const { distances, entropies } = found;
    const [was, now] = entropies;
    const i = state.query;
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(EDITS[at] === edit)));
    [lesson.textContent, beware.textContent] = LESSONS[edit];
    drawMaps(found, state);
    fill(
      legends,
      legend("weight", false, state),
      legend("change", true, state),
      element("p", { class: "hint" }, "rows are queries, columns are keys; click a row to pin its query"),
    );
    scale.querySelector("select").value = state.scale;
    fill(
      facts,
      fact("distance of rows, ½ Σ |w − w′|", `mean ${fixed(mean(distances), 3)} · query ${i}: ${fixed(distances[i], 3)}`),
      fact("entropy, nats", `mean ${moved(mean(was), mean(now))} · query ${i}: ${moved(was[i], now[i])}`),
    );
    fill(rowTitle, `Query ${i} `, element("code", { class: "name" }, tokens[i]), ": its weights before and after");
    fill(rowBox, rowTable(found, state));
  };
}

/** A number before and after. */
function moved(one, other) {
  return `${fixed(one, 2)} → ${fixed(other, 2)}`;
}

function fact(name, words) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, words));
}

function inkOf(isSigned, state) {
  return { scale: state.scale, most: 1, signed: isSigned };
}
