"""Weights of items that are near each other in histories, and sums of their rows; see ``counts.cpp``."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.kernels.arrays import Loop, integers

_HISTORIES = "items: int32[N] below C", "ranges: int64[M, 2] sorted, below N + 1", "M", "C", "wanted: bool[C]?"
_WEIGH_PAIRS_ROOM = Loop("weigh_pairs_room", *_HISTORIES, "distances: int64", "most: int64")
_WEIGH_PAIRS = Loop(
    "weigh_pairs", *_HISTORIES, "after: float32[F]", "F", "beside: float32[B]", "B", "gains: float32[C]",
    "factors: float32[C]", "most: int64", "offsets: int64[C + 1] made", "others: int32[W] made",
    "values: float32[W] made", "W",
)  # fmt: skip
# The C functions check the contents of the table themselves, where they read it.
_TABLE = "table: int64[C + 1]", "others: int32[E]", "values: float32[E]", "E", "C"
_ROWS = "offsets: int64[R + 1] rising to L", "entries: int32[L] below C"
_SUM_ROWS_ROOM = Loop("sum_rows_room", *_TABLE, *_ROWS, "R")
_SUM_ROWS = Loop(
    "sum_rows", *_TABLE, *_ROWS, "coefficients: float32[L]", "R", "out_offsets: int64[R + 1] made",
    "columns: int64[W] made", "sums: float32[W] made", "W",
)  # fmt: skip

_SUMS_AT = Loop(
    "sums_at", *_TABLE, *_ROWS, "coefficients: float32[L]", "R", "asked: int64[R, A] below C", "A",
    "sums: float32[R, A] made",
)  # fmt: skip

_BAD_TABLE = "the table has offsets or columns that are out of range"


class Rows(NamedTuple):
    """Rows of different lengths: ``columns[offsets[r]:offsets[r + 1]]`` and the values there are row r."""

    offsets: Tensor  # int64[R + 1]
    columns: Tensor  # int32[E] or int64[E], ascending in each row
    values: Tensor  # float32[E]


def weigh_pairs(
    items: Tensor,
    starts: Tensor,
    ends: Tensor,
    *,
    after: Tensor,
    beside: Tensor,
    gains: Tensor,
    factors: Tensor,
    most: int,
    wanted: Tensor | None = None,
) -> Rows:
    """Weights of the pairs of items that are near each other in a history, of which each item keeps the highest.

    For items i and j at the positions p < q of a history, d = q - p apart, ``after[d - 1]`` is added to A(i, j), and
    ``beside[d - 1]`` to S(i, j) and to S(j, i). The weight of j after i is

        W(i, j) = log(1 + A(i, j) gains[j]) + S(i, j) factors[i] factors[j]

    Pairs of an item with itself or with the padding do not count. Sums are of double precision and do not depend on the
    number of threads.

    Args:
        items: items of all histories, ``int32[N]``.
        starts: first position of each history, ``int64[M]``.
        ends: position after the last one of each history, ``int64[M]``. Histories do not overlap.
        after: weights by distance, from 0, ``float32[F]``.
        beside: weights by distance, from 0, ``float32[B]``; empty for S = 0.
        gains: ``float32[I + 1]``, from 0.
        factors: ``float32[I + 1]``, from 0.
        most: highest number of items j to keep for each item i: those of highest weight, and of equal ones those of
            lower index.
        wanted: items i whose rows are wanted, ``bool[I + 1]``; the other rows stay empty. By default all.

    Returns:
        W as ``I + 1`` rows, with columns ``int32``.

    Raises:
        ValueError: an argument does not match; histories overlap; or the histories have more than 2^32 items.
    """
    if most < 1:
        raise ValueError(f"most is {most}; give at least 1 item to keep")
    numbers = {"after": after, "beside": beside, "gains": gains, "factors": factors}
    for name, part in numbers.items():
        if not bool(((part >= 0) & part.isfinite()).all()):
            raise ValueError(f"{name} has numbers that are negative or not finite")
    starts, ends = integers(starts), integers(ends)
    if starts.dim() != 1 or starts.shape != ends.shape:
        raise ValueError(f"starts {tuple(starts.shape)} and ends {tuple(ends.shape)} are not int64[M] both")
    ranges = torch.stack([starts, ends], dim=1)[starts != ends]
    if bool((ranges[1:, 0] < ranges[:-1, 0]).any()):
        ranges = ranges[ranges[:, 0].argsort()]
    given = {"items": items.contiguous(), "ranges": ranges, "C": len(gains), "most": most, "wanted": wanted}
    room = _WEIGH_PAIRS_ROOM(**given, distances=len(after) + 2 * len(beside))
    count, *found = _WEIGH_PAIRS(**given, **{name: part.contiguous() for name, part in numbers.items()}, W=room)
    if count < 0:
        raise ValueError(f"the histories have more than {2**32 - 2} items; weigh pairs in fewer of them")
    return _trimmed(count, *found)


def sum_rows(table: Rows, offsets: Tensor, entries: Tensor, coefficients: Tensor) -> Rows:
    """For each of R rows, the sum of some rows of a table, each multiplied by a coefficient.

    Memory grows with the number of entries of the rows that are added: at most 12 bytes for each. Give few enough rows
    at a time. Of a large table only the rows that are used are read.

    Args:
        table: ``I + 1`` rows with columns ``int32[E]``, as from :func:`weigh_pairs`.
        offsets: ``int64[R + 1]``; the rows to add up for row r are ``entries[offsets[r]:offsets[r + 1]]``.
        entries: rows of the table, ``int32[L]``.
        coefficients: ``float32[L]``.

    Returns:
        R rows, with columns ``int64``. They are sums of double precision.

    Raises:
        ValueError: an argument does not match, or a row that is used is not in the table or has columns outside the
            catalogue.
    """
    given = _given(table, offsets, entries)
    room = _SUM_ROWS_ROOM(**given)
    count = -1
    if room >= 0:
        count, *found = _SUM_ROWS(**given, coefficients=coefficients, W=room)
    if count < 0:
        raise ValueError(_BAD_TABLE)
    return _trimmed(count, *found)


def sums_at(table: Rows, offsets: Tensor, entries: Tensor, coefficients: Tensor, asked: Tensor) -> Tensor:
    """The sums of :func:`sum_rows` in the columns ``asked int64[R, A]``, and 0 where a row has none: ``float32[R, A]``.

    Raises:
        ValueError: as for :func:`sum_rows`; or a column is not in the catalogue.
    """
    found: Tensor
    status, found = _SUMS_AT(**_given(table, offsets, entries), coefficients=coefficients, asked=asked)
    if status < 0:
        raise ValueError(_BAD_TABLE)
    return found


def _given(table: Rows, offsets: Tensor, entries: Tensor) -> dict[str, Tensor]:
    names = "table", "others", "values", "offsets", "entries"
    return dict(zip(names, (*table, offsets, entries), strict=True))


def _trimmed(count: int, offsets: Tensor, columns: Tensor, values: Tensor) -> Rows:
    """The first ``count`` entries, without the room after them."""
    if count == len(columns):
        return Rows(offsets, columns, values)
    return Rows(offsets, columns[:count].clone(), values[:count].clone())
