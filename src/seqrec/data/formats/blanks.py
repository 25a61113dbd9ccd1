"""Reads text whose fields are separated by runs of blanks: columns, or a sequence of items per user."""

from collections.abc import Iterator

import polars as pl

from seqrec.data.formats.blocks import Source, Unsafe, check_block, read_blocks
from seqrec.data.formats.delimited import Doubt, plain_blanks, read_delimited, settle, shrunk, split, stacked
from seqrec.data.formats.text import Origin, is_header
from seqrec.errors import LogWarning, warn


def _blank_lines(source: Source, by_block: bool) -> Iterator[pl.Series]:
    """Lines of each block, with fields separated by a single blank."""
    for block in read_blocks(source, False, by_block):
        if by_block:
            check_block(block, " ", False)
            if b"\x0b" in block or b"\x0c" in block:
                raise Unsafe("vertical tabs or form feeds, which are stripped only at the ends of the text")
        text = plain_blanks(block).strip()
        if not text:
            continue
        try:
            yield split(text, 1, "\x1f", False).to_series()
        except Doubt as doubt:
            yield settle(doubt, source, 1, "\x1f", False, by_block).to_series()


def read_blanks(source: Source, format: str, given: dict[str, str], by_block: bool) -> tuple[pl.DataFrame, Origin]:
    """Read blank-separated lines as columns or as sequences, by the rules in `read_log`."""
    origin = Origin(str(source.path), False, " ", source=source)
    if not _is_sequences(origin, source, format, given, by_block):
        return read_delimited(source, " ", False, given, by_block)
    frames = []
    for lines in _blank_lines(source, by_block):
        users, items = lines.str.extract("^([^ ]+)"), lines.str.extract("^[^ ]+ (.*)").str.split(" ")
        frames.append(shrunk(pl.DataFrame({"1": users, "2": items}).explode("2")))
    return stacked(frames), origin


def _is_sequences(origin: Origin, source: Source, format: str, given: dict[str, str], by_block: bool) -> bool:
    """Whether each line is the sequence of a user; raises for lines that are neither columns nor sequences."""
    counted: list[pl.Series] = []
    firsts: list[pl.Series] = []
    repeated, times = False, True
    for lines in _blank_lines(source, by_block):
        if not counted and format == "blanks" and is_header(lines[0].split(" "), given):
            format = "whitespace"
        counted.append(lines.str.count_matches(" ", literal=True) + 1)
        if format == "blanks":
            times = times and lines.str.contains(r" ([0-9]{9,19}(\.[0-9]+)?|[0-9]{4}-[0-9]{2}-[0-9]{2}\S*)$").all()
            # If any user occurs twice, one usually does so in the first block.
            firsts += [] if repeated else [lines.str.extract("^([^ ]+)")]
            repeated = repeated or bool(firsts[-1].is_duplicated().any())
    counts = pl.concat(counted)
    origin.check(counts > 1, lambda row: "has 1 field; write at least a user and an item")
    width = counts[0]
    if format == "blanks":
        width = counts.mode().sort()[0]
        share = (counts == width).mean()
        repeated = repeated or bool(pl.concat(firsts).is_duplicated().any())
        alike = width == 2 or repeated or (width <= 4 and times)
        columns = alike if share == 1 else repeated and share > 0.5 and width <= 4
        format = "whitespace" if columns else "sequences"
        if not columns and not firsts[0].cast(pl.Int64, strict=False).is_not_null().all():
            note = "each line is read as a user and its items in order, a guess"
            warn(f"{source.path}: {note}; confirm it with format='sequences' (--format)", LogWarning)
    if format == "whitespace":
        advice = "correct it, or give format='sequences'"
        origin.check(counts == width, lambda row: f"has {counts[row]} fields instead of {width}; {advice}")
    return format == "sequences"
