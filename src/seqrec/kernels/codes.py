"""Ranking of a catalogue by codes of 8 bits, and exactly for the candidates that these leave; see ``codes.cpp``."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.kernels.arrays import Loop, integers
from seqrec.kernels.loader import RUNS, library
from seqrec.kernels.scores import rank

WIDE = 16  # items per block of codes
HIGHEST, MIDDLE = 63, 64  # the largest distance of codes from their middle, and the middle
_LEAST_STEP = 1e-30  # of codes; far from numbers that lose digits because they are not normal ones
_TOGETHER = 64  # dimensions whose products are added in 16 bits
_ITEMS_AT_ONCE = 2**16  # items whose codes are computed at once, so that little memory is needed besides the codes
_RANK_BY_CODES = Loop(
    "rank_by_codes", "states: float32[R, D]", "vectors: float32[C, D]", "codes: uint8[B, P, 64]", "order: int64[C]",
    "places: int64[C]", "reach: float32[B]", "centres: float32[D]", "steps: float32[D]", "residual: float64",
    "norms: float64[N]", "rows: int64[L] sorted, below R", "columns: int64[L] below C", "L",
    "added_rows: int64[Q] sorted, below R", "added_columns: int64[Q] below C, sorted within added_rows",
    "added_values: float32[Q]", "Q", "skipped: bool[C]?", "R", "C", "D", "K", "best: int64[R, K] made",
    "scores: float32[R, K] made", "scored: int64[R] made",
)  # fmt: skip


class Codes(NamedTuple):
    """Vectors ``float32[C, D]`` in 7 bits, a byte each.

    Number d of vector ``order[p]`` is ``centres[d] + steps[d] * (code - 64 + r)`` with ``|r| <= 1/2``. Vectors whose
    ``code - 64`` has the highest norm come first: the best candidates tend to be among them. Sixteen vectors are a
    block, four dimensions of it are together: ``blocks[p // 16, d // 4, p % 16 * 4 + d % 4]``.
    """

    blocks: Tensor  # uint8[ceil(C / 16), ceil(D / 4), 64], with 64 at the ends
    order: Tensor  # int64[C]
    places: Tensor  # int64[C], the place p of each vector
    reach: Tensor  # float32[ceil(C / 16)], norm of the first code - 64 of each block
    centres: Tensor  # float32[D]
    steps: Tensor  # float32[D]
    residual: float  # largest Euclidean norm of a vector's r
    #: Largest Euclidean norms of a vector's ``code - 64``, ``float64[2 * ceil(D / 64) + 1]``: in each 64 dimensions, of
    #: the first two of each four, and of the other two; at the end of all dimensions.
    norms: Tensor


class RankedByCodes(NamedTuple):
    """The result of :func:`rank_by_codes`."""

    columns: Tensor  # int64[R, k], best first, ties by column; -1 if there are fewer candidates
    scores: Tensor  # float32[R, k]; -inf if there are fewer candidates
    scored: Tensor  # int64[R], number of candidates whose score was computed exactly
    numbers: bool  # whether no score is NaN; of states for which the codes do


def codes_are_fast() -> bool:
    """Whether the processor has instructions for products of codes."""
    return torch.backends.cpu.get_cpu_capability() in RUNS and library() is not None


def codes_of(vectors: Tensor) -> Codes:
    """The codes of finite vectors ``float32[C, D]``."""
    count, dim = vectors.shape
    quads, groups = (dim + 3) // 4, (dim + _TOGETHER - 1) // _TOGETHER
    low, high = vectors.aminmax(dim=0) if count else (vectors.new_zeros(dim),) * 2
    # The mean, and not the middle, so that most vectors are near it. The difference of two numbers may be infinite.
    centres = vectors.mean(dim=0, dtype=torch.float64).float() if count else low
    steps = torch.maximum(high.double() - centres, centres - low.double()).div(HIGHEST).float()
    steps[steps < _LEAST_STEP] = 1.0  # the same number everywhere, or next to it
    codes = torch.full((-(-count // WIDE) * WIDE, 4 * quads), MIDDLE, dtype=torch.uint8)
    residual, norms, squares = 0.0, torch.zeros(2 * groups + 1).double(), torch.zeros(count).double()
    for start in range(0, count, _ITEMS_AT_ONCE):
        ratio = (vectors[start : start + _ITEMS_AT_ONCE] - centres) / steps
        code = ratio.round().clamp(-HIGHEST, HIGHEST)
        residual = max(residual, float((ratio - code).norm(dim=1).max()))
        codes[start : start + len(code), :dim] = (code + MIDDLE).to(torch.uint8)
        code = F.pad(code.square(), (0, groups * _TOGETHER - dim)).view(-1, groups, _TOGETHER // 4, 2, 2)
        sums = code.sum(dim=(2, 4)).flatten(1)  # of whole numbers, so they are exact
        squares[start : start + len(code)] = sums.double().sum(dim=1)
        norms[:-1] = torch.maximum(norms[:-1], sums.amax(dim=0).double())
    squares, order = squares.sort(descending=True, stable=True)
    norms[-1] = squares[0] if count else 0.0
    codes[:count] = codes[order]
    blocks = codes.view(-1, WIDE, quads, 4).transpose(1, 2).reshape(-1, quads, 4 * WIDE)
    # The differences and the ratios are rounded, each by at most 2^-24 of 63.5, and so are the norms.
    residual = residual * (1 + 1e-5) + 2e-5 * dim**0.5
    places = torch.empty_like(order).index_put((order,), torch.arange(count))
    return Codes(
        blocks, order, places, squares[::WIDE].sqrt().float() * (1 + 1e-6), centres, steps, residual, norms.sqrt()
    )


def rank_by_codes(
    states: Tensor,
    vectors: Tensor,
    codes: Codes,
    k: int,
    left_out: tuple[Tensor, Tensor] | None = None,
    skipped: Tensor | None = None,
    added: tuple[Tensor, Tensor, Tensor] | None = None,
) -> RankedByCodes:
    """Find the same candidates as :func:`seqrec.kernels.rank`, with the same bits, in a fraction of the time.

    Products of the codes with the states in whole numbers are near the scores; ``codes.cpp`` has the bound and why it
    holds. All candidates that may be among the best k by this bound are then scored exactly. States for which that
    would be too many, or whose scores may be infinite, are ranked by :func:`seqrec.kernels.rank`.

    Args:
        states: hidden states, ``float32[R, D]``.
        vectors: vectors of the candidates, ``float32[C, D]``.
        codes: their :func:`codes_of`.
        k: number of best candidates to find.
        left_out: as for :func:`seqrec.kernels.rank`.
        skipped: as for :func:`seqrec.kernels.rank`.
        added: as for :func:`seqrec.kernels.rank`.
    """
    if states.dim() != 2 or vectors.dim() != 2 or not 1 <= k <= len(vectors):
        raise ValueError(f"k {k}, states {tuple(states.shape)} and vectors {tuple(vectors.shape)} don't fit together")
    dim = vectors.shape[1]
    expected = (len(vectors) + WIDE - 1) // WIDE, (dim + 3) // 4, 4 * WIDE
    if codes.blocks.shape != expected or len(codes.norms) != 2 * ((dim + _TOGETHER - 1) // _TOGETHER) + 1:
        raise ValueError(f"codes of the shape {tuple(codes.blocks.shape)} are not of vectors {tuple(vectors.shape)}")
    states, vectors = states.contiguous(), vectors.contiguous()
    nothing = torch.zeros(0, dtype=torch.int64)
    rows, columns = map(integers, left_out or (nothing, nothing))
    *places, values = added or (nothing, nothing, torch.zeros(0))
    added_rows, added_columns = map(integers, places)
    _, best, scores, scored = _RANK_BY_CODES(
        states=states, vectors=vectors, codes=codes.blocks, order=codes.order, places=codes.places, reach=codes.reach,
        centres=codes.centres, steps=codes.steps, residual=codes.residual, norms=codes.norms, rows=rows,
        columns=columns, added_rows=added_rows, added_columns=added_columns, added_values=values.contiguous(),
        skipped=None if skipped is None else skipped.contiguous(), K=k,
    )  # fmt: skip
    numbers = True
    others = torch.nonzero(scored < 0)[:, 0]
    if len(others):
        place = torch.full((len(states),), -1).index_put((others,), torch.arange(len(others)))
        own, own_added = place[rows] >= 0, place[added_rows] >= 0
        exact = rank(
            states[others], vectors, k, (place[rows[own]], columns[own]), skipped,
            added=(place[added_rows[own_added]], added_columns[own_added], values[own_added]),
        )  # fmt: skip
        best[others], scores[others], scored[others], numbers = exact.columns, exact.scores, len(vectors), exact.numbers
    return RankedByCodes(best, scores, scored, numbers)
