"""A complete block of LRURec over packed tokens; see ``recurrence.cpp``."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.arrays import integers, require_probability
from seqrec.kernels.block import loops_of_block
from seqrec.kernels.layers import dropping

_SHAPES = {
    "factors": "S", "input": "S, D", "input_bias": "S", "output": "D, S", "output_bias": "D", "gain1": "D",
    "bias1": "D", "inner": "F, D", "inner_bias": "F", "outer": "D, F", "outer_bias": "D", "gain2": "D", "bias2": "D",
}  # fmt: skip
_WORDS = {"words1": "T * D", "words2": "T * F", "words3": "T * D"}
_SAVES, _FORWARD, _LAST, _BACKWARD = loops_of_block("recurrent", ("B", "D", "S", "F"), _SHAPES, _WORDS, "T, R")


def recurrent_block(
    x: Tensor,
    offsets: Tensor,
    parameters: list[Tensor],
    epsilon: float,
    words: list[Tensor] | None = None,
    dropout: float = 0.0,
    last_only: bool = False,
) -> Tensor:
    """A linear recurrence with N complex states and a network, as in :class:`seqrec.models.lrurec.LRURecBlock`.

    Args:
        x: tokens, ``float32[T, D]``.
        offsets: first token of each user, ``int64[B + 1]``.
        parameters: the factors of the states ``[2 * N]``; weights and biases of the input ``[2 * N, D]`` and the output
            ``[D, 2 * N]`` of the recurrence, real parts of the states first; gain and bias ``[D]`` of its norm; weights
            and biases of the network's layers ``[F, D]`` and ``[D, F]``; gain and bias of its norm.
        epsilon: epsilon of the layer norms.
        words: random words ``int16`` for the output of the recurrence ``[T * D]``, the hidden layer ``[T * F]`` and the
            output of the network ``[T * D]``. None turns dropout off.
        dropout: dropout probability.
        last_only: whether to compute only the users' last tokens. This mode has no gradients.

    Returns:
        ``float32[T, D]``, or ``float32[B, D]`` with ``last_only``.
    """
    offsets = integers(offsets)
    require_probability(dropout)
    odd = bool(parameters) and parameters[0].numel() % 2 == 1
    if len(parameters) != len(_SHAPES) or odd or (words is not None and len(words) != len(_WORDS)):
        raise ValueError(f"{len(parameters)} parameters, odd factors {odd}, {len(words or ())} tensors of random words")
    x, parameters = x.contiguous(), [parameter.contiguous() for parameter in parameters]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters)):
        if last_only:
            raise ValueError("last_only has no gradients; call it under torch.no_grad()")
        result: Tensor = _Function.apply(x, offsets, words, epsilon, dropout, *parameters)
        return result
    given = _arguments(x, offsets, parameters, words, epsilon, dropout)
    out: Tensor
    _, out = (_LAST if last_only else _FORWARD)(**given, last_only=last_only)
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offsets: Tensor,
        words: list[Tensor] | None,
        epsilon: float,
        dropout: float,
        *parameters: Tensor,
    ) -> Tensor:
        given = _arguments(x, offsets, parameters, words, epsilon, dropout)
        sizes = {"S": parameters[0].numel(), "F": parameters[8].numel()}
        rest = {name: value for name, value in given.items() if name not in _SHAPES and name not in _WORDS}
        saved = x.new_empty(len(x), _SAVES(**rest, **sizes, last_only=False))
        out: Tensor
        _, out = _FORWARD(**given, last_only=False, saved=saved)
        ctx.save_for_backward(x, offsets, saved, *(words or ()), *parameters)
        ctx.settings, ctx.dropped = (epsilon, dropout), words is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, offsets, saved, *rest = ctx.saved_tensors
        words, parameters = (rest[:3], rest[3:]) if ctx.dropped else (None, rest)
        given = _arguments(x, offsets, parameters, words, *ctx.settings)
        by_out = gradients[0].contiguous()
        _, by_x, *by_parameters = _BACKWARD(**given, last_only=False, saved=saved, by_out=by_out)
        return by_x, None, None, None, None, *by_parameters


def _arguments(
    x: Tensor,
    offsets: Tensor,
    parameters: tuple[Tensor, ...] | list[Tensor],
    words: list[Tensor] | None,
    epsilon: float,
    dropout: float,
) -> dict[str, Any]:
    """The arguments that forward and backward share."""
    threshold, kept = dropping(None if words is None else words[0], dropout)
    given = {"threshold": threshold, "kept": kept, "epsilon": epsilon, "offsets": offsets, "x": x}
    return given | dict(zip(_SHAPES, parameters, strict=True)) | dict(zip(_WORDS, words or (), strict=False))
