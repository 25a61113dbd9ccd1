"""Intervals and tests that include the variation between trainings: formulas, scipy, and simulations."""

import math

import numpy as np
import pytest
import scipy.stats

from seqrec.ranking.groups import grouped
from seqrec.ranking.statistics import (
    Spread,
    _t_bound,
    difference_intervals,
    gain_intervals,
    mean,
    paired_t_test,
    ratio_interval,
)

Z = 1.959963984540054
SAMPLES, USERS = 800, 200


def spread_by_hand(means: np.ndarray) -> tuple[float, float]:
    """The variance of a mean over trainings, and its square by the degrees of freedom."""
    count = len(means)
    variance = sum((one - sum(means) / count) ** 2 for one in means) / (count - 1) / count
    return variance, variance**2 / (count - 1)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_bound_is_that_of_scipy(level: float) -> None:
    for freedom in (1, 1.3, 2, 3.7, 10, 99.5, 1000, 9999.0, 10_001.0, 1e6, 1e12):
        wanted = scipy.stats.t.ppf((1 + level) / 2, freedom)
        assert _t_bound(1 - level, freedom) == pytest.approx(wanted, rel=1e-9)
    assert _t_bound(1 - level, math.inf) == pytest.approx(scipy.stats.norm.ppf((1 + level) / 2))


def test_a_spread_is_the_variance_of_the_mean_over_trainings() -> None:
    means = np.random.default_rng(0).random((4, 3))
    found = Spread.of(means)
    for column in range(3):
        assert (found.variance[column], found.doubt[column]) == pytest.approx(spread_by_hand(means[:, column]))
    double = found.times(2.0)
    assert double.variance == pytest.approx(Spread.of(2 * means).variance)
    assert double.doubt == pytest.approx(Spread.of(2 * means).doubt)
    assert (found + found)[1:2].variance == pytest.approx(2 * found.variance[1:2])
    one = Spread.of(means[:1])
    assert not one.variance.any()
    assert not one.doubt.any()


def test_without_several_trainings_nothing_changes() -> None:
    values = np.random.default_rng(1).random((50, 3)) * (np.random.default_rng(2).random((50, 3)) < 0.3)
    one = Spread.of(values.mean(axis=0)[None])
    np.testing.assert_array_equal(gain_intervals(values, spread=one), gain_intervals(values))
    changes = values[:, :2] - values[:, 1:]
    np.testing.assert_array_equal(difference_intervals(changes, spread=one[:2]), difference_intervals(changes))
    np.testing.assert_array_equal(paired_t_test(changes, one[:2]), paired_t_test(changes))


def test_without_variation_over_users_the_test_is_that_of_welch() -> None:
    first, second = np.array([0.31, 0.35, 0.30]), np.array([0.36, 0.33, 0.39, 0.37])
    users = np.full((40, 1), first.mean() - second.mean())
    spread = Spread.of(first[:, None]) + Spread.of(second[:, None])
    wanted = scipy.stats.ttest_ind(first, second, equal_var=False).pvalue
    assert paired_t_test(users, spread)[0] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("trainings", [2, 3, 7])
