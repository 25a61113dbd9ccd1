"""Ranking of a catalogue by codes of 8 bits, and exactly for the candidates that these leave; see ``codes.cpp``."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.kernels.arrays import Loop, integers

WIDE = 16  # items per block of codes
HIGHEST = 127  # of the absolute values of codes
_ITEMS_AT_ONCE = 2**16  # items whose codes are computed at once, so that little memory is needed besides the codes
_RANK_BY_CODES = Loop(
    "rank_by_codes", "states: float32[R, D]", "vectors: float32[C, D]", "codes: int8[B, P, 32]", "steps: float32[D]",
    "residual: float64", "total: int64", "rows: int64[L] sorted, below R", "columns: int64[L] below C", "L",
    "added_rows: int64[Q] sorted, below R", "added_columns: int64[Q] below C, sorted within added_rows",
    "added_values: float32[Q]", "Q", "skipped: bool[C]?", "R", "C", "D", "K", "best: int64[R, K] made",
    "scores: float32[R, K] made", "scored: int64[R] made",
)  # fmt: skip


class Codes(NamedTuple):
    """Vectors ``float32[C, D]`` in 8 bits: number d of vector c is ``steps[d] * (code + r)`` with ``|r| <= 1/2``.

    Sixteen vectors are a block, two dimensions of it are together: ``blocks[c // 16, d // 2, c % 16 * 2 + d % 2]``.
    """

    blocks: Tensor  # int8[ceil(C / 16), ceil(D / 2), 32], with zeros at the ends
    steps: Tensor  # float32[D]
    residual: float  # largest Euclidean norm of a vector's r
    total: int  # largest sum of a vector's absolute codes


class RankedByCodes(NamedTuple):
    """The result of :func:`rank_by_codes`."""

    columns: Tensor  # int64[R, k], best first, ties by column; -1 if there are fewer candidates
    scores: Tensor  # float32[R, k]; -inf if there are fewer candidates
    scored: Tensor  # int64[R], number of candidates whose score was computed exactly
    numbers: bool  # whether no score is NaN


def codes_of(vectors: Tensor) -> Codes:
    """The codes of finite vectors ``float32[C, D]``."""
    count, dim = vectors.shape
    padded = (dim + 1) // 2 * 2
    steps = vectors.abs().amax(dim=0).div(HIGHEST) if count else vectors.new_zeros(dim)
    steps[steps < torch.finfo(torch.float32).tiny] = 1.0  # nothing but zeros, or next to it
    blocks = torch.zeros((count + WIDE - 1) // WIDE, padded // 2, 2 * WIDE, dtype=torch.int8)
    residual, total = 0.0, 0
    for start in range(0, count, _ITEMS_AT_ONCE):
        ratio = vectors[start : start + _ITEMS_AT_ONCE] / steps
        code = ratio.round().clamp(-HIGHEST, HIGHEST)
        residual = max(residual, float((ratio - code).norm(dim=1).max()))
        total = max(total, int(code.abs().sum(dim=1).max()))
        part = torch.zeros((len(code) + WIDE - 1) // WIDE * WIDE, padded, dtype=torch.int8)
        part[: len(code), :dim] = code.to(torch.int8)
        block = start // WIDE
        into = blocks[block : block + len(part) // WIDE].view(-1, padded // 2, WIDE, 2)
        into.copy_(part.view(-1, WIDE, padded // 2, 2).transpose(1, 2))
    # The ratios are rounded, by at most 2^-24 of 127.5, and so are the norms.
    return Codes(blocks, steps, residual * (1 + 1e-5) + 1e-5 * dim**0.5, total)


def rank_by_codes(
    states: Tensor,
    vectors: Tensor,
    codes: Codes,
    k: int,
    left_out: tuple[Tensor, Tensor] | None = None,
    skipped: Tensor | None = None,
    added: tuple[Tensor, Tensor, Tensor] | None = None,
) -> RankedByCodes:
    """Find the same candidates as :func:`seqrec.kernels.rank`, with the same bits, but read a quarter of the memory.

    Products of the codes with the states in whole numbers are near the scores: by the Cauchy-Schwarz inequality, no
    further than ``residual`` times the norm of ``states * steps``, and half the unit of the state times ``total``. All
    candidates that may be among the best k by this bound are then scored exactly, and with them all that have a value
    to add.

    Args:
        states: finite hidden states, ``float32[R, D]``.
        vectors: vectors of the candidates, ``float32[C, D]``.
        codes: their :func:`codes_of`.
        k: number of best candidates to find.
        left_out: as for :func:`seqrec.kernels.rank`.
        skipped: as for :func:`seqrec.kernels.rank`.
        added: as for :func:`seqrec.kernels.rank`.
    """
    if states.dim() != 2 or vectors.dim() != 2 or not 1 <= k <= len(vectors):
        raise ValueError(f"k {k}, states {tuple(states.shape)} and vectors {tuple(vectors.shape)} don't fit together")
    expected = (len(vectors) + WIDE - 1) // WIDE, (vectors.shape[1] + 1) // 2, 2 * WIDE
    if codes.blocks.shape != expected:
        raise ValueError(f"codes of the shape {tuple(codes.blocks.shape)} are not of vectors {tuple(vectors.shape)}")
    nothing = torch.zeros(0, dtype=torch.int64)
    rows, columns = map(integers, left_out or (nothing, nothing))
    *places, values = added or (nothing, nothing, torch.zeros(0))
    added_rows, added_columns = map(integers, places)
    odd, best, scores, scored = _RANK_BY_CODES(
        states=states.contiguous(), vectors=vectors.contiguous(), codes=codes.blocks, steps=codes.steps,
        residual=codes.residual, total=codes.total, rows=rows, columns=columns, added_rows=added_rows,
        added_columns=added_columns, added_values=values.contiguous(),
        skipped=None if skipped is None else skipped.contiguous(), K=k,
    )  # fmt: skip
    return RankedByCodes(best, scores, scored, odd == 0)
