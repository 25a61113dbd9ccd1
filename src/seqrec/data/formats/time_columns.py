"""Finds the column, or the two columns, with the times of the interactions."""

import re
from collections.abc import Iterable
from shlex import quote
from typing import NamedTuple

import polars as pl

from seqrec.data.formats.summary import LogSummary
from seqrec.data.formats.text import USUAL_NAMES, Origin, plain_name, usual_columns
from seqrec.data.formats.times import (
    YEAR_1980,
    YEAR_2100,
    Times,
    clock_of,
    doubt_about,
    seconds_of,
    times_of,
    with_clock,
)

SAMPLE_ROWS = 1000
YEAR_1900, YEAR_1990, YEAR_2040 = -2_208_988_800, 631_152_000, 2_208_988_800
# Parts of names that mention time: as a word (t_dat, created_at, watched_on), or inside of one (unixtime, InvoiceDate).
TIME_WORDS = "at on dat dt ts day days when created clicked watched played bought moment utc gmt"
INSIDE_WORDS = ("time", "date", "stamp", "epoch", "datum", "fecha")
# Times of users and items rather than of interactions; then durations.
OTHER_TIMES = "birth born dob birthday release released publish published signup registered registration expiry"
DURATIONS = "run runtime duration spent length play playtime watch elapsed"
NAMES_OF_CLOCKS = ("time", "timeofday", "eventtime", "hhmm", "timehhmm")


class Found(NamedTuple):
    """The times, and the columns that they came from."""

    names: list[str]
    seconds: pl.Series
    fine: pl.Series | None  # timestamps before rounding to seconds; None if they were whole
    unit: str


def find_times(
    columns: dict[str, pl.Series], log: Origin, named: list[str], usual: list[str], summary: LogSummary
) -> Found | None:
    """Find the times of the log; None if there are none.

    Args:
        columns: all columns but those of the user and the item.
        log: origin of the columns.
        named: columns that the caller named, or that are the times by their position in a file without a header.
        usual: columns with usual names, best first.
        summary: receives notes about guesses.
    """
    if named:
        return _checked(columns, log, named, _parsed(columns, named), summary)
    pair = _date_and_clock(columns, usual)
    if pair is not None:
        which = f"columns {pair[0]!r} and {pair[1]!r}"
        summary.warn(f"{which} are joined to the time; to use only one, name it with --timestamp")
        return _checked(columns, log, list(pair), _parsed(columns, list(pair)), summary)
    if usual:
        return _usual(columns, log, usual, summary)
    likely = [name for name in columns if log.header and has_time_name(name) and looks_like_times(columns[name], True)]
    clear = [name for name in likely if not parts_of(name) & words(OTHER_TIMES)]
    pair = _date_and_clock(columns, clear)
    if pair is not None or len(clear) == 1:
        names = list(pair or clear)
        which = " and ".join(map(repr, names))
        summary.warn(f"no time column with a usual name; {which} is used, a guess (--timestamp names another)")
        return _checked(columns, log, names, _parsed(columns, names), summary)
    likely += [name for name in columns if name not in likely and looks_like_times(columns[name], False)]
    if likely:
        look = "look" if len(likely) > 1 else "looks"
        flags = " or ".join(f"--timestamp {quote(name)}" for name in likely)
        summary.warn(
            f"no time column found; {', '.join(map(repr, likely))} {look} like one: give {flags} "
            "(timestamp=). The lines are taken to be in time order"
        )
        return None
    doubtful = [name for name in columns if log.header and has_time_name(name) and _may_be_times(columns[name])]
    if doubtful:
        summary.warn(
            f"no time column found; {', '.join(map(repr, doubtful))} may be one, but not all values can be read: "
            f"--timestamp {quote(doubtful[0])} shows which. The lines are taken to be in time order"
        )
    return None


def has_time_name(name: str) -> bool:
    """Whether a column's name mentions time."""
    return bool(parts_of(name) & words(TIME_WORDS)) or any(word in plain_name(name) for word in INSIDE_WORDS)


