// The view of the model card: what a run is, how well it ranks, and how it was trained.

import { call, latest } from "./api.js";
import { curve, interval } from "./chart.js";
import { h, hidden, loading, problem, redraw, say, sentence, some, whole } from "./dom.js";
import { current, link } from "./state.js";

const METRICS = [
  { key: "ndcg@10", name: "NDCG@10", help: "how high the item that came next ranks among the first 10" },
  { key: "hr@10", name: "HR@10", help: "how often it is among the first 10" },
];
const PLAIN = [
  { key: "mrr", name: "MRR", digits: 4 },
  { key: "coverage@10", name: "Coverage@10", share: true },
  { key: "popularity@10", name: "Popularity@10", share: true },
];
const SPLITS = {
  "last-two": "Each user's last item is the test, the one before it the validation. This is the split of most papers; it lets the model learn from times after those it is tested on.",
  time: "Everything before one moment is for training, everything after it for tests, as in production.",
};
const TRAINED = {
  train: "The weights have seen the training part only.",
  valid: "The weights have also seen the validation part.",
  all: "The weights have seen the whole log, the tests too, so no metric is of these very weights.",
};

/** Make the view. cards: the runs of the server. */
export function modelView({ cards: first }) {
  const next = latest();
  let cards = first;
  const tabs = h("nav", { class: "tabs", "aria-label": "Runs" });
  const body = h("div", { class: "model-body" });
  const element = h("div", { class: "view model" }, tabs, body);

  /** Show what the address asks for. */
  async function update(params) {
    const signal = next();
    if (!body.hasChildNodes()) body.replaceChildren(loading(8));
    try {
      cards = (await call("/v1/runs", { signal })).runs; // a run may have been replaced
      const card = cards.find((one) => one.run === params.get("run")) ?? cards[0];
      redraw(tabs, cards.length > 1 ? cards.map((one) => h("a", { href: link("model", { run: one.run }, current().params), "data-focus": one.run,
        "aria-current": one === card ? "true" : null }, one.run)) : null);
      tabs.hidden = cards.length < 2;
      const training = await call("/v1/runs/curve", { query: { run: card.run }, signal }).catch((error) => {
        if (error.name === "AbortError") throw error;
        return { error };
      });
      body.replaceChildren(...drawn(card, training));
      say(`Model card of ${card.run}`);
    } catch (error) {
      if (error.name !== "AbortError") body.replaceChildren(problem(error));
    }
  }

  return { element, update, title: "Model" };
}

function drawn(card, training) {
  const { metrics } = card;
  const test = metrics.test ?? {};
  const protocols = Object.entries(test).filter(([, one]) => one?.metrics);
  return [
    h("div", { class: "intro" }, h("h1", {}, card.run),
      h("p", {}, `A ${card.model} model, trained on ${whole(card.interactions)} interactions of ${whole(card.users)} users with ${whole(card.items)} items.`)),
    card.refused ? h("div", { class: "notice", role: "alert" }, h("b", {}, "The run folder holds something newer that can't be used. "), `${sentence(card.refused)} The version below stays in use.`) : null,
    h("dl", { class: "facts card" }, facts(card)),
    ...protocols.map(([name, one], place) => (place === 0 ? quality(card, name, one) : h("details", { class: "card" },
      h("summary", {}, title(name, one)), quality(card, name, one, true)))),
    protocols.length ? null : h("p", { class: "empty" }, "This run was not evaluated. seqrec evaluate RUN adds its metrics."),
    h("div", { class: "pair" }, trainingCard(training), protocolCard(card, protocols[0]?.[1])),
    optionsCard(card),
  ].filter(Boolean);
}

function facts(card) {
  const when = new Date(card.loaded);
  const rows = [
    ["Model", card.model], ["Version", h("code", {}, card.model_version)],
    ["Reads", `the last ${some(card.max_length, "item")}`],
    ["Transitions", card.transitions_weight ? `counted, weight ${Number(card.transitions_weight.toPrecision(3))}` : "not used"],
    ["Categories", card.categories ? whole(card.categories) : "none"],
    ...(card.new_items ? [["New items", card.new_items.added ? `${whole(card.new_items.added)}, ranked by their features` : `none: ${card.new_items.note}`]] : []),
    ["Loaded", h("time", { datetime: card.loaded }, when.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }))],
  ];
  return rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
}

const title = (name, one) => (one.negatives ? `Ranked against ${one.negatives} sampled items` : "Ranked against the whole catalogue");

/** The model and its baselines, best first but the model on top. */
function rowsOf(card, one) {
  const baselines = Object.entries(one.baselines ?? {});
  const own = one.baselines?.[card.model] ? `${card.model} + transitions` : card.model;
  const key = METRICS[0].key;
  baselines.sort((a, b) => (b[1].metrics[key] ?? 0) - (a[1].metrics[key] ?? 0));
  return [[own, one, true], ...baselines.map(([name, scores]) => [name, scores, false])];
}

