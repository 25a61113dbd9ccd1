"""Converts timestamps, numbers in any unit or dates, to Unix seconds."""

from typing import NamedTuple

import polars as pl

from seqrec.data.formats.text import Origin
from seqrec.data.formats.values import advice_on, by_parts, floats_of, numbers_of, written

CLOCKS = ("", " %H:%M:%S", " %H:%M:%S%.f", " %H:%M:%S%.f%#z", " %H:%M", " %H:%M%#z")
DATE_FORMATS = [day + clock for day in ("%Y-%m-%d", "%Y/%m/%d") for clock in CLOCKS]
DATE_FORMATS += ["%Y%m%d" + clock for clock in (*CLOCKS, " %H%M%S", " %H%M%S%#z") if clock]
YEAR_1980, YEAR_2032, YEAR_2100 = 315_532_800, 1_956_528_000, 4_102_444_800
UNITS = {1: "seconds", 10**3: "milliseconds", 10**6: "microseconds", 10**9: "nanoseconds"}
# Dates written as one whole number: name, number of digits, and the digits that complete them to seconds. As numbers
# since 1970, those with ten digits would be after 2032, and those with 6, 8 or 12 digits before 1977.
WHOLE_DATES = [
    ("yyyymm", 6, "01000000"),
    ("yyyymmdd", 8, "000000"),
    ("yyyymmddHH", 10, "0000"),
    ("yyyymmddHHMM", 12, "00"),
    ("yyyymmddHHMMSS", 14, ""),
    ("yyyymmddHHMMSSfff", 17, ""),
]
EXCEL_DAYS = 30_000, 60_000  # 1982 to 2064, counted from 1899-12-30
EXCEL_DAY_OF_1970 = 25_569
DAY = 86_400


