"""What a report shows of one run, read from its folder and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.dataset import Dataset
from seqrec.data.split import Split, TrainedOn
from seqrec.errors import InputError, one_line
from seqrec.models.ensemble import in_turn, kinds_of
from seqrec.ranking.groups import Group
from seqrec.ranking.paired import Difference
from seqrec.ranking.protocols import Evaluation, Scores
from seqrec.report.command import command_of
from seqrec.report.measures import Measured, measure
from seqrec.run.config import RunConfig
from seqrec.run.folder import METRICS, WEIGHTS, Run
from seqrec.run.place import reading


@dataclass
class RunContent:
    """A run as a report shows it.

    Args:
        label: name of the run in the report.
        folder: run folder.
        config: its configuration.
        metrics: content of ``metrics.json``; empty if training has not ended.
        epochs: rows of ``epochs.csv``.
        dataset: its dataset.
        split: the dataset, split as for training.
        trained_on: what the weights in use were trained on; None if there are no weights yet.
        measured: what was measured of the model; None without weights.
        tests: the tests in ``metrics.json``, by name.
    """

    label: str
    folder: Path
    config: RunConfig
    metrics: dict[str, Any]
    epochs: pl.DataFrame
    dataset: Dataset
    split: Split
    trained_on: TrainedOn | None = None
    measured: Measured | None = None
    tests: dict[str, Evaluation] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model in words: its name, how many models there are, and what is added."""
        count = self.config.training.get("ensemble") or 1
        kinds = kinds_of(self.config.model, count, self.config.training.get("ensemble_kinds") or "same")
        name = self.config.model
        if len({*kinds}) > 1:
            name = f"{count} models ({in_turn(kinds)})"
        elif count > 1:
            name = f"{count} × {name}"
        return f"{name} + transition counts" if self.adds else name

    @property
    def adds(self) -> bool:
        """Whether transition counts are added to the scores of the model."""
        counts = self.metrics.get("transitions")
        return isinstance(counts, dict) and bool(counts.get("weight"))

    @property
    def stopped_by_time(self) -> bool:
        """Whether a time limit ended the training, so that a repetition is not the same."""
        budget = self.metrics.get("budget")
        return isinstance(budget, dict) and bool(budget.get("ended_training"))

    @property
    def has_curves(self) -> bool:
        """Whether there is an epoch with a loss."""
        return self.epochs.height > 0 and self.epochs["loss"].dtype.is_numeric() and self.epochs["loss"].count() > 0

    @cached_property
    def command(self) -> str:
        """The command that trains it again."""
        return command_of(self.config, self.folder, self.split, self.epochs.height if self.stopped_by_time else None)

    def names(self, items: np.ndarray) -> list[tuple[str, str | None]]:
        """Title of each item, or its id if it has none, and the id beside the title."""
        places = items.astype(np.int64) - 1
        ids = [str(one) for one in self.dataset.item_ids.gather(places).to_list()]
        table = self.dataset.item_table
        titles = None if table is None or table.titles is None else table.titles.gather(places).to_list()
        if titles is None:
            return [(one, None) for one in ids]
        return [(title, one) if title else (one, None) for title, one in zip(titles, ids, strict=True)]


def read_content(folder: str | Path, label: str) -> RunContent:
    """Read a run, and measure its model on a sample of users.

    Raises:
        InputError: the folder is not a run, or is damaged.
    """
    return reading(folder, lambda: _read(Run(folder), label))


def _read(run: Run, label: str) -> RunContent:
    metrics = run.metrics()
    found = RunContent(label, run.folder, run.config, metrics, run.epochs(), run.dataset, run.split)
    found.tests = tests_of(metrics, run.folder / METRICS)
    if (run.folder / WEIGHTS).exists():
        model = run.model()
        run.check_scores(model)
        assert run.trained_on is not None
        found.trained_on = tested = run.trained_on
        if tested == "all":  # what was tested are the weights from before the refit
            model, tested = run.model("train"), "train"
        found.measured = measure(model, run.dataset, run.split, tested, bool(run.config.split.keep_seen))
    return found


def tests_of(metrics: Mapping[str, Any], path: Path) -> dict[str, Evaluation]:
    """The tests in ``metrics.json`` by name: ``full`` and ``sampled``, and those of a refit, ``full, refit`` and so on.

    Raises:
        InputError: the file does not have the form that training writes.
    """
    found: dict[str, Evaluation] = {}
    try:
        refit = metrics.get("refit") or {}
        for values, ending in ((metrics.get("test") or {}, ""), (refit.get("test") or {}, ", refit")):
            found |= {f"{name}{ending}": evaluation_of(one) for name, one in values.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        advice = "copy it back from where the run was made, or train again"
        raise InputError(f"{path}: is damaged ({one_line(error)}); {advice}") from error
    return found


def evaluation_of(values: Mapping[str, Any]) -> Evaluation:
    """The evaluation that :meth:`Evaluation.to_dict` described."""
    own = {name: value for name, value in values.items() if name not in ("metrics", "intervals", "groups")}
    own["baselines"] = {str(name): Scores(**_scores(one)) for name, one in values["baselines"].items()}
    own["differences"] = {
        str(name): Difference(mean=float(one["mean"]), interval=_ends(one["interval"]), p=float(one["p"]))
        for name, one in values["differences"].items()
    }
    for name in ("users", "seed", "unreachable", "cold"):
        own[name] = int(own[name])
    if own["protocol"] not in ("full", "sampled") or own["trained_on"] not in ("train", "train+valid", "all", None):
        raise ValueError("an unknown protocol, or weights of an unknown kind")
    return Evaluation(**own, **_scores(values))


def _scores(values: Mapping[str, Any]) -> dict[str, Any]:
    groups = {
        str(by): [
            Group(
                int(one["least"]),
                None if one["most"] is None else int(one["most"]),
                int(one["users"]),
                {name: float(value) for name, value in one["metrics"].items()},
                {name: _ends(ends) for name, ends in one["intervals"].items()},
            )
            for one in found
        ]
        for by, found in values["groups"].items()
    }
    metrics = {str(name): float(value) for name, value in values["metrics"].items()}
    intervals = {str(name): _ends(ends) for name, ends in values["intervals"].items()}
    if metrics.keys() != intervals.keys() or not {"ndcg@10", "hr@10", "mrr"} <= metrics.keys():
        raise ValueError("a metric is missing, or has no interval")
    return {"metrics": metrics, "intervals": intervals, "groups": groups}


def _ends(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
