// Making elements. Text always goes in as text: nothing in this page is ever parsed as HTML.

/**
 * Makes an element. `on…` properties become listeners, `class` the class name, `true` an empty attribute; null and false are left out.
 * @param {string} name
 * @param {Record<string, unknown>} [properties]
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {HTMLElement}
 */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SHAPES = {
  fork: "M2 8h3c4 0 3-4.5 7-4.5M5 8c4 0 3 4.5 7 4.5M10.5 1.7l2 1.8-2 1.8M10.5 10.7l2 1.8-2 1.8",
  copy: "M6 6h7v7H6zM10 6V3H3v7h3",
  edit: "M3 13l1-3.5L11 2.5 13.5 5l-7 7z",
  left: "M10 3L5 8l5 5",
  right: "M6 3l5 5-5 5",
  arrow: "M2 8h11M9 4l4 4-4 4",
  tick: "M3 8.5L6.5 12 13 4.5",
  up: "M8 13V3M3.5 7.5L8 3l4.5 4.5",
  stop: "M4.5 4.5h7v7h-7z",
};

/**
 * A small line drawing in the colour of the text around it, hidden from screen readers.
 * @param {keyof typeof SHAPES} name
 */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 16 16");
  drawing.setAttribute("class", `icon icon-${name}`);
  drawing.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(space, "path");
  line.setAttribute("d", SHAPES[name]);
  drawing.append(line);
  return drawing;
}

/** Text that only screen readers meet. */
export const spoken = (text) => el("span", { class: "spoken" }, text);

/** Takes the element of that id: a missing one is a mistake in index.html, and is said so at once. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no element #${id}`);
  return found;
}