class Times(NamedTuple):
    """Parsed times, before they are checked."""

    stamps: pl.Series  # Int64 or Float64, null if a value could not be read
    per_second: int  # units of the stamps per second
    unit: str  # unit or notation, for messages
    is_number: bool  # numbers since 1970, whose unit is a guess; else dates

    @property
    def is_whole(self) -> bool:
        """Whether every value could be read, all in the same unit."""
        return self.stamps.null_count() == 0 and bool(same_unit(self).all())

    @property
    def share(self) -> float:
        """Share of the values that could be read."""
        return 1 - self.stamps.null_count() / max(len(self.stamps), 1)

    def seconds(self) -> pl.Series:
        """Unix seconds, rounded down."""
        return (self.stamps // self.per_second).cast(pl.Int64, strict=False)

    def lie_between(self, first: float, last: float) -> bool:
        """Whether all values are from ``first`` up to, but not including, ``last``, in Unix seconds."""
        low, high = self.stamps.min(), self.stamps.max()
        if low is None or high is None or not self.is_whole:
            return False
        return bool(low >= first * self.per_second and high < last * self.per_second)  # type: ignore[operator]

    def is_days(self) -> bool:
        """Whether these are dates without a time of day."""
        return not self.is_number and bool((self.stamps % (DAY * self.per_second) == 0).all())


def times_of(values: pl.Series) -> Times | None:
    """The times in a column, in any notation; None if the type of the column cannot be times."""
    stamps = from_text(values) if values.dtype == pl.String else values
    if isinstance(stamps.dtype, (pl.Date, pl.Datetime)):
        unit = stamps.dtype.time_unit if isinstance(stamps.dtype, pl.Datetime) else "ms"
        return Times(stamps.dt.timestamp(unit), {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit], "dates", False)
    if stamps.dtype != pl.String and not stamps.dtype.is_numeric():
        return None
    is_integer = stamps.dtype.is_integer()
    low, high = (stamps.min(), stamps.max()) if is_integer else (None, None)
    if low is not None and high is not None and low >= YEAR_1980 and high < YEAR_2032:  # type: ignore[operator]
        return Times(stamps.cast(pl.Int64), 1, "seconds since 1970", True)  # shortcut of the code below
    floats = floats_of(stamps)
    floats = floats.set(floats.is_nan() | (floats.abs() >= 9e18), None)
    # Nanoseconds do not fit the 53 bits of a float, so integers stay integers.
    exact = stamps.cast(pl.Int64, strict=False) if is_integer else floats
    middle = floats.median()
    if middle is None:
        return Times(exact, 1, "seconds since 1970", True)
    found = whole_dates(floats, exact, float(middle)) or excel_days(floats)  # type: ignore[arg-type]
    if found is not None:
        return found
    per_second = units_per_second(float(middle))  # type: ignore[arg-type]
    return Times(exact, per_second, f"{UNITS[per_second]} since 1970", True)


def units_per_second(value: float) -> int:
    """The unit of a number since 1970, by its size: 1 for seconds, 10^3, 10^6 or 10^9 for nanoseconds."""
    size = abs(value)
    return 1 if size < 1e11 else 10**3 if size < 1e14 else 10**6 if size < 1e17 else 10**9


def is_counted(values: pl.Series) -> bool:
    """Whether a column holds numbers since 1970, if it holds times at all."""
    times = times_of(values)
    return times is None or times.is_number


def same_unit(times: Times) -> pl.Series:
    """Mask of the values that have the unit of most others and no digit missing or added.

    A number with a digit missing or added is about ten times smaller or larger than its neighbours. Around the year
    2020 that means before 1976 or after 2370, where a log has no times.
    """
    if not times.is_number:
        return times.stamps.is_not_null()
    seconds = times.stamps / times.per_second
    middle = seconds.median()
    size = 0.0 if middle is None else float(middle)  # type: ignore[arg-type]
    if size >= YEAR_1980:
        good = seconds.is_between(size / 8, size * 8)
    else:
        # Small numbers may count anything, but must not be mixed with recent Unix times.
        good = seconds.abs() < (9e8 if abs(size) < 1e8 else 1e11)
    return good.fill_null(False)


def seconds_of(log: Origin, values: pl.Series, times: Times | None) -> tuple[pl.Series, pl.Series | None]:
    """Unix seconds, and the finer timestamps they were rounded from (None if the seconds are exact).

    Raises:
        InputError: a value is not a time, or has a different unit from the others.
    """
    kind = "a number or an ISO date"
    if times is None:
        numbers_of(log, values, "timestamp", kind)  # raises, because the type is not numeric
        raise AssertionError

    def bad() -> str:
        if not times.is_number and times.unit.startswith("whole numbers"):
            return f"is not a date like most others ({times.unit}); correct it"
        return f"is not {kind}; {advice_on(values, 'timestamp')}"

    log.check(times.stamps.is_not_null(), lambda row: f"timestamp {written(log, values[row])} {bad()}")
    low, high = times.stamps.min(), times.stamps.max()
    if not (times.is_number and low >= YEAR_1980 * times.per_second and high < YEAR_2032 * times.per_second):  # type: ignore[operator]
        other = "is in another unit than most others, or cut off; correct or remove it, or use one unit for all"
        log.check(same_unit(times), lambda row: f"timestamp {written(log, values[row])} {other}")
    fine, per_second = times.stamps, times.per_second
    if per_second == 1 and fine.dtype == pl.Int64:
        return fine, None
    seconds = times.seconds()
    return seconds, None if (seconds * per_second == fine).all() else fine


def doubt_about(times: Times, seconds: pl.Series) -> str | None:
    """A note about times with an unexpected notation or in unexpected years; None if there is nothing to note."""
    low, high = int(seconds.min()), int(seconds.max())  # type: ignore[arg-type]
    if not times.is_number:
        return None if times.unit == "dates" or "+" in times.unit else f"the times are read as {times.unit}"
    # Small numbers are usually positions in an order (1, 2, 3, …), for which the unit does not matter.
    if high < YEAR_1980 and low >= 10_000:
        return f"the times are read as {times.unit} and are before 1980; if that is wrong, write ISO dates"
    if low >= 1900 and high <= 2100:
        return f"the times, such as {high}, look like years, but are read as {times.unit}; if they are, give dates"
    if high >= YEAR_2100:
        return f"the times are read as {times.unit} and go beyond the year 2100; correct them if that is wrong"
    return None


def clock_of(values: pl.Series) -> pl.Series | None:
    """Microseconds since midnight if all values are times of day (10:20, 10:20:30.5, 1020, 102030); else None."""
    if values.dtype == pl.Time:
        return None if values.null_count() else values.cast(pl.Int64) // 1000
    if values.null_count() or not (values.dtype == pl.String or values.dtype.is_integer()):
        return None
    text = values.cast(pl.String).str.strip_chars()
    noon = text.str.to_uppercase().str.extract(r" ?([AP]M)$")
    if noon.null_count() == 0:  # 12:30 AM is half an hour after midnight
        text = text.str.replace(r"(?i) ?[ap]m$", "")
        if not text.str.contains("^(0?[1-9]|1[0-2]):").all():
            return None
    if text.str.contains(r"^[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?$").all():
        parts = [text.str.extract(rf"^(?:[0-9.]+:){{{place}}}([0-9.]+)") for place in range(3)]
        hours, minutes, seconds = (part.cast(pl.Float64).fill_null(0) for part in parts)
        if noon.null_count() == 0:
            hours = hours % 12 + (noon == "PM").cast(pl.Float64) * 12
    elif text.str.contains("^[0-9]{1,6}$").all():
        numbers = text.cast(pl.Int64)
        numbers = numbers * 100 if numbers.max() <= 2359 and text.str.len_bytes().max() <= 4 else numbers  # type: ignore[operator]
        hours, minutes, seconds = numbers // 10_000, numbers // 100 % 100, numbers % 100
    else:
        return None
    if not ((hours < 24) & (minutes < 60) & (seconds < 60)).all():
        return None
    return ((hours * 3600 + minutes * 60 + seconds) * 1e6).round().cast(pl.Int64)


def with_clock(days: Times, clock: pl.Series) -> Times:
    """Join dates with times of day."""
    midnight = days.stamps // days.per_second * 1_000_000
    return Times(midnight + clock, 1_000_000, f"{days.unit} + times of the day", False)


def whole_dates(floats: pl.Series, exact: pl.Series, middle: float) -> Times | None:
    """Dates written as whole numbers, if most values are such; one number in twenty is by chance."""
    for name, digits, rest in WHOLE_DATES:
        if not 1900 <= middle / 10 ** (digits - 4) < 2101:
            continue
        whole = exact if exact.dtype.is_integer() else floats.set(floats != floats.floor(), None)
        text = whole.cast(pl.Int64, strict=False).cast(pl.String)
        text = text.set(text.str.len_bytes() != digits, None)
        dates = by_parts(text, lambda part, rest=rest: _date(part.str.slice(0, 14) + rest))  # type: ignore[misc]
        if digits == 17:
            dates = dates + text.str.slice(14).cast(pl.Int64)
        if dates.null_count() < len(dates) / 2:
            return Times(dates, 1000, f"whole numbers {name}", False)
    return None


def _date(digits: pl.Series) -> pl.Series:
    """Unix milliseconds of yyyymmddHHMMSS; null if it is not a date."""
    iso = digits.str.replace("^(....)(..)(..)(..)(..)(..)$", "$1-$2-$3 $4:$5:$6")
    iso = iso.set(digits.str.slice(12, 2) > "59", None)  # 60 is a leap second, which Unix time does not have
    return iso.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False).dt.timestamp("ms")


