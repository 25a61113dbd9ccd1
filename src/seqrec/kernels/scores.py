"""Scores of candidates, losses over them, and ranking; see ``scores.cpp`` and ``rank.cpp``."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.arrays import Loop, integers

_PRODUCT = Loop(
    "product", "a: float32[M, K] strided", "b: float32[K, N] strided", "M", "N", "K", "out: float32[M, N] made"
)  # fmt: skip
_OWN = "hidden: float32[R, D]", "vectors: float32[R, C, D]"
_BY_OWN = "by_hidden: float32[R, D] made", "by_vectors: float32[R, C, D] made"
_SCORE = Loop("score", *_OWN, "R", "C", "D", "out: float32[R, C] made")
_SCORE_ITEMS = Loop(
    "score_items", "hidden: float32[R, D]", "vectors: float32[I, D]", "items: int64[R, C] below I", "R", "C", "D",
    "out: float32[R, C] made",
)  # fmt: skip
_SCORE_BACKWARD = Loop("score_backward", *_OWN, "by_out: float32[R, C]", "R", "C", "D", *_BY_OWN)
_BINARY_LOSS = Loop("binary_loss", *_OWN, "R", "C", "D", "losses: float64[R] made", *_BY_OWN)
_SOFTMAX_LOSS = Loop(
    "softmax_loss", "hidden: float32[T, D]", "vectors: float32[N, D]", "targets: float32[T]?",
    "items: int64[T]? below N", "log_probability: float32[N]?", "tokens: int64[P] sorted, below T",
    "negatives: int64[P] below N", "P", "T", "N", "D", "losses: float64[T] made", "by_hidden: float32[T, D] made",
    "by_vectors: float32[N, D]", "by_targets: float32[T] made",
)  # fmt: skip
_RANK = Loop(
    "rank", "states: float32[R, D]", "vectors: float32[C, D]", "rows: int64[P] sorted, below R",
    "columns: int64[P] below C", "P", "added_rows: int64[Q] sorted, below R",
    "added_columns: int64[Q] below C, sorted within added_rows", "added_values: float32[Q]", "Q", "skipped: bool[C]?",
    "R", "C", "D", "K", "best: int64[R, K] made",
    "scores: float32[R, K] made", "targets: int64[R]? below C", "greater: int64[R]?", "ties: int64[R]?",
)  # fmt: skip


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of the matrices ``float32[M, K]`` and ``float32[K, N]``, which may have any strides."""
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"{tuple(a.shape)} and {tuple(b.shape)} are not matrices")
    out: Tensor
    _, out = _PRODUCT(a=a, b=b)
    return out


def score(hidden: Tensor, vectors: Tensor) -> Tensor:
    """Dot products ``[R, C]`` of each state ``float32[R, D]`` with its own candidates ``float32[R, C, D]``."""
    result: Tensor = _Score.apply(hidden, vectors)
    return result


