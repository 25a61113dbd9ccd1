// Starts the page: the runs of the server, the views, the theme.

import { call, onMissingToken } from "./api.js";
import { h, icon, loading, problem } from "./dom.js";
import { modelView } from "./model.js";
import { nextView } from "./next.js";
import { peopleView } from "./people.js";
import { itemDialog } from "./similar.js";
import { current } from "./state.js";
import { askForToken } from "./token.js";

const main = document.getElementById("main");

function startTheme() {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const draw = () => {
    button.setAttribute("aria-pressed", String(dark()));
    button.replaceChildren(icon(dark() ? "sun" : "moon"));
  };
  button.addEventListener("click", () => {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("seqrec-theme", theme);
    } catch {
      // It lasts until the page is closed.
    }
    draw();
  });
  system.addEventListener("change", draw);
  draw();
}

async function start() {
  startTheme();
  onMissingToken(askForToken);
  main.replaceChildren(loading(8));
  let cards;
  try {
    cards = (await call("/v1/runs")).runs;
  } catch (error) {
    main.replaceChildren(problem(error), h("button", { type: "button", class: "button", onclick: start }, "Try again"));
    return;
  }
  document.getElementById("served").textContent = `Serving ${cards.map((card) => card.run).join(", ")}.`;
  const dialog = itemDialog({ cards });
  const views = {};
  const makers = { next: nextView, people: peopleView, model: modelView };
  let shown = null;

  function route() {
    const { view, params } = current();
    views[view] ??= makers[view]({ cards, open: dialog.open });
    document.title = `${views[view].title} · seqrec`;
    for (const anchor of document.querySelectorAll("nav a")) {
      if (anchor.dataset.view === view) anchor.setAttribute("aria-current", "page");
      else anchor.removeAttribute("aria-current");
    }
    if (shown !== view) {
      main.replaceChildren(views[view].element);
      if (shown !== null) {
        main.focus({ preventScroll: true });
        scrollTo(0, 0);
      }
      shown = view;
    }
    views[view].update(params);
    dialog.update(params);
  }

  addEventListener("hashchange", route);
  route();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says what is shown
  main.focus();
});
start();
