"""Recent popularity: the items with the most interactions in the last days of the log, the same for everybody."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch, pack
from seqrec.data.fields import Length, Options, Range
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models.popularity import check_counts
from seqrec.models.sparse import SparseModel

_SECONDS_PER_DAY = 86_400
_HISTORIES_AT_ONCE = 65_536


@dataclass(frozen=True)
class RecentPopularityConfig(Options):
    """Which interactions count as recent.

    Args:
        days: Number of days, up to the last interaction in training, whose interactions count.
        max_length: Number of most recent items of a history that the model is given; it uses none of them.
    """

    days: Annotated[float, Range(above=0, most=float("inf"))] = 7.0
    max_length: Length = 1


class RecentPopularity(SparseModel):
    """Scores an item by its interactions in the last days of the training log, and breaks ties by all interactions.

    The score is the recent count plus a fraction below 1 that grows with the total count. Among items without recent
    interactions, those that were popular before come first.
    """

    Config = RecentPopularityConfig
    config: RecentPopularityConfig
    recent: Tensor
    counts: Tensor

    def __init__(self, config: RecentPopularityConfig, num_items: int, num_users: int = 0) -> None:
        del num_users
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.register_buffer("recent", torch.zeros(num_items + 1, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(num_items + 1, dtype=torch.int64))

    def count(self, histories: Histories) -> None:
        """Learn from the training histories.

        Raises:
            InputError: the log has no timestamps.
        """
        dataset = histories.dataset
        if not dataset.has_timestamps:
            raise InputError("recent-popularity needs timestamps, which the log does not have; use popularity")
        recent = recent_counts(histories, self.config.days)
        self.recent.copy_(torch.from_numpy(recent))
        self.counts.copy_(torch.from_numpy(histories.item_counts()))

    def check_weights(self) -> None:
        """Raise a ValueError if the counts are impossible."""
        check_counts(self.counts, "counts")
        check_counts(self.recent, "recent counts")
        if not self.counts.any() or (self.recent > self.counts).any():
            raise ValueError("recent counts are higher than total counts, or all counts are zero")

    def encode(self, batch: Batch) -> Tensor:
        """Ones, ``[T, 1]``, since scores do not depend on the history."""
        return torch.ones(len(batch.items), 1, device=batch.items.device)

    def prior(self) -> Tensor:
        """The recent count plus the fraction, ``float32[I + 1]``."""
        # The fraction comes from the rank of the count among the distinct counts, not from the count itself. There are
        # few distinct counts, so float32 can represent the sum while the recent count times their number is below 2^24.
        different, place = torch.unique(self.counts, return_inverse=True)
        return self.recent.float() + place.float() / len(different)


def recent_counts(histories: Histories, days: float) -> np.ndarray:
    """Interactions of each item in the last days up to the last interaction of the histories, ``int64[I + 1]``."""
    dataset = histories.dataset
    histories = histories.take(histories.lengths > 0)
    recent = np.zeros(dataset.num_items + 1, dtype=np.int64)
    if len(histories) == 0:
        return recent
    from_time = int(dataset.timestamps[histories.ends - 1].max()) - days * _SECONDS_PER_DAY
    longest = int(histories.lengths.max())
    for start in range(0, len(histories), _HISTORIES_AT_ONCE):
        batch = pack(histories.take(slice(start, start + _HISTORIES_AT_ONCE)), longest)
        late = batch.timestamps.numpy() >= from_time
        recent += np.bincount(batch.items.numpy()[late], minlength=dataset.num_items + 1)
    return recent
