"""A whole self-attention block of SASRec's kind over packed tokens; see ``block.cpp``."""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.layers import dropping
from seqrec.kernels.loader import call

NORMS = ("paper", "pre", "post")
_NUMBERS = ctypes.c_void_p
_SIZES = ("users", "dim", "hidden", "heads")


class _Block(ctypes.Structure):
    """As ``block.cpp`` reads it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_int32) for name in ("norm", "last_only", "threshold")),
        *((name, ctypes.c_float) for name in ("kept", "epsilon")),
        ("offsets", _NUMBERS), ("x", _NUMBERS), ("parameters", 12 * _NUMBERS), ("words", 3 * _NUMBERS),
        ("out", _NUMBERS), ("saved", _NUMBERS),
        ("by_out", _NUMBERS), ("by_x", _NUMBERS), ("by_parameters", 12 * _NUMBERS),
    )  # fmt: skip


def block(
    x: Tensor,
    offsets: Tensor,
    parameters: list[Tensor],
    num_heads: int,
    norm: str,
    epsilon: float,
    words: list[Tensor] | None = None,
    dropout: float = 0.0,
    last_only: bool = False,
) -> Tensor:
    """Causal self-attention and a network with one hidden layer, as :class:`seqrec.models.sasrec.SASRecBlock` has them.

    Args:
        x: ``float32[T, D]``.
        offsets: ``int64[B + 1]``, first token of each user.
        parameters: gain and bias ``[D]`` of the attention's norm; weights and biases of queries ``[D, D]`` and of keys
            beside values ``[2 * D, D]``; gain and bias of the network's norm; weights and biases of its layers
            ``[F, D]`` and ``[D, F]``.
        num_heads: heads, which divide D.
        norm: where layer norm sits: ``paper``, ``pre`` or ``post``.
        epsilon: of the norms.
        words: random words ``int16``: of all pairs of each head as in :func:`seqrec.kernels.attention`, ``[T * F]`` and
            ``[T * D]``; no dropout without them.
        dropout: probability.
        last_only: whether only the users' last tokens are wanted, ``[B, D]``; without gradients.
    """
    offsets = offsets.to(torch.int64).contiguous()
    tokens, dim = x.shape
    hidden = parameters[9].numel() if len(parameters) == 12 else 0
    numbers, square, across = [parameter.numel() for parameter in parameters], dim * dim, dim * hidden
    expected = [dim, dim, square, dim, 2 * square, 2 * dim, dim, dim, across, hidden, across, dim]
    if tokens != int(offsets[-1]) or numbers != expected or dim % num_heads:
        shapes = [tuple(parameter.shape) for parameter in parameters]
        raise ValueError(f"{(tokens, dim)} of {int(offsets[-1])} tokens and {num_heads} heads don't fit {shapes}")
    x, parameters = x.contiguous(), [parameter.contiguous() for parameter in parameters]
    if words is not None:
        pairs = num_heads * _pairs(offsets)
        if words[0].numel() < pairs or words[1].numel() < tokens * hidden or words[2].numel() < tokens * dim:
            raise ValueError(f"{[len(part) for part in words]} random words are not enough for {pairs} pairs")
    about = num_heads, norm, epsilon, dropout
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters)):
        if last_only:
            raise ValueError("the last tokens alone have no gradients")
        result: Tensor = _Function.apply(x, offsets, words, about, *parameters)
        return result
    given = _given(x, offsets, parameters, words, *about)
    out = x.new_empty(len(offsets) - 1 if last_only else tokens, dim)
    given.last_only, given.out = last_only, out.data_ptr()
    call("block_forward", ctypes.byref(given))
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, offsets: Tensor, words: list[Tensor] | None, about: tuple[Any, ...], *parameters: Tensor
    ) -> Tensor:
        given = _given(x, offsets, parameters, words, *about)
        out, saved = torch.empty_like(x), x.new_empty(call("block_saves", ctypes.byref(given)))
        given.out, given.saved = out.data_ptr(), saved.data_ptr()
        call("block_forward", ctypes.byref(given))
        ctx.save_for_backward(x, offsets, saved, *(words or ()), *parameters)
        ctx.about, ctx.dropped = about, words is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, offsets, saved, *rest = ctx.saved_tensors
        words, parameters = (rest[:3], rest[3:]) if ctx.dropped else (None, rest)
        by_out = gradients[0].contiguous()
        by_x, by_parameters = torch.empty_like(x), [torch.empty_like(parameter) for parameter in parameters]
        given = _given(x, offsets, parameters, words, *ctx.about)
        given.saved, given.by_out, given.by_x = saved.data_ptr(), by_out.data_ptr(), by_x.data_ptr()
        given.by_parameters[:] = [gradient.data_ptr() for gradient in by_parameters]
        call("block_backward", ctypes.byref(given))
        return by_x, None, None, None, *by_parameters


def _pairs(offsets: Tensor) -> int:
    lengths = np.diff(offsets.numpy())
    return int(lengths @ (lengths + 1)) // 2


def _given(
    x: Tensor,
    offsets: Tensor,
    parameters: tuple[Tensor, ...] | list[Tensor],
    words: list[Tensor] | None,
    num_heads: int,
    norm: str,
    epsilon: float,
    dropout: float,
) -> _Block:
    """What forward and backward take alike; the tensors must live as long."""
    threshold, kept = dropping(None if words is None else words[0], dropout)
    given = _Block(
        users=len(offsets) - 1, dim=x.shape[1], hidden=parameters[9].numel(), heads=num_heads, norm=NORMS.index(norm),
        threshold=threshold, kept=kept, epsilon=epsilon, offsets=offsets.data_ptr(), x=x.data_ptr(),
    )  # fmt: skip
    given.parameters[:] = [parameter.data_ptr() for parameter in parameters]
    if words is not None:
        given.words[:] = [part.data_ptr() for part in words]
    return given