def parts_of(name: str) -> set[str]:
    """The words of a name such as createdAt, CREATED_AT or 'created at'."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)}


def words(text: str) -> set[str]:
    """The blank-separated words of a text."""
    return set(text.split())


def _parsed(columns: dict[str, pl.Series], names: list[str]) -> Times | None:
    """Times of one column, or of a date column joined with a time-of-day column."""
    times = times_of(columns[names[0]])
    clock = clock_of(columns[names[1]]) if len(names) > 1 else None
    return times if clock is None or times is None else with_clock(times, clock)


def _checked(
    columns: dict[str, pl.Series], log: Origin, names: list[str], times: Times | None, summary: LogSummary
) -> Found:
    """The times as seconds; raises for the first value that is not a time."""
    seconds, fine = seconds_of(log, columns[names[0]], times)
    assert times is not None
    if doubt := doubt_about(times, seconds):
        summary.warn(doubt)
    return Found(names, seconds, fine, times.unit)


def _date_and_clock(columns: dict[str, pl.Series], likely: list[str]) -> tuple[str, str] | None:
    """Find a date column and a time-of-day column, one of which must be the best likely column."""
    clocks = [name for name, values in columns.items() if is_clock(values)]
    if len(clocks) > 1:
        clocks = [name for name in clocks if plain_name(name) == "time"]
    if len(clocks) != 1:
        return None
    # A column with complete times is better than a date and a time of day.
    for name in (name for name in likely if name not in clocks):
        head = times_of(columns[name].head(SAMPLE_ROWS))
        if head is None or not head.is_whole or not head.is_days():
            return None
        times = times_of(columns[name])
        return (name, clocks[0]) if times is not None and times.is_whole and times.is_days() else None
    dates = [name for name in columns if name not in clocks and has_time_name(name)]
    whole = [name for name in dates if (times := times_of(columns[name])) and times.is_whole and times.is_days()]
    return (whole[0], clocks[0]) if len(whole) == 1 and set(likely) == set(clocks) else None


def is_clock(values: pl.Series) -> bool:
    """Whether a column holds times of the day; without colons, its name must be unambiguous."""
    if "time" not in plain_name(values.name) or parts_of(values.name) & words(DURATIONS):
        return False
    if values.dtype != pl.Time and plain_name(values.name) not in NAMES_OF_CLOCKS:
        head = values.head(SAMPLE_ROWS)
        if head.dtype != pl.String or not head.str.contains(":").fill_null(False).all():
            return False
    return clock_of(values.head(SAMPLE_ROWS)) is not None and clock_of(values) is not None


def _usual(columns: dict[str, pl.Series], log: Origin, usual: list[str], summary: LogSummary) -> Found:
    """The column with the best usual name; if most of its values are not times, another column with only times."""
    best = usual[0]
    times = times_of(columns[best])
    if times is None or times.share < 0.5:
        named = [
            name for name in columns if log.header and has_time_name(name) and not parts_of(name) & words(OTHER_TIMES)
        ]
        for other in [*usual[1:], *(name for name in named if name not in usual)]:
            if looks_like_times(columns[other], True):
                summary.warn(f"column {best!r} holds no times; {other!r} is used (--timestamp names another)")
                return _checked(columns, log, [other], times_of(columns[other]), summary)
    return _checked(columns, log, [best], times, summary)


def looks_like_times(values: pl.Series, named: bool, finest: int = 1000) -> bool:
    """Whether all values are plausible times.

    Args:
        values: the column.
        named: whether its name mentions time; if not, only dates and numbers of a recent size count.
        finest: units per second up to which numbers count, as ids often have the 16 to 19 digits of micro- and
            nanoseconds.
    """
    if values.null_count():
        return False
    for rows in (values.head(SAMPLE_ROWS), values):  # the first rows usually decide
        times = times_of(rows)
        if times is None:
            return False
        if named or times.unit == "dates":
            span = (YEAR_1980 if times.is_number else YEAR_1900), YEAR_2100
        elif (times.is_number and times.per_second <= finest) or (
            finest > 1000 and _is_dates_by_more_than_chance(times)
        ):
            span = YEAR_1990, YEAR_2040
        else:
            return False
        if not times.lie_between(*span):
            return False
    return True


def _is_dates_by_more_than_chance(times: Times) -> bool:
    """Whether these are dates written as whole numbers. One number in 20 looks like one, so several must differ."""
    return times.unit.startswith("whole numbers") and times.stamps.n_unique() >= 3


def _may_be_times(values: pl.Series) -> bool:
    """Whether a column may hold times with gaps, or in an unknown notation."""
    there = values.drop_nulls()
    if there.dtype == pl.String:
        there = there.filter(there.str.contains("[0-9]"))
        is_number = there.head(SAMPLE_ROWS).str.strip_chars().cast(pl.Float64, strict=False).is_not_null()
        if len(there) > len(values) / 2 and not is_number.any():
            return True
    return len(there) > len(values) / 2 and looks_like_times(there, True)


def position_of_times(columns: Iterable[pl.Series]) -> list[str]:
    """Columns, out of some without names, that are certainly times."""
    return [column.name for column in columns if looks_like_times(column, False, 10**9)]


def usual_times(names: Iterable[str]) -> list[str]:
    """Columns with usual names for the time, best first."""
    return usual_columns(names, USUAL_NAMES["timestamp"].split(), exact="timestamp")
