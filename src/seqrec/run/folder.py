"""The run folder, which training writes and everything else reads. It contains no pickles.

- ``config.json``: the model, its sizes, and the options of preparing, splitting and training
- ``data/``: the :class:`seqrec.Dataset` with its ids and histories
- ``weights.safetensors``: the weights in use: the best so far, or those of a refit
- ``weights-train.safetensors``: after a refit, the weights that were trained without held-out items
- ``transitions.safetensors``: transition counts that are added to the scores of the model, and their weight
- ``metrics.json``: the test metrics
- ``epochs.csv``: one row per epoch
- ``state/``: ``training.safetensors``, from which another process can resume; and ``start.safetensors`` if training
  started from another run

Each file is replaced as a whole, so a crash leaves the last good one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqrec.data.batches import pack
from seqrec.data.checked import check_files, parse_json, read_json
from seqrec.data.dataset import Dataset
from seqrec.data.split import Split, TrainedOn, histories_of_users
from seqrec.errors import InputError, one_line
from seqrec.files import replacing, sync
from seqrec.models.base import Model
from seqrec.models.features import SIZES, give_features
from seqrec.models.transitions import Addition
from seqrec.run.additions import read_addition, write_addition
from seqrec.run.config import CONFIG, FORMAT_VERSION, MOST_CONFIG, Refit, RunConfig, check_same, config_of, run_id
from seqrec.run.layout import DATA, EPOCHS, KNOWN, METRICS, STATE, TRAIN_WEIGHTS, WEIGHTS, is_begun, remove_left_over
from seqrec.run.place import Place, check_free
from seqrec.run.records import read_epochs, write_epochs, write_json
from seqrec.run.start import Start, write_start
from seqrec.run.tensors import (
    Header,
    check_finite,
    checksum,
    load_tensors,
    mark_of,
    read_header,
    save_tensors,
    write_tensors,
)

__all__ = ["DATA", "EPOCHS", "METRICS", "STATE", "WEIGHTS", "Run", "check_free"]

_ADVICE = "copy it back from where the run was made, or train again"
_USERS, _ITEMS = 4, 64  # enough to see whether scores differ
#: The part of a run that weights are, stored in their file so that the two cannot be mixed up.
PARTS: dict[TrainedOn, str] = {
    "train": "weights",
    "train+valid": "weights of a refit on train and valid",
    "all": "weights of a refit on all",
}


class Run:
    """A run folder that exists.

    Args:
        folder: path of the run folder.
        place: final location of the run, locked by this process. Needed for writing during training.
    """

    place: Place | None = None
    #: What the weights that the training of this object saves are trained on; see :class:`seqrec.run.refit.RefitRun`.
    trains: TrainedOn = "train"
    #: What the weights in use were trained on; known once they were read.
    trained_on: TrainedOn | None = None
    prefix = ""  # of the files in ``state/``

    def __init__(self, folder: str | Path, place: Place | None = None) -> None:
        self.folder, self.place = Path(folder), place
        try:
            there, known = self.folder.is_dir(), os.path.lexists(self.folder / CONFIG)
        except (OSError, ValueError) as error:  # the name is too long, or a folder may not be read
            raise InputError(f"{self.folder}: cannot be opened ({one_line(error)}); check the path") from error
        if not there:
            raise InputError(f"{self.folder}: no such run folder; seqrec fit LOG --out {self.folder} creates one")
        if not known:
            raise InputError(f"{self.folder}: not a run folder ({CONFIG} is missing); give one that seqrec fit wrote")
        check_files(self.folder, KNOWN, "train again, or copy the folder again")

    @classmethod
    def create(
        cls, folder: str | Path, config: RunConfig, dataset: Dataset, overwrite: bool = False, **contents: Any
    ) -> "Run":
        """Create a run folder, completely or not at all. A folder that is not empty is refused.

        The run consists of the configuration and the data, and of ``contents``, the keywords of :meth:`begin`.
        """
        with Place(folder) as place:
            place.settle(resume=False, overwrite=overwrite)
            run = cls.begin(place, config, dataset, **contents)
            run.take_over(unfinished=True)
        return cls(folder)

    @classmethod
    def begin(
        cls,
        place: Place,
        config: RunConfig,
        dataset: Dataset,
        *,
        weights: Mapping[str, Tensor] | None = None,
        refitted: tuple[TrainedOn, Mapping[str, Tensor]] | None = None,
        addition: Addition | None = None,
        start: Start | None = None,
        epochs: Sequence[Mapping[str, Any]] = (),
        metrics: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Start a run in a locked place. A run that is already there stays until the new one has weights.

        ``weights`` make it a finished run. ``refitted`` are the weights of a refit and what they were trained on; they
        are then the ones in use. ``addition`` are the counts that are added to the scores. ``start`` are the weights
        of another run that training starts from.
        """
        with place.making() as new:
            values = {"format_version": FORMAT_VERSION, **asdict(config)}
            write_json(new / CONFIG, values)
            (new / DATA).mkdir()
            dataset.write_to(new / DATA)
            write_epochs(new / EPOCHS, epochs)  # so that the run opens as soon as it has weights
            write_start(new, run_id(values), start)
            if weights is not None:
                name = WEIGHTS if refitted is None else TRAIN_WEIGHTS
                write_tensors(new / name, weights, mark_of(run_id(values), PARTS["train"], weights))
                if refitted is not None:
                    trained_on, tensors = refitted
                    write_tensors(new / WEIGHTS, tensors, mark_of(run_id(values), PARTS[trained_on], tensors))
                write_addition(new, run_id(values), addition)
                if metrics is not None:
                    write_json(new / METRICS, metrics)
        run = cls(place.current, place)
        run.take_over()
        return run

    @classmethod
    def resume(cls, place: Place, config: RunConfig, but: Sequence[str]) -> "Run":
        """Open a run to continue it: the one in the place, or the one that a killed process was going to put there.

        Args:
            place: location of the run, locked by this process.
            config: configuration that the run must have been started with.
            but: names of options that may differ.

        Raises:
            InputError: the run was started on another log or with other options, or its data is damaged.
        """
        run = None
        for new in place.unfinished():
            try:
                found = cls(new, place)
                check_same(new, found.config, config, but)
                found.dataset.check()
            except InputError:
                continue
            run = run or found
        if run is None:
            run = cls(place.folder, place)
            check_same(run.folder, run.config, config, but)
            run.check_resumable()
            run.dataset.check()
        place.go_on(run.folder)
        remove_left_over(run.folder)
        run.take_over()
        return run._with_refit(config.refit)

    def _with_refit(self, refit: Refit) -> "Run":
        """The same run, whose configuration now asks for this refit."""
        if refit == self.config.refit:
            return self
        with replacing(self.folder / CONFIG) as new:
            write_json(new, self._values | {"refit": refit})
        return Run(self.folder, self.place)

    def take_over(self, unfinished: bool = False) -> None:
        """Replace the old run as soon as this one has weights. ``unfinished`` also allows a run without weights."""
        if self.place is not None:
            self.place.take_over(unfinished)
            self.folder = self.place.current

    def check_there(self) -> None:
        """Raise an InputError if somebody removed or replaced the folder."""
        if self.place is not None:
            self.place.check()

    @cached_property
    def _values(self) -> dict[str, Any]:
        return read_json(self.folder / CONFIG, most=MOST_CONFIG)

    @cached_property
    def config(self) -> RunConfig:
        """The configuration."""
        return config_of(self._values, self.folder / CONFIG)

    @cached_property
    def id(self) -> str:
        """The digest that every weight file of this run contains; see :func:`seqrec.run.config.run_id`."""
        assert self.config  # reading it checks the values
        return run_id(self._values)

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset of the run. Its files are read and checked only when they are used."""
        config = self.config
        dataset = Dataset.load(self.folder / DATA, _ADVICE)
        assert dataset.saved is not None
        found = {name: getattr(dataset, name) for name in ("num_items", "num_users", "has_timestamps")}
        found["fingerprint"] = dataset.saved.facts["fingerprint"]
        for name, value in found.items():
            if getattr(config, name) != value:
                raise InputError(
                    f"{self.folder / DATA}: is not the data that the run was made with ({name} differs from "
                    f"{CONFIG}); copy it back or train again"
                )
        return replace(dataset, filters=asdict(config.prepare))

    @cached_property
    def split(self) -> Split:
        """The dataset, split as for training. The whole dataset is checked first, and the split for leaks."""
        dataset = self.dataset.check()
        try:
            split = self.config.split.apply(dataset)
            split.check()
            return split
        except (InputError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{self.folder / CONFIG}: does not fit the histories ({one_line(error)}); train again"
            ) from error

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to resume from. Weights may be written before the first checkpoint."""
        return is_begun(self.folder)

    def weights_path(self, trained_on: TrainedOn | None = None) -> Path:
        """The file of the weights in use, or of those with this training."""
        kept = self.folder / TRAIN_WEIGHTS
        return kept if trained_on == "train" and kept.exists() else self.folder / WEIGHTS

    def model(self, trained_on: TrainedOn | None = None, mapped: bool = False) -> Model:
        """The model with its weights, in evaluation mode on the CPU.

        Args:
            trained_on: what the weights must have been trained on. By default the weights in use, whatever it was.
            mapped: whether the weights stay in their file, memory-mapped, which must not be changed in place then.
        """
        path = self.weights_path(trained_on)
        if not path.exists():
            raise InputError(
                f"{path}: is missing; copy it back, or continue with seqrec fit --resume if no epoch was finished"
            )
        header, config = read_header(path), self.config
        try:
            # The sizes in config.json are compared with the file before anything of these sizes is allocated.
            model = config.outline(len(header.names))
            header.check_shapes(model.state_dict(), model.LENGTHS_OF_THE_LOG)
        except InputError as error:
            raise error if str(error).startswith(str(path)) else self._damaged(error) from error
        except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
            raise self._damaged(error) from error
        self.load_weights(model, trained_on, mapped)
        if any(config.model_config.get(option) for option in SIZES):
            give_features(model, self.dataset)
        model.addition = None if model.COUNTED else read_addition(self.folder, self.id, model.num_items)
        return model.eval()

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.folder / CONFIG}: is damaged ({one_line(error)}); train again")

    def load_weights(self, model: Model, trained_on: TrainedOn | None = None, mapped: bool = False) -> None:
        """Load the weights into a model of the run's sizes, on the CPU or without memory; ``mapped`` as above."""
        tensors = self.read_weights(model, trained_on)
        outline = any(weight.is_meta for weight in model.state_dict().values())
        if outline and not mapped:
            tensors = {name: weight.clone() for name, weight in tensors.items()}
        try:
            model.load_state_dict(tensors, assign=outline)
            model.check_weights()
        except (RuntimeError, ValueError) as error:
            path = self.weights_path(trained_on)
            raise InputError(f"{path}: does not fit the model ({one_line(error)}); train again") from error

    def read_weights(self, model: Model, trained_on: TrainedOn | None = None) -> dict[str, Tensor]:
        """The weights, memory-mapped, after checking that they belong to this run, fit the model and are finite."""
        header = read_header(self.weights_path(trained_on))
        header.check_shapes(model.state_dict(), model.LENGTHS_OF_THE_LOG)
        mark = header.check_mark(self.id, *(PARTS.values() if trained_on is None else [PARTS[trained_on]]))
        tensors = load_tensors(header)
        check_finite(header.path, tensors.items())
        if mark.get("crc32") != checksum(tensors):
            raise InputError(f"{header.path}: is damaged (its checksum differs); copy it back or train again")
        if trained_on is None:
            self.trained_on = next(name for name, part in PARTS.items() if part == mark["part"])
        return tensors

    @torch.no_grad()
    def check_scores(self, model: Model) -> None:
        """Refuse a model that scores all items alike. Only the first users and items of the run are tried."""
        if model.COUNTED or model.num_items < 2:  # counts may be equal
            return
        histories = histories_of_users(self.dataset, np.arange(min(self.dataset.num_users, _USERS)))
        hidden = model.encode_last(pack(histories, model.max_length))
        scores = model.score(hidden, torch.arange(1, min(model.num_items, _ITEMS) + 1))
        if (scores == scores[:, :1]).all():
            raise InputError(
                f"{self.folder / WEIGHTS}: scores all items alike, so it can't rank them; copy it back or train again"
            )

    def check_resumable(self) -> None:
        """Refuse a finished or saved run that lacks the training state to resume from.

        A run with weights and no state need not be finished: it may have been killed between writing the two.
        """
        if self.config.training and not self.begun and self.metrics():
            raise InputError(f"{self.folder}: has no {STATE} to resume from; train again with --overwrite")

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights that were trained without held-out items."""
        self.check_there()
        save_tensors(self.weights_path("train"), weights, mark_of(self.id, PARTS["train"], weights))

    @property
    def state_path(self) -> Path:
        """The file of the training state."""
        return self.folder / f"state/{self.prefix}training.safetensors"

    def save_state(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Replace the training state, and the weights if they are given.

        Tensors and JSON facts are in one file, so that they always match.
        """
        self.check_there()
        mark = mark_of(self.id, f"{self.prefix}training state")
        with replacing(self.state_path) as new:
            write_tensors(new, tensors, mark | {"facts": json.dumps(facts)})
            if weights is not None:
                sync(new)  # now, so that a kill hardly ever comes between the two renames
                self.save_weights(weights)

    def state_header(self) -> tuple[Header, dict[str, Any]] | None:
        """The header of the training state and its facts, or None if there is no checkpoint yet."""
        path = self.state_path
        if not path.exists():
            return None
        header = read_header(path)
        header.check_mark(self.id, f"{self.prefix}training state")
        try:
            facts = parse_json(header.metadata["facts"])
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: is damaged ({one_line(error)}); train again with --overwrite") from error
        if not isinstance(facts, dict):
            raise InputError(f"{path}: is damaged (its facts are not an object); train again with --overwrite")
        return header, facts

    def save_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace ``epochs.csv``. It has a column for every key of any row."""
        self.check_there()
        with replacing(self.folder / EPOCHS) as new:
            write_epochs(new, rows)

    def epochs(self) -> pl.DataFrame:
        """The rows of ``epochs.csv``."""
        return read_epochs(self.folder / EPOCHS)

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace ``metrics.json``."""
        self.check_there()
        with replacing(self.folder / METRICS) as new:
            write_json(new, metrics)

    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``; empty if training has not ended."""
        path = self.folder / METRICS
        return read_json(path) if path.exists() else {}
