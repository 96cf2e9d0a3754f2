// The state of the page in its address, so that a link leads to a finding: #l=5&h=1&q=12.

const KEYS = {
  l: "layer",
  h: "head",
  q: "query",
  k: "key",
  t: "tab",
  m: "measure",
  c: "scale",
  s: "sink",
  d: "metric",
  n: "step",
  e: "edit",
};
const NUMBERS = new Set(["layer", "head", "query", "key", "step"]);

/** The hash of a state, without what is null. */
export function hashOf(state, keys = KEYS) {
  const pairs = Object.entries(keys).filter(([, name]) => state[name] !== null && state[name] !== undefined);
  return `#${pairs.map(([key, name]) => `${key}=${encodeURIComponent(state[name])}`).join("&")}`;
}

/** What a hash says of a state by the names of `keys`; anything unknown is left out. */
export function stateOf(hash, keys = KEYS, numbers = NUMBERS) {
  const found = {};
  for (const part of hash.replace(/^#/, "").split("&")) {
    const [key, value] = part.split("=");
    if (!Object.hasOwn(keys, key) || value === undefined) continue;
    const name = keys[key];
    let text;
    try {
      text = decodeURIComponent(value);
    } catch {
      continue;
    }
    if (!numbers.has(name)) found[name] = text;
    else if (/^[0-9]{1,6}$/.test(text)) found[name] = Number(text);
  }
  return found;
}
