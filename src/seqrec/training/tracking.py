"""Tracking: what MLflow or TensorBoard record of a training, in local files: its options, epochs, tests and end.

A tracker that can't be used is an error before training begins. One that fails later never ends a training.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console

from seqrec import __version__
from seqrec.data.split import TRAINED
from seqrec.errors import InputError, TrainingWarning, one_line, warn
from seqrec.run.config import RunConfig, run_id

#: How a training ended, in MLflow's words.
Status = Literal["FINISHED", "KILLED", "FAILED"]


class Tracker(Protocol):
    """A library that records trainings, and the record of one. Every method may raise any exception."""

    #: Name of the library.
    title: str

    @property
    def place(self) -> str:
        """What a tracker needs to record below this record."""

    def begin(self, key: str, name: str, resume: bool) -> dict[str, set[int]]:
        """Start a record, or go on with the last one of the same key.

        Args:
            key: what identifies the training.
            name: name of the record for people; another one if it is taken.
            resume: go on with a record, if there is one.

        Returns:
            The steps that the record already has, by name of the value.
        """

    def where(self) -> str:
        """Where the record is and how to look at it, in one line."""

    def write_options(self, options: Mapping[str, Any]) -> None:
        """Write options: texts, numbers, truth values, or None."""

    def write_texts(self, title: str, texts: Mapping[str, str], step: int) -> None:
        """Write texts by name, which belong together under a title."""

    def write_values(self, values: Mapping[str, float], step: int, moment: float) -> None:
        """Write the values of a step, measured at a moment in seconds since 1970."""

    def end(self, status: Status, step: int) -> None:
        """Note how the training ended, and after which epoch."""


def check_tracker(kind: str) -> None:
    """Refuse a tracker that is unknown or not installed.

    Raises:
        InputError: so it is.
    """
    if kind == "mlflow":
        from seqrec.training.mlflow_tracker import import_mlflow

        import_mlflow()
    elif kind == "tensorboard":
        from seqrec.training.tensorboard_tracker import import_tensorboard

        import_tensorboard()
    else:
        raise InputError(f"track is {kind!r}; give mlflow or tensorboard")


def _opened(kind: str, out: Path | None, above: str = "") -> Tracker:
    check_tracker(kind)
    if kind == "mlflow":
        from seqrec.training.mlflow_tracker import MLflowTracker

        return MLflowTracker(above)
    from seqrec.training.tensorboard_tracker import TensorBoardTracker

    return TensorBoardTracker(out, above)


class _Record:
    """A record that is written as far as the library can.

    If the tracker fails in the middle, a warning says so once. What is missing is written at the end if that works
    then, or when the run is resumed.

    Args:
        kind: ``mlflow`` or ``tensorboard``.
        out: folder that is written, if there is one.
        above: what the tracker needs to record below another record, which is then its :attr:`place`.

    Raises:
        InputError: the tracker is unknown, not installed, or can't be used.
    """

    def __init__(self, kind: str, out: Path | None, above: str = "") -> None:
        self._kind = kind
        with _explained(kind):
            self._tracker = _opened(kind, out, above)
        self._steps: dict[str, set[int]] = {}
        self._left: list[Callable[[], None]] = []  # what is not written yet
        self._begun = self._failed = False

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Record values by their name in the metrics, except those that the record has. Nothing if it never began."""
        if not self._begun:
            return
        named = {name.replace("@", "_at_"): float(value) for name, value in values.items()}  # MLflow refuses an @
        new = {name: value for name, value in named.items() if step not in self._steps.setdefault(name, set())}
        for name in new:
            self._steps[name].add(step)
        if new:
            self._left.append(partial(self._tracker.write_values, new, step, time.time()))
        if not self._failed:  # otherwise training would wait for a server again and again
            self._write()

    def _write(self) -> None:
        while self._left:
            try:
                self._left[0]()
            except Exception as error:  # noqa: BLE001 whatever it is, it must not end a training
                if not self._failed:
                    warn(
                        f"{self._tracker.title} can't be written ({one_line(error)}); training goes on, and what is "
                        "missing is added at its end, or by --resume, if that works then",
                        TrainingWarning,
                    )
                self._failed = True
                return
            del self._left[0]


