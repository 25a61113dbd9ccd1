"""A run that is being served: its predictor and its facts, replaced as one when the run folder changes."""

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from seqrec.data.dataset import Dataset
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.predictor import Predictor
from seqrec.ranking.additions import recounted
from seqrec.run.folder import Run
from seqrec.run.layout import EPOCHS, TRANSITIONS
from seqrec.run.lock import Lock
from seqrec.run.new_items import NothingToAdd
from seqrec.run.place import reading
from seqrec.run.tensors import read_header
from seqrec.serve.finding import Finder
from seqrec.serve.snapshots import Signature, Snapshots, signature_of, signature_of_items


class NewItems(NamedTuple):
    """What became of a file of items that training never saw; see :class:`seqrec.serve.schemas.NewItems`."""

    file: str
    added: int
    note: str | None


@dataclass(frozen=True, eq=False)
class Live:
    """A run in memory. It is immutable, so that a request that has it never mixes two models."""

    name: str
    folder: Path
    predictor: Predictor
    version: str
    label: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    epochs: pl.DataFrame | None
    loaded: datetime
    signature: Signature
    new_items: NewItems | None = None

    @property
    def has_features(self) -> bool:
        """Whether the model learned features of items, so that it can rank new ones."""
        return bool(self.config["model_config"].get("features"))

    @property
    def model(self) -> Model:
        """The model."""
        return self.predictor.model

    @cached_property
    def without_counts(self) -> Predictor:
        """The same model without transition counts, which are of the whole log, so also of what is held out."""
        # A replay ranks a few histories; building and measuring a second first pass would take longer.
        return Predictor(
            recounted(self.model, None), self.predictor.dataset, self.predictor.keep_seen, first_pass=False
        )

    @cached_property
    def finder(self) -> Finder:
        """What searches the items and users."""
        return Finder(self.predictor.dataset)

    @property
    def titles(self) -> pl.Series | None:
        """Title of each item, at its index less 1; None if there are none."""
        table = self.predictor.dataset.item_table
        return None if table is None else table.titles

    @property
    def transitions_weight(self) -> float | None:
        """Weight of the transition counts in the scores; None if there are none."""
        addition = self.model.addition
        return None if addition is None else float(addition.weight)


def load(
    folder: Path,
    name: str,
    engine: str = "torch",
    snapshots: Snapshots | None = None,
    new_items: Path | None = None,
) -> Live:
    """Open a run folder for serving, from a private copy.

    Args:
        folder: run folder.
        name: name of the run.
        engine: what computes the model, torch or onnx.
        snapshots: where the copy is made. By default in a folder that is removed at once: mapped files outlive it.
        new_items: file of items to add. A run that knows them all, or learned no features, is served without them.

    Raises:
        InputError: the folder is not a run, is damaged, or can't be served, or the file of items can't be used.
    """
    if snapshots is None:
        with tempfile.TemporaryDirectory(prefix="seqrec-run-") as root:
            return load(folder, name, engine, Snapshots(Path(root)), new_items)

    def open_it() -> Live:
        signature, items = signature_of(folder), signature_of_items(new_items)
        copy = snapshots.of(folder, name, signature)
        if signature_of(folder) != signature:
            shutil.rmtree(copy, ignore_errors=True)
            raise InputError(f"{folder}: is being written to; try again later")
        live = snapshots.reading(folder, copy, lambda: _live(folder, name, engine, copy, signature + items, new_items))
        if signature_of_items(new_items) != items:
            raise InputError(f"{new_items}: is being written to; try again later")
        snapshots.forget(name, copy)
        return live

    return reading(folder, open_it)


def _live(
    folder: Path, name: str, engine: str, copy: Path, signature: Signature, new_items: Path | None = None
) -> Live:
    run = Run(copy)
    note: str | None = None
    try:
        predictor = _predictor(copy, engine, new_items)
    except NothingToAdd as error:
        predictor, note = _predictor(copy, engine), str(error)
    added = predictor.dataset.num_items - run.config.num_items
    table = predictor.dataset.item_table
    if table is not None:
        table.read()
    return Live(
        name=name,
        folder=folder,
        predictor=predictor,
        version=_version(run, predictor.dataset if added else None),
        label=run.config.label,
        config=json.loads(json.dumps(asdict(run.config), default=str)),
        metrics=run.metrics(),
        epochs=run.epochs() if (copy / EPOCHS).exists() else None,
        loaded=datetime.now(UTC),
        signature=signature,
        new_items=None if new_items is None else NewItems(str(new_items), added, note),
    )


