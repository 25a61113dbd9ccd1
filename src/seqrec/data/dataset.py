"""The Dataset: interactions as arrays, id tables, and their form on disk."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.checked import check_files, check_ids, read_json, read_parquet
from seqrec.data.fields import check_fields
from seqrec.data.ids import IdTable, ids_of
from seqrec.data.items import ITEM_TABLE, ItemTable, describe, load_items, save_items
from seqrec.errors import InputError, one_line
from seqrec.files import replacing_folder

FORMAT_VERSION = 1
_ARRAYS = {"items": np.int32, "timestamps": np.int64, "offsets": np.int64}
PART_ROWS = 1 << 22  # rows at once, where numpy would make int64 of all of them
_MET = {"met_items": np.int32, "met_offsets": np.int64}  # only where there are any
_FILES = {"dataset.json", "users.parquet", "items.parquet", ITEM_TABLE, *(f"{name}.npy" for name in (*_ARRAYS, *_MET))}
_ADVICE = "prepare it again"
_LATEST = 2**62  # so that differences of times have 64 bits


@dataclass(frozen=True)
class Statistics:
    """Size and shape of a log; lengths are interactions per user. What needs times is None where there are none."""

    users: int
    items: int
    interactions: int
    density: float
    median_length: float
    p90_length: float
    max_length: int
    tied_timestamps: float | None  # share of interactions that share user and time
    copies: int | None = None  # interactions that share user, item and time with an earlier one
    first_time: int | None = None  # Unix seconds
    last_time: int | None = None


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

    ``item_table`` holds titles, categories and whatever else is known of the items; None where nothing is. It is not
    part of the fingerprint.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    has_timestamps: bool
    before: Statistics | None = field(default=None, compare=False)  # the log before the filters
    filters: dict[str, Any] | None = field(default=None, compare=False)  # those of ``PrepareConfig``; None: unknown
    met_items: np.ndarray | None = None
    met_offsets: np.ndarray | None = None
    item_table: ItemTable | None = field(default=None, compare=False)

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
        same = None
        if self.has_timestamps:
            same = self.timestamps[1:] == self.timestamps[:-1]
            same[self.offsets[1:-1] - 1] = False  # the last of one user and the first of the next
        return statistics_of(np.diff(self.offsets), self.num_items, self.items, self.timestamps, same)

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

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the interactions and ids, to tell whether it is the same; costs one pass over all of them."""
        digest = hashlib.sha256()
        for array in (self.items, self.timestamps, self.offsets):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        for ids in (self.user_ids, self.item_ids):
            digest.update(str(ids.dtype).encode())
            if ids.dtype.is_integer():
                digest.update(ids.to_numpy().astype(np.int64).tobytes())
            else:
                # The lengths tell "ab", "c" from "a", "bc".
                digest.update(ids.str.len_bytes().to_numpy().astype(np.int64).tobytes())
                digest.update("".join(ids.to_list()).encode())
        return digest.hexdigest()

    def user_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index of each id, -1 where it is unknown; 128, "128" and 128.0 are one id."""
        return self._user_table.find(_listed(ids))

    def item_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index (from 1) of each id, 0 where it is unknown; 128, "128" and 128.0 are one id."""
        return self._item_table.find(_listed(ids)) + 1

    def with_items(self, items: Any) -> "Dataset":
        """The same interactions with an item table of what :func:`read_items` takes."""
        return replace(self, item_table=describe(items, self.item_ids, self.item_table))

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
                "users": self.num_users,
                "items": self.num_items,
                "fingerprint": self.fingerprint,
                "before": vars(self.before) if self.before else None,
                "filters": self.filters,
            }
            if self.item_table is not None:
                facts["item_table"] = save_items(self.item_table, new / ITEM_TABLE)
            (new / "dataset.json").write_text(json.dumps(facts, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> "Dataset":
        """Open a saved dataset; the arrays stay on the disk and are memory-mapped.

        They are read once, to see that they are what was saved and that no value is out of range.

        Raises:
            InputError: something is missing, damaged, or of another dataset.
        """
        folder = Path(folder)
        try:
            check_files(folder, dict.fromkeys(_FILES), _ADVICE)
            facts = read_json(folder / "dataset.json", _ADVICE)
            known = _facts(facts)
            present = [*_ARRAYS, *(name for name in _MET if (folder / f"{name}.npy").is_file())]
            arrays: dict[str, Any] = {name: _open_array(folder / f"{name}.npy") for name in present}
            if wrong := _misshapen(arrays, facts["interactions"], facts["users"]):
                raise ValueError(wrong)
            for name in ("users", "items"):
                path = folder / f"{name}.parquet"
                ids = read_parquet(path, None, facts[name], _ADVICE).to_series()
                known[f"{name.removesuffix('s')}_ids"] = check_ids(ids, path, _ADVICE)
            if "item_table" in facts:
                known["item_table"] = load_items(folder / ITEM_TABLE, known["item_ids"], facts["item_table"], _ADVICE)
            dataset = cls(**arrays, **known)
            if wrong := fault_of(dataset) or (None if met_fits(dataset) else "what the filters dropped does not fit"):
                raise ValueError(wrong)
            if facts["fingerprint"] != dataset.fingerprint:
                raise ValueError("its files are not those that were saved together")
        except (OSError, ValueError, LookupError, TypeError, OverflowError, pl.exceptions.PolarsError) as error:
            said = one_line(error).replace(f"{folder}{os.sep}", "").removesuffix(f"; {_ADVICE}")
            if said.endswith("update seqrec"):
                raise InputError(f"{folder}: {said}") from error
            raise InputError(f"{folder}: not a whole saved dataset ({said}); {_ADVICE}") from error
        return dataset


def fingerprint(dataset: Dataset) -> str:
    """A digest of a dataset's interactions and ids, to tell whether it is the same."""
    return dataset.fingerprint


def fault_of(dataset: Dataset) -> str | None:
    """What is wrong with the values of a dataset that was read: a short phrase, or None.

    After this its items may index arrays of ``num_items + 1`` and its offsets its items.
    """
    offsets, items, timestamps = dataset.offsets, dataset.items, dataset.timestamps
    if offsets[0] != 0 or offsets[-1] != len(items) or (offsets[1:] < offsets[:-1]).any():
        return "the histories do not follow each other"
    for start in range(0, len(items), PART_ROWS):
        part = items[start : start + PART_ROWS]
        if part.min() < 1 or part.max() > dataset.num_items:
            return f"an item is not one of the {dataset.num_items} in the catalogue"
        times = timestamps[start : start + PART_ROWS + 1]  # and the one after, to compare with
        if times.min() <= -_LATEST or times.max() >= _LATEST:
            return "a timestamp is out of range"
        falls = np.flatnonzero(times[1:] < times[:-1]) + start + 1
        if len(falls) and not (offsets[np.searchsorted(offsets, falls).clip(max=len(offsets) - 1)] == falls).all():
            return "a history is not in the order of time"
    return None


def tied_to_next(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Which interactions share user and time with the next one, ``bool[N - 1]``; input ordered by both."""
    return (users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1])


def copies_of(items: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Places of interactions that an earlier one equals in user, item and time; ``same`` is of :func:`tied_to_next`."""
    places, keys = _tied_keys(items, same)
    order = np.argsort(keys, kind="stable")  # the first of the copies comes first
    places, keys = places[order], keys[order]
    return places[1:][keys[1:] == keys[:-1]]


def count_copies(items: np.ndarray, same: np.ndarray) -> int:
    """How many places :func:`copies_of` gives, for less work."""
    _, keys = _tied_keys(items, same)
    keys.sort()
    return int((keys[1:] == keys[:-1]).sum())


def _tied_keys(items: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of interactions that share user and time with a neighbour, and a number for each such moment and item."""
    first = np.concatenate([[True], ~same])
    tied = ~first
    tied[:-1] |= same
    places = np.flatnonzero(tied)
    keys = np.cumsum(first[places], dtype=np.int64)
    keys *= int(items.max()) + 1 if len(items) else 1
    keys += items[places]
    return places, keys


def counts_of(values: np.ndarray, size: int) -> np.ndarray:
    """How often each of 0 to ``size - 1`` occurs, ``int64[size]``."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(values), max(PART_ROWS, size)):
        counts += np.bincount(values[start : start + max(PART_ROWS, size)], minlength=size)
    return counts


def statistics_of(
    lengths: np.ndarray, num_items: int, items: np.ndarray, timestamps: np.ndarray, same: np.ndarray | None
) -> Statistics:
    """Size and shape of histories of these lengths; ``same`` is of :func:`tied_to_next`, None without times."""
    total = int(lengths.sum())
    tied = None
    if same is not None:
        either = np.zeros(total, dtype=bool)
        either[1:] |= same
        either[:-1] |= same
        tied = float(either.mean())
    return Statistics(
        users=len(lengths),
        items=num_items,
        interactions=total,
        density=total / (len(lengths) * num_items) if total else 0.0,
        median_length=float(np.median(lengths)),
        p90_length=float(np.percentile(lengths, 90)),
        max_length=int(lengths.max()),
        tied_timestamps=tied,
        copies=None if same is None else count_copies(items, same),
        first_time=None if same is None else int(timestamps.min()),
        last_time=None if same is None else int(timestamps.max()),
    )


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What ``dataset.json`` says of the dataset beside its arrays and ids; each value is looked at."""
    for name in ("format_version", "interactions", "users", "items"):
        if type(facts[name]) is not int or not 0 <= facts[name] < 2**62:
            raise ValueError(f"{name} is no count")
    if facts["format_version"] > FORMAT_VERSION:
        raise InputError(f"dataset format {facts['format_version']} is newer; update seqrec")
    if type(facts["has_timestamps"]) is not bool:
        raise ValueError("has_timestamps is neither true nor false")
    if not isinstance(facts.get("filters"), dict | None):
        raise ValueError("filters is no object")
    before = facts["before"]
    if before is not None:
        if not isinstance(before, dict):
            raise ValueError("before is no object")
        check_fields(Statistics, before, complete=True)
    filters = facts.get("filters")
    if not isinstance(filters, dict | None):
        raise ValueError("filters is no object")
    before = None if before is None else Statistics(**before)
    return {"has_timestamps": facts["has_timestamps"], "before": before, "filters": filters}


def _open_array(path: Path) -> np.ndarray:
    """Map an array; open_memmap knows no pickles, which np.load would advise to trust."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # the head is a piece of Python, of which its parser says anything that can be wrong
        raise ValueError(f"{path.name}: {one_line(error)}") from error


def _misshapen(arrays: dict[str, Any], interactions: int, users: int) -> str | None:
    for name, dtype in _ARRAYS.items():
        shape = (users + 1,) if name == "offsets" else (interactions,)
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            return f"{name}.npy is {arrays[name].dtype} {list(arrays[name].shape)}, not {np.dtype(dtype)} {list(shape)}"
    return None


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
