"""Counts of pairs and sums of rows as plain loops, for the tests of their compiled and numpy forms."""

from collections import defaultdict

import numpy as np


def histories_of(random: np.random.Generator, num_items: int, count: int, longest: int) -> tuple[np.ndarray, ...]:
    """Items ``int32[N]``, padding among them, and the starts and ends of histories, in any order and with gaps."""
    lengths = random.integers(0, longest + 1, 2 * count)
    limits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.minimum(random.geometric(min(1.0, 3 / (num_items + 1)), limits[-1]) - 1, num_items).astype(np.int32)
    chosen = random.permutation(2 * count)[:count]  # the other half is between the histories
    return items, limits[:-1][chosen], limits[1:][chosen]


def naive_pairs(
    items: np.ndarray, starts: np.ndarray, ends: np.ndarray, forward: np.ndarray, backward: np.ndarray, most: int,
    factors: np.ndarray | None,
) -> dict[tuple[int, int], float]:  # fmt: skip
    """The result of ``count_pairs`` as {(i, j): value}."""
    sums: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for start, end in zip(starts, ends, strict=True):
        history = items[start:end].tolist()
        for p, i in enumerate(history):
            for q in range(p + 1, len(history)):
                j, d = history[q], q - p
                if i == j or 0 in (i, j):
                    continue
                if d <= len(forward) and forward[d - 1] != 0:
                    sums[i][j] += float(forward[d - 1])
                if d <= len(backward) and backward[d - 1] != 0:
                    sums[j][i] += float(backward[d - 1])
    found = {}
    for i, row in sums.items():
        factor = dict.fromkeys(row, 1.0) if factors is None else {j: float(factors[j]) for j in row}
        kept = sorted(row, key=lambda j: (-row[j] * factor[j], j))[:most]
        found |= {(i, j): row[j] for j in kept}
    return found


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
    found = {}
    for row, (low, high) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        own = columns[low:high].tolist()
        assert own == sorted(set(own))
        found |= {(row, column): value for column, value in zip(own, values[low:high].tolist(), strict=True)}
    assert len(found) == len(columns) == len(values)
    return found
