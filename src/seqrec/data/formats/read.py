"""Reads an interaction log, whatever its format, into one polars frame with canonical columns."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import (
    is_zipped,
    open_source,
    read_whole,
    short,
)
from seqrec.data.formats.text import (
    USUAL_NAMES,
    Origin,
    is_parquet,
    plain_name,
    read_text,
)
from seqrec.errors import InputError

FORMATS = ("csv", "inter", "jsonl", "movielens", "parquet", "sequences", "tsv", "whitespace")
CLOCKS = ("", " %H:%M:%S", " %H:%M:%S%.f", " %H:%M:%S%.f%#z", " %H:%M", " %H:%M%#z")
DATE_FORMATS = [day + clock for day in ("%Y-%m-%d", "%Y/%m/%d") for clock in CLOCKS]
PART_ROWS = 1 << 22


def read_log(
    source: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    format: str | None = None,
) -> pl.DataFrame:
    """Read an interaction log into a polars frame with canonical columns.

    `source` is a path, a polars DataFrame or LazyFrame, a pandas DataFrame or a pyarrow Table.
    **Result.** `user_id`, `item_id` (each Int64 or String), then `timestamp` (Int64, Unix seconds) and `rating`
    (Float64) where the log has them, then the other columns (text, in text files). Rows keep the log's order,
    that of time where there are no timestamps; but stamps finer than seconds are rounded down, and the rows
    are then in the order of the fine stamps, which would be lost.

    **Formats**, found by extension and content; `format` overrides. Files may be gzipped.
    - `csv`: separated by `,` (or `;`, `|`, tab), fields may be quoted; `tsv`: separated by tabs.
    - `whitespace`: separated by runs of blanks or tabs; every line has as many fields as the first.
    - `sequences`: one line a user, `user item item item …`, in the order of time.
    - `movielens`: separated by `::`; `inter`: RecBole's tab-separated files with `name:type` headers.
    - `jsonl`: one JSON object a line; `parquet`: one file, or a folder of `*.parquet` parts, sorted by name.
    **Columns** are found by their usual names in any case (`USUAL_NAMES`, best first: `user_id`, `reviewerID`,
    `item_id`, `asin`, `timestamp`, `rating`, …) or named by the parameters. The first line of a text file is a
    header where it holds such a name, or no number but a word above a column of numbers. Else columns are
    called "1", "2", …: user, item; or user, item, timestamp (a rating instead, if all are in 0 to 10 and a user
    has one twice); or user, item, rating, timestamp (exchanged where only the third can be a time).
    **Pairs or sequences?** Asked only of blank-separated lines without a header. A line of one field is an
    error. All lines with 2 fields: pairs. All with the same larger number: columns where a first field comes
    twice (a user has one line in sequences) or the last looks like a time, else sequences. Mixed numbers:
    sequences; but where a first field comes twice and most lines have the same 2 to 4 fields, the first line
    with other fields is an error. `format` settles it.
    **Ids** are integers or strings. In text, a column becomes Int64 where every value is written as an
    integer is (no leading zero, no `+`) and fits; user and item are decided separately. Floats must be whole.
    **Timestamps** are numbers since 1970, whose median tells the unit (below 1e11 seconds, 1e14 milli-, 1e17
    microseconds, else nanoseconds), or ISO dates and times; without a zone they are UTC.

    Raises `InputError`, one line with path, line (or row) and advice, for anything else.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    asked = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    given = {role: name for role, name in asked.items() if name is not None}
    is_path = isinstance(source, (str, os.PathLike))
    frame, origin = _read_path(Path(source).expanduser(), format, given) if is_path else _from_frame(source)
    if frame.height == 0:
        raise InputError(f"{origin.name}: has no rows (nothing below a header?); give a log with interactions")
    chosen = _choose_columns(frame, origin, given)
    columns = {column.name: column for column in frame.iter_columns()}
    del frame  # so that a column goes when it has been converted
    return _canonical(columns, origin, chosen)


def _choose_columns(frame: pl.DataFrame, log: Origin, given: dict[str, str]) -> dict[str, str]:
    """Role to column name, in the canonical order."""
    names = frame.columns
    seen = ", ".join(names[:40]) + ("" if log.header else " (by number, as there is no header)")
    guesses = {} if log.header else _guess_by_position(frame, given)
    chosen: dict[str, str] = {}
    for role, usual in USUAL_NAMES.items():
        ranks = {plain_name(name): rank for rank, name in enumerate(usual.split())}
        parameter = role.removesuffix("_id")
        if role in given:
            same = [name for name in names if name.strip().lower() == given[role].strip().lower()]
            found = sorted(same, key=lambda name: name != given[role])
        elif log.header:
            found = [name for name in names if plain_name(name) in ranks and name not in given.values()]
            found.sort(key=lambda name: (ranks[plain_name(name)], name != role))
        else:
            found = [guesses[role]] if role in guesses else []
        if found and found[0] in chosen.values():
            raise InputError(f"{log.name}: column {found[0]!r} has two roles; give {parameter}= another")
        if found:
            chosen[role] = found[0]
        elif role in given or role.endswith("_id"):
            what = f"column {given[role]!r}" if role in given else f"{parameter} column found"
            raise InputError(f"{log.name}: no {what}; name it with {parameter}= (--{parameter}); columns: {seen}")
    return chosen


