import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.negatives import (
    PopularitySampler,
    UniformSampler,
    collisions,
    contains,
    distinct_negatives_for,
    negatives_for,
    own_keys,
)


def far_from(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's chi-square against expected counts, in standard deviations (Wilson & Hilferty 1931)."""
    assert counts.shape == expected.shape
    possible = expected > 0
    assert counts[~possible].sum() == 0
    freedom = possible.sum() - 1
    square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    spread = 2 / (9 * freedom)
    return ((square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def random_own(random, num_rows: int, num_items: int, most: int) -> tuple[list[set[int]], np.ndarray]:
    """Items (with repetitions) of each row, as sets and as keys."""
    lists = [random.integers(1, num_items + 1, random.integers(0, most + 1)) for _ in range(num_rows)]
    rows = np.repeat(np.arange(num_rows), [len(items) for items in lists])
    keys = own_keys(rows, np.concatenate(lists).astype(np.int64), num_items)
    return [set(items.tolist()) for items in lists], keys


def samplers(num_items: int) -> list:
    counts = np.arange(num_items + 1) % 7
    return [UniformSampler(num_items), PopularitySampler(counts), PopularitySampler(counts, 0.5)]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("num_items", [8, 50, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_never_one_of_the_own(which, num_items, seed):
    random = np.random.default_rng(seed)
    sampler = samplers(num_items)[which]
    own, keys = random_own(random, 40, num_items, 5)
    rows = random.integers(0, 40, 200)
    drawn = negatives_for(random, sampler, rows, 6, keys)
    assert drawn.shape == (200, 6)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 1
    assert drawn.max() <= num_items
    assert not any(item in own[row] for row, line in zip(rows, drawn.tolist(), strict=True) for item in line)
    if which:
        assert not (drawn % 7 == 0).any()  # the items of count 0


def test_the_same_seed_gives_the_same_and_another_another():
    _, keys = random_own(np.random.default_rng(0), 10, 30, 8)

    def draw(seed):
        return negatives_for(np.random.default_rng(seed), UniformSampler(30), np.arange(10), 20, keys)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert len({tuple(line) for line in draw(1).tolist()}) == 10  # rows differ from each other too


@pytest.mark.parametrize("which", range(3))
def test_proportions_of_plain_draws(which):
    sampler = samplers(60)[which]
    counts = np.arange(61) % 7
    weights = [np.r_[0, np.ones(60)], counts, np.sqrt(counts)][which]
    drawn = np.bincount(sampler.draw(np.random.default_rng(3), 200_000), minlength=61)
    assert abs(far_from(drawn, 200_000 * weights / weights.sum())) < 4
    items = np.arange(1, 61)
    with np.errstate(divide="ignore"):
        expected = np.log(weights[items] / weights.sum())
    np.testing.assert_allclose(sampler.log_probability(items), expected)
    np.testing.assert_allclose(sampler.log_probability(items.reshape(6, 10)), expected.reshape(6, 10))


@pytest.mark.parametrize("which", range(3))
def test_the_others_keep_their_proportions(which):
    # One user who owns half of the likely items: what is left stays in proportion.
    sampler = samplers(40)[which]
    counts = np.arange(41) % 7
    weights = [np.r_[0, np.ones(40)], counts, np.sqrt(counts)][which].astype(float)
    owned = np.array([3, 3, 4, 5, 6, 10, 11, 12, 13, 17, 18, 19, 20])
    weights[owned] = 0
    keys = own_keys(np.zeros(len(owned), dtype=np.int64), owned, 40)
    drawn = negatives_for(np.random.default_rng(4), sampler, np.zeros(20_000, dtype=np.int64), 5, keys)
    assert abs(far_from(np.bincount(drawn.ravel(), minlength=41), 1e5 * weights / weights.sum())) < 4
    first, second = drawn[:, 0], drawn[:, 1]  # places of a line are independent
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(20_000)


@pytest.mark.slow
def test_distinct_draws_are_uniform_in_every_place():
    owned = np.array([1, 5, 30])
    keys = own_keys(np.full(3, 2), owned, 30)
    for count in (5, 12, 20):  # drawn again until different, and chosen from what is left
        drawn = distinct_negatives_for(np.random.default_rng(5), 30, np.full(20_000, 2), count, keys)
        expected = np.ones(31)
        expected[np.r_[0, owned]] = 0
        for place in (0, count // 2, count - 1):
            counts = np.bincount(drawn[:, place], minlength=31)
            assert abs(far_from(counts, 20_000 * expected / expected.sum())) < 4
        pairs = np.zeros((31, 31))
        np.add.at(pairs, (drawn[:, 0], drawn[:, 1]), 1)
        possible = np.outer(expected, expected)
        np.fill_diagonal(possible, 0)
        assert abs(far_from(pairs.ravel(), 20_000 * (possible / possible.sum()).ravel())) < 4


def test_draw_distinct():
    sampler = UniformSampler(20)
    random = np.random.default_rng(6)
    counts = np.zeros(21)
    for _ in range(3000):
        drawn = sampler.draw_distinct(random, 7)
        assert len(set(drawn.tolist())) == 7
        np.add.at(counts, drawn, 1)
    assert counts[0] == 0
    # Without replacement counts vary less than chi-square says: only the upper side is a fault.
    assert far_from(counts, np.r_[0, np.full(20, 3000 * 7 / 20)]) < 4
    assert sorted(sampler.draw_distinct(random, 20).tolist()) == list(range(1, 21))
    assert sorted(sampler.draw_distinct(random, 99).tolist()) == list(range(1, 21))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_items=st.integers(1, 40),
    count=st.integers(0, 50),
    most=st.integers(0, 60),
)
def test_distinct_lines(seed, num_items, count, most):
    random = np.random.default_rng(seed)
    own, keys = random_own(random, 6, num_items, most)
    rows = random.integers(0, 6, 10)
    drawn = distinct_negatives_for(random, num_items, rows, count, keys)
    assert drawn.shape == (10, count)
    for row, line in zip(rows, drawn.tolist(), strict=True):
        left = set(range(1, num_items + 1)) - own[row]
        real = line[: min(count, len(left))]
        assert len(set(real)) == len(real)
        assert set(real) <= left
        assert line[len(real) :] == [0] * (count - len(real))


@pytest.mark.parametrize("which", range(3))
def test_users_who_own_nearly_all(which):
    sampler = samplers(3000)[which]
    left = [10, 2999]  # counts 3 and 3
    owned = np.setdiff1d(np.arange(1, 3001), left)
    rows = np.array([0, 1, 1, 2])
    keys = own_keys(np.full(len(owned), 1), owned, 3000)
    drawn = negatives_for(np.random.default_rng(7), sampler, rows, 100, keys)
    counts = np.bincount(drawn[1:3].ravel(), minlength=3001)
    assert counts[left].sum() == 200
    assert abs(counts[10] - 100) < 5 * math.sqrt(50)
    assert len(np.unique(drawn[[0, 3]])) > 150


@pytest.mark.parametrize("which", range(3))
def test_users_who_own_all(which):
    sampler = samplers(20)[which]
    # With popularity it is enough to own all that can be drawn: the rest has count 0.
    owned = np.arange(1, 21) if which == 0 else np.flatnonzero(np.arange(21) % 7)
    keys = own_keys(np.full(len(owned), 4), owned, 20)
    with pytest.raises(ValueError, match=r"user 4 .*owns every item"):
        negatives_for(np.random.default_rng(8), sampler, np.array([3, 4]), 2, keys)
    assert negatives_for(np.random.default_rng(8), sampler, np.array([3, 5]), 2, keys).min() > 0


def test_nothing_owned_and_nothing_asked():
    random = np.random.default_rng(9)
    none = np.empty(0, dtype=np.int64)
    assert negatives_for(random, UniformSampler(5), none, 3, none).shape == (0, 3)
    assert negatives_for(random, UniformSampler(5), np.arange(4), 0, none).shape == (4, 0)
    assert set(negatives_for(random, UniformSampler(5), np.arange(4), 50, none).ravel()) == {1, 2, 3, 4, 5}
    assert distinct_negatives_for(random, 5, none, 3, none).shape == (0, 3)
    assert set(negatives_for(random, UniformSampler(1), np.arange(3), 2, none).ravel()) == {1}


class Extreme:
    """A generator whose uniform numbers are the least and the greatest that there are."""

    def random(self, count):
        return np.resize([0.0, np.nextafter(1.0, 0.0)], count)


@pytest.mark.parametrize(
    "counts",
    [
        [9, 0, 0, 5, 0, 1, 0, 0],
        [0, 1, 1, 1],
        [5, 0, 1],
        np.r_[0, np.full(100_000, 0.1), 0, 0],
        np.r_[0, 1e18, np.ones(1000), 0],
    ],
)
def test_popularity_never_draws_padding_or_the_impossible(counts):
    sampler = PopularitySampler(np.array(counts))
    drawn = sampler.draw(Extreme(), 2)
    possible = np.flatnonzero(np.array(counts)[1:]) + 1
    assert drawn.tolist() == [possible[0], possible[-1]]
    assert sampler.log_probability(np.array([0]))[0] == -np.inf
    drawn = sampler.draw(np.random.default_rng(10), 100_000)
    assert np.isin(drawn, possible).all()


def test_popularity_power_and_no_counts():
    sampler = PopularitySampler(np.array([100, 1, 0, 16]), power=0.75)
    np.testing.assert_allclose(sampler.probabilities, [0, 1 / 9, 0, 8 / 9])
    np.testing.assert_allclose(PopularitySampler(np.array([7, 1, 0, 16]), 0).probabilities, [0, 0.5, 0, 0.5])
    counts = np.array([3, 2, 1])
    PopularitySampler(counts)
    assert counts.tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match="every count is zero"):
        PopularitySampler(np.array([5, 0, 0]))


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.integers(0, 30)), asked=st.lists(st.integers(-3, 35)))
def test_contains_is_the_naive_loop(keys, asked):
    found = contains(np.array(sorted(keys), dtype=np.int64), np.array(asked, dtype=np.int64))
    assert found.tolist() == [key in keys for key in asked]


@pytest.mark.parametrize("span", [2**18, 2**40])  # keys that differ in their last 20 bits, and keys that agree there
def test_contains_of_many_is_the_same(span):
    random = np.random.default_rng(0)
    keys = np.sort(random.integers(0, span, 1000))
    asked = np.concatenate([random.integers(0, span, 20_000), keys, keys + 2**20, -keys])
    np.testing.assert_array_equal(contains(keys, asked), np.isin(asked, keys))
    assert contains(keys, keys.repeat(20)).all()
    assert not contains(keys[:0], asked).any()


@settings(max_examples=60, deadline=None)
@given(negatives=st.lists(st.integers(0, 12), max_size=20), items=st.lists(st.integers(0, 12), max_size=20))
def test_collisions_are_the_naive_loop(negatives, items):
    which, where = collisions(np.array(negatives, dtype=np.int64), np.array(items, dtype=np.int64))
    expected = [(i, n) for i, item in enumerate(items) for n, other in enumerate(negatives) if item == other]
    assert sorted(zip(which.tolist(), where.tolist(), strict=True)) == expected