class Records(_Record):
    """The record of a search or a comparison, below which each of its trainings has one of its own.

    Args:
        kind: ``mlflow`` or ``tensorboard``.
        out: folder that is written, if there is one.
        name: name of the record.

    Raises:
        InputError: the tracker is unknown, not installed, or can't be used.
    """

    def __init__(self, kind: str, out: str | Path | None, name: str) -> None:
        self._out, self._name = _real(out), name
        super().__init__(kind, self._out)
        self.interrupted = False

    def begin(self, about: Mapping[str, str], resume: bool, console: Console | None = None) -> None:
        """Start the record, or go on with it.

        Args:
            about: texts by name.
            resume: go on with the last record of the same folder.
            console: where a line says where the record is.

        Raises:
            InputError: the tracker can't be used.
        """
        with _explained(self._kind):
            self._steps = self._tracker.begin(_key("", self._out, self._name), self._name, resume)
            self._tracker.write_texts("about", {"seqrec_version": __version__, **about}, 0)
        self._begun = True
        if console is not None:
            console.print(self._tracker.where(), highlight=False, markup=False, soft_wrap=True)

    @property
    def place(self) -> str:
        """What a tracker needs to record below this record."""
        return self._tracker.place

    def below(self, name: str = "", out: str | Path | None = None) -> "Tracking | None":
        """A record below this one, by default with the name of the run folder. None, and a warning, if that fails."""
        try:
            return Tracking(self._kind, out, below=self, name=name)
        except InputError as error:
            warn(f"{error}; {name or out} is not recorded", TrainingWarning)
            return None

    def end(self, status: Status, summary: str) -> None:
        """Record how it ended."""
        self._left.append(partial(self._tracker.write_texts, "end", {"summary": summary}, 0))
        self._left.append(partial(self._tracker.end, status, 0))
        self._write()


@contextmanager
def recorded(
    kind: str | None, out: str | Path | None, name: str, about: Mapping[str, str], resume: bool,
    console: Console | None = None,
) -> Iterator[Records | None]:  # fmt: skip
    """Record a search or a comparison, and how it ends; yields None if ``kind`` is None. See :class:`Records`.

    By default the name is that of the folder.
    """
    if kind is None:
        yield None
        return
    folder = _real(out)
    records = Records(kind, out, name or (_dated("compare") if folder is None else folder.name))
    records.begin(about, resume, console)
    try:
        yield records
    except BaseException as error:
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        records.end(status, f"{type(error).__name__}: {one_line(error)}")
        raise
    records.end("KILLED" if records.interrupted else "FINISHED", "interrupted" if records.interrupted else "finished")


