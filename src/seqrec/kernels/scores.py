"""Scores of candidates and softmax losses; see ``scores.cpp``."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.loader import at, call, whole


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of ``float32[M, K]`` and ``float32[K, N]``, of any strides."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"{tuple(a.shape)} does not fit {tuple(b.shape)}")
    out = a.new_empty(len(a), b.shape[1])
    numbers = whole(*a.stride()), whole(*b.stride()), whole(*out.shape, len(b))
    call("product", at(a), *numbers[0], at(b), *numbers[1], *numbers[2], at(out))
    return out


def score(hidden: Tensor, vectors: Tensor) -> Tensor:
    """The product of each state ``float32[R, D]`` with its own candidates ``float32[R, C, D]``: ``[R, C]``."""
    _fit(hidden, vectors)
    result: Tensor = _Score.apply(hidden, vectors)
    return result


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor) -> Tensor:
        hidden, vectors = hidden.contiguous(), vectors.contiguous()
        out = hidden.new_empty(vectors.shape[:2])
        call("score", at(hidden), at(vectors), *whole(*vectors.shape), at(out))
        ctx.save_for_backward(hidden, vectors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        hidden, vectors = ctx.saved_tensors
        by_out = gradients[0].contiguous()
        by_hidden, by_vectors = torch.empty_like(hidden), torch.empty_like(vectors)
        call(
            "score_backward",
            at(hidden),
            at(vectors),
            at(by_out),
            *whole(*vectors.shape),
            at(by_hidden),
            at(by_vectors),
        )
        return by_hidden, by_vectors


def binary_loss(hidden: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of each row's binary cross-entropy of its first candidate against its others, and gradients.

    Args:
        hidden: ``float32[R, D]``.
        vectors: ``float32[R, C, D]``, each row's target and then its negatives.

    Returns:
        The losses ``float64[R]``, and the gradients of their mean by ``hidden`` and ``vectors``.
    """
    _fit(hidden, vectors)
    hidden, vectors = hidden.contiguous(), vectors.contiguous()
    losses = torch.empty(len(hidden), dtype=torch.float64)
    gradients = torch.empty_like(hidden), torch.empty_like(vectors)
    call("binary_loss", at(hidden), at(vectors), *whole(*vectors.shape), *map(at, (losses, *gradients)))
    return losses, *gradients


def _fit(hidden: Tensor, vectors: Tensor) -> None:
    if vectors.dim() != 3 or hidden.shape != (vectors.shape[0], vectors.shape[2]):
        raise ValueError(f"hidden states {tuple(hidden.shape)} don't fit vectors {tuple(vectors.shape)}")


