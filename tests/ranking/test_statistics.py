"""Confidence intervals: against formulas, other libraries, and how often they contain the true mean."""

import math

import numpy as np
import pytest
import scipy.stats

from seqrec.ranking.statistics import DOUBT, difference_intervals, gain_intervals, mean_intervals

Z = 1.959963984540054
SAMPLES = 3000


def holds(ends: np.ndarray, truth: float) -> float:
    """The share of intervals ``[n, 2]`` that contain the true mean."""
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


def hits(random: np.random.Generator, users: int, rate: float) -> np.ndarray:
    """Hits of 3,000 samples, a column each."""
    return (random.random((users, SAMPLES)) < rate).astype(float)


def gains(random: np.random.Generator, users: int, rate: float) -> tuple[np.ndarray, float]:
    """NDCG@10 of samples in which all ranks of hits are equally likely, and its true mean."""
    of_rank = 1 / np.log2(np.arange(2, 12))
    return hits(random, users, rate) * random.choice(of_rank, (users, SAMPLES)), rate * of_rank.mean()


# ---------------------------------------------------------------- hits and other gains


@pytest.mark.parametrize(
    ("found", "users"), [(0, 100), (1, 100), (2, 100), (37, 100), (100, 100), (0, 1), (1, 1), (3, 7)]
)
def test_hits_have_the_interval_of_agresti_and_coull(found, users):
    values = np.r_[np.ones(found), np.zeros(users - found)][:, None]
    ((low, high),) = gain_intervals(values)
    count, successes = users + Z * Z, found + Z * Z / 2
    half = Z * math.sqrt(successes / count * (1 - successes / count) / count)
    assert low == pytest.approx(max(successes / count - half, 0), abs=1e-12)
    assert high == pytest.approx(min(successes / count + half, 1), abs=1e-12)
    assert high > low
    wilson = scipy.stats.binomtest(found, users).proportion_ci(method="wilson")
    assert low <= wilson.low + 1e-12  # Wilson's interval is always inside
    assert high >= wilson.high - 1e-12
    if found == 37:  # far from 0 and 1 both are the same
        assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-3)


@pytest.mark.parametrize("users", [20, 100, 200, 1000])
@pytest.mark.parametrize("rate", [0.005, 0.01, 0.02, 0.1, 0.5, 0.99])
def test_intervals_hold_the_true_mean_where_hits_are_few(users, rate):
    random = np.random.default_rng([users, int(1000 * rate)])
    assert holds(gain_intervals(hits(random, users, rate)), rate) >= 0.93
    values, truth = gains(random, users, rate)
    assert holds(gain_intervals(values), truth) >= 0.93


@pytest.mark.parametrize("users", [100, 200, 1000])
def test_intervals_of_mrr_hold_the_true_mean(users):
    """Ranks up to 1,000 with probabilities in proportion to 1 / rank: most of the mean comes from a few users."""
    random = np.random.default_rng(users)
    ranks = np.arange(1, 1001)
    share = 1 / ranks / (1 / ranks).sum()
    values = 1 / random.choice(ranks, (users, 1000), p=share)
    assert holds(gain_intervals(values), (share / ranks).sum()) >= 0.93


def test_where_hits_are_many_intervals_are_those_of_the_normal_distribution():
    random = np.random.default_rng(3)
    for values in ((random.random((20_000, 5)) < 0.3).astype(float), random.random((20_000, 5)) ** 3):
        ends = gain_intervals(values)
        error = Z * values.std(axis=0) / math.sqrt(len(values))
        np.testing.assert_allclose(
            ends, values.mean(axis=0)[:, None] + error[:, None] * [-1, 1], atol=0.03 * error.max()
        )


def test_ties_narrow_the_interval_of_a_rate():
    """Half of the users have a tie that is a hit in one of two orders: half hits vary less than hits and misses."""
    half = np.tile([0.5, 0.0], 50)[:, None]
    whole = np.tile([1.0, 0.0, 0.0, 0.0], 25)[:, None]
    widths = [float(np.diff(gain_intervals(values))[0, 0]) for values in (half, whole)]
    assert half.mean() == whole.mean()
    assert 0.5 < widths[0] / widths[1] < 0.8


@pytest.mark.parametrize("users", [1, 2, 50, 1000])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_an_interval_always_has_a_width(users, value):
    """If a few users all have the same value, others may still differ."""
    ((low, high),) = gain_intervals(np.full((users, 1), value))
    assert 0 <= low <= value <= high <= 1
    assert 0.4 * math.sqrt(value * (1 - value) * DOUBT) / users < high - low < min(9 / users, 1)


def test_the_order_and_the_other_columns_make_no_difference():
    random = np.random.default_rng(4)
    values = random.random((200, 3)) * (random.random((200, 3)) < 0.2)
    ends = gain_intervals(values)
    np.testing.assert_allclose(gain_intervals(values[::-1]), ends)
    for column in range(3):
        np.testing.assert_allclose(gain_intervals(values[:, [column]]), ends[[column]])
    narrow = np.diff(gain_intervals(values, level=0.5))
    assert (narrow < np.diff(ends) / 2).all()


# ---------------------------------------------------------------- differences


@pytest.mark.parametrize("users", [20, 100, 1000])
@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.02, 0.01), (0.1, 0.05), (0.3, 0.3)])
def test_intervals_of_differences_hold_the_true_difference(users, rates):
    random = np.random.default_rng(users)
    (mine, one), (other, two) = (gains(random, users, rate) for rate in rates)
    ends = difference_intervals(mine - other)
    assert holds(ends, one - two) >= 0.93
    assert (ends[:, 0] < ends[:, 1]).all()


def test_two_models_with_the_same_ranks_may_still_differ():
    ends = difference_intervals(np.zeros((100, 1)))
    high = gain_intervals(np.zeros((100, 1)))[0, 1]
    np.testing.assert_allclose(ends, [[-high, high]])


def test_paired_differences_of_many_have_the_normal_interval():
    random = np.random.default_rng(5)
    first = random.random((20_000, 4)) ** 2
    second = (first + 0.1 * random.random((20_000, 4))).clip(0, 1)  # correlated with the first
    for values in (second - first, first - second, first - random.random((20_000, 4))):
        error = Z * values.std(axis=0) / math.sqrt(len(values))
        expected = values.mean(axis=0)[:, None] + error[:, None] * [-1, 1]
        # No user has a loss if the second is always better, but other users may.
        np.testing.assert_allclose(difference_intervals(values), expected, atol=0.2 * error.max())
        np.testing.assert_allclose(difference_intervals(-values), -difference_intervals(values)[:, ::-1])


# ---------------------------------------------------------------- other means


def test_other_means_have_students_interval():
    values = 3 + np.random.default_rng(6).normal(size=(9, 2))
    ends = mean_intervals(values, 20.0)
    for column in range(2):
        one = values[:, column]
        expected = scipy.stats.t.interval(0.95, 8, one.mean(), scipy.stats.sem(one))
        np.testing.assert_allclose(ends[column], expected, rtol=1e-9)


def test_users_without_a_value_are_left_out():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [4.0, 2.5]])
    ends = mean_intervals(values, 20.0)
    np.testing.assert_allclose(ends[0], mean_intervals(values[[0, 1, 3], :1], 20.0)[0])
    np.testing.assert_array_equal(ends[1], [0.0, 20.0])  # for one user, the complete range
