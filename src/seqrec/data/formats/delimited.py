"""Reads text whose fields are separated by a character, block by block."""

import codecs
import io
import re
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import polars as pl

from seqrec.data.formats.blocks import (
    BLOCK_BYTES,
    SAMPLE_BYTES,
    SAMPLE_ROWS,
    Source,
    Unsafe,
    check_block,
    has_gaps,
    read_blocks,
    read_checked,
    read_lines,
    read_pieces,
    short,
    split_records,
)
from seqrec.data.formats.text import Origin, is_header
from seqrec.errors import InputError, LogWarning, warn

FEW_ROWS = 10  # in so few rows, values that all have digits may be chance


class Doubt(Exception):
    """Some record may have another number of fields; ``frame`` is polars' result, if there is one."""

    def __init__(self, frame: pl.DataFrame | None, reason: str):
        super().__init__(reason)
        self.frame, self.reason = frame, reason


def read_delimited(
    source: Source, separator: str, quoted: bool, given: dict[str, str], by_block: bool
) -> tuple[pl.DataFrame, Origin]:
    """Read all lines as columns; raises `Unsafe` if a block cannot be read by itself."""
    with ThreadPoolExecutor(1) as pool:
        frames, any_quotes, any_gaps = _read_frames(source, separator, quoted, by_block, pool)
    if any_quotes and any_gaps:
        frames = [frame.filter(~pl.all_horizontal(pl.all().is_null())) for frame in frames]
        frames = [frame for frame in frames if frame.height]
        frames[:1] = [frames[0][:1], frames[0][1:]]
    return _headed(frames, source, separator, given, any_quotes)


def _read_frames(
    source: Source, separator: str, quoted: bool, by_block: bool, pool: Executor
) -> tuple[list[pl.DataFrame], bool, bool]:
    """A frame for each block, the first row in one of its own; whether there are quotation marks, and blank lines.

    While a block is split, the pool finds the numbers of the one before it.
    """
    frames: list[Future[pl.DataFrame]] = []
    width, any_quotes, any_gaps, removed, settled = 0, False, False, False, False
    for block in read_blocks(source, quoted, by_block):
        block = plain_blanks(block) if separator == " " else block
        if not block:
            continue
        quotes = quoted and b'"' in block
        gaps = has_gaps(block)
        if by_block:
            check_block(block, separator, quotes)
        any_quotes, any_gaps, removed = any_quotes or quotes, any_gaps or gaps, removed or (gaps and not quotes)
        block = re.sub(rb"\n[\r\n]+", b"\n", block) if gaps and not quotes else block
        if not frames:
            lines = io.StringIO(block[:SAMPLE_BYTES].decode(errors="replace"), newline="" if quotes else "\n")
            width = len(next(split_records(lines, separator, quotes))[1])
        try:
            frame = split(block, width, separator, quotes)
        except Doubt as doubt:
            if settled and doubt.frame is not None:
                frame = doubt.frame
            else:
                anywhere = quoted and any(b'"' in piece for piece in read_pieces(source, BLOCK_BYTES))
                frame, settled = settle(doubt, source, width, separator, anywhere, by_block), True
        # Keep the first row apart: it may be a header, which would hide the types of the columns.
        if frames:
            frames[-1].result()  # so that no more than two blocks are in memory as text
        frames += [pool.submit(shrunk, part) for part in ([frame] if frames else [frame[:1], frame[1:]])]
    if any_quotes and removed and not settled:
        _blame(source, width, separator, True)  # as if quotation marks and blank lines were in one block
    return [frame.result() for frame in frames], any_quotes, any_gaps


def _headed(
    frames: list[pl.DataFrame], source: Source, separator: str, given: dict[str, str], any_quotes: bool
) -> tuple[pl.DataFrame, Origin]:
    """The frames as one, with the names of the header, if there is one."""
    sample = stacked([frame.head(SAMPLE_ROWS) for frame in frames[:SAMPLE_ROWS]]).head(SAMPLE_ROWS).cast(pl.String)
    first = [re.sub(r":(token|float)(_seq)?$", "", value or "").strip() for value in sample.row(0)]
    # A first row without numbers, above at least one column of numbers, is also a header.
    numeric = sample.select(pl.all().str.strip_chars().cast(pl.Float64, strict=False))
    above = numeric.height > 1 and any(column.null_count() == 0 for column in numeric[1:].iter_columns())
    # So is one without digits, above a column whose values all have some, such as dates and decimal commas.
    digits = sample.select(pl.all().str.contains(r"\d").fill_null(value=False))
    above |= digits.height > FEW_ROWS and not any(digits.row(0)) and any(map(pl.Series.all, digits[1:].iter_columns()))
    header = is_header(first, given) or (above and not any(value is not None for value in numeric.row(0)))
    frame = stacked(frames[1:] if header else frames)
    if header:
        frame = frame.rename(dict(zip(frame.columns, _names(first, source), strict=True)))
    return frame, Origin(str(source.path), header, separator, any_quotes, source)


