// Sums of dot products over the decode steps, with the cache and without it: two lines on a logarithmic axis.
import { element, fill } from "../dom.js";
import { logPart } from "../pure/cache.js";
import { grouped } from "../pure/numbers.js";

const WIDTH = 400;
const HEIGHT = 168;
const PLOT = { left: 46, right: 268, top: 10, bottom: 138 };
const APART = 26; // pixels between the names of the lines

/** An element of a drawing, with attributes and children. */
export function svgElement(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/** Draw the sums up to a step. `sums` holds those of all steps, so that the axes stay. */
export function drawSums(figure, { cached, uncached }, step) {
  const steps = cached.length;
  const low = Math.floor(Math.log10(cached[0]));
  const high = Math.max(low + 1, Math.ceil(Math.log10(uncached[steps - 1])));
  const x = (n) => (steps === 1 ? (PLOT.left + PLOT.right) / 2 : PLOT.left + ((n - 1) / (steps - 1)) * (PLOT.right - PLOT.left));
  const y = (sum) => PLOT.bottom - logPart(sum, low, high) * (PLOT.bottom - PLOT.top);
  const words = (x1, y1, anchor, text, name = "kv-axis") => svgElement("text", { x: x1, y: y1, "text-anchor": anchor, class: name }, text);
  const parts = [];
  for (let power = low; power <= high; power++) {
    parts.push(svgElement("line", { x1: PLOT.left, x2: PLOT.right, y1: y(10 ** power), y2: y(10 ** power), class: "kv-grid" }));
    parts.push(words(PLOT.left - 6, y(10 ** power) + 4, "end", short(10 ** power)));
  }
  parts.push(words(x(1), PLOT.bottom + 16, "middle", "1"));
  if (steps > 1) parts.push(words(x(steps), PLOT.bottom + 16, "middle", String(steps)));
  parts.push(words((PLOT.left + PLOT.right) / 2, PLOT.bottom + 28, "middle", "decode step"));
  if (step === 0) {
    parts.push(words((PLOT.left + PLOT.right) / 2, (PLOT.top + PLOT.bottom) / 2 + 4, "middle", "no decode step yet"));
  } else {
    const ends = [y(uncached[step - 1]), y(cached[step - 1])];
    const middle = (ends[0] + ends[1]) / 2;
    const apart = Math.max(APART, ends[1] - ends[0]);
    const names = [
      [uncached, "kv-without", "without the cache", Math.max(PLOT.top + 6, middle - apart / 2)],
      [cached, "kv-with", "with the cache", middle + apart / 2],
    ];
    for (const [sums, name, title, at] of names) {
      const points = sums.slice(0, step).map((sum, i) => `${x(i + 1).toFixed(1)},${y(sum).toFixed(1)}`);
      parts.push(svgElement("polyline", { points: points.join(" "), class: name }));
      parts.push(svgElement("circle", { cx: x(step), cy: y(sums[step - 1]), r: 3.5, class: name }));
      parts.push(words(x(step) + 9, at + 11, "start", title));
      parts.push(words(x(step) + 9, at - 1, "start", grouped(sums[step - 1]), "kv-sum"));
    }
  }
  const both = step && `${grouped(cached[step - 1])} with the cache, ${grouped(uncached[step - 1])} without it`;
  const told = step === 0 ? "no decode step yet" : `up to decode step ${step}: ${both}`;
  const label = `Sum of dot products q·k for each head, logarithmic; ${told}`;
  const drawing = svgElement("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...parts);
  fill(figure, element("figcaption", {}, "Sum of q·k over the decode steps, each head, logarithmic"), drawing);
}

function short(number) {
  return number >= 1e9 ? `${number / 1e9}G` : number >= 1e6 ? `${number / 1e6}M` : number >= 1e3 ? `${number / 1e3}k` : String(number);
}
