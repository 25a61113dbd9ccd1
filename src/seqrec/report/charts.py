"""The figures of a report. Each takes the values of all runs, by the name of the run."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from seqrec.report.measures import Attention, ItemMap
from seqrec.report.svg import COLOURS, QUIET, WIDTH

#: Styles and markers of the lines that are not of a run: as many as there are baselines.
_PLAIN = ("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "x"), ("--", "v")
_PERCENT = FuncFormatter(lambda value, _: f"{value:.0%}")
#: A model with its metric and both ends of the interval, and whether it is one of the runs.
Interval = tuple[str, float, float, float, bool]


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _legend(axes: Axes, several: bool = True, **more: Any) -> None:
    if several and axes.figure is not None:
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=2.6, **more)


def short(name: str, most: int = 28) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def curves_figure(runs: Mapping[str, pl.DataFrame], column: str, label: str) -> Figure:
    """A column of ``epochs.csv`` by epoch, a line per run; for a validation metric, its best epoch has a ring."""
    figure, axes = _axes(3.1)
    for colour, (name, epochs) in zip(COLOURS, runs.items(), strict=False):
        known = epochs.filter(pl.col(column).is_not_null())
        marker = "o" if known.height < 30 else None
        axes.plot(known["epoch"], known[column], color=colour, marker=marker, markersize=3, label=short(name))
        if column != "loss" and known.height:
            best = known.row(int(known[column].arg_max() or 0), named=True)
            ring: dict[str, Any] = {
                "markersize": 9,
                "markerfacecolor": "none",
                "markeredgecolor": colour,
                "markeredgewidth": 1.4,
            }
            axes.plot([best["epoch"]], [best[column]], "o", **ring)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    if column != "loss":
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])  # room for the ring
    _legend(axes, len(runs) > 1)
    return figure


def intervals_figure(rows: Sequence[Interval], label: str) -> Figure:
    """One metric of several models with its 95 % intervals, a row each; the runs come first and have their colour."""
    figure, axes = _axes(0.33 * len(rows) + 0.85)
    runs = iter(COLOURS)
    for place, (_, value, low, high, is_run) in enumerate(rows):
        colour = next(runs) if is_run else QUIET
        # Rounding may put an end on the wrong side of the mean. No whisker is drawn there.
        reach = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
        axes.errorbar([value], [place], xerr=reach, fmt="o", color=colour, markersize=5, capsize=3)
    axes.set_yticks(range(len(rows)), [short(name, 24) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel(label)
    return figure


def groups_figure(
    names: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[float, float, float] | None], bool]], label: str
) -> Figure:
    """NDCG@10 by groups of users.

    Args:
        names: names of the groups, in order.
        rows: models with the metric and its interval in each group, None if it has no user; and whether it is a run.
        label: what the groups are.
    """
    figure, axes = _axes(2.75 + 0.19 * ((len(rows) + 1) // 2))
    runs, plain = iter(COLOURS), iter([*_PLAIN] * len(rows))
    for number, (name, values, is_run) in enumerate(rows):
        places = [place for place, value in enumerate(values) if value is not None]
        known = np.array([value for value in values if value is not None]).reshape(-1, 3)
        offset = 0.05 * (number - (len(rows) - 1) / 2)
        line, marker = ("-", "o") if is_run else next(plain)
        style: dict[str, Any] = {"color": next(runs), "zorder": 3} if is_run else {"color": QUIET, "linestyle": line}
        axes.plot(
            np.array(places) + offset,
            known[:, 0],
            marker=marker,
            markersize=3.5,
            linewidth=1.3,
            label=short(name),
            **style,
        )
        if is_run:
            reach = np.abs(known[:, 1:] - known[:, :1]).T
            axes.errorbar(np.array(places) + offset, known[:, 0], yerr=reach, fmt="none", capsize=2.5, **style)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("NDCG@10")
    axes.grid(axis="y")
    _legend(axes)
    return figure


def popularity_figure(in_log: Sequence[np.ndarray], runs: Mapping[str, np.ndarray]) -> Figure:
    """The shares of interactions and of recommendations by tenth of the catalogue.

    Args:
        in_log: shares of interactions: one array for all runs, or one per run if their logs differ.
        runs: shares of recommendations by run.
    """
    figure, axes = _axes(3.1)
    bars = [("interactions in the log", in_log[0], QUIET)] if len(in_log) == 1 else []
    bars += [(name, shares, colour) for colour, (name, shares) in zip(COLOURS, runs.items(), strict=False)]
    width = 0.82 / len(bars)
    parts = max(len(shares) for _, shares, _ in bars)
    for number, (name, shares, colour) in enumerate(bars):
        places = np.arange(len(shares)) + (number - (len(bars) - 1) / 2) * width
        axes.bar(places, shares, width, color=colour, label=short(name))
    axes.set_xticks(range(parts), [f"{place + 1}" for place in range(parts)])
    axes.set_xlabel("tenth of the catalogue, most popular first" if parts == 10 else "part of the catalogue")
    axes.set_ylabel("share")
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    _legend(axes)
    return figure


def attention_figure(runs: Mapping[str, Attention]) -> Figure:
    """The mean attention of the last token by steps back, beside what equal weights would give."""
    figure, axes = _axes(3.1)
    for colour, (name, found) in zip(COLOURS, runs.items(), strict=False):
        steps = np.arange(len(found.weights))
        axes.plot(steps, found.equal, color=colour if len(runs) > 1 else QUIET, linestyle=":", linewidth=1.3,
                  label=None if len(runs) > 1 else "equal weights")  # fmt: skip
        axes.plot(steps, found.weights, color=colour, marker="o", markersize=3, label=short(name))
    axes.set_xlabel("steps back from the last item" + (" (dotted: equal weights)" if len(runs) > 1 else ""))
    axes.set_ylabel("mean weight")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    _legend(axes)
    return figure


def map_figure(found: ItemMap) -> Figure:
    """Items in the plane, coloured by category or by number of interactions."""
    figure, axes = _axes(5.2)
    rest = len(found.names) - 1 if found.by_category else -1
    for number, name in enumerate(found.names):
        some = found.places[found.groups == number]
        if len(some) == 0:
            continue
        colour = QUIET if number == rest else COLOURS[number % len(COLOURS)]
        axes.plot(
            some[:, 0], some[:, 1], "o", color=colour, markersize=3.2, alpha=0.8, markeredgewidth=0, label=short(name)
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    _legend(axes, markerscale=2, title=None if found.by_category else "interactions in training")
    return figure


def lengths_figure(lengths: np.ndarray) -> Figure:
    """How many users have histories of which length: a bar for each length, or for ranges that grow."""
    figure, axes = _axes(2.6)
    longest = int(lengths.max(initial=1))
    edges = np.unique(np.geomspace(1, longest + 1, 15).round().astype(np.int64))
    counts, _ = np.histogram(lengths, edges)
    names = [
        f"{low:,}" if high == low + 1 else f"{low:,}–{high - 1:,}" for low, high in pairwise(edges.tolist())
    ]  # fmt: skip
    axes.bar(range(len(counts)), counts, 0.9, color=COLOURS[0])
    step = max(1, -(-len(counts) * max(map(len, names), default=1) // 60))
    axes.set_xticks(range(0, len(counts), step), names[::step])
    axes.set_xlabel("items in the history")
    axes.set_ylabel("users")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    return figure
