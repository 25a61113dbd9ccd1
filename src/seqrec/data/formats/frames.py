"""Files, folders of parts and frames of other libraries → a polars frame."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.blanks import read_blanks
from seqrec.data.formats.blocks import Source, Unsafe, is_zipped, open_source, read_sample, read_whole, short
from seqrec.data.formats.delimited import read_delimited
from seqrec.data.formats.jsonlines import read_jsonl
from seqrec.data.formats.parquet import read_parquet
from seqrec.data.formats.text import EXTENSIONS, Origin, detect, is_parquet, separator_of
from seqrec.errors import InputError


def from_frame(source: Any) -> tuple[pl.DataFrame, Origin]:
    """A frame of polars, pandas or Arrow, and what to call it in messages."""
    kind = type(source).__name__
    # By name, so that a table's library is imported only by whoever made the table.
    libraries = {base.__module__.split(".")[0] for base in type(source).__mro__}
    try:
        if isinstance(source, pl.LazyFrame):
            source = source.collect()
        elif libraries & {"pandas", "pyarrow"}:
            source = pl.from_pandas(source) if "pandas" in libraries else pl.from_arrow(source)
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        raise InputError(f"the {kind} cannot be read ({short(error)}); give columns one type and name") from None
    if not isinstance(source, pl.DataFrame):
        raise InputError(f"cannot read {kind}; give a path, a polars or pandas frame, or a pyarrow Table")
    return source, Origin(f"the {kind}")


def read_path(path: Path, format: str | None, given: dict[str, str]) -> tuple[pl.DataFrame, Origin]:
    """A file or a folder of parts as a frame of raw columns."""
    if path.is_dir():
        parts = sorted(part for part in path.glob("*.parquet") if part.is_file())
        if not parts or format not in (None, "parquet"):
            raise InputError(f"{path}: is a folder without .parquet files; give a file or a folder of parts")
        return read_parquet(path, {part: part for part in parts})
    source = open_source(path)
    if not is_parquet(source, format):
        return read_text(source, format, given)
    in_memory = source.content is not None or is_zipped(source)
    return read_parquet(path, {path: io.BytesIO(read_whole(source)) if in_memory else path})


def read_text(source: Source, format: str | None, given: dict[str, str]) -> tuple[pl.DataFrame, Origin]:
    """Read text in any format.

    Columns of delimited text are Int64 where every value is written exactly as an integer is (or missing), so
    that casting them to String gives what the file holds; else String.
    """
    lines = read_sample(source)
    extension = EXTENSIONS.get(source.path.name.lower().removesuffix(".gz").rpartition(".")[2])
    format = format or detect(extension, lines, given)
    if format == "jsonl":
        return read_jsonl(source)
    if format in ("whitespace", "sequences", "blanks"):
        return _in_blocks_or_whole(read_blanks, source, format, given)
    separator = "::" if format == "movielens" else separator_of(lines, given) if format == "csv" else "\t"
    if format == "tsv" or (format == "csv" and separator == "\t"):
        try:
            return _in_blocks_or_whole(read_delimited, source, separator, True, given)
        except InputError:
            # Tab-separated files often hold quotation marks that quote nothing.
            return _in_blocks_or_whole(read_delimited, source, separator, False, given)
    return _in_blocks_or_whole(read_delimited, source, separator, format == "csv", given)


def _in_blocks_or_whole(
    read: Callable[..., tuple[pl.DataFrame, Origin]], source: Source, *rest: object
) -> tuple[pl.DataFrame, Origin]:
    try:
        return read(source, *rest, by_block=True)
    except Unsafe:
        return read(source, *rest, by_block=False)
