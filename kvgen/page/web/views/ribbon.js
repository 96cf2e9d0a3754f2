// The text, each token coloured by the weight that the pinned query gives it.
import { element, fill } from "../dom.js";
import { colorOf, inkOn } from "../pure/ink.js";

const INK = { scale: "sqrt", most: 1, signed: false };

export function mountRibbon(root, app) {
  const { recording, store } = app;
  const { tokens, nPrompt } = recording.facts;
  const find = element("input", {
    id: "find",
    type: "search",
    placeholder: "find a token (/)",
    "aria-label": "find a token",
    input: () => store.set({ find: find.value }),
  });
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const at = nextMatch(tokens, find.value, store.get().query);
    if (at !== null) store.set({ query: at, key: null });
  });
  const buttons = tokens.map((token, place) =>
    element("button", { type: "button", class: "token", click: () => store.set({ query: place, key: null }) }, token),
  );
  const text = element("div", { class: "text" }, ...buttons);
  fill(root, element("div", { class: "bar" }, element("h2", {}, "Text"), find), text);

  return (state) => {
    const weights = recording.row(app.row(), app.column(), state.query, "weights");
    const { bin } = recording.facts.layers[app.row()];
    const wanted = state.find.toLowerCase();
    buttons.forEach((button, place) => {
      const at = Math.floor(place / bin);
      const weight = place <= state.query && at < weights.length ? weights[at] : 0;
      const color = colorOf(Number.isNaN(weight) ? 0 : weight, INK, state.theme);
      const read = weight >= 0.005;
      button.style.background = read ? `rgb(${color.join(" ")})` : "";
      button.style.color = read ? inkOn(color) : "";
      button.title = `${place} ${tokens[place]} · weight ${(weight || 0).toFixed(3)}`;
      button.className = [
        "token",
        place === state.query && "pinned",
        place === state.key && "key",
        place > state.query && "unseen",
        place >= nPrompt && "decoded",
        wanted && tokens[place].toLowerCase().includes(wanted) && "found",
      ]
        .filter(Boolean)
        .join(" ");
      button.setAttribute("aria-pressed", String(place === state.query));
    });
  };
}

/** The next token behind a place, around the end, that holds a text; null without any. */
export function nextMatch(tokens, wanted, place) {
  if (!wanted) return null;
  for (let step = 1; step <= tokens.length; step++) {
    const at = (place + step) % tokens.length;
    if (tokens[at].toLowerCase().includes(wanted.toLowerCase())) return at;
  }
  return null;
}
