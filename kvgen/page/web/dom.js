// Small helpers for elements. Text goes in as text, never as HTML: a token may be any text.

/** An element with attributes (a function is a listener, a boolean is present or not) and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (key.startsWith("aria-") && typeof value === "boolean") made.setAttribute(key, String(value));
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

/** The same of SVG. */
export function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Replace the children of an element. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
}

/** A labelled <select>. `options` are [value, words]. */
export function choice(label, options, value, onChange) {
  const select = element("select", { change: () => onChange(select.value) });
  for (const [name, words] of options) {
    select.append(element("option", { value: name, selected: name === value }, words));
  }
  return element("label", { class: "choice" }, `${label} `, select);
}

/** The choice of how colours grow with numbers. */
export function scaleChoice(store) {
  const scales = [
    ["sqrt", "√"],
    ["linear", "linear"],
    ["log", "log"],
  ];
  return choice("scale", scales, store.get().scale, (scale) => store.set({ scale }));
}

/** A canvas that is as sharp as the screen; `draw(context, width, height)` in CSS pixels. */
export function paint(canvas, width, height, draw) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.clearRect(0, 0, width, height);
  draw(context, width, height);
}

/** A property of the theme, as the style sheet has it. */
export function themeColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Say in the place of the page why it cannot be shown. */
export function fail(error) {
  const needs =
    typeof DecompressionStream === "undefined"
      ? "This browser cannot unpack the page: Chrome 80, Firefox 113 or Safari 16.4 can."
      : String(error);
  document.getElementById("main").textContent = needs;
}
