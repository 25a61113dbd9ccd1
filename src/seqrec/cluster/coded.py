"""Reads a block of a log into codes of its own users and items, with facts from which the log is understood."""

import uuid
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from seqrec.cluster.parts import Block, Parts
from seqrec.cluster.times import TimeFacts, raw_times
from seqrec.data.formats.columns import Choice, ratings_of
from seqrec.data.formats.summary import LogSummary
from seqrec.data.formats.text import Origin
from seqrec.data.formats.values import ids_of
from seqrec.data.numbering import indexed
from seqrec.data.prepare import well_rated
from seqrec.data.statistics import counts_of
from seqrec.errors import InputError


@dataclass(frozen=True)
class Columns:
    """What is read of each block.

    Args:
        choice: columns of the users, the items and the ratings.
        time: column that may hold the times; None if there is none.
        names_time: whether the caller named the time column.
        min_rating: least rating of the interactions to keep; None keeps all.
        needs_rating: whether anything but numbers in the rating column is an error.
    """

    choice: Choice
    time: str | None
    names_time: bool
    min_rating: float | None
    needs_rating: bool

    @property
    def names(self) -> list[str]:
        """Names of the columns, each once."""
        names = [*self.choice.roles.values(), *([] if self.time is None else [self.time])]
        return list(dict.fromkeys(names))


class Coded(NamedTuple):
    """The interactions of a block. Users and items are places in the block's own lists of ids."""

    users: np.ndarray  # int32[N]
    items: np.ndarray  # int32[N]
    times: np.ndarray | None  # int64[N] or float64[N], as raw_times returns them
    good: np.ndarray | None  # bool[N], whether the rating is high enough


class Ids(NamedTuple):
    """The ids of some rows, sorted and each once, and how often each occurs, ``int64[M]``.

    Integers are an array, which processes on one machine share; text is a series.
    """

    ids: np.ndarray | pl.Series
    counts: np.ndarray

    @property
    def series(self) -> pl.Series:
        """The ids as a series."""
        return self.ids if isinstance(self.ids, pl.Series) else pl.Series(self.ids)


def make_ids(ids: pl.Series, counts: np.ndarray) -> Ids:
    """Ids from a series of Int64 or String."""
    return Ids(ids if ids.dtype == pl.String else ids.to_numpy(), counts)


class Facts(NamedTuple):
    """What the whole log needs to know of a block.

    ``rating`` says whether the column of the ratings holds numbers, None if that does not matter; ``runs`` is the
    number of times that a row has another user than the row before it, ``ends`` the ids of the first and last user.
    """

    times: TimeFacts | None
    rating: bool | None
    are_uuids: tuple[bool, bool]
    runs: int
    ends: tuple[object, object]


def code_block(parts: Parts, block: Block, columns: Columns) -> tuple[Coded, Ids, Ids, Facts]:
    """Read a block.

    Raises:
        InputError: a part is damaged, or a value is not what its column holds.
    """
    log = Origin(parts.name, first_row=block.first_row)
    frame = parts.read(block, columns.names)
    choice = columns.choice
    users, user_ids, user_uuids = _codes_of(log, frame, choice, "user")
    items, item_ids, item_uuids = _codes_of(log, frame, choice, "item")
    raw = facts = None
    if columns.time is not None:
        raw, facts = raw_times(log, frame[columns.time], columns.names_time)
    rating = good = None
    if "rating" in choice.roles and (columns.needs_rating or frame[choice.roles["rating"]].dtype == pl.String):
        numbers = ratings_of(log, frame[choice.roles["rating"]], columns.needs_rating, LogSummary(parts.name))
        rating = numbers is not None
        if numbers is not None and columns.min_rating is not None:
            good = well_rated(numbers, columns.min_rating)
    runs = int(np.count_nonzero(users[1:] != users[:-1]))
    ends = user_ids.series[int(users[0])], user_ids.series[int(users[-1])]
    found = Facts(facts, rating, (user_uuids, item_uuids), runs, ends)
    return Coded(users, items, raw, good), user_ids, item_ids, found


def _codes_of(log: Origin, frame: pl.DataFrame, choice: Choice, role: str) -> tuple[np.ndarray, Ids, bool]:
    """Codes of a block's users or items, the ids that they stand for, and whether these are UUIDs of 16 bytes."""
    values = frame[choice.roles[f"{role}_id"]]
    codes, ids = coded_ids(log, values, role, choice.instead.get(f"{role}_id"))
    is_binary = values.dtype == pl.Binary and is_uuid(values[0], ids[int(codes[0])])
    return codes, make_ids(ids, counts_of(codes, len(ids))), is_binary


def coded_ids(log: Origin, values: pl.Series, role: str, instead: list[str] | None) -> tuple[np.ndarray, pl.Series]:
    """Codes of the ids in a column, ``int32[N]``, and the ids that they stand for, Int64 or String.

    Only the different values are converted, and only for an error the rows.

    Raises:
        InputError: a value is not an id, or the column holds something else.
    """
    plain = values.dtype.is_numeric() or values.dtype in (pl.String, pl.Binary)
    if not plain or values.null_count():
        ids_of(log, values, role, instead)  # raises
    if values.dtype.is_integer() and values.dtype != pl.Int64:
        numbers = values.cast(pl.Int64, strict=False)
        values = values.cast(pl.String) if numbers.null_count() else numbers
        return indexed(values)
    codes, raw = indexed(values)
    if values.dtype == pl.String:
        # Whether words such as 'null' are ids is decided for the whole log.
        if (raw.str.strip_chars() == "").any():
            ids_of(log, values, role, instead)  # raises
        return codes, raw
    try:
        return codes, ids_of(log, raw, role, instead)
    except InputError:
        ids_of(log, values, role, instead)  # raises for the row
        raise


def is_uuid(content: bytes, text: str) -> bool:
    """Whether 16 bytes were read as a UUID rather than as text."""
    return len(content) == 16 and text == str(uuid.UUID(bytes=content))


def places_of(ids: Ids, known: Ids) -> np.ndarray:
    """Place of each id of a block among the ids of the log, ``int32[M]``."""
    if isinstance(known.ids, np.ndarray):
        return np.searchsorted(known.ids, ids.ids).astype(np.int32)
    return known.ids.search_sorted(ids.series.cast(pl.String)).to_numpy().astype(np.int32)


def merge_ids(*several: Ids) -> tuple[Ids, None]:
    """The ids of several lists, sorted and each once, with the sum of their counts, and None; text if some are."""
    kind = pl.String() if any(isinstance(part.ids, pl.Series) for part in several) else pl.Int64()
    codes, known = indexed(pl.concat([part.series.cast(kind) for part in several]))
    counts, start = np.zeros(len(known), dtype=np.int64), 0
    for part in several:  # the ids of a part differ, so that no place occurs twice
        counts[codes[start : start + len(part.counts)]] += part.counts
        start += len(part.counts)
    return make_ids(known, counts), None
