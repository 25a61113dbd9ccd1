"""Weights of items that are near each other in histories, and sums of their rows: compiled loops or numpy."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from seqrec import kernels

CELLS = 2**22  # number of pairs that numpy holds at once; each takes some 80 bytes while they are sorted


class Rows(NamedTuple):
    """Rows of different lengths: ``columns[offsets[r]:offsets[r + 1]]`` and the values there are row r."""

    offsets: np.ndarray  # int64[R + 1]
    columns: np.ndarray  # int32[E] or int64[E], ascending in each row
    values: np.ndarray  # float32[E]

    @property
    def owners(self) -> np.ndarray:
        """The row of each entry, ``int64[E]``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def weigh_pairs(
    items: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    *,
    after: np.ndarray,
    beside: np.ndarray,
    gains: np.ndarray,
    factors: np.ndarray,
    most: int,
    wanted: np.ndarray | None = None,
) -> Rows:
    """Weights of pairs of items, of which each item keeps the highest; as :func:`seqrec.kernels.weigh_pairs`.

    Memory is bounded: the pairs are never listed all at once.
    """
    numbers = {"after": after, "beside": beside, "gains": gains, "factors": factors}
    if kernels.usable():
        weighed = kernels.weigh_pairs(
            _tensor(items), _tensor(starts), _tensor(ends), most=most,
            wanted=None if wanted is None else _tensor(wanted),
            **{name: _tensor(part) for name, part in numbers.items()},
        )  # fmt: skip
        return Rows(*(part.numpy() for part in weighed))
    if most < 1:
        raise ValueError(f"most is {most}; give at least 1 item to keep")
    for name, part in numbers.items():
        if not ((part >= 0) & np.isfinite(part)).all():
            raise ValueError(f"{name} has numbers that are negative or not finite")
    width = len(gains)
    if len(factors) != width or (wanted is not None and len(wanted) != width):
        raise ValueError(f"factors and wanted must have {width} entries, as gains")
    keys, values = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.float32)]
    for some, sums in _pairs(_Stream(items, starts, ends, width), after, beside, width, wanted):
        rows, columns = some // width, some % width
        weights = np.log1p(sums[:, 0] * gains[columns]) + sums[:, 1] * factors[rows] * factors[columns]
        kept = _highest(rows, columns, weights.astype(np.float32), most)
        keys.append(some[kept])
        values.append(weights[kept].astype(np.float32))
    all_keys = np.concatenate(keys)
    lengths = np.bincount(all_keys // width, minlength=width)
    return Rows(_offsets(lengths), (all_keys % width).astype(np.int32), np.concatenate(values))


def sum_rows(table: Rows, offsets: np.ndarray, entries: np.ndarray, coefficients: np.ndarray) -> Rows:
    """For each row, the sum of some rows of a table, each multiplied by a coefficient.

    Give few enough rows at a time; see :func:`seqrec.kernels.sum_rows`, which this is.
    """
    if kernels.usable():
        given = kernels.Rows(*map(_tensor, table))
        summed = kernels.sum_rows(given, _tensor(offsets), _tensor(entries), _tensor(coefficients))
        return Rows(*(part.numpy() for part in summed))
    width = len(table.offsets) - 1
    if len(offsets) == 0 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError("the offsets of the rows to sum are not ascending from 0")
    if not offsets[-1] == len(entries) == len(coefficients):
        raise ValueError(f"offsets end at {offsets[-1]}: {len(entries)} entries and {len(coefficients)} coefficients")
    if len(entries) and not 0 <= entries.min() <= entries.max() < width:
        raise ValueError(f"rows {entries.min()} to {entries.max()} of a table of {width} are summed")
    low, high = table.offsets[:-1][entries], table.offsets[1:][entries]
    if len(table.columns) != len(table.values) or ((low < 0) | (low > high) | (high > len(table.columns))).any():
        raise ValueError("the table has offsets that are out of range")
    ends = _offsets(high - low)[offsets]  # the number of pairs up to the end of each row
    parts, start = [Rows(_offsets(np.empty(0)), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))], 0
    while start < len(offsets) - 1:
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + CELLS, side="right")) - 1)
        chosen = slice(offsets[start], offsets[stop])
        own = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
        parts.append(_sums(table, low[chosen], high[chosen] - low[chosen], coefficients[chosen], own, stop - start))
        start = stop
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Rows(_offsets(lengths), *(np.concatenate([part[n] for part in parts]) for n in (1, 2)))


def sums_at(
    table: Rows, offsets: np.ndarray, entries: np.ndarray, coefficients: np.ndarray, columns: torch.Tensor
) -> torch.Tensor:
    """The sums of :func:`sum_rows` in each row's own columns ``int64[R, C]``: ``float32[R, C]``, 0 without a sum."""
    if kernels.usable():
        given = (*map(_tensor, (offsets, entries, coefficients)), columns.cpu().contiguous())
        return kernels.sums_at(kernels.Rows(*map(_tensor, table)), *given).to(columns.device)
    return look_up(sum_rows(table, offsets, entries, coefficients), np.arange(len(columns)), columns)[1]


