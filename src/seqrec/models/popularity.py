"""Popularity: the items with the most interactions, the same for everybody."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.data.fields import Length, Options
from seqrec.data.split import Histories
from seqrec.models.sparse import SparseModel


@dataclass(frozen=True)
class PopularityConfig(Options):
    """Popularity has nothing to configure.

    Args:
        max_length: Number of most recent items of a history that the model is given; it uses none of them.
    """

    max_length: Length = 1


class Popularity(SparseModel):
    """Scores an item by its number of interactions in training, exactly up to 2^24."""

    Config = PopularityConfig
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
        """Raise a ValueError if the counts are impossible."""
        check_counts(self.counts, "counts")
        if not self.counts.any():
            raise ValueError("counts are all zero")

    def encode(self, batch: Batch) -> Tensor:
        """Ones, ``[T, 1]``, since scores do not depend on the history."""
        return torch.ones(len(batch.items), 1, device=batch.items.device)

    def prior(self) -> Tensor:
        """The counts, ``float32[I + 1]``."""
        return self.counts.float()


def check_counts(counts: Tensor, name: str) -> None:
    """Raise a ValueError if ``int64`` counts are negative, or so large that their sum could overflow."""
    if len(counts) and (int(counts.min()) < 0 or int(counts.max()) > 2**62 // len(counts)):
        raise ValueError(f"{name} are out of range")
