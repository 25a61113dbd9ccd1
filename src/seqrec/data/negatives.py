"""Draw items that are not a user's own, vectorised. Items are 1 to ``num_items``."""

from typing import Literal

import numpy as np

Loss = Literal["sampled-softmax", "bce", "gbce", "cross-entropy", "bpr-max", "top1-max"]


class UniformSampler:
    """Every item with the same probability."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """``int64[count]`` items, with replacement."""
        return random.integers(1, self.num_items + 1, size=count)

    def draw_distinct(self, random: np.random.Generator, count: int) -> np.ndarray:
        """``int64[min(count, num_items)]`` different items; the cost is that of the count alone."""
        count = min(count, self.num_items)
        return random.choice(self.num_items, size=count, replace=False, shuffle=False) + 1

    def log_probability(self, items: np.ndarray) -> np.ndarray:
        """Log of the probability that one draw gives each item."""
        return np.full(items.shape, -np.log(self.num_items))


class PopularitySampler:
    """Each item in proportion to its count to the ``power`` (1: popularity, 0: uniform)."""

    def __init__(self, counts: np.ndarray, power: float = 1.0) -> None:
        """``counts[I + 1]``; entry 0, the padding, is never drawn, nor is an item of count 0."""
        weights = np.asarray(counts, dtype=np.float64).copy()
        weights[0] = 0.0
        weights[weights > 0] **= power
        if not weights.any():
            raise ValueError("every count is zero; there is nothing to draw")
        self.num_items = len(weights) - 1
        self.probabilities = weights / weights.sum()
        self._cumulative = np.cumsum(self.probabilities)
        self._cumulative[-1] = 1.0
        # Rounding must never let a draw of nearly 1 fall on trailing items of probability 0.
        self._cumulative[np.flatnonzero(weights)[-1] :] = 1.0

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """``int64[count]`` items, with replacement."""
        return np.searchsorted(self._cumulative, random.random(count), side="right")

    def log_probability(self, items: np.ndarray) -> np.ndarray:
        """Log of the probability that one draw gives each item (-inf for one that is never drawn)."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities[items])


Sampler = UniformSampler | PopularitySampler


def own_keys(rows: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """Sorted keys of (row, item) pairs, which ``negatives_for`` keeps away from."""
    return np.sort(rows.astype(np.int64) * (num_items + 1) + items)


def negatives_for(
    random: np.random.Generator, sampler: Sampler, rows: np.ndarray, count: int, own: np.ndarray
) -> np.ndarray:
    """``int64[len(rows), count]`` negatives, none of them an item of its row's user.

    A draw that hits one of the user's own is drawn again, so the others keep their proportions.

    Args:
        random: where the randomness comes from.
        sampler: what is drawn from.
        rows: ``int64[R]``, the user of each line of the result, as in ``own``.
        count: negatives a line.
        own: sorted keys from ``own_keys``.

    Raises:
        ValueError: a user owns all items that can be drawn.
    """
    base = np.repeat(rows.astype(np.int64) * (sampler.num_items + 1), count)
    drawn = sampler.draw(random, len(base))
    pending = np.flatnonzero(contains(own, base + drawn))
    for _ in range(1000):
        if len(pending) == 0:
            return drawn.reshape(len(rows), count)
        drawn[pending] = sampler.draw(random, len(pending))
        pending = pending[contains(own, base[pending] + drawn[pending])]
    # So many misses in a row mean users who own nearly everything: choose among what is left.
    for index in pending:
        row = int(base[index]) // (sampler.num_items + 1)
        mine = own[(own >= base[index]) & (own <= base[index] + sampler.num_items)] - base[index]
        left = np.setdiff1d(np.arange(1, sampler.num_items + 1), mine)
        weights = np.exp(sampler.log_probability(left))
        if len(left) == 0 or weights.sum() == 0:
            raise ValueError(f"user {row} of the batch owns every item, so there is no negative")
        drawn[index] = random.choice(left, p=weights / weights.sum())
    return drawn.reshape(len(rows), count)


def distinct_negatives_for(
    random: np.random.Generator, num_items: int, rows: np.ndarray, count: int, own: np.ndarray
) -> np.ndarray:
    """``int64[len(rows), count]`` different uniform negatives a line, none an item of its row's user.

    A line of a user who leaves fewer than ``count`` items has all of them, then zeros.
    """
    sampler = UniformSampler(num_items)
    width = num_items + 1
    owned = _owned(own, rows, width)
    scarce = num_items - owned < 2 * count
    result = np.zeros((len(rows), count), dtype=np.int64)
    plenty = np.flatnonzero(~scarce)
    if len(plenty):
        lines = negatives_for(random, sampler, rows[plenty], count, own)
        # A repeated item is drawn again until a line has none: the first of it stays, which makes the
        # line a uniform draw without replacement.
        pending: np.ndarray = np.arange(len(plenty))
        while len(pending):
            some = lines[pending]
            order = np.argsort(some, axis=1, kind="stable")
            in_order = np.take_along_axis(some, order, axis=1)
            repeated = np.zeros_like(some, dtype=bool)
            np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
            line, place = np.nonzero(repeated)
            if len(line) == 0:
                break
            again = pending[line]
            lines[again, place] = negatives_for(random, sampler, rows[plenty][again], 1, own)[:, 0]
            pending = np.unique(again)
        result[plenty] = lines
    for short in np.flatnonzero(scarce):
        low = np.searchsorted(own, rows[short] * width)
        high = np.searchsorted(own, (rows[short] + 1) * width)
        left = np.setdiff1d(np.arange(1, width), own[low:high] - rows[short] * width)
        chosen = random.permutation(left)[:count]
        result[short, : len(chosen)] = chosen
    return result


def contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which of ``keys`` occur in ``sorted_keys``."""
    if len(sorted_keys) == 0:
        return np.zeros(keys.shape, dtype=bool)
    place = np.searchsorted(sorted_keys, keys)
    place[place == len(sorted_keys)] = 0
    return sorted_keys[place] == keys


def collisions(negatives: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (index into ``items``, index into ``negatives``) where both are the same item."""
    order = np.argsort(negatives, kind="stable")
    in_order = negatives[order]
    low = np.searchsorted(in_order, items, side="left")
    counts = np.searchsorted(in_order, items, side="right") - low
    which = np.repeat(np.arange(len(items)), counts)
    first = np.cumsum(counts) - counts
    return which, order[np.arange(len(which)) - first[which] + low[which]]


def _owned(own: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    """How many keys (repetitions counted) each row has."""
    return np.searchsorted(own, (rows + 1) * width) - np.searchsorted(own, rows * width)
