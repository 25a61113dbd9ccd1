"""Reading files from untrusted sources: their type and size are checked first."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.errors import InputError, one_line

MOST_JSON = 2**26  # bytes; as Python objects, the content takes about twenty times as much
#: Bytes that a Parquet file may take in memory: MOST_UNPACKED, or MOST_EXPANSION times its size if that is more. Real
#: logs take about ten times their size.
MOST_UNPACKED, MOST_EXPANSION = 2**28, 200


def check_files(folder: Path, known: Mapping[str, Any], advice: str) -> None:
    """Raise for symbolic links in a folder, and for known names that are a folder instead of a file or vice versa.

    The folder itself may be a link. A link inside of it could redirect reading and writing to another place.

    Args:
        folder: folder whose entries are checked.
        known: patterns of known names; the value is None for a file, and a mapping of the same kind for a folder.
        advice: advice in the error about a damaged file.
    """
    for name, mode in _entries(folder):
        path = folder / name
        if stat.S_ISLNK(mode):
            raise InputError(
                f"{path}: is a symbolic link, which may lead out of the folder; replace it with a copy of the file "
                "(cp -rL copies a folder without links)"
            )
        for pattern, inside in known.items():
            if not fnmatchcase(name, pattern):
                continue
            if not (stat.S_ISREG if inside is None else stat.S_ISDIR)(mode):
                wanted = "a file" if inside is None else "a folder"
                raise InputError(f"{path}: is {_kind(mode)} where {wanted} should be; {advice}")
            if inside is not None:
                check_files(path, inside, advice)


def size_of(path: Path, advice: str) -> int:
    """Size of a regular file in bytes. Raises for anything else: a pipe may block, a link may point elsewhere."""
    try:
        status = os.lstat(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing; {advice}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path}: cannot be read ({reason}); {advice}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is {_kind(status.st_mode)}, not a file; {advice}")
    return status.st_size


def read_json(path: Path, advice: str = "copy it back or train again", most: int = MOST_JSON) -> dict[str, Any]:
    """Read a JSON object from a file of at most ``most`` bytes."""
    size = size_of(path, advice)
    if size > most:
        raise InputError(f"{path}: has {size:,} bytes, more than the {most:,} allowed; {advice}")
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); {advice}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: is not a JSON object; {advice}")
    return values


def parse_json(text: str) -> Any:
    """Parse JSON; raises ``ValueError`` for any fault, deep nesting included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_parquet(path: Path, columns: Mapping[str, Any], rows: int, advice: str) -> pl.DataFrame:
    """Read some columns of a Parquet file that must have a known number of rows.

    The size in memory is taken from the footer and checked before anything else is read.

    Args:
        path: file to read.
        columns: type of each column; None stands for ids, which are integers or strings.
        rows: expected number of rows.
        advice: advice in the error about a damaged file.
    """
    from pyarrow import ArrowException  # slow to import, and few commands need it
    from pyarrow.parquet import read_metadata

    size = size_of(path, advice)
    try:
        footer = read_metadata(path)  # unlike polars, pyarrow limits the nesting of a schema
        if footer.num_rows != rows:
            raise ValueError(f"it has {footer.num_rows} rows, not {rows}")
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        unpacked = sum(max(chunk.total_uncompressed_size, 0) + 16 * max(chunk.num_values, 0) for chunk in chunks)
        unpacked += 16 * rows
        if unpacked > max(MOST_UNPACKED, MOST_EXPANSION * size):
            raise ValueError(f"its {size:,} bytes would become {unpacked:,} in memory")
        schema = pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema()
        for name, dtype in columns.items():
            found = schema.get(name)
            ids = dtype is None and found is not None and (found.is_integer() or found == pl.String)
            if found is None or not (ids or found == dtype):
                raise ValueError(f"column {name} is {found or 'missing'}, not {dtype or 'ids'}")
        frame = pl.read_parquet(path, columns=list(columns), glob=False, hive_partitioning=False)
        if frame.height != rows:
            raise ValueError(f"it has {frame.height} rows, not {rows}")
        for name in columns:
            if frame[name].has_nulls():
                raise ValueError(f"column {name} has gaps")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ArrowException, OSError, ValueError,
            OverflowError, TypeError) as error:  # fmt: skip
        raise InputError(f"{path}: is damaged ({one_line(error)}); {advice}") from error
    return frame


def _entries(folder: Path) -> list[tuple[str, int]]:
    """Names in a folder, sorted, each with its mode; links are not followed."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process removed it since
                    found.append((entry.name, entry.stat(follow_symlinks=False).st_mode))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    return sorted(found)


def _kind(mode: int) -> str:
    kinds = {stat.S_ISLNK: "a symbolic link", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe",
             stat.S_ISSOCK: "a socket", stat.S_ISREG: "a file"}  # fmt: skip
    return next((name for test, name in kinds.items() if test(mode)), "a device")
