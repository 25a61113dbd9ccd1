"""The running average of the weights, updated once per epoch (an exponential moving average)."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqrec.files import explained

_MAPPED = 2**20  # bytes from which on a tensor is mapped


class RunningMean:
    """An exponential moving average of the weights: ``mean = decay * mean + (1 - decay) * weights`` per epoch.

    It is as large as the weights. On the CPU, its large tensors are memory-mapped from files without a name, if there
    is a folder for these, so that the system can reclaim their memory.

    Args:
        decay: weight of the old mean; 0 turns averaging off.
        folder: folder for the files. By default the mean is in memory.
    """

    def __init__(self, decay: float, folder: Path | None) -> None:
        self.decay, self.folder = decay, folder
        self.values: dict[str, Tensor] = {}  # by name; empty before the end of the first epoch

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Update the mean with the weights at the end of an epoch; the first mean is a copy of them."""
        if not self.decay:
            return
        if not self.values:
            self.load(weights)
            return
        for name, value in weights.items():
            self.values[name].lerp_(value.detach(), 1 - self.decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copy a mean."""
        self.values = copied(values, self.folder)

    @contextmanager
    def in_place(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the context, the weights hold the mean, if there is one. They are swapped without a copy."""
        with exchanged(weights, self.values):
            yield


@contextmanager
def exchanged(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the context, the weights hold what the others held, and the other way round; nothing is copied."""
    _exchange(weights, others)
    try:
        yield
    finally:
        _exchange(weights, others)


def copied(values: Mapping[str, Tensor], folder: Path | None) -> dict[str, Tensor]:
    """A copy of tensors. On the CPU, large ones are mapped from files without a name in the folder, if it is given."""
    return {name: _copy(value.detach(), folder) for name, value in values.items()}


@torch.no_grad()
def _exchange(weights: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> None:
    for name, value in mean.items():
        weights[name].data, value.data = value.data, weights[name].data


def _copy(value: Tensor, folder: Path | None) -> Tensor:
    """A copy, on the CPU in a file of its own if it is large; safetensors writes no two tensors of one file."""
    if folder is None or not value.is_cpu or value.numel() * value.element_size() < _MAPPED:
        return value.clone()
    content = value.contiguous().numpy()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # A disk that is full must say so here: in a file with holes, writing to memory would end the process.
            file.write(content.data)
            file.flush()
            try:
                return torch.from_numpy(np.memmap(file, content.dtype, "r+", shape=content.shape))
            except OSError:  # a file system that cannot map files
                return value.clone()
