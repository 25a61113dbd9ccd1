"""Which column, or which two, hold the times of the interactions."""

import re
from collections.abc import Iterable
from shlex import quote
from typing import NamedTuple

import polars as pl

from seqrec.data.formats.summary import LogSummary
from seqrec.data.formats.text import USUAL_NAMES, Origin, plain_name
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
# Parts of a name that speak of time, alone (t_dat, created_at, watched_on) or inside of a word (unixtime, InvoiceDate).
TIME_WORDS = "at on dat dt ts day days when created clicked watched played bought moment utc gmt"
INSIDE_WORDS = ("time", "date", "stamp", "epoch", "datum", "fecha")
# Times of people and things, not of what people did with things; and how long something took.
OTHER_TIMES = "birth born dob birthday release released publish published signup registered registration expiry"
DURATIONS = "run runtime duration spent length play playtime watch elapsed"
NAMES_OF_CLOCKS = ("time", "timeofday", "eventtime", "hhmm", "timehhmm")


class Found(NamedTuple):
    """The times, and the columns that they came from."""

    names: list[str]
    seconds: pl.Series
    fine: pl.Series | None  # what the seconds were rounded from, where something was lost
    unit: str


def find_times(
    columns: dict[str, pl.Series], log: Origin, named: list[str], usual: list[str], summary: LogSummary
) -> Found | None:
    """The times of the log.

    Args:
        columns: all but those of the user and the item.
        log: where they came from.
        named: the columns that somebody named, or that their place in a file without a header makes the times.
        usual: the columns of usual names, best first.
        summary: takes notes of what is guessed.
    """
    if named:
        return _checked(columns, log, named, _parsed(columns, named), summary)
    pair = _date_and_clock(columns, usual)
    if pair is not None:
        summary.warn(f"columns {pair[0]!r} and {pair[1]!r} are put together to the time; --timestamp names one alone")
        return _checked(columns, log, list(pair), _parsed(columns, list(pair)), summary)
    if usual:
        return _usual(columns, log, usual, summary)
    likely = [name for name in columns if log.header and has_time_name(name) and _looks_like_times(columns[name], True)]
    clear = [name for name in likely if not parts_of(name) & words(OTHER_TIMES)]
    pair = _date_and_clock(columns, clear)
    if pair is not None or len(clear) == 1:
        names = list(pair or clear)
        which = " and ".join(map(repr, names))
        summary.warn(f"no time column of a usual name; {which}, which looks like one, is taken (--timestamp says it)")
        return _checked(columns, log, names, _parsed(columns, names), summary)
    likely += [name for name in columns if name not in likely and _looks_like_times(columns[name], False)]
    if likely:
        look = "look" if len(likely) > 1 else "looks"
        flags = " or ".join(f"--timestamp {quote(name)}" for name in likely)
        summary.warn(
            f"no time column found; {', '.join(map(repr, likely))} {look} like one: give {flags} "
            "(timestamp=). The order of the lines is taken for the order of time"
        )
    return None


def has_time_name(name: str) -> bool:
    """Whether a column's name speaks of time."""
    return bool(parts_of(name) & words(TIME_WORDS)) or any(word in plain_name(name) for word in INSIDE_WORDS)


def parts_of(name: str) -> set[str]:
    """The words of a name such as createdAt, CREATED_AT or 'created at'."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)}


def words(text: str) -> set[str]:
    """The words between blanks."""
    return set(text.split())


def _parsed(columns: dict[str, pl.Series], names: list[str]) -> Times | None:
    """One column's times, or a column of dates with one of times of the day."""
    times = times_of(columns[names[0]])
    clock = clock_of(columns[names[1]]) if len(names) > 1 else None
    return times if clock is None or times is None else with_clock(times, clock)


def _checked(
    columns: dict[str, pl.Series], log: Origin, names: list[str], times: Times | None, summary: LogSummary
) -> Found:
    """The times as seconds; raises the error for the first value that is none."""
    seconds, fine = seconds_of(log, columns[names[0]], times)
    assert times is not None
    if doubt := doubt_about(times, seconds):
        summary.warn(doubt)
    return Found(names, seconds, fine, times.unit)


