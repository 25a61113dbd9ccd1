"""Looks up the users, histories and items that a caller asks about."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from seqrec.data.batches import flat_histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.formats.read import read_log
from seqrec.data.formats.summary import some_of
from seqrec.data.formats.times import YEAR_1980
from seqrec.data.ids import ids_of, texts_of
from seqrec.data.moments import MICROSECONDS, moments_of
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories, histories_of_users
from seqrec.device import check_polars
from seqrec.errors import InputError, MissingTimesWarning, UnknownIdWarning, warn


class Given(NamedTuple):
    """Histories that the caller passed: N items in all, one person after another."""

    ids: pl.Series  # the id of each item; with ``places``, distinct ids
    places: np.ndarray | None  # int64[N], position of each item in ``ids``
    lengths: np.ndarray  # int64[M], number of items of each person
    moments: np.ndarray | None  # int64[N], microseconds since 1970; None without times

    def indices_in(self, dataset: Dataset) -> np.ndarray:
        """Index of each item, ``int64[N]``; 0 if it is not in the catalogue."""
        found = dataset.item_indices(self.ids)
        return found if self.places is None else found[self.places]


def known_people(
    dataset: Dataset, users: Iterable[Any] | pl.Series | None, strict: bool
) -> tuple[Histories, pl.Series]:
    """Histories of users of the log, and the ids of these users.

    Args:
        dataset: dataset that the model was trained on.
        users: user ids, or a single one; None for all users. Unknown users get an empty history.
        strict: whether an unknown user is an error rather than a warning.
    """
    if users is None:
        return all_histories(dataset), dataset.user_ids
    asked = ids_of(users, "users")
    asked = asked.cast(dataset.users.dtype) if asked.dtype == pl.Null else asked
    indices = dataset.user_indices(asked)
    unknown = indices < 0
    if unknown.any():
        some = some_of(asked.filter(pl.Series(unknown)))
        if strict:
            raise InputError(f"unknown users: {some}; check the ids, or give their histories")
        warn(f"unknown users (not in the log, or filtered out) get the most popular items: {some}", UnknownIdWarning)
    return histories_of_users(dataset, indices), asked


def given_people(
    dataset: Dataset, histories: Any, strict: bool, times: Any = None, knows_time: bool = False
) -> tuple[Histories, pl.Series]:
    """Histories passed as item ids, and the names of the people.

    Args:
        dataset: dataset that the model was trained on.
        histories: histories in any form that :meth:`Recommender.recommend` takes.
        strict: whether an unknown item or an empty history is an error rather than a warning.
        times: times of the items, in any form that :meth:`Recommender.recommend` takes.
        knows_time: whether the model uses times.
    """
    names, given = _read_people(histories, times) if _is_table(histories) else _named_people(histories, times)
    indices = given.indices_in(dataset)
    if (indices == 0).any():
        missing = given.ids.filter(pl.Series(dataset.item_indices(given.ids) == 0))
        some = some_of(missing.unique(maintain_order=True))
        if strict:
            raise InputError(f"unknown items in a history: {some}; check the ids")
        warn(f"unknown items are left out of the histories: {some}", UnknownIdWarning)
    found = histories_from(dataset, given, indices, knows_time)
    if (found.lengths == 0).any():
        if strict:
            raise InputError("a history is empty; give at least one item")
        warn("a history is empty; its owner gets the most popular items", UnknownIdWarning)
    return found, names.alias("user_id")


def histories_from(dataset: Dataset, given: Given, indices: np.ndarray, knows_time: bool) -> Histories:
    """Histories in time order and without unknown items.

    Warns if the model uses times and they are missing, or if they are present and cannot be used.

    Args:
        dataset: dataset that the model was trained on.
        given: histories from the caller.
        indices: result of :meth:`Given.indices_in`.
        knows_time: whether the model uses times.
    """
    moments, lengths = given.moments, given.lengths
    if moments is not None:  # by person and time; equal times keep their order, as in a log
        order = np.lexsort((moments, np.repeat(np.arange(len(lengths)), lengths)))
        indices, moments = indices[order], moments[order]
    known = indices > 0
    if not known.all():
        people = np.repeat(np.arange(len(lengths)), lengths)
        lengths = np.bincount(people[known], minlength=len(lengths))
        indices, moments = indices[known], None if moments is None else moments[known]
    if knows_time and dataset.has_timestamps and moments is None and (lengths > 1).any():
        warn("the model uses the time between items, but these histories have no times: one second between items is "
             "assumed; give times (--times)", MissingTimesWarning)  # fmt: skip
    if knows_time and moments is not None and _too_early(dataset, moments):
        warn("some times of the histories lie before 1980, but no time of the log does; give numbers since 1970, dates "
             "or ISO texts", MissingTimesWarning)  # fmt: skip
    if knows_time and not dataset.has_timestamps and moments is not None:
        warn("the model was trained without times, so times of histories only set their order", MissingTimesWarning)
        moments = None
    return flat_histories_of(dataset, indices, lengths, None if moments is None else moments // MICROSECONDS)


def _too_early(dataset: Dataset, moments: np.ndarray) -> bool:
    """Whether times are of another kind than those of the log, such as 20200913, which a log may write for a date."""
    first = dataset.before.first_time if dataset.before is not None else None
    return first is not None and first >= YEAR_1980 and bool((moments < YEAR_1980 * MICROSECONDS).any())


def given_lists(lists: list[Any], times: Any = None) -> Given:
    """Histories from lists of item ids.

    Args:
        lists: list of item ids per person.
        times: times of the items in the same shape, or None.

    Raises:
        InputError: an entry is not a list of ids, or the times have another shape.
    """
    for items in lists:
        if isinstance(items, str | bytes) or not isinstance(items, Iterable):
            raise InputError(f"a history is a list of item ids, not {items!r}; give [[...], [...]]")
        if isinstance(items, set | frozenset | Mapping):  # their order says nothing, and that of a set changes
            raise InputError(f"a history is a list of item ids in time order, not a {type(items).__name__}; give [...]")
    parts = [ids_of(items, "histories") for items in lists]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    moments = None if times is None else moments_of(times, lengths.tolist())
    filled = [part for part in parts if len(part) and part.dtype != pl.Null] or [pl.Series("user_id", [], pl.String)]
    if len({part.dtype for part in filled}) > 1:  # numbers in one list, texts in another
        ids = pl.Series("user_id", [text for part in parts for text in texts_of(part)], dtype=pl.String)
    else:
        kind = filled[0].dtype
        ids = pl.concat([part.cast(kind) if part.dtype == pl.Null else part for part in parts or filled])
    return Given(ids, None, lengths, moments)


def known_items(dataset: Dataset, ids: Iterable[Any], what: str, strict: bool) -> np.ndarray:
    """Indices of the items that are known. Unknown items are a warning, or an error with ``strict``."""
    asked = ids_of(ids, what)
    indices = dataset.item_indices(asked)
    if (indices == 0).any():
        some = some_of(asked.filter(pl.Series(indices == 0)))
        if strict:
            raise InputError(f"unknown items ({what}): {some}; check the ids")
        warn(f"unknown items ({what}) are left out: {some}", UnknownIdWarning)
    return indices[indices > 0]


def listed_items(dataset: Dataset, ids: Any, strict: bool) -> np.ndarray:
    """Like :func:`known_items`, for the items of ``similar``; raises if none of them is known."""
    asked = ids_of(ids, "items")
    indices = known_items(dataset, asked, "similar", strict=True) if strict else dataset.item_indices(asked)
    if not (indices > 0).any():
        raise InputError(f"none of the items is in the catalogue: {some_of(asked)}; check the ids")
    if (indices == 0).any():
        warn(f"unknown items left out: {some_of(asked.filter(pl.Series(indices == 0)))}", UnknownIdWarning)
    return indices[indices > 0]


def _is_table(histories: Any) -> bool:
    return isinstance(histories, str | PathLike) or hasattr(type(histories), "columns")


def _read_people(histories: Any, times: Any) -> tuple[pl.Series, Given]:
    """Names of the people and their histories, with times, from a file or a frame."""
    if times is not None:
        raise InputError("times go with histories given as lists; put the times of a file or frame into a column")
    check_polars("reading histories from a file or a frame")
    read = prepare(read_log(histories))
    moments = np.asarray(read.timestamps) * MICROSECONDS if read.has_timestamps else None
    return read.user_ids, Given(read.item_ids, np.asarray(read.items) - 1, np.diff(read.offsets), moments)


def _named_people(histories: Any, times: Any) -> tuple[pl.Series, Given]:
    """Names of the people and their histories, from lists or from a mapping of names to lists."""
    if isinstance(histories, Mapping):
        lists = list(histories.values())
        names = ids_of(histories.keys(), "names of people") if lists else pl.Series([], dtype=pl.String)
        if times is not None:
            if not isinstance(times, Mapping) or set(times) != set(histories):
                raise InputError("histories have names, so times need the same names; give {name: [...]} for both")
            times = [times[name] for name in histories]
    elif isinstance(histories, Iterable) and not isinstance(histories, bytes):
        lists = list(histories)
        names = pl.Series(range(len(lists)), dtype=pl.Int64)
    else:
        raise InputError(f"histories are lists of item ids, not {histories!r}; give [[...], [...]]")
    return names, given_lists(lists, times)
