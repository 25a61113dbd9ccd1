"""The run folder: what training writes and everything else reads. No pickle anywhere.

``config.json`` (model, sizes, how the log was prepared and split, how it was trained),
``items.parquet`` and ``users.parquet`` (ids and histories), ``weights.safetensors`` (the best so far),
``metrics.json``, ``epochs.csv`` (a row an epoch) and ``state/`` (``training.safetensors`` and the running mean of
the weights: all that a later process needs to go on). Each file is replaced whole, so a crash leaves the last good one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from seqrec.data.batches import pack
from seqrec.data.checked import check_files, check_ids, parse_json, read_json, read_parquet
from seqrec.data.dataset import Dataset, fault_of, met_fits
from seqrec.data.items import ITEM_TABLE, ItemTable, load_items, save_items
from seqrec.data.split import Split, all_histories
from seqrec.errors import InputError, one_line
from seqrec.files import replacing
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.run.config import CONFIG, FORMAT_VERSION, MOST_CONFIG, RunConfig, config_of, run_id
from seqrec.run.histories import lists_of, met_of
from seqrec.run.layout import EPOCHS, ITEMS, METRICS, STATE, USERS, WEIGHTS, is_begun, remove_left_over
from seqrec.run.place import Place, check_free
from seqrec.run.records import read_epochs, write_epochs, write_json
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

__all__ = ["EPOCHS", "ITEMS", "METRICS", "STATE", "USERS", "WEIGHTS", "Run", "check_free"]

_KNOWN: dict[str, Any] = {
    **dict.fromkeys((CONFIG, WEIGHTS, ITEMS, USERS, ITEM_TABLE, METRICS, EPOCHS)),
    "state": dict.fromkeys(("training.safetensors", "mean-*.safetensors")),
}
_ADVICE = "copy it back from where the run was made, or train again"
_PEOPLE, _ITEMS = 4, 64  # enough to see whether scores differ


class Run:
    """A run folder that exists.

    Args:
        folder: where it is.
        place: where it is to be, held by this process; whoever writes for long gives it.
    """

    place: Place | None = None

    def __init__(self, folder: str | Path, place: Place | None = None) -> None:
        self.folder, self.place = Path(folder), place
        try:
            there, known = self.folder.is_dir(), os.path.lexists(self.folder / CONFIG)
        except (OSError, ValueError) as error:  # a name too long, a folder that may not be looked into
            raise InputError(f"{self.folder}: cannot be opened ({one_line(error)}); check the path") from error
        if not there:
            raise InputError(f"{self.folder}: no such run folder; seqrec fit LOG --out {self.folder} makes one")
        if not known:
            raise InputError(f"{self.folder}: not a run folder ({CONFIG} is missing); give one that seqrec fit wrote")
        check_files(self.folder, _KNOWN, "train again, or copy the folder again")

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
        with Place(folder) as place:
            place.settle(resume=False, overwrite=overwrite)
            run = cls.begin(place, config, dataset, weights=weights, epochs=epochs, metrics=metrics)
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
        epochs: Sequence[Mapping[str, Any]] = (),
        metrics: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make a run in a place that was found free; one that is there stays until the new one has weights."""
        with place.making() as new:
            values = {"format_version": FORMAT_VERSION, **asdict(config)}
            write_json(new / CONFIG, values)
            dataset.item_ids.alias("item_id").to_frame().write_parquet(new / ITEMS)
            offsets = np.asarray(dataset.offsets)
            users = pl.DataFrame(
                {
                    "user_id": dataset.user_ids,
                    "items": lists_of(dataset.items, offsets, pl.Int32),
                    "timestamps": lists_of(dataset.timestamps, offsets, pl.Int64),
                }
            )
            if dataset.met_items is not None:
                met = pa.LargeListArray.from_arrays(dataset.met_offsets, dataset.met_items)
                users = users.with_columns(pl.Series("met", met, dtype=pl.List(pl.Int32)))
            users.write_parquet(new / USERS)
            if dataset.item_table is not None:
                save_items(dataset.item_table, new / ITEM_TABLE)
            write_epochs(new / EPOCHS, epochs)  # so that the run opens as soon as it has weights
            if weights is not None:
                write_tensors(new / WEIGHTS, weights, mark_of(run_id(values), "weights", weights))
                if metrics is not None:
                    write_json(new / METRICS, metrics)
        run = cls(place.at, place)
        run.take_over()
        return run

    @classmethod
    def resume(cls, place: Place, config: RunConfig, but: Sequence[str]) -> "Run":
        """Open the run of a place to go on with it, or the one that a killed process was to put there.

        Raises:
            InputError: it was begun on another log or with other options, but for those of some names.
        """
        run = None
        for new in place.unfinished():
            try:
                found = cls(new, place)
                found.check_same(config, but)
            except InputError:
                continue
            run = run or found
        if run is None:
            run = cls(place.folder, place)
            run.check_same(config, but)
            run.check_resumable()
        place.go_on(run.folder)
        remove_left_over(run.folder)
        run.take_over()
        return run

    def take_over(self, unfinished: bool = False) -> None:
        """Put the run in the place of the one that it replaces, once it has weights (or without, where asked)."""
        if self.place is not None:
            self.place.take_over(unfinished)
            self.folder = self.place.at

    def check_there(self) -> None:
        """Refuse to write where somebody removed or replaced the folder."""
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
        """What every file of weights of this run bears; see :func:`seqrec.run.config.run_id`."""
        assert self.config  # or it is not known that the values are what they should be
        return run_id(self._values)

    @cached_property
    def dataset(self) -> Dataset:
        """The interactions that the run was given, all of them."""
        config = self.config
        users_path, items_path = self.folder / USERS, self.folder / ITEMS
        items = read_parquet(items_path, {"item_id": None}, config.num_items, _ADVICE)
        lists = {"items": pl.List(pl.Int32), "timestamps": pl.List(pl.Int64)}
        met = {"met": pl.List(pl.Int32)}
        users = read_parquet(users_path, {"user_id": None, **lists}, config.num_users, _ADVICE, met)
        lengths = users["items"].list.len().to_numpy().astype(np.int64)
        flat = {name: users[name].explode() for name in lists}
        if (
            lengths.min() < 1
            or not (users["timestamps"].list.len().to_numpy() == lengths).all()
            or any(values.has_nulls() for values in flat.values())
        ):
            raise InputError(f"{users_path}: is damaged (a history has gaps); {_ADVICE}")
        item_ids = check_ids(items["item_id"], items_path, _ADVICE)
        dataset = Dataset(
            items=flat["items"].to_numpy(),
            timestamps=flat["timestamps"].to_numpy(),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            user_ids=check_ids(users["user_id"], users_path, _ADVICE),
            item_ids=item_ids,
            has_timestamps=config.has_timestamps,
            filters=asdict(config.prepare),
            item_table=self.item_table(item_ids),
            **met_of(users),
        )
        if wrong := fault_of(dataset) or (None if met_fits(dataset) else "what the filters dropped does not fit"):
            raise InputError(f"{users_path}: is damaged ({wrong}); {_ADVICE}")
        if dataset.fingerprint != config.fingerprint:
            raise InputError(
                f"{self.folder}: {USERS} and {ITEMS} are not those that the run was made with; copy them back or "
                "train again"
            )
        return dataset

    def item_table(self, item_ids: pl.Series) -> ItemTable | None:
        """What the run knows of its items, if anything; ``item_ids`` are its own."""
        path = self.folder / ITEM_TABLE
        return load_items(path, item_ids, advice=_ADVICE) if path.exists() else None

    @cached_property
    def split(self) -> Split:
        """The dataset, split as for training."""
        try:
            return self.config.split.apply(self.dataset)
        except (InputError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{self.folder / CONFIG}: does not fit the histories ({one_line(error)}); train again"
            ) from error

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from; weights may be there before it."""
        return is_begun(self.folder)

    def model(self) -> Model:
        """The model with its weights, in evaluation mode on the CPU."""
        path = self.folder / WEIGHTS
        if not path.exists():
            raise InputError(
                f"{path}: is missing; copy it back, or go on with seqrec fit --resume where no epoch was finished"
            )
        header = read_header(path)
        try:
            # What config.json says is compared with what the file holds before anything of these sizes is made.
            shapes = self.config.shapes(len(header.names))
            header.check_shapes(shapes, MODELS[self.config.model].LENGTHS_OF_THE_LOG)
            model = self.config.build()
        except InputError as error:
            raise error if str(error).startswith(str(path)) else self._damaged(error) from error
        except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
            raise self._damaged(error) from error
        self.load_weights(model)
        return model.eval()

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.folder / CONFIG}: is damaged ({one_line(error)}); train again")

    def load_weights(self, model: Model) -> None:
        """Put the weights into a model of the run's sizes, on the CPU."""
        path = self.folder / WEIGHTS
        tensors = self.read_weights(model)
        try:
            model.load_state_dict(tensors)
            model.check_weights()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: does not fit the model ({one_line(error)}); train again") from error

    def read_weights(self, model: Model) -> dict[str, Tensor]:
        """The weights, mapped, once it is known that they are this run's, fit the model, and are numbers."""
        header = read_header(self.folder / WEIGHTS)
        header.check_shapes(model.state_dict(), model.LENGTHS_OF_THE_LOG)
        mark = header.check_mark(self.id, "weights")
        tensors = load_tensors(header)
        check_finite(header.path, tensors.items())
        if mark.get("crc32") != checksum(tensors):
            raise InputError(f"{header.path}: is damaged (its checksum differs); copy it back or train again")
        return tensors

    @torch.no_grad()
    def check_scores(self, model: Model) -> None:
        """Refuse a model whose weights score all items alike, for the first users and items of the run."""
        if model.COUNTED or model.num_items < 2:  # counts may well be equal
            return
        people = all_histories(self.dataset).take(slice(0, _PEOPLE))
        hidden = model.encode_last(pack(people, model.config.max_length))
        scores = model.score(hidden, torch.arange(1, min(model.num_items, _ITEMS) + 1))
        if (scores == scores[:, :1]).all():
            raise InputError(
                f"{self.folder / WEIGHTS}: scores all items alike, so it can't rank them; copy it back or train again"
            )

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
            for name in now | before:  # a version before this one may not have known them all
                plain = [list(v) if isinstance(v, tuple) else v for v in (before.get(name), now.get(name))]
                if plain[0] != plain[1] and name not in but:
                    raise InputError(
                        f"{self.folder}: the run was begun with {name} = {before.get(name)}, not {now.get(name)}; "
                        "resume with the same options, or --overwrite"
                    )

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights."""
        self.check_there()
        save_tensors(self.folder / WEIGHTS, weights, mark_of(self.id, "weights", weights))

    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the training state: tensors and JSON facts in one file, so they can't part."""
        self.check_there()
        save_tensors(self.folder / STATE, tensors, mark_of(self.id, "training state") | {"facts": json.dumps(facts)})

    def state_header(self) -> tuple[Header, dict[str, Any]] | None:
        """What the training state holds and its facts, or None where no checkpoint was written yet."""
        path = self.folder / STATE
        if not path.exists():
            return None
        header = read_header(path)
        header.check_mark(self.id, "training state")
        try:
            facts = parse_json(header.metadata["facts"])
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: is damaged ({one_line(error)}); train again with --overwrite") from error
        if not isinstance(facts, dict):
            raise InputError(f"{path}: is damaged (its facts are no object); train again with --overwrite")
        return header, facts

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The training state, or None where no checkpoint was written yet."""
        state = self.state_header()
        return None if state is None else (load_tensors(state[0]), state[1])

    def mean_path(self, epoch: int) -> Path:
        """Where the running mean of the weights at the end of an epoch is."""
        return self.folder / f"state/mean-{epoch}.safetensors"

    def save_mean(self, weights: Mapping[str, Tensor], epoch: int) -> None:
        """Write the running mean of an epoch beside that of the one before, which the training state still needs."""
        self.check_there()
        save_tensors(self.mean_path(epoch), weights, mark_of(self.id, mean_part(epoch)))

    def forget_means(self, but: int) -> None:
        """Remove the running means of all epochs but one, which the training state now needs."""
        for path in self.folder.glob("state/mean-*.safetensors"):
            if path != self.mean_path(but):
                path.unlink(missing_ok=True)

    def save_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace ``epochs.csv``; a column is there if any epoch has it."""
        self.check_there()
        with replacing(self.folder / EPOCHS) as new:
            write_epochs(new, rows)

    def epochs(self) -> pl.DataFrame:
        """``epochs.csv``."""
        return read_epochs(self.folder / EPOCHS)

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace ``metrics.json``."""
        self.check_there()
        with replacing(self.folder / METRICS) as new:
            write_json(new, metrics)

    def metrics(self) -> dict[str, Any]:
        """``metrics.json``, empty where training has not ended."""
        path = self.folder / METRICS
        return read_json(path) if path.exists() else {}


def mean_part(epoch: int) -> str:
    """What a file of the running mean says that it is."""
    return f"running mean of epoch {epoch}"