def _predictor(copy: Path, engine: str, new_items: Path | None = None) -> Predictor:
    if engine == "onnx":
        from seqrec.export.session import onnx_predictor

        return onnx_predictor(copy, torch.get_num_threads(), mapped=True, new_items=new_items)
    return Predictor.load(copy, mapped=True, new_items=new_items)


def _version(run: Run, larger: Dataset | None = None) -> str:
    """A digest of the run's options, data and weights, and of new items: the same on every machine that has the same.

    Args:
        run: the run.
        larger: dataset with new items after those of the run.
    """
    digest = hashlib.sha256(run.id.encode())
    for path in (run.weights_path(), run.folder / TRANSITIONS):
        if path.exists():
            header = read_header(path)
            digest.update(json.dumps(header.metadata, sort_keys=True).encode())
    if larger is not None and larger.item_table is not None:
        digest.update(larger.item_table.frame[run.config.num_items :].write_ndjson().encode())
    return digest.hexdigest()[:12]


def _is_written(folder: Path) -> bool:
    """Whether a training is writing to a run folder. Its weights change with every epoch."""
    return Lock(Path(os.path.realpath(folder)), folder).holder() is not None


@dataclass(frozen=True, eq=False)
class Lives:
    """The runs at one moment, by name; the first is the default."""

    by_name: dict[str, Live]

    def get(self, name: str | None = None) -> Live:
        """A run by its name; the first one by default.

        Raises:
            InputError: there is no such run.
        """
        if name is None:
            return next(iter(self.by_name.values()))
        if name not in self.by_name:
            raise InputError(f"run: there is no run {name!r}; choose from {', '.join(self.by_name)}")
        return self.by_name[name]


class Runs:
    """The runs that a server has, now in ``current``. They are read without a lock, and replaced one at a time.

    Args:
        folders: run folders; each is named like its folder.
        engine: what computes the model.
        report: called with the name, and the new version or the error, when a run was replaced or refused.
        snapshots: where copies of the runs are made.
        new_items: file of items that training never saw. Runs that learned features rank them too. A changed file is
            read again, like a changed run.

    Raises:
        InputError: a folder can't be served, two have the same name, or no run can rank new items.
    """

    def __init__(
        self,
        folders: list[Path],
        engine: str = "torch",
        report: Callable[[str, str | Exception], None] | None = None,
        snapshots: Snapshots | None = None,
        new_items: Path | None = None,
    ) -> None:
        self._snapshots, self._new_items = snapshots, new_items
        self._engine, self._report = engine, report or (lambda name, result: None)
        self._lock = threading.Lock()
        names = [Path(os.path.realpath(folder)).name for folder in folders]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise InputError(f"two runs have the name {name}; rename one of the folders")
        self.current = Lives(
            {
                name: load(folder, name, engine, snapshots, new_items)
                for name, folder in zip(names, folders, strict=True)
            }
        )
        notes = [live.new_items.note for live in self.all() if live.new_items is not None and not live.has_features]
        if notes and len(notes) == len(folders):
            raise InputError(f"{new_items}: {notes[0]}")
        self._seen: dict[str, Signature] = {}
        self.refused: dict[str, str] = {}

    def get(self, name: str | None = None) -> Live:
        """A run as it is now; see :meth:`Lives.get`."""
        return self.current.get(name)

    def all(self) -> list[Live]:
        """All runs, the default first."""
        return list(self.current.by_name.values())

    def reload(self, settled: bool = False) -> dict[str, Exception]:
        """Replace each run whose folder has changed. A run that can't be used is refused, and the one in use stays.

        Args:
            settled: replace a run only if its folder has not changed since the last call, because it may still be
                written to.

        Returns:
            The error of each run that was refused now.
        """
        errors: dict[str, Exception] = {}
        with self._lock:
            for live in self.all():
                now = signature_of(live.folder) + signature_of_items(self._new_items)
                if now == live.signature:
                    self.refused.pop(live.name, None)
                    continue
                before, self._seen[live.name] = self._seen.get(live.name), now
                if settled and before != now:
                    self.refused.pop(live.name, None)
                if settled and (before != now or live.name in self.refused or _is_written(live.folder)):
                    continue
                try:
                    new = load(live.folder, live.name, self._engine, self._snapshots, self._new_items)
                    self.current = Lives(self.current.by_name | {live.name: new})
                    self.refused.pop(live.name, None)
                    self._report(live.name, new.version)
                except (InputError, OSError, MemoryError) as error:
                    errors[live.name] = error
                    self.refused[live.name] = str(error)
                    self._report(live.name, error)
        return errors
