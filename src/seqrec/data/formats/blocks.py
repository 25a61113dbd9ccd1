"""Reads the bytes of a text file: unzipped, in blocks that can be parsed independently, or line by line."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from seqrec.data.formats.kinds import check_kind
from seqrec.errors import InputError

SAMPLE_BYTES, SAMPLE_ROWS = 1 << 16, 1000
LONG_LINES = 10  # lines that are enough for a sample if they exceed SAMPLE_BYTES
#: Byte order marks; UTF-32 comes first, because its mark begins like that of UTF-16.
_ENCODINGS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_TWO_ENDS = 0x0A0A  # two line feeds, in either order of bytes
BLOCK_BYTES = 1 << 23  # parsed at once; larger blocks are not faster


class Source(NamedTuple):
    """A file that is read several times, in pieces."""

    path: Path
    content: bytes | None  # of small files, pipes (which can be read only once) and translated text; else None
    is_plain: bool = False  # the content is UTF-8 text, unzipped
    skipped: int = 0  # lines at the top that are not part of the log; read as blank lines


class Unsafe(Exception):
    """A block whose meaning may depend on the rest of the file, or that polars cannot read."""


def expanded(path: Path) -> tuple[Path, bool]:
    """The path with ``~`` replaced by the home folder, and whether it is a folder.

    Raises:
        InputError: there is no such user, or the path may not be read.
    """
    try:
        path = path.expanduser()
        return path, path.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user
        raise unreadable(path, error) from None


def open_source(path: Path, array: bool = False) -> Source:
    """Open a file for reading. ``array`` allows a JSON array.

    Raises:
        InputError: the file cannot be opened, or has a type that is not supported.
    """
    try:
        if path.is_char_device() or path.is_block_device():  # such as /dev/zero, which has no end
            raise InputError(f"{path}: is a device, not a file; give a file or a folder of Parquet parts")
        large = path.is_file() and path.stat().st_size > BLOCK_BYTES
        source = Source(path, None if large else path.read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise unreadable(path, error) from None
    with _open_raw(source) as file:
        head = file.read(SAMPLE_BYTES)
    if head.startswith(b"\x1f\x8b"):
        head = next(read_pieces(source, SAMPLE_BYTES), b"")
    if not (array and re.match(rb"(\xef\xbb\xbf)?\s*\[", head)):
        check_kind(path, head)
    return source if head.startswith(b"PAR1") else _translated(source, head)


def _translated(source: Source, head: bytes) -> Source:
    """The file as UTF-8 text whose lines end with line feeds; most files need no translation."""
    for mark, encoding in _ENCODINGS.items():
        if head.startswith(mark):
            raw = read_whole(source)
            try:
                text = raw.decode(encoding).removeprefix("\ufeff").encode()
            except UnicodeDecodeError as error:
                line = raw[: error.start].decode(encoding, errors="replace").count("\n") + 1
                reason = f"is not {encoding.upper()} text, although its first bytes say so"
                raise InputError(f"{source.path}, line {line}: {reason}; save the file as UTF-8") from None
            check_kind(source.path, text)
            return _translated(Source(source.path, text, is_plain=True), text[:SAMPLE_BYTES])
    ends = head.count(b"\n")
    if ends == 0 and not any(b"\n" in piece for piece in read_pieces(source, SAMPLE_BYTES)):
        text = read_whole(source)  # from an old Mac, where lines end with a carriage return
        return Source(source.path, _ended(rb"\r", text), is_plain=True) if b"\r" in text else source
    if ends and head.count(b"\r\r\n") == ends:  # LF was converted to CRLF twice
        return Source(source.path, _ended(rb"\r+\n", read_whole(source)), is_plain=True)
    return source


def _ended(ends: bytes, text: bytes) -> bytes:
    """The text with its line ends replaced by line feeds, except inside of quotation marks."""
    return re.sub(rb'"[^"]*"|' + ends, lambda found: found[0] if found[0].startswith(b'"') else b"\n", text)


def read_whole(source: Source) -> bytes:
    """The content of the file, unzipped and without a byte order mark."""
    return b"".join(read_pieces(source, BLOCK_BYTES))


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be opened or read."""
    reason = getattr(error, "strerror", None) or f"damaged or cut-off gzip file ({short(error)})"
    if isinstance(error, RuntimeError):
        reason = short(error)
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        reason = f"is not a path ({short(error)})"
    return InputError(f"{path}: {reason}; check the path and its permissions, or copy it again")


