"""Adam's loops; see ``adam.cpp``, and :class:`seqrec.training.optim.RowAdam` for what they compute."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from seqrec.kernels.arrays import Loop, Remembered, integers

_RATES = "beta1: float64", "beta2: float64", "rate: float64", "epsilon: float64"
_DRIFTS = "steps: float64[S, 2]", "missed: float64[M, 4]", "M"
_TABLE = "weight: float32[R, D]", "first: float32[R, D]", "second: float32[R, D]", "last: int32[R]"
# Row numbers outside the table are skipped here: the look-up that follows raises the error.
_CATCH_UP = Loop("adam_catch_up", "rows: int64[N]", "N", "R", "step: int64 below S", "D", *_RATES, *_DRIFTS, *_TABLE)
_STEP = Loop(
    "adam_step", "rows: int64[N] below R", "gradients: float32[N, D]", "N", "step: int64 below S", "D", *_RATES,
    *_DRIFTS, *_TABLE, "slots: int32[R]", "summed: float32[N, D]", "touched: int64[N]",
)  # fmt: skip
_SUM = Loop(
    "adam_sum", "rows: int64[N] below R", "gradients: float32[N, D]", "N", "D", "slots: int32[R]",
    "summed: float32[N, D]", "touched: int64[N]",
)  # fmt: skip
_DENSE = Loop(
    "adam_dense", "weights: addresses", "gradients: addresses", "firsts: addresses", "seconds: addresses",
    "counts: addresses", "sizes: addresses", "count: int64", *_RATES,
)  # fmt: skip


class Drifts(NamedTuple):
    """Tables for the updates that a row missed in steps without a gradient; see ``RowAdam``."""

    steps: Tensor  # float64[S, 2], by step: the drift from this step on, and beta2 to the power of the step
    # float64[M, 4], by number of missed steps: that power of beta1 / sqrt(beta2), of beta1 and of beta2, and beta2 to
    # the power of the drift's mean step
    missed: Tensor


def adam_catch_up(
    rows: Tensor, step: int, betas: tuple[float, float], rate: float, epsilon: float, drifts: Drifts,
    weight: Tensor, first: Tensor, second: Tensor, last: Tensor,
) -> None:  # fmt: skip
    """Apply to rows of a table the updates that they missed up to ``step``.

    See :class:`seqrec.training.optim.RowAdam`.
    """
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
    """Bring rows up to the step before, then take ``step`` (from 1) with the sum of each row's gradients.

    ``rows int64[N]`` may repeat; ``gradients`` are ``float32[N, D]``. ``slots int32[R]`` is working memory, one per
    table of R rows, reused at every step and initially -1.
    """
    if step < 1:
        raise ValueError(f"step is {step}; give 1 or more")
    rows, gradients = integers(rows), gradients.contiguous()
    _STEP(
        rows=rows, gradients=gradients, step=step, beta1=betas[0], beta2=betas[1], rate=rate, epsilon=epsilon,
        steps=drifts.steps, missed=drifts.missed, weight=weight, first=first, second=second, last=last, slots=slots,
        summed=torch.empty_like(gradients), touched=torch.empty_like(rows),
    )  # fmt: skip
    increment_version(weight)


def adam_sum(rows: Tensor, gradients: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows in the order of their first appearance, ``int64[U]``, and the sum of each one's gradients.

    ``rows int64[N]``, ``gradients float32[N, D]``, and ``slots`` as for :func:`adam_step`.
    """
    rows, gradients = integers(rows), gradients.contiguous()
    summed, touched = torch.empty_like(gradients), torch.empty_like(rows)
    found = _SUM(rows=rows, gradients=gradients, slots=slots, summed=summed, touched=touched)
    return touched[:found], summed[:found]


def adam_dense(
    weights: list[Tensor], gradients: list[Tensor], firsts: list[Tensor], seconds: list[Tensor], steps: list[Tensor],
    betas: tuple[float, float], rate: float, epsilon: float, known: Remembered | None = None,
) -> None:  # fmt: skip
    """Take one step of Adam on dense, contiguous tensors. Each counter in ``steps``, ``float32``, goes up by one.

    With ``known``, tensors that it remembers from the last step are not checked again.
    """
    find = (known or Remembered()).addresses
    gradients = [gradient.contiguous() for gradient in gradients]
    sizes = [weight.numel() for weight in weights]
    count = len(sizes)
    _DENSE(
        weights=find("weights", weights, sizes), gradients=find("gradients", gradients, sizes),
        firsts=find("firsts", firsts, sizes), seconds=find("seconds", seconds, sizes),
        counts=find("counts", steps, [1] * count), sizes=(ctypes.c_int64 * count)(*sizes), count=count,
        beta1=betas[0], beta2=betas[1], rate=rate, epsilon=epsilon,
    )  # fmt: skip
    increment_version(weights)
