// The history: items in order, that can be removed and moved, with the keyboard too.

import { focusedIn, focusOn, h, icon, nameOf, say, whole } from "./dom.js";

/** Make the list. change(ids): the person changed it. open(item): similar items are wanted. */
export function historyList({ change, open }) {
  const element = h("ol", { class: "history", "aria-label": "History, oldest first" });
  let items = [];
  let focus = null; // what to focus after the next drawing

  function draw(given, { fixed, left }) {
    items = given;
    const focused = focus ?? focusedIn(element)?.dataset.focus;
    focus = null;
    element.replaceChildren(
      ...(left > 0 ? [h("li", { class: "history-more" }, `${whole(left)} earlier`)] : []),
      ...items.map((item, place) => row(item, place, fixed)));
    if (focused && !focusOn(element, focused) && !fixed) document.getElementById("find")?.focus();
    element.scrollTop = fixed ? element.scrollHeight : element.scrollTop;
  }

  function row(item, place, fixed) {
    const name = nameOf(item);
    const facts = [
      item.source === "event" ? h("span", { class: "mark mark-new" }, "event") : null,
      item.unknown || item.known === false ? h("span", { class: "mark mark-only" }, "not in the catalogue") : null,
      item.time ? h("time", { datetime: item.time }, item.time.slice(0, 10)) : null,
    ];
    const button = h("button", {
      type: "button", class: "history-title", "data-focus": `item ${place}`, onclick: () => open(item), onkeydown: (event) => !fixed && press(event, place),
      "aria-keyshortcuts": fixed ? null : "Alt+ArrowUp Alt+ArrowDown Delete", "aria-haspopup": "dialog",
    }, name);
    return h("li", { class: "history-row" }, h("span", { class: "rank", "aria-hidden": "true" }, place + 1),
      h("div", { class: "history-main" }, button, facts),
      fixed ? null : h("div", { class: "history-actions" },
        control("up", place, "up", `Move ${name} earlier`, place === 0, () => move(place, -1)),
        control("down", place, "down", `Move ${name} later`, place === items.length - 1, () => move(place, 1)),
        control("remove", place, "close", `Remove ${name}`, false, () => remove(place))));
  }

  function control(kind, place, image, label, disabled, act) {
    return h("button", { type: "button", class: `icon-button small ${kind}`, "data-focus": `${kind} ${place}`, "aria-label": label, title: label,
      "aria-disabled": disabled ? "true" : null, onclick: () => disabled || act() }, icon(image));
  }

  function move(place, step, from = step < 0 ? "up" : "down") {
    const to = place + step;
    if (to < 0 || to >= items.length) return;
    const ids = items.map((item) => String(item.id));
    [ids[place], ids[to]] = [ids[to], ids[place]];
    focus = `${from} ${to}`;
    say(`${nameOf(items[place])} moved to place ${to + 1} of ${items.length}`);
    change(ids);
  }

  function remove(place) {
    const ids = items.map((item) => String(item.id));
    ids.splice(place, 1);
    focus = `item ${Math.min(place, ids.length - 1)}`;
    say(`${nameOf(items[place])} removed`);
    change(ids);
  }

  function press(event, place) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step) {
      event.preventDefault();
      if (event.altKey) move(place, step, "item");
      else focusOn(element, `item ${place + step}`);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      remove(place);
    }
  }

  return { element, draw };
}
