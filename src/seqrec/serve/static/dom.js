// Elements, icons and text. Whatever comes from the server becomes text nodes and attributes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element. Attributes that are null or false are left out; "onclick" and the like listen; "vars" are CSS properties. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

const PATHS = {
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13Zm5 11.5L20 20",
  close: "M6 6l12 12M18 6L6 18",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  plus: "M12 5v14M5 12h14",
  check: "M5 12.5l4.5 4.5L19 7.5",
  chevron: "M7 10l5 5 5-5",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM12 2v2.5M12 19.5V22M2 12h2.5M19.5 12H22M5 5l1.7 1.7M17.3 17.3L19 19M19 5l-1.7 1.7M6.7 17.3L5 19",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z",
};

/** A line icon. It is decoration: the button around it has the name. */
export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}

/** Text for screen readers only. */
export const hidden = (text) => h("span", { class: "hidden" }, text);

const WHOLE = new Intl.NumberFormat("en");
export const whole = (number) => WHOLE.format(number);
export const some = (number, one, more = `${one}s`) => `${whole(number)} ${number === 1 ? one : more}`;

/** A score: as many digits as can be read. */
export function score(number) {
  const size = Math.abs(number);
  const digits = Number.isInteger(number) && size >= 10 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
  const text = size.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return number < 0 ? `−${text}` : text;
}

/** The title of an item, or its id if it has none. */
export const nameOf = (item) => item.title || String(item.id);

/** A line of the server as a sentence. */
export function sentence(line) {
  const text = line.charAt(0).toUpperCase() + line.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** The element within this one that has the focus, or null. */
export const focusedIn = (element) => (element.contains(document.activeElement) ? document.activeElement : null);

/** Replace the children of an element, and give the focus back to the one with the same data-focus. */
export function redraw(element, ...children) {
  const focused = focusedIn(element)?.dataset.focus;
  element.replaceChildren(...children.flat(3).filter(Boolean));
  if (focused) focusOn(element, focused);
}

/** Focus the element with this data-focus; false if there is none. */
export function focusOn(element, key) {
  const found = [...element.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === key);
  found?.focus();
  return Boolean(found);
}

/** Tell screen readers. */
export function say(text) {
  document.getElementById("live").textContent = text;
}

/** An error, in one line where it belongs. */
export const problem = (error) => h("p", { class: "problem", role: "alert" }, sentence(error.message));

/** Grey lines while something loads. */
export const loading = (rows = 6) =>
  h("div", { class: "loading", role: "status" }, hidden("Loading"), Array.from({ length: rows }, () => h("span")));
