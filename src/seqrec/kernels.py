"""Compiled inner loops on the CPU, each with a form in torch that computes the same.

``kernels.cpp`` and ``adam.cpp`` are built when the package is installed, where there is a C++ compiler; without one, on
another device and for other types than float32, torch does the same work in more and longer steps.
``SEQREC_KERNELS=0`` in the environment turns them off. What they save is in benchmarks/RESULTS.md.
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

_VERSION = 10
NAME = "kernels.so.1"  # not .so alone, which Python would take for a module


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they were not built, are another version's or are turned off.

    torch is loaded first, so both share one pool of OpenMP threads.
    """
    if os.environ.get("SEQREC_KERNELS") == "0":
        return None
    try:
        found = ctypes.CDLL(str(Path(__file__).with_name(NAME)))
        found.seqrec_kernels_version.restype = ctypes.c_int32
        found.seqrec_adam_catch_up.restype = ctypes.c_int64
        return found if found.seqrec_kernels_version() == _VERSION else None
    except (OSError, AttributeError):
        return None


def usable(*tensors: Tensor) -> bool:
    """Whether the compiled functions take these: plain float32 on the CPU, outside of a trace and of autocast."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or library() is None:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)


def _at(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _whole(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]


def _call(name: str, *arguments: Any) -> Any:
    """Call a compiled function, whose last argument is the number of threads; for tensors that are ``usable``."""
    compiled = library()
    assert compiled is not None
    return getattr(compiled, f"seqrec_{name}")(*arguments, ctypes.c_int32(torch.get_num_threads()))


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
        weights = query.new_empty(pairs) if keep else None
        out = torch.empty_like(query)
        arguments, _owned = _arguments(query, key_value, offsets, num_heads, causal, words, dropout)
        scratch, *size = _scratch(_longest(offsets))
        _call("attention_forward", *arguments, _at(scratch), *size, _at(weights), _at(out))
        if keep:
            ctx.save_for_backward(query, key_value, offsets, words, weights)
            ctx.rest = num_heads, causal, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key_value, offsets, words, weights = ctx.saved_tensors
        num_heads, causal, dropout = ctx.rest
        by_out = gradients[0].contiguous()
        by_query, by_key_value = torch.empty_like(query), torch.empty_like(key_value)
        by_value = ctypes.c_void_p(by_key_value.data_ptr() + 4 * query.shape[1])
        arguments, _owned = _arguments(query, key_value, offsets, num_heads, causal, words, dropout)
        scratch, *size = _scratch(2 * _longest(offsets) ** 2)
        _call(
            "attention_backward",
            *arguments,
            _at(scratch),
            *size,
            _at(weights),
            _at(by_out),
            _at(by_query),
            _at(by_key_value),
            by_value,
        )
        return by_query, by_key_value, None, None, None, None, None


def _last_attention(query: Tensor, key_value: Tensor, offsets: Tensor, num_heads: int) -> Tensor:
    query, key_value = query.contiguous(), key_value.contiguous()
    out = torch.empty_like(query)
    arguments, _owned = _arguments(query, key_value, offsets, num_heads, False, None, 0.0)
    scratch, *size = _scratch(_longest(offsets))
    _call("attention_last", *arguments[:10], _at(scratch), *size, _at(out))
    return out


def _scratch(size: int) -> tuple[Tensor, ctypes.c_int64]:
    """Memory of so many numbers for each thread, and the numbers."""
    return torch.empty(torch.get_num_threads() * (size + 1)), ctypes.c_int64(size + 1)


def _arguments(
    query: Tensor,
    key_value: Tensor,
    offsets: Tensor,
    num_heads: int,
    causal: bool,
    words: Tensor | None,
    dropout: float,
) -> tuple[list[Any], Tensor]:
    """What forward and backward take alike, and memory that must live as long."""
    width = query.shape[1]
    dim = width // num_heads
    starts = torch.empty(len(offsets), dtype=torch.int64)
    arguments = [
        _at(query),
        _at(key_value),
        ctypes.c_void_p(key_value.data_ptr() + 4 * width),
        *_whole(width, 2 * width),
        _at(offsets),
        *_whole(len(offsets) - 1, num_heads, dim),
        ctypes.c_float(dim**-0.5),
        ctypes.c_int32(causal),
        _at(words),
        *_dropping(words, dropout),
        _at(starts),
    ]
    return arguments, starts


def _dropping(words: Tensor | None, dropout: float) -> tuple[ctypes.c_int32, ctypes.c_float]:
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
    _call(
        "dropout",
        _at(x),
        _at(residual),
        _at(words),
        *_whole(x.numel()),
        *_dropping(words, probability),
        ctypes.c_int32(relu),
        _at(out),
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
            _at(offsets), *_whole(len(offsets) - 1, x.shape[1]), ctypes.c_float(scale), _at(words),
            *_dropping(words, probability),
        )  # fmt: skip
        ctx.owned, ctx.size = (offsets, words), table.shape
        x, table = x.contiguous(), table.contiguous()
        out = torch.empty_like(x)
        _call("positions", _at(x), _at(table), *_whole(len(table)), *ctx.rest, _at(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_out = gradients[0].contiguous()
        by_x, by_table = torch.empty_like(by_out), by_out.new_zeros(ctx.size)
        _call("positions_backward", _at(by_out), *_whole(ctx.size[0]), *ctx.rest, _at(by_x), _at(by_table))
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
                _, kept = _dropping(None if words is None else words[number - 1], ctx.dropout)
                _call("where_positive", _at(states[number]), *_whole(by.numel()), kept, _at(by))
        return by, by_residual, None, None, *found


def score(hidden: Tensor, vectors: Tensor) -> Tensor:
    """The product of each state ``float32[R, D]`` with its own candidates ``float32[R, C, D]``: ``[R, C]``."""
    if vectors.dim() != 3 or hidden.shape != (vectors.shape[0], vectors.shape[2]):
        raise ValueError(f"hidden states {tuple(hidden.shape)} don't fit vectors {tuple(vectors.shape)}")
    result: Tensor = _Score.apply(hidden, vectors)
    return result


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor) -> Tensor:
        hidden, vectors = hidden.contiguous(), vectors.contiguous()
        out = hidden.new_empty(vectors.shape[:2])
        _call("score", _at(hidden), _at(vectors), *_whole(*vectors.shape), _at(out))
        ctx.save_for_backward(hidden, vectors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        hidden, vectors = ctx.saved_tensors
        by_out = gradients[0].contiguous()
        by_hidden, by_vectors = torch.empty_like(hidden), torch.empty_like(vectors)
        _call(
            "score_backward",
            _at(hidden),
            _at(vectors),
            _at(by_out),
            *_whole(*vectors.shape),
            _at(by_hidden),
            _at(by_vectors),
        )
        return by_hidden, by_vectors


def softmax_rows(
    logits: Tensor, log_probability: Tensor | None, targets: Tensor, scale: float, by_targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Softmax loss of each row's target against its negatives, ``softplus(logsumexp(logits) - target)``.

    Args:
        logits: ``float32[R, N]`` of negatives, -inf for those that don't count; afterwards the gradients of the loss
            but for a factor of each row.
        log_probability: ``float32[N]``, taken off all rows first.
        targets: ``float32[R]``, the targets' logits.
        scale: of the gradients.
        by_targets: ``float32[R]``, filled with ``scale`` times the gradients of the targets' logits.

    Returns:
        The losses ``float64[R]``, and ``float32[R]``: what times ``logits`` gives ``scale`` times their gradients.
    """
    losses = torch.empty(len(logits), dtype=torch.float64)
    factors = torch.empty(len(logits))
    _call(
        "softmax_rows",
        _at(logits),
        *_whole(*logits.shape),
        _at(log_probability),
        _at(targets),
        ctypes.c_float(scale),
        _at(by_targets),
        _at(factors),
        _at(losses),
    )
    return losses, factors