def _open(source: Source) -> IO[bytes]:
    """Open a file, unzipped."""
    if is_zipped(source):
        return cast(IO[bytes], gzip.open(source.path if source.content is None else io.BytesIO(source.content)))
    return _open_raw(source)


def _open_raw(source: Source) -> IO[bytes]:
    return source.path.open("rb") if source.content is None else io.BytesIO(source.content)


def is_zipped(source: Source) -> bool:
    """Whether the file is gzipped; raises if only its name says so, unless it is Parquet (compressed inside)."""
    if source.is_plain:
        return False
    with _open_raw(source) as file:
        magic = file.read(4)
    if magic and not magic.startswith((b"\x1f\x8b", b"PAR1")) and source.path.name.lower().endswith(".gz"):
        raise InputError(f"{source.path}: is named .gz but is not gzipped; rename it, or write it again")
    return magic.startswith(b"\x1f\x8b")


def read_pieces(source: Source, size: int) -> Iterator[bytes]:
    """Read the file in pieces of about this size, without a byte order mark."""
    try:
        with _open(source) as stream:
            left = source.skipped
            piece = stream.read(max(size, 4))
            rest = piece.removeprefix(b"\xef\xbb\xbf")
            while piece:
                while left and (end := rest.find(b"\n") + 1):
                    rest, left = rest[end:], left - 1
                if not left:
                    yield rest
                rest = piece = stream.read(size)
    except (EOFError, zlib.error, OSError) as error:
        raise unreadable(source.path, error) from None


def read_lines(source: Source, quoted: bool) -> Iterator[str]:
    """Read decoded lines with their ends; if fields are quoted, a carriage return also ends a line."""
    newline, left = "" if quoted else "\n", source.skipped
    with io.TextIOWrapper(_open(source), "utf-8-sig", errors="replace", newline=newline) as stream:
        for line in stream:
            yield "\n" if left else line
            left -= bool(left) and line.endswith("\n")


def read_checked(source: Source) -> Iterator[bytes]:
    """Read the file in pieces; raises if it is not text."""
    for piece in read_pieces(source, BLOCK_BYTES):
        if b"\0" in piece:
            raise InputError(f"{source.path}: is binary or UTF-16; give UTF-8 text or Parquet")
        yield piece


def read_sample(source: Source) -> list[str]:
    """First lines of the file, without blank lines; raises for an empty file."""
    pieces: list[bytes] = []
    size = ends = first = 0
    for piece in read_pieces(source, SAMPLE_BYTES):
        if not pieces:
            if not piece.strip():
                continue
            piece = piece.lstrip(b"\r\n")
            first = len(piece) if b"\n" in piece.strip() else 0  # a file with short lines needs no more
        pieces.append(piece)
        size += len(piece)
        ends += piece.count(b"\n")  # counted per piece: a line may be as long as the file
        if size > SAMPLE_BYTES and (first or ends > LONG_LINES):
            break
    if not pieces:
        raise InputError(f"{source.path}: is empty; give a log with interactions")
    head = b"".join(pieces)
    cut = head.rfind(b"\n", 0, first or size) + 1 if size > SAMPLE_BYTES else 0  # the last line may be cut
    found = head[: cut or None].decode(errors="replace").split("\n")
    return [line.removesuffix("\r") for line in found if line.strip()][:SAMPLE_ROWS]