def excel_days(floats: pl.Series) -> Times | None:
    """Days as Excel counts them, if all values can be such days."""
    if floats.null_count() or not floats.is_between(*EXCEL_DAYS).all():
        return None
    # Round to milliseconds: fractions of a day are inexact, and rounding down could give the previous second.
    stamps = ((floats - EXCEL_DAY_OF_1970) * (DAY * 1000)).round().cast(pl.Int64)
    return Times(stamps, 1000, "days of Excel", False)


def from_text(text: pl.Series) -> pl.Series:
    """Int64 if all values are integers, UTC datetimes (or null) if some values are dates, else the text unchanged."""
    integers = by_parts(text, lambda part: part.str.strip_chars().cast(pl.Int64, strict=False))
    if integers.null_count() == 0 or text.null_count() == len(text):
        return text if integers.null_count() else integers
    first = _plain_time(text.slice(int(text.is_not_null().arg_max() or 0), 1))
    if first.cast(pl.Float64, strict=False).null_count() == 0:
        return text
    # The format of the first value is tried first, as all values usually have the same.
    patterns = sorted(DATE_FORMATS, key=lambda form: first.str.to_datetime(form, strict=False).null_count())
    parsed = by_parts(text, lambda part: _dates(_plain_time(part), patterns))
    return text if parsed.null_count() == len(parsed) else parsed


def _plain_time(text: pl.Series) -> pl.Series:
    return text.str.strip_chars().str.replace(r" ?UTC$", "Z").str.replace("T", " ", literal=True)


def _dates(plain: pl.Series, patterns: list[str]) -> pl.Series:
    """Dates in UTC, by the first pattern that fits each value; null if none fits."""
    parsed = pl.repeat(None, len(plain), dtype=pl.Datetime("us", "UTC"), eager=True)
    for pattern in patterns:
        if parsed.null_count() > plain.null_count():
            dates = plain.str.to_datetime(pattern, time_unit="us", time_zone="UTC", strict=False)
            parsed = parsed.zip_with(parsed.is_not_null(), dates)
    return parsed
