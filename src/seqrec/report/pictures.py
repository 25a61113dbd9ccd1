"""Pictures of a run and of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from seqrec.errors import InputError
from seqrec.files import replacing

_BLUE, _ORANGE, _GREY = "#2a6fbb", "#d9730d", "#6b7280"


def training_curve(epochs: pl.DataFrame, path: str | Path, best: float | None = None) -> None:
    """Draw loss and validation NDCG@10 by epoch as a PNG.

    Args:
        epochs: rows of ``epochs.csv``. The column ``ndcg@10`` may be missing, or null for epochs without validation.
        path: PNG file to write.
        best: best possible NDCG@10, drawn as a line if it is known.

    Raises:
        InputError: there is no epoch to draw, or the file cannot be written.
    """
    if not epochs["loss"].dtype.is_numeric() or epochs["loss"].count() == 0:  # counted models have no loss
        raise InputError(f"{path}: there is no epoch to draw; train first")
    figure = Figure(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    left = figure.subplots()
    left.plot(epochs["epoch"], epochs["loss"], color=_BLUE, marker="o", markersize=3)
    left.set_xlabel("epoch")
    left.set_ylabel("training loss", color=_BLUE)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.spines[["top"]].set_visible(False)
    if "ndcg@10" in epochs.columns:
        known = epochs.filter(pl.col("ndcg@10").is_not_null())
        right = left.twinx()
        right.plot(known["epoch"], known["ndcg@10"], color=_ORANGE, marker="o", markersize=3)
        right.set_ylabel("validation NDCG@10, full ranking", color=_ORANGE)
        right.set_ylim(bottom=0)
        right.spines[["top"]].set_visible(False)
        if best is not None:
            right.axhline(best, color=_GREY, linestyle="--", linewidth=1)
            right.annotate(
                f"best possible {best:.3f}",
                (1, best),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=_GREY,
                fontsize=8,
            )
            right.set_ylim(0, best * 1.1)
    left.set_title("Training", loc="left", fontsize=11)
    _save(figure, path)


def recommendations_picture(rows: list[dict[str, Any]], path: str | Path, title: str = "Recommendations") -> None:
    """Draw a table of recommendations as a PNG.

    Args:
        rows: one dictionary per user, all with the same keys, such as user, history and recommended. Values may have
            several lines.
        path: PNG file to write.
        title: title above the table.

    Raises:
        InputError: there is no row to draw, or the file cannot be written.
    """
    if not rows:
        raise InputError(f"{path}: there is no recommendation to draw; ask for at least one user")
    columns = list(rows[0])
    cells = [[str(row[name]) for name in columns] for row in rows]
    lines = [max(cell.count("\n") + 1 for cell in line) for line in cells]
    widths = [
        max(len(part) for line in [columns, *cells] for part in line[index].split("\n"))
        for index in range(len(columns))
    ]
    figure = Figure(figsize=(0.085 * sum(widths) + 0.8, 0.19 * (sum(lines) + 2) + 0.75), dpi=150)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.86))
    axes.axis("off")
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    share = [width / sum(widths) for width in widths]
    grid = axes.table(cells, colLabels=columns, colWidths=share, cellLoc="left", colLoc="left", bbox=Bbox.unit())
    grid.auto_set_font_size(False)
    grid.set_fontsize(8)
    unit = 1 / (sum(lines) + 1.4)
    for (row, _), cell in grid.get_celld().items():
        cell.get_text().set_parse_math(False)  # a $ in a title does not start a formula
        cell.set_height(unit * (1.4 if row == 0 else lines[row - 1]))
        cell.set_edgecolor("#d1d5db")
        if row == 0:
            cell.set_facecolor("#eef2f7")
            cell.get_text().set_fontweight("bold")
    _save(figure, path)


class Drawn(NamedTuple):
    """A row of :func:`comparison_picture`.

    Args:
        name: label.
        value: mean of the metric.
        low: lower end of its interval.
        high: upper end.
        trainings: value of each training, drawn as small marks, if there are several.
        in_order: whether histories are in order; what is shuffled is drawn in grey.
    """

    name: str
    value: float
    low: float
    high: float
    trainings: Sequence[float] = ()
    in_order: bool = True


def comparison_picture(panels: Mapping[str, Sequence[Drawn]], path: str | Path, metric: str = "NDCG@10") -> None:
    """Draw one metric of several models with its intervals as a PNG.

    Args:
        panels: models for each panel, by title. A line marks the value of the first model.
        path: PNG file to write.
        metric: name of the metric and of its intervals, shown below each panel.

    Raises:
        InputError: there is no model to draw, or the file cannot be written.
    """
    most = max((len(rows) for rows in panels.values()), default=0)
    if not most:
        raise InputError(f"{path}: there is no model to draw; compare at least one that can be trained")
    figure = Figure(figsize=(3.9 * len(panels) + 1, 0.34 * most + 1.35), dpi=150, layout="constrained")
    for number, (title, rows) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for place, (_, value, low, high, trainings, in_order) in enumerate(rows):
            color = _ORANGE if place == 0 else _BLUE if in_order else _GREY
            # Rounding may put an end on the wrong side of the mean. No whisker is drawn there.
            reach = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
            axes.errorbar([value], [place], xerr=reach, fmt="o", color=color, markersize=4, capsize=3)
            axes.plot(trainings, [place + 0.25] * len(trainings), "|", color=color, markersize=5, alpha=0.7)
        axes.axvline(rows[0].value, color=_GREY, linestyle="--", linewidth=1, zorder=0)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=min(0.0, *(row.low for row in rows)))
        axes.set_xlabel(metric)
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def growth_picture(curves: Mapping[str, Sequence[tuple[float, float]]], label: str, path: str | Path) -> None:
    """Draw how a cost grows with several sizes as a PNG, one panel per size.

    Args:
        curves: points ``(size, cost)`` by the name of the size.
        label: label of the cost.
        path: PNG file to write.
    """
    figure = Figure(figsize=(3.2 * len(curves), 2.8), dpi=150, layout="constrained")
    highest = max(cost for points in curves.values() for _, cost in points)
    for number, (name, points) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), number + 1)
        axes.plot(*zip(*points, strict=True), marker="o", color=_BLUE, markersize=4)
        axes.set_xscale("log")
        axes.minorticks_off()
        sizes = [size for size, _ in points]
        axes.set_xticks(sizes, [f"{size:.0e}" if size >= 10_000 else f"{size:g}" for size in sizes])
        axes.set_ylim(0, 1.1 * highest)
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 0:
            axes.set_ylabel(label)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with replacing(path) as new:
        figure.savefig(new, format="png", metadata={"Software": None})
