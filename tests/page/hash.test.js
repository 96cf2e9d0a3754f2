import assert from "node:assert/strict";
import test from "node:test";
import { hashOf, stateOf } from "../../kvgen/page/web/pure/hash.js";

const STATE = {
  layer: 5,
  head: 1,
  query: 12,
  key: 3,
  tab: "what-if",
  measure: "cos",
  scale: "log",
  sink: "drop",
  metric: "sink-later",
  step: 0,
};

test("an address gives the state that it was made of", () => {
  assert.deepEqual(stateOf(hashOf(STATE)), STATE);
  assert.deepEqual(stateOf(hashOf({ ...STATE, tab: "a&b=c #%é" })).tab, "a&b=c #%é");
});

test("no key and the theme are not in the address", () => {
  const found = stateOf(hashOf({ ...STATE, key: null, theme: "dark", find: "cat" }));
  assert.deepEqual(
    Object.keys(found).sort(),
    Object.keys(STATE)
      .filter((name) => name !== "key")
      .sort(),
  );
});

test("garbage says nothing", () => {
  for (const hash of [
    "",
    "#",
    "#l",
    "#l=",
    "#l=-1",
    "#l=1e3",
    "#l=0x1",
    "#l=1234567",
    "#zz=1",
    "#__proto__=1",
    "#constructor=1",
    "#t=%E0%A4%A",
    "#&&=&==",
  ]) {
    assert.deepEqual(stateOf(hash), {}, hash);
  }
});

test("what is known is taken from between garbage", () => {
  assert.deepEqual(stateOf("#??&l=2&q=x&h=3"), { layer: 2, head: 3 });
});
