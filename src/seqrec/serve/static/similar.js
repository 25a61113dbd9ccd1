// The dialog of an item: what it is, and the items nearest to it.

import { call, itemOf, latest, remember } from "./api.js";
import { h, hidden, icon, loading, nameOf, problem, some } from "./dom.js";
import { asked } from "./next.js";
import { current, go, link } from "./state.js";

/** Make the dialog. It is open while the address has an item. */
export function itemDialog({ cards }) {
  const dialog = document.getElementById("item");
  const next = latest();
  let opener = null;

  dialog.addEventListener("close", () => {
    if (current().params.has("item")) go({ item: null });
    opener?.isConnected && opener.focus();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  const open = (item) => go({ item: String(item.id) });

  /** Show what the address asks for. */
  async function update(params) {
    const id = params.get("item")?.slice(0, 200);
    const signal = next();
    if (!id) {
      if (dialog.open) dialog.close();
      return;
    }
    const { run } = asked(params, cards);
    const title = h("h2", { id: "item-title" }, "…");
    const facts = h("p", { class: "quiet" });
    const body = h("div", {}, loading());
    dialog.replaceChildren(
      h("div", { class: "dialog-head" }, h("div", {}, title, facts),
        h("button", { type: "button", class: "icon-button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"))),
      body);
    if (!dialog.open) {
      opener = document.activeElement;
      dialog.showModal();
    }
    try {
      const item = await itemOf(run, id, signal);
      title.textContent = nameOf(item);
      const { items } = await call("/v1/items", { query: { q: id, k: 1, run }, signal });
      const whole = items.find((one) => String(one.id) === id);
      facts.textContent = [item.title ? id : null, ...(whole?.categories ?? []), whole ? some(whole.interactions, "interaction") : null].filter(Boolean).join(" · ");
      const answer = await call("/v1/similar", { query: { item: id, k: 10, run }, signal });
      remember(run, answer.items);
      body.replaceChildren(adding(item, params), h("h3", {}, "Similar items"),
        h("p", { class: "quiet" }, "By the cosine of what the model learned about them."),
        h("ol", { class: "plain similar" }, answer.items.map((one) => h("li", {},
          h("button", { type: "button", class: "link", onclick: () => open(one) }, nameOf(one)),
          h("span", { class: "meter", "aria-hidden": "true", vars: { "--share": Math.max(0, one.score) } }),
          h("span", { class: "score" }, hidden("cosine "), one.score.toFixed(2))))));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (title.textContent === "…") title.textContent = id;
      body.replaceChildren(problem(error));
    }
  }

  function adding(item, params) {
    const { view } = current();
    const present = view === "next" ? params : new URLSearchParams();
    if (present.get("user")) return null; // an event is recorded from the list, not in passing
    return h("a", { class: "button", href: link("next", { h: [...present.getAll("h"), String(item.id)], item: null }, present) },
      icon("plus"), "Add to the history");
  }

  return { update, open };
}
