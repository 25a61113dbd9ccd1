"""Reads a folder of Parquet parts into a frame, by the conventions of Spark, Hive and Arrow."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import polars as pl

from seqrec.data.formats.blocks import open_source, unreadable
from seqrec.data.formats.delimited import shrunk
from seqrec.data.formats.parquet import read_parquet
from seqrec.data.formats.values import EXACT
from seqrec.errors import InputError, LogWarning, warn

PARQUET = re.compile(r"\.(parquet|parq|pq)(\.[a-z0-9]+)?$", re.IGNORECASE)
_TEXT = re.compile(r"\.(csv|tsv|txt|json|jsonl|ndjson|inter)(\.gz)?$", re.IGNORECASE)
#: Marks of tables whose parts may have several versions; only the table's own record tells which is the latest.
TABLES = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}
_MISSING = "__HIVE_DEFAULT_PARTITION__"


class Part(NamedTuple):
    """A file of a log in several parts."""

    path: Path
    values: dict[str, str]  # of the partition columns, from the names of the folders


def read_folder(folder: Path) -> pl.DataFrame:
    """Concatenate all parts in the order of their names, and add the columns from `key=value` folders."""
    parts = parts_of(folder)
    frames: list[pl.DataFrame] = []
    for part in parts:
        frame = read_parquet(open_source(part.path))
        check_columns(part.path, frame.columns, (frames or [frame])[0].columns)
        frames.append(frame.select((frames or [frame])[0].columns))
    joined = [_stacked(folder, name, [frame[name] for frame in frames]) for name in frames[0].columns]
    return _with_keys(folder, pl.DataFrame(joined), parts, [frame.height for frame in frames])


def parts_of(folder: Path) -> list[Part]:
    """The parts in a folder, in the order of their names.

    Raises:
        InputError: there are none, they lie in folders with different keys, or something cannot be opened.
    """
    parts, left_out = _sorted_out(folder)
    return checked_parts(folder, parts, left_out)


def checked_parts(folder: Path, parts: list[Part], left_out: list[Path]) -> list[Part]:
    """The parts, if there are any and their folders have the same keys; says which files are left out."""
    if not parts or any(path.name == "config.json" for path in left_out):
        raise _no_parts(folder, left_out)
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        shown = ", ".join(str(path.relative_to(folder)) for path in left_out[:3])
        are = "is" if len(left_out) == 1 else "are"
        warn(f"{folder}: {shown}{more} {are} ignored, as only Parquet parts are read", LogWarning)
    for part in parts:
        if list(part.values) != list(parts[0].values):
            raise InputError(f"{part.path}: has other key=value folders than {parts[0].path}; make them equal")
    return parts


def check_columns(path: Path, columns: list[str], first: list[str]) -> None:
    """Raise if a part has other columns than the first part."""
    if differ := ", ".join(sorted(set(columns) ^ set(first))):
        raise InputError(f"{path}: has other columns than the first part ({differ}); make them equal")


def _sorted_out(folder: Path) -> tuple[list[Part], list[Path]]:
    """The parts in the order of their names, and the other files."""
    parts: list[Part] = []
    left_out: list[Path] = []
    for path, values in _files_of(folder, {}, ()):
        if not PARQUET.search(path.name) and not _begins_as_parquet(path):
            left_out.append(path)
        else:
            parts.append(Part(path, values))
    return parts, left_out


def _files_of(
    folder: Path, values: dict[str, str], above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Visible files, also in `key=value` folders; raises if something cannot be opened."""
    try:
        here = folder.stat()
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None
    above = (*above, (here.st_dev, here.st_ino))
    for path in inside:
        if path.name in TABLES:
            kind = TABLES[path.name]
            raise InputError(f"{folder}: is {kind}, whose parts may be outdated; export the table as Parquet")
        # Names that begin with . or _ are hidden, except a column that does (_day=1).
        if path.name.startswith(".") or (path.name.startswith("_") and "=" not in path.name):
            if path.name.lower().endswith((".parquet", ".pq")):
                text = f"{path.name} is ignored, as names that begin with . or _ are hidden by convention"
                warn(f"{folder}: {text}", LogWarning)
            continue
        try:
            found = path.stat()
        except OSError as error:
            if path.is_symlink():
                raise InputError(f"{path}: is a broken symbolic link; remove it, or restore the part") from None
            raise unreadable(path, error) from None
        if not stat.S_ISDIR(found.st_mode):
            if stat.S_ISREG(found.st_mode):
                yield path, values
            elif PARQUET.search(path.name):
                raise InputError(f"{path}: is not a regular file; remove it, or write the part again")
            continue
        if (found.st_dev, found.st_ino) in above:
            raise InputError(f"{path}: is a link to a folder above it; remove it")
        key, equals, value = path.name.partition("=")
        if equals and key:
            yield from _files_of(path, values | {unquote(key): unquote(value)}, above)
        elif any(PARQUET.search(part.name) or _begins_as_parquet(part) for part, _ in _files_of(path, {}, above)):
            advice = "give one folder, or name the folders key=value"
            raise InputError(f"{folder}: has Parquet in a folder inside of it ({path.name}); {advice}")


