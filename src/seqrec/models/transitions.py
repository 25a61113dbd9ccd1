"""Transitions: which items came after which in the histories, and which occur together, counted and not trained."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Options, Range
from seqrec.data.split import Histories
from seqrec.models.counting import Rows, sum_rows, sums_at, weigh_pairs
from seqrec.models.popularity import check_counts
from seqrec.models.recent_popularity import recent_counts
from seqrec.models.sparse import SparseModel, SparseScores

#: Number of items j that are kept for each item i by default, and in all.
SUCCESSORS, ENTRIES = 400, 10**8
SHRINKAGE = 5.0  # interactions added to those of each item, so that chance meetings of rare items count less
LEAST_WEIGHT = 1e-3  # items of a history that weigh less than this, relative to the last one, are left out
LARGEST = 1e12  # of the weights W; those that the ranges of the constants allow are below
PRIOR = 1e-3  # score of the most popular item if it follows none of the history: popularity settles ties


@dataclass(frozen=True)
class TransitionsConfig(Options):
    """What is counted, and how counts become scores. The constants that are not given are chosen on validation items.

    Args:
        distance: Largest number of steps between two items of a history that count as a pair. A pair counts 1/d.
        scale: Factor of the counts inside the logarithm: the larger, the less the number of times matters.
        damping: Power of an item's popularity that divides the counts of transitions to it. 0 favours popular items.
        neighbours: Weight of the cosine of two items over the histories that hold both, in either order.
        decay: Weight of an item of the history, relative to the item after it.
        recency: Weight of the logarithm of an item's interactions in the last days of the log; 0 without times.
        days: Number of these days, up to the last interaction in training.
        successors: Maximum number of items to keep per item: those of highest weight. By default 400, or fewer in a
            catalogue of more than 250,000 items, so that they are 10^8 together.
        max_length: Number of most recent items of a history that the model sees.
    """

    distance: Annotated[int, Range(1, 10**4)] | None = None
    scale: Annotated[float, Range(above=0, most=10**6)] | None = None
    damping: Annotated[float, Range(0, 1)] | None = None
    neighbours: Annotated[float, Range(0, 10**6)] | None = None
    decay: Annotated[float, Range(above=0, most=1)] | None = None
    recency: Annotated[float, Range(0, 10**6)] | None = None
    days: Annotated[float, Range(above=0, most=10**6)] | None = None
    successors: Count | None = None
    max_length: Annotated[int, Range(1, 4096)] = 50

    def resolved(self) -> "TransitionsConfig":
        """The config with a default for each constant that is neither given nor chosen."""
        return replace(
            self,
            distance=20 if self.distance is None else self.distance,
            scale=5.0 if self.scale is None else self.scale,
            damping=0.0 if self.damping is None else self.damping,
            neighbours=3.0 if self.neighbours is None else self.neighbours,
            decay=0.7 if self.decay is None else self.decay,
            recency=0.0 if self.recency is None else self.recency,
            days=7.0 if self.days is None else self.days,
        )


class Transitions(SparseModel):
    """Weighted counts of the items that came after each item, and of those that occur beside it.

    After Petrov et al., "Do Sequential Recommendation Benchmarks Really Require Higher-Order Sequence Modelling?"
    (RecSys 2026), and item-based neighbours (Sarwar et al. 2001). With n_j interactions of item j, and n the mean:

        A_ij = sum of 1/d over the times that j came d steps after i in a history, up to ``distance`` steps
        S_ij = number of times that i and j were at most ``distance`` steps apart, in either order
        W_ij = log(1 + scale * A_ij * ((n + 5) / (n_j + 5))^damping) + neighbours * S_ij / sqrt((n_i + 5) (n_j + 5))

    The score of j is the mean of W_ij over the items i of the history, weighted by ``decay`` to the power of their age,
    0 for the last item; plus ``recency * log(1 + r_j)`` for r_j interactions in the last ``days``. Popularity settles
    ties.

    The ``successors`` highest W_ij of each item i are kept, in three buffers: those of item i are
    ``columns[offsets[i]:offsets[i + 1]]``, ascending, and ``values`` there. Loading a state resizes the buffers.
    """

    Config = TransitionsConfig
    LENGTHS_OF_THE_LOG = frozenset({"columns", "values"})
    config: TransitionsConfig
    counts: Tensor
    recent: Tensor
    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, config: TransitionsConfig, num_items: int, num_users: int = 0) -> None:
        del num_users
        super().__init__()
        self.config = config.resolved()
        self.num_items = num_items
        self.register_buffer("counts", torch.zeros(num_items + 1, dtype=torch.int64))
        self.register_buffer("recent", torch.zeros(num_items + 1, dtype=torch.int64))
        self.register_buffer("offsets", torch.zeros(num_items + 2, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0, dtype=torch.float32))

    def count(self, histories: Histories, wanted: np.ndarray | None = None) -> None:
        """Learn from the training histories.

        Args:
            histories: training histories.
            wanted: items to keep successors of, ``bool[I + 1]``; for a model that only ranks after these.
        """
        config, counts = self.config, histories.item_counts()
        assert config.distance is not None
        assert config.scale is not None
        assert config.neighbours is not None
        assert config.damping is not None
        popularity = (counts + SHRINKAGE) / (counts[1:].mean() + SHRINKAGE)
        steps = np.arange(1, config.distance + 1, dtype=np.float32)
        table = weigh_pairs(
            histories.dataset.items, histories.starts, histories.ends,
            after=1 / steps,
            beside=np.ones_like(steps) if config.neighbours else np.empty(0, dtype=np.float32),
            gains=(config.scale * popularity**-config.damping).astype(np.float32),
            factors=np.sqrt(config.neighbours / (counts + SHRINKAGE)).astype(np.float32),
            most=min(config.successors or max(1, min(SUCCESSORS, ENTRIES // max(self.num_items, 1))), len(counts)),
            wanted=wanted,
        )  # fmt: skip
        device = self.counts.device
        self.counts.copy_(torch.from_numpy(counts))
        if config.recency and histories.dataset.has_timestamps:
            assert config.days is not None
            self.recent.copy_(torch.from_numpy(recent_counts(histories, config.days)))
        self.offsets.copy_(torch.from_numpy(table.offsets))
        self.columns, self.values = (torch.from_numpy(part).to(device) for part in (table.columns, table.values))

    def take(self, other: "Transitions") -> "Transitions":
        """Use the counts of another model, which must not differ in what it counts. Returns this model."""
        for name in ("counts", "recent", "offsets", "columns", "values"):
            setattr(self, name, getattr(other, name))
        return self

    def check_weights(self) -> None:
        """Check that the table is possible.

        Raises:
            ValueError: it is not.
        """
        check_counts(self.counts, "counts")
        check_counts(self.recent, "recent counts")
        if not self.counts.any():
            raise ValueError("counts are all zero")
        if len(self.columns) != len(self.values):
            raise ValueError(f"there are {len(self.columns)} columns but {len(self.values)} values")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.columns) or (self.offsets.diff() < 0).any():
            raise ValueError("offsets are out of range")
        if len(self.columns) and (int(self.columns.min()) < 1 or int(self.columns.max()) > self.num_items):
            raise ValueError("columns are out of range")
        if len(self.values) and not (float(self.values.min()) >= 0 and float(self.values.max()) <= LARGEST):
            raise ValueError("values are out of range")

    def newest(self, histories: Histories) -> Tensor:
        """The hidden states of the last tokens of M histories, as from :meth:`encode_last`: ``int64[M, reach]``."""
        places = histories.ends[:, None] - 1 - np.arange(self.reach)
        inside = places >= histories.starts[:, None]
        items = histories.dataset.items
        found = np.where(inside, items[np.where(inside, places, 0)], 0) if len(items) else np.zeros_like(places)
        return torch.from_numpy(found.astype(np.int64)).to(self.counts.device)

    @property
    def reach(self) -> int:
        """Number of most recent items of a history whose weight is at least ``LEAST_WEIGHT``, up to ``max_length``."""
        decay = self.config.decay
        assert decay is not None
        far = self.config.max_length if decay == 1 else int(np.log(LEAST_WEIGHT) / np.log(decay)) + 1
        return max(1, min(self.config.max_length, far))

    def encode(self, batch: Batch) -> Tensor:
        """The token's item and those before it, newest first, ``int64[T, reach]``; 0 before the history begins."""
        return batch.newest(torch.arange(len(batch.items), device=batch.items.device), self.reach)

    def encode_last(self, batch: Batch) -> Tensor:
        """As :meth:`encode`, for the users' last tokens: ``int64[B, reach]``."""
        return batch.newest(batch.last, self.reach)

    def rows(self, hidden: Tensor) -> Rows:
        """The scores above 0 of each hidden state ``int64[R, reach]``: rows of items and scores, without popularity."""
        return sum_rows(*self._to_sum(hidden))

    def looked_up(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Scores of each row's own candidates ``int64[R, C]``, without popularity: ``float32[R, C]``."""
        return sums_at(*self._to_sum(hidden), items)

    def score_candidates(self, hidden: Tensor, items: Tensor) -> Tensor:
        """As for :class:`SparseModel`, without listing the other items."""
        return self.prior()[items] + self.looked_up(hidden, items)

    def _to_sum(self, hidden: Tensor) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray]:
        """The table, and the offsets, rows and coefficients of what is summed for each hidden state."""
        newest = hidden.cpu().numpy()
        there = newest > 0
        decay = self.config.decay
        assert decay is not None
        weights = there * decay ** np.arange(newest.shape[1])
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
        offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int64)
        table = Rows(*(part.cpu().numpy() for part in (self.offsets, self.columns, self.values)))
        return table, offsets, newest[there].astype(np.int32), weights[there].astype(np.float32)

    def recent_scores(self) -> Tensor | None:
        """The part of the score that follows from recent interactions, ``float32[I + 1]``; None if there is none."""
        return self.config.recency * torch.log1p(self.recent.float()) if self.config.recency else None

    def prior(self) -> Tensor:
        """The score of each item without a history, ``float32[I + 1]``: of recent interactions, and at most ``PRIOR``
        by popularity; 0 for the padding.
        """
        logs = torch.log1p(self.counts.float())
        logs[0] = 0
        recent, popular = self.recent_scores(), PRIOR * logs / logs.max().clamp(min=1)
        return popular if recent is None else popular + recent

    def sparse_scores(self, hidden: Tensor) -> SparseScores:
        """The scores of :meth:`rows`, to add to the prior."""
        return SparseScores(np.arange(len(hidden)), np.zeros(len(hidden), np.float32), self.rows(hidden), added=True)


@dataclass(frozen=True, eq=False)
class Addition:
    """Transition counts to add to the scores of a model when items are ranked: ``logits + weight * counts``.

    Args:
        transitions: the counts, in evaluation mode.
        weight: factor of the counts.
    """

    transitions: Transitions
    weight: float
