// A list of recommended items: scores, what changed, and why.

import { focusedIn, focusOn, h, hidden, icon, nameOf, score, some } from "./dom.js";

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/**
 * A list that moves its rows when it is drawn again.
 *
 * add(item): a row was chosen. open(item): similar items are wanted. explain(): promise of the reasons by item id.
 */
export function rankedList({ label, add, addLabel, open, explain }) {
  const element = h("ol", { class: "ranked", "aria-label": label });
  const opened = new Set();
  let rows = new Map();

  /** Draw items. marks: text and kind by id. */
  function draw(items, marks = new Map()) {
    const before = new Map([...rows].map(([id, row]) => [id, row.getBoundingClientRect().top]));
    const active = focusedIn(element);
    const focused = active?.dataset.focus;
    const held = [...element.children].findIndex((one) => one.contains(active));
    const first = element.childElementCount === 0;
    rows = new Map();
    const scores = items.map((item) => item.score);
    const top = Math.max(...scores);
    const from = Math.min(0, ...scores); // bars begin at 0, so that close scores look close
    items.forEach((item, place) => {
      const share = top > from ? (item.score - from) / (top - from) : 1;
      rows.set(String(item.id), row(item, place, 0.06 + 0.94 * share, marks.get(String(item.id))));
    });
    element.replaceChildren(...rows.values());
    if (focused && !focusOn(element, focused)) { // its item left the list: the same button of the row that took its place
      const id = [...rows.keys()][Math.min(held, rows.size - 1)];
      if (id !== undefined) focusOn(element, `${focused.split(" ")[0]} ${id}`);
    }
    if (!first && !still()) move(before);
    if (opened.size) fill();
  }

  function move(before) {
    for (const [id, one] of rows) {
      const now = one.getBoundingClientRect().top;
      const steps = before.has(id)
        ? [{ transform: `translateY(${before.get(id) - now}px)` }, { transform: "none" }]
        : [{ opacity: 0, transform: "translateX(12px)" }, { opacity: 1, transform: "none" }];
      one.animate(steps, { duration: 280, easing: "cubic-bezier(.2, .7, .2, 1)" });
    }
  }

  function row(item, place, share, mark) {
    const id = String(item.id);
    const name = nameOf(item);
    const panel = h("div", { class: "why", id: `why-${label.replace(/\W/g, "-")}-${place}`, hidden: !opened.has(id) });
    const why = explain && h("button", {
      type: "button", class: "text-button", "aria-expanded": String(opened.has(id)), "aria-controls": panel.id,
      "data-focus": `why ${id}`, onclick: () => toggle(id, why, panel),
    }, "Why", hidden(` is ${name} recommended?`), icon("chevron"));
    return h("li", { class: "ranked-row", "data-id": id },
      h("span", { class: "rank", "aria-hidden": "true" }, place + 1),
      h("div", { class: "ranked-main" },
        h("button", { type: "button", class: "title-button", title: addLabel(name), "data-focus": `add ${id}`, onclick: () => add(item) },
          h("span", { class: "title" }, name), icon("plus"), hidden(`, ${addLabel("").trim()}`)),
        h("div", { class: "ranked-line" }, h("span", { class: "meter", vars: { "--share": share }, "aria-hidden": "true" }),
          mark && h("span", { class: `mark mark-${mark.kind}` }, mark.text, mark.more && hidden(mark.more)))),
      h("span", { class: "score" }, hidden("score "), score(item.score)),
      h("div", { class: "row-actions" }, why,
        h("button", { type: "button", class: "text-button", "data-focus": `similar ${id}`, onclick: () => open(item) },
          "Similar", hidden(` to ${name}`))),
      panel);
  }

  function toggle(id, button, panel) {
    const opens = !opened.has(id);
    if (opens) opened.add(id);
    else opened.delete(id);
    button.setAttribute("aria-expanded", String(opens));
    panel.hidden = !opens;
    if (opens) fill();
  }

  async function fill() {
    const shown = rows;
    const panels = [...opened].filter((id) => rows.has(id)).map((id) => [id, rows.get(id).querySelector(".why")]);
    for (const [, panel] of panels) if (!panel.hasChildNodes()) panel.append(h("p", { class: "quiet" }, "Computing …"));
    let reasons;
    try {
      reasons = await explain();
    } catch (error) {
      if (error.name !== "AbortError" && shown === rows) {
        for (const [, panel] of panels) panel.replaceChildren(h("p", { class: "problem", role: "alert" }, error.message));
      }
      return;
    }
    if (shown === rows) for (const [id, panel] of panels) panel.replaceChildren(...reasonsOf(reasons.get(id) ?? []));
  }

  /** Forget which rows are open, as the list is of something else. */
  const shut = () => opened.clear();
  return { element, draw, shut };
}

