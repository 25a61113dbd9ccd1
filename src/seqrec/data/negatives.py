"""Negative sampling: draws items that a user has not interacted with. Items are 1 to ``num_items``."""

from typing import Literal

import numpy as np

from seqrec.data.draws import TokenDraws

Loss = Literal["sampled-softmax", "bce", "gbce", "cross-entropy", "bpr-max", "top1-max"]


class UniformSampler:
    """Every item with the same probability."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """``int64[count]`` items, with replacement."""
        return random.integers(1, self.num_items + 1, size=count)

    def at(self, uniform: np.ndarray) -> np.ndarray:
        """The items that uniform numbers from 0 to below 1 stand for."""
        return 1 + np.minimum((uniform * self.num_items).astype(np.int64), self.num_items - 1)

    def draw_distinct(self, random: np.random.Generator, count: int) -> np.ndarray:
        """``int64[min(count, num_items)]`` different items. The cost does not depend on the size of the catalogue."""
        count = min(count, self.num_items)
        return random.choice(self.num_items, size=count, replace=False, shuffle=False) + 1

    def log_probability(self, items: np.ndarray) -> np.ndarray:
        """Log of the probability of each item in one draw."""
        return np.full(items.shape, -np.log(self.num_items))


class PopularitySampler:
    """Each item with a probability in proportion to its count to the power ``power`` (1: popularity, 0: uniform)."""

    def __init__(self, counts: np.ndarray, power: float = 1.0) -> None:
        """``counts`` are ``[I + 1]``. Item 0 (padding) and items with count 0 are never drawn."""
        weights = np.asarray(counts, dtype=np.float64).copy()
        weights[0] = 0.0
        weights[weights > 0] **= power
        if not weights.any():
            raise ValueError("every count is zero; there is nothing to draw")
        self.num_items = len(weights) - 1
        self.probabilities = weights / weights.sum()
        self._cumulative = np.cumsum(self.probabilities)
        self._cumulative[-1] = 1.0
        # Through rounding, a draw just below 1 could otherwise hit trailing items with probability 0.
        self._cumulative[np.flatnonzero(weights)[-1] :] = 1.0

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """``int64[count]`` items, with replacement."""
        return self.at(random.random(count))

    def at(self, uniform: np.ndarray) -> np.ndarray:
        """The items that uniform numbers from 0 to below 1 stand for."""
        return np.searchsorted(self._cumulative, uniform, side="right")

    def log_probability(self, items: np.ndarray) -> np.ndarray:
        """Log of the probability of each item in one draw; -inf for items that are never drawn."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities[items])


Sampler = UniformSampler | PopularitySampler

#: Number of different endings of keys that :func:`contains` looks at first: a megabyte, which fits into a cache.
_ENDINGS = 2**20
#: Number of keys from which that pays.
_MANY = 2**14