def _guess_by_position(frame: pl.DataFrame, given: dict[str, str]) -> dict[str, str]:
    """What the columns of a file without a header are; nothing beyond four, where any guess is a risk."""
    if not 2 <= frame.width <= 4 or "user_id" in given or "item_id" in given:
        return {}
    guesses = {"user_id": "1", "item_id": "2"}
    if "timestamp" in given or "rating" in given or frame.width == 2:
        return guesses
    small = [bool(_floats(frame[name]).is_between(0, 10).fill_null(False).all()) for name in frame.columns[2:]]
    if frame.width == 3:
        # Times of 0 to 10 exist only in tiny logs, where a user hardly does two things at once.
        # In a large log the first rows tell, which spares a table of all.
        twice = pl.struct("1", "3").is_duplicated().any()
        is_rating = small[0] and any(rows.select(twice).item() for rows in (frame[:PART_ROWS], frame))
        return guesses | {"rating" if is_rating else "timestamp": "3"}
    swapped = small[1] and not small[0]
    return guesses | {"timestamp": "3" if swapped else "4", "rating": "4" if swapped else "3"}


def _canonical(read: dict[str, pl.Series], log: Origin, chosen: dict[str, str]) -> pl.DataFrame:
    columns, fine = {}, None
    for role, name in chosen.items():
        if role == "timestamp":
            columns[role], fine = _seconds(log, read.pop(name))
        elif role == "rating":
            columns[role] = _numbers(log, read.pop(name), role)
        else:
            columns[role] = _ids(log, read.pop(name), role.removesuffix("_id"))
    for name in list(read):
        extra = read.pop(name)
        # The caller may have chosen another column than the one that bears a canonical name.
        columns[f"{name}_other" if name in chosen else name] = extra.cast(pl.String) if _is_text(log) else extra
    frame = pl.DataFrame(columns)
    if fine is not None and not fine.is_sorted():
        # Rounding makes ties of stamps that differed, and ties keep the log's order: make that the fine one.
        frame = frame.with_columns(fine.alias("\0fine")).sort("\0fine", maintain_order=True).drop("\0fine")
    return frame


def _is_text(log: Origin) -> bool:
    """Whether the columns are those of `read_text`: text, or integers that stand for it."""
    return log.separator not in (None, "\n")


def _ids(log: Origin, values: pl.Series, role: str) -> pl.Series:
    if isinstance(values.dtype, (pl.Categorical, pl.Enum, pl.Binary)):
        values = values.cast(pl.String, strict=False)
    is_text, is_float = values.dtype == pl.String, values.dtype.is_float()
    if is_text and log.separator and str(values[0]) != str(values[0]).strip():
        stripped = values.str.strip_chars()
        # Blanks around separators ('1, 2') are no part of an id, unless only some values have them.
        values = stripped if (stripped != values).all() else values
    blank = _by_parts(values, lambda part: part.str.strip_chars() == "") if is_text else None
    missing = values.is_null() | (blank if blank is not None else values.is_nan() if is_float else False)
    log.check(~missing, lambda row: f"the {role} id is empty; give the row an id, or remove it")
    numbers = values.cast(pl.Int64, strict=False) if is_text or values.dtype.is_numeric() else None
    if numbers is None:
        advice = f"store integers or strings, or name another column with {role}= (--{role})"
        raise InputError(f"{log.name}: {role} column {values.name!r} holds {values.dtype}, no ids; {advice}")
    if is_text and not log.separator:
        return values
    if is_text and 0 < numbers.null_count() < len(values):
        # Among integers, what other tools write for a missing value is one, and not a name.
        words = values.filter(numbers.is_null()).str.to_lowercase()
        if words.is_in(["nan", "na", "<na>", "null", "none"]).all():
            log.check(numbers.is_not_null(), lambda row: f"{role} id is missing ({values[row]}); remove the row")
    if is_text or values.dtype.is_integer():
        # '0000143561' and '+1' are other ids than 143561 and 1.
        same = numbers.null_count() == 0 and (not is_text or bool((numbers.cast(pl.String) == values).all()))
        return numbers if same else values.cast(pl.String)
    whole = (numbers.cast(values.dtype, strict=False) == values).fill_null(False)
    log.check(whole, lambda row: f"{role} id {values[row]} is not whole; store ids as integers or strings")
    return numbers


