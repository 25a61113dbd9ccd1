"""Who is asked for and what is known of them: ids to histories, and ranked items to a frame."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.batches import histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.formats.read import read_log
from seqrec.data.ids import ids_of, texts_of
from seqrec.data.items import titles_of
from seqrec.data.moments import MICROSECONDS, moments_of
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories, histories_of_users
from seqrec.device import check_polars
from seqrec.errors import InputError, MissingTimesWarning, UnknownIdWarning, warn


def known_people(
    dataset: Dataset, users: Iterable[Any] | pl.Series | None, strict: bool
) -> tuple[Histories, pl.Series]:
    """Histories of users of the log, empty for unknown ones, and their ids."""
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
    """Histories given as item ids, and the names of the people.

    Args:
        dataset: what the model was trained on.
        histories: as for :meth:`Recommender.recommend`, and so are ``strict`` and ``times``.
        strict: whether what is unknown is an error.
        times: of the items.
        knows_time: whether the model reads times.
    """
    given = _read_people(histories, times) if _is_table(histories) else _listed_people(histories, times)
    names, asked, places, lengths, moments = given
    indices = dataset.item_indices(asked) if places is None else dataset.item_indices(asked)[places]
    if (indices == 0).any():
        missing = asked.filter(pl.Series(dataset.item_indices(asked) == 0))
        some = some_of(missing.unique(maintain_order=True))
        if strict:
            raise InputError(f"unknown items in a history: {some}; check the ids")
        warn(f"unknown items are left out of the histories: {some}", UnknownIdWarning)
    people = np.repeat(np.arange(len(lengths)), lengths)
    if moments is not None:  # by person and time; equal times keep their order, as in a log
        order = np.lexsort((moments, people))
        indices, moments = indices[order], moments[order]
    known = indices > 0
    lengths = np.bincount(people[known], minlength=len(lengths))
    if (lengths == 0).any():
        if strict:
            raise InputError("a history is empty; give at least one item")
        warn("somebody with an empty history gets the most popular items", UnknownIdWarning)
    if knows_time and dataset.has_timestamps and moments is None and (lengths > 1).any():
        warn("the model knows the time between items, and these histories come without: it takes one second from each "
             "to the next; give times (--times)", MissingTimesWarning)  # fmt: skip
    if knows_time and not dataset.has_timestamps and moments is not None:
        warn("the log of the model had no times, so those of the histories say their order alone", MissingTimesWarning)
        moments = None
    cuts = np.cumsum(lengths)[:-1]
    parts = np.split(indices[known], cuts) if len(lengths) else []
    seconds = None if moments is None else np.split(moments[known] // MICROSECONDS, cuts) if len(lengths) else []
    return histories_of(dataset, parts, seconds), names.alias("user_id")


#: Names, item ids, the place among these of each item of the histories (None: as they stand), items of each history,
#: and their times in microseconds, if any.
_People = tuple[pl.Series, pl.Series, np.ndarray | None, np.ndarray, np.ndarray | None]


def _is_table(histories: Any) -> bool:
    return isinstance(histories, str | PathLike) or hasattr(type(histories), "columns")


def _read_people(histories: Any, times: Any) -> _People:
    """Histories in a file or a frame, with its times."""
    if times is not None:
        raise InputError("times belong to histories given as lists; a file or a frame has them in a column")
    check_polars("reading histories from a file or a frame")
    given = prepare(read_log(histories))
    moments = np.asarray(given.timestamps) * MICROSECONDS if given.has_timestamps else None
    return given.user_ids, given.item_ids, np.asarray(given.items) - 1, np.diff(given.offsets), moments


def _listed_people(histories: Any, times: Any) -> _People:
    """Histories as lists, one per person or by name."""
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
    for items in lists:
        if isinstance(items, str | bytes) or not isinstance(items, Iterable):
            raise InputError(f"a history is a list of item ids, not {items!r}; give [[...], [...]]")
    parts = [ids_of(items, "histories") for items in lists]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    moments = None if times is None else moments_of(times, lengths.tolist())
    filled = [part for part in parts if len(part) and part.dtype != pl.Null] or [pl.Series("user_id", [], pl.String)]
    if len({part.dtype for part in filled}) > 1:  # such as the ids of one as numbers, of another as texts
        asked = pl.Series("user_id", [text for part in parts for text in texts_of(part)], dtype=pl.String)
    else:
        kind = filled[0].dtype
        asked = pl.concat([part.cast(kind) if part.dtype == pl.Null else part for part in parts or filled])
    return names, asked, None, lengths, moments


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


def table_of(dataset: Dataset, asked: pl.Series, found: tuple[np.ndarray, ...]) -> pl.DataFrame:
    """Ranked items as a frame ``user_id``, ``item_id``, ``title`` (where titles are known), ``score``, ``rank``."""
    rows, items, scores, ranks = found
    ids = {"user_id": asked.gather(rows), "item_id": dataset.catalogue.take(items - 1)}
    return pl.DataFrame({**ids, **titles_of(dataset.item_table, items), "score": scores, "rank": ranks})


def listed_items(dataset: Dataset, ids: Any, strict: bool) -> np.ndarray:
    """Indices of known items, of which there must be one at least; unknown ones are a warning."""
    asked = ids_of(ids, "items")
    indices = known_items(dataset, asked, "similar", strict=True) if strict else dataset.item_indices(asked)
    if not (indices > 0).any():
        raise InputError(f"none of the items is in the catalogue: {some_of(asked)}; check the ids")
    if (indices == 0).any():
        warn(f"unknown items left out: {some_of(asked.filter(pl.Series(indices == 0)))}", UnknownIdWarning)
    return indices[indices > 0]


def similar_table(dataset: Dataset, indices: np.ndarray, found: np.ndarray, cosines: np.ndarray) -> pl.DataFrame:
    """Neighbours ``int64[M, k]`` as a frame ``item_id``, ``similar_item_id``, ``score``, ``rank``.

    Where titles are known, ``title`` and ``similar_title`` stand beside the ids.
    """
    k, table = found.shape[1], dataset.item_table
    return pl.DataFrame(
        {
            "item_id": dataset.catalogue.take(np.repeat(indices - 1, k)),
            **titles_of(table, np.repeat(indices, k)),
            "similar_item_id": dataset.catalogue.take(found.ravel() - 1),
            **titles_of(table, found.ravel(), "similar_title"),
            "score": cosines.ravel(),
            "rank": np.tile(np.arange(1, k + 1), len(indices)),
        }
    )


def some_of(ids: pl.Series, most: int = 5) -> str:
    """The first few ids, for a message."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(str(value) for value in ids.head(most)) + more
