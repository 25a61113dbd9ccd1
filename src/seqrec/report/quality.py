"""Sections of a report about quality: the tests, groups of users, and the training."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import polars as pl

from seqrec.data.split import TRAINED
from seqrec.ranking.groups import Group
from seqrec.ranking.protocols import Evaluation, Scores
from seqrec.report.charts import curves_figure, groups_figure, intervals_figure
from seqrec.report.content import RunContent
from seqrec.report.html import Html, joined, table, tag
from seqrec.report.svg import Picture
from seqrec.report.tables import with_interval

#: Draws a picture and returns it as a figure of the page.
Show = Callable[[Picture], Html]
#: The main metrics in the columns of tables, and whether their intervals are shown: as many as fit beside a picture.
#: All of them are in tables that open on demand.
COLUMNS = {"ndcg@10": ("NDCG@10", True), "hr@10": ("HR@10", True), "mrr": ("MRR", False)}
_MEANING = {
    "full": "Each held-out item is ranked among the whole catalogue.",
    "sampled": "Each held-out item is ranked among random items that the user has not seen, as in many papers. The "
    "values are much higher, and say less.",
}


class Row(NamedTuple):
    """A model in a table: its name, what it is, its scores, whether it is a run, and whether others share it."""

    name: str
    about: str
    scores: Scores
    is_run: bool
    p: float | None = None
    of_one: bool = False

    @property
    def head(self) -> Html:
        """The name and what it is."""
        return joined([self.name, tag("small", self.about)] if self.about else [self.name])


def rows_of(runs: Sequence[RunContent], name: str) -> list[Row]:
    """The runs that have a test of this name, then their baselines, each once if it is the same for all."""
    tested = [run for run in runs if name in run.tests]
    found = [Row(run.label, run.model, run.tests[name], True) for run in tested]
    for run in tested:
        test = run.tests[name]
        for other, scores in test.baselines.items():
            alone = other == run.config.label
            shown = f"{other} alone" if alone else other
            if any(row.name == shown and row.scores.metrics == scores.metrics for row in found if not row.is_run):
                continue
            of_one = len(tested) > 1 and (alone or any(row.name == shown for row in found))
            shown = f"{shown} ({run.label})" if of_one else shown
            difference = test.differences.get(other)
            p = difference.p if difference is not None and len(tested) == 1 else None
            found.append(Row(shown, "without transition counts" if alone else "", scores, False, p, of_one))
    return found


def tests_section(runs: Sequence[RunContent], show: Show) -> list[Html]:
    """Metrics with intervals beside all baselines, for each protocol."""
    names = list(dict.fromkeys(name for run in runs for name in run.tests))
    parts = [_notes_on_tests(runs)]
    for name in names:
        rows = rows_of(runs, name)
        test = next(run.tests[name] for run in runs if name in run.tests)
        against = "full catalogue" if test.negatives is None else f"{test.negatives} sampled items"
        again = ", after the refit" if name.endswith("refit") else ""
        ordered = [
            (row.name, row.scores.metrics["ndcg@10"], *row.scores.intervals["ndcg@10"], row.is_run) for row in rows
        ]
        best = max(rows, key=lambda row: row.scores.metrics["ndcg@10"])
        said = "; ".join(f"{row.name} {row.scores.metrics['ndcg@10']:.4f}" for row in rows)
        picture = Picture(
            f"test-{name.replace(', ', '-')}",
            f"NDCG@10 with 95 % intervals, {against}{again}.",
            f"NDCG@10 of {len(rows)} models, {against}: {said}.",
            partial(intervals_figure, ordered, "NDCG@10"),
        )
        parts += [
            tag("h3", f"{'Full catalogue' if test.negatives is None else 'Sampled'}{again}"),
            tag("p", _MEANING[test.protocol], f" {_facts(runs, name)}."),
            tag("div", tag("div", _main_table(rows, best, against + again)), show(picture), class_="pair tested"),
            _all_metrics(rows, against + again),
        ]
    return parts


def _facts(runs: Sequence[RunContent], name: str) -> str:
    """The facts of the tests of this name: once, if they are the same for all runs."""
    stated = {run.label: _stated(run.tests[name]) for run in runs if name in run.tests}
    if len({*stated.values()}) == 1:
        return next(iter(stated.values()))
    return ". ".join(f"{label}: {facts}" for label, facts in stated.items())


def _stated(test: Evaluation) -> str:
    """What was held out, and what the weights have not seen."""
    facts = [f"{test.users:,} users; held out: {test.held_out}", f"seen items {test.seen}"]
    if test.trained_on is not None:
        facts.append(f"weights trained {TRAINED[test.trained_on]}")
    if test.cold:
        facts.append(f"{test.cold:,} targets never occur in training")
    if test.unreachable:
        facts.append(f"{test.unreachable:,} targets are in the history and count as misses")
    return "; ".join(facts)


def _main_table(rows: Sequence[Row], best: Row, against: str) -> Html:
    has_p = any(row.p is not None for row in rows)
    cells = []
    for row in rows:
        values = [
            with_interval(row.scores.metrics[name], *row.scores.intervals[name]) if intervals
            else f"{row.scores.metrics[name]:.4f}"
            for name, (_, intervals) in COLUMNS.items()
        ]  # fmt: skip
        first = tag("strong", values[0]) if row is best else values[0]
        p = [] if not has_p else ["" if row.p is None else f"{row.p:.1g}"]
        cells.append([row.head, first, *values[1:], *p])
    columns = ["model", *(name for name, _ in COLUMNS.values()), *["p"] * has_p]
    note = " p: paired test of the difference in NDCG@10 from the run." if has_p else ""
    return table(f"Test, {against}, with half the width of 95 % intervals.{note}", columns, cells)


def _all_metrics(rows: Sequence[Row], against: str) -> Html:
    """All metrics of all rows, on demand. Recall is left out, as it equals the hit rate here."""
    names = [name for name in rows[0].scores.metrics if not name.startswith("recall@")]
    cells = [
        [name, *(f"{row.scores.metrics[name]:.4f}" if name in row.scores.metrics else "" for row in rows)]
        for name in names
    ]
    intervals = [
        [
            name,
            *(
                "{:.4f} to {:.4f}".format(*row.scores.intervals[name]) if name in row.scores.intervals else ""
                for row in rows
            ),
        ]
        for name in names
    ]
    columns = ["metric", *(row.name for row in rows)]
    return tag(
        "details",
        tag("summary", "All metrics and intervals"),
        table(f"All metrics, {against}", columns, cells),
        table(f"95 % intervals, {against}", columns, intervals),
    )


def _notes_on_tests(runs: Sequence[RunContent]) -> Html:
    """What stands in the way of a comparison, if anything does."""
    notes = [
        f"{run.label}: training has not ended, so there is no test yet; continue with seqrec fit --resume."
        if not run.metrics
        else f"{run.label}: nothing was held out for a test."
        for run in runs
        if not run.tests
    ]
    kinds = {(run.config.fingerprint, test.held_out, test.seen, test.users)
             for run in runs for name, test in run.tests.items() if name == "full"}  # fmt: skip
    if len(kinds) > 1:
        notes.append("These runs were tested on different logs or items, so their figures cannot be compared.")
    return joined(tag("p", note, class_="note") for note in notes)


def groups_section(runs: Sequence[RunContent], show: Show) -> list[Html]:
    """NDCG@10 for groups of users, in the full ranking."""
    rows = rows_of(runs, "full")
    if not rows:
        return []
    found = []
    titles = {"history": "items in the history", "popularity": "interactions of the held-out item in training"}
    for by, label in titles.items():
        sizes: dict[tuple[int, str], None] = {}
        for row in rows:
            sizes |= {(one.least, one.name): None for one in row.scores.groups.get(by, [])}
        names = [name for _, name in sorted(sizes)]
        if not names:
            continue
        values = [{one.name: one for one in row.scores.groups.get(by, [])} for row in rows]
        lines = [
            (row.name, [_of_group(own.get(name)) for name in names], row.is_run)
            for row, own in zip(rows, values, strict=True)
            if not row.of_one  # the table has them all
        ]
        cells = [
            [row.head, *(f"{own[name].metrics['ndcg@10']:.4f}" if name in own else "" for name in names)]
            for row, own in zip(rows, values, strict=True)
        ]
        users = ["users", *(f"{values[0][name].users:,}" if name in values[0] else "" for name in names)]
        picture = Picture(
            f"groups-{by}",
            f"NDCG@10 by {label}.",
            f"NDCG@10 of {len(lines)} models for {len(names)} groups of users by {label}; values in the table below.",
            partial(groups_figure, names, lines, label),
        )
        numbers = tag(
            "details", tag("summary", "As a table"), table(f"NDCG@10 by {label}", ["", *names], [users, *cells])
        )
        found.append(tag("div", show(picture), numbers))
    return [tag("div", *found, class_="grid")] if found else []


def _of_group(group: Group | None) -> tuple[float, float, float] | None:
    return None if group is None else (group.metrics["ndcg@10"], *group.intervals["ndcg@10"])


def training_section(runs: Sequence[RunContent], show: Show) -> list[Html]:
    """Training curves, and how the training ended."""
    curves = {run.label: run.epochs for run in runs if run.has_curves}
    pictures = []
    if curves:
        last = "; ".join(
            f"{name}: {frame['loss'].drop_nulls()[-1]:.3f} after {frame.height} epochs"
            for name, frame in curves.items()
        )
        pictures.append(show(Picture("training-loss", "Training loss by epoch.", f"Training loss by epoch. {last}.",
                                     partial(curves_figure, curves, "loss", "training loss"))))  # fmt: skip
    validated = {
        name: frame for name, frame in curves.items() if "ndcg@10" in frame.columns and frame["ndcg@10"].count() > 0
    }
    if validated:
        best = "; ".join(f"{name}: at best {_highest(frame):.4f}" for name, frame in validated.items())
        pictures.append(
            show(
                Picture(
                    "validation-ndcg",
                    "Validation NDCG@10 by epoch, full ranking. The ring marks the best epoch.",
                    f"Validation NDCG@10 by epoch. {best}.",
                    partial(curves_figure, validated, "ndcg@10", "NDCG@10"),
                )
            )
        )
    parts = [tag("div", *pictures, class_="grid")] if pictures else []
    parts += [tag("p", f"{run.label}: {_how_trained(run)}.") for run in runs]
    if any(run.config.recipe for run in runs):
        parts.append(_recipe(runs))
    return parts


def _highest(epochs: pl.DataFrame) -> float:
    return float(epochs["ndcg@10"].drop_nulls().to_numpy().max())


def _how_trained(run: RunContent) -> str:
    facts = []
    if not run.config.training:
        facts.append(f"{run.config.model} is counted in one pass and has no epochs")
    elif run.epochs.height:
        seconds = float(run.epochs["total_seconds"].sum()) if "total_seconds" in run.epochs.columns else 0.0
        facts.append(f"{run.epochs.height} epochs in {duration(seconds)}")
        if isinstance(best := run.metrics.get("best_epoch"), int):
            facts.append(f"epoch {best} was the best on the validation items")
    else:
        facts.append("no epoch has ended yet")
    if run.stopped_by_time:
        facts.append("the time limit ended the training")
    facts.append(
        "there are no weights yet"
        if run.trained_on is None
        else f"the weights in use were trained {TRAINED[run.trained_on]}"
    )
    counts = run.metrics.get("transitions")
    if isinstance(counts, dict) and isinstance(weight := counts.get("weight"), int | float):
        facts.append(
            f"transition counts are added with weight {weight:.3g}"
            if weight
            else "transition counts do not help and are not added"
        )
    return "; ".join(facts)


def _recipe(runs: Sequence[RunContent]) -> Html:
    cells = [
        [option, *([run.label] if len(runs) > 1 else []), _value(run, option), reason]
        for run in runs
        for option, reason in run.config.recipe.items()
    ]
    columns = ["option", *(["run"] if len(runs) > 1 else []), "value", "reason"]
    return tag(
        "details",
        tag("summary", "What was chosen from the log, and why"),
        table("Options that were not given", columns, cells, class_="words"),
    )


def _value(run: RunContent, option: str) -> object:
    return (run.config.training | run.config.model_config).get(option, "")


def duration(seconds: float) -> str:
    """Seconds in words: ``48 s``, ``9 min 45 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