def read_blocks(source: Source, quoted: bool, by_block: bool) -> Iterator[bytes]:
    """Read the text, stripped, in blocks that end with a line; without ``by_block``, as a single block."""
    if not by_block:
        yield b"".join(read_checked(source)).strip(b"\r\n ")
        return
    rest = b""
    for piece in read_checked(source):
        # Each block is followed by text that is not blank, so that blank lines at the end are recognised. It is
        # followed by at least two lines, because polars treats a single line differently.
        cut = rest.rfind(b"\n", 0, len(rest.rstrip(b"\r\n "))) + 1
        cut = rest.rfind(b"\n", 0, cut - 1) + 1 if cut else 0
        cut = _unquoted_cut(rest, cut) if quoted and cut else cut
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
        rest = rest + piece if rest else piece.lstrip(b"\r\n ")
    if rest:
        yield rest.rstrip(b"\r\n ")


def _unquoted_cut(text: bytes, cut: int) -> int:
    """Last line end up to ``cut`` that is outside of quotation marks; 0 if there is none nearby."""
    if b'"' not in text:  # much faster than counting
        return cut
    quotes = text.count(b'"', 0, cut)
    for _ in range(100):
        if quotes % 2 == 0:
            return cut
        before = text.rfind(b"\n", 0, text.rfind(b'"', 0, cut)) + 1
        quotes -= text.count(b'"', before, cut)
        cut = before
    return 0


def check_block(block: bytes, separator: str, quoted: bool) -> None:
    """Raise `Unsafe` if a block by itself may be read differently than as a part of the file."""
    if b"\r" in block and block.count(b"\r") != block.count(b"\r\n"):
        raise Unsafe("a carriage return that does not end a line")
    if not quoted:
        return
    marks = np.frombuffer(b"\n" + block.replace(b"\r\n", b"\n") + b"\n\n", dtype=np.uint8)
    quotes = np.flatnonzero(marks == ord('"'))
    opening, closing = quotes[::2], quotes[1::2]
    if len(opening) != len(closing):
        raise Unsafe("an unpaired quotation mark")
    ends = (ord(separator), ord("\n"))
    again = opening[1:] == closing[:-1] + 1  # a doubled mark stands for one mark inside of a quoted field
    starts_field = np.isin(marks[opening - 1], ends)
    ends_field = np.isin(marks[closing + 1], ends)
    starts_field[1:] |= again
    ends_field[:-1] |= again
    if not (starts_field.all() and ends_field.all()):
        raise Unsafe("a quotation mark inside of a field")


def check_returns(source: Source, quoted: bool) -> None:
    """Raise for a carriage return that neither ends a line nor is quoted; the columns would be wrong."""
    inside = False
    for number, line in enumerate(read_lines(source, False), 1):
        parts = line.rstrip("\r\n").split('"') if quoted else [line.removesuffix("\n").removesuffix("\r")]
        outside = parts[1::2] if inside else parts[::2]
        if any("\r" in part for part in outside):
            reason = "a carriage return that does not end a line"
            raise InputError(f"{source.path}, line {number}: {reason}; save the file with LF or CRLF line ends")
        inside ^= len(parts) % 2 == 0


def has_gaps(block: bytes) -> bool:
    """Whether there are blank lines. numpy finds two consecutive line feeds, as one number, faster than `in`."""
    pairs = (np.frombuffer(block, np.uint16, (len(block) - start) // 2, start) for start in (0, 1) if len(block) > 1)
    return any((part == _TWO_ENDS).any() for part in pairs) or (b"\r" in block and b"\n\r\n" in block)


def split_records(lines: Iterable[str], separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each record that is not blank. Slow: used for the first record and for errors."""
    if quoted:
        line, reader = 1, csv.reader(lines, delimiter=separator)
        try:
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error:  # the quotation mark at the start of a field is never closed
            yield line, []
        return
    for line, content in enumerate(lines, 1):
        content = content.removesuffix("\n")
        if content.strip(" \r" if separator == "\t" else None):
            yield line, content.split() if separator == " " else content.rstrip("\r").split(separator)


def short(value: object) -> str:
    """A value or an error, shortened to a part of a line."""
    text = str(value) if isinstance(value, Exception) else "(empty)" if value is None else repr(value)
    return text.strip().partition("\n")[0][:120]
