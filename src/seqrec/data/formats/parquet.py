"""Reads Parquet into a frame."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import Source, is_zipped, read_whole
from seqrec.data.formats.panics import short_error
from seqrec.errors import InputError

#: Time zones in the schema of a file that Arrow supports and polars does not, such as +05:30.
_OFFSET = re.compile(rb"[+-]\d\d:?\d\d")


def read_parquet(source: Source) -> pl.DataFrame:
    """Read one file, which may be gzipped."""
    path = source.path
    in_memory = source.content is not None or is_zipped(source)
    content = read_whole(source) if in_memory else None

    def opened() -> Any:
        return path if content is None else io.BytesIO(content)

    try:
        described = base64.b64decode(pl.read_parquet_metadata(opened()).get("ARROW:schema", ""))
        if not _OFFSET.search(described):
            try:
                return pl.read_parquet(opened(), glob=False, hive_partitioning=False)
            except pl.exceptions.PanicException:
                pass  # usually from another zone that polars does not support
        return _in_utc(opened)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise InputError(f"{path}: is not Parquet, or is damaged ({short_error(error)}); write it again") from None


def _in_utc(opened: Callable[[], Any]) -> pl.DataFrame:
    """Read a file that polars cannot read, with pyarrow, and convert its times to UTC."""
    from pyarrow.parquet import read_table  # slow to import, and few files need it

    return frame_of(read_table(opened(), partitioning=None))


def frame_of(table: Any) -> pl.DataFrame:
    """A table of pyarrow as a frame, with times in UTC."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz:
            utc = table.column(place).cast(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(place, field.name, utc)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