@pytest.mark.parametrize("users", [2, 20, 500])
def test_the_test_and_the_interval_are_those_of_the_formula(trainings: int, users: int) -> None:
    random = np.random.default_rng([trainings, users])
    first, second = random.random((2, trainings, users)) * [[[1.0]], [[0.8]]] + random.normal(
        0, 0.02, (2, trainings, 1)
    )
    change = first.mean(axis=0) - second.mean(axis=0)
    over_users = float(np.var(change, ddof=1)) / users
    parts = [spread_by_hand(one.mean(axis=1)) for one in (first, second)]
    over_trainings = sum(variance for variance, _ in parts)
    freedom = over_trainings**2 / sum(doubt for _, doubt in parts)  # as in Welch's test
    total = over_users + over_trainings
    spread = Spread.of(first.mean(axis=1)[:, None]) + Spread.of(second.mean(axis=1)[:, None])
    (found,) = paired_t_test(change[:, None], spread)
    bounds = scipy.stats.t.isf(found / 2, users - 1), scipy.stats.t.isf(found / 2, freedom)
    bound = (bounds[0] * over_users + bounds[1] * over_trainings) / total  # of Cochran and Cox
    assert abs(change.mean()) / math.sqrt(total) == pytest.approx(bound, rel=1e-6)
    # Each side of an interval has its own variance over users.
    for values, one, ends_of in (
        (change, spread, difference_intervals),
        (first.mean(axis=0).clip(0, 1), Spread.of(first.mean(axis=1)[:, None]), gain_intervals),
    ):
        alone, ends = ends_of(values[:, None])[0], ends_of(values[:, None], spread=one)[0]
        t = scipy.stats.t.ppf(0.975, freedom if one is spread else trainings - 1)
        for side, sign in ((0, -1), (1, 1)):
            variance = ((alone[side] - values.mean()) / Z) ** 2
            bound = (Z * variance + t * one.variance[0]) / (variance + one.variance[0])
            limit = values.mean() + sign * bound * math.sqrt(variance + one.variance[0])
            lowest = -1.0 if ends_of is difference_intervals else 0.0
            assert ends[side] == pytest.approx(min(max(limit, lowest), 1.0))
            assert sign * (ends[side] - alone[side]) >= 0


# ---------------------------------------------------------------- how often they hold the truth


def simulated(random: np.random.Generator, trainings: int, share: float, users: np.ndarray) -> np.ndarray:
    """Gains of 0.5 on average, ``[trainings, USERS, SAMPLES]``, for users who are either easy or hard to serve.

    The variance over users of the mean is ``(0.09 + 0.01 / trainings) / USERS``, that of the trainings ``share`` times
    ``0.09 / USERS``.
    """
    noise = random.random((trainings, USERS, SAMPLES)) < 0.5
    training = random.normal(0, math.sqrt(share * trainings * 0.09 / USERS), (trainings, 1, SAMPLES))
    return 0.1 + 0.6 * users + 0.2 * noise + training


def t_ends(change: np.ndarray, spreads: list[Spread]) -> np.ndarray:
    """How far means must differ from 0 to be more than chance, by the formula of Cochran and Cox."""
    first, second = (one.variance for one in spreads)
    with np.errstate(invalid="ignore"):
        freedom = np.nan_to_num((first + second) ** 2 / (spreads[0].doubt + spreads[1].doubt), nan=np.inf)
    users = change.var(axis=0, ddof=1) / len(change)
    bounds = scipy.stats.t.ppf(0.975, len(change) - 1), scipy.stats.t.ppf(0.975, freedom)
    total = users + first + second
    reach: np.ndarray = (users * bounds[0] + (first + second) * bounds[1]) / np.sqrt(total)
    return reach


def holds(ends: np.ndarray, truth: float) -> float:
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [2, 4])
@pytest.mark.parametrize("share", [0.0, 3.0, 10.0])
def test_intervals_over_trainings_hold_the_true_mean(trainings: int, share: float) -> None:
    random = np.random.default_rng([trainings, int(10 * share)])
    users = random.random((USERS, SAMPLES)) < 0.5
    first, second = (simulated(random, trainings, share, users) for _ in range(2))
    least = 0.93
    spreads = [Spread.of(one.mean(axis=1)) for one in (first, second)]
    values = first.mean(axis=0)
    assert holds(gain_intervals(values, spread=spreads[0]), 0.5) >= least
    change = values - second.mean(axis=0)
    ends = difference_intervals(change, spread=spreads[0] + spreads[1])
    assert holds(ends, 0.0) >= least
    assert (np.abs(change.mean(axis=0)) > t_ends(change, spreads)).mean() <= 1 - least
    some = slice(40)  # finding p takes long
    p = paired_t_test(change[:, some], (spreads[0] + spreads[1])[some])
    np.testing.assert_array_equal(p < 0.05, np.abs(change.mean(axis=0)[some]) > t_ends(change, spreads)[some])
    if share == 0:  # nothing is wasted
        assert holds(gain_intervals(values, spread=spreads[0]), 0.5) <= 0.98
    if share >= 1:  # intervals over users promise too much
        assert holds(gain_intervals(values), 0.5) < 0.75
        assert (paired_t_test(change) < 0.05).mean() > 0.25


