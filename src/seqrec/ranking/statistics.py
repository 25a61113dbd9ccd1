"""Intervals and tests over users."""

import math

import numpy as np

from seqrec.ranking.metrics import coverage

_CHUNK = 4_000_000  # counts held at once, 32 MB


def bootstrap_intervals(values: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> np.ndarray:
    """Percentile bootstrap over users (Efron 1979) of the mean of each metric.

    All columns are resampled together. Above 200,000 users there are fewer resamples, down to 100, as
    the intervals are narrow then and the work would grow for nothing.

    Args:
        values: ``float64[U, n]``, a column a metric; NaN where a user has no value, and the mean is over
            those who have.
        resamples: how many means the percentiles are taken of.
        level: share of the means between the two ends.
        seed: fixes the resamples.

    Returns:
        ``float64[n, 2]``: lower and upper end.
    """
    users, width = values.shape
    resamples = _affordable(resamples, users, least=100)
    known = ~np.isnan(values)
    centre = mean(values)
    # Deviations from the mean keep a constant metric exactly constant.
    deviations = np.where(known, values - centre, 0.0)
    everywhere = bool(known.all())
    weights = known.astype(np.float64)
    random = np.random.default_rng(seed)
    means = np.empty((resamples, width))
    chunk = max(1, _CHUNK // users)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        times = np.empty((count, users))  # how often each user is drawn
        for row in times:
            row[:] = np.bincount(_draw(random, users), minlength=users)
        total = float(users) if everywhere else np.maximum(times @ weights, 1.0)
        means[start : start + count] = times @ deviations / total
    return centre[:, None] + _ends(means, level).T


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
