import assert from "node:assert/strict";
import test from "node:test";
import { brightness, colorOf, cssColor, inkOn, valueAt } from "../../kvgen/page/web/pure/ink.js";
import { close } from "./close.js";

// What kvgen/render/ink.py gives: value, then red, green and blue. tests/test_page_sources.py compares many more.
const TERMINAL = [
  [
    { scale: "sqrt", most: 1, signed: false },
    [
      [0, 68, 1, 84],
      [0.003, 70, 20, 102],
      [0.3, 31, 156, 137],
      [0.77, 173, 220, 49],
      [5, 253, 231, 37],
    ],
  ],
  [
    { scale: "linear", most: 1, signed: false },
    [
      [0.003, 68, 2, 85],
      [0.02, 69, 8, 90],
      [0.31, 52, 98, 141],
      [1, 253, 231, 37],
    ],
  ],
  [
    { scale: "log", most: 1, signed: false },
    [
      [0, 68, 1, 84],
      [0.003, 35, 143, 140],
      [0.02, 52, 182, 122],
      [0.77, 238, 229, 38],
    ],
  ],
  [
    { scale: "sqrt", most: 4, signed: true },
    [
      [-9, 70, 150, 255],
      [-1.3, 50, 96, 157],
      [-0.1, 31, 44, 64],
      [0, 24, 24, 28],
      [3, 224, 133, 38],
    ],
  ],
];

test("colours are those of the terminal", () => {
  for (const [ink, rows] of TERMINAL) {
    for (const [value, ...color] of rows) assert.deepEqual(colorOf(value, ink, "dark"), color, `${ink.scale} ${value}`);
  }
});

test("a brightness gives the number that it was made of", () => {
  for (const scale of ["sqrt", "linear", "log"]) {
    for (const value of [-2, -0.3, 0.01, 1.7]) close([valueAt(brightness(value, { scale, most: 2 }), { scale, most: 2 })], [value]);
  }
});

test("zero is dark in the dark theme and light in the light one", () => {
  const ink = { scale: "linear", most: 1, signed: true };
  assert.equal(cssColor(0, ink, "dark"), "rgb(24 24 28)");
  assert.equal(cssColor(0, ink, "light"), "rgb(246 246 244)");
  assert.deepEqual(colorOf(1, ink, "light"), colorOf(1, ink, "dark"));
});

test("where nothing is drawn at full brightness all is dark", () => {
  assert.equal(brightness(3, { scale: "sqrt", most: 0 }), 0);
});

test("text on a colour has a contrast of 4.5 at least", () => {
  const luminance = (color) => {
    const [red, green, blue] = color.map((channel) => (channel <= 10 ? channel / 255 / 12.92 : ((channel / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  for (let value = 0; value <= 1; value += 1 / 64) {
    const color = colorOf(value, { scale: "linear", most: 1, signed: false }, "dark");
    const contrast = inkOn(color) === "black" ? (luminance(color) + 0.05) / 0.05 : 1.05 / (luminance(color) + 0.05);
    assert.ok(contrast >= 4.5, `${color}: ${contrast}`);
  }
});
