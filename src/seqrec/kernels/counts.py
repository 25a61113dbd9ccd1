"""Counts of items that are near each other in histories, and sums of their rows; see ``counts.cpp``."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.kernels.arrays import Loop, integers

_HISTORIES = "items: int32[N] below C", "ranges: int64[M, 2] sorted, below N + 1", "M", "C"
_COUNT_PAIRS_ROOM = Loop("count_pairs_room", *_HISTORIES, "distances: int64", "most: int64")
_COUNT_PAIRS = Loop(
    "count_pairs", *_HISTORIES, "forward: float32[F]", "F", "backward: float32[B]", "B", "factors: float32[C]?",
    "most: int64", "offsets: int64[C + 1] made", "others: int32[W] made", "values: float32[W] made", "W",
)  # fmt: skip
# The C functions check the contents of the table themselves, where they read it.
_TABLE = "table: int64[C + 1]", "others: int32[E]", "values: float32[E]", "E", "C"
_ROWS = "offsets: int64[R + 1] rising to L", "entries: int32[L] below C"
_SUM_ROWS_ROOM = Loop("sum_rows_room", *_TABLE, *_ROWS, "R")
_SUM_ROWS = Loop(
    "sum_rows", *_TABLE, *_ROWS, "coefficients: float32[L]", "R", "out_offsets: int64[R + 1] made",
    "columns: int64[W] made", "sums: float32[W] made", "W",
)  # fmt: skip


class Rows(NamedTuple):
    """Rows of different lengths: ``columns[offsets[r]:offsets[r + 1]]`` and the values there are row r."""

    offsets: Tensor  # int64[R + 1]
    columns: Tensor  # int32[E] or int64[E], ascending in each row
    values: Tensor  # float32[E]


def count_pairs(
    items: Tensor,
    starts: Tensor,
    ends: Tensor,
    forward: Tensor,
    backward: Tensor | None,
    num_items: int,
    most: int,
    factors: Tensor | None = None,
) -> Rows:
    """Weighted counts C(i, j) of the pairs of items that are near each other in a history.

    For items i and j at the positions p < q of a history, d = q - p apart, ``forward[d - 1]`` is added to C(i, j) and
    ``backward[d - 1]`` to C(j, i). Pairs of an item with itself or with the padding do not count, nor do pairs at a
    distance whose weight is 0. Sums are of double precision and do not depend on the number of threads.

    Args:
        items: items of all histories, ``int32[N]``.
        starts: first position of each history, ``int64[M]``.
        ends: position after the last one of each history, ``int64[M]``. Histories do not overlap.
        forward: finite weights by distance, ``float32[F]``.
        backward: finite weights by distance, ``float32[B]``. None for no counts backward.
        num_items: number of items I in the catalogue.
        most: highest number of items j to keep for each item i: those with the highest ``C(i, j) * factors[j]``, both
            rounded to ``float32``, and of equal ones those of lower index.
        factors: ``float32[I + 1]``. By default 1 for every item.

    Returns:
        C as ``I + 1`` rows, with columns ``int32``. The values are not multiplied by ``factors``.

    Raises:
        ValueError: an argument does not match; histories overlap; or the histories have more than 2^32 items.
    """
    backward = torch.zeros(0) if backward is None else backward
    if most < 1 or num_items < 0:
        raise ValueError(f"most is {most} and num_items {num_items}; give at least 1 item to keep")
    if not bool(forward.isfinite().all() and backward.isfinite().all()):
        raise ValueError("the weights are not all finite")
    starts, ends = integers(starts), integers(ends)
    if starts.dim() != 1 or starts.shape != ends.shape:
        raise ValueError(f"starts {tuple(starts.shape)} and ends {tuple(ends.shape)} are not int64[M] both")
    ranges = torch.stack([starts, ends], dim=1)[starts != ends]
    if bool((ranges[1:, 0] < ranges[:-1, 0]).any()):
        ranges = ranges[ranges[:, 0].argsort()]
    given = {"items": items.contiguous(), "ranges": ranges, "C": num_items + 1, "most": most}
    room = _COUNT_PAIRS_ROOM(**given, distances=len(forward) + len(backward))
    count, *found = _COUNT_PAIRS(
        **given, forward=forward.contiguous(), backward=backward.contiguous(), factors=factors, W=room
    )
    if count < 0:
        raise ValueError(f"the histories have more than {2**32 - 2} items; count pairs in fewer of them")
    return _trimmed(count, *found)


def sum_rows(table: Rows, offsets: Tensor, entries: Tensor, coefficients: Tensor) -> Rows:
    """For each of R rows, the sum of some rows of a table, each multiplied by a coefficient.

    Memory grows with the number of entries of the rows that are added: at most 12 bytes for each. Give few enough rows
    at a time. Of a large table only the rows that are used are read.

    Args:
        table: ``I + 1`` rows with columns ``int32[E]``, as from :func:`count_pairs`.
        offsets: ``int64[R + 1]``; the rows to add up for row r are ``entries[offsets[r]:offsets[r + 1]]``.
        entries: rows of the table, ``int32[L]``.
        coefficients: ``float32[L]``.

    Returns:
        R rows, with columns ``int64``. They are sums of double precision.

    Raises:
        ValueError: an argument does not match, or a row that is used is not in the table or has columns outside the
            catalogue.
    """
    given = {
        "table": table.offsets, "others": table.columns, "values": table.values, "offsets": offsets, "entries": entries,
    }  # fmt: skip
    room = _SUM_ROWS_ROOM(**given)
    count = -1
    if room >= 0:
        count, *found = _SUM_ROWS(**given, coefficients=coefficients, W=room)
    if count < 0:
        raise ValueError("the table of counts has offsets or columns that are out of range")
    return _trimmed(count, *found)


def _trimmed(count: int, offsets: Tensor, columns: Tensor, values: Tensor) -> Rows:
    """The first ``count`` entries, without the room after them."""
    if count == len(columns):
        return Rows(offsets, columns, values)
    return Rows(offsets, columns[:count].clone(), values[:count].clone())
