"""Metrics for groups of users, by the length of the history and by the popularity of the target."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from seqrec.ranking import statistics

#: Lower ends of the groups: items in the history, and interactions of the target in training (0: it is cold).
ENDS = {"history": (0, 1, 5, 10, 20, 50, 100), "popularity": (0, 1, 5, 20, 100, 500)}


@dataclass(frozen=True)
class Group:
    """Metrics of the users whose size, such as the length of the history, is from ``least`` to ``most``.

    Args:
        least: lowest size.
        most: highest size; None if there is no limit.
        users: number of users.
        metrics: means of the main metrics, such as ``ndcg@10``.
        intervals: their 95 % confidence intervals.
    """

    least: int
    most: int | None
    users: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @property
    def name(self) -> str:
        """The range of sizes as text: ``5-9``, ``100+``, or ``0``."""
        if self.most is None:
            return f"{self.least}+"
        return str(self.least) if self.most == self.least else f"{self.least}-{self.most}"


def grouped(by: str, sizes: np.ndarray, values: Mapping[str, np.ndarray]) -> list[Group]:
    """Means of metrics for each group of users; groups without users are left out.

    Args:
        by: name of the size, a key of :data:`ENDS`.
        sizes: size of each user, ``int64[M]``.
        values: gains of each user by the name of the metric: ``float64[M]``, or ``float64[N, M]`` from N trainings
            with different seeds. Their mean is then taken, and intervals include the variation between trainings.
    """
    found = []
    for least, above in pairwise((*ENDS[by], None)):
        assert least is not None
        chosen = (sizes >= least) & (True if above is None else sizes < above)
        if chosen.any():
            trainings = np.stack([np.atleast_2d(column)[:, chosen] for column in values.values()], axis=-1)
            table, spread = trainings.mean(axis=0), statistics.Spread.of(trainings.mean(axis=1))
            means, ends = statistics.mean(table).tolist(), statistics.gain_intervals(table, spread=spread).tolist()
            found.append(
                Group(
                    least,
                    None if above is None else above - 1,
                    len(table),
                    dict(zip(values, means, strict=True)),
                    {name: (low, high) for name, (low, high) in zip(values, ends, strict=True)},
                )
            )
    return found
