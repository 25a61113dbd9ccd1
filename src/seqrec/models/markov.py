"""Markov: the items that most often came right after the last one, smoothed by popularity."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch, pack, trainable
from seqrec.data.fields import Length, Options, Range
from seqrec.data.split import Histories
from seqrec.models.counting import Rows, sums_at
from seqrec.models.popularity import check_counts
from seqrec.models.sparse import SparseModel, SparseScores

_HISTORIES_AT_ONCE = 65_536


@dataclass(frozen=True)
class MarkovConfig(Options):
    """How much popularity counts.

    Args:
        alpha: Weight of popularity, as a number of transitions.
        max_length: Number of most recent items of a history that the model sees; it uses the last one.
    """

    alpha: Annotated[float, Range(above=0, most=float("inf"))] = 1.0
    max_length: Length = 1


class Markov(SparseModel):
    """First-order Markov chain over items, smoothed by popularity (a Dirichlet prior).

    ``P(j | i) = (c_ij + alpha p_j) / (c_i + alpha)``, where c_ij counts how often j came right after i in
    training, c_i sums that over j, and ``p_j = (count_j + 1) / (N + I)`` is popularity with one interaction
    added to every item. The score is log P.

    The E different transitions in the log are two buffers: ``keys int64[E]``, the sorted values of ``i * (I + 1) + j``,
    and ``times int64[E]``, their counts. Loading a state resizes the buffers.
    """

    Config = MarkovConfig
    LENGTHS_OF_THE_LOG = frozenset({"keys", "times"})
    config: MarkovConfig
    counts: Tensor
    keys: Tensor
    times: Tensor
    starts: Tensor
    outgoing: Tensor

    def __init__(self, config: MarkovConfig, num_items: int, num_users: int = 0) -> None:
        del num_users
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.register_buffer("counts", torch.zeros(num_items + 1, dtype=torch.int64))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("times", torch.zeros(0, dtype=torch.int64))
        # keys[starts[i]:starts[i + 1]] are the transitions from item i; outgoing[i] is c_i.
        self.register_buffer("starts", torch.zeros(num_items + 2, dtype=torch.int64))
        self.register_buffer("outgoing", torch.zeros(num_items + 1, dtype=torch.int64))
        self._kept: tuple[Tensor, Rows] | None = None

    def count(self, histories: Histories) -> None:
        """Learn from the training histories."""
        width = self.num_items + 1
        usable = trainable(histories)
        pairs = [np.empty(0, dtype=np.int64)]
        for start in range(0, len(usable), _HISTORIES_AT_ONCE):
            part = usable.take(slice(start, start + _HISTORIES_AT_ONCE))
            batch = pack(part, int(part.lengths.max()), with_targets=True)
            pairs.append(batch.items.numpy() * width + batch.targets.numpy())
        keys, times = np.unique(np.concatenate(pairs), return_counts=True)
        starts = np.searchsorted(keys, np.arange(width + 1) * width)
        total = np.concatenate([[0], np.cumsum(times)])
        device = self.counts.device
        self.counts.copy_(torch.from_numpy(histories.item_counts()))
        self.keys = torch.from_numpy(keys).to(device)
        self.times = torch.from_numpy(times.astype(np.int64)).to(device)
        self.starts.copy_(torch.from_numpy(starts))
        self.outgoing.copy_(torch.from_numpy(total[starts[1:]] - total[starts[:-1]]))

    def check_weights(self) -> None:
        """Check that the transitions are possible, since ``score`` takes its indices from them.

        Raises:
            ValueError: they are not.
        """
        check_counts(self.counts, "counts")
        check_counts(self.times, "times")
        if not self.counts.any():
            raise ValueError("counts are all zero")
        width, keys = self.num_items + 1, self.keys
        if len(keys) != len(self.times):
            raise ValueError(f"there are {len(keys)} keys but {len(self.times)} times")
        if len(keys) and (
            int(keys[0]) < width or int(keys[-1]) >= width * width or (keys[1:] <= keys[:-1]).any()
            or (keys % width == 0).any() or int(self.times.min()) < 1
        ):  # fmt: skip
            raise ValueError("keys or times are out of range")
        starts = torch.searchsorted(keys, torch.arange(width + 1) * width)
        total = torch.cat([self.times.new_zeros(1), self.times.cumsum(0)])
        outgoing = total[starts[1:]] - total[starts[:-1]]
        if not torch.equal(starts, self.starts) or not torch.equal(outgoing, self.outgoing):
            raise ValueError("starts or outgoing do not follow from keys and times")

    def encode(self, batch: Batch) -> Tensor:
        """The items themselves, ``int64[T, 1]``."""
        return batch.items[:, None]

    def prior(self) -> Tensor:
        """``log(alpha p_j)``, ``float32[I + 1]``; -inf for the padding."""
        return torch.log(self.pseudo_counts())

    def sparse_scores(self, hidden: Tensor) -> SparseScores:
        """``log(c_ij + alpha p_j) - log(c_i + alpha)`` for the items j that ever followed the last one, i.

        Those of an item are listed once, however many states it is the last item of.
        """
        last, which = torch.unique(hidden[:, 0], return_inverse=True)
        low = self.starts[last]
        lengths = self.starts[last + 1] - low
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        owners = torch.repeat_interleave(torch.arange(len(last), device=last.device), lengths)
        entries = torch.arange(len(owners), device=last.device) + (low - offsets[:-1])[owners]
        followers = self.keys[entries] % (self.num_items + 1)
        norms = self._norms(last)
        values = torch.log(self.times[entries] + self.pseudo_counts(followers)) - norms[owners]
        parts = (part.cpu().numpy() for part in (which, norms, offsets, followers, values))
        return SparseScores(next(parts), next(parts), Rows(*parts))

    def score_candidates(self, hidden: Tensor, items: Tensor) -> Tensor:
        """As for :class:`SparseModel`, without listing all that followed the last items."""
        last = hidden[:, 0]
        one_each = np.arange(len(last) + 1), last.cpu().numpy().astype(np.int32), np.ones(len(last), np.float32)
        times = sums_at(self._followers(), *one_each, items)
        return torch.log(times + self.pseudo_counts(items)) - self._norms(last)[:, None]

    def _norms(self, last: Tensor) -> Tensor:
        """``log(c_i + alpha)`` for items ``int64[R]``: ``float32[R]``."""
        return torch.log(self.outgoing[last].float() + self.config.alpha)

    def _followers(self) -> Rows:
        """Row i has the items that came right after item i, and how often; made once for the same ``keys``."""
        if self._kept is None or self._kept[0] is not self.keys:
            columns = (self.keys % (self.num_items + 1)).int()
            parts = (part.cpu().numpy() for part in (self.starts, columns, self.times.float()))
            self._kept = self.keys, Rows(*parts)
        return self._kept[1]

    def pseudo_counts(self, items: Tensor | None = None) -> Tensor:
        """``alpha p_j`` of all items, ``float32[I + 1]``, or of some, in the shape of ``items``; 0 for the padding."""
        counts = self.counts if items is None else self.counts[items]
        found = self.config.alpha * (counts + 1.0) / (self.counts.sum() + self.num_items)
        if items is None:
            found[0] = 0.0
        return found if items is None else torch.where(items > 0, found, 0.0)
