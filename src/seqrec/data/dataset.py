"""The Dataset: interactions as arrays, id tables, and their form on disk."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.checked import check_files, check_ids, read_json, read_parquet
from seqrec.data.fields import check_fields
from seqrec.errors import InputError, one_line
from seqrec.files import replacing_folder

FORMAT_VERSION = 1
_ARRAYS = {"items": np.int32, "timestamps": np.int64, "offsets": np.int64}
PART_ROWS = 1 << 22  # rows at once, where numpy would make int64 of all of them
_FILES = {"dataset.json", "users.parquet", "items.parquet", *(f"{name}.npy" for name in _ARRAYS)}
_ADVICE = "prepare it again"
_LATEST = 2**62  # so that differences of times have 64 bits


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
    the ids of the log. The arrays may be memory-mapped.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    has_timestamps: bool
    before: Statistics | None = field(default=None, compare=False)  # the log before the filters

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
        """``int64`` index of each id, -1 where it is unknown."""
        return _lookup(self.user_ids, ids, -1)

    def item_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index (from 1) of each id, 0 where it is unknown."""
        return _lookup(self.item_ids, ids, -1) + 1

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
            for name in _ARRAYS:
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
            }
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
            arrays: dict[str, Any] = {name: _open_array(folder / f"{name}.npy") for name in _ARRAYS}
            if wrong := _misshapen(arrays, facts["interactions"], facts["users"]):
                raise ValueError(wrong)
            for name in ("users", "items"):
                path = folder / f"{name}.parquet"
                ids = read_parquet(path, None, facts[name], _ADVICE).to_series()
                known[f"{name.removesuffix('s')}_ids"] = check_ids(ids, path, _ADVICE)
            dataset = cls(**arrays, **known)
            if wrong := fault_of(dataset):
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


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What ``dataset.json`` says of the dataset beside its arrays and ids; each value is looked at."""
    for name in ("format_version", "interactions", "users", "items"):
        if type(facts[name]) is not int or not 0 <= facts[name] < 2**62:
            raise ValueError(f"{name} is no count")
    if facts["format_version"] > FORMAT_VERSION:
        raise InputError(f"dataset format {facts['format_version']} is newer; update seqrec")
    if type(facts["has_timestamps"]) is not bool:
        raise ValueError("has_timestamps is neither true nor false")
    before = facts["before"]
    if before is not None:
        if not isinstance(before, dict):
            raise ValueError("before is no object")
        check_fields(Statistics, before, complete=True)
    return {"has_timestamps": facts["has_timestamps"], "before": None if before is None else Statistics(**before)}


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


def _lookup(table: pl.Series, ids: Iterable[Any] | pl.Series, missing: int) -> np.ndarray:
    if isinstance(ids, str | bytes):
        raise InputError(f"give a list of ids, not the single {ids!r}")
    asked = ids if isinstance(ids, pl.Series) else pl.Series(list(ids), strict=False)
    if len(asked) == 0:
        return np.empty(0, dtype=np.int64)
    if asked.dtype.is_float():
        # A column of ids with gaps comes as floats; 7.0 is the id 7, and 7.5 is none.
        whole = asked.cast(pl.Int64, strict=False)
        asked = whole.set(whole.cast(asked.dtype) != asked, None)
    # '7' from a command line and 7 from a program name the same id, whichever the log holds; '007' is another.
    try:
        text, asked = asked, asked.cast(table.dtype, strict=False).alias("id")
        if text.dtype == pl.String and asked.dtype.is_integer():
            asked = asked.set(asked.cast(pl.String) != text, None)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"ids are integers or strings; these are {asked.dtype}") from error
    frame = pl.DataFrame({"id": table, "index": np.arange(len(table), dtype=np.int64)})
    found = asked.to_frame().join(frame, on="id", how="left", maintain_order="left")["index"]
    return found.fill_null(missing).to_numpy()
