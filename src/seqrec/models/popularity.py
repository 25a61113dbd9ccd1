"""Popularity: the same items for everybody, those with the most interactions first."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.data.fields import Length, Options
from seqrec.data.split import Histories
from seqrec.models.base import Model


@dataclass(frozen=True)
class PopularityConfig(Options):
    """Nothing to set.

    Args:
        max_length: Number of most recent items of a history that the model is given; it uses none of them.
    """

    max_length: Length = 1


class Popularity(Model):
    """Scores an item by its number of interactions in training (exact up to 2^24)."""

    Config = PopularityConfig
    # A dot product would be rounded on hardware that multiplies in less than float32.
    FACTORED = False
    COUNTED = True
    config: PopularityConfig
    counts: Tensor

    def __init__(self, config: PopularityConfig, num_items: int, num_users: int = 0) -> None:
        del num_users
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.register_buffer("counts", torch.zeros(num_items + 1, dtype=torch.int64))

    def count(self, histories: Histories) -> None:
        """Learn from the training histories."""
        self.counts.copy_(torch.from_numpy(histories.item_counts()))

    def check_weights(self) -> None:
        """Refuse counts that can't be."""
        check_counts(self.counts, "counts")
        if not self.counts.any():
            raise ValueError("counts are all zero")

    def encode(self, batch: Batch) -> Tensor:
        """Ones, ``[T, 1]``: nothing of the history matters."""
        return torch.ones(len(batch.items), 1, device=batch.items.device)

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Counts as float32, in the shapes of the contract."""
        return same_for_all(self.counts.float(), hidden, items)


def same_for_all(values: Tensor, hidden: Tensor, items: Tensor | None) -> Tensor:
    """Scores by ``values[I + 1]`` alone, whatever the hidden states ``[R, D]``."""
    if items is None:
        return values.expand(len(hidden), -1)
    if items.dim() == 1:
        return values[items].expand(len(hidden), -1)
    return values[items]


def check_counts(counts: Tensor, name: str) -> None:
    """Refuse ``int64`` counts below 0, or so many that their sum may overflow."""
    if len(counts) and (int(counts.min()) < 0 or int(counts.max()) > 2**62 // len(counts)):
        raise ValueError(f"{name} are out of range")
