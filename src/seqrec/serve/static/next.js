// The view that recommends: a history, what comes next, and why; live sessions; two runs side by side.

import { call, itemOf, latest, remember } from "./api.js";
import { combobox } from "./combobox.js";
import { h, hidden, icon, loading, nameOf, problem, redraw, say, sentence, some, whole } from "./dom.js";
import { historyList } from "./history.js";
import { differences, news, rankedList } from "./list.js";
import { current, go, link } from "./state.js";

const SIZES = [5, 10, 20, 50];
const MOST = 1000; // items in a history

/** What the address asks for. */
export function asked(params, cards) {
  const names = cards.map((card) => card.run);
  const pick = (name) => (names.includes(params.get(name)) ? params.get(name) : null);
  const run = pick("run") ?? names[0];
  const size = Number(params.get("k"));
  return {
    history: params.getAll("h").slice(0, MOST),
    user: params.get("user")?.slice(0, 200) || null,
    k: Number.isInteger(size) && size >= 1 && size <= MOST ? size : 10,
    category: params.get("category") || null,
    seen: { 0: false, 1: true }[params.get("seen")] ?? null,
    run,
    other: pick("with") === run ? null : pick("with"),
  };
}

/** Make the view. cards: the runs of the server. open(item): show similar items. */
export function nextView({ cards, open }) {
  const next = latest();
  let state = null;
  let lists = [];
  let fresh = 0; // when the event was sent that was just recorded, in milliseconds; 0 for none

  const search = combobox({
    name: "find", label: "Find an item", placeholder: cards[0].has_titles ? "Title or id" : "Id", none: "No item has all of these words.",
    find: async (q, signal) => {
      const { items } = await call("/v1/items", { query: { q, k: 12, run: state.run }, signal });
      remember(state.run, items);
      return items.map((item) => ({ text: nameOf(item), detail: detail(item), value: item }));
    },
    choose: (item) => add(item),
  });
  const history = historyList({ change: (ids) => go({ h: ids }), open });
  const head = h("div", { class: "card-head" });
  const starters = h("div", { class: "starters" });
  const filters = h("div", { class: "filters" });
  const session = h("div", { class: "session" });
  const outcome = h("div", { class: "outcome" });
  const columns = h("div", { class: "columns" });
  const element = h("div", { class: "view next" },
    h("div", { class: "intro" }, h("h1", {}, "What comes next?"),
      h("p", {}, "Put a few items into a history. The recommendations follow at once.")),
    h("section", { class: "card past", "aria-label": "History" }, search.field, head, history.element, starters),
    h("section", { class: "results", "aria-label": "Recommendations" }, outcome, columns),
    h("section", { class: "side", "aria-label": "Options" }, h("div", { class: "card" }, filters), h("div", { class: "card" }, session)));

  function detail(item) {
    return [...item.categories.slice(0, 2), some(item.interactions, "interaction")].join(" · ");
  }

  async function add(item) {
    remember(state.run, [item]);
    if (!state.user) {
      go({ h: [...state.history, String(item.id)].slice(-MOST) });
      return;
    }
    const sent = performance.now();
    try {
      await call("/v1/events", { body: { user: state.user, item: String(item.id), event_id: uniqueId() } });
      fresh = sent;
      await update(current().params);
    } catch (error) {
      outcome.replaceChildren(problem(error));
    }
  }

  /** Show what the address asks for. */
  async function update(params) {
    const signal = next();
    const before = state;
    state = asked(params, cards);
    if (!before || before.run !== state.run || before.other !== state.other) columns.replaceChildren();
    drawFilters();
    drawSession();
    if (!lists.length || !columns.hasChildNodes()) makeColumns();
    columns.setAttribute("aria-busy", "true");
    try {
      await Promise.all([drawHistory(signal), recommend(signal)]);
    } catch (error) {
      if (error.name === "AbortError") return;
      outcome.replaceChildren(problem(error));
      lists.forEach((list) => list.wait.remove());
    }
    fresh = 0;
    columns.removeAttribute("aria-busy");
  }

  async function drawHistory(signal) {
    let items;
    if (state.user) {
      const found = await call("/v1/history", { query: { user: state.user, k: 100, run: state.run }, signal });
      items = found.items;
      remember(state.run, items.filter((item) => item.known));
      history.draw(items, { fixed: true, left: found.total - items.length });
    } else {
      items = await Promise.all(state.history.map((id) => itemOf(state.run, id, signal)));
      signal.throwIfAborted();
      history.draw(items, { fixed: false, left: 0 });
    }
    redraw(head, h("h2", {}, state.user ? `History of ${state.user}` : "History"),
      items.length ? h("span", { class: "count" }, some(items.length, "item")) : null,
      items.length && !state.user
        ? h("button", { type: "button", class: "text-button", "data-focus": "clear", onclick: () => clear() }, "Clear", hidden(" the history"))
        : null);
    await drawStarters(items.length === 0, signal);
  }

  function clear() {
    go({ h: [] });
    search.input.focus();
  }

  async function drawStarters(wanted, signal) {
    if (!wanted) {
      starters.replaceChildren();
      return;
    }
    const { items } = await call("/v1/items", { query: { k: 6, category: state.category, run: state.run }, signal });
    redraw(starters, h("p", { class: "quiet" }, "Empty. Search above, or start with a popular item:"),
      h("ul", { class: "chips" }, items.map((item) => h("li", {}, h("button", {
        type: "button", class: "chip", "data-focus": `start ${item.id}`, onclick: () => add(item) }, icon("plus"), nameOf(item))))));
  }

  function makeColumns() {
    const names = state.other ? [state.run, state.other] : [state.run];
    lists = names.map((run) => {
      const column = { run, items: [], reasons: null, wait: loading(8) };
      column.list = rankedList({
        label: `Recommendations of ${run}`, add, open,
        addLabel: (name) => (state.user ? `Record ${name} as an event` : `Add ${name} to the history`),
        explain: () => (column.reasons ??= explain(run).catch((error) => {
          column.reasons = null;
          throw error;
        })),
      });
      const card = cards.find((one) => one.run === run);
      column.used = h("div", { class: "used" });
      column.element = h("div", { class: "column card" },
        h("div", { class: "card-head" }, h("h2", {}, names.length > 1 ? run : "Recommended next"), names.length > 1 && card.model !== run ? h("span", { class: "count" }, card.model) : ""),
        column.used, column.wait, column.list.element);
      return column;
    });
    columns.classList.toggle("two", names.length > 1);
    columns.replaceChildren(...lists.map((column) => column.element));
  }

  function request(run, extra = {}) {
    const body = { k: state.k, run, ...extra };
    if (state.user) body.user = state.user;
    else body.history = state.history;
    if (state.category) body.category = state.category;
    if (state.seen !== null) body.keep_seen = state.seen;
    return body;
  }

  async function explain(run) {
    const answer = await call("/v1/recommend", { body: request(run, { explain: true }) });
    return new Map(answer.items.map((item) => [String(item.id), item.why ?? []]));
  }

  async function recommend(signal) {
    const answers = await Promise.all(lists.map((column) => call("/v1/recommend", { body: request(column.run), signal })));
    const recorded = fresh;
    answers.forEach((answer, place) => {
      const column = lists[place];
      const former = column.items;
      column.items = answer.items;
      column.reasons = null;
      column.wait.remove();
      remember(column.run, answer.items);
      let marks = new Map();
      if (answers.length > 1) marks = differences(answer.items, answers[1 - place].items, lists[1 - place].run);
      else if (recorded) marks = news(answer.items, former);
      column.list.draw(answer.items, marks);
      redraw(column.used, usedLines(answer));
      column.changed = news(answer.items, former).size;
    });
    outcome.replaceChildren(...summary(answers, recorded));
  }

  function summary(answers, recorded) {
    const lines = [];
    if (recorded) {
      const changed = Math.max(...lists.map((column) => column.changed));
      const took = whole(Math.max(1, Math.round(performance.now() - recorded)));
      lines.push(`Recorded and ranked again in ${took} ms, without training. ${changed ? `${some(changed, "item")} of the list ${changed === 1 ? "is" : "are"} new` : "The list holds the same items"}.`);
    }
    if (answers.length > 1) {
      const ids = new Set(answers[0].items.map((item) => String(item.id)));
      const both = answers[1].items.filter((item) => ids.has(String(item.id))).length;
      lines.push(`${both} of ${answers[0].items.length} items are in both lists. The scores of two runs can't be compared.`);
    }
    const first = answers[0].items[0];
    say(first ? `${some(answers[0].items.length, "recommendation")}, first ${nameOf(first)}. ${lines.join(" ")}` : "No recommendations.");
    return lines.map((line) => h("p", { class: "summary" }, line));
  }

  function usedLines({ used, items }) {
    const parts = [["log", "from the log"], ["events", "recorded"], ["sent", "from this page"]]
      .filter(([key]) => used[key]).map(([key, words]) => `${used[key]} ${words}`);
    const lines = used.notes.map((note) => h("p", { class: "note" }, sentence(note)));
    if (used.unknown_items.length) {
      lines.push(h("p", { class: "note" }, `Not in the catalogue, and ignored: ${used.unknown_items.slice(0, 5).join(", ")}${used.unknown_items.length > 5 ? ", …" : ""}.`));
    }
    if (used.ranked_by === "model") {
      const all = used.log + used.events + used.sent;
      const read = used.read < all ? `After the last ${used.read} of ${some(all, "item")}` : `After ${some(all, "item")}`;
      lines.unshift(h("p", { class: "quiet" }, `${read}${state.user ? ` (${parts.join(", ")})` : ""}. Higher scores rank first.`));
    }
    if (!items.length) lines.push(h("p", { class: "quiet" }, "Nothing is left to recommend. Choose another category, or allow items of the history."));
    return lines;
  }

  function drawFilters() {
    const card = cards.find((one) => one.run === state.run);
    const seen = state.seen ?? card.config.split?.keep_seen ?? false;
    const sizes = [...new Set([...SIZES, state.k])].sort((a, b) => a - b);
    const parts = [select("k", "Items to show", sizes.map((size) => [size, size]), state.k)];
    if (card.categories) parts.push(select("category", "Category", [["", "All"], ...categoriesOf(state.run)], state.category ?? ""));
    if (cards.length > 1) {
      const names = cards.map((one) => [one.run, one.run]);
      parts.push(select("run", "Run", names, state.run));
      parts.push(select("with", "Compare with", [["", "Nothing"], ...names.filter(([name]) => name !== state.run)], state.other ?? ""));
    }
    redraw(filters, h("h2", {}, "Options"), h("div", { class: "fields" }, parts),
      h("label", { class: "check" }, h("input", { type: "checkbox", checked: seen, "data-focus": "seen", onchange: (event) => go({ seen: event.target.checked ? 1 : 0 }) }),
        "Recommend items of the history again"));
  }

  const known = new Map(); // categories by run

  function categoriesOf(run) {
    if (!known.has(run)) {
      known.set(run, []);
      call("/v1/categories", { query: { run } })
        .then(({ categories }) => known.set(run, categories.map(({ name, items }) => [name, `${name} (${items})`])))
        .then(drawFilters, () => known.delete(run));
    }
    return known.get(run);
  }

  function select(name, label, options, value) {
    if (!options.some(([one]) => String(one) === String(value))) options.push([value, value]);
    return h("label", { class: "field" }, h("span", {}, label),
      h("select", { "data-focus": name, onchange: (event) => go({ [name]: event.target.value }) },
        options.map(([one, text]) => h("option", { value: one, selected: String(one) === String(value) }, text))));
  }

  function drawSession() {
    if (state.user) {
      redraw(session, h("h2", {}, "Live session"),
        h("p", {}, h("span", { class: "dot", "aria-hidden": "true" }), "Items you choose are recorded as events of ", h("b", {}, state.user), ". Events stay on the server."),
        h("a", { class: "button", href: link("next", { user: null }, current().params), "data-focus": "end" }, "End the session"));
      return;
    }
    const input = h("input", { type: "text", id: "live-user", maxlength: 200, required: true, autocomplete: "off", placeholder: "Name of a user", "data-focus": "live-user" });
    if (session.querySelector("#live-user")?.value) input.value = session.querySelector("#live-user").value;
    redraw(session, h("h2", {}, "Live session"),
      h("p", { class: "quiet" }, "Record what you choose as events of a user, new or known. The server keeps the history."),
      h("form", { class: "inline", onsubmit: (event) => {
        event.preventDefault();
        const user = input.value.trim();
        if (user) go({ user, h: [] });
      } }, h("label", { class: "hidden", for: "live-user" }, "User of the live session"), input,
      h("button", { type: "submit", class: "button" }, "Start")));
  }

  return { element, update, title: "Recommend" };
}

function uniqueId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
