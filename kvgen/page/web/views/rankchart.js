// A small chart: rank and probability of the model's final choice, layer by layer.
import { element } from "../dom.js";
import { linePath, rankPlace, rankTicks } from "../pure/curve.js";
import { fixed, grouped } from "../pure/numbers.js";

const [LEFT, RIGHT] = [50, 8];
const RANK = { top: 20, height: 64 };
const PROBABILITY = { top: 116, height: 64 };
const BOTTOM = 212;

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/** The chart of one column of a lens, so many pixels wide; `chosen` is the row whose layer is marked. */
export function rankChart(lens, column, { chosen, final, width }) {
  const ranks = lens.layers.map((_, row) => lens.ranks[row][column]);
  const probabilities = lens.layers.map((_, row) => lens.finalProbabilities[row][column]);
  const greatest = Math.max(...ranks);
  const last = Math.max(1, lens.layers.length - 1);
  const x = (row) => LEFT + 5 + (row / last) * (width - LEFT - RIGHT - 10);
  const rankY = (rank) => RANK.top + RANK.height * rankPlace(rank, greatest);
  const probabilityY = (probability) => PROBABILITY.top + PROBABILITY.height * (1 - probability);
  const behind = (row) =>
    `behind layer ${lens.layers.at(row)} rank ${grouped(ranks.at(row))}, probability ${fixed(probabilities.at(row), 2)}`;
  const words = `rank and probability of ${final} by layer: ${behind(0)}; ${behind(-1)}`;
  const text = (at, y, anchor, content) => svg("text", { x: at, y, "text-anchor": anchor }, content);
  const grid = (y, label) => [
    svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
    text(LEFT - 6, y + 3.5, "end", label),
  ];
  const curve = (values, y) => [
    svg("path", { class: "curve", d: linePath(values.map((value, row) => [x(row), y(value)])) }),
    ...values.map((value, row) =>
      svg("circle", { class: row === chosen ? "dot chosen" : "dot", cx: x(row), cy: y(value), r: row === chosen ? 4.5 : 2.5 }),
    ),
  ];
  const every = Math.ceil((lens.layers.length * 22) / (width - LEFT - RIGHT));
  const layers = lens.layers.flatMap((layer, row) => (row % every ? [] : [text(x(row), BOTTOM - 14, "middle", String(layer))]));
  return element(
    "figure",
    { class: "rank-chart" },
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${BOTTOM}`, width, height: BOTTOM, role: "img", "aria-label": words },
      text(LEFT, 10, "start", `rank of ${final}, log scale`),
      ...rankTicks(greatest).flatMap((rank) => grid(rankY(rank), grouped(rank))),
      text(LEFT, PROBABILITY.top - 9, "start", "its probability"),
      ...[0, 0.5, 1].flatMap((probability) => grid(probabilityY(probability), String(probability))),
      svg("line", { class: "here", x1: x(chosen), x2: x(chosen), y1: RANK.top, y2: PROBABILITY.top + PROBABILITY.height }),
      ...curve(ranks, rankY),
      ...curve(probabilities, probabilityY),
      ...layers,
      text((LEFT + width) / 2, BOTTOM - 2, "middle", "layer"),
    ),
  );
}
