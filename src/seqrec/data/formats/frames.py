"""Files, folders of parts and frames of other libraries → a polars frame."""

import io
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import is_zipped, open_source, read_whole, short
from seqrec.data.formats.text import Origin, is_parquet, read_text
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
            source = _from_pandas(source) if "pandas" in libraries else pl.from_arrow(_in_utc(source))
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
        return _read_parquet(path, {part: part for part in parts})
    source = open_source(path)
    if not is_parquet(source, format):
        return read_text(source, format, given)
    in_memory = source.content is not None or is_zipped(source)
    return _read_parquet(path, {path: io.BytesIO(read_whole(source)) if in_memory else path})


def _read_parquet(path: Path, sources: dict[Path, Any]) -> tuple[pl.DataFrame, Origin]:
    """One file, or the parts of a folder one below the other."""
    frames: list[pl.DataFrame] = []
    for part, source in sources.items():
        try:
            frame = pl.read_parquet(source, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{part}: no Parquet, or damaged ({short(error)}); write it again") from None
        differ = ", ".join(sorted(set(frame.columns) ^ set((frames or [frame])[0].columns)))
        if differ:
            raise InputError(f"{part}: has other columns than the first part ({differ}); make them alike")
        frames.append(frame.select((frames or [frame])[0].columns))
    try:
        return pl.concat(frames, how="vertical_relaxed"), Origin(str(path))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: the parts differ in types ({short(error)}); make them alike") from None


def _from_pandas(source: Any) -> Any:
    """A pandas frame; columns that have no type of their own stay Python objects, as they may not be needed."""
    try:
        return pl.from_pandas(source)
    except (pl.exceptions.PolarsError, ValueError, TypeError, OverflowError):
        if getattr(source, "ndim", 0) != 2 or not source.columns.is_unique:
            raise
    columns = []
    for name in source.columns:
        values = source[name]
        if getattr(values.dtype, "tz", None) is not None:  # polars knows no zones such as +05:30
            values = values.dt.tz_convert("UTC")
        try:
            columns.append(pl.Series(str(name), pl.from_pandas(values)))
        except (pl.exceptions.PolarsError, ValueError, TypeError, OverflowError):
            missing = values.isna()
            plain = [None if none else value for value, none in zip(values, missing, strict=True)]
            columns.append(pl.Series(str(name), plain, dtype=pl.Object))
    return pl.DataFrame(columns)


def _in_utc(table: Any) -> Any:
    """An Arrow table with its moments in UTC, as polars knows no zones such as +05:30."""
    zoned = [field for field in getattr(table, "schema", ()) if getattr(field.type, "tz", None)]
    if zoned:
        import pyarrow as pa  # there already, as it made the table

        for field in zoned:
            place = table.schema.get_field_index(field.name)
            utc = table.column(place).cast(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(place, field.name, utc)
    return table
