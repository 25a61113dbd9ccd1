"""Ranking by scores that are a prior, except for few items of each state; see ``sparse.cpp``."""

import torch
from torch import Tensor

from seqrec.kernels.arrays import Loop, integers
from seqrec.kernels.counts import Rows
from seqrec.kernels.scores import Ranked

_RANK_SPARSE = Loop(
    "rank_sparse", "prior: float32[C]", "order: int32[N] below C", "descending: float32[N]", "N",
    "which: int64[R] below Q", "norms: float32[Q]", "offsets: int64[Q + 1] rising to E", "columns: int64[E] below C",
    "values: float32[E]", "added: int32", "rows: int64[P] sorted, below R", "left_out: int64[P] below C", "P", "R", "K",
    "best: int64[R, K] made", "scores: float32[R, K] made", "targets: int64[R]? below C", "greater: int64[R]?",
    "ties: int64[R]?",
)  # fmt: skip


def rank_sparse(
    prior: tuple[Tensor, Tensor, Tensor],
    which: Tensor,
    norms: Tensor,
    rows: Rows,
    added: bool,
    k: int = 0,
    left_out: tuple[Tensor, Tensor] | None = None,
    targets: Tensor | None = None,
) -> Ranked:
    """Rank candidates of which most score the same for all states, up to a number.

    The time for a state grows with its entries, its pairs to ignore and k, but only with the logarithm of the number of
    candidates.

    Args:
        prior: scores of the columns, ``float32[C]``, NaN for those to ignore in all rows; the other columns, highest
            score first and ties by column, ``int32[N]``; and their scores, ``float32[N]``.
        which: the row of ``rows`` for each state, ``int64[R]``.
        norms: number to subtract from the prior in each of these rows, ``float32[Q]``.
        rows: Q rows of columns and their own scores.
        added: whether these are to be added to the scores by the prior, which they replace otherwise.
        k: number of best candidates to find.
        left_out: pairs (state, column) to ignore, two ``int64`` tensors, sorted by state.
        targets: column of each state's target, ``int64[R]``. None if its rank is not needed.
    """
    if k < 0:
        raise ValueError(f"k is {k}; give 0 or more")
    by_column, order, descending = (part.contiguous() for part in prior)
    nothing = torch.zeros(0, dtype=torch.int64)
    states, columns = map(integers, left_out or (nothing, nothing))
    greater, ties = (None if targets is None else torch.empty(len(which), dtype=torch.int64) for _ in range(2))
    odd, best, scores = _RANK_SPARSE(
        prior=by_column, order=order, descending=descending, which=integers(which), norms=norms.contiguous(),
        offsets=rows.offsets, columns=integers(rows.columns), values=rows.values.contiguous(), added=int(added),
        rows=states, left_out=columns, K=k, targets=None if targets is None else integers(targets), greater=greater,
        ties=ties,
    )  # fmt: skip
    return Ranked(best, scores, greater, ties, odd == 0)
