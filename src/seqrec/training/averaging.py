"""The running mean of the weights over the ends of epochs (stochastic weight averaging's moving kind)."""

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
from seqrec.run.folder import Run, mean_part
from seqrec.run.tensors import check_finite, read_header

_BLOCK = 2**20  # numbers at once


class RunningMean:
    """Of an epoch's mean each epoch keeps a share, and takes the rest from its own weights.

    With a run the mean is in its folder and not in memory: it is looked at once an epoch, and may be as large as all
    that an optimizer needs of an embedding table. Without one it is in memory.

    Args:
        decay: the share that is kept; 0 for no mean.
        run: where it goes.
    """

    def __init__(self, decay: float, run: Run | None) -> None:
        self.decay, self.run = decay, run
        self._memory: dict[str, Tensor] | None = None

    def check(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Refuse to go on after an epoch whose mean is gone, of another run or model, or no numbers."""
        if not (self.decay and self.run is not None and epoch):
            return
        path = self.run.mean_path(epoch)
        if not path.exists():
            raise InputError(f"{path}: is missing; copy it back, or train again with --overwrite")
        header = read_header(path)
        header.check_mark(self.run.id, mean_part(epoch))
        header.check_shapes(weights)
        with _damaged(path), path.open("rb") as file:
            places = _places(file)
            for name, value in weights.items():
                file.seek(places[name])
                for block in _blocks({name: value}):
                    check_finite(path, [(name, _read(file, block, path))])

    @contextmanager
    def in_place(self, weights: Mapping[str, Tensor], epoch: int) -> Iterator[None]:
        """Take up the weights of an epoch, from 1; while within, the mean stands in their place.

        Args:
            weights: contiguous tensors, whose content changes while within.
            epoch: the one that ended; the run has the mean of the one before.
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
        with _aside(run.mean_path(epoch).parent) as aside:
            with _of_the_disk(run.folder):
                for block in _blocks(weights):
                    block.cpu().numpy().tofile(aside)
            if before is not None:
                self._mix(before, weights)
            run.save_mean(weights, epoch)
            try:
                yield
            finally:
                aside.seek(0)
                for block in _blocks(weights):
                    block.copy_(_read(aside, block, run.folder))

    def _mix(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Put the mean of the weights and of what a file has in their place."""
        with _damaged(path), path.open("rb") as file:
            places = _places(file)
            for name, value in weights.items():
                file.seek(places[name])
                for block in _blocks({name: value}):
                    block.copy_(_read(file, block, path).lerp_(block, 1 - self.decay))


def _exchange(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Swap tensors without a copy: they may be most of the memory."""
    for name, value in some.items():
        value.data, others[name].data = others[name].data, value.data


def _blocks(weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for value in weights.values():
        yield from value.detach().view(-1).split(_BLOCK)


def _places(file: IO[bytes]) -> dict[str, int]:
    """Where each tensor of a safetensors file begins. Read in blocks, as a mapped file would count as memory."""
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
def _aside(folder: Path) -> Iterator[IO[bytes]]:
    """A file without a name, gone with the process."""
    with _of_the_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    with file:
        yield file


@contextmanager
def _of_the_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, folder) from error
