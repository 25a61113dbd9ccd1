"""The run folder: what training writes and everything else reads. No pickle anywhere.

``config.json`` (model, sizes, how the log was prepared and split, how it was trained),
``items.parquet`` and ``users.parquet`` (ids and histories), ``weights.safetensors`` (the best so far),
``metrics.json``, ``epochs.csv`` (a row an epoch) and ``state/`` (``training.safetensors`` and the running mean of
the weights: all that a later process needs to go on). Each file is replaced whole, so a crash leaves the last good one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from torch import Tensor

from seqrec.data.dataset import Dataset, met_fits
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import Split, SplitConfig
from seqrec.errors import InputError, one_line
from seqrec.files import is_left_over, remove_beside, remove_left_over, replacing, replacing_folder
from seqrec.models.base import Model
from seqrec.run.config import CONFIG, FORMAT_VERSION, RunConfig, fingerprint
from seqrec.run.records import read_json, write_epochs, write_json
from seqrec.run.tensors import load_tensors, save_tensors, write_tensors

WEIGHTS = "weights.safetensors"
ITEMS = "items.parquet"
USERS = "users.parquet"
METRICS = "metrics.json"
EPOCHS = "epochs.csv"
STATE = "state/training.safetensors"
_OWN = {CONFIG, WEIGHTS, ITEMS, USERS, METRICS, EPOCHS, "state", "training.png", "recommendations.png"}


class Run:
    """A run folder that exists."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such run folder; seqrec fit LOG --out {self.folder} makes one")
        if not (self.folder / CONFIG).is_file():
            raise InputError(f"{self.folder}: not a run folder ({CONFIG} is missing); give one that seqrec fit wrote")

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: RunConfig,
        dataset: Dataset,
        overwrite: bool = False,
        *,
        weights: Mapping[str, Tensor] | None = None,
        epochs: Sequence[Mapping[str, Any]] = (),
        metrics: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make the folder whole or not at all; refuse one that holds anything.

        It has configuration, ids and histories; with ``weights`` it is a finished run.
        """
        folder = Path(folder)
        check_free(folder, overwrite)
        with replacing_folder(folder) as new:
            write_json(new / CONFIG, {"format_version": FORMAT_VERSION, **asdict(config)})
            dataset.item_ids.alias("item_id").to_frame().write_parquet(new / ITEMS)
            offsets = np.asarray(dataset.offsets)
            users = pl.DataFrame(
                {
                    "user_id": dataset.user_ids,
                    "items": _lists(dataset.items, offsets, pl.Int32),
                    "timestamps": _lists(dataset.timestamps, offsets, pl.Int64),
                }
            )
            if dataset.met_items is not None:
                met = pa.LargeListArray.from_arrays(dataset.met_offsets, dataset.met_items)
                users = users.with_columns(pl.Series("met", met, dtype=pl.List(pl.Int32)))
            users.write_parquet(new / USERS)
            if weights is not None:
                write_tensors(new / WEIGHTS, weights, {})
                write_epochs(new / EPOCHS, epochs)
                write_json(new / METRICS, metrics or {})
        return cls(folder)

    @cached_property
    def config(self) -> RunConfig:
        """The configuration."""
        path = self.folder / CONFIG
        values = read_json(path)
        version = values.pop("format_version", None)
        if not isinstance(version, int):
            raise InputError(f"{path}: has no format_version; give a folder that seqrec fit wrote")
        if version > FORMAT_VERSION:
            raise InputError(f"{path}: format {version} is newer than this seqrec's {FORMAT_VERSION}; update seqrec")
        try:
            values["prepare"] = PrepareConfig(**values["prepare"])
            values["split"] = SplitConfig(**values["split"])
            config = RunConfig(**values)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: is damaged ({error}); train again") from error
        kinds = {"model": str, "model_config": dict, "num_items": int, "num_users": int, "has_timestamps": bool,
                 "fingerprint": str, "training": dict}  # fmt: skip
        for name, kind in kinds.items():
            value = getattr(config, name)
            if type(value) is not kind:
                raise InputError(f"{path}: is damaged ({name} is {value!r}); train again")
        return config

    @cached_property
    def dataset(self) -> Dataset:
        """The interactions that the run was given, all of them."""
        items = self._read(ITEMS, pl.read_parquet, ["item_id"])
        users = self._read(USERS, pl.read_parquet, ["user_id", "items", "timestamps"])
        try:
            lengths = users["items"].list.len().to_numpy().astype(np.int64)
            same = (users["timestamps"].list.len().to_numpy() == lengths).all()
            dataset = Dataset(
                items=users["items"].explode().to_numpy().astype(np.int32, copy=False),
                timestamps=users["timestamps"].explode().to_numpy().astype(np.int64, copy=False),
                offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                user_ids=users["user_id"],
                item_ids=items["item_id"],
                has_timestamps=self.config.has_timestamps,
                **_met(users),
            )
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{self.folder / USERS}: is damaged ({one_line(error)}); train again") from error
        sizes = (dataset.num_users, dataset.num_items)
        known = (self.config.num_users, self.config.num_items)
        bounds = dataset.num_interactions == 0 or (dataset.items.min() >= 1 and dataset.items.max() <= known[1])
        if sizes != known or not same or not bounds or not met_fits(dataset):
            raise InputError(
                f"{self.folder}: {USERS} and {ITEMS} hold {sizes} users and items, {CONFIG} says {known}, or the "
                "histories do not fit; the folder was mixed or damaged, train again"
            )
        if fingerprint(dataset) != self.config.fingerprint:
            raise InputError(
                f"{self.folder}: {USERS} and {ITEMS} are not those that the run was made with; copy them back or "
                "train again"
            )
        return dataset

    @cached_property
    def split(self) -> Split:
        """The dataset, split as for training."""
        try:
            return self.config.split.apply(self.dataset)
        except InputError as error:
            raise InputError(f"{self.folder / CONFIG}: does not fit the histories ({error}); train again") from error

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from; weights may be there before it."""
        return (self.folder / STATE).is_file()

    def model(self) -> Model:
        """The model with its weights, in evaluation mode on the CPU."""
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise InputError(
                f"{path}: is missing; copy it back, or go on with seqrec fit --resume where no epoch was finished"
            )
        try:
            model = self.config.build()
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"{self.folder / CONFIG}: is damaged ({one_line(error)}); train again") from error
        self.load_weights(model)
        return model.eval()

    def load_weights(self, model: Model) -> None:
        """Put the weights into a model of the run's sizes, on the CPU."""
        path = self.folder / WEIGHTS
        tensors, _ = load_tensors(path)
        expected = model.state_dict()
        for name in sorted(set(expected) | set(tensors)):
            if name not in tensors:
                raise InputError(f"{path}: weight {name} is missing; the file is of another model, train again")
            if name not in expected:
                raise InputError(f"{path}: weight {name} is unknown to {self.config.model}; train again")
            wrong = tensors[name].shape != expected[name].shape or tensors[name].dtype != expected[name].dtype
            if wrong and not model.COUNTED:  # counted models have arrays as long as what they counted
                raise InputError(
                    f"{path}: weight {name} is {tensors[name].dtype} {list(tensors[name].shape)} where the model has "
                    f"{expected[name].dtype} {list(expected[name].shape)}; the file is of another model, train again"
                )
        try:
            model.load_state_dict(tensors)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: does not fit the model ({one_line(error)}); train again") from error

    def sweep(self) -> None:
        """Remove what a killed process left half written, and the run that it was replacing with this one."""
        remove_left_over(self.folder)
        if self.begun:
            remove_beside(self.folder)

    def check_resumable(self) -> None:
        """Refuse a run that ended or was saved without the state that training would go on from.

        Weights alone are no sign: a kill between the first weights and the first state leaves them too.
        """
        if self.config.training and not self.begun and self.metrics():
            raise InputError(f"{self.folder}: has no {STATE} to go on from; train anew with --overwrite")

    def check_same(self, config: RunConfig, but: Sequence[str]) -> None:
        """Refuse to resume with another log or other options than the run began with, but for those of some names."""
        old, new = asdict(self.config), asdict(config)
        if old["fingerprint"] != new["fingerprint"]:
            raise InputError(f"{self.folder}: the run was begun on another log; give that log, or --overwrite")
        for part in ("model", "model_config", "prepare", "split", "training"):
            before, now = (value if isinstance(value, dict) else {part: value} for value in (old[part], new[part]))
            for name in before:
                plain = [list(v) if isinstance(v, tuple) else v for v in (before[name], now.get(name))]
                if plain[0] != plain[1] and name not in but:
                    raise InputError(
                        f"{self.folder}: the run was begun with {name} = {before[name]}, not {now.get(name)}; "
                        "resume with the same options, or --overwrite"
                    )

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights."""
        save_tensors(self.folder / WEIGHTS, weights, {})

    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the training state: tensors and JSON facts in one file, so they can't part."""
        save_tensors(self.folder / STATE, tensors, {"facts": json.dumps(facts)})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The training state, or None where no checkpoint was written yet."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        tensors, metadata = load_tensors(path)
        try:
            return tensors, json.loads(metadata["facts"])
        except (KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: is damaged; train again with --overwrite") from error

    def mean_path(self, epoch: int) -> Path:
        """Where the running mean of the weights at the end of an epoch is."""
        return self.folder / f"state/mean-{epoch}.safetensors"

    def save_mean(self, weights: Mapping[str, Tensor], epoch: int) -> None:
        """Write the running mean of an epoch beside that of the one before, which the training state still needs."""
        save_tensors(self.mean_path(epoch), weights, {})

    def forget_means(self, but: int) -> None:
        """Remove the running means of all epochs but one, which the training state now needs."""
        for path in self.folder.glob("state/mean-*.safetensors"):
            if path != self.mean_path(but):
                path.unlink(missing_ok=True)

    def save_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace ``epochs.csv``; a column is there if any epoch has it."""
        with replacing(self.folder / EPOCHS) as new:
            write_epochs(new, rows)

    def epochs(self) -> pl.DataFrame:
        """``epochs.csv``."""
        return self._read(EPOCHS, pl.read_csv, ["epoch", "loss"])

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace ``metrics.json``."""
        with replacing(self.folder / METRICS) as new:
            write_json(new, metrics)

    def metrics(self) -> dict[str, Any]:
        """``metrics.json``, empty where training has not ended."""
        path = self.folder / METRICS
        return read_json(path) if path.is_file() else {}

    def _read(self, name: str, reader: Callable[..., pl.DataFrame], columns: list[str]) -> pl.DataFrame:
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path}: is missing; copy it back from where the run was made, or train again")
        try:
            frame = reader(path, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{path}: is damaged ({one_line(error)}); copy it back or train again") from error
        for column in columns:
            # A counted model has no loss.
            if column not in frame.columns or (frame[column].has_nulls() and column != "loss"):
                raise InputError(f"{path}: is damaged (column {column}); copy it back or train again")
        return frame


def check_free(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse an output folder that holds something, but for a run that may be overwritten."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder that does not exist yet")
    if not any(folder.iterdir()):
        return
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: holds something that is not a run; choose another folder")
    # A damaged run may be overwritten, so its content is not read: only what else would be lost counts.
    foreign = sorted(e.name for e in folder.iterdir() if e.name not in _OWN and not is_left_over(e.name))
    if overwrite and foreign:
        raise InputError(f"{folder}: holds other files too ({foreign[0]}), which would be lost; choose another folder")
    if not overwrite:
        raise InputError(f"{folder}: already holds a run; go on with --resume, replace it with --overwrite")


def _met(users: pl.DataFrame) -> dict[str, Any]:
    """What users met in interactions that the filters dropped, where the run has any."""
    if "met" not in users.columns:
        return {}
    lengths = users["met"].list.len().to_numpy()
    return {
        "met_items": users["met"].explode().drop_nulls().to_numpy().astype(np.int32, copy=False),
        "met_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    }


def _lists(values: np.ndarray, offsets: np.ndarray, dtype: Any) -> pl.Series:
    """One list a user, without a Python loop."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    flat = pl.DataFrame({"user": users, "value": pl.Series(np.asarray(values), dtype=dtype)})
    return flat.group_by("user", maintain_order=True).agg("value")["value"]