class Drifts(NamedTuple):
    """What rows that steps passed over have missed, in tables of ``float64``; see :class:`seqrec.optim.RowAdam`."""

    steps: Tensor  # [S, 2], of each step: the drift from there on, and beta2 to its power
    missed: Tensor  # [M, 4], of so many missed steps: the powers of beta1 / sqrt(beta2), beta1, beta2, the middle's


def adam_catch_up(
    rows: Tensor, step: int, betas: tuple[float, float], rate: float, epsilon: float, drifts: Drifts,
    weight: Tensor, first: Tensor, second: Tensor, last: Tensor,
) -> None:  # fmt: skip
    """Bring rows of a table to ``step``; see :class:`seqrec.optim.RowAdam`."""
    rows = rows.to(torch.int64).contiguous()
    moved = _call(
        "adam_catch_up",
        _at(rows),
        *_whole(len(rows), len(weight), step, weight.shape[1]),
        *map(ctypes.c_double, (*betas, rate, epsilon)),
        _at(drifts.steps),
        _at(drifts.missed),
        *_whole(len(drifts.missed)),
        *map(_at, (weight, first, second, last)),
    )
    if moved:
        increment_version(weight)


def adam_step(
    rows: Tensor, gradients: Tensor, step: int, betas: tuple[float, float], rate: float, epsilon: float,
    drifts: Drifts, weight: Tensor, first: Tensor, second: Tensor, last: Tensor, slots: Tensor,
) -> None:  # fmt: skip
    """Bring rows to the step before and take ``step`` with the sum of each row's gradients.

    ``rows`` are of the table; ``slots int32[rows of the table]`` is -1 everywhere, before and after.
    """
    rows, gradients = rows.to(torch.int64).contiguous(), gradients.contiguous()
    summed, touched = torch.empty_like(gradients), torch.empty_like(rows)
    _call(
        "adam_step",
        _at(rows),
        _at(gradients),
        *_whole(len(rows), step, weight.shape[1]),
        *map(ctypes.c_double, (*betas, rate, epsilon)),
        _at(drifts.steps),
        _at(drifts.missed),
        *_whole(len(drifts.missed)),
        *map(_at, (weight, first, second, last, slots, summed, touched)),
    )
    increment_version(weight)


def adam_dense(
    weights: list[Tensor], gradients: list[Tensor], firsts: list[Tensor], seconds: list[Tensor], steps: list[Tensor],
    betas: tuple[float, float], rate: float, epsilon: float,
) -> None:  # fmt: skip
    """Adam's step on whole tensors without gaps; ``steps``, a ``float32`` each, count on by one."""
    gradients = [gradient.contiguous() for gradient in gradients]
    count = len(weights)
    pointers = ctypes.c_void_p * count
    _call(
        "adam_dense",
        *(pointers(*[x.data_ptr() for x in tensors]) for tensors in (weights, gradients, firsts, seconds, steps)),
        (ctypes.c_int64 * count)(*[weight.numel() for weight in weights]),
        *_whole(count),
        *map(ctypes.c_double, (*betas, rate, epsilon)),
    )
    for weight in weights:
        increment_version(weight)
