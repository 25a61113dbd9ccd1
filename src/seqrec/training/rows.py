"""Embedding tables with Adam's moments, and their gradients by row."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec import kernels


class Table:
    """A table, or the rows of one that is ``divided``, and its moments.

    ``last``, ``int32[rows]``, is the step that each row has reached.
    """

    def __init__(self, weight: Tensor, divided: bool = False) -> None:
        self.weight, self.divided = weight, divided
        self.first = torch.zeros_like(weight.data)
        self.second = torch.zeros_like(weight.data)
        self.last = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        self.summed: Summed | None = None
        self._slots: Tensor | None = None

    @property
    def compiled(self) -> bool:
        """Whether the compiled loops can be used."""
        return kernels.usable(self.weight) and self.weight.is_contiguous()

    def blocks(self, size: int = 65536) -> Iterator[Tensor]:
        """All row numbers, in blocks."""
        for start in range(0, len(self.weight), size):
            yield torch.arange(start, min(start + size, len(self.weight)), device=self.weight.device)

    @property
    def slots(self) -> Tensor:
        """Memory that ``kernels.adam_step`` reuses at every step."""
        if self._slots is None:
            self._slots = torch.full((len(self.weight),), -1, dtype=torch.int32)
        return self._slots

    def parts(self) -> tuple[Tensor, Tensor]:
        """Row numbers, possibly repeated, and the gradient of each."""
        if self.summed is not None:
            return self.summed.by_row()
        assert self.weight.grad is not None
        return self.weight.grad._indices()[0], self.weight.grad._values()

    def exchanged(self) -> tuple[Tensor, Tensor]:
        """Row numbers and the gradient of each, for other processes. On a CPU the rows are distinct."""
        if self.weight.grad is None:
            return self.last.new_empty(0, dtype=torch.int64), self.weight.new_empty(0, self.weight.shape[1])
        if self.compiled:
            return kernels.adam_sum(*self.parts(), self.slots)
        return self.gradient().by_row() if self.weight.device.type == "cpu" else self.parts()

    def gradient(self) -> "Summed":
        """The gradient, summed by row."""
        if self.summed is None:
            assert self.weight.grad is not None
            self.summed = summed_by_row(self.weight.grad, self.weight.device)
        return self.summed


class Summed(NamedTuple):
    """A sparse gradient of n rows, summed by row.

    ``rows int64[n]``, ``sums [n, D]`` with the sum of each distinct row once and zeros elsewhere, and ``places
    int64[n]``, the place in ``sums`` of each row; None if the rows are distinct and in the order of ``sums``.
    """

    rows: Tensor
    sums: Tensor
    places: Tensor | None = None

    def by_row(self) -> tuple[Tensor, Tensor]:
        """The rows and the sum of each. Repeated rows have equal sums."""
        return self.rows, self.sums if self.places is None else self.sums.index_select(0, self.places)


def summed_by_row(gradient: Tensor, device: torch.device) -> Summed:
    """Sum a sparse gradient by row.

    On the CPU, rows become distinct. On a GPU they stay as many as they are, because the host would have to wait for
    the number of distinct ones, as in ``coalesce``.
    """
    if device.type == "cpu":
        gradient = gradient.coalesce()
        return Summed(gradient.indices()[0], gradient.values())
    values = gradient._values()
    rows, order = gradient._indices()[0].sort()
    new = torch.ones_like(rows)
    new[1:] = rows[1:] != rows[:-1]
    places = new.cumsum(0) - 1
    return Summed(rows, torch.zeros_like(values).index_add_(0, places, values.index_select(0, order)), places)
