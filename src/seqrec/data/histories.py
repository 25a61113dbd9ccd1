"""Histories and targets: ranges over one :class:`Dataset`, without copies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from seqrec.data.dataset import Dataset
from seqrec.data.statistics import counts_of

MOST_SAMPLED = 10_000  # targets that are enough to estimate a share


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of M users: ``dataset.items[starts[m]:ends[m]]`` is the history of ``users[m]``.

    ``users int64[M]`` are user indices of the dataset; -1 is a user who is not in it.
    """

    dataset: Dataset
    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """Items in each history, ``int64[M]``."""
        return self.ends - self.starts

    def take(self, rows: np.ndarray | slice) -> "Histories":
        """The histories at these rows."""
        return Histories(self.dataset, self.users[rows], self.starts[rows], self.ends[rows])

    def newest(self, length: int | None) -> "Histories":
        """The last ``length`` items of each history; None for all."""
        if length is None:
            return self
        return Histories(self.dataset, self.users, np.maximum(self.starts, self.ends - length), self.ends)

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and item of each interaction, history by history: two ``int64[sum of lengths]``."""
        lengths = self.lengths
        rows = np.repeat(np.arange(len(self)), lengths)
        first = np.cumsum(lengths) - lengths
        source = np.arange(len(rows)) + (self.starts - first)[rows]
        return rows, self.dataset.items[source].astype(np.int64)

    def item_counts(self) -> np.ndarray:
        """Number of times each item occurs in the histories, ``int64[I + 1]``."""
        return counts_of(self.dataset.items[self.mask()], self.dataset.num_items + 1)

    def mask(self) -> np.ndarray:
        """Mask of the dataset's interactions that belong to a history, ``bool[N]``."""
        change = np.zeros(self.dataset.num_interactions + 1, dtype=np.int32)
        np.add.at(change, self.starts, 1)
        np.add.at(change, self.ends, -1)
        return np.cumsum(change[:-1], out=change[:-1]) > 0


@dataclass(frozen=True, eq=False)
class Targets:
    """Items to predict: ``items int32[M]``, each the next item after the history in the same row.

    ``held_out`` says in a few words what they are, for the titles of tables.
    """

    histories: Histories
    items: np.ndarray
    held_out: str = "one item of each user"

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray | slice) -> "Targets":
        """The targets at these rows."""
        return replace(self, histories=self.histories.take(rows), items=self.items[rows])

    def sampled(self, most: int, seed: Sequence[int]) -> "Targets":
        """At most ``most`` targets, in their order; of more, a random sample that depends only on the seed."""
        if len(self) <= most:
            return self
        chosen = np.random.default_rng(seed).choice(len(self), most, replace=False)
        return self.take(np.sort(chosen))

    def repeated(self) -> float:
        """Share of targets whose item is already in the history, estimated from at most 10,000; 0 without targets."""
        if len(self) == 0:
            return 0.0
        sample = self.take(np.linspace(0, len(self) - 1, min(len(self), MOST_SAMPLED)).astype(np.int64))
        rows, items = sample.histories.flat()
        return len(np.unique(rows[items == sample.items[rows]])) / len(sample)
