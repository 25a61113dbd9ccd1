"""Pointwise aggregated attention with a gate, as in HSTU, over packed tokens; see ``gated.cpp``."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqrec.kernels.arrays import Loop, integers, lengths_of, require_probability
from seqrec.kernels.layers import dropping, weights_of

_TIME_BUCKETS = Loop(
    "time_buckets", "times: int64[T]", "offsets: int64[B + 1] rising to T", "B", "edges: int64[E] sorted", "E",
    "buckets: int32[W] made",
)  # fmt: skip


def _loop(name: str, *, out: str, way_back: str) -> Loop:
    """Declare a function that takes the structure of ``gated.cpp``."""
    return Loop(
        name, "B", "D", "H: int64 dividing D", "L", "K", "threshold: int32", "kept: float32", "share: float32",
        "epsilon: float32", "offsets: int64[B + 1] rising to T up to L", "mixed: float32[T, 4 * D]",
        "positions: float32[L]", "times: float32[K]?", "buckets: int32[W]? below K", "words: int16[>= T * D]?",
        f"out: float32[T, D]{out}", "saved: float32[S]?", "by_out: float32[T, D]?",
        f"by_mixed: float32[T, 4 * D]{way_back}", f"by_positions: float32[L]{way_back}", "by_times: float32[K]?",
        structure=True,
    )  # fmt: skip


_FORWARD = _loop("gated_forward", out=" made", way_back="?")
_BACKWARD = _loop("gated_backward", out="?", way_back=" made")


def time_buckets(times: Tensor, offsets: Tensor, edges: Tensor) -> Tensor:
    """The bucket of the time between each pair of a token (query) and one of the same user up to it (key).

    It is the number of ``edges`` that the time, without its sign, reaches.

    Args:
        times: ``int64[T]``.
        offsets: first token of each user, ``int64[B + 1]``.
        edges: ``int64[E]`` in ascending order.

    Returns:
        ``int32[W]`` in the layout that :func:`gated_attention` takes: a row per query, padded with zeros.
    """
    offsets = integers(offsets)
    found: Tensor
    _, found = _TIME_BUCKETS(times=times.contiguous(), offsets=offsets, edges=edges, W=weights_of(lengths_of(offsets)))
    return found


def gated_attention(
    mixed: Tensor,
    offsets: Tensor,
    positions: Tensor,
    num_heads: int,
    share: float,
    epsilon: float,
    times: Tensor | None = None,
    buckets: Tensor | None = None,
    words: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """``dropout(u * norm(a v))`` within each user, with ``u, v, q, k = silu(mixed)``.

    The norm is a layer norm without weights, and ``a_ij = share * silu(q_i k_j + positions[i - j] + times[bucket_ij])``
    for j <= i, in each head.

    Args:
        mixed: u, v, q and k side by side, ``float32[T, 4 * D]``; each head has ``D / num_heads`` columns of each.
        offsets: first token of each user, ``int64[B + 1]``; no user has more than L tokens.
        positions: ``float32[L]``.
        num_heads: number of heads; divides D.
        share: factor of all weights.
        epsilon: epsilon of the layer norm.
        times: ``float32[K]``, the bias of each bucket. None leaves it out.
        buckets: the buckets of all pairs from :func:`time_buckets`, each below K.
        words: random words ``int16[T * D]``, as in :func:`seqrec.kernels.dropout`. None turns dropout off.
        dropout: dropout probability.

    Returns:
        ``float32[T, D]``.
    """
    require_probability(dropout)
    if (times is None) != (buckets is None):
        raise ValueError("times and buckets belong together; give both or none")
    settings = num_heads, share, epsilon, dropout
    result: Tensor = _Gated.apply(mixed, integers(offsets), positions, times, buckets, words, settings)
    return result


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mixed: Tensor,
        offsets: Tensor,
        positions: Tensor,
        times: Tensor | None,
        buckets: Tensor | None,
        words: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        arrays = mixed.contiguous(), offsets, positions.contiguous(), times, buckets, words
        given = _arguments(*arrays, *settings)
        saved = None
        if any(ctx.needs_input_grad):
            saved = mixed.new_empty(max(given["S"], 0))
            ctx.save_for_backward(*arrays, saved)
            ctx.settings = settings
        out: Tensor
        _, out = _FORWARD(**given, saved=saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *arrays, saved = ctx.saved_tensors
        times = arrays[3]
        by_times = None if times is None else torch.empty_like(times)
        _, by_mixed, by_positions = _BACKWARD(
            **_arguments(*arrays, *ctx.settings), saved=saved, by_out=gradients[0].contiguous(), by_times=by_times,
        )  # fmt: skip
        return by_mixed, None, by_positions, by_times, None, None, None


def _arguments(
    mixed: Tensor,
    offsets: Tensor,
    positions: Tensor,
    times: Tensor | None,
    buckets: Tensor | None,
    words: Tensor | None,
    num_heads: int,
    share: float,
    epsilon: float,
    dropout: float,
) -> dict[str, Any]:
    """The arguments that forward and backward share."""
    threshold, kept = dropping(words, dropout)
    cells, numbers = weights_of(lengths_of(offsets)), mixed.shape[-1] // 4 + 2 if mixed.dim() else 0
    return {
        "mixed": mixed, "offsets": offsets, "positions": positions, "times": times, "buckets": buckets, "words": words,
        "H": num_heads, "K": 0 if times is None else len(times), "W": cells,
        "S": num_heads * cells + len(mixed) * numbers, "share": share, "epsilon": epsilon,
        "threshold": threshold, "kept": kept,
    }  # fmt: skip
