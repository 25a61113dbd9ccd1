"""Intervals and tests over users."""

import math
from statistics import NormalDist

import numpy as np

from seqrec.ranking.metrics import coverage

DOUBT = 8.0  # users; about 2 z^2, which holds the level of MRR among a few hundred users better than less does


def gain_intervals(values: np.ndarray, *, level: float = 0.95) -> np.ndarray:
    """Intervals of the means of gains between 0 and 1, such as hits or NDCG, over users.

    For hits and misses this is the interval of Agresti & Coull 1998: Wilson's score interval (1927) with the variance
    at its centre in place of that at its ends. It holds its level where hits are few too (Brown, Cai & DasGupta 2001).

        n' = n + z^2,    m' = (n m + z^2 / 2) / n',    m' -+ z sqrt(m' (1 - m') / n')

    Other gains vary less than hits and misses of the same mean would, by the factor ``phi = s^2 / (m (1 - m))``, and
    count as ``n / phi`` users (Kish 1965; Korn & Graubard 1998). As a few users say little of how much all vary, s^2 is
    that of the sample and of ``DOUBT`` more users of the same mean, with hits and misses alone; so a width is never 0.
    Percentiles of a bootstrap, which have never seen the hits that a sample lacks, hold a level of 95 % in 64 % of
    samples of 100 users with 1 % of hits.

    Args:
        values: ``float64[U, n]``, a column per metric.
        level: how often the interval is to hold the true mean.

    Returns:
        ``float64[n, 2]``: lower and upper end.
    """
    users, _ = values.shape
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = values.mean(axis=0).clip(0.0, 1.0)
    most = centre * (1 - centre)
    share = np.divide(values.var(axis=0), most, out=np.ones_like(most), where=most > 0).clip(0.0, 1.0)
    count = users * (users + DOUBT) / (users * share + DOUBT)
    middle = (count * centre + z * z / 2) / (count + z * z)
    half = z * np.sqrt(middle * (1 - middle) / (count + z * z))
    return np.column_stack([np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)])


def difference_intervals(differences: np.ndarray, *, level: float = 0.95) -> np.ndarray:
    """Intervals of the means of differences of two gains, each between -1 and 1, over users.

    What was gained and what was lost have an interval each (:func:`gain_intervals`), and these are put together as in
    Newcombe 1998 (method 10, for the paired difference of two rates; Zou & Donner 2008): with d = g - l, the
    intervals [g1, g2] and [l1, l2] and the correlation r of both over users,

        d - sqrt((g - g1)^2 - 2 r (g - g1) (l2 - l) + (l2 - l)^2)    to
        d + sqrt((g2 - g)^2 - 2 r (g2 - g) (l - l1) + (l - l1)^2)

    Args:
        differences: ``float64[U, n]``, a row per user, a column per comparison.
        level: how often the interval is to hold the true mean.

    Returns:
        ``float64[n, 2]``: lower and upper end.
    """
    gained, lost = np.maximum(differences, 0.0), np.maximum(-differences, 0.0)
    gain, loss = gained.mean(axis=0), lost.mean(axis=0)
    (gain_low, gain_high), (loss_low, loss_high) = (gain_intervals(part, level=level).T for part in (gained, lost))
    spread = gained.std(axis=0) * lost.std(axis=0)
    # Nobody gains and loses at once, so the mean of the product is 0.
    correlation = np.divide(-gain * loss, spread, out=np.zeros_like(spread), where=spread > 0).clip(-1.0, 0.0)

    def joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        total: np.ndarray = np.sqrt(one**2 - 2 * correlation * one * other + other**2)
        return total

    low = gain - loss - joined(gain - gain_low, loss_high - loss)
    high = gain - loss + joined(gain_high - gain, loss - loss_low)
    return np.column_stack([low.clip(-1.0, 1.0), high.clip(-1.0, 1.0)])


def mean_intervals(values: np.ndarray, highest: float, *, level: float = 0.95) -> np.ndarray:
    """Intervals of the means of other quantities over users, by Student's t.

    Args:
        values: ``float64[U, n]`` from 0 to ``highest``, a column per metric; NaN where a user has no value, and the
            mean is over those who have.
        highest: what no mean is above; with fewer than two users the interval is all that is possible.
        level: how often the interval is to hold the true mean.

    Returns:
        ``float64[n, 2]``: lower and upper end.
    """
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    centre = mean(values)
    squares = np.where(known, values - centre, 0.0) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(squares.sum(axis=0) / (counts - 1) / counts)
    quantiles = {count: _t_quantile(level, count - 1) for count in set(counts.tolist()) if count > 1}
    half = [quantiles[n] * e if n > 1 else np.inf for n, e in zip(counts.tolist(), error.tolist(), strict=True)]
    return np.column_stack([np.maximum(centre - half, 0.0), np.minimum(centre + half, highest)])