class Tracking(_Record):
    """The record of one training.

    Args:
        kind: ``mlflow`` or ``tensorboard``.
        out: run folder, if there is one.
        console: where a line says where the record is.
        below: record of the search or comparison that the training is part of.
        name: name of the record. By default that of the run folder.

    Raises:
        InputError: the tracker is unknown, not installed, or can't be used.
    """

    def __init__(
        self, kind: str, out: str | Path | None = None, console: Console | None = None, below: "Records | None" = None,
        name: str = "",
    ) -> None:  # fmt: skip
        self._out, self._console, self._below, self._name = _real(out), console, below, name
        super().__init__(kind, self._out, "" if below is None else below.place)
        self._last = 0  # epoch of the last row

    def begin(self, config: RunConfig, resume: bool) -> None:
        """Start the record of a run, or go on with it.

        Args:
            config: configuration of the run.
            resume: whether the run is resumed.

        Raises:
            InputError: the tracker can't be used, and the training is not part of a search or a comparison.
        """
        identity = run_id(asdict(config))
        key = _key(identity, self._out, self._name)
        name = self._name or (self._out.name if self._out is not None else _dated(config.model))
        about = {"seqrec_version": __version__, "run_id": identity}
        about |= {"run_folder": str(self._out)} if self._out is not None else {}
        reasons = {f"recipe.{option}": reason for option, reason in config.recipe.items()}
        try:
            with _explained(self._kind):
                self._steps = self._tracker.begin(key, name, resume)
                self._tracker.write_options(options_of(config))
                self._tracker.write_texts("run", about, 0)
                self._tracker.write_texts("recipe", reasons, 0)
        except InputError as error:
            if self._below is None:
                raise
            warn(f"{error}; {name} is not recorded", TrainingWarning)  # others went before it, which must not be lost
            return
        self._begun = True
        if self._console is not None:
            self._console.print(self._tracker.where(), highlight=False, markup=False, soft_wrap=True)

    def epoch(self, row: Mapping[str, Any], part: str = "train") -> None:
        """Record the row of an epoch, unless that was done before.

        Args:
            row: row of ``epochs.csv``, and other numbers of the epoch.
            part: ``train`` or ``refit``, which the names of all but the validation metrics begin with.
        """
        self._last = int(row["epoch"])
        numbers = {name: value for name, value in row.items() if name != "epoch" and isinstance(value, int | float)}
        self.add({f"{'valid' if '@' in name else part}/{name}": value for name, value in numbers.items()}, self._last)

    def refit_epoch(self, row: Mapping[str, Any]) -> None:
        """Record the row of an epoch of a refit."""
        self.epoch(row, "refit")

    def end(self, status: Status, metrics: Mapping[str, Any], summary: str) -> None:
        """Record the tests, and how the training ended. Nothing if it never began.

        Args:
            status: how it ended.
            metrics: content of ``metrics.json``, as far as it is known.
            summary: the same in a line, or the error.
        """
        if not self._begun:
            return
        tests = dict(tests_of(metrics))
        for title, test in tests.items():
            values = {f"{title}/{name}": value for name, value in test["metrics"].items()}
            self.add(values, metrics.get("best_epoch", self._last))
        said = {title: protocol_of(test) for title, test in tests.items()} | {"summary": summary}
        said |= {name: str(metrics[name]) for name in ("best_epoch", "trained_on") if name in metrics}
        self._left.append(partial(self._tracker.write_texts, "end", said, self._last))
        self._left.append(partial(self._tracker.end, status, self._last))
        self._write()


def _real(out: str | Path | None) -> Path | None:
    return None if out is None else Path(os.path.realpath(out))


def _key(identity: str, out: Path | None, name: str) -> str:
    """What identifies a record: the run, its folder, and the name of one without a folder."""
    return sha256(f"{identity} {out} {name}".rstrip().encode()).hexdigest()[:32]


def _dated(name: str) -> str:
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


@contextmanager
def _explained(kind: str) -> Iterator[None]:
    """Turn whatever goes wrong before training into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"track {kind}: can't be used ({one_line(error)}); put that right, or leave it out") from error


def options_of(config: RunConfig) -> dict[str, Any]:
    """Everything that ``config.json`` holds except the reasons, by name: texts, numbers, truth values, or None."""
    facts = {name: getattr(config, name) for name in ("num_items", "num_users", "has_timestamps", "fingerprint")}
    flat = {"model": config.model, **config.options, "refit": config.refit, **facts}
    flat |= dict(_flat("init_from", config.init_from))
    plain = str, int, float, type(None)  # bool is an int
    return {name: value if isinstance(value, plain) else json.dumps(value) for name, value in flat.items()}


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value


def tests_of(metrics: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tests in ``metrics.json``, with titles such as ``test/full``."""
    for title, part in (("test", metrics), ("refit/test", metrics.get("refit", {}))):
        for protocol, test in part.get("test", {}).items():
            yield f"{title}/{protocol}", test


def protocol_of(test: Mapping[str, Any]) -> str:
    """How a test was made, in words: what was held out, what it was ranked against, and what the weights had seen."""
    against = f"{test['negatives']} random items each, seed {test['seed']}"
    if test["negatives"] is None:
        against = f"the whole catalogue, items of the history {test['seen']}"
    trained = f"; trained {TRAINED[test['trained_on']]}" if test["trained_on"] in TRAINED else ""
    return f"{test['users']:,} users, {test['held_out']}; ranked against {against}{trained}"
