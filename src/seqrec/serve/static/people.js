// The view of a known user: what was recommended before each of the last steps, and what came next.

import { call, latest, remember } from "./api.js";
import { combobox } from "./combobox.js";
import { h, hidden, icon, loading, nameOf, problem, redraw, say, sentence, some } from "./dom.js";
import { current, go, link } from "./state.js";

const STEPS = [1, 3, 5, 10];
const CARRIED = 50; // newest items of a user that are taken to the other view

/** Make the view. cards: the runs of the server. open(item): show similar items. */
export function peopleView({ cards, open }) {
  const next = latest();
  let run = cards[0].run;

  const search = combobox({
    name: "user", label: "Find a user", placeholder: "Beginning of the id", none: "No user of the log has an id that begins so.",
    find: async (q, signal) => {
      const { users } = await call("/v1/users", { query: { q, k: 12, run }, signal });
      return users.map((user) => ({ text: String(user.id), detail: some(user.interactions, "interaction"), value: String(user.id) }));
    },
    choose: (id) => go({ id }),
  });
  const options = h("div", { class: "people-options" });
  const outcome = h("div", {});
  const body = h("div", { class: "people-body" });
  const element = h("div", { class: "view people" },
    h("div", { class: "intro" }, h("h1", {}, "What was recommended, and what came next"),
      h("p", {}, "Open a user of the log. Each of the last steps is predicted from the history before it.")),
    h("div", { class: "card people-find" }, search.field,
      h("button", { type: "button", class: "button", onclick: () => surprise() }, "Show me one"), options),
    outcome, body);

  async function surprise() {
    try {
      const { users } = await call("/v1/users", { query: { k: 100, run } });
      const others = users.filter((user) => String(user.id) !== current().params.get("id") && user.interactions > 3);
      const from = others.length ? others : users;
      go({ id: String(from[Math.floor(Math.random() * from.length)].id) });
    } catch (error) {
      outcome.replaceChildren(problem(error));
    }
  }

  /** Show what the address asks for. */
  async function update(params) {
    const signal = next();
    const names = cards.map((card) => card.run);
    run = names.includes(params.get("run")) ? params.get("run") : names[0];
    const id = params.get("id")?.slice(0, 200);
    const steps = STEPS.includes(Number(params.get("steps"))) ? Number(params.get("steps")) : 3;
    drawOptions(steps);
    outcome.replaceChildren();
    if (!id) {
      body.replaceChildren(h("p", { class: "empty" }, "No user is open. Search by the beginning of an id, or let the page choose one."));
      return;
    }
    if (!body.dataset.user || body.dataset.user !== id) body.replaceChildren(loading());
    body.dataset.user = id;
    try {
      const [history, replay] = await Promise.all([
        call("/v1/history", { query: { user: id, k: 100, run }, signal }),
        call("/v1/replay", { query: { user: id, k: 10, steps, run }, signal }),
      ]);
      remember(run, history.items.filter((item) => item.known));
      body.replaceChildren(...drawn(id, history, replay));
    } catch (error) {
      if (error.name !== "AbortError") body.replaceChildren(problem(error));
    }
  }

  function drawOptions(steps) {
    const parts = [field("steps", "Last steps", STEPS.map((one) => [one, one]), steps)];
    if (cards.length > 1) parts.push(field("run", "Run", cards.map((card) => [card.run, card.run]), run));
    redraw(options, parts);
  }

  function field(name, label, choices, value) {
    return h("label", { class: "field" }, h("span", {}, label),
      h("select", { "data-focus": name, onchange: (event) => go({ [name]: event.target.value }) },
        choices.map(([one, text]) => h("option", { value: one, selected: one === value }, text))));
  }

  function drawn(id, history, replay) {
    const hits = replay.steps.filter((step) => step.rank !== null).length;
    const times = history.items.map((item) => item.time).filter(Boolean);
    const known = history.items.filter((item) => item.known).map((item) => String(item.id)).slice(-CARRIED);
    const found = replay.steps.length
      ? `${hits} of the last ${some(replay.steps.length, "item")} ${hits === 1 ? "was" : "were"} among the 10 recommended before.` : "";
    say(`User ${id}. ${found}`);
    return [
      h("div", { class: "people-head" },
        h("div", {}, h("h2", {}, hidden("User "), id),
          h("p", { class: "quiet" }, some(history.total, "interaction"),
            times.length ? `, ${times[0].slice(0, 10)} to ${times.at(-1).slice(0, 10)}${history.total > history.items.length ? " (the newest 100)" : ""}` : "", ". ", h("b", {}, found))),
        h("div", { class: "people-links" },
          h("a", { class: "button", href: link("next", { h: known, run: runOrNull() }) }, "Try this history"),
          h("a", { class: "button", href: link("next", { user: id, run: runOrNull() }) }, "Start a live session"))),
      replay.notes.length ? h("p", { class: "note" }, replay.notes.map(sentence).join(" ")) : "",
      replay.steps.length ? h("ol", { class: "steps" }, replay.steps.map((step, place) => drawStep(step, place)))
        : h("p", { class: "empty" }, "There is only one interaction, so nothing can be predicted."),
      h("details", { class: "card" }, h("summary", {}, `All items of the history (${history.items.length})`),
        h("ol", { class: "plain", reversed: true }, [...history.items].reverse().map((item) => h("li", {},
          h("button", { type: "button", class: "link", "aria-haspopup": "dialog", onclick: () => open(item) }, nameOf(item)),
          item.source === "event" ? h("span", { class: "mark mark-new" }, "event") : null,
          item.time ? h("time", { datetime: item.time }, item.time.slice(0, 10)) : null)))),
    ];
  }

  const runOrNull = () => (run === cards[0].run ? null : run);

  function drawStep(step, place) {
    const hit = step.rank !== null;
    const when = place === 0 ? "Last step" : place === 1 ? "The step before" : `${place + 1} steps back`;
    const before = step.history.slice(-4);
    return h("li", { class: `card step ${hit ? "step-hit" : ""}` },
      h("div", { class: "card-head" }, h("h3", {}, when),
        h("span", { class: `verdict ${hit ? "hit" : "miss"}` }, hit ? icon("check") : icon("close"), hit ? `Hit at place ${step.rank}` : "Not in the top 10")),
      h("div", { class: "step-parts" },
        h("div", {}, h("h4", {}, step.history.length > 4 ? "Had last" : "Had"),
          h("ol", { class: "plain before" }, before.map((item) => h("li", {}, itemLink(item))))),
        h("div", {}, h("h4", {}, "Recommended"),
          h("ol", { class: "plain recommended" }, step.items.map((item, index) => h("li", { class: step.rank === index + 1 ? "came" : null },
            itemLink(item), step.rank === index + 1 ? h("span", { class: "mark mark-hit" }, icon("check"), "came next") : null)))),
        h("div", { class: "came-next" }, h("h4", {}, "Came next"), h("p", { class: "next-item" }, itemLink(step.next)))));
  }

  function itemLink(item) {
    return h("button", { type: "button", class: "link", "aria-haspopup": "dialog", onclick: () => open(item) }, nameOf(item));
  }

  return { element, update, title: "Users" };
}
