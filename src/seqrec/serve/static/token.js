// The form that asks for the token.

import { h } from "./dom.js";

/** Ask a person for the token. wrong: whether one was refused. */
export function askForToken(wrong) {
  const dialog = document.getElementById("token");
  return new Promise((resolve) => {
    const input = h("input", { type: "password", id: "token-field", required: true, autocomplete: "current-password", "aria-describedby": "token-help" });
    dialog.replaceChildren(h("form", { onsubmit: (event) => {
      event.preventDefault();
      const token = input.value.trim();
      if (!token) return;
      dialog.close();
      resolve(token);
    } },
    h("h2", { id: "token-title" }, "This server needs a token"),
    wrong ? h("p", { class: "problem", role: "alert" }, "The token was refused. Check it, and send it again.") : null,
    h("p", { class: "quiet", id: "token-help" }, "Whoever started the server has it. It is kept until this tab is closed."),
    h("label", { class: "field", for: "token-field" }, h("span", {}, "Token")), input,
    h("button", { type: "submit", class: "button primary" }, "Send")));
    dialog.oncancel = (event) => event.preventDefault(); // nothing can be shown without it
    if (!dialog.open) dialog.showModal();
    input.focus();
  });
}