function quality(card, name, one, inside = false) {
  const rows = rowsOf(card, one);
  const shown = METRICS.filter(({ key }) => one.metrics[key] !== undefined);
  const plain = PLAIN.filter(({ key }) => one.metrics[key] !== undefined);
  const tops = new Map(shown.map(({ key }) => [key, Math.max(...rows.map(([, scores]) => scores.intervals?.[key]?.[1] ?? scores.metrics[key] ?? 0))]));
  const table = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Metrics, ${title(name, one)}` }, h("table", {},
    h("caption", {}, `${some(one.users, "user")} of the ${one.split} part. Lines are 95 % intervals.`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"),
      shown.map((metric) => h("th", { scope: "col", title: metric.help }, metric.name)),
      plain.map((metric) => h("th", { scope: "col", class: "number" }, metric.name)))),
    h("tbody", {}, rows.map(([label, scores, own]) => h("tr", { class: own ? "own" : null },
      h("th", { scope: "row" }, label, own ? hidden(" (this run)") : null),
      shown.map(({ key }) => h("td", {}, interval(scores.metrics[key], scores.intervals?.[key], tops.get(key)))),
      plain.map(({ key, digits, share }) => h("td", { class: "number" }, number(scores.metrics[key], digits, share))))))));
  const groups = groupTables(rows, one);
  const parts = [table, h("p", { class: "quiet" }, shown.map(({ name: label, help }) => `${label}: ${help}. `)), ...groups];
  return inside ? h("div", {}, parts) : h("section", { class: "card" }, h("h2", {}, title(name, one)), parts);
}

function number(value, digits, share) {
  if (value === undefined || value === null) return "–";
  return share ? `${(100 * value).toFixed(1)} %` : value.toFixed(digits);
}

function groupTables(rows, one) {
  const kinds = [["history", "By items in the history", (name) => `${name} items`], ["popularity", "By interactions of the target", (name) => `${name} interactions`]];
  const shown = rows.slice(0, 4);
  const tables = kinds.filter(([kind]) => one.groups?.[kind]?.length).map(([kind, heading, words]) => {
    const groups = one.groups[kind];
    const top = Math.max(...shown.flatMap(([, scores]) => (scores.groups?.[kind] ?? []).map((group) => group.metrics["ndcg@10"] ?? 0))) || 1;
    return h("div", {}, h("h3", {}, heading), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": heading }, h("table", { class: "groups" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Group"), shown.map(([label]) => h("th", { scope: "col" }, label)))),
      h("tbody", {}, groups.map((group, place) => h("tr", {}, h("th", { scope: "row" }, words(spanOf(group)), h("small", {}, some(group.users, "user"))),
        shown.map(([, scores, own]) => {
          const value = scores.groups?.[kind]?.[place]?.metrics["ndcg@10"];
          return h("td", { class: own ? "own" : null }, value === undefined ? "–" : h("span", { class: "cell-bar", vars: { "--share": value / top } }, value.toFixed(3)));
        }))))))); 
  });
  return tables.length ? [h("div", { class: "pair" }, tables), h("p", { class: "quiet" }, "NDCG@10 of each group.")] : [];
}

function spanOf(group) {
  if (group.most === null || group.most === undefined) return `${group.least} or more`;
  return group.least === group.most ? `${group.least}` : `${group.least} to ${group.most}`;
}

function trainingCard(training) {
  const parts = training.error ? [problem(training.error)] : curve(training);
  return h("section", { class: "card" }, h("h2", {}, "Training"), parts);
}

function protocolCard(card, one) {
  const split = card.metrics.split ?? {};
  const lines = [
    SPLITS[split.split] ?? null,
    split.reason ? `Why this split: ${split.reason}.` : null,
    split.train_users ? `${whole(split.train_interactions)} of ${whole(split.interactions)} interactions are for training, ${whole(split.valid_users)} users for validation and ${whole(split.test_users)} for the test.` : null,
    one?.held_out ? `Held out: ${one.held_out.replace(/(\d{4}-\d\d-\d\d)T/, "$1 ")}.` : null,
    TRAINED[card.trained_on] ?? null,
    one ? `Items that a user had before are ${one.seen === "removed" ? "not ranked again" : `${one.seen}`}.` : null,
    one?.cold ? `${whole(one.cold)} targets never occur in training, so no model can know them.` : null,
    one?.unreachable ? `${whole(one.unreachable)} targets are in the history and count as misses.` : null,
    card.metrics.best_epoch ? `Epoch ${card.metrics.best_epoch} of ${card.metrics.epochs} was the best on the validation part, and its weights are used.` : null,
  ].filter(Boolean);
  return h("section", { class: "card" }, h("h2", {}, "How it was measured"), h("ul", { class: "words" }, lines.map((line) => h("li", {}, line))));
}

function optionsCard(card) {
  const recipe = card.config.recipe ?? {};
  const groups = [["Model", card.config.model_config], ["Training", card.config.training], ["Data", card.config.prepare], ["Split", card.config.split]]
    .filter(([, values]) => values && Object.keys(values).length);
  return h("details", { class: "card" }, h("summary", {}, "All options"), h("div", { class: "options-grid" },
    Object.keys(recipe).length ? h("div", {}, h("h3", {}, "Chosen from the log"), pairs(recipe)) : null,
    groups.map(([name, values]) => h("div", {}, h("h3", {}, name), pairs(values)))));
}

function pairs(values) {
  return h("dl", { class: "pairs" }, Object.entries(values).map(([name, value]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")),
    h("dd", {}, value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value)))));
}
