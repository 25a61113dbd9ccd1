"""Adam's loops; see ``adam.cpp``, and :class:`seqrec.training.optim.RowAdam` for what they compute."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from seqrec.kernels.loader import at, call, whole


class Drifts(NamedTuple):
    """What rows that steps passed over have missed, in tables of ``float64``; see ``RowAdam``."""

    steps: Tensor  # [S, 2], of each step: the drift from there on, and beta2 to its power
    missed: Tensor  # [M, 4], of so many missed steps: the powers of beta1 / sqrt(beta2), beta1, beta2, the middle's


def adam_catch_up(
    rows: Tensor, step: int, betas: tuple[float, float], rate: float, epsilon: float, drifts: Drifts,
    weight: Tensor, first: Tensor, second: Tensor, last: Tensor,
) -> None:  # fmt: skip
    """Bring rows of a table to ``step``; see :class:`seqrec.training.optim.RowAdam`."""
    rows = rows.to(torch.int64).contiguous()
    moved = call(
        "adam_catch_up",
        at(rows),
        *whole(len(rows), len(weight), step, weight.shape[1]),
        *map(ctypes.c_double, (*betas, rate, epsilon)),
        at(drifts.steps),
        at(drifts.missed),
        *whole(len(drifts.missed)),
        *map(at, (weight, first, second, last)),
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
    call(
        "adam_step",
        at(rows),
        at(gradients),
        *whole(len(rows), step, weight.shape[1]),
        *map(ctypes.c_double, (*betas, rate, epsilon)),
        at(drifts.steps),
        at(drifts.missed),
        *whole(len(drifts.missed)),
        *map(at, (weight, first, second, last, slots, summed, touched)),
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
    call(
        "adam_dense",
        *(pointers(*[x.data_ptr() for x in tensors]) for tensors in (weights, gradients, firsts, seconds, steps)),
        (ctypes.c_int64 * count)(*[weight.numel() for weight in weights]),
        *whole(count),
        *map(ctypes.c_double, (*betas, rate, epsilon)),
    )
    increment_version(weights)
