"""Statistics of a log, and the counts that they need."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PART_ROWS = 1 << 22  # rows per block where numpy would convert all rows to int64 at once


@dataclass(frozen=True)
class Statistics:
    """Statistics of a log. Lengths are interactions per user. Fields that need times are None without them."""

    users: int
    items: int
    interactions: int
    density: float
    median_length: float
    p90_length: float
    max_length: int
    tied_timestamps: float | None  # share of interactions that share user and time
    copies: int | None = None  # interactions that share user, item and time with an earlier one
    first_time: int | None = None  # Unix seconds
    last_time: int | None = None


def tied_to_next(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Mask of the interactions with the same user and time as the next one, ``bool[N - 1]``; input ordered by both."""
    return (users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1])


def copies_of(items: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Places of the interactions that repeat user, item and time of an earlier one.

    Args:
        items: item of each interaction, ordered by user and time.
        same: result of :func:`tied_to_next`.
    """
    places, keys = _tied_keys(items, same)
    order = np.argsort(keys, kind="stable")  # the first of the copies comes first
    places, keys = places[order], keys[order]
    return places[1:][keys[1:] == keys[:-1]]


def count_copies(items: np.ndarray, same: np.ndarray) -> int:
    """Number of places that :func:`copies_of` returns, at a lower cost."""
    _, keys = _tied_keys(items, same)
    keys.sort()
    return int((keys[1:] == keys[:-1]).sum())


def _tied_keys(items: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of interactions with the same user and time as a neighbour, and a key of user, time and item for each."""
    first = np.concatenate([[True], ~same])
    tied = ~first
    tied[:-1] |= same
    places = np.flatnonzero(tied)
    keys = np.cumsum(first[places], dtype=np.int64)
    keys *= int(items.max()) + 1 if len(items) else 1
    keys += items[places]
    return places, keys


def counts_of(values: np.ndarray, size: int) -> np.ndarray:
    """Number of times each value from 0 to ``size - 1`` occurs, ``int64[size]``."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(values), max(PART_ROWS, size)):
        counts += np.bincount(values[start : start + max(PART_ROWS, size)], minlength=size)
    return counts


class Ties(NamedTuple):
    """What the times of some interactions tell, before it is related to the log.

    ``tied`` is the number of interactions that share user and time with another one.
    """

    tied: int
    copies: int
    first_time: int
    last_time: int


def ties_of(items: np.ndarray, timestamps: np.ndarray, same: np.ndarray) -> Ties:
    """The ties among interactions ordered by user and time; ``same`` is from :func:`tied_to_next`."""
    either = np.zeros(len(items), dtype=bool)
    either[1:] |= same
    either[:-1] |= same
    return Ties(int(either.sum()), count_copies(items, same), int(timestamps.min()), int(timestamps.max()))


def statistics_of(
    lengths: np.ndarray, num_items: int, items: np.ndarray, timestamps: np.ndarray, same: np.ndarray | None
) -> Statistics:
    """Statistics of histories with these lengths; ``same`` is from :func:`tied_to_next`, None without times."""
    return summed_up(lengths, num_items, None if same is None else ties_of(items, timestamps, same))


def summed_up(lengths: np.ndarray, num_items: int, ties: Ties | None) -> Statistics:
    """Statistics of histories with these lengths and ties; None without times."""
    total = int(lengths.sum())
    return Statistics(
        users=len(lengths),
        items=num_items,
        interactions=total,
        density=total / (len(lengths) * num_items) if total else 0.0,
        median_length=float(np.median(lengths)),
        p90_length=float(np.percentile(lengths, 90)),
        max_length=int(lengths.max()),
        tied_timestamps=None if ties is None else ties.tied / total,
        copies=None if ties is None else ties.copies,
        first_time=None if ties is None else ties.first_time,
        last_time=None if ties is None else ties.last_time,
    )