def score_items(hidden: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
    """The same numbers as from :func:`score`, without gradients, given the candidates as rows of a table.

    Args:
        hidden: states, ``float32[R, D]``.
        vectors: vectors of all items, ``float32[I, D]``.
        items: candidates of each state, ``int64[R, C]``.

    Returns:
        Dot products, ``float32[R, C]``.
    """
    out: Tensor
    _, out = _SCORE_ITEMS(hidden=hidden.contiguous(), vectors=vectors.contiguous(), items=items.contiguous())
    return out


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor) -> Tensor:
        hidden, vectors = hidden.contiguous(), vectors.contiguous()
        out: Tensor
        _, out = _SCORE(hidden=hidden, vectors=vectors)
        ctx.save_for_backward(hidden, vectors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        hidden, vectors = ctx.saved_tensors
        by_out = gradients[0].contiguous()
        _, by_hidden, by_vectors = _SCORE_BACKWARD(hidden=hidden, vectors=vectors, by_out=by_out)
        return by_hidden, by_vectors


def binary_loss(hidden: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross-entropy of each row's target against its negatives, and the gradients of the mean over rows.

    Args:
        hidden: hidden states, ``float32[R, D]``.
        vectors: vectors of each row's target, then of its negatives, ``float32[R, C, D]``.

    Returns:
        The losses ``float64[R]``, and the gradients of their mean with respect to ``hidden`` and ``vectors``.
    """
    if vectors.dim() == 3 and vectors.shape[1] == 0:
        raise ValueError("there are no candidates; give the target first, then negatives")
    _, losses, by_hidden, by_vectors = _BINARY_LOSS(hidden=hidden.contiguous(), vectors=vectors.contiguous())
    return losses, by_hidden, by_vectors


def softmax_loss(
    hidden: Tensor,
    vectors: Tensor,
    targets: Tensor,
    left_out: tuple[Tensor, Tensor],
    log_probability: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax loss of each token against shared negatives, and the gradients of the mean over tokens.

    The loss of a token is ``softplus(logsumexp(logits of the negatives) - logit of the target)``.

    Args:
        hidden: hidden states, ``float32[T, D]``.
        vectors: vectors of the negatives, ``float32[N, D]``.
        targets: logits of the targets, ``float32[T]``.
        left_out: pairs (token, negative) to ignore, two ``int64`` tensors, sorted by token.
        log_probability: ``float32[N]``, subtracted from the logits of the negatives.

    Returns:
        The losses ``float64[T]``, and the gradients of their mean with respect to ``hidden``, ``vectors`` and
        ``targets``.
    """
    tokens, negatives = map(integers, left_out)
    log_probability = None if log_probability is None else log_probability.contiguous()
    return _softmax(hidden, vectors, targets.contiguous(), None, log_probability, tokens, negatives)


def cross_entropy(hidden: Tensor, vectors: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax cross-entropy of each token over the catalogue, and the gradients of the mean over tokens.

    Args:
        hidden: hidden states, ``float32[T, D]``.
        vectors: vectors of the items, ``float32[I + 1, D]``; row 0 is padding and has no part in it.
        items: target of each token, ``int64[T]`` from 1.

    Returns:
        The losses ``float64[T]``, and the gradients of their mean with respect to ``hidden`` and ``vectors``.
    """
    if vectors.dim() != 2 or len(vectors) == 0:
        raise ValueError(f"vectors have the shape {tuple(vectors.shape)}, not [I + 1, D]")
    items = integers(items) - 1
    by_vectors = torch.empty_like(vectors)
    by_vectors[0] = 0
    tokens = torch.arange(len(items))
    losses, by_hidden, *_ = _softmax(hidden, vectors[1:], None, items, None, tokens, items, by_vectors[1:])
    return losses, by_hidden, by_vectors


def _softmax(
    hidden: Tensor,
    vectors: Tensor,
    targets: Tensor | None,
    items: Tensor | None,
    log_probability: Tensor | None,
    tokens: Tensor,
    negatives: Tensor,
    by_vectors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, vectors = hidden.contiguous(), vectors.contiguous()
    by_vectors = torch.empty_like(vectors) if by_vectors is None else by_vectors
    _, losses, by_hidden, by_targets = _SOFTMAX_LOSS(
        hidden=hidden, vectors=vectors, targets=targets, items=items, log_probability=log_probability, tokens=tokens,
        negatives=negatives, by_vectors=by_vectors,
    )  # fmt: skip
    return losses, by_hidden, by_vectors, by_targets


class Ranked(NamedTuple):
    """The result of :func:`rank`."""

    columns: Tensor  # int64[R, k], best first, ties by column; -1 if there are fewer candidates
    scores: Tensor  # float32[R, k]; -inf if there are fewer candidates
    greater: Tensor | None  # int64[R], number of candidates that score above the target; -1 if the target scores -inf
    ties: Tensor | None  # int64[R], number of candidates that score the same, including the target
    numbers: bool  # whether no score is NaN


def rank(
    states: Tensor,
    vectors: Tensor,
    k: int = 0,
    left_out: tuple[Tensor, Tensor] | None = None,
    skipped: Tensor | None = None,
    targets: Tensor | None = None,
    added: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Ranked:
    """Rank candidates by dot products, a tile of scores at a time, without storing all scores.

    Args:
        states: hidden states, ``float32[R, D]``.
        vectors: vectors of the candidates, ``float32[C, D]``.
        k: number of best candidates to find.
        left_out: pairs (row, column) to ignore, two ``int64`` tensors, sorted by row.
        skipped: candidates to ignore for all rows, ``bool[C]``.
        targets: column of each row's target, ``int64[R]``. None if its rank is not needed.
        added: finite values to add to some of the dot products: rows and columns, two ``int64`` tensors, sorted by row
            and then by column, and ``float32`` values. Pairs to ignore are ignored nevertheless.
    """
    if states.dim() != 2 or vectors.dim() != 2 or not 0 <= k <= len(vectors):
        raise ValueError(f"k {k}, states {tuple(states.shape)} and vectors {tuple(vectors.shape)} don't fit together")
    states, vectors = states.contiguous(), vectors.contiguous()
    nothing = torch.zeros(0, dtype=torch.int64)
    rows, columns = map(integers, left_out or (nothing, nothing))
    *places, values = added or (nothing, nothing, torch.zeros(0))
    added_rows, added_columns = map(integers, places)
    greater, ties = (None if targets is None else torch.empty(len(states), dtype=torch.int64) for _ in range(2))
    targets = None if targets is None else integers(targets)
    skipped = None if skipped is None else skipped.contiguous()
    odd, best, scores = _RANK(
        states=states, vectors=vectors, rows=rows, columns=columns, added_rows=added_rows,
        added_columns=added_columns, added_values=values.contiguous(), skipped=skipped, K=k, targets=targets,
        greater=greater, ties=ties,
    )  # fmt: skip
    return Ranked(best, scores, greater, ties, odd == 0)
