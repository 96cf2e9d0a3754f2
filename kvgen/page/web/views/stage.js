// The tabs of the chosen head: map, arcs, row, lens, what-if.
import { element, fill } from "../dom.js";
import { mountArcs } from "./arcs.js";
import { mountLens } from "./lens.js";
import { mountMap } from "./map.js";
import { mountRow } from "./row.js";
import { mountWhatIf } from "./whatif.js";

const TABS = [
  ["map", "Map", mountMap],
  ["arcs", "Arcs", mountArcs],
  ["row", "Row", mountRow],
  ["lens", "Lens", mountLens],
  ["what-if", "What if", mountWhatIf],
];

export function mountStage(root, app) {
  const { recording, store } = app;
  const title = element("h2", { id: "head-title" });
  const buttons = TABS.map(([name, words], place) =>
    element(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        "aria-controls": `panel-${name}`,
        click: () => store.set({ tab: name }),
        keydown: (event) => {
          const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
          if (!by) return;
          const next = (place + by + TABS.length) % TABS.length;
          store.set({ tab: TABS[next][0] });
          buttons[next].focus();
        },
      },
      words,
    ),
  );
  const panels = TABS.map(([name]) =>
    element("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`, tabindex: 0 }),
  );
  fill(
    root,
    element("div", { class: "bar" }, title, element("div", { role: "tablist", "aria-label": "views of the head" }, ...buttons)),
    ...panels,
  );
  const views = TABS.map(([, , mount], place) => mount(panels[place], app));

  return (state, before) => {
    const column = app.column();
    const label = recording.facts.diagnostics.labels[app.row()][column];
    title.textContent = `Layer ${state.layer} head ${state.head} → kv head ${recording.kvHead(column)}${label ? ` · ${label}` : ""}`;
    TABS.forEach(([name], place) => {
      const chosen = name === state.tab;
      buttons[place].setAttribute("aria-selected", String(chosen));
      buttons[place].tabIndex = chosen ? 0 : -1;
      panels[place].hidden = !chosen;
      if (chosen) views[place](state, before.tab === name ? before : {});
    });
  };
}
