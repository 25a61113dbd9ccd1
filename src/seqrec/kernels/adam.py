"""Adam's loops; see ``adam.cpp``, and :class:`seqrec.training.optim.RowAdam` for what they compute."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from seqrec.kernels.arrays import Loop, addresses, integers

_RATES = "beta1: float64", "beta2: float64", "rate: float64", "epsilon: float64"
_DRIFTS = "steps: float64[S, 2]", "missed: float64[M, 4]", "M"
_TABLE = "weight: float32[R, D]", "first: float32[R, D]", "second: float32[R, D]", "last: int32[R]"
# A row that the table does not have is passed over: the look-up that follows refuses it.
_CATCH_UP = Loop("adam_catch_up", "rows: int64[N]", "N", "R", "step: int64 below S", "D", *_RATES, *_DRIFTS, *_TABLE)
_STEP = Loop(
    "adam_step", "rows: int64[N] below R", "gradients: float32[N, D]", "N", "step: int64 below S", "D", *_RATES,
    *_DRIFTS, *_TABLE, "slots: int32[R]", "summed: float32[N, D]", "touched: int64[N]",
)  # fmt: skip
_DENSE = Loop(
    "adam_dense", "weights: addresses", "gradients: addresses", "firsts: addresses", "seconds: addresses",
    "counts: addresses", "sizes: addresses", "count: int64", *_RATES,
)  # fmt: skip


class Drifts(NamedTuple):
    """What rows that steps passed over have missed, in tables of ``float64``; see ``RowAdam``."""

    steps: Tensor  # [S, 2], of each step: the drift from there on, and beta2 to its power
    missed: Tensor  # [M, 4], of so many missed steps: the powers of beta1 / sqrt(beta2), beta1, beta2, the middle's


def adam_catch_up(
    rows: Tensor, step: int, betas: tuple[float, float], rate: float, epsilon: float, drifts: Drifts,
    weight: Tensor, first: Tensor, second: Tensor, last: Tensor,
) -> None:  # fmt: skip
    """Bring rows of a table to ``step``; see :class:`seqrec.training.optim.RowAdam`."""
    moved = _CATCH_UP(
        rows=integers(rows), step=step, beta1=betas[0], beta2=betas[1], rate=rate, epsilon=epsilon,
        steps=drifts.steps, missed=drifts.missed, weight=weight, first=first, second=second, last=last,
    )  # fmt: skip
    if moved:
        increment_version(weight)


def adam_step(
    rows: Tensor, gradients: Tensor, step: int, betas: tuple[float, float], rate: float, epsilon: float,
    drifts: Drifts, weight: Tensor, first: Tensor, second: Tensor, last: Tensor, slots: Tensor,
) -> None:  # fmt: skip
    """Bring rows to the step before and take ``step``, from 1, with the sum of each row's gradients.

    ``rows`` are of the table; ``slots int32[rows of the table]`` is memory that a table uses again, -1 at first.
    """
    if step < 1:
        raise ValueError(f"step is {step}; the first one is 1")
    rows, gradients = integers(rows), gradients.contiguous()
    _STEP(
        rows=rows, gradients=gradients, step=step, beta1=betas[0], beta2=betas[1], rate=rate, epsilon=epsilon,
        steps=drifts.steps, missed=drifts.missed, weight=weight, first=first, second=second, last=last, slots=slots,
        summed=torch.empty_like(gradients), touched=torch.empty_like(rows),
    )  # fmt: skip
    increment_version(weight)


def adam_dense(
    weights: list[Tensor], gradients: list[Tensor], firsts: list[Tensor], seconds: list[Tensor], steps: list[Tensor],
    betas: tuple[float, float], rate: float, epsilon: float,
) -> None:  # fmt: skip
    """Adam's step on whole tensors without gaps; ``steps``, a ``float32`` each, count on by one."""
    gradients = [gradient.contiguous() for gradient in gradients]
    sizes = [weight.numel() for weight in weights]
    count = len(sizes)
    _DENSE(
        weights=addresses(weights, sizes), gradients=addresses(gradients, sizes), firsts=addresses(firsts, sizes),
        seconds=addresses(seconds, sizes), counts=addresses(steps, [1] * count),
        sizes=(ctypes.c_int64 * count)(*sizes), count=count,
        beta1=betas[0], beta2=betas[1], rate=rate, epsilon=epsilon,
    )  # fmt: skip
    increment_version(weights)
