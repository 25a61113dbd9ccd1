"""Tables and text for people."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rich.table import Table

from seqrec.data.dataset import Dataset
from seqrec.data.formats.summary import LogSummary, some_names
from seqrec.data.split import TRAINED
from seqrec.data.statistics import Statistics

if TYPE_CHECKING:
    from seqrec.ranking.groups import Group
    from seqrec.ranking.protocols import Evaluation, Scores

YEAR_1, YEAR_10000 = -62_135_596_800, 253_402_300_800  # the range of datetime in Unix seconds


#: Metrics in the columns of a table, and whether their intervals are shown: as many as fit on a screen.
_SHOWN = {"ndcg": True, "hr": True, "mrr": False}


def table(evaluation: "Evaluation", name: str = "model") -> Table:
    """The main metrics of the model and of its baselines, a row each; ``to_dict`` has all metrics.

    The metrics are those for the middle list length. The last column is the p-value of the paired test of the
    difference in NDCG@10 from the model in the first row.
    """
    if evaluation.negatives is None:
        against = f"full catalogue, seen items {evaluation.seen}"
    else:
        against = f"{evaluation.negatives} sampled negatives"
    shown = Table(title=f"{evaluation.split}: {evaluation.users:,} users, {against}\n{stated(evaluation)}")
    lengths = sorted({int(metric.partition("@")[2]) for metric in evaluation.metrics if "@" in metric})
    middle = lengths[len(lengths) // 2]
    names = {f"{kind}@{middle}" if kind != "mrr" else kind: intervals for kind, intervals in _SHOWN.items()}
    shown.add_column("model", overflow="fold")
    for column in (*names, "p"):
        shown.add_column(column, justify="right", no_wrap=True)
    for label, scores in _rows(evaluation, name).items():
        cells = [
            with_interval(scores.metrics[metric], *scores.intervals[metric]) if intervals
            else f"{scores.metrics[metric]:.4f}"
            for metric, intervals in names.items()
        ]  # fmt: skip
        difference = evaluation.differences.get(label)
        shown.add_row(label, *cells, "" if difference is None else f"{difference.p:.1g}")
    notes = ["p: of the difference in NDCG@10 from the first row"] if evaluation.differences else []
    if evaluation.cold:
        notes.append(f"{evaluation.cold:,} targets never occur in training")
    if evaluation.unreachable:
        notes.append(f"{evaluation.unreachable:,} are in the history and count as misses; --keep-seen ranks them")
    if evaluation.fewest_negatives is not None and evaluation.fewest_negatives < (evaluation.negatives or 0):
        notes.append(f"for some users only {evaluation.fewest_negatives} unseen items are available as negatives")
    shown.caption = "; ".join(notes) or None
    return shown


def _rows(evaluation: "Evaluation", name: str) -> "dict[str, Evaluation | Scores]":
    """The model and its baselines by name. If the model without transition counts is one of them, it has the name."""
    if name in evaluation.baselines:
        name = f"{name} + transitions"
    return {name: evaluation, **evaluation.baselines}


def stated(evaluation: "Evaluation") -> str:
    """What was held out, what the weights have not seen, and the seed, as text."""
    facts = [evaluation.held_out]
    if evaluation.trained_on is not None:
        facts.append(f"trained {TRAINED[evaluation.trained_on]}")
    return "; ".join([*facts, f"seed {evaluation.seed}"])


def groups_table(evaluation: "Evaluation", name: str = "model") -> Table:
    """NDCG@10 of the model beside its baselines for groups of users. ``to_dict`` has the intervals."""
    return groups_side_by_side(
        evaluation.split, {label: scores.groups for label, scores in _rows(evaluation, name).items()}
    )


def groups_side_by_side(tested: str, columns: "Mapping[str, Mapping[str, Sequence[Group]]]") -> Table:
    """NDCG@10 of several models for groups of users: by length of the history, and by popularity of the target.

    Args:
        tested: what is tested, for the title.
        columns: the groups of each model by its name, as in :class:`Scores`; the same groups for all.
    """
    shown = Table(title=f"{tested}: NDCG@10 by items in the history, and by interactions of the target in training")
    shown.add_column("group", no_wrap=True)
    for column in ("users", *columns):
        shown.add_column(column, justify="right", overflow="fold")
    for by, what in (("history", "history"), ("popularity", "target")):
        for same in zip(*(groups.get(by, []) for groups in columns.values()), strict=True):
            cells = [f"{one.metrics['ndcg@10']:.4f}" for one in same]
            shown.add_row(f"{what} {same[0].name}", f"{same[0].users:,}", *cells)
        shown.add_section()
    return shown


def with_interval(value: float, low: float, high: float) -> str:
    """A mean with half the width of its interval, or with both ends if the mean is not near the middle.

    This happens with few hits or few misses: ``0.0100 ±0.0301`` would include values below 0.
    """
    half = (high - low) / 2
    if abs((low + high) / 2 - value) <= half / 4:
        return f"{value:.4f} ±{half:.4f}"
    return f"{value:.4f} {_short(low)}–{_short(high)}"


def _short(value: float) -> str:
    """A number without its leading zero, to save width: ``.0123``."""
    text = f"{value:.4f}"
    return text[1:] if text.startswith("0.") else text


def statistics_table(dataset: Dataset) -> Table:
    """Statistics of the log, as read and as kept."""
    grid = Table(title="the log")
    for name in ("", "read", "kept"):
        grid.add_column(name, justify="left" if not name else "right")
    for row in statistics_rows(dataset):
        grid.add_row(*row)
    if dataset.statistics.copies:
        grid.caption = "copies have the same user, item and time; --duplicates drop-copies keeps one of each"
    return grid


def statistics_rows(dataset: Dataset) -> list[tuple[str, str, str]]:
    """Statistics of the log as text: their name, as read, and as kept."""
    before, after = dataset.before or dataset.statistics, dataset.statistics
    shown: dict[str, Callable[[Statistics], str]] = {
        "users": lambda s: f"{s.users:,}",
        "items": lambda s: f"{s.items:,}",
        "interactions": lambda s: f"{s.interactions:,}",
        "density": lambda s: f"{s.density:.4%}",
        "history, median": lambda s: f"{s.median_length:g}",
        "history, p90": lambda s: f"{s.p90_length:g}",
        "history, longest": lambda s: f"{s.max_length:,}",
    }
    if before.tied_timestamps is None:
        shown["times"] = lambda _: "none"
    else:
        shown |= {
            "first time, UTC": lambda s: moment(s.first_time),
            "last time, UTC": lambda s: moment(s.last_time),
            "tied timestamps": lambda s: f"{s.tied_timestamps:.1%}",
            "copies of rows": lambda s: "unknown" if s.copies is None else f"{s.copies:,}",
        }
    return [(title, show(before), show(after)) for title, show in shown.items()]


def moment(seconds: int | None) -> str:
    """Unix seconds as date and time in UTC."""
    if seconds is None:
        return "unknown"
    if not YEAR_1 <= seconds < YEAR_10000:
        return f"{seconds:,} s"
    return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat(" ")


def summary_lines(summary: LogSummary) -> list[str]:
    """Lines that say how a log was read."""
    used = ", ".join(role if role == name else f"{role} = {name}" for role, name in summary.columns.items())
    lines = [f"{summary.name}: columns used: {used}"]
    if summary.ignored:
        lines.append(f"columns ignored: {some_names(summary.ignored)}")
    lines.append(f"times: {summary.time_unit}" if summary.time_unit else "times: none; the order of lines counts")
    return lines