const KINDS = [
  { key: "influence", name: "influence", help: "how much the model's score falls without it" },
  { key: "transitions", name: "transitions", help: "part of the score counted from the log" },
  { key: "attention", name: "attention", help: "share of the model's attention" },
];

const NOTHING = 0.005; // less is shown as 0.00

function reasonsOf(reasons) {
  const kinds = KINDS.filter(({ key }) => reasons.some((one) => one[key] !== null && one[key] !== undefined && one[key] !== 0));
  if (!reasons.length) return [h("p", { class: "quiet" }, "No item of a history was used: these are the most popular items.")];
  if (!kinds.length) {
    const text = reasons.length === 1 ? `It follows from the only item of the history, ${nameOf(reasons[0])}.`
      : "No single item stands out: the score hardly changes when one of them is left out.";
    return [h("p", { class: "quiet" }, text)];
  }
  const parts = reasons.flatMap((one) => [one.influence ?? 0, one.transitions ?? 0].map(Math.abs));
  const most = Math.max(...parts) || 1;
  const against = reasons.some((one) => one.influence <= -NOTHING);
  const rows = reasons.filter((one) => kinds.some(({ key }) => one[key])).map((one) => h("li", {},
    h("span", { class: "reason-title" }, nameOf(one)),
    h("span", { class: "reason-bars" }, kinds.map(({ key, name }) => bar(key, name, one[key] ?? 0, key === "attention" ? 1 : most)))));
  return [
    h("p", { class: "legend" }, kinds.map(({ key, name, help }) =>
      h("span", { class: `key key-${key}` }, h("b", {}, name), ` ${help}`)),
    against && h("span", { class: "key key-less" }, h("b", {}, "outlined"), " speaks against it")),
    h("ul", { class: "reasons" }, rows),
  ];
}

function bar(kind, name, value, most) {
  const sign = Math.abs(value) < NOTHING ? "" : value < 0 ? "−" : "+";
  const text = kind === "attention" ? `${Math.round(100 * value)} %` : `${sign}${Math.abs(value).toFixed(2)}`;
  return h("span", { class: `bar bar-${kind}${sign === "−" ? " bar-less" : ""}` },
    h("span", { class: "bar-track", "aria-hidden": "true" },
      h("span", { class: "bar-fill", vars: { "--share": Math.min(1, Math.abs(value) / most) } })),
    h("span", { class: "bar-value" }, hidden(`${name} `), text));
}

/** How two lists differ: a mark for each item of the first. */
export function differences(items, others, otherName) {
  const places = new Map(others.map((item, place) => [String(item.id), place]));
  const marks = new Map();
  items.forEach((item, place) => {
    const other = places.get(String(item.id));
    if (other === undefined) {
      marks.set(String(item.id), { kind: "only", text: "only here", more: `, not in ${otherName}` });
    } else if (other !== place) {
      const up = other > place;
      const steps = Math.abs(other - place);
      marks.set(String(item.id), { kind: up ? "up" : "down", text: `${up ? "▲" : "▼"} ${steps}`,
        more: `, ${some(steps, "place")} ${up ? "higher" : "lower"} than in ${otherName}` });
    }
  });
  return marks;
}

/** The items that a list did not have before. */
export function news(items, before) {
  const known = new Set(before.map((item) => String(item.id)));
  return new Map(items.filter((item) => !known.has(String(item.id))).map((item) => [String(item.id), { kind: "new", text: "new" }]));
}
