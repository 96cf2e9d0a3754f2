// Beside the title of both pages: dark or light, and the keys.
import { element } from "../dom.js";

export function buttons(app) {
  const theme = element(
    "button",
    {
      type: "button",
      title: "dark or light (t)",
      click: () => app.store.set({ theme: app.store.get().theme === "dark" ? "light" : "dark" }),
    },
    "◐ theme",
  );
  const help = element(
    "button",
    { type: "button", title: "keyboard (?)", click: () => document.getElementById("help").showModal() },
    "? keys",
  );
  return element("div", { class: "buttons" }, theme, help);
}