def coverage_interval(
    lists: np.ndarray, num_items: int, *, resamples: int = 100, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of :func:`coverage` over users, for this number of users.

    A resample holds about 63 % of the users, so it covers fewer items than all of them do: the bias of
    its coverage is taken out by centring the spread of the resamples on the estimate. The interval says
    how much the coverage of as many other users would differ, not what more users would cover.
    """
    users = len(lists)
    resamples = _affordable(resamples, users, least=50)
    estimate = coverage(lists, num_items)
    random = np.random.default_rng(seed)
    found = np.empty((resamples, 1))
    for number in range(resamples):
        drawn = np.zeros(users, dtype=bool)
        drawn[_draw(random, users)] = True
        found[number] = coverage(lists[drawn], num_items)
    low, high = np.clip(estimate + _ends(found - found.mean(), level)[:, 0], 0.0, 1.0)
    return float(low), float(high)


def paired_t_test(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-values of the paired t-test (Student 1908), ``float64[n]``, a column a comparison.

    Args:
        differences: ``float64[U, n]``, the metric of one model minus that of another, a row a user. The test
            asks for the mean of so many users to be about normal, not for the differences themselves; of the
            tests in use for rankings it errs least (Urbano et al. 2019; Smucker et al. 2007).

    Returns:
        1 where nothing speaks against equality: no difference at all, or fewer than two users.
    """
    users, width = differences.shape
    if users < 2:
        return np.ones(width)
    centre = differences.mean(axis=0)
    error = differences.std(axis=0, ddof=1) / np.sqrt(users)
    return np.array([_t_tails(m, e, users - 1) for m, e in zip(centre.tolist(), error.tolist(), strict=True)])


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for being n, ``float64[n]``: Holm 1979, which bounds the chance of any false finding."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def mean(values: np.ndarray) -> np.ndarray:
    """Mean of each column over the rows that are not NaN, ``float64[n]``; 0 where there are none."""
    known = ~np.isnan(values)
    total: np.ndarray = np.where(known, values, 0.0).sum(axis=0)
    return total / np.maximum(known.sum(axis=0), 1)


def _t_quantile(level: float, freedom: int) -> float:
    """What Student's t is within, above and below 0, with this probability."""
    low, high = 0.0, 1.0
    while _t_tails(high, 1.0, freedom) > 1 - level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tails(middle, 1.0, freedom) > 1 - level else (low, middle)
    return high


def _t_tails(mean: float, error: float, freedom: int) -> float:
    """Both tails of Student's t beyond ``mean / error``: the incomplete beta function I_x(freedom / 2, 1 / 2)."""
    if mean == 0.0:
        return 1.0
    if error == 0.0:
        return 0.0
    square = (mean / error) ** 2
    if math.isinf(square):
        return 0.0
    x, rest = freedom / (freedom + square), square / (freedom + square)
    a, b = freedom / 2, 0.5
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front - a * math.log1p(square / freedom) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, rest) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (Abramowitz & Stegun 26.5.8), by Lentz's method."""
    tiny = 1e-300
    ratio, value = 1.0, 0.0
    inverse = 1 - (a + b) * x / (a + 1)
    inverse = value = 1 / (inverse or tiny)
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            inverse = 1 / (1 + term * inverse or tiny)
            ratio = 1 + term / ratio or tiny
            value *= inverse * ratio
        if abs(inverse * ratio - 1) < 1e-14:
            break
    return value


def _draw(random: np.random.Generator, users: int) -> np.ndarray:
    return random.integers(users, size=users, dtype=np.int32)


def _affordable(resamples: int, users: int, least: int) -> int:
    return min(resamples, max(least, resamples * 200_000 // users))


def _ends(samples: np.ndarray, level: float) -> np.ndarray:
    """``[2, n]``: the percentiles that leave half of the rest on either side."""
    ends: np.ndarray = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends
