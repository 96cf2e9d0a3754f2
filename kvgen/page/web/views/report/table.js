// A table out of the rows that the terminal prints: {headings, rows, title}.
import { element } from "../../dom.js";

/** The title, and the table in a box that scrolls by itself. `keys` are columns of words; `onRow(place)` makes rows clickable. */
export function tableOf({ headings, rows, title }, { keys, label, onRow } = {}) {
  const names = Object.keys(headings);
  const body = rows.map((row, place) =>
    element(
      "tr",
      onRow ? { click: () => onRow(place) } : {},
      ...names.map((name, column) =>
        element(
          column === 0 ? "th" : "td",
          { scope: column === 0 ? "row" : null, class: keys?.includes(name) ? "left" : null },
          row[name] ?? "",
        ),
      ),
    ),
  );
  const heading = element(
    "tr",
    {},
    ...names.map((name) => element("th", { scope: "col", class: keys?.includes(name) ? "left" : null }, headings[name])),
  );
  const table = element(
    "table",
    { class: onRow ? "numbers" : "numbers still" },
    element("thead", {}, heading),
    element("tbody", {}, ...body),
  );
  const box = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label ?? title }, table);
  return element("div", { class: "titled" }, title ? element("p", { class: "hint" }, title) : null, box);
}