def softmax_loss(
    hidden: Tensor,
    vectors: Tensor,
    targets: Tensor,
    left_out: tuple[Tensor, Tensor],
    log_probability: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean of each token's softmax loss against negatives, ``softplus(logsumexp(logits) - target)``, and gradients.

    Args:
        hidden: ``float32[T, D]``.
        vectors: ``float32[N, D]``, of the negatives.
        targets: ``float32[T]``, the targets' logits.
        left_out: pairs (token, negative), two ``int64``, tokens in rising order, that don't count.
        log_probability: ``float32[N]``, taken off the logits.

    Returns:
        The losses ``float64[T]``, and the gradients of their mean by ``hidden``, ``vectors`` and ``targets``.
    """
    tokens, negatives = (part.to(torch.int64).contiguous() for part in left_out)
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"{tuple(targets.shape)} targets are not of states {tuple(hidden.shape)}")
    if log_probability is not None:
        log_probability = log_probability.contiguous()
        if log_probability.shape != vectors.shape[:1]:
            raise ValueError(f"{tuple(log_probability.shape)} log-probabilities are not of {len(vectors)} vectors")
    _within(tokens, len(hidden))
    _within(negatives, len(vectors))
    return _softmax(hidden, vectors, targets.contiguous(), None, log_probability, tokens, negatives)


def cross_entropy(hidden: Tensor, vectors: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of each token's softmax cross-entropy over a catalogue, and gradients.

    Args:
        hidden: ``float32[T, D]``.
        vectors: ``float32[I + 1, D]``; row 0, the padding, is left out.
        items: ``int64[T]``, the row of each token's target in ``vectors``, from 1.

    Returns:
        The losses ``float64[T]``, and the gradients of their mean by ``hidden`` and ``vectors``.
    """
    items = items.to(torch.int64).contiguous()
    if items.shape != hidden.shape[:1] or len(vectors) == 0:
        raise ValueError(f"{tuple(items.shape)} targets are not of states {tuple(hidden.shape)}")
    items = items - 1
    _within(items, len(vectors) - 1)
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
    if hidden.dim() != 2 or hidden.shape[1:] != vectors.shape[1:]:
        raise ValueError(f"states {tuple(hidden.shape)} don't fit vectors {tuple(vectors.shape)}")
    hidden, vectors = hidden.contiguous(), vectors.contiguous()
    losses = torch.empty(len(hidden), dtype=torch.float64)
    by_vectors = torch.empty_like(vectors) if by_vectors is None else by_vectors
    gradients = torch.empty_like(hidden), by_vectors, hidden.new_empty(len(hidden))
    call(
        "softmax_loss",
        *map(at, (hidden, vectors, targets, items, log_probability, tokens, negatives)),
        *whole(len(tokens), *hidden.shape[:1], *vectors.shape),
        *map(at, (losses, *gradients)),
    )
    return losses, *gradients


def _within(places: Tensor, count: int) -> None:
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < count:
        raise ValueError(f"rows or columns reach {int(places.max())} of {count}")


class Ranked(NamedTuple):
    """What :func:`rank` finds."""

    columns: Tensor  # int64[R, k] of the best candidates, by score and then by column; -1 where there are fewer
    scores: Tensor  # float32[R, k]; -inf where there are fewer
    greater: Tensor | None  # int64[R], candidates that score above the target; -1 where it scores -inf
    ties: Tensor | None  # int64[R], those that score the same, itself among them
    numbers: bool  # whether all scores are


def rank(
    states: Tensor,
    vectors: Tensor,
    k: int = 0,
    left_out: tuple[Tensor, Tensor] | None = None,
    skipped: Tensor | None = None,
    targets: Tensor | None = None,
) -> Ranked:
    """Score candidates by dot products and keep of these what a ranking needs, a tile at a time.

    Args:
        states: ``float32[R, D]``.
        vectors: ``float32[C, D]``, of the candidates.
        k: how many of the best are wanted.
        left_out: pairs (row, column), two ``int64``, rows in rising order, that don't count.
        skipped: ``bool[C]``, candidates that don't count for anybody.
        targets: ``int64[R]``, the column of each row's target, where ranks are wanted.
    """
    states, vectors = states.contiguous(), vectors.contiguous()
    nothing = torch.zeros(0, dtype=torch.int64)
    rows, columns = (part.to(torch.int64).contiguous() for part in left_out or (nothing, nothing))
    count, items = len(states), len(vectors)
    if states.dim() != 2 or states.shape[1:] != vectors.shape[1:] or (targets is not None and len(targets) != count):
        raise ValueError(f"states {tuple(states.shape)} don't fit vectors {tuple(vectors.shape)} or their targets")
    if skipped is not None and (skipped.shape != (items,) or skipped.dtype != torch.bool):
        raise ValueError(f"{list(skipped.shape)} {skipped.dtype} do not say of {items} vectors which are skipped")
    _within(rows, count)
    _within(columns, items)
    _within(nothing if targets is None else targets, items)
    best, scores = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    greater, ties = (None if targets is None else torch.empty(count, dtype=torch.int64) for _ in range(2))
    targets = None if targets is None else targets.to(torch.int64).contiguous()
    skipped = None if skipped is None else skipped.contiguous()
    odd = call(
        "rank",
        *map(at, (states, vectors, rows, columns)),
        *whole(len(rows)),
        at(skipped),
        *whole(count, *vectors.shape, k),
        *map(at, (best, scores, targets, greater, ties)),
    )
    return Ranked(best, scores, greater, ties, odd == 0)