def _numbers(log: Origin, values: pl.Series, role: str, kind: str = "a number") -> pl.Series:
    """Finite Float64 values, or the error for the first that is none."""
    advice = f"correct or remove it, or name another column with {role}= (--{role})"
    if values.dtype not in (pl.String, pl.Null) and not values.dtype.is_numeric():
        raise InputError(f"{log.name}: {role} column {values.name!r} holds {values.dtype}; {advice}")
    numbers = _floats(values)
    good = (numbers.abs() < 9e18).fill_null(False)  # neither NaN nor infinite, and what Int64 can hold
    log.check(good, lambda row: f"{role} {_written(log, values[row])} is not {kind}; {advice}")
    return numbers


def _floats(values: pl.Series) -> pl.Series:
    if values.dtype != pl.String:
        return values.cast(pl.Float64, strict=False)
    return _by_parts(values, lambda part: part.str.strip_chars().cast(pl.Float64, strict=False))


def _by_parts(values: pl.Series, change: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """The changed values; part by part, so that what comes between stays small."""
    starts = range(0, len(values), PART_ROWS) or [0]
    return pl.concat([change(values.slice(start, PART_ROWS)) for start in starts])


def _written(log: Origin, value: object) -> str:
    """A value as messages show it: in quotation marks where the file is text."""
    return short(str(value) if _is_text(log) and value is not None else value)


def _seconds(log: Origin, values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """Unix seconds, and the finer stamps they were rounded from (None where nothing was lost)."""
    kind = "a number or an ISO date"
    stamps = _from_text(values) if values.dtype == pl.String else values
    if isinstance(stamps.dtype, (pl.Date, pl.Datetime)):
        bad = f"is not {kind}; correct or remove it, or name another column with timestamp= (--timestamp)"
        log.check(stamps.is_not_null(), lambda row: f"timestamp {short(values[row])} {bad}")
        unit = stamps.dtype.time_unit if isinstance(stamps.dtype, pl.Datetime) else "ms"
        fine, per_second = stamps.dt.timestamp(unit), {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    else:
        if stamps.dtype.is_integer() and not stamps.null_count() and stamps.is_between(-1e11, 1e11, "none").all():
            return stamps.cast(pl.Int64), None  # as below, with less work
        floats = _numbers(log, stamps, "timestamp", kind)
        size = floats.abs().to_frame().select(pl.first().median()).item()
        per_second = 1 if size < 1e11 else 10**3 if size < 1e14 else 10**6 if size < 1e17 else 10**9
        same = (floats.abs() / per_second < 1e11).fill_null(False)
        log.check(
            same, lambda row: f"timestamp {_written(log, values[row])} is in another unit than most; use one for all"
        )
        # Nanoseconds do not fit the 53 bits of a float, so integers stay integers.
        fine = stamps.cast(pl.Int64) if stamps.dtype.is_integer() else floats
    seconds = (fine // per_second).cast(pl.Int64)
    return seconds, None if (seconds * per_second == fine).all() else fine


def _from_text(text: pl.Series) -> pl.Series:
    """Int64 where all values are, UTC datetimes where some are (else null), or the text as it came."""
    integers = _by_parts(text, lambda part: part.str.strip_chars().cast(pl.Int64, strict=False))
    if integers.null_count() == 0 or text.null_count() == len(text):
        return text if integers.null_count() else integers
    first = _plain_time(text.slice(int(text.is_not_null().arg_max() or 0), 1))
    if first.cast(pl.Float64, strict=False).null_count() == 0:
        return text
    # The first value's format is likely that of all; the others are tried where it leaves gaps.
    patterns = sorted(DATE_FORMATS, key=lambda form: first.str.to_datetime(form, strict=False).null_count())
    parsed = _by_parts(text, lambda part: _dates(_plain_time(part), patterns))
    return text if parsed.null_count() == len(parsed) else parsed


def _plain_time(text: pl.Series) -> pl.Series:
    return text.str.strip_chars().str.replace(r" ?UTC$", "Z").str.replace("T", " ", literal=True)


def _dates(plain: pl.Series, patterns: list[str]) -> pl.Series:
    """What the first fitting pattern reads, in UTC; null where none fits."""
    parsed = pl.repeat(None, len(plain), dtype=pl.Datetime("us", "UTC"), eager=True)
    for pattern in patterns:
        if parsed.null_count() > plain.null_count():
            dates = plain.str.to_datetime(pattern, time_unit="us", time_zone="UTC", strict=False)
            parsed = parsed.zip_with(parsed.is_not_null(), dates)
    return parsed


def _from_frame(source: Any) -> tuple[pl.DataFrame, Origin]:
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


def _read_path(path: Path, format: str | None, given: dict[str, str]) -> tuple[pl.DataFrame, Origin]:
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
