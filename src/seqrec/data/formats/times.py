"""Timestamps: numbers of any unit and dates → Unix seconds."""

import polars as pl

from seqrec.data.formats.blocks import short
from seqrec.data.formats.text import Origin
from seqrec.data.formats.values import by_parts, numbers_of, written

CLOCKS = ("", " %H:%M:%S", " %H:%M:%S%.f", " %H:%M:%S%.f%#z", " %H:%M", " %H:%M%#z")
DATE_FORMATS = [day + clock for day in ("%Y-%m-%d", "%Y/%m/%d") for clock in CLOCKS]


def seconds_of(log: Origin, values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
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
        floats = numbers_of(log, stamps, "timestamp", kind)
        size = floats.abs().to_frame().select(pl.first().median()).item()
        per_second = 1 if size < 1e11 else 10**3 if size < 1e14 else 10**6 if size < 1e17 else 10**9
        same = (floats.abs() / per_second < 1e11).fill_null(False)
        log.check(
            same, lambda row: f"timestamp {written(log, values[row])} is in another unit than most; use one for all"
        )
        # Nanoseconds do not fit the 53 bits of a float, so integers stay integers.
        fine = stamps.cast(pl.Int64) if stamps.dtype.is_integer() else floats
    seconds = (fine // per_second).cast(pl.Int64)
    return seconds, None if (seconds * per_second == fine).all() else fine


def _from_text(text: pl.Series) -> pl.Series:
    """Int64 where all values are, UTC datetimes where some are (else null), or the text as it came."""
    integers = by_parts(text, lambda part: part.str.strip_chars().cast(pl.Int64, strict=False))
    if integers.null_count() == 0 or text.null_count() == len(text):
        return text if integers.null_count() else integers
    first = _plain_time(text.slice(int(text.is_not_null().arg_max() or 0), 1))
    if first.cast(pl.Float64, strict=False).null_count() == 0:
        return text
    # The first value's format is likely that of all; the others are tried where it leaves gaps.
    patterns = sorted(DATE_FORMATS, key=lambda form: first.str.to_datetime(form, strict=False).null_count())
    parsed = by_parts(text, lambda part: _dates(_plain_time(part), patterns))
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
