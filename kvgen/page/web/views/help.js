// The keys, in a dialog.
import { element, fill } from "../dom.js";
import { KEYS } from "../keys.js";

const WORDS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc" };

export function mountHelp(root, app) {
  const rows = (app.keys ?? KEYS).map(([keys, words]) =>
    element("tr", {}, element("td", {}, ...keys.map((key) => element("kbd", {}, WORDS[key] ?? key))), element("td", {}, words)),
  );
  fill(
    root,
    element("h2", {}, "Keyboard"),
    element("table", {}, element("tbody", {}, ...rows)),
    element("form", { method: "dialog" }, element("button", {}, "Close")),
  );
  return () => {};
}