def own_keys(rows: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """Sorted keys of (row, item) pairs, to be excluded by :func:`negatives_for`."""
    return np.sort(rows.astype(np.int64) * (num_items + 1) + items)


def negatives_for(
    random: np.random.Generator | TokenDraws, sampler: Sampler, rows: np.ndarray, count: int, own: np.ndarray
) -> np.ndarray:
    """Negatives ``int64[R, count]``, none of them an item of the row's user.

    If a draw hits an item of the user, it is repeated, so the other items keep their proportions.

    Args:
        random: random generator, or the random numbers of the tokens that the rows stand for.
        sampler: distribution of the draws.
        rows: user of each row of the result, ``int64[R]``, numbered as in ``own``.
        count: number of negatives per row.
        own: sorted keys from :func:`own_keys`.

    Raises:
        ValueError: a user owns all items that can be drawn.
    """
    base = np.repeat(rows.astype(np.int64) * (sampler.num_items + 1), count)

    def draw(places: np.ndarray | None) -> np.ndarray:
        if isinstance(random, TokenDraws):
            return sampler.at(random.again(places, count))
        return sampler.draw(random, len(base) if places is None else len(places))

    drawn = draw(None)
    pending = np.flatnonzero(contains(own, base + drawn))
    for _ in range(1000):
        if len(pending) == 0:
            return drawn.reshape(len(rows), count)
        drawn[pending] = draw(pending)
        pending = pending[contains(own, base[pending] + drawn[pending])]
    # After so many failed draws, the remaining users own nearly all items: list what is left and choose from that.
    chance = random.again(pending, count) if isinstance(random, TokenDraws) else random.random(len(pending))
    for index, uniform in zip(pending, chance, strict=True):
        row = int(base[index]) // (sampler.num_items + 1)
        owned = own[(own >= base[index]) & (own <= base[index] + sampler.num_items)] - base[index]
        left = np.setdiff1d(np.arange(1, sampler.num_items + 1), owned)
        weights = np.exp(sampler.log_probability(left))
        if len(left) == 0 or weights.sum() == 0:
            raise ValueError(f"user {row} of the batch owns every item, so there is no negative")
        drawn[index] = left[np.searchsorted(np.cumsum(weights / weights.sum())[:-1], uniform, side="right")]
    return drawn.reshape(len(rows), count)


def distinct_negatives_for(
    random: np.random.Generator, num_items: int, rows: np.ndarray, count: int, own: np.ndarray
) -> np.ndarray:
    """Uniform negatives ``int64[R, count]``, all different within a row and none of them an item of the row's user.

    If fewer than ``count`` items are left for a user, the row holds all of them, then zeros.
    """
    sampler = UniformSampler(num_items)
    width = num_items + 1
    owned = _owned(own, rows, width)
    scarce = num_items - owned < 2 * count
    result = np.zeros((len(rows), count), dtype=np.int64)
    plenty = np.flatnonzero(~scarce)
    if len(plenty):
        drawn = negatives_for(random, sampler, rows[plenty], count, own)
        # Draw repeated items of a row again, keeping the first of them, until all differ. The result is a uniform draw
        # without replacement.
        pending: np.ndarray = np.arange(len(plenty))
        while len(pending):
            in_order = np.sort(drawn[pending], axis=1)
            pending = pending[(in_order[:, 1:] == in_order[:, :-1]).any(axis=1)]  # most rows have none, and are done
            some = drawn[pending]
            order = np.argsort(some, axis=1, kind="stable")
            in_order = np.take_along_axis(some, order, axis=1)
            repeated = np.zeros_like(some, dtype=bool)
            np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
            row, place = np.nonzero(repeated)
            again = pending[row]
            drawn[again, place] = negatives_for(random, sampler, rows[plenty][again], 1, own)[:, 0]
        result[plenty] = drawn
    for short in np.flatnonzero(scarce):
        low = np.searchsorted(own, rows[short] * width)
        high = np.searchsorted(own, (rows[short] + 1) * width)
        left = np.setdiff1d(np.arange(1, width), own[low:high] - rows[short] * width)
        chosen = random.permutation(left)[:count]
        result[short, : len(chosen)] = chosen
    return result


def contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each of ``keys`` occurs in ``sorted_keys``, ``bool`` in the shape of ``keys``."""
    if len(sorted_keys) == 0:
        return np.zeros(keys.shape, dtype=bool)
    if keys.size < _MANY or len(sorted_keys) > _ENDINGS // 8:
        return _are_among(sorted_keys, keys)
    # Few keys end in the bits of a sorted one, and only these are searched for.
    endings = np.zeros(_ENDINGS, dtype=bool)
    endings[sorted_keys & (_ENDINGS - 1)] = True
    found = endings[keys & (_ENDINGS - 1)]
    found[found] = _are_among(sorted_keys, keys[found])
    return found


def _are_among(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
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
    """Number of keys of each row, counting repetitions."""
    return np.searchsorted(own, (rows + 1) * width) - np.searchsorted(own, rows * width)
