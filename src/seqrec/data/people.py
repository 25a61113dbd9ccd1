"""Who is asked for: users of the log, or people known by their histories alone; and the items that are named beside."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from seqrec.data.batches import flat_histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.formats.read import read_log
from seqrec.data.formats.times import YEAR_1980
from seqrec.data.ids import ids_of, texts_of
from seqrec.data.moments import MICROSECONDS, moments_of
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories, histories_of_users
from seqrec.device import check_polars
from seqrec.errors import InputError, MissingTimesWarning, UnknownIdWarning, warn


class Given(NamedTuple):
    """Histories as somebody gave them: the items of all people, one person after another."""

    ids: pl.Series  # different ids or, without places, that of each item
    places: np.ndarray | None  # int64[N], where in ``ids`` each item is
    lengths: np.ndarray  # int64[M], items of each person
    moments: np.ndarray | None  # int64[N], microseconds since 1970, where times were given

    def indices_in(self, dataset: Dataset) -> np.ndarray:
        """The index of each item, ``int64[N]``; 0 where the catalogue does not have it."""
        found = dataset.item_indices(self.ids)
        return found if self.places is None else found[self.places]


def known_people(
    dataset: Dataset, users: Iterable[Any] | pl.Series | None, strict: bool
) -> tuple[Histories, pl.Series]:
    """Histories of users of the log, and their ids.

    Args:
        dataset: what the model was trained on.
        users: ids, or a single one; all users where it is None. Unknown ones have an empty history.
        strict: whether an unknown user is an error; otherwise it is a warning.
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
        warn(f"unknown users, or left out by the filters of fit, get the most popular items: {some}", UnknownIdWarning)
    return histories_of_users(dataset, indices), asked


def given_people(
    dataset: Dataset, histories: Any, strict: bool, times: Any = None, knows_time: bool = False
) -> tuple[Histories, pl.Series]:
    """Histories given as item ids, and the names of the people; what is unknown is a warning.

    Args:
        dataset: what the model was trained on.
        histories: as for :meth:`Recommender.recommend`, and so are ``strict`` and ``times``.
        strict: whether what is unknown is an error.
        times: of the items.
        knows_time: whether the model reads times.
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
        warn("somebody with an empty history gets the most popular items", UnknownIdWarning)
    return found, names.alias("user_id")


def histories_from(dataset: Dataset, given: Given, indices: np.ndarray, knows_time: bool) -> Histories:
    """Given histories in the order of their times, without unknown items; times that are missed are a warning.

    Args:
        dataset: what the model was trained on.
        given: the histories.
        indices: of :meth:`Given.indices_in`.
        knows_time: whether the model reads times.
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
        warn("the model knows the time between items, and these histories come without: it takes one second from each "
             "to the next; give times (--times)", MissingTimesWarning)  # fmt: skip
    if knows_time and moments is not None and _too_early(dataset, moments):
        warn("some times of the histories lie before 1980, and none of the log does; give numbers since 1970, dates "
             "or ISO texts", MissingTimesWarning)  # fmt: skip
    if knows_time and not dataset.has_timestamps and moments is not None:
        warn("the log of the model had no times, so those of the histories say their order alone", MissingTimesWarning)
        moments = None
    return flat_histories_of(dataset, indices, lengths, None if moments is None else moments // MICROSECONDS)


def _too_early(dataset: Dataset, moments: np.ndarray) -> bool:
    """Whether times are of another kind than those of the log, such as 20200913, which a log may write for a date."""
    first = dataset.before.first_time if dataset.before is not None else None
    return first is not None and first >= YEAR_1980 and bool((moments < YEAR_1980 * MICROSECONDS).any())


def given_lists(lists: list[Any], times: Any = None) -> Given:
    """Histories as lists of item ids.

    Args:
        lists: one per person.
        times: of their items in the same shape, if any.

    Raises:
        InputError: an entry that is no list of ids, or times of another shape.
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
    if len({part.dtype for part in filled}) > 1:  # such as the ids of one as numbers, of another as texts
        ids = pl.Series("user_id", [text for part in parts for text in texts_of(part)], dtype=pl.String)
    else:
        kind = filled[0].dtype
        ids = pl.concat([part.cast(kind) if part.dtype == pl.Null else part for part in parts or filled])
    return Given(ids, None, lengths, moments)


def known_items(dataset: Dataset, ids: Iterable[Any], what: str, strict: bool) -> np.ndarray:
    """Indices of known items; unknown ones are a warning, or an error with ``strict``."""
    asked = ids_of(ids, what)
    indices = dataset.item_indices(asked)
    if (indices == 0).any():
        some = some_of(asked.filter(pl.Series(indices == 0)))
        if strict:
            raise InputError(f"unknown items ({what}): {some}; check the ids")
        warn(f"unknown items ({what}) are left out: {some}", UnknownIdWarning)
    return indices[indices > 0]


def listed_items(dataset: Dataset, ids: Any, strict: bool) -> np.ndarray:
    """Indices of known items, of which there must be at least one; unknown ones are a warning."""
    asked = ids_of(ids, "items")
    indices = known_items(dataset, asked, "similar", strict=True) if strict else dataset.item_indices(asked)
    if not (indices > 0).any():
        raise InputError(f"none of the items is in the catalogue: {some_of(asked)}; check the ids")
    if (indices == 0).any():
        warn(f"unknown items left out: {some_of(asked.filter(pl.Series(indices == 0)))}", UnknownIdWarning)
    return indices[indices > 0]


def some_of(ids: pl.Series, most: int = 5) -> str:
    """The first few ids, for a message."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(str(value) for value in ids.head(most)) + more


def _is_table(histories: Any) -> bool:
    return isinstance(histories, str | PathLike) or hasattr(type(histories), "columns")


def _read_people(histories: Any, times: Any) -> tuple[pl.Series, Given]:
    """Histories in a file or a frame, with its times, and the names of the people."""
    if times is not None:
        raise InputError("times belong to histories given as lists; a file or a frame has them in a column")
    check_polars("reading histories from a file or a frame")
    read = prepare(read_log(histories))
    moments = np.asarray(read.timestamps) * MICROSECONDS if read.has_timestamps else None
    return read.user_ids, Given(read.item_ids, np.asarray(read.items) - 1, np.diff(read.offsets), moments)


def _named_people(histories: Any, times: Any) -> tuple[pl.Series, Given]:
    """Histories as lists, one per person or by name, and the names."""
    if isinstance(histories, Mapping):
        lists = list(histories.values())
        names = ids_of(histories.keys(), "names of people") if lists else pl.Series([], dtype=pl.String)
        if times is not None:
            if not isinstance(times, Mapping) or set(times) != set(histories):
                raise InputError("histories have names, so times need the same ones; give {name: [...]} for both")
            times = [times[name] for name in histories]
    elif isinstance(histories, Iterable) and not isinstance(histories, bytes):
        lists = list(histories)
        names = pl.Series(range(len(lists)), dtype=pl.Int64)
    else:
        raise InputError(f"histories are lists of item ids, not {histories!r}; give [[...], [...]]")
    return names, given_lists(lists, times)
