"""Attention, dropout, positions and feed-forward networks over packed tokens; see ``layers.cpp``."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.arrays import Loop, integers, lengths_of, require_probability

_DROPPING = "threshold: int32", "kept: float32"
_QUERIES = (
    "query: float32[T, A]", "key_value: float32[T, 2 * A] halves", "A", "2 * A", "offsets: int64[B + 1] rising to T",
    "B", "H: int64 dividing A", "A / H", "scale: float32", "causal: int32", "words: int16[>= H * P]?", *_DROPPING,
)  # fmt: skip
_ATTENTION = Loop("attention_forward", *_QUERIES, "weights: float32[H * W]?", "out: float32[T, A] made")
_ATTENTION_BACKWARD = Loop(
    "attention_backward", *_QUERIES, "weights: float32[H * W]", "by_out: float32[T, A]",
    "by_query: float32[T, A] made", "by_key_value: float32[T, 2 * A] halves, made",
)  # fmt: skip
_ATTENTION_LAST = Loop(
    "attention_last", "query: float32[B, A]", "key_value: float32[T, 2 * A] halves", "A", "2 * A",
    "offsets: int64[B + 1] rising to T by 1", "B", "H: int64 dividing A", "A / H", "scale: float32",
    "out: float32[B, A] made",
)  # fmt: skip
_LANES = Loop("lanes")
_DROPOUT = Loop(
    "dropout", "x: float32[*N]", "residual: float32[*N]?", "words: int16[>= N]?", "N", *_DROPPING, "relu: int32",
    "out: float32[*N]",
)  # fmt: skip
_WHERE_POSITIVE = Loop("where_positive", "y: float32[*N]", "N", "kept: float32", "gradient: float32[*N]")
_PLACES = (
    "L", "offsets: int64[B + 1] rising to T up to L", "B", "D", "scale: float32", "words: int16[>= T * D]?", *_DROPPING,
)  # fmt: skip
_POSITIONS = Loop("positions", "x: float32[T, D]", "table: float32[L, D]", *_PLACES, "out: float32[T, D] made")
_POSITIONS_BACKWARD = Loop(
    "positions_backward", "by_out: float32[T, D]", *_PLACES, "by_x: float32[T, D] made", "by_table: float32[L, D]"
)  # fmt: skip


def attention(
    query: Tensor,
    key_value: Tensor,
    offsets: Tensor,
    num_heads: int,
    causal: bool,
    words: Tensor | None = None,
    dropout: float = 0.0,
    last_only: bool = False,
) -> Tensor:
    """Softmax attention within each user of a packed batch, ``softmax(q k / sqrt(d)) v``.

    Args:
        query: queries, ``float32[T, A]``; each head has its own ``d = A / num_heads`` columns.
        key_value: keys and values side by side, ``float32[T, 2 * A]``.
        offsets: first token of each user, ``int64[B + 1]``.
        num_heads: number of heads.
        causal: whether a token sees only the tokens up to its own.
        words: random words ``int16[num_heads * P]``, head by head for all P pairs in the order of the queries. A pair
            keeps its weight if its word is at least ``65536 * dropout - 32768``. None turns dropout off.
        dropout: dropout probability.
        last_only: whether there is one query per user, ``[B, A]``, which sees all keys of the user. This mode has no
            dropout and no gradients.

    Returns:
        ``float32[T, A]``, or ``float32[B, A]`` with ``last_only``.
    """
    offsets = integers(offsets)
    require_probability(dropout)
    if last_only:
        return _last_attention(query, key_value, offsets, num_heads)
    result: Tensor = _Attention.apply(query, key_value, offsets, num_heads, causal, words, dropout)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key_value: Tensor,
        offsets: Tensor,
        num_heads: int,
        causal: bool,
        words: Tensor | None,
        dropout: float,
    ) -> Tensor:
        query, key_value = query.contiguous(), key_value.contiguous()
        keep = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        given = _arguments(query, key_value, offsets, num_heads, causal, words, dropout)
        weights = query.new_empty(max(num_heads, 0) * given["W"]) if keep else None
        out: Tensor
        _, out = _ATTENTION(**given, weights=weights)
        if keep:
            ctx.save_for_backward(query, key_value, offsets, words, weights)
            ctx.rest = num_heads, causal, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value, offsets, words, weights = ctx.saved_tensors
        by_out = gradients[0].contiguous()
        given = _arguments(query, key_value, offsets, ctx.rest[0], ctx.rest[1], words, ctx.rest[2])
        _, by_query, by_key_value = _ATTENTION_BACKWARD(**given, weights=weights, by_out=by_out)
        return by_query, by_key_value, None, None, None, None, None


def _last_attention(query: Tensor, key_value: Tensor, offsets: Tensor, num_heads: int) -> Tensor:
    query, key_value = query.contiguous(), key_value.contiguous()
    scale = _scale(query, num_heads)
    out: Tensor
    _, out = _ATTENTION_LAST(query=query, key_value=key_value, offsets=offsets, H=num_heads, scale=scale)
    return out


def weights_of(lengths: np.ndarray) -> int:
    """Size of the memory for the softmax weights, in numbers: each row is padded to a multiple of the vector width."""
    lanes = _LANES()
    return int((lengths * (-(-lengths // lanes) * lanes)).sum())


def _scale(query: Tensor, num_heads: int) -> float:
    width = query.shape[-1] if query.dim() else 0
    return float(max(width // max(num_heads, 1), 1) ** -0.5)


def _arguments(
    query: Tensor,
    key_value: Tensor,
    offsets: Tensor,
    num_heads: int,
    causal: bool,
    words: Tensor | None,
    dropout: float,
) -> dict[str, Any]:
    """The arguments that forward and backward share."""
    lengths = lengths_of(offsets)
    threshold, kept = dropping(words, dropout)
    return {
        "query": query, "key_value": key_value, "offsets": offsets, "H": num_heads, "causal": causal, "words": words,
        "scale": _scale(query, num_heads), "threshold": threshold, "kept": kept, "W": weights_of(lengths),
        "P": int((lengths * (lengths + 1) // 2 if causal else lengths * lengths).sum()),
    }  # fmt: skip


def dropping(words: Tensor | None, dropout: float) -> tuple[int, float]:
    """The smallest random word that keeps its value, and the factor that kept values are multiplied by."""
    dropped = dropped_words(dropout) if words is not None else 0
    return dropped - 32768, 65536 / (65536 - dropped)


def dropped_words(probability: float) -> int:
    """How many of the 65,536 values of a random word drop the number that the word is drawn for."""
    return min(round(probability * 65536), 65535)


def dropout(x: Tensor, words: Tensor, probability: float) -> Tensor:
    """Dropout of ``x float32[...]``: numbers that their random words ``int16`` keep are scaled, the others are 0."""
    require_probability(probability)
    result: Tensor = _Dropout.apply(x, words, probability)
    return result


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, words: Tensor, probability: float) -> Tensor:
        ctx.words, ctx.probability = words, probability
        return _drop(x.contiguous(), words, probability)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _drop(gradients[0].contiguous(), ctx.words, ctx.probability), None, None


def _drop(
    x: Tensor,
    words: Tensor | None,
    probability: float,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """``residual + dropout(relu(x))``; each of the three parts is optional."""
    out = torch.empty_like(x) if out is None else out
    threshold, kept = dropping(words, probability)
    _DROPOUT(x=x, residual=residual, words=words, threshold=threshold, kept=kept, relu=relu, out=out)
    return out


def positions(
    x: Tensor, table: Tensor, offsets: Tensor, scale: float, words: Tensor | None = None, probability: float = 0.0
) -> Tensor:
    """``dropout(scale * x + position)`` of a packed batch, ``[T, D]``; positions count from the end of the window.

    Args:
        x: tokens, ``float32[T, D]``.
        table: position embeddings, ``float32[L, D]``; the last row belongs to the last token of each user.
        offsets: first token of each user, ``int64[B + 1]``; no user has more than L tokens.
        scale: factor of ``x``.
        words: random words ``int16[T * D]``, as in :func:`dropout`. None turns dropout off.
        probability: dropout probability.
    """
    offsets = integers(offsets)
    require_probability(probability)
    result: Tensor = _Positions.apply(x, table, offsets, scale, words, probability)
    return result


class _Positions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, offsets: Tensor, scale: float, words: Tensor | None, probability: float
    ) -> Tensor:
        threshold, kept = dropping(words, probability)
        ctx.rest = {"offsets": offsets, "scale": scale, "words": words, "threshold": threshold, "kept": kept}
        ctx.size = table.shape
        x, table = x.contiguous(), table.contiguous()
        out: Tensor
        _, out = _POSITIONS(x=x, table=table, **ctx.rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_out = gradients[0].contiguous()
        by_table = by_out.new_zeros(ctx.size)
        _, by_x = _POSITIONS_BACKWARD(by_out=by_out, **ctx.rest, by_table=by_table)
        return by_x, by_table, None, None, None, None


def feedforward(
    x: Tensor, residual: Tensor, layers: list[tuple[Tensor, Tensor]], words: list[Tensor] | None, dropout: float
) -> Tensor:
    """``residual + network(x)``: linear layers with ReLU between them and dropout after each.

    Args:
        x: input, ``float32[T, D]``.
        residual: ``float32[T, E]``, where E is the width of the last layer.
        layers: weights ``[out, in]`` and biases ``[out]`` of each layer.
        words: random words ``int16[T * out]`` for each layer. None turns dropout off.
        dropout: dropout probability.
    """
    require_probability(dropout)
    if not layers or (words is not None and len(words) != len(layers)):
        raise ValueError(f"{len(layers)} layers, but {len(words or ())} tensors of random words")
    parameters = [parameter for layer in layers for parameter in layer]
    result: Tensor = _FeedForward.apply(x, residual, words, dropout, *parameters)
    return result


class _FeedForward(torch.autograd.Function):
    """A hand-written gradient: a third of autograd's operations, and no stored masks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, words: list[Tensor] | None, dropout: float, *parameters: Tensor
    ) -> Tensor:
        states = [x.contiguous()]
        last = len(parameters) // 2 - 1
        for number in range(last + 1):
            y = torch.addmm(parameters[2 * number + 1], states[-1], parameters[2 * number].T)
            own = None if words is None else words[number]
            added = residual.contiguous() if number == last else None
            _drop(y, own, dropout, residual=added, relu=number < last, out=y)
            states.append(y)
        ctx.words, ctx.dropout = words, dropout
        ctx.save_for_backward(*states[:-1], *parameters)
        return states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, words = ctx.saved_tensors, ctx.words
        count = len(saved) // 3
        states, parameters = saved[:count], saved[count:]
        by_residual = gradients[0].contiguous()
        by = by_residual if words is None else _drop(by_residual, words[-1], ctx.dropout)
        found: list[Tensor] = []
        for number in reversed(range(count)):
            found[:0] = [by.T @ states[number], by.sum(dim=0)]
            by = by @ parameters[2 * number]
            if number:
                _, kept = dropping(None if words is None else words[number - 1], ctx.dropout)
                _WHERE_POSITIVE(y=states[number], kept=kept, gradient=by)
        return by, by_residual, None, None, *found