def _names(header: list[str], source: Source) -> list[str]:
    """The names of the columns, each different: an empty or a repeated one is followed by the column's number."""
    names: list[str] = []
    for number, name in enumerate(header, 1):
        different = name
        while different in ("", *names, *(header[number:] if different != name else ())):
            different += f"_{number}"
        if name and different != name:
            warn(f"{source.path}: column {number} is called {name!r} like an earlier one; it is {different!r} here",
                 LogWarning)  # fmt: skip
        names.append(different)
    return names


def plain_blanks(block: bytes) -> bytes:
    """The text with fields separated by a single blank, and without blank lines."""
    block = block.replace(b"\r\n", b"\n").translate(bytes.maketrans(b"\t", b" "))
    for twice, once in ((b"  ", b" "), (b" \n", b"\n"), (b"\n ", b"\n"), (b"\n\n", b"\n")):
        while twice in block:
            block = block.replace(twice, once)
    return block.strip(b"\r\n ")


def split(text: bytes, width: int, separator: str, quoted: bool) -> pl.DataFrame:
    """Columns of text called "1", "2", …; raises `Doubt` if a record may have another number of fields."""
    byte = separator if len(separator) == 1 else "\x1f"  # polars needs one byte; text does not contain this one
    text = text if byte == separator else text.replace(separator.encode(), b"\x1f")
    schema = {str(number): pl.String for number in range(1, width + 1)}
    quote = '"' if quoted else None
    try:
        frame = pl.read_csv(text, has_header=False, schema=schema, separator=byte, quote_char=quote)
    except pl.exceptions.PolarsError as error:
        raise Doubt(None, short(error)) from None
    if frame[:, -1].null_count() == 0:
        return frame
    # polars fills short rows with nulls; if the number of separators is right, there are no short rows.
    plain = re.sub(rb'"[^"]*"', b"", text) if quoted else text
    if plain.count(byte.encode()) == frame.height * (width - 1):
        return frame
    raise Doubt(frame, "")


def settle(doubt: Doubt, source: Source, width: int, separator: str, quoted: bool, by_block: bool) -> pl.DataFrame:
    """Raise for the first record with another number of fields; without one, return the frame in doubt."""
    _blame(source, width, separator, quoted)
    if doubt.frame is not None:
        return doubt.frame
    if by_block:
        raise Unsafe(doubt.reason)
    raise InputError(f"{source.path}: cannot be split into columns ({doubt.reason}); check its quotation marks")


def _blame(source: Source, width: int, separator: str, quoted: bool) -> None:
    """Raise the error for the first line that is not UTF-8, else for the first record with another number of fields."""
    decoder, above, bad = codecs.getincrementaldecoder("utf-8")(), source.skipped, None
    for piece in read_checked(source):
        try:
            decoder.decode(piece)
        except UnicodeDecodeError as error:
            bad = bad or above + error.object.count(b"\n", 0, error.start) + 1
        above += piece.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        bad = bad or above + 1
    if bad:
        raise InputError(f"{source.path}, line {bad}: is not UTF-8 text; save the file as UTF-8")
    for line, fields in split_records(read_lines(source, quoted), separator, quoted):
        if len(fields) != width:
            few = f"too {'few' if len(fields) < width else 'many'} fields ({len(fields)}, not {width})"
            reason = f"{few} separated by {separator!r}"
            raise InputError(f"{source.path}, line {line}: {reason}; correct it or its quotes")


def shrunk(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with Int64 for each text column that casting back to String would restore exactly."""
    columns = []
    for text in frame.iter_columns():
        first = text.head(1)  # if it is no number, the others need not be read
        if first.cast(pl.Int64, strict=False).null_count() > first.null_count():
            columns.append(text)
            continue
        numbers = text.cast(pl.Int64, strict=False)
        same = numbers.null_count() == text.null_count()
        # '+5', '05' and '-0' are longer than the usual form of the integer, and no form is shorter.
        columns.append(numbers if same and text.str.len_bytes().sum() == _digits(numbers) else text)
    return pl.DataFrame(columns)


def _digits(numbers: pl.Series) -> int:
    """Number of bytes needed to write these integers, with their signs."""
    low, high = int(numbers.min() or 0), int(numbers.max() or 0)  # type: ignore[arg-type]
    total = len(numbers) - numbers.null_count()
    total += int((numbers < 0).sum()) if low < 0 else 0
    for power in (10**digits for digits in range(1, 19)):
        total += int((numbers >= power).sum()) if high >= power else 0
        total += int((numbers <= -power).sum()) if low <= -power else 0
    return total


def stacked(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Concatenate frames vertically; a column that is text in one frame becomes text in all."""
    columns = []
    for name in frames[0].columns:
        parts = [frame[name] for frame in frames if frame.height] or [frames[0][name]]
        alike = len({part.dtype for part in parts}) == 1
        columns.append(pl.concat(parts if alike else [part.cast(pl.String) for part in parts]))
    return pl.DataFrame(columns)
