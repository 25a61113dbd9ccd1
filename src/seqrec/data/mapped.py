"""Arrays that stay in their .npy files: mapped into memory, and compared with checksums where they are read."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.data.checked import size_of
from seqrec.errors import InputError, one_line

BLOCK = 2**18  # bytes per checksum: reading one history costs the check of a block or two, a quarter of a millisecond


class Mapped:
    """An array in a .npy file, of which nothing is read before it is asked for.

    A block of it is compared with its checksum before its first use, so damage is noticed where it would matter, and
    opening costs nothing. Checksums tell an accident, not a forgery: values must still be compared with their range.

    Args:
        path: the file.
        checksums: what :func:`checksums_of` gave when it was written.
        dtype: the type that it must have.
        rows: the length that it must have; None for any.
        advice: what to do about a damaged file.

    Raises:
        InputError: the file is missing, has another type or length, or its length is not what its header says.
    """

    def __init__(self, path: Path, checksums: str, dtype: Any, rows: int | None, advice: str) -> None:
        self.path, self.advice = path, advice
        size = size_of(path, advice)
        try:
            # Unlike np.load, open_memmap knows no pickles, and so never advises to trust one.
            array = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # the header is a piece of Python, of which its parser says anything
            raise self.damaged(one_line(error)) from error
        wanted = [len(array) if rows is None and array.ndim == 1 else rows]
        if array.dtype != dtype or list(array.shape) != wanted:
            raise self.damaged(f"it is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {wanted}")
        if size != array.offset + array.nbytes:
            raise self.damaged("its length is not what its header says")
        try:
            self._checksums = np.frombuffer(bytes.fromhex(checksums), dtype=">u4")
        except (ValueError, TypeError) as error:
            raise self.damaged("its checksums cannot be read") from error
        if len(self._checksums) != -(-array.nbytes // BLOCK):
            raise self.damaged("it has another number of checksums")
        self.array = array
        self._seen = np.zeros(len(self._checksums), dtype=bool)

    def check(self, starts: Any = None, ends: Any = None) -> None:
        """Compare what was not compared before; by default all of it.

        Args:
            starts: first row of each range that is to be read.
            ends: the row after its last.

        Raises:
            InputError: a block differs from its checksum, or a range leaves the array.
        """
        wanted = ~self._seen
        if starts is not None:
            starts, ends = np.atleast_1d(starts), np.atleast_1d(ends)
            if (starts < 0).any() or (ends < starts).any() or (ends > len(self.array)).any():
                raise self.damaged("what is read from it lies outside of it")
            some = ends > starts
            width = self.array.itemsize
            change = np.zeros(len(wanted) + 1, dtype=np.int64)
            np.add.at(change, starts[some] * width // BLOCK, 1)
            np.add.at(change, (ends[some] * width - 1) // BLOCK + 1, -1)
            wanted &= np.cumsum(change[:-1]) > 0
        content = bytes_of(self.array)
        for block in np.flatnonzero(wanted).tolist():
            if zlib.crc32(content[block * BLOCK : (block + 1) * BLOCK]) != self._checksums[block]:
                raise self.damaged("its checksum differs")
            self._seen[block] = True

    def damaged(self, why: str) -> InputError:
        """The one line for a file that is not what was written."""
        return InputError(f"{self.path}: is damaged ({why}); {self.advice}")


def write_array(path: Path, array: np.ndarray) -> str:
    """Write a .npy file; the checksums of its blocks."""
    array = np.ascontiguousarray(array)
    np.save(path, array)
    content = bytes_of(array)
    sums = [zlib.crc32(content[start : start + BLOCK]) for start in range(0, array.nbytes, BLOCK)]
    return np.array(sums, dtype=">u4").tobytes().hex()


def bytes_of(array: np.ndarray) -> memoryview:
    """The content of an array."""
    return np.ascontiguousarray(array).view(np.uint8).data
