// Numbers from left to right as bars; a number of 0 is a dot, so that colour says nothing alone.
import { element, paint, themeColor } from "../../dom.js";
import { partsOf } from "../../pure/report.js";

const HEIGHT = 34;
const LEAST_BAR = 3; // pixels that a number has at least
const WIDEST_BAR = 26;
const DOTS_APART = 5; // pixels; nearer ones would look like a line

/** A line with a name, a strip and words: {root, words, canvas, draw(numbers, heightOf, options)}. */
export function stripLine(name, words, { wide = false } = {}) {
  const canvas = element("canvas", { class: "strip", role: "img", "aria-label": `${name}: ${words}` });
  const said = element("p", { class: "words" }, words);
  const box = element("div", { class: "strip-box" }, canvas);
  const root = element(
    "div",
    { class: wide ? "strip-line wide" : "strip-line" },
    element("span", { class: "strip-name" }, name),
    box,
    said,
  );
  return {
    root,
    canvas,
    words(text) {
      said.textContent = text;
      canvas.setAttribute("aria-label", `${name}: ${text}`);
    },
    draw: (numbers, heightOf, options) => drawStrip(canvas, box.clientWidth, numbers, heightOf, options),
  };
}

/**
 * Draw bars as high as the greatest of the numbers that share one; `chosen` is a place in the list, `nothing` what a strip of
 * dots says. There is room for `columns` bars at least, so that strips of several lengths stand in line.
 */
export function drawStrip(canvas, width, numbers, heightOf, { color = "--on", chosen = null, nothing = null, columns = 1 } = {}) {
  paint(canvas, width, HEIGHT, (context) => {
    const parts = partsOf(numbers.length, width / LEAST_BAR);
    const room = Math.min(width / Math.max(parts.length, columns), WIDEST_BAR);
    const gap = room > 5 ? 1 : 0;
    const every = Math.ceil(DOTS_APART / room);
    context.fillStyle = themeColor("--line");
    context.fillRect(0, HEIGHT - 1, room * parts.length, 1);
    parts.forEach(([from, to], place) => {
      const x = place * room;
      const here = chosen !== null && chosen >= from && chosen < to;
      if (here) {
        context.fillStyle = themeColor("--mark");
        context.fillRect(x - 1, 0, Math.max(room, 2) + 2, HEIGHT);
      }
      const greatest = Math.max(...numbers.slice(from, to));
      if (greatest === 0) {
        if (place % every && !here) return;
        context.fillStyle = themeColor(here ? "--text" : "--quiet");
        context.beginPath();
        context.arc(x + room / 2, HEIGHT - 7, 1.2, 0, 2 * Math.PI);
        context.fill();
        return;
      }
      const height = Math.max(2, heightOf(greatest) * (HEIGHT - 3));
      context.fillStyle = themeColor(here ? "--text" : color);
      context.fillRect(x, HEIGHT - 1 - height, room - gap, height);
    });
    if (nothing !== null && numbers.every((number) => number === 0)) {
      context.fillStyle = themeColor("--quiet");
      context.font = "11px system-ui, sans-serif";
      context.fillText(nothing, 1, 14);
    }
  });
}
