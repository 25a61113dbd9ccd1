"""Confidence intervals and tests over users, and over trainings of a model with several seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from seqrec.ranking.metrics import coverages

DOUBT = 8.0  # users; about 2 z^2. With less, intervals of MRR over a few hundred users keep their level less well


@dataclass(frozen=True, eq=False)
class Spread:
    """How much a mean over several trainings of a model varies with their seeds.

    Users and trainings are both samples, and every training is tested on all users (a crossed design). The mean over
    N trainings and U users then varies by what it would with other users and by what it would with other seeds:

        V = s_u^2 / U + s_t^2 / N

    ``s_u^2`` is the variance over users of their means over trainings, ``s_t^2`` that over trainings of their means
    over users. Both contain the noise of a single value, which therefore counts twice: the sum is slightly too large on
    average, never too small (Owen & Eckles 2012). As few trainings tell little about ``s_t``, the bound of Student's t
    is that of Cochran & Cox 1950, the mean of the bounds of both parts, weighted by their variances:

        t = (s_u^2 / U t_(U - 1) + s_t^2 / N t_(N - 1)) / V

    It holds its level even with two trainings, where the degrees of freedom of Satterthwaite 1946 promise too much (in
    simulations, intervals of 95 % contain the true mean in 87 %). For the difference of two models, whose trainings are
    independent, the degrees of freedom of both spreads are joined as in Welch 1947.

    Bouthillier et al. 2021 ("Accounting for Variance in Machine Learning Benchmarks") show why intervals over users
    alone are too narrow to tell models apart.

    Args:
        variance: ``s_t^2 / N`` of each of n means, ``float64[n]``.
        doubt: ``(s_t^2 / N)^2 / (N - 1)``, its part in Welch's sum, ``float64[n]``.
    """

    variance: np.ndarray
    doubt: np.ndarray

    @property
    def freedom(self) -> np.ndarray:
        """Degrees of freedom of the variance, ``float64[n]``; infinite where it is 0."""
        square: np.ndarray = self.variance**2
        return np.divide(square, self.doubt, out=np.full_like(square, np.inf), where=self.doubt > 0)

    @classmethod
    def of(cls, means: np.ndarray) -> "Spread":
        """The spread of N trainings with these means, ``float64[N, n]``. One alone tells nothing: its spread is 0."""
        count, width = means.shape
        if count < 2:
            return cls(np.zeros(width), np.zeros(width))
        variance = means.var(axis=0, ddof=1) / count
        return cls(variance, variance**2 / (count - 1))

    def __add__(self, other: "Spread") -> "Spread":
        """The spread of the sum or difference of two means whose trainings are independent (Welch 1947)."""
        return Spread(self.variance + other.variance, self.doubt + other.doubt)

    def __getitem__(self, columns: slice) -> "Spread":
        """The spread of some of the means."""
        return Spread(self.variance[columns], self.doubt[columns])

    def times(self, factor: float) -> "Spread":
        """The spread of the means multiplied by a factor."""
        return Spread(self.variance * factor**2, self.doubt * factor**4)


def gain_intervals(values: np.ndarray, *, level: float = 0.95, spread: Spread | None = None) -> np.ndarray:
    """Confidence intervals of the means of gains between 0 and 1, such as hits or NDCG, over users.

    For hits and misses this is the interval of Agresti & Coull 1998: Wilson's score interval (1927) with the variance
    at its centre instead of at its ends. It keeps its level even with few hits (Brown, Cai & DasGupta 2001).

        n' = n + z^2,    m' = (n m + z^2 / 2) / n',    m' -+ z sqrt(m' (1 - m') / n')

    Other gains vary less than hits and misses with the same mean, by the factor ``phi = s^2 / (m (1 - m))``, so n users
    count as ``n / phi`` (Kish 1965; Korn & Graubard 1998). The variance of a few users is a poor estimate, so s^2 is
    that of the sample plus ``DOUBT`` users with the same mean and only hits and misses. The width is therefore never 0.

    Percentiles of a bootstrap would be wrong for rare hits, because no resample contains hits that the sample lacks: at
    a level of 95 %, with 100 users and 1 % of hits, only 64 % of such intervals contain the true mean.

    Args:
        values: gains, ``float64[U, n]``, a column per metric.
        level: probability with which the interval should contain the true mean.
        spread: how much the means vary between trainings, if ``values`` are means over several. The intervals then
            include it.

    Returns:
        Lower and upper ends, ``float64[n, 2]``.
    """
    users, _ = values.shape
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = values.mean(axis=0).clip(0.0, 1.0)
    most = centre * (1 - centre)
    share = np.divide(values.var(axis=0), most, out=np.ones_like(most), where=most > 0).clip(0.0, 1.0)
    count = users * (users + DOUBT) / (users * share + DOUBT)
    middle = (count * centre + z * z / 2) / (count + z * z)
    half = z * np.sqrt(middle * (1 - middle) / (count + z * z))
    ends = np.column_stack([np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)])
    return _widened(centre, ends, spread, level).clip(0.0, 1.0)


def difference_intervals(differences: np.ndarray, *, level: float = 0.95, spread: Spread | None = None) -> np.ndarray:
    """Confidence intervals of the means of differences of two gains, each between -1 and 1, over users.

    Positive parts (gains, mean g) and negative parts (losses, mean l) have an interval each (:func:`gain_intervals`).
    They are combined as in Newcombe 1998 (method 10, for the paired difference of two rates; Zou & Donner 2008). With
    d = g - l, the intervals [g1, g2] and [l1, l2], and the correlation r of both parts over users:

        d - sqrt((g - g1)^2 - 2 r (g - g1) (l2 - l) + (l2 - l)^2)    to
        d + sqrt((g2 - g)^2 - 2 r (g2 - g) (l - l1) + (l - l1)^2)

    Args:
        differences: differences, ``float64[U, n]``, a row per user, a column per comparison.
        level: probability with which the interval should contain the true mean.
        spread: how much the means vary between trainings, as for :func:`gain_intervals`.

    Returns:
        Lower and upper ends, ``float64[n, 2]``.
    """
    gained, lost = np.maximum(differences, 0.0), np.maximum(-differences, 0.0)
    gain, loss = gained.mean(axis=0), lost.mean(axis=0)
    (gain_low, gain_high), (loss_low, loss_high) = (gain_intervals(part, level=level).T for part in (gained, lost))
    widths = gained.std(axis=0) * lost.std(axis=0)
    # No user has both a gain and a loss, so the mean of the product is 0.
    correlation = np.divide(-gain * loss, widths, out=np.zeros_like(widths), where=widths > 0).clip(-1.0, 0.0)

    def joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        total: np.ndarray = np.sqrt(one**2 - 2 * correlation * one * other + other**2)
        return total

    low = gain - loss - joined(gain - gain_low, loss_high - loss)
    high = gain - loss + joined(gain_high - gain, loss - loss_low)
    ends = np.column_stack([low.clip(-1.0, 1.0), high.clip(-1.0, 1.0)])
    return _widened(gain - loss, ends, spread, level).clip(-1.0, 1.0)


def ratio_interval(
    over: np.ndarray, under: np.ndarray, spreads: tuple[Spread, Spread], *, level: float = 0.95
) -> tuple[float, float] | None:
    """Confidence interval of the mean of ``over`` by that of ``under``, for the same users (Fieller 1954).

    It consists of the ratios r for which :func:`paired_t_test` does not tell ``over`` from ``r * under``, so it agrees
    with that test about r = 1.

    Args:
        over: values of each user, ``float64[U]``, means over trainings.
        under: the same for the denominator.
        spreads: how much each of the two means varies between trainings, which are independent.
        level: probability with which the interval should contain the true ratio.

    Returns:
        Lower and upper end; None if the denominator could be 0 or there are fewer than two users, as the interval then
        has no end.
    """
    users = len(over)
    if users < 2 or under.mean() == 0:
        return None
    top, bottom = float(over.mean()), float(under.mean())
    (oo, ou), (_, uu) = (np.cov(over, under) / users).tolist()

    def is_rejected(ratio: float) -> bool:
        both = spreads[0] + spreads[1].times(ratio)
        variances = max(oo - 2 * ratio * ou + ratio**2 * uu, 0.0), float(both.variance[0])
        bound = _bound(1 - level, variances, (users - 1, float(both.freedom[0])))
        return abs(top - ratio * bottom) > bound * math.sqrt(sum(variances))

    ends = []
    for side in (-1, 1):
        near, far = 0.0, 1e-3
        while not is_rejected(top / bottom + side * far):
            near, far = far, 2 * far
            if far > 1e4:
                return None
        for _ in range(36):
            middle = (near + far) / 2
            near, far = (near, middle) if is_rejected(top / bottom + side * middle) else (middle, far)
        ends.append(top / bottom + side * near)
    return ends[0], ends[1]


def mean_intervals(values: np.ndarray, highest: float, *, level: float = 0.95) -> np.ndarray:
    """Confidence intervals of the means of other quantities over users, by Student's t.

    Args:
        values: values from 0 to ``highest``, ``float64[U, n]``, a column per metric. NaN means that a user has no
            value; the mean is over the others.
        highest: upper limit of the mean. With fewer than two users, the interval is from 0 to this.
        level: probability with which the interval should contain the true mean.

    Returns:
        Lower and upper ends, ``float64[n, 2]``.
    """
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    centre = mean(values)
    squares = np.where(known, values - centre, 0.0) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(squares.sum(axis=0) / (counts - 1) / counts)
    quantiles = {count: _t_bound(1 - level, count - 1) for count in set(counts.tolist()) if count > 1}
    half = [quantiles[n] * e if n > 1 else np.inf for n, e in zip(counts.tolist(), error.tolist(), strict=True)]
    return np.column_stack([np.maximum(centre - half, 0.0), np.minimum(centre + half, highest)])


def coverage_intervals(
    lists: np.ndarray,
    lengths: Sequence[int],
    num_items: int,
    *,
    resamples: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Bootstrap intervals of :func:`coverages` over users, for this number of users and each length of the lists.

    A resample contains about 63 % of the users, so it covers fewer items than the full sample. To remove this bias, the
    spread of the resamples is centred on the estimate. The interval shows how the coverage varies between samples of
    the same number of users, not what more users would cover.
    """
    users = len(lists)
    estimates, found = coverages(lists, lengths, num_items), []
    random = np.random.default_rng(seed)
    for _ in range(_affordable(resamples, users, least=50)):
        drawn = np.zeros(users, dtype=bool)
        drawn[_draw(random, users)] = True
        found.append(coverages(lists[drawn], lengths, num_items))
    samples = np.array(found)
    ends = np.clip(estimates + _ends(samples - samples.mean(axis=0), level), 0.0, 1.0)
    return [(low, high) for low, high in ends.T.tolist()]