def _begins_as_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise unreadable(path, error) from None


def _no_parts(folder: Path, files: list[Path]) -> InputError:
    text = next((path for path in files if _TEXT.search(path.name)), None)
    if any(path.name == "config.json" for path in files):
        return InputError(f"{folder}: looks like a run, not a log; give the log that it was trained on")
    if text is None:
        return InputError(f"{folder}: is a folder without .parquet files; give a file or a folder of Parquet parts")
    if len(files) == 1:
        return InputError(f"{folder}: is a folder; give the file in it ({text.name})")
    ending = (_TEXT.search(text.name) or [""])[0]
    advice = "join the parts into one file, with one header if they have any, or write Parquet"
    return InputError(f"{folder}: is a folder of {ending} files, which are not read as one; {advice}")


def _stacked(folder: Path, name: str, columns: list[pl.Series]) -> pl.Series:
    """Concatenate the parts of a column, in a type that holds all values exactly."""
    columns = [
        column.cast(pl.String) if isinstance(column.dtype, pl.Categorical | pl.Enum) else column for column in columns
    ]
    kinds = {column.dtype for column in columns} - {pl.Null}
    for target in targets_of(kinds):
        cast = [exactly(column, target) for column in columns]
        exact = [column for column in cast if column is not None]
        if len(exact) == len(columns):
            return pl.concat(exact)
    raise different_types(folder, name, kinds)


def different_types(folder: Path, name: str, kinds: set[pl.DataType]) -> InputError:
    """The error for a column with types that no type can hold together."""
    listed = ", ".join(sorted(str(kind) for kind in kinds))
    return InputError(f"{folder}: the parts have different types (column {name!r}: {listed}); make them equal")


def targets_of(kinds: set[pl.DataType]) -> list[pl.DataType]:
    """Types that may hold the values of all given types, best first."""
    if len(kinds) < 2:
        return list(kinds) or [pl.Null()]
    if all(kind.is_integer() or kind.is_float() for kind in kinds):
        whole = [pl.Int64()] if any(kind.is_integer() for kind in kinds) else []
        return [*whole, pl.Float64()] if any(kind.is_float() for kind in kinds) else [*whole]
    if all(kind.is_integer() or kind == pl.String for kind in kinds):
        return [pl.String()]
    stamps = [kind for kind in kinds if isinstance(kind, pl.Datetime)]
    zones = {kind.time_zone for kind in stamps} | {None for kind in kinds if kind == pl.Date}
    if (
        stamps
        and all(isinstance(kind, pl.Date | pl.Datetime) for kind in kinds)
        and (len(zones) == 1 or None not in zones)
    ):
        zone = zones.pop() if len(zones) == 1 else "UTC"
        return [pl.Datetime(unit, zone) for unit in ("ns", "us", "ms") if unit in {kind.time_unit for kind in stamps}]
    return []


def exactly(column: pl.Series, target: pl.DataType) -> pl.Series | None:
    """The column in another type; None if a value would change."""
    if column.dtype == target:
        return column
    cast = column.cast(target, strict=False)
    if cast.null_count() != column.null_count() or not (cast.cast(column.dtype, strict=False) == column).all():
        return None
    if column.dtype.is_numeric() and column.dtype.is_float() != target.is_float() and target != pl.String:
        return cast if (column.cast(pl.Float64).abs() < EXACT).all() else None
    return cast


def _with_keys(folder: Path, frame: pl.DataFrame, parts: list[Part], heights: list[int]) -> pl.DataFrame:
    """Add the columns from the names of folders; integers if all their values are."""
    rows = np.repeat(np.arange(len(parts)), heights)
    for key, values in keys_of(parts).items():
        column = values.gather(rows)
        if key not in frame.columns:
            frame = frame.with_columns(column)
        else:
            check_key(folder, frame[key], column)
    return frame


def keys_of(parts: list[Part]) -> dict[str, pl.Series]:
    """The value of each part in the columns from the names of folders."""
    columns = {}
    for key in parts[0].values:
        texts = [None if part.values[key] == _MISSING else part.values[key] for part in parts]
        columns[key] = shrunk(pl.DataFrame({key: pl.Series(texts, dtype=pl.String)})).to_series()
    return columns


def check_key(folder: Path, column: pl.Series, of_folders: pl.Series) -> None:
    """Raise if a column of the parts differs from the names of their folders."""
    if not column.cast(pl.String).eq_missing(of_folders.cast(pl.String)).all():
        key = column.name
        raise InputError(f"{folder}: column {key!r} contradicts the names of the folders {key}=…; remove one of them")
