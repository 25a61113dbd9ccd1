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
_ZEROS = bytes(2**22)


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
        self.values = {name: _empty_like(value.detach(), self.folder).copy_(value) for name, value in values.items()}

    @contextmanager
    def in_place(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the context, the weights hold the mean, if there is one. They are swapped without a copy."""
        _exchange(weights, self.values)
        try:
            yield
        finally:
            _exchange(weights, self.values)


@torch.no_grad()
def _exchange(weights: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> None:
    for name, value in mean.items():
        weights[name].data, value.data = value.data, weights[name].data


def _empty_like(value: Tensor, folder: Path | None) -> Tensor:
    """A new tensor, on the CPU in a file of its own if it is large; safetensors writes no two tensors of one file."""
    size = value.numel() * value.element_size()
    if folder is None or not value.is_cpu or size < _MAPPED:
        return torch.empty_like(value)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # A disk that is full must say so here: in a file with holes, writing to memory would end the process.
            for start in range(0, size, len(_ZEROS)):
                file.write(_ZEROS[: size - start])
            file.flush()
            try:
                kind = torch.empty(0, dtype=value.dtype).numpy().dtype
                return torch.from_numpy(np.memmap(file, kind, "r+", shape=tuple(value.shape)))
            except OSError:  # a file system that cannot map files
                return torch.empty_like(value)
