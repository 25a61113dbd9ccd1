"""Models that score an item the same whatever the history, except for few items of each history."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.models.base import Model
from seqrec.models.counting import Rows, look_up


class SparseScores(NamedTuple):
    """The scores of R hidden states, given the prior of their model: few numbers for each.

    They are Q different rows, of which state r has row ``which[r]``. In row q, item j scores ``prior[j] - norms[q]``.
    Only the items of ``rows`` score otherwise: by their values, which replace that, or are added to it if ``added``.
    """

    which: np.ndarray  # int64[R], from 0 to Q - 1
    norms: np.ndarray  # float32[Q]
    rows: Rows  # Q rows; without the padding
    added: bool = False


class SparseModel(Model):
    """A model that counts, and whose scores are a prior, except for those of few items of each history.

    :func:`seqrec.ranking.sparse.rank_sparse` ranks items by these numbers, so a ranking takes no pass over the
    catalogue for each history.
    """

    FACTORED = False
    COUNTED = True

    def prior(self) -> Tensor:
        """The score of each item whatever the history, ``float32[I + 1]``; of any value for the padding."""
        raise NotImplementedError

    def sparse_scores(self, hidden: Tensor) -> SparseScores:
        """The scores of hidden states ``[R, D]`` besides the prior. By default there is nothing but the prior."""
        nothing = Rows(np.zeros(2, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        return SparseScores(np.zeros(len(hidden), np.int64), np.zeros(1, np.float32), nothing)

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Scores in the shapes of :meth:`Model.score`."""
        if items is not None and items.dim() == 2:
            return self.score_candidates(hidden, items)
        found, prior = self.sparse_scores(hidden), self.prior()
        parts = found.which, found.norms, found.rows.owners, found.rows.columns.astype(np.int64), found.rows.values
        which, norms, owners, columns, values = (torch.from_numpy(part).to(prior.device) for part in parts)
        again = None
        if items is not None:
            unique, again = torch.unique(items, return_inverse=True)
            place = unique.new_full((self.num_items + 1,), -1)
            place[unique] = torch.arange(len(unique), device=place.device)
            there = place[columns] >= 0
            owners, columns, values, prior = owners[there], place[columns[there]], values[there], prior[unique]
        scores = prior - norms[:, None]
        if found.added:
            scores[owners, columns] += values
        else:
            scores[owners, columns] = values
        scores = scores.expand(len(hidden), -1) if len(scores) == 1 else scores[which]
        return scores if again is None else scores[:, again]

    def score_candidates(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Scores of each state's own candidates ``int64[R, C]``: ``float32[R, C]``."""
        found = self.sparse_scores(hidden)
        scores = self.prior()[items] - torch.from_numpy(found.norms[found.which])[:, None].to(items.device)
        there, values = look_up(found.rows, found.which, items)
        return torch.where(there, scores + values if found.added else values, scores)
