"""Weights of pairs and sums of rows as plain loops, for the tests of their compiled and numpy forms."""

import itertools
import math
from collections import defaultdict

import numpy as np


def histories_of(random: np.random.Generator, num_items: int, count: int, longest: int) -> tuple[np.ndarray, ...]:
    """Items ``int32[N]``, padding among them, and the starts and ends of histories, in any order and with gaps."""
    lengths = random.integers(0, longest + 1, 2 * count)
    limits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.minimum(random.geometric(min(1.0, 3 / (num_items + 1)), limits[-1]) - 1, num_items).astype(np.int32)
    chosen = random.permutation(2 * count)[:count]  # the other half is between the histories
    return items, limits[:-1][chosen], limits[1:][chosen]


def weights_of(random: np.random.Generator, num_items: int, after: int, beside: int) -> dict[str, np.ndarray]:
    """Weights of pairs up to ``after`` and ``beside`` steps apart, and numbers of items. Sums of them are exact."""
    return {
        "after": random.integers(0, 5, after).astype(np.float32) / 2,
        "beside": random.integers(0, 5, beside).astype(np.float32) / 4,
        "gains": random.integers(0, 9, num_items + 1).astype(np.float32) / 2,
        "factors": random.integers(0, 9, num_items + 1).astype(np.float32) / 8,
    }


def naive_pairs(
    items: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, after: np.ndarray, beside: np.ndarray,
    gains: np.ndarray, factors: np.ndarray, most: int, wanted: np.ndarray | None = None,
) -> dict[tuple[int, int], float]:  # fmt: skip
    """The result of ``weigh_pairs`` as {(i, j): weight}."""
    forward: dict[tuple[int, int], float] = defaultdict(float)
    around: dict[tuple[int, int], float] = defaultdict(float)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        history = items[start:end].tolist()
        for (p, i), (q, j) in itertools.combinations(enumerate(history), 2):
            if i == j or 0 in (i, j):
                continue
            if q - p <= len(after):
                forward[i, j] += float(after[q - p - 1])
            if q - p <= len(beside):
                around[i, j] += float(beside[q - p - 1])
                around[j, i] += float(beside[q - p - 1])
    rows: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for i, j in forward.keys() | around.keys():
        weight = math.log1p(forward.get((i, j), 0.0) * float(gains[j]))
        weight += around.get((i, j), 0.0) * float(factors[i]) * float(factors[j])
        if wanted is None or wanted[i]:
            rows[i].append((-float(np.float32(weight)), j))
    return {(i, j): -weight for i, row in rows.items() for weight, j in sorted(row)[:most]}


def naive_sums(
    table: tuple[np.ndarray, ...], offsets: np.ndarray, entries: np.ndarray, coefficients: np.ndarray
) -> dict[tuple[int, int], float]:
    """The result of ``sum_rows`` as {(row, column): value}."""
    table_offsets, columns, values = table
    sums: dict[tuple[int, int], float] = defaultdict(float)
    for row in range(len(offsets) - 1):
        for n in range(offsets[row], offsets[row + 1]):
            for entry in range(table_offsets[entries[n]], table_offsets[entries[n] + 1]):
                sums[row, int(columns[entry])] += float(coefficients[n]) * float(values[entry])
    return dict(sums)


def rows_of(offsets: np.ndarray, columns: np.ndarray, values: np.ndarray) -> dict[tuple[int, int], float]:
    """Rows as {(row, column): value}; that columns ascend in each row is asserted."""
    offsets, columns, values = map(np.asarray, (offsets, columns, values))
    assert offsets[0] == 0
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    assert len(rows) == len(columns) == len(values)
    assert ((np.diff(rows) > 0) | (np.diff(columns) > 0)).all()
    return dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), values.tolist(), strict=True))
