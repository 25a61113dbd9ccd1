"""Ranking by the sparse scores of a model that counts, without a score for each item and state."""

from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from seqrec import kernels
from seqrec.models.counting import Rows
from seqrec.models.sparse import SparseModel, SparseScores
from seqrec.ranking.dense import require
from seqrec.ranking.prior import SortedPrior
from seqrec.ranking.scoring import Catalogue, Pairs, Ranking, of_rows

ROWS = 2048  # states whose scores are held at once; each may have some thousand


def rank_sparse(
    catalogue: Catalogue,
    states: Tensor,
    k: int,
    *,
    left_out: Pairs | None = None,
    denied: np.ndarray | None = None,
    targets: np.ndarray | None = None,
) -> Ranking:
    """As :func:`rank`, for a :class:`SparseModel`, with the same result.

    What has its own score or is ignored is counted one by one, and everything else by a binary search in the prior,
    which is sorted only once for a catalogue.

    Raises:
        InputError: a score is not a number.
    """
    ranking = Ranking.empty(len(states), k, targets is not None)
    if len(states) == 0 or catalogue.columns == 0:
        return ranking
    model = catalogue.model
    assert isinstance(model, SparseModel)
    prior = catalogue.prior.without(denied)
    for start in range(0, len(states), ROWS):
        part = slice(start, start + ROWS)
        own = slice(0) if left_out is None else of_rows(left_out[0], start, ROWS)
        ignored = (np.empty(0, np.int64),) * 2 if left_out is None else (left_out[0][own] - start, left_out[1][own])
        scores = _on_columns(catalogue, model.sparse_scores(states[part]))
        wanted = None if targets is None else targets[part]
        into = Ranking(*(None if found is None else found[part] for found in ranking))  # type: ignore[arg-type]
        if kernels.usable():
            _rank_compiled(prior, scores, ignored, wanted, into)
        else:
            _rank_in_turn(prior, scores, ignored, wanted, into)
    return ranking


def _on_columns(catalogue: Catalogue, scores: SparseScores) -> SparseScores:
    """The scores with columns of the catalogue instead of items; items without one are left out."""
    if catalogue.items is None:
        return scores
    count = len(scores.norms)
    owners, columns, values = catalogue.added_columns((scores.rows.owners, scores.rows.columns, scores.rows.values))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]).astype(np.int64)
    return scores._replace(rows=Rows(offsets, columns, values))


def _rank_compiled(
    prior: SortedPrior, scores: SparseScores, left_out: Pairs, targets: np.ndarray | None, into: Ranking
) -> None:
    rows = kernels.Rows(*map(torch.from_numpy, scores.rows))
    by_column, order, descending = map(torch.from_numpy, (prior.by_column, prior.order, prior.descending))
    which, norms = torch.from_numpy(scores.which), torch.from_numpy(scores.norms)
    pairs = torch.from_numpy(left_out[0]), torch.from_numpy(left_out[1])
    wanted = None if targets is None else torch.from_numpy(targets)
    k = into.columns.shape[1]
    found = kernels.rank_sparse((by_column, order, descending), which, norms, rows, scores.added, k, pairs, wanted)
    require(found.numbers)
    into.columns[:], into.scores[:] = found.columns.numpy(), found.scores.numpy()
    if found.greater is not None and found.ties is not None and into.greater is not None and into.ties is not None:
        into.greater[:], into.ties[:] = found.greater.numpy(), found.ties.numpy() - 1


def _rank_in_turn(
    prior: SortedPrior, scores: SparseScores, left_out: Pairs, targets: np.ndarray | None, into: Ranking
) -> None:
    """The same as the compiled loop, with numpy, one state at a time."""
    which, norms, rows, added = scores
    limits = np.searchsorted(left_out[0], np.arange(len(which) + 1))
    for row, own in enumerate(which.tolist()):
        entries = slice(rows.offsets[own], rows.offsets[own + 1])
        columns, values = rows.columns[entries], rows.values[entries]
        with np.errstate(invalid="ignore"):
            state = _State(prior, norms[own], columns, values, added, left_out[1][limits[row] : limits[row + 1]])
        require(state.numbers)
        best, found = state.best(into.columns.shape[1])
        into.columns[row, : len(best)], into.scores[row, : len(best)] = best, found
        if targets is not None and into.greater is not None and into.ties is not None:
            into.greater[row], into.ties[row] = state.rank(int(targets[row]))


class _State:
    """The scores of one state: ``values`` of ``columns``, except those to ignore, and the prior of all others."""

    def __init__(
        self, prior: SortedPrior, norm: np.float32, columns: np.ndarray, values: np.ndarray, added: bool,
        left_out: np.ndarray,
    ) -> None:  # fmt: skip
        self.prior, self.norm = prior, norm
        ends = prior.descending[[0, -1]] if len(prior.descending) else prior.descending
        self.special = np.union1d(columns, left_out)
        self.base = prior.by_column[self.special] - norm  # NaN if it is never ranked
        values = prior.by_column[columns] - norm + values if added else values
        self.all = columns, values
        ranked = ~np.isnan(prior.by_column[columns]) & ~np.isin(columns, left_out)
        self.columns, self.values = columns[ranked], values[ranked]
        self.numbers = not (np.isnan(self.values).any() or np.isnan(ends - norm).any())

    def above(self, limit: np.float32, or_equal: bool = False) -> int:
        """Number of columns whose prior scores above a limit, or at least that."""
        numbers, norm = self.prior.descending, self.norm

        def is_below(place: int) -> bool:
            score = numbers[place] - norm
            return not (score > limit or (or_equal and score == limit))

        return bisect_left(range(len(numbers)), True, key=is_below)

    def rank(self, target: int) -> tuple[int, int]:
        """The number of columns that score above a column, and of others that score the same."""
        columns, values = self.all
        own = values[columns == target]
        limit = own[0] if len(own) else self.prior.by_column[target] - self.norm
        if limit == -np.inf:  # never recommended
            return -1, 0
        first, last = self.above(limit), self.above(limit, or_equal=True)
        greater = first - np.count_nonzero(self.base > limit) + np.count_nonzero(self.values > limit)
        ties = last - first - np.count_nonzero(self.base == limit) + np.count_nonzero(self.values == limit)
        return int(greater), int(ties) - 1

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k columns and their scores, or fewer, if fewer are above -inf."""
        prior, norm = self.prior, self.norm
        last = min(k + len(self.special), len(prior.order))
        if 0 < last < len(prior.order):
            # The norm may make different scores of the prior equal, which are then not sorted by column.
            least = prior.descending[last - 1] - norm
            first, end = self.above(least), self.above(least, or_equal=True)
            last = last if prior.descending[first] == prior.descending[end - 1] else end
        head = prior.order[:last][~np.isin(prior.order[:last], self.special)]
        columns = np.concatenate([head, self.columns])
        scores = np.concatenate([prior.by_column[head] - norm, self.values])
        order = np.lexsort([columns, -scores])[:k]
        order = order[scores[order] > -np.inf]
        return columns[order], scores[order]