# ---------------------------------------------------------------- ratios


@pytest.mark.parametrize("trainings", [1, 3])
def test_a_ratio_is_in_its_interval_if_the_test_finds_no_difference(trainings: int) -> None:
    random = np.random.default_rng(trainings)
    under = random.random((trainings, 60, 1)) + random.normal(0, 0.02, (trainings, 1, 1))
    over = 0.7 * under + 0.2 * random.random((trainings, 60, 1)) - 0.1
    spreads = Spread.of(over.mean(axis=1)), Spread.of(under.mean(axis=1))
    ends = ratio_interval(over.mean(axis=0)[:, 0], under.mean(axis=0)[:, 0], spreads)
    assert ends is not None
    assert ends[0] < over.mean() / under.mean() < ends[1]
    for end in ends:
        (p,) = paired_t_test((over - end * under).mean(axis=0), spreads[0] + spreads[1].times(end))
        assert p == pytest.approx(0.05, rel=1e-5)
    if trainings == 1:  # Fieller's equation
        top, bottom = over[0, :, 0], under[0, :, 0]
        square = scipy.stats.t.ppf(0.975, 59) ** 2
        (oo, ou), (_, uu) = np.cov(top, bottom) / 60
        wanted = np.roots(
            [
                bottom.mean() ** 2 - square * uu,
                -2 * (top.mean() * bottom.mean() - square * ou),
                top.mean() ** 2 - square * oo,
            ]
        )
        assert ends == pytest.approx(tuple(sorted(wanted)), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [1, 3])
def test_intervals_of_a_ratio_hold_the_true_one(trainings: int) -> None:
    random = np.random.default_rng(trainings)
    found = []
    for _ in range(150):
        gain = (random.random(USERS) < 0.3) * random.random(USERS)  # mean 0.15; what is shuffled has half of it
        noise = random.normal(0, 0.006, (2, trainings, 1)) if trainings > 1 else np.zeros((2, 1, 1))
        kept = random.random((trainings, USERS)) < 0.5
        over, under = gain * kept + noise[0], np.tile(gain, (trainings, 1)) + noise[1]
        spreads = tuple(Spread.of(one.mean(axis=1)[:, None]) for one in (over, under))
        found.append(ratio_interval(over.mean(axis=0), under.mean(axis=0), spreads))  # type: ignore[arg-type]
    assert holds(np.array(found), 0.5) >= 0.91


def test_a_ratio_to_what_may_be_zero_has_no_interval() -> None:
    spreads = Spread.of(np.zeros((1, 1))), Spread.of(np.zeros((1, 1)))
    rare = np.zeros(100)
    assert ratio_interval(rare, rare, spreads) is None
    rare[0] = 0.5  # one hit: the denominator does not differ from 0
    assert ratio_interval(rare, rare, spreads) is None
    assert ratio_interval(np.ones(1), np.ones(1), spreads) is None
    same = np.linspace(0.2, 0.4, 50)
    assert ratio_interval(0.5 * same, same, spreads) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert ratio_interval(0 * same, same, spreads) == pytest.approx((0.0, 0.0), abs=1e-6)


# ---------------------------------------------------------------- groups


def test_groups_of_several_trainings() -> None:
    random = np.random.default_rng(3)
    sizes, values = random.integers(0, 30, 200), random.random((3, 200))
    found = grouped("history", sizes, {"ndcg@10": values, "hr@10": values > 0.5})
    assert sum(group.users for group in found) == 200
    for group in found:
        mine = (sizes >= group.least) & (sizes <= (10**6 if group.most is None else group.most))
        part = values[:, mine]
        assert group.metrics["ndcg@10"] == pytest.approx(part.mean())
        ends = gain_intervals(part.mean(axis=0)[:, None], spread=Spread.of(part.mean(axis=1)[:, None]))[0]
        assert group.intervals["ndcg@10"] == pytest.approx(tuple(ends))
        assert group.metrics["hr@10"] == pytest.approx(mean((part > 0.5).mean(axis=0)[:, None])[0])
