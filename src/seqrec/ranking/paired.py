"""How much better a model ranks than others for the same users, with a paired test."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqrec.ranking import statistics


@dataclass(frozen=True)
class Difference:
    """The mean over users of a metric of one model minus that of another.

    Args:
        mean: mean difference; above 0 if the first model is better.
        interval: its 95 % confidence interval.
        p: two-sided p-value of the paired t-test; not adjusted for the number of comparisons.
    """

    mean: float
    interval: tuple[float, float]
    p: float


def differences(values: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    """The difference of a model from each of the others, by name.

    Args:
        values: gains of the model, between 0 and 1: ``float64[M]``, one per user.
        others: gains of the other models for the same users.
    """
    found = {}
    for name, other in others.items():
        difference = (values - other)[:, None]
        ((low, high),) = statistics.difference_intervals(difference).tolist()
        p = float(statistics.paired_t_test(difference)[0])
        found[name] = Difference(float(difference.mean()), (low, high), p)
    return found