def paired_t_test(differences: np.ndarray, spread: Spread | None = None) -> np.ndarray:
    """Two-sided p-values of the paired t-test (Student 1908).

    The test assumes that the mean over users is approximately normal, not that the differences are. Of the tests in use
    for rankings it has the fewest errors (Urbano et al. 2019; Smucker et al. 2007).

    Args:
        differences: metric of one model minus that of another, ``float64[U, n]``, a row per user, a column per
            comparison.
        spread: how much the means vary between trainings, if the metrics are means over several. The test then asks
            whether the difference is more than chance for other users and other seeds.

    Returns:
        p-values ``float64[n]``; 1 if there are no differences, or fewer than two users.
    """
    users, width = differences.shape
    if users < 2:
        return np.ones(width)
    centre = differences.mean(axis=0)
    error = differences.std(axis=0, ddof=1) / np.sqrt(users)
    if spread is None or not spread.variance.any():
        return np.array([_t_tails(m, e, users - 1) for m, e in zip(centre.tolist(), error.tolist(), strict=True)])
    found = zip(centre.tolist(), (error**2).tolist(), spread.variance.tolist(), spread.freedom.tolist(), strict=True)
    return np.array([_tails(m, (v, w), (users - 1, f)) for m, v, w, f in found])


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for n tests, ``float64[n]``. They bound the probability of any false positive (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def mean(values: np.ndarray) -> np.ndarray:
    """Mean of each column over the values that are not NaN, ``float64[n]``; 0 if there are none."""
    known = ~np.isnan(values)
    total: np.ndarray = np.where(known, values, 0.0).sum(axis=0)
    return total / np.maximum(known.sum(axis=0), 1)


def _widened(centre: np.ndarray, ends: np.ndarray, spread: Spread | None, level: float) -> np.ndarray:
    """Intervals over users, ``float64[n, 2]``, made to include the variation between trainings; see :class:`Spread`.

    An interval may reach further on one side of its mean than on the other, so each side has its own variance, as when
    the limits of a sum are recovered from those of its parts (Zou & Donner 2008).
    """
    if spread is None or not spread.variance.any():
        return ends
    z = NormalDist().inv_cdf((1 + level) / 2)
    t = np.array([_t_bound(1 - level, one) for one in spread.freedom.tolist()])[:, None]
    over_users, over_trainings = (np.abs(ends - centre[:, None]) / z) ** 2, spread.variance[:, None]
    total = over_users + over_trainings
    bound = np.divide(z * over_users + t * over_trainings, total, out=np.full_like(total, z), where=total > 0)
    wider: np.ndarray = centre[:, None] + bound * np.sqrt(total) * [-1.0, 1.0]
    return wider


def _bound(tails: float, variances: tuple[float, float], freedom: tuple[float, float]) -> float:
    """Cochran & Cox's bound of t for a sum of two variances: the mean of the bounds of both, weighted by them."""
    if not (total := sum(variances)):
        return _t_bound(tails, freedom[0])
    return sum(v * _t_bound(tails, f) for v, f in zip(variances, freedom, strict=True) if v) / total


def _tails(mean: float, variances: tuple[float, float], freedom: tuple[float, float]) -> float:
    """The p-value with which a mean reaches the bound of :func:`_bound`, by bisection of its logarithm."""
    if not variances[1] or not mean:
        return _t_tails(mean, math.sqrt(variances[0]), freedom[0])
    reached = abs(mean) / math.sqrt(sum(variances))
    low, high = -600.0, 0.0
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if _bound(math.exp(middle), variances, freedom) > reached else (low, middle)
    return math.exp(high) if low > -600 else 0.0


@lru_cache
def _t_bound(tails: float, freedom: float) -> float:
    """The bound beyond which Student's t has this probability, on both sides of 0 together.

    Newton's method from the bound z of the normal distribution. It is lower, and the tails are convex, so no step
    passes the bound. With many degrees of freedom, the expansion around z (Abramowitz & Stegun 26.7.5) is as exact.
    """
    bound = z = -NormalDist().inv_cdf(tails / 2)
    if freedom > 1e4:
        return z + (z**3 + z) / 4 / freedom + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
    front = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    for _ in range(200):
        density = 2 * math.exp(front - (freedom + 1) / 2 * math.log1p(bound * bound / freedom))
        step = (_t_tails(bound, 1.0, freedom) - tails) / density
        bound += step
        if abs(step) <= 1e-12 * bound:
            break
    return bound


def _t_tails(mean: float, error: float, freedom: float) -> float:
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
    """The ends ``[2, n]`` of the central interval of the samples with this probability."""
    ends: np.ndarray = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends
