"""Attention, dropout, positions and networks over packed tokens; see ``layers.cpp``."""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.loader import at, call, whole


def _longest(offsets: Tensor) -> int:
    return int(np.diff(offsets.numpy()).max(initial=0))


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
    """Softmax attention within each user of a packed batch, ``softmax(q k / sqrt(d)) v``; ``[T, A]``.

    Args:
        query: ``float32[T, A]``; each head has its own ``d = A / num_heads`` columns.
        key_value: ``float32[T, 2 * A]``, keys beside values.
        offsets: ``int64[B + 1]``, first token of each user.
        num_heads: heads.
        causal: whether a token sees the tokens up to it alone.
        words: ``int16[num_heads * P]`` random words, for each head those of all P pairs in the order of queries, of
            which each keeps its weight if it is at least ``65536 * dropout - 32768``; no dropout without them.
        dropout: probability.
        last_only: whether there is one query a user, ``[B, A]``, that sees all keys of the user; without gradients.
    """
    offsets = offsets.to(torch.int64).contiguous()
    queries = len(offsets) - 1 if last_only else int(offsets[-1])
    if query.shape != (queries, key_value.shape[1] // 2) or len(key_value) != int(offsets[-1]):
        raise ValueError(f"{tuple(query.shape)} and {tuple(key_value.shape)} are not of {int(offsets[-1])} tokens")
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
        lengths = np.diff(offsets.numpy())
        pairs = num_heads * int((lengths * (lengths + 1) // 2 if causal else lengths * lengths).sum())
        if words is not None and len(words) < pairs:
            raise ValueError(f"{len(words)} random words are not enough for {pairs} pairs")
        weights = query.new_empty(num_heads * weights_of(lengths)) if keep else None
        out = torch.empty_like(query)
        arguments = _arguments(query, key_value, offsets, num_heads, causal, words, dropout)
        call("attention_forward", *arguments, at(weights), at(out))
        if keep:
            ctx.save_for_backward(query, key_value, offsets, words, weights)
            ctx.rest = num_heads, causal, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value, offsets, words, weights = ctx.saved_tensors
        by_out = gradients[0].contiguous()
        by_query, by_key_value = torch.empty_like(query), torch.empty_like(key_value)
        by_value = ctypes.c_void_p(by_key_value.data_ptr() + 4 * query.shape[1])
        arguments = _arguments(query, key_value, offsets, ctx.rest[0], ctx.rest[1], words, ctx.rest[2])
        call("attention_backward", *arguments, *map(at, (weights, by_out, by_query, by_key_value)), by_value)
        return by_query, by_key_value, None, None, None, None, None


def _last_attention(query: Tensor, key_value: Tensor, offsets: Tensor, num_heads: int) -> Tensor:
    query, key_value = query.contiguous(), key_value.contiguous()
    out = torch.empty_like(query)
    call("attention_last", *_arguments(query, key_value, offsets, num_heads, False, None, 0.0)[:10], at(out))
    return out


def weights_of(lengths: np.ndarray) -> int:
    """How many numbers the softmax weights of users take, each row of them in whole vectors."""
    lanes = call("lanes")
    return int((lengths * (-(-lengths // lanes) * lanes)).sum())


def _arguments(
    query: Tensor,
    key_value: Tensor,
    offsets: Tensor,
    num_heads: int,
    causal: bool,
    words: Tensor | None,
    dropout: float,
) -> list[Any]:
    """What forward and backward take alike."""
    width = query.shape[1]
    dim = width // num_heads
    return [
        at(query),
        at(key_value),
        ctypes.c_void_p(key_value.data_ptr() + 4 * width),
        *whole(width, 2 * width),
        at(offsets),
        *whole(len(offsets) - 1, num_heads, dim),
        ctypes.c_float(dim**-0.5),
        ctypes.c_int32(causal),
        at(words),
        *dropping(words, dropout),
    ]


def dropping(words: Tensor | None, dropout: float) -> tuple[ctypes.c_int32, ctypes.c_float]:
    """From which word on something is kept, and what it is then multiplied by."""
    dropped = dropped_words(dropout) if words is not None else 0
    return ctypes.c_int32(dropped - 32768), ctypes.c_float(65536 / (65536 - dropped))


def dropped_words(probability: float) -> int:
    """Of the 65,536 values of a random word, how many drop what they stand for."""
    return min(round(probability * 65536), 65535)


def dropout(x: Tensor, words: Tensor, probability: float) -> Tensor:
    """``x float32[...]`` where ``words``, ``int16`` of as many, keep it, scaled; 0 elsewhere."""
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
    """``residual + dropout(relu(x))``, of which each part may be left out."""
    out = torch.empty_like(x) if out is None else out
    call(
        "dropout",
        at(x),
        at(residual),
        at(words),
        *whole(x.numel()),
        *dropping(words, probability),
        ctypes.c_int32(relu),
        at(out),
    )
    return out


def positions(
    x: Tensor, table: Tensor, offsets: Tensor, scale: float, words: Tensor | None = None, probability: float = 0.0
) -> Tensor:
    """``dropout(scale * x + position)`` of a packed batch, ``[T, D]``; positions count from the window's end.

    Args:
        x: ``float32[T, D]``.
        table: ``float32[L, D]``, the last row for the last token of each user.
        offsets: ``int64[B + 1]``, first token of each user, of whom none has more than L.
        scale: of ``x``.
        words: ``int16[T * D]`` random words, as in :func:`dropout`, or no dropout.
        probability: of dropout.
    """
    offsets = offsets.to(torch.int64).contiguous()
    if _longest(offsets) > len(table) or x.shape != (int(offsets[-1]), table.shape[1]):
        raise ValueError(f"{tuple(x.shape)} in users of up to {_longest(offsets)} don't fit {tuple(table.shape)}")
    result: Tensor = _Positions.apply(x, table, offsets, scale, words, probability)
    return result


class _Positions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, offsets: Tensor, scale: float, words: Tensor | None, probability: float
    ) -> Tensor:
        ctx.rest = (
            at(offsets), *whole(len(offsets) - 1, x.shape[1]), ctypes.c_float(scale), at(words),
            *dropping(words, probability),
        )  # fmt: skip
        ctx.owned, ctx.size = (offsets, words), table.shape
        x, table = x.contiguous(), table.contiguous()
        out = torch.empty_like(x)
        call("positions", at(x), at(table), *whole(len(table)), *ctx.rest, at(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_out = gradients[0].contiguous()
        by_x, by_table = torch.empty_like(by_out), by_out.new_zeros(ctx.size)
        call("positions_backward", at(by_out), *whole(ctx.size[0]), *ctx.rest, at(by_x), at(by_table))
        return by_x, by_table, None, None, None, None


def feedforward(
    x: Tensor, residual: Tensor, layers: list[tuple[Tensor, Tensor]], words: list[Tensor] | None, dropout: float
) -> Tensor:
    """``residual + network(x)``: linear layers with dropout after each, and ReLU before it but in the last one.

    Args:
        x: ``float32[T, D]``.
        residual: ``float32[T, E]``.
        layers: weights ``[out, in]`` and biases ``[out]``.
        words: ``int16[T * out]`` random words of each layer, or no dropout.
        dropout: its probability.
    """
    parameters = [parameter for layer in layers for parameter in layer]
    result: Tensor = _FeedForward.apply(x, residual, words, dropout, *parameters)
    return result


class _FeedForward(torch.autograd.Function):
    """By hand: a third of the steps that autograd takes, and no masks."""

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
                call("where_positive", at(states[number]), *whole(by.numel()), kept, at(by))
        return by, by_residual, None, None, *found