def look_up(rows: Rows, which: np.ndarray, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether row ``which[r]`` has an entry in column ``columns[r, c]``, ``bool[R, C]``, and its value or 0."""
    asked = columns.cpu()
    if len(rows.columns) == 0:
        nothing = torch.zeros(asked.shape, device=columns.device)
        return nothing > 0, nothing
    width = 1 + max(int(rows.columns.max()), int(asked.max()) if asked.numel() else 0)
    keys = torch.from_numpy(rows.owners * width + rows.columns)
    asked = (torch.from_numpy(which)[:, None] * width + asked).contiguous()
    place = torch.searchsorted(keys, asked).clamp_(max=len(keys) - 1)
    there = keys[place] == asked
    values = torch.where(there, torch.from_numpy(rows.values)[place], 0.0)
    return there.to(columns.device), values.to(columns.device)


def _sums(
    table: Rows, starts: np.ndarray, lengths: np.ndarray, coefficients: np.ndarray, rows: np.ndarray, count: int
) -> Rows:
    """The sums of some stretches of a table in ``count`` rows, given the row of each stretch."""
    width = len(table.offsets) - 1
    source = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    columns = table.columns[source].astype(np.int64)
    if len(columns) and not 0 <= columns.min() <= columns.max() < width:
        raise ValueError("the table has columns that are out of range")
    values = np.repeat(coefficients.astype(np.float64), lengths) * table.values[source]
    keys, sums = _summed(np.repeat(rows, lengths) * width + columns, values)
    return Rows(_offsets(np.bincount(keys // width, minlength=count)), keys % width, sums.astype(np.float32))


class _Stream:
    """The histories one after another: ``items int64[P]``, and the numbers of items ahead and behind in the history."""

    def __init__(self, items: np.ndarray, starts: np.ndarray, ends: np.ndarray, width: int) -> None:
        lengths = ends - starts
        if len(lengths) and (lengths.min() < 0 or starts.min() < 0 or ends.max() > len(items)):
            raise ValueError(f"histories are not in the {len(items)} interactions")
        ranges = np.stack([starts, ends], axis=1)[lengths > 0]
        ranges = ranges[np.argsort(ranges[:, 0])]
        if (ranges[1:, 0] < ranges[:-1, 1]).any():
            raise ValueError("histories overlap")
        first = np.cumsum(lengths) - lengths
        source = np.arange(lengths.sum()) + np.repeat(starts - first, lengths)
        self.items = items[source].astype(np.int64)
        if len(self.items) and not 0 <= self.items.min() <= self.items.max() < width:
            raise ValueError(f"items are from {self.items.min()} to {self.items.max()}, in a catalogue of {width - 1}")
        self.behind = np.arange(len(source)) - np.repeat(first, lengths)
        self.ahead = np.repeat(lengths, lengths) - 1 - self.behind


def _pairs(
    stream: _Stream, after: np.ndarray, beside: np.ndarray, width: int, wanted: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Complete rows of pairs, some at a time: ascending keys ``i * width + j``, and sums A and S, ``float64[P, 2]``."""
    steps = [(d, (weight, 0.0)) for d, weight in enumerate(after, start=1)]
    steps += [(side * d, (0.0, weight)) for d, weight in enumerate(beside, start=1) for side in (1, -1)]
    order = np.argsort(stream.items, kind="stable")
    order = order[np.searchsorted(stream.items, 1, sorter=order) :]  # not from the padding
    if wanted is not None:
        order = order[wanted[stream.items[order]]]
    size = max(1, CELLS // max(1, len(steps)))
    open_keys, open_sums = np.empty(0, dtype=np.int64), np.empty((0, 2))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        keys, weights = [open_keys], [open_sums]
        for step, weight in steps:
            own = places[(stream.ahead if step > 0 else stream.behind)[places] >= abs(step)]
            item, other = stream.items[own], stream.items[own + step]
            counted = (item != other) & (other != 0)
            keys.append(item[counted] * width + other[counted])
            weights.append(np.tile(np.array(weight, dtype=np.float64), (len(keys[-1]), 1)))
        found, sums = _summed(np.concatenate(keys), np.concatenate(weights))
        # The row of an item that the next places go on with stays open.
        following = order[start + size : start + size + 1]
        closed = len(found) if len(following) == 0 else int(np.searchsorted(found, stream.items[following[0]] * width))
        open_keys, open_sums = found[closed:], sums[closed:]
        yield found[:closed], sums[:closed]


def _summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different keys in ascending order, and the sum of the values of each."""
    if len(keys) == 0:
        return keys, values
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(values[order], first, axis=0)


def _highest(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, most: int) -> np.ndarray:
    """Places of the ``most`` highest values of each row, in ascending order."""
    if len(rows) == 0 or np.bincount(rows - rows[0]).max() <= most:
        return np.arange(len(rows))
    by_row = np.lexsort((columns, -values, rows))
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # the place in its row of each of by_row
    return np.sort(by_row[place < most])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor on the same memory; of memory that must not be written, on a copy, or torch would warn."""
    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
