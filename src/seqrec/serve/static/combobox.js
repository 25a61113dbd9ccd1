// A text field that proposes options while one types: the ARIA combobox pattern with a listbox.

import { latest } from "./api.js";
import { h, hidden, icon } from "./dom.js";

const WAIT = 150; // milliseconds after a key

/**
 * Make a combobox.
 *
 * name: prefix of the ids. label, placeholder: text. find(query, signal): promise of options, each {text, detail, value}.
 * choose(value): called with the chosen one. none: text if nothing is found.
 */
export function combobox({ name, label, placeholder, find, choose, none }) {
  const next = latest();
  let options = [];
  let active = -1;
  let timer = 0;
  let waiting = false;
  let wanted = false; // Enter was pressed before the options came

  const list = h("ul", { role: "listbox", id: `${name}-list`, "aria-label": label, class: "options", hidden: true });
  const status = h("p", { class: "options none", role: "status", hidden: true });
  const input = h("input", {
    type: "text", id: name, role: "combobox", autocomplete: "off", spellcheck: "false", placeholder, maxlength: 200,
    "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": `${name}-list`, "data-focus": name,
    oninput: () => later(WAIT, true), onfocus: () => later(0), onclick: () => list.hidden && later(0), onblur: close, onkeydown: press,
  });
  const field = h("div", { class: "combobox" }, h("label", { for: name }, label),
    h("div", { class: "combobox-field" }, icon("search"), input, list, status));

  function later(wait, typed = false) {
    clearTimeout(timer);
    if (typed) waiting = true;
    timer = setTimeout(show, wait);
  }

  function close() {
    clearTimeout(timer);
    next(); // what is asked for is no longer wanted
    wanted = waiting = false;
    list.hidden = status.hidden = true;
    options = [];
    mark(-1);
    input.setAttribute("aria-expanded", "false");
  }

  async function show() {
    const query = input.value.trim();
    waiting = true;
    try {
      options = await find(query, next());
    } catch (error) {
      if (error.name === "AbortError") return;
      waiting = false;
      close();
      say(`${error.message}.`);
      return;
    }
    waiting = false;
    if (document.activeElement !== input) return;
    if (wanted && query && options.length) {
      take(0);
      return;
    }
    list.replaceChildren(...options.map(row));
    list.hidden = options.length === 0;
    list.scrollTop = 0;
    input.setAttribute("aria-expanded", String(options.length > 0));
    mark(query && options.length ? 0 : -1);
    if (options.length) status.hidden = true;
    else say(none);
  }

  function say(text) {
    status.textContent = text;
    status.hidden = false;
  }

  function row(option, place) {
    return h("li", {
      role: "option", id: `${name}-option-${place}`, "aria-selected": "false",
      onpointerdown: (event) => event.preventDefault(), onclick: () => take(place),
      onpointermove: () => place !== active && mark(place),
    }, h("span", { class: "option-text" }, option.text),
    option.detail ? [hidden(", "), h("span", { class: "option-detail" }, option.detail)] : null);
  }

  function mark(place) {
    list.children[active]?.setAttribute("aria-selected", "false");
    active = place;
    const marked = list.children[active];
    marked?.setAttribute("aria-selected", "true");
    marked?.scrollIntoView({ block: "nearest" });
    if (marked) input.setAttribute("aria-activedescendant", marked.id);
    else input.removeAttribute("aria-activedescendant");
  }

  function take(place) {
    const option = options[place];
    if (!option) return;
    input.value = "";
    close();
    choose(option.value);
  }

  function press(event) {
    if (event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (list.hidden) show();
      else mark((active + step + (active < 0 && step < 0 ? 1 : 0) + options.length) % options.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (waiting) wanted = true;
      else if (active >= 0) take(active);
    } else if (event.key === "Escape") {
      if (list.hidden) input.value = "";
      close();
    }
  }

  return { field, input };
}
