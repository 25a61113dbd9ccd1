"""Arrays memory-mapped from .npy files; the parts that are read are compared with checksums."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from seqrec.data.checked import size_of
from seqrec.errors import InputError, one_line

BLOCK = 2**18  # bytes per checksum; reading one history costs the check of a block or two, about 0.25 ms


class Mapped:
    """An array in a .npy file, read only as needed.

    Before a block is used for the first time, :meth:`check` compares it with its checksum, so opening costs nothing.
    Checksums detect accidents, not forgeries: the range of the values must be checked as well.

    Args:
        path: file to map.
        checksums: checksums that :func:`write_array` returned.
        dtype: expected type.
        rows: expected length; None for any.
        advice: advice in the error about a damaged file.

    Raises:
        InputError: the file is missing, has another type or length, or its size does not match its header.
    """

    def __init__(self, path: Path, checksums: str, dtype: Any, rows: int | None, advice: str) -> None:
        self.path, self.advice = path, advice
        size = size_of(path, advice)
        try:
            # Unlike np.load, open_memmap does not support pickles, so its errors never advise to allow them.
            array = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # the header is a Python literal, and parsing it may raise anything
            raise self.damaged(one_line(error)) from error
        wanted = [len(array) if rows is None and array.ndim == 1 else rows]
        if array.dtype != dtype or list(array.shape) != wanted:
            raise self.damaged(f"it is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {wanted}")
        if size != array.offset + array.nbytes:
            raise self.damaged("its length does not match its header")
        try:
            self._checksums = np.frombuffer(bytes.fromhex(checksums), dtype=">u4")
        except (ValueError, TypeError) as error:
            raise self.damaged("its checksums cannot be read") from error
        if len(self._checksums) != -(-array.nbytes // BLOCK):
            raise self.damaged("its number of checksums is wrong")
        self.array = array
        self._seen = np.zeros(len(self._checksums), dtype=bool)

    def check(self, starts: Any = None, ends: Any = None) -> None:
        """Compare blocks with their checksums, each block only once.

        Args:
            starts: first row of each range to be read; None checks the whole array.
            ends: row after the last one of each range.

        Raises:
            InputError: a block differs from its checksum, or a range is outside of the array.
        """
        wanted = ~self._seen
        if starts is not None:
            starts, ends = np.atleast_1d(starts), np.atleast_1d(ends)
            if (starts < 0).any() or (ends < starts).any() or (ends > len(self.array)).any():
                raise self.damaged("a part to be read lies outside of the array")
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
        """The error for a file that differs from the one that was written."""
        return InputError(f"{self.path}: is damaged ({why}); {self.advice}")


def write_array(path: Path, array: np.ndarray) -> str:
    """Write a .npy file, and return the checksums of its blocks, eight hexadecimal digits each."""
    array = np.ascontiguousarray(array)
    content = bytes_of(array)
    with path.open("wb") as file:  # np.save would ignore that the end of a small array does not fit on the disk
        _write_header(file, array.dtype, array.shape)
        file.write(content)
    sums = [zlib.crc32(content[start : start + BLOCK]) for start in range(0, array.nbytes, BLOCK)]
    return hexadecimal(sums)


def hexadecimal(sums: Iterable[int]) -> str:
    """Checksums of blocks in the form that dataset.json has them."""
    return np.array(list(sums), dtype=">u4").tobytes().hex()


def make_array(path: Path, dtype: Any, rows: int) -> None:
    """Create a .npy file of zeros, for :func:`write_rows`."""
    with path.open("wb") as file:
        _write_header(file, np.dtype(dtype), (rows,))
        file.truncate(file.tell() + rows * np.dtype(dtype).itemsize)


def write_rows(path: Path, first: int, array: np.ndarray) -> dict[int, int]:
    """Write some rows of a file that :func:`make_array` created; processes may write different rows at once.

    Returns:
        The checksums of the blocks that lie wholly in these rows, by number.
    """
    array = np.ascontiguousarray(array)
    content, start = bytes_of(array), first * array.itemsize
    with path.open("r+b") as file:
        file.seek(_begin_of(path) + start)
        file.write(content)
    blocks = range(-(-start // BLOCK), (start + array.nbytes) // BLOCK)
    return {block: zlib.crc32(content[block * BLOCK - start : (block + 1) * BLOCK - start]) for block in blocks}


def checksums_of(path: Path, known: Mapping[int, int]) -> str:
    """The checksums of a file, of which some are known; the other blocks are read."""
    begin = _begin_of(path)
    blocks = -(-(path.stat().st_size - begin) // BLOCK)
    with path.open("rb") as file:
        return hexadecimal(
            known[block] if block in known else zlib.crc32(_block_of(file, begin, block)) for block in range(blocks)
        )


def pieces_of(path: Path) -> Iterator[bytes]:
    """The content of the array in a .npy file, in pieces."""
    with path.open("rb") as file:
        file.seek(_begin_of(path))
        while piece := file.read(16 * BLOCK):
            yield piece


def _block_of(file: IO[bytes], begin: int, block: int) -> bytes:
    file.seek(begin + block * BLOCK)
    return file.read(BLOCK)


def _write_header(file: IO[bytes], dtype: Any, shape: tuple[int, ...]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


def _begin_of(path: Path) -> int:
    """Where the array in a .npy file begins."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


def bytes_of(array: np.ndarray) -> memoryview:
    """The content of an array."""
    return np.ascontiguousarray(array).view(np.uint8).data
