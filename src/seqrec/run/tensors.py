"""The safetensors files of a run. Each names its run and its part of the run, and is checked before use."""

import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqrec.data.checked import parse_json, size_of
from seqrec.errors import InputError, one_line
from seqrec.files import replacing

_MARK = "run"  # the only key of the metadata, because safetensors writes several in arbitrary order
_ADVICE = "copy it back or train again"
#: Types in the order in which safetensors puts tensors into a file.
_DTYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
           torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
           torch.bool: "BOOL"}  # fmt: skip
_NAMES = {short: str(dtype) for dtype, short in _DTYPES.items()}
_BLOCK = 2**22  # numbers checked at once
_PART = 2**26  # bytes written at once


@dataclass(frozen=True)
class Header:
    """The header of a file: the type and shape of each tensor by name, and the metadata."""

    path: Path
    names: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]

    def check_mark(self, run: str, *parts: str) -> dict[str, object]:
        """Refuse a file that belongs to another run, or to none of these parts of this run. Returns the mark."""
        if _MARK not in self.metadata:
            raise InputError(
                f"{self.path}: does not say which run it belongs to (an earlier seqrec or another program wrote it); "
                "copy back the one that seqrec fit wrote, or train again"
            )
        try:
            mark = parse_json(self.metadata[_MARK])
            known = (mark["id"], mark["part"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{self.path}: is damaged (its mark can't be read); {_ADVICE}") from error
        if known[0] != run:
            raise InputError(
                f"{self.path}: belongs to another run (of another log or with other options) than the config.json in "
                "the folder; copy the whole folder again, or train again"
            )
        if known[1] not in parts:
            raise InputError(
                f"{self.path}: is not the {parts[0]} of this run but its {str(known[1])[:40]!r}; copy the whole folder "
                "again, or train again"
            )
        return dict(mark)

    def check_shapes(self, expected: Mapping[str, Tensor], free: Collection[str] = ()) -> None:
        """Refuse tensors whose names, types or shapes are not the expected ones.

        Args:
            expected: tensors by name; their content does not matter.
            free: names of arrays whose length depends on the log.
        """
        for name in sorted(set(expected) | set(self.names)):
            if name not in self.names:
                raise InputError(f"{self.path}: weight {name} is missing; the file is of another model, train again")
            if name not in expected:
                raise InputError(f"{self.path}: weight {name[:80]!r} is unknown to the model; train again")
            dtype, shape = self.names[name]
            like = expected[name]
            same = len(shape) == like.dim() if name in free else shape == tuple(like.shape)
            if dtype != _DTYPES.get(like.dtype) or not same:
                raise InputError(
                    f"{self.path}: weight {name} is {_NAMES.get(dtype, dtype)} {list(shape)}, but the model has "
                    f"{like.dtype} {list(like.shape)}; the file is of another model, train again"
                )


def mark_of(run: str, part: str, tensors: Mapping[str, Tensor] | None = None, **facts: object) -> dict[str, str]:
    """Metadata that names the run and the part that a file belongs to, with the checksum of ``tensors`` if given."""
    mark: dict[str, object] = {"id": run, "part": part, **facts}
    if tensors is not None:
        mark["crc32"] = checksum(tensors)
    return {_MARK: json.dumps(mark)}


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> int:
    """CRC-32 of a text and the tensors' names and content. It detects accidental damage, not forgery."""
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), value))
    return value


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Replace a file of tensors, completely or not at all."""
    with replacing(path) as new:
        write_tensors(new, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata, byte for byte as safetensors does, but in parts that do not stay in memory.

    Otherwise, the system would first look for as much free memory as the file is large, which can take longer than
    writing it to the disk.
    """
    order = [*_DTYPES]
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    about = {"__metadata__": metadata} if metadata else {}
    about |= _laid_out({name: (tensors[name].dtype, tensors[name].shape) for name in names})
    header = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            _write(file, _bytes(tensors[name]))


def _laid_out(shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> dict[str, Any]:
    """What the header of a file says of tensors that lie in it one after another."""
    offset, about = 0, {}
    for name, (dtype, shape) in shapes.items():
        size = dtype.itemsize * math.prod(shape)
        about[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    return about


def _write(file: BinaryIO, numbers: Any) -> None:
    """Write bytes; of many, those that are on the disk leave memory."""
    content = memoryview(numbers)
    for start in range(0, len(content), _PART):
        file.write(content[start : start + _PART])
        if len(content) - start >= _PART and hasattr(os, "posix_fadvise"):
            file.flush()
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes(tensor: Tensor) -> Any:
    """The content of a tensor as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if len(flat) else b""  # a counted model may have empty tensors


def write_in_blocks(
    path: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], content: Callable[[str], Iterable[Tensor]],
    run: str, part: str,
) -> None:  # fmt: skip
    """The same file as :func:`write_tensors` with a checksum writes, for tensors that are not in memory at once.

    Args:
        path: file to write.
        shapes: type and shape of each tensor by name.
        content: function that yields the numbers of a tensor, in order, in blocks. It is called once per tensor, in the
            order of the names.
        run: id of the run.
        part: part of the run.
    """
    about = _laid_out({name: shapes[name] for name in sorted(shapes)})

    def header(value: int) -> bytes:
        metadata = {_MARK: json.dumps({"id": run, "part": part, "crc32": value})}
        return json.dumps({"__metadata__": metadata, **about}).encode()

    room = -(-len(header(2**32 - 1)) // 8) * 8  # the checksum is known at the end; spaces fill what it leaves
    value = 0
    with path.open("wb") as file:
        file.write(room.to_bytes(8, "little") + b" " * room)
        for name in sorted(shapes):
            value = zlib.crc32(name.encode(), value)
            for block in content(name):
                numbers = _bytes(block)
                value = zlib.crc32(numbers, value)
                _write(file, numbers)
        file.seek(8)
        file.write(header(value).ljust(room))


def read_header(path: Path) -> Header:
    """Read the header of a file. safetensors checks it against the length of the file."""
    size_of(path, _ADVICE)
    try:
        with safe_open(path, framework="pt") as file:
            names = {}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                names[name] = part.get_dtype(), tuple(part.get_shape())
            return Header(path, names, file.metadata() or {})
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); {_ADVICE}") from error


def load_tensors(header: Header) -> dict[str, Tensor]:
    """The tensors, memory-mapped, so that the system can reclaim their memory."""
    try:
        with safe_open(header.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in header.names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{header.path}: is damaged ({one_line(error)}); {_ADVICE}") from error


def check_finite(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse NaN and infinity in tensors from a file."""
    for name, tensor in tensors:
        if tensor.is_floating_point():
            for block in tensor.detach().reshape(-1).split(_BLOCK):
                low, high = block.aminmax() if len(block) else (block.sum(), block.sum())
                if not (torch.isfinite(low) and torch.isfinite(high)):
                    raise InputError(
                        f"{path}: {name} holds values that are not numbers (NaN or infinity); the file is damaged or "
                        "its training diverged, copy it back or train again"
                    )