def _date_and_clock(columns: dict[str, pl.Series], likely: list[str]) -> tuple[str, str] | None:
    """A column of dates and one of times of the day, where the best of the likely ones is one of the two."""
    clocks = [name for name, values in columns.items() if _is_clock(values)]
    if len(clocks) > 1:
        clocks = [name for name in clocks if plain_name(name) == "time"]
    if len(clocks) != 1:
        return None
    # Ahead of a date goes whatever is a time by itself.
    for name in (name for name in likely if name not in clocks):
        head = times_of(columns[name].head(SAMPLE_ROWS))
        if head is None or not head.is_whole or not head.is_days():
            return None
        times = times_of(columns[name])
        return (name, clocks[0]) if times is not None and times.is_whole and times.is_days() else None
    dates = [name for name in columns if name not in clocks and has_time_name(name)]
    whole = [name for name in dates if (times := times_of(columns[name])) and times.is_whole and times.is_days()]
    return (whole[0], clocks[0]) if len(whole) == 1 and set(likely) == set(clocks) else None


def _is_clock(values: pl.Series) -> bool:
    """Whether a column holds times of the day; without colons only where its name can mean nothing else."""
    if "time" not in plain_name(values.name) or parts_of(values.name) & words(DURATIONS):
        return False
    if values.dtype != pl.Time and plain_name(values.name) not in NAMES_OF_CLOCKS:
        head = values.head(SAMPLE_ROWS)
        if head.dtype != pl.String or not head.str.contains(":").fill_null(False).all():
            return False
    return clock_of(values.head(SAMPLE_ROWS)) is not None and clock_of(values) is not None


def _usual(columns: dict[str, pl.Series], log: Origin, usual: list[str], summary: LogSummary) -> Found:
    """The best of the usual names; where most of its values are no times, another column whose values all are."""
    best = usual[0]
    times = times_of(columns[best])
    if times is None or times.share < 0.5:
        named = [
            name for name in columns if log.header and has_time_name(name) and not parts_of(name) & words(OTHER_TIMES)
        ]
        for other in [*usual[1:], *(name for name in named if name not in usual)]:
            if _looks_like_times(columns[other], True):
                summary.warn(f"column {best!r} holds no times; {other!r} is taken (--timestamp names another)")
                return _checked(columns, log, [other], times_of(columns[other]), summary)
    return _checked(columns, log, [best], times, summary)


def _looks_like_times(values: pl.Series, named: bool, finest: int = 1000) -> bool:
    """Whether all values are times of our days; without a name that says so, dates, or numbers of today's size.

    Ids of 16 to 19 digits are as frequent as times in micro- or nanoseconds, the `finest` units per second.
    """
    if values.null_count():
        return False
    for rows in (values.head(SAMPLE_ROWS), values):  # the first rows tell mostly, which spares a look at all
        times = times_of(rows)
        if times is None:
            return False
        if named or times.unit == "dates":
            span = (YEAR_1980 if times.is_number else YEAR_1900), YEAR_2100
        elif times.is_number and times.per_second <= finest:
            span = YEAR_1990, YEAR_2040
        else:
            return False
        if not times.lie_between(*span):
            return False
    return True


def position_of_times(columns: Iterable[pl.Series]) -> list[str]:
    """Of columns that have no names, those that can be nothing but times."""
    return [column.name for column in columns if _looks_like_times(column, False, 10**9)]


def usual_times(names: Iterable[str]) -> list[str]:
    """The columns of usual names for the time, best first."""
    ranks = {plain_name(name): rank for rank, name in enumerate(USUAL_NAMES["timestamp"].split())}
    found = [name for name in names if plain_name(name) in ranks]
    return sorted(found, key=lambda name: (ranks[plain_name(name)], name != "timestamp"))
