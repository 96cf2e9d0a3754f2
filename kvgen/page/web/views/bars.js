// q, k and q x k of a row as bars, or as colours where bars would be too thin, and their running sum.
import { shape } from "../dom.js";
import { cssColor } from "../pure/ink.js";
import { fixed, signed } from "../pure/numbers.js";
import { placesOf } from "../pure/pairs.js";

const LEFT = 44; // pixels for the lanes' names
const RIGHT = 8;
const LANE = 62; // pixels, of bars
const STRIP = 13; // pixels, of colours
const NARROWEST = 3; // pixels of a bar; colours take less

/**
 * The drawing of explainProduct's numbers in groupsOf's order: {svg, compact}. `picked` is the group that is
 * marked; `choose(group)` is called with one that is clicked, with null for the marked one and for none.
 */
export function barsOf(shown, { width: room, theme, picked, choose }) {
  const { groups, nPairs, q, k, products, sums, total, head } = shown;
  const width = Math.max(280, Math.min(900, room));
  const { places, unit, compact } = placesOf(groups, nPairs, width - LEFT - RIGHT, NARROWEST);
  for (const place of places) place.x += LEFT;
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
            fill: cssColor(vector[d], ink, theme),
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
  y = drawRunning(drawn, shown, places, y, width);
  drawn.push(...axisOf(shown, places, y, width));
  y += 30;

  const marked = picked !== null && picked < groups.length ? places[picked] : null;
  const marker = marked ? shape("rect", { class: "picked", x: marked.x - 1.5, y: 1, width: marked.width + 2, height: y - 30 }) : null;
  const svg = shape(
    "svg",
    {
      class: "row-bars",
      ...{ width, height: y, viewBox: `0 0 ${width} ${y}`, role: "img" },
      "aria-label": `q, k and q × k, ${head.size} numbers, and their sum up to ${fixed(total, 3)}; the strongest are in the table below`,
      click: (event) => {
        const found = groupAt(event, svg, places);
        choose(found === picked ? null : found);
      },
    },
    ...drawn,
    marker,
  );
  return { svg, compact };
}

/** The sum up to each group as steps; gives the y below. */
function drawRunning(drawn, { running, total }, places, y, width) {
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
function axisOf({ nPairs, groups }, places, y, width) {
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

/** The group at a pointer; null where there is none. */
function groupAt(event, svg, places) {
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
  const found = places.findIndex((place) => x >= place.x - 1 && x < place.x + place.width + 1);
  return found < 0 ? null : found;
}

/** A number in at most four characters or so. */
function short(number) {
  return Math.abs(number) >= 100 ? fixed(number, 0) : Math.abs(number) >= 10 ? fixed(number, 1) : fixed(number, 2);
}
