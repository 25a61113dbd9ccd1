"""Evaluation on a Ray cluster: its processes rank blocks of targets, and the command computes the metrics of them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.cluster.blocks import answers
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import connected
from seqrec.cluster.runs import identity, open_run
from seqrec.cluster.storage import absolute
from seqrec.data.split import Histories, Targets
from seqrec.ranking.protocols import Evaluation
from seqrec.ranking.ranker import Ranker, Ranks, number_of_blocks, rows_of_block
from seqrec.recommender import Recommender


def evaluate_on_cluster(
    run: str | Path, config: ClusterConfig, protocol: Any = "full", split: str = "test", **more: Any
) -> tuple[Evaluation, str]:
    """The result of :meth:`Recommender.evaluate`, with ranks that are computed on a Ray cluster.

    It equals the local result, if the processes have as many threads.

    Args:
        run: run folder that all machines of the cluster share, or its URL.
        config: connection, number of processes and their threads.
        protocol: as for :meth:`Recommender.evaluate`.
        split: as for :meth:`Recommender.evaluate`.
        more: other keywords of :meth:`Recommender.evaluate`.

    Returns:
        The evaluation, and the model's name in tables.
    """
    opened = open_run(run)
    recommender = Recommender.load(opened.folder)
    blocks = OnCluster(absolute(run), identity(opened), config)
    return recommender.evaluate(protocol, split, blocks=blocks, **more), recommender.label


@dataclass(frozen=True)
class OnCluster:
    """Ranks blocks on a cluster, as :data:`seqrec.ranking.ranker.Blocks`.

    Args:
        run: run folder or URL.
        identity: identity of the run.
        config: connection, number of processes and their threads.
    """

    run: str
    identity: str
    config: ClusterConfig

    def __call__(self, ranker: Ranker, targets: Targets) -> Iterator[tuple[np.ndarray, list[Ranks]]]:
        """Yield the rows of each block and their ranks from each model."""
        people = targets.histories
        arrays = people.users, people.starts, people.ends, targets.items
        with connected(self.config) as ray:
            about = self.run, self.identity, ranker, *map(np.ascontiguousarray, arrays)
            for found in answers(ray, self.config, range(number_of_blocks(targets)), Ranking, *about):
                yield found["row"], [_of_model(found, number) for number in range(len(ranker.models))]


class Ranking:
    """Ranks blocks of targets, in one process of the cluster.

    Args:
        run: run folder or URL.
        identity: identity of the run.
        ranker: models, and how they rank.
        users: users of the targets, ``int64[M]``.
        starts: starts of their histories in the dataset, ``int64[M]``.
        ends: ends of their histories, ``int64[M]``.
        items: the targets, ``int32[M]``.
    """

    def __init__(
        self,
        run: str,
        identity: str,
        ranker: Ranker,
        users: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        items: np.ndarray,
    ) -> None:
        self.ranker = ranker
        self.targets = Targets(Histories(open_run(run, identity).dataset, users, starts, ends), items)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Rank the block with a number: arrays with one row per target and one column per model."""
        rows = rows_of_block(number)
        part = self.targets.take(rows)
        part.histories.dataset.check_users(part.histories.users)
        found = self.ranker.block(part, number)
        arrays = {field.name: np.stack([getattr(one, field.name) for one in found], axis=1) for field in fields(Ranks)}
        row = np.arange(rows.start, rows.start + len(part))
        return {"row": row} | {name: array for name, array in arrays.items() if array.size}


def _of_model(found: dict[str, np.ndarray], number: int) -> Ranks:
    """The ranks from one model. There are no lists if their length is 0."""
    none = np.zeros((len(found["row"]), number + 1, 0), np.int32)
    return Ranks(*(found.get(field.name, none)[:, number] for field in fields(Ranks)))
