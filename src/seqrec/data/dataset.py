"""The Dataset: interactions as arrays, id tables, and their form on disk."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.ids import IdTable, ids_of
from seqrec.errors import InputError, one_line
from seqrec.files import replacing_folder

FORMAT_VERSION = 1
_ARRAYS = {"items": np.int32, "timestamps": np.int64, "offsets": np.int64}
PART_ROWS = 1 << 22  # rows at once, where numpy would make int64 of all of them
_MET = {"met_items": np.int32, "met_offsets": np.int64}  # only where there are any
_FILES = {"dataset.json", "users.parquet", "items.parquet", *(f"{name}.npy" for name in (*_ARRAYS, *_MET))}


@dataclass(frozen=True)
class Statistics:
    """Size and shape of a log; lengths are interactions a user."""

    users: int
    items: int
    interactions: int
    density: float
    median_length: float
    p90_length: float
    max_length: int
    tied_timestamps: float | None  # share of interactions that share user and time; None: no times


@dataclass(frozen=True, eq=False)
class Dataset:
    """The interactions as arrays, ordered by user and then time.

    ``items int32[N]`` (1 to ``num_items``; 0 is padding and never occurs), ``timestamps int64[N]``
    (unix seconds; the line number where the log has no times), ``offsets int64[U + 1]``: the history
    of user ``u`` is ``items[offsets[u]:offsets[u + 1]]``. ``user_ids[u]`` and ``item_ids[i - 1]`` are
    the ids of the log, sorted. The arrays may be memory-mapped.

    User ``u`` also met ``met_items int32[M][met_offsets[u]:met_offsets[u + 1]]`` in interactions that the filters
    dropped; both are None where there are none. It is no part of any history: it is neither trained on nor ranked
    against, only not recommended.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    has_timestamps: bool
    before: Statistics | None = field(default=None, compare=False)  # the log before the filters
    met_items: np.ndarray | None = None
    met_offsets: np.ndarray | None = None

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """Number of real items I; an embedding table has I + 1 rows."""
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        """Number of interactions N."""
        return len(self.items)

    @cached_property
    def statistics(self) -> Statistics:
        """Size and shape of what is kept."""
        tied = None
        if self.has_timestamps:
            same = self.timestamps[1:] == self.timestamps[:-1]
            same[self.offsets[1:-1] - 1] = False  # the last of one user and the first of the next
            tied = share_of_either(same)
        return statistics_of(np.diff(self.offsets), self.num_items, tied)

    @cached_property
    def item_counts(self) -> np.ndarray:
        """Interactions of each item, ``int64[I + 1]``; entry 0 is 0."""
        return counts_of(self.items, self.num_items + 1)

    @cached_property
    def seen_keys(self) -> np.ndarray:
        """Sorted ``user * (I + 1) + item``, ``int64[N]``: answers 'has this user met this item'."""
        keys = np.repeat(np.arange(self.num_users, dtype=np.int64) * (self.num_items + 1), np.diff(self.offsets))
        keys += self.items
        keys.sort()
        return keys

    def user_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index of each id, -1 where it is unknown; 128, "128" and 128.0 are one id."""
        return self._user_table.find(_listed(ids))

    def item_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index (from 1) of each id, 0 where it is unknown; 128, "128" and 128.0 are one id."""
        return self._item_table.find(_listed(ids)) + 1

    @cached_property
    def _user_table(self) -> IdTable:
        return IdTable(self.user_ids)

    @cached_property
    def _item_table(self) -> IdTable:
        return IdTable(self.item_ids)

    def save(self, folder: str | Path) -> None:
        """Write the arrays and id tables to ``folder``, whole or not at all.

        An older dataset there is replaced.

        Raises:
            InputError: the folder holds anything else, or cannot be written.
        """
        folder = Path(folder)
        foreign = sorted(set(os.listdir(folder)) - _FILES) if folder.is_dir() else []
        if foreign:
            raise InputError(f"{folder}: holds other files ({foreign[0]}), which would be lost; give a new folder")
        with replacing_folder(folder) as new:
            for name in _ARRAYS if self.met_items is None else (*_ARRAYS, *_MET):
                np.save(new / f"{name}.npy", getattr(self, name))
            self.user_ids.to_frame().write_parquet(new / "users.parquet")
            self.item_ids.to_frame().write_parquet(new / "items.parquet")
            facts = {
                "format_version": FORMAT_VERSION,
                "has_timestamps": self.has_timestamps,
                "interactions": self.num_interactions,
                "before": vars(self.before) if self.before else None,
            }
            (new / "dataset.json").write_text(json.dumps(facts, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> "Dataset":
        """Open a saved dataset; the arrays stay on the disk and are memory-mapped."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / "dataset.json").read_text())
            if facts["format_version"] > FORMAT_VERSION:
                raise InputError(f"{folder}: dataset format {facts['format_version']} is newer; update seqrec")
            # open_memmap knows no pickles, which np.load would advise to trust.
            names = [*_ARRAYS, *(name for name in _MET if (folder / f"{name}.npy").is_file())]
            arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in names}
            user_ids = pl.read_parquet(folder / "users.parquet", glob=False).to_series()
            item_ids = pl.read_parquet(folder / "items.parquet", glob=False).to_series()
            before = Statistics(**facts["before"]) if facts["before"] else None
            dataset = cls(**arrays, user_ids=user_ids, item_ids=item_ids,
                          has_timestamps=facts["has_timestamps"], before=before)  # fmt: skip
            whole = _is_whole(dataset, facts["interactions"]) and met_fits(dataset)
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{folder}: not a whole saved dataset ({one_line(error)}); prepare it again") from error
        if not whole:
            raise InputError(f"{folder}: the saved dataset is damaged (its parts differ); prepare it again")
        return dataset


def tied_share(users: np.ndarray, timestamps: np.ndarray) -> float:
    """Share of interactions whose user has another one at the same time; input ordered by both."""
    return share_of_either((users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1]))


def share_of_either(same: np.ndarray) -> float:
    """Share of places that are like the one before or the one after; ``same`` compares neighbours."""
    tied = np.zeros(len(same) + 1, dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    return float(tied.mean())


def counts_of(values: np.ndarray, size: int) -> np.ndarray:
    """How often each of 0 to ``size - 1`` occurs, ``int64[size]``."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(values), max(PART_ROWS, size)):
        counts += np.bincount(values[start : start + max(PART_ROWS, size)], minlength=size)
    return counts


def statistics_of(lengths: np.ndarray, num_items: int, tied: float | None) -> Statistics:
    """Size and shape of histories of these lengths."""
    total = int(lengths.sum())
    return Statistics(
        users=len(lengths),
        items=num_items,
        interactions=total,
        density=total / (len(lengths) * num_items) if total else 0.0,
        median_length=float(np.median(lengths)),
        p90_length=float(np.percentile(lengths, 90)),
        max_length=int(lengths.max()),
        tied_timestamps=tied,
    )


def _is_whole(dataset: Dataset, interactions: int) -> bool:
    """Whether the parts fit each other, without going through the interactions."""
    offsets = dataset.offsets
    return (
        all(getattr(dataset, name).dtype == dtype for name, dtype in _ARRAYS.items())
        and dataset.items.shape == dataset.timestamps.shape == (interactions,)
        and offsets.shape == (len(dataset.user_ids) + 1,)
        and bool(offsets[0] == 0 and offsets[-1] == interactions and (offsets[1:] >= offsets[:-1]).all())
    )


def met_fits(dataset: Dataset) -> bool:
    """Whether ``met_items`` and ``met_offsets`` fit the dataset, or are both left out."""
    items, offsets = dataset.met_items, dataset.met_offsets
    if items is None or offsets is None:
        return items is None and offsets is None
    return (
        (items.dtype, offsets.dtype) == (_MET["met_items"], _MET["met_offsets"])
        and (items.ndim, offsets.shape) == (1, dataset.offsets.shape)
        and bool(offsets[0] == 0 and offsets[-1] == len(items) and (offsets[1:] >= offsets[:-1]).all())
        and bool(len(items) == 0 or (items.min() >= 1 and items.max() <= dataset.num_items))
    )


def _listed(ids: Iterable[Any] | pl.Series) -> pl.Series:
    if isinstance(ids, str | bytes):
        raise InputError(f"give a list of ids, not the single {ids!r}")
    return ids_of(ids)
