// From a number to a colour: the palettes and scales of kvgen/render/ink.py.

const VIRIDIS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 74, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [109, 205, 89],
  [180, 222, 44],
  [253, 231, 37],
];
// Blue for negative numbers, orange for positive ones: told apart by colour-blind people, too.
const NEGATIVE = [70, 150, 255];
const POSITIVE = [255, 150, 40];
const ZERO = { dark: [24, 24, 28], light: [246, 246, 244] };
const DECADES = 5;

/** 0 for zero to 1 for `most` and more, negative for negative numbers. */
export function brightness(value, { scale, most }) {
  let part = most > 0 ? Math.min(Math.abs(value) / most, 1) : 0;
  if (scale === "sqrt") part = Math.sqrt(part);
  else if (scale === "log") part = part > 0 ? Math.max(0, 1 + Math.log10(part) / DECADES) : 0;
  return value < 0 ? -part : part;
}

/** The number that is drawn at a brightness of -1 to 1. */
export function valueAt(bright, { scale, most }) {
  let part = Math.abs(bright);
  if (scale === "sqrt") part *= part;
  else if (scale === "log") part = part > 0 ? 10 ** (DECADES * (part - 1)) : 0;
  return Math.sign(bright) * part * most;
}

/** Red, green and blue of a number. */
export function colorOf(value, ink, theme) {
  const bright = brightness(value, ink);
  if (!ink.signed) return between(VIRIDIS, Math.abs(bright));
  const far = bright < 0 ? NEGATIVE : POSITIVE;
  return ZERO[theme].map((zero, channel) => Math.round(zero + Math.abs(bright) * (far[channel] - zero)));
}

/** The same as CSS writes it. */
export function cssColor(value, ink, theme) {
  return `rgb(${colorOf(value, ink, theme).join(" ")})`;
}

/** Black or white, whichever is easier to read on a colour (WCAG's relative luminance). */
export function inkOn([red, green, blue]) {
  const linear = [red, green, blue].map((channel) => {
    const part = channel / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return luminance > 0.179 ? "black" : "white";
}

function between(stops, place) {
  const at = place * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((channel, i) => Math.round(channel + (at - low) * (stops[low + 1][i] - channel)));
}
