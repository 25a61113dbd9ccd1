"""A complete self-attention block, as in SASRec, over packed tokens; see ``block.cpp``."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.arrays import Loop, integers, lengths_of, require_probability
from seqrec.kernels.layers import dropping

NORMS = ("paper", "pre", "post")
_SHAPES = {
    "gain1": "D", "bias1": "D", "query": "D, D", "query_bias": "D", "keys": "2 * D, D", "keys_bias": "2 * D",
    "gain2": "D", "bias2": "D", "inner": "F, D", "inner_bias": "F", "outer": "D, F", "outer_bias": "D",
}  # fmt: skip
_WORDS = {"words1": "H * P", "words2": "T * F", "words3": "T * D"}


def loops_of_block(
    prefix: str, sizes: tuple[str, ...], shapes: dict[str, str], words: dict[str, str], saved: str
) -> tuple[Loop, Loop, Loop, Loop]:
    """Declare the functions of a complete block, which all take its structure.

    Args:
        prefix: start of their names.
        sizes: numbers that the structure begins with.
        shapes: shapes of the parameters, by name.
        words: number of random words, by name.
        saved: shape of what the way back needs.

    Returns:
        The functions that tell how much is saved, compute all tokens, compute the last tokens, and compute gradients.
    """

    def loop(name: str, *, parts: str = "", offsets: str = "", out: str = "[T, D]?", way_back: str = "?") -> Loop:
        # "?" stands for what the function is called without, "made" for its results.
        return Loop(
            f"{prefix}_{name}", *sizes, "last_only: int32", "threshold: int32", "kept: float32", "epsilon: float32",
            f"offsets: int64[B + 1] rising to T{offsets}", "x: float32[T, D]",
            *(f"{part}: float32[{shape}]{parts}" for part, shape in shapes.items()),
            *(f"{part}: int16[>= {count}]?" for part, count in words.items()),
            f"out: float32{out}", f"saved: float32[{saved}]?", "by_out: float32[T, D]?",
            f"by_x: float32[T, D]{way_back}",
            *(f"by_{part}: float32[{shape}]{way_back}" for part, shape in shapes.items()), structure=True,
        )  # fmt: skip

    return (
        loop("saves", parts="?"),
        loop("forward", out="[T, D] made"),
        loop("forward", offsets=" by 1", out="[B, D] made"),
        loop("backward", way_back=" made"),
    )


_SAVES, _FORWARD, _LAST, _BACKWARD = loops_of_block(
    "block", ("B", "D", "F", "H: int64 dividing D", "norm: int32"), _SHAPES, _WORDS, "S"
)


def attention_block(
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
    """Causal self-attention and a network with one hidden layer, as in :class:`seqrec.models.sasrec.SASRecBlock`.

    Args:
        x: tokens, ``float32[T, D]``.
        offsets: first token of each user, ``int64[B + 1]``.
        parameters: gain and bias ``[D]`` of the attention's norm; weights and biases of the queries ``[D, D]`` and of
            the keys and values ``[2 * D, D]``; gain and bias of the network's norm; weights and biases of its layers
            ``[F, D]`` and ``[D, F]``.
        num_heads: number of heads; divides D.
        norm: place of the layer norm: ``paper``, ``pre`` or ``post``.
        epsilon: epsilon of the layer norms.
        words: random words ``int16`` for the attention weights as in :func:`seqrec.kernels.attention`, for the hidden
            layer ``[T * F]`` and for the output ``[T * D]``. None turns dropout off.
        dropout: dropout probability.
        last_only: whether to compute only the users' last tokens. This mode has no gradients.

    Returns:
        ``float32[T, D]``, or ``float32[B, D]`` with ``last_only``.
    """
    offsets = integers(offsets)
    require_probability(dropout)
    if len(parameters) != len(_SHAPES) or norm not in NORMS or (words is not None and len(words) != len(_WORDS)):
        raise ValueError(f"{len(parameters)} parameters, norm {norm!r}, {len(words or ())} tensors of random words")
    x, parameters = x.contiguous(), [parameter.contiguous() for parameter in parameters]
    settings = num_heads, norm, epsilon, dropout
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters)):
        if last_only:
            raise ValueError("last_only has no gradients; call it under torch.no_grad()")
        result: Tensor = _Function.apply(x, offsets, words, settings, *parameters)
        return result
    given = _arguments(x, offsets, parameters, words, *settings)
    out: Tensor
    _, out = (_LAST if last_only else _FORWARD)(**given, last_only=last_only)
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, offsets: Tensor, words: list[Tensor] | None, settings: tuple[Any, ...], *parameters: Tensor
    ) -> Tensor:
        given = _arguments(x, offsets, parameters, words, *settings)
        sizes = {name: value for name, value in given.items() if name not in _SHAPES and name not in _WORDS}
        saved = x.new_empty(_SAVES(**sizes, F=parameters[-2].shape[-1], last_only=False))
        out: Tensor
        _, out = _FORWARD(**given, last_only=False, saved=saved)
        ctx.save_for_backward(x, offsets, saved, *(words or ()), *parameters)
        ctx.settings, ctx.dropped, ctx.saves = settings, words is not None, len(saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, offsets, saved, *rest = ctx.saved_tensors
        words, parameters = (rest[:3], rest[3:]) if ctx.dropped else (None, rest)
        given = _arguments(x, offsets, parameters, words, *ctx.settings)
        by_out = gradients[0].contiguous()
        _, by_x, *by_parameters = _BACKWARD(**given, S=ctx.saves, last_only=False, saved=saved, by_out=by_out)
        return by_x, None, None, None, *by_parameters


def _arguments(
    x: Tensor,
    offsets: Tensor,
    parameters: tuple[Tensor, ...] | list[Tensor],
    words: list[Tensor] | None,
    num_heads: int,
    norm: str,
    epsilon: float,
    dropout: float,
) -> dict[str, Any]:
    """The arguments that forward and backward share."""
    threshold, kept = dropping(None if words is None else words[0], dropout)
    lengths = lengths_of(offsets)
    given = {
        "H": num_heads, "norm": NORMS.index(norm), "threshold": threshold, "kept": kept, "epsilon": epsilon,
        "offsets": offsets, "x": x, "P": int((lengths * (lengths + 1)).sum()) // 2,
    }  # fmt: skip
    return given | dict(zip(_SHAPES, parameters, strict=True)) | dict(zip(_WORDS, words or (), strict=False))
