"""Private copies of run folders. Weights and histories are memory-mapped from them, and several workers share one.

A mapped file that somebody overwrites in place would change the answers, or end the process; nobody writes to a copy.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from seqrec.errors import InputError
from seqrec.run.layout import CONFIG, DATA, EPOCHS, METRICS, TRAIN_WEIGHTS, TRANSITIONS, WEIGHTS

Result = TypeVar("Result")
Signature = tuple[tuple[int, int, int], ...]
_FILES = (CONFIG, WEIGHTS, TRAIN_WEIGHTS, TRANSITIONS, METRICS, EPOCHS)


def signature_of(folder: Path) -> Signature:
    """What tells whether a run folder changed: the inode, size and time of each file, in the same order."""
    data = folder / DATA
    try:
        names = sorted(os.listdir(data))
    except OSError:  # it is being replaced
        names = []
    return _signature([*(folder / name for name in _FILES), *(data / name for name in names)])


def signature_of_items(path: Path | None) -> Signature:
    """The same for a file of items, or a folder of such files; empty for None."""
    if path is None:
        return ()
    names = sorted(os.listdir(path)) if path.is_dir() else []
    return _signature([path, *(path / name for name in names)])


def _signature(paths: Iterable[Path]) -> Signature:
    found = []
    for path in paths:
        try:
            facts = os.stat(path)
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


class Snapshots:
    """Copies of runs in one folder, named by what was copied.

    Args:
        root: folder of the copies, which exists. The workers of a server have the same.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, folder: Path, name: str, signature: Signature) -> Path:
        """The copy of a run as it is now; made unless another worker has made it.

        Args:
            folder: run folder.
            name: name of the run.
            signature: result of :func:`signature_of`, from before.

        Raises:
            InputError: the folder can't be read, or the copy can't be written.
        """
        copy = self.root / f"{name}-{hashlib.sha256(repr(signature).encode()).hexdigest()[:16]}"
        if copy.exists():
            return copy
        partial = self.root / f".{copy.name}.{os.getpid()}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for one in _FILES:
                if (folder / one).exists():
                    shutil.copyfile(folder / one, partial / one)
            if (folder / DATA).is_dir():
                shutil.copytree(folder / DATA, partial / DATA)
            partial.rename(copy)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if copy.exists():  # another worker was faster
                return copy
            raise InputError(
                f"{folder}: can't be copied to {self.root} ({error.strerror or error}); check the folder, or name a "
                "folder with more space in TMPDIR"
            ) from error
        return copy

    def reading(self, folder: Path, copy: Path, read: Callable[[], Result]) -> Result:
        """Read a copy. An error names the folder that it was made of, and a copy that can't be used is removed."""
        try:
            return read()
        except InputError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise InputError(str(error).replace(str(copy), str(folder))) from error

    def forget(self, name: str, but: Path) -> None:
        """Remove the other copies of a run. Processes that have their files mapped keep them."""
        for copy in self.root.glob(f"{name}-" + "?" * 16):
            if copy != but:
                shutil.rmtree(copy, ignore_errors=True)
