// Pictures from numbers: intervals in tables, and the training curve as SVG.

import { h, hidden, svg } from "./dom.js";

/** A value with its 95 % interval, as text and as a line with a dot on a scale from 0 to top. */
export function interval(value, ends, top) {
  if (value === undefined || value === null) return "–";
  const [low, high] = ends ?? [value, value];
  return h("div", { class: "interval" },
    h("span", { class: "interval-text" }, value.toFixed(4), h("small", {}, hidden(", interval "), ` ${low.toFixed(3)}–${high.toFixed(3)}`)),
    h("span", { class: "interval-plot", "aria-hidden": "true", vars: { "--value": value / (top || 1), "--low": low / (top || 1), "--high": high / (top || 1) } }));
}

const HEIGHT = 200;
const LEFT = 52;
const RIGHT = 14;
const TOP = 14;
const BOTTOM = 30;
const LABEL = 44; // half the width of the text at the best point

/** The training curve of an answer of /v1/runs/curve: the loss, and the metric of the validation below it. */
export function curve({ epochs, metric }) {
  const losses = epochs.filter((one) => one.loss !== null).map((one) => [one.epoch, one.loss]);
  const values = epochs.filter((one) => one.value !== null).map((one) => [one.epoch, one.value]);
  if (!losses.length && !values.length) return [h("p", { class: "quiet" }, "This model is counted, not trained: there are no epochs.")];
  const last = epochs.at(-1).epoch;
  const parts = [];
  if (losses.length) parts.push(figure("Training loss", losses, last, "curve-loss"));
  if (values.length) parts.push(figure(`Validation ${metric.toUpperCase()}`, values, last, "curve-value", true));
  return parts;
}

function ticksOf(low, high, count) {
  const rough = (high - low) / count || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) ticks.push(tick);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/** A curve that is drawn again when its width changes, so that its text keeps its size. */
function figure(label, points, last, kind, best = false) {
  const element = h("figure", { class: "curve" }, h("figcaption", {}, label), h("div", { class: "curve-space" }),
    h("p", { class: "quiet" }, best ? "by epoch; the best one is marked" : "by epoch"));
  const space = element.querySelector(".curve-space");
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width > 2 * LEFT) space.replaceChildren(drawn(label, points, last, kind, best, width));
  }).observe(space);
  return element;
}

function drawn(label, points, last, kind, best, width) {
  const values = points.map(([, value]) => value);
  const low = best ? 0 : Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.08 || 0.1;
  const [bottom, top] = [best ? 0 : low - room, high + room];
  const x = (epoch) => LEFT + (last > 1 ? (epoch - 1) / (last - 1) : 0.5) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
  const { ticks, digits } = ticksOf(bottom, top, 4);
  const whole = [...new Set(ticksOf(1, Math.max(last, 2), 6).ticks.map(Math.round))].filter((tick) => tick >= 1 && tick <= last);
  const peak = points.reduce((one, two) => (two[1] > one[1] ? two : one));
  const summary = best ? `${label}: best ${peak[1].toFixed(4)} at epoch ${peak[0]} of ${last}`
    : `${label}: from ${values[0].toFixed(3)} to ${values.at(-1).toFixed(3)} over ${last} epochs`;
  const place = Math.min(Math.max(x(peak[0]), LEFT + LABEL), width - RIGHT - LABEL);
  return svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": summary },
    ticks.map((tick) => [svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      svg("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(digits))]),
    whole.map((tick) => svg("text", { x: x(tick), y: HEIGHT - 10, "text-anchor": "middle" }, tick)),
    svg("polyline", { class: kind, points: points.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }),
    points.length <= 60 ? points.map(([epoch, value]) => svg("circle", { class: kind, cx: x(epoch), cy: y(value), r: 2.5 })) : null,
    best ? [svg("circle", { class: "peak", cx: x(peak[0]), cy: y(peak[1]), r: 5 }),
      svg("text", { class: "peak-text", x: place, y: y(peak[1]) + 24, "text-anchor": "middle" }, `best ${peak[1].toFixed(4)}`)] : null);
}
