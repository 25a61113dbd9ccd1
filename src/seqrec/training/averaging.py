"""The running average of the weights, updated once per epoch (an exponential moving average)."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.files import explain_os_error
from seqrec.run.folder import Run
from seqrec.run.tensors import check_finite, read_header

_BLOCK = 2**20  # numbers per block


class RunningMean:
    """An exponential moving average of the weights: ``mean = decay * mean + (1 - decay) * weights`` per epoch.

    With a run folder the mean is on disk instead of in memory, because it is as large as the weights and is read only
    once per epoch.

    Args:
        decay: weight of the old mean; 0 turns averaging off.
        run: run folder that holds the mean. By default it is in memory.
    """

    def __init__(self, decay: float, run: Run | None) -> None:
        self.decay, self.run = decay, run
        self._memory: dict[str, Tensor] | None = None

    def check(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Raise an InputError if the mean of an epoch is missing or damaged, or belongs to another run or model."""
        if not (self.decay and self.run is not None and epoch):
            return
        path = self.run.mean_path(epoch)
        if not path.exists():
            raise InputError(f"{path}: is missing; copy it back, or train again with --overwrite")
        header = read_header(path)
        header.check_mark(self.run.id, self.run.mean_part(epoch))
        header.check_shapes(weights)
        with _damaged(path), path.open("rb") as file:
            places = _places(file)
            for name, value in weights.items():
                file.seek(places[name])
                for block in _blocks({name: value}):
                    check_finite(path, [(name, _read(file, block, path))])

    @contextmanager
    def in_place(self, weights: Mapping[str, Tensor], epoch: int) -> Iterator[None]:
        """Update the mean with the weights of an epoch. Inside the context, the weights hold the mean.

        Args:
            weights: contiguous tensors by name. The context replaces their content and restores it at its end.
            epoch: number of the epoch that ended, from 1. The run has the mean of the epoch before.
        """
        if not self.decay:
            yield
        elif self.run is None:
            with self._in_memory(weights):
                yield
        else:
            with self._in_folder(self.run, weights, epoch):
                yield

    @contextmanager
    def _in_memory(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        if self._memory is None:
            self._memory = {name: value.detach().clone() for name, value in weights.items()}
        mean = self._memory
        for name, value in weights.items():
            mean[name].lerp_(value.detach(), 1 - self.decay)
        _exchange(weights, mean)
        try:
            yield
        finally:
            _exchange(weights, mean)

    @contextmanager
    def _in_folder(self, run: Run, weights: Mapping[str, Tensor], epoch: int) -> Iterator[None]:
        run.check_there()
        before = run.mean_path(epoch - 1) if epoch > 1 else None
        with _temporary_file(run.mean_path(epoch).parent) as file:
            with _disk_errors(run.folder):
                for block in _blocks(weights):
                    block.cpu().numpy().tofile(file)
            if before is not None:
                self._mix(before, weights)
            run.save_mean(weights, epoch)
            try:
                yield
            finally:
                file.seek(0)
                for block in _blocks(weights):
                    block.copy_(_read(file, block, run.folder))

    def _mix(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights by the new mean, computed from the old mean in a file."""
        with _damaged(path), path.open("rb") as file:
            places = _places(file)
            for name, value in weights.items():
                file.seek(places[name])
                for block in _blocks({name: value}):
                    block.copy_(_read(file, block, path).lerp_(block, 1 - self.decay))


def _exchange(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Swap tensors without copying them, because they may fill most of the memory."""
    for name, value in some.items():
        value.data, others[name].data = others[name].data, value.data


def _blocks(weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for value in weights.values():
        yield from value.detach().view(-1).split(_BLOCK)


def _places(file: IO[bytes]) -> dict[str, int]:
    """The offset of each tensor in a safetensors file, to read it in blocks: a mapped file would count as memory."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(min(size, 2**24)))
    return {name: 8 + size + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"}


def _read(file: IO[bytes], like: Tensor, path: Path) -> Tensor:
    kind = torch.empty(0, dtype=like.dtype).numpy().dtype
    numbers = np.fromfile(file, kind, like.numel())
    if len(numbers) != like.numel():
        raise InputError(f"{path}: is cut off; train again with --overwrite")
    return torch.from_numpy(numbers).to(like.device)


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is damaged or missing; train again with --overwrite") from error


@contextmanager
def _temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """A temporary file without a name."""
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    with file:
        yield file


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, folder) from error
