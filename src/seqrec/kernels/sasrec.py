"""A training step of SASRec up to the gradients in one compiled pass; see ``sasrec.cpp``."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.kernels.arrays import Loop, Remembered, lengths_of, require_probability
from seqrec.kernels.block import NORMS
from seqrec.kernels.layers import dropping

_GRADIENTS = Loop(
    "sasrec_gradients", "B", "D", "F: int64", "H: int64 dividing D", "blocks: int64", "L", "C", "N", "Q",
    "norm: int32", "threshold: int32", "kept: float32", "epsilon: float32", "scale: float32", "target_less: float32",
    "share: float64", "offsets: int64[B + 1] rising to T up to L", "items: int64[T] below R",
    "asked: int64[T, C] below R", "negatives: int64[N]? below R", "left_out_tokens: int64[Q] sorted, below T",
    "left_out: int64[Q] below N", "log_probability: float32[N]?", "table: float32[R, D]", "positions: float32[L, D]",
    "gain: float32[D]", "bias: float32[D]", "parameters: addresses", "words: int16[>= W]?", "losses: float64[T] made",
    "by_items: float32[T, D]", "by_asked: float32[T, C, D]", "by_negatives: float32[N, D]", "by_dense: float32[G]",
    structure=True,
)  # fmt: skip
_NOTHING = torch.zeros(0, dtype=torch.int64)


class Encoder(NamedTuple):
    """The weights of a SASRec whose blocks :func:`seqrec.kernels.attention_block` computes, and its settings."""

    table: Tensor  # item vectors, float32[R, D]
    positions: Tensor  # float32[L, D]
    blocks: list[list[Tensor]]  # for each block the parameters of attention_block
    gain: Tensor  # of the final norm, float32[D]
    bias: Tensor
    num_heads: int
    norm: str
    epsilon: float
    scale: float  # factor of the item vectors at the input
    dropout: float

    @property
    def dense(self) -> list[Tensor]:
        """All weights but the item vectors, in the order of their gradients."""
        return [self.positions, *(parameter for block in self.blocks for parameter in block), self.gain, self.bias]


class Dense(NamedTuple):
    """Memory for the gradients of ``encoder.dense``, which later steps can write again."""

    flat: Tensor
    parts: list[Tensor]  # of each weight
    known: Remembered  # the blocks' parameters

    @classmethod
    def of(cls, encoder: Encoder) -> "Dense":
        """Memory for an encoder."""
        dense = encoder.dense
        sizes = [x.numel() for x in dense]
        flat = torch.empty(sum(sizes))
        parts = [part.view(x.shape) for part, x in zip(flat.split(sizes), dense, strict=True)]
        return cls(flat, parts, Remembered())


class Shared(NamedTuple):
    """The negatives of sampled softmax, which all tokens share."""

    negatives: Tensor  # rows of the table, int64[N]
    left_out: tuple[Tensor, Tensor]  # pairs (token, index into negatives) to ignore, int64, sorted by token
    log_probability: Tensor | None = None  # float32[N], subtracted from the logits of the negatives
    target_log_probability: float = 0.0  # subtracted from the logits of the targets


def words_of_encoder(encoder: Encoder, offsets: Tensor) -> list[int]:
    """Numbers of random words: for the embedded input, and for each block those of ``attention_block``."""
    lengths = lengths_of(offsets)
    tokens = int(lengths.sum())
    pairs = (tokens + int(lengths.dot(lengths))) // 2
    hidden, dim = (encoder.blocks[0][10].shape[1] if encoder.blocks else 0), encoder.gain.numel()
    return [tokens * dim, *([encoder.num_heads * pairs, tokens * hidden, tokens * dim] * len(encoder.blocks))]


def sasrec_gradients(
    encoder: Encoder,
    items: Tensor,
    offsets: Tensor,
    asked: Tensor,
    shared: Shared | None = None,
    share: float = 1.0,
    words: Tensor | None = None,
    to: Dense | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The losses of a packed batch, and the gradients of their weighted sum with respect to everything it reads.

    The loss is that of :func:`binary_loss`, or with ``shared`` that of :func:`softmax_loss`.

    Args:
        encoder: weights and settings.
        items: item of each token, ``int64[T]``.
        offsets: first token of each user, ``int64[B + 1]``.
        asked: target of each token, then its own negatives, ``int64[T, C]``. With ``shared``, only targets, C = 1.
        shared: negatives of sampled softmax. None for binary cross-entropy.
        share: factor of the gradient of each token's loss: 1 / T for that of the mean.
        words: random words ``int16`` for dropout, as many as :func:`words_of_encoder` says, one layer after another,
            each padded to a multiple of 4. None turns dropout off.
        to: memory for the gradients of ``encoder.dense``. By default it is new.

    Returns:
        The losses ``float64[T]``; the gradient of each row that is looked up, ``[T * C + N + T, D]`` in the order
        ``asked``, shared negatives, ``items``; and the gradients of ``encoder.dense``.
    """
    require_probability(encoder.dropout)
    if encoder.norm not in NORMS or asked.dim() != 2 or asked.shape[1] < 1 or (shared and asked.shape[1] != 1):
        raise ValueError(f"norm {encoder.norm!r}, items asked for {tuple(asked.shape)}")
    threshold, kept = dropping(words, encoder.dropout)
    to, dim = to or Dense.of(encoder), encoder.gain.numel()
    if to.flat.numel() != sum(x.numel() for x in encoder.dense):
        raise ValueError(f"memory for {to.flat.numel()} gradients is not that of the encoder")
    hidden = encoder.blocks[0][10].shape[1] if encoder.blocks else 0
    negatives = _NOTHING if shared is None else shared.negatives
    left_out = (_NOTHING, _NOTHING) if shared is None else shared.left_out
    tokens, count = asked.shape
    by_rows = torch.empty(tokens * (1 + count) + len(negatives), dim)
    by_asked, by_negatives, by_items = by_rows.split_with_sizes([tokens * count, len(negatives), tokens])
    needed = 0 if words is None else sum(-(-part // 4) * 4 for part in words_of_encoder(encoder, offsets))
    _, losses = _GRADIENTS(
        F=hidden, H=encoder.num_heads, blocks=len(encoder.blocks), norm=NORMS.index(encoder.norm), threshold=threshold,
        kept=kept, epsilon=encoder.epsilon, scale=encoder.scale, share=share, offsets=offsets, items=items, asked=asked,
        target_less=0.0 if shared is None else shared.target_log_probability, left_out_tokens=left_out[0],
        negatives=None if shared is None else negatives, left_out=left_out[1], table=encoder.table,
        log_probability=None if shared is None else shared.log_probability, positions=encoder.positions,
        gain=encoder.gain, bias=encoder.bias, parameters=_addresses(encoder, dim, hidden, to.known), words=words,
        W=needed, by_items=by_items, by_asked=by_asked.view(tokens, count, dim), by_negatives=by_negatives,
        by_dense=to.flat,
    )  # fmt: skip
    return losses, by_rows, to.parts


def _addresses(encoder: Encoder, dim: int, hidden: int, known: Remembered) -> ctypes.Array[ctypes.c_void_p]:
    """Pointers to the parameters of all blocks."""
    sizes = [dim, dim, dim * dim, dim, 2 * dim * dim, 2 * dim, dim, dim, hidden * dim, hidden, dim * hidden, dim]
    return known.addresses("blocks", [x for block in encoder.blocks for x in block], sizes * len(encoder.blocks))
