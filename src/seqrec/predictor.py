"""Who is asked for and what is known of them: ids to histories, and ranked items to a frame."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from itertools import pairwise, takewhile
from os import PathLike
from pathlib import Path
from traceback import walk_stack
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.batches import histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.formats.read import read_log
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories
from seqrec.errors import InputError, printable


class UnknownIdWarning(UserWarning):
    """A user or an item that the run does not know was asked for."""


def known_people(
    dataset: Dataset, users: Iterable[Any] | pl.Series | None, strict: bool
) -> tuple[Histories, pl.Series]:
    """Histories of users of the log, empty for unknown ones, and their ids."""
    if users is None:
        return all_histories(dataset), dataset.user_ids
    asked = ids_of(users)
    asked = asked.cast(dataset.user_ids.dtype) if asked.dtype == pl.Null else asked
    indices = dataset.user_indices(asked)
    unknown = indices < 0
    if unknown.any():
        some = some_of(asked.filter(pl.Series(unknown)))
        if strict:
            raise InputError(f"unknown users: {some}; check the ids, or give their histories")
        warn(f"unknown users get the most popular items: {some}")
    inside = np.where(unknown, 0, indices)
    starts = np.where(unknown, 0, dataset.offsets[inside])
    ends = np.where(unknown, 0, dataset.offsets[inside + 1])
    return Histories(dataset, indices, starts, ends), asked


def given_people(dataset: Dataset, histories: Any, strict: bool) -> tuple[Histories, pl.Series]:
    """Histories given as item ids, and the names of the people."""
    if isinstance(histories, Mapping):
        names, lists = ids_of(histories.keys()), list(histories.values())
        names = names.cast(dataset.user_ids.dtype) if len(names) == 0 else names
    elif isinstance(histories, str | PathLike) or hasattr(type(histories), "columns"):
        given = prepare(read_log(histories))
        bounds = np.asarray(given.offsets)
        ids = given.item_ids.gather(np.asarray(given.items) - 1)
        names, lists = given.user_ids, [ids[int(a) : int(b)] for a, b in pairwise(bounds)]
    elif isinstance(histories, Iterable):
        lists = list(histories)
        names = pl.Series(range(len(lists)), dtype=pl.Int64)
    else:
        raise InputError(f"histories are lists of item ids, not {histories!r}; give [[...], [...]]")
    for items in lists:
        if isinstance(items, str | bytes) or not isinstance(items, Iterable):
            raise InputError(f"a history is a list of item ids, not {items!r}; give [[...], [...]]")
    parts_of = [ids_of(items) for items in lists]
    filled = [part for part in parts_of if len(part)]
    if len({part.dtype for part in filled}) > 1:  # such as the ids of one as numbers, of another as texts
        indices = np.concatenate([dataset.item_indices(part) for part in filled])
        flat = pl.concat([part.cast(pl.String) for part in filled])
    else:
        flat = pl.concat(filled) if filled else dataset.item_ids.clear()
        indices = dataset.item_indices(flat)
    if (indices == 0).any():
        some = some_of(flat.filter(pl.Series(indices == 0)).unique(maintain_order=True))
        if strict:
            raise InputError(f"unknown items in a history: {some}; check the ids")
        warn(f"unknown items are left out of the histories: {some}")
    cuts = np.cumsum([len(part) for part in parts_of])[:-1]
    parts = [part[part > 0] for part in np.split(indices, cuts)] if lists else []
    if any(len(part) == 0 for part in parts):
        if strict:
            raise InputError("a history is empty; give at least one item")
        warn("somebody with an empty history gets the most popular items")
    return histories_of(dataset, parts), names.alias("user_id")


def known_items(dataset: Dataset, ids: Iterable[Any], what: str, strict: bool) -> np.ndarray:
    """Indices of known items; unknown ones are a warning, or an error with ``strict``."""
    asked = ids_of(ids)
    indices = dataset.item_indices(asked)
    if (indices == 0).any():
        some = some_of(asked.filter(pl.Series(indices == 0)))
        if strict:
            raise InputError(f"unknown items ({what}): {some}; check the ids")
        warn(f"unknown items ({what}) are left out: {some}")
    return indices[indices > 0]


def table_of(dataset: Dataset, asked: pl.Series, found: tuple[np.ndarray, ...]) -> pl.DataFrame:
    """Ranked items as a frame ``user_id``, ``item_id``, ``score``, ``rank``."""
    rows, items, scores, ranks = found
    ids = {"user_id": asked.gather(rows), "item_id": dataset.item_ids.gather(items - 1)}
    return pl.DataFrame({**ids, "score": scores, "rank": ranks})


def ids_of(ids: Iterable[Any] | pl.Series) -> pl.Series:
    """Ids, or a single one, as a series."""
    if isinstance(ids, pl.Series):
        return ids.alias("user_id")
    values = [ids] if isinstance(ids, str | int | np.integer) else list(ids)
    if any(isinstance(value, str) for value in values):
        values = [str(value) for value in values]
    return pl.Series("user_id", values, strict=False)


def some_of(ids: pl.Series, most: int = 5) -> str:
    """The first few ids, for a message."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(str(value) for value in ids.head(most)) + more


def warn(message: str) -> None:
    """Warn of the line that called the package, however deep in it this is."""
    package = str(Path(__file__).parent)
    inside = takewhile(lambda step: step[0].f_code.co_filename.startswith(package), walk_stack(sys._getframe()))
    warnings.warn(printable(message), UnknownIdWarning, stacklevel=1 + sum(1 for _ in inside))
