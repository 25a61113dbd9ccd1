"""Reads files, folders of parts and frames of other libraries into a polars frame."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.blanks import read_blanks
from seqrec.data.formats.blocks import (
    Source,
    Unsafe,
    check_returns,
    expanded,
    open_source,
    read_checked,
    read_sample,
)
from seqrec.data.formats.delimited import read_delimited
from seqrec.data.formats.jsonlines import read_jsonl
from seqrec.data.formats.panics import handled_panics, short_error
from seqrec.data.formats.parquet import read_parquet
from seqrec.data.formats.parts import read_folder
from seqrec.data.formats.prelude import check_header, check_title, skip_prelude
from seqrec.data.formats.text import EXTENSIONS, Origin, detect, is_parquet, separator_of
from seqrec.errors import InputError


def from_frame(source: Any) -> tuple[pl.DataFrame, Origin]:
    """Convert a frame of polars, pandas or Arrow; the origin has its name for messages."""
    kind = type(source).__name__
    # Compare names, so that seqrec does not import the library of the table.
    libraries = {base.__module__.split(".")[0] for base in type(source).__mro__}
    try:
        if isinstance(source, pl.LazyFrame):
            source = source.collect()
        elif libraries & {"pandas", "pyarrow"}:
            source = _from_pandas(source) if "pandas" in libraries else pl.from_arrow(_in_utc(source))
    except (pl.exceptions.PanicException, Exception) as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(f"the {kind} cannot be read ({short_error(error)}); give columns one type and name") from None
    if not isinstance(source, pl.DataFrame):
        raise InputError(f"cannot read {kind}; give a path, a polars or pandas frame, or a pyarrow Table")
    return source, Origin(f"the {kind}")


def read_path(path: Path, format: str | None, given: dict[str, str]) -> tuple[pl.DataFrame, Origin]:
    """Read a file or a folder of parts into a frame of raw columns."""
    path, is_folder = expanded(path)
    if is_folder and format not in (None, "parquet"):
        raise InputError(f"{path}: is a folder, but format={format} needs a file; give a file")
    with handled_panics(str(path)):
        if is_folder:
            return read_folder(path), Origin(str(path))
        source = open_source(path)
        if is_parquet(source, format):
            return read_parquet(source), Origin(str(path))
        return read_text(source, format, given)


def read_text(source: Source, format: str | None, given: dict[str, str]) -> tuple[pl.DataFrame, Origin]:
    """Read text in any format.

    A column of delimited text is Int64 if every value is missing or is written exactly as an integer, so that casting
    it to String restores the text of the file; else it is String.
    """
    source, lines, excel = skip_prelude(source, read_sample(source), given)
    extension = EXTENSIONS.get(source.path.name.lower().removesuffix(".gz").rpartition(".")[2])
    if format is None and excel is None and (extension is None or not re.search(r"[,;|\t]", lines[0])):
        check_title(source, lines, None, given)
    format = format or ("csv" if excel else detect(extension, lines, given))
    if format == "jsonl":
        return read_jsonl(source)
    if format in ("whitespace", "sequences", "blanks"):
        return read_in_blocks(read_blanks, source, format, given)
    separator = "::" if format == "movielens" else "\t"
    if format == "csv":
        separator = excel or separator_of(lines, given)
    check_title(source, lines, separator, given)
    check_header(source, lines, separator)
    if format == "tsv" or (format == "csv" and separator == "\t"):
        try:
            return read_in_blocks(read_delimited, source, separator, True, given)
        except InputError:
            # Quotation marks in tab-separated files are often ordinary characters.
            return read_in_blocks(read_delimited, source, separator, False, given)
    return read_in_blocks(read_delimited, source, separator, format == "csv", given)


def read_in_blocks(
    read: Callable[..., tuple[pl.DataFrame, Origin]], source: Source, *rest: object
) -> tuple[pl.DataFrame, Origin]:
    """Read block by block, or the file at once if a block by itself might be read differently."""
    try:
        return read(source, *rest, by_block=True)
    except Unsafe:
        if any(b"\r" in piece for piece in read_checked(source)):
            check_returns(source, True in rest)
        return read(source, *rest, by_block=False)


def _from_pandas(source: Any) -> Any:
    """Convert a pandas frame; columns of mixed types stay Python objects, as they may not be needed."""
    try:
        return pl.from_pandas(source)
    except (pl.exceptions.PolarsError, ValueError, TypeError, OverflowError):
        if getattr(source, "ndim", 0) != 2 or not source.columns.is_unique:
            raise
    columns = []
    for name in source.columns:
        values = source[name]
        if getattr(values.dtype, "tz", None) is not None:  # polars does not support zones such as +05:30
            values = values.dt.tz_convert("UTC")
        try:
            columns.append(pl.Series(str(name), pl.from_pandas(values)))
        except (pl.exceptions.PolarsError, ValueError, TypeError, OverflowError):
            missing = values.isna()
            plain = [None if none else value for value, none in zip(values, missing, strict=True)]
            columns.append(pl.Series(str(name), plain, dtype=pl.Object))
    return pl.DataFrame(columns)


def _in_utc(table: Any) -> Any:
    """Convert the times of an Arrow table to UTC, because polars does not support zones such as +05:30."""
    zoned = [field for field in getattr(table, "schema", ()) if getattr(field.type, "tz", None)]
    if zoned:
        import pyarrow as pa  # already imported, as it made the table

        for field in zoned:
            place = table.schema.get_field_index(field.name)
            utc = table.column(place).cast(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(place, field.name, utc)
    return table
