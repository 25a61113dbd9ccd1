"""Decides what the times of a log mean, as one machine does, from facts about its blocks."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from seqrec.cluster.parts import LOCALLY
from seqrec.data.formats.columns import Choice
from seqrec.data.formats.summary import LogSummary
from seqrec.data.formats.text import Origin
from seqrec.data.formats.time_columns import (
    OTHER_TIMES,
    YEAR_1900,
    has_time_name,
    is_clock,
    looks_like_times,
    parts_of,
    words,
)
from seqrec.data.formats.times import (
    UNITS,
    WHOLE_DATES,
    YEAR_1980,
    YEAR_2032,
    YEAR_2100,
    Times,
    doubt_about,
    excel_days,
    from_text,
    times_of,
    units_per_second,
    whole_dates,
)
from seqrec.data.formats.values import floats_of, numbers_of, written
from seqrec.errors import InputError

_ROUNDS = 8  # passes over the times that may be needed to find their median
_PIVOTS = 1024  # values that a pass compares the times with
_NUMBERS = ("integers", "floats", "text")


class TimeFacts(NamedTuple):
    """Facts about the times of a block.

    ``kind`` is integers, floats, text (of numbers), or dates in so many units per second; ``missing`` is the number of
    values that cannot be read, and ``first_missing`` the row of the first one in the log. ``low`` and ``high`` are
    their extremes, and their median lies between ``middle_low`` and ``middle_high``; None if there are no values.
    """

    kind: str
    missing: int
    first_missing: int | None
    low: Any
    high: Any
    middle_low: float | None
    middle_high: float | None


class TimeRule(NamedTuple):
    """What the times of a log mean.

    ``notation`` is what the numbers are: ``since`` an epoch, ``dates`` written as whole numbers, or ``excel`` days.
    ``middle`` is their median, roughly; None if nothing depends on it.
    """

    name: str  # of the column
    unit: str  # for messages
    per_second: int
    notation: str = "since"
    middle: float | None = None

    def stamps(self, raw: np.ndarray) -> np.ndarray:
        """The times in ``per_second``, from what :func:`raw_times` returned, ``int64[N]`` or ``float64[N]``."""
        exact = pl.Series(raw)
        if self.notation == "since":
            return raw
        floats = _finite(floats_of(exact))
        assert self.middle is not None
        found = excel_days(floats) if self.notation == "excel" else whole_dates(floats, exact, self.middle)
        assert found is not None  # the facts about the block said so
        return found.stamps.to_numpy()

    def seconds(self, stamps: np.ndarray) -> np.ndarray:
        """Unix seconds, rounded down, ``int64[N]``."""
        if self.per_second == 1 and stamps.dtype == np.int64:
            return stamps
        return Times(pl.Series(stamps), self.per_second, self.unit, False).seconds().to_numpy()


def _finite(floats: pl.Series) -> pl.Series:
    return floats.set(floats.is_nan() | (floats.abs() >= 9e18), None)


def choose_time(
    head: pl.DataFrame, log: Origin, choice: Choice, summary: LogSummary
) -> tuple[str | None, Callable[[bool], None]]:
    """The column that may hold the times, by the first rows of the log; and what to do when it is known to be times.

    Raises:
        InputError: only all rows at once could tell which column holds the times.
    """

    def nothing(is_times: bool) -> None:
        del is_times

    if choice.times:
        return choice.times[0], nothing
    used = (choice.roles["user_id"], choice.roles["item_id"], choice.roles.get("rating"))
    columns = {column.name: column for column in head.iter_columns() if column.name not in used}
    clocks = [name for name, values in columns.items() if is_clock(values)]
    days = [name for name in columns if name not in clocks and (name in choice.usual or has_time_name(name))]
    if clocks and days:
        raise InputError(
            f"{log.name}: column {clocks[0]!r} looks like times of day, which may belong to {days[0]!r}; name the "
            f"column with the whole time with --timestamp, or {LOCALLY}"
        )
    if choice.usual:
        return choice.usual[0], nothing
    likely = [name for name in columns if has_time_name(name) and looks_like_times(columns[name], True)]
    clear = [name for name in likely if not parts_of(name) & words(OTHER_TIMES)]
    if len(clear) > 1:
        raise InputError(
            f"{log.name}: several columns may hold the times ({', '.join(clear)}); name one with --timestamp"
        )

    def say(is_times: bool) -> None:
        if is_times:
            note = f"no time column with a usual name; {clear[0]!r} is used, a guess (--timestamp names another)"
            summary.warn(note)
            return
        others = [name for name in columns if name in likely or looks_like_times(columns[name], False)]
        others += [name for name in columns if name not in others and has_time_name(name)]
        if others:
            which = ", ".join(map(repr, others))
            summary.warn(
                f"no time column found; {which} may be one (--timestamp names it). The lines are taken to be in time "
                "order"
            )

    return (clear[0] if clear else None), say


def raw_times(log: Origin, values: pl.Series, strict: bool) -> tuple[np.ndarray, TimeFacts]:
    """The times of a block as numbers, and facts about them.

    Args:
        log: origin of the block, for messages.
        values: the column.
        strict: whether a type that holds no times is an error that names the column's type.
    """
    stamps = from_text(values) if values.dtype == pl.String else values
    if isinstance(stamps.dtype, pl.Date | pl.Datetime):
        dates = times_of(stamps)
        assert dates is not None
        return _with_facts(log, dates.stamps, f"dates {dates.per_second}", None)
    if stamps.dtype != pl.String and not stamps.dtype.is_numeric() and stamps.dtype != pl.Null:
        if strict:
            numbers_of(log, values, "timestamp", "a number or an ISO date")  # raises for such a type
        raise InputError(f"{log.name}: column {values.name!r} holds no times; name another column, or {LOCALLY}")
    if stamps.dtype.is_integer():
        exact = stamps.cast(pl.Int64, strict=False)
        low, high = exact.min(), exact.max()
        if low is not None and low >= YEAR_1980 and high < YEAR_2032:  # type: ignore[operator]
            return _with_facts(log, exact, "integers", (float(low), float(high)))  # type: ignore[arg-type]
        middle = _finite(floats_of(exact)).median()
        return _with_facts(log, exact, "integers", None if middle is None else (float(middle),) * 2)  # type: ignore[arg-type]
    floats = _finite(floats_of(stamps))
    middle = floats.median()
    kind = "text" if stamps.dtype == pl.String else "floats"
    return _with_facts(log, floats, kind, None if middle is None else (float(middle),) * 2)  # type: ignore[arg-type]


def _with_facts(
    log: Origin, stamps: pl.Series, kind: str, middle: tuple[float, float] | None
) -> tuple[np.ndarray, TimeFacts]:
    missing = stamps.null_count()
    first = log.first_row + int(stamps.is_null().arg_max() or 0) if missing else None
    facts = TimeFacts(kind, missing, first, stamps.min(), stamps.max(), *(middle or (None, None)))
    return (stamps.fill_null(0) if missing else stamps).to_numpy(), facts


class Rounds(NamedTuple):
    """Passes over the times of all blocks, for what the facts do not tell."""

    below: Callable[[np.ndarray], np.ndarray]  # how many times lie below each of some values
    read_as_dates: Callable[[float], list["TimeFacts | None"]]  # facts about the dates that the numbers of a block are


def rule_of(
    name: str, log: Origin, facts: Sequence[TimeFacts], summary: LogSummary, choice: Choice, rounds: Rounds
) -> TimeRule | None:
    """What the times of a log mean; None if a column that was only likely to hold times does not.

    Raises:
        InputError: a value is not a time, or has another unit than the others; or no block by itself can tell.
    """
    guessed = not choice.times and not choice.usual
    kinds = {fact.kind for fact in facts if fact.low is not None or fact.missing == 0}
    missing = sum(fact.missing for fact in facts)
    if len(kinds) > 1:
        raise InputError(f"{log.name}: the times in column {name!r} are written in different ways; {LOCALLY}")
    if missing and guessed:
        return None
    if missing:
        row = min(fact.first_missing for fact in facts if fact.first_missing is not None)
        raise InputError(
            f"{log.name}, row {row + 1}: timestamp {written(log, None)} is not a number or an ISO date, as in "
            f"{missing:,} rows; correct or remove it, or name another column with timestamp= (--timestamp)"
        )
    kind = kinds.pop()
    low, high = min(fact.low for fact in facts), max(fact.high for fact in facts)
    if kind not in _NUMBERS:
        rule = TimeRule(name, "dates", int(kind.split()[1]))
        times = Times(pl.Series([low, high]), rule.per_second, "dates", False)
    else:
        rule, times = _rule_of_numbers(name, log, facts, kind, (low, high), rounds)
    if times.stamps.null_count() or (times.is_number and not _is_one_unit(times, rule.middle)):
        if guessed:
            return None
        raise InputError(
            f"{log.name}: some times in column {name!r} are not {times.unit} like most others, or cut off; correct or "
            "remove them, or use one unit for all"
        )
    first = YEAR_1980 if times.is_number else YEAR_1900
    if guessed and not (times.stamps[0] >= first * times.per_second and times.stamps[1] < YEAR_2100 * times.per_second):
        return None
    summary.time_unit = times.unit
    if doubt := doubt_about(times, times.seconds()):
        summary.warn(doubt)
    return rule


def _rule_of_numbers(
    name: str, log: Origin, facts: Sequence[TimeFacts], kind: str, span: tuple[Any, Any], rounds: Rounds
) -> tuple[TimeRule, Times]:
    """The rule for numbers, and the times that their extremes mean."""
    extremes = pl.Series(list(span), dtype=pl.Int64 if kind == "integers" else pl.Float64)
    if kind == "integers" and span[0] >= YEAR_1980 and span[1] < YEAR_2032:
        return TimeRule(name, "seconds since 1970", 1), Times(extremes, 1, "seconds since 1970", True)
    bounds = [(fact.middle_low, fact.middle_high) for fact in facts if fact.middle_low is not None]
    if not bounds:
        raise InputError(f"{log.name}: column {name!r} holds no times that can be read; {LOCALLY}")
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)  # type: ignore[type-var]
    for _ in range(_ROUNDS):
        if _is_decided(float(low), float(high), span):  # type: ignore[arg-type]
            break
        low, high = _narrowed(float(low), float(high), rounds.below)  # type: ignore[arg-type]
    else:
        raise InputError(f"{log.name}: what the times in column {name!r} mean is close to doubtful; {LOCALLY}")
    middle = float(low)
    if any(1900 <= middle / 10 ** (digits - 4) < 2101 for _, digits, _ in WHOLE_DATES):
        found = rounds.read_as_dates(middle)
        known = [fact for fact in found if fact is not None]
        if known and len(known) < len(found):
            raise InputError(f"{log.name}: column {name!r} has dates in some blocks only; {LOCALLY}")
        if known:
            missing = any(fact.missing for fact in known)
            ends = [None, None] if missing else [min(fact.low for fact in known), max(fact.high for fact in known)]
            times = Times(pl.Series(ends, dtype=pl.Int64), 1000, known[0].kind, False)
            return TimeRule(name, times.unit, 1000, "dates", middle), times
    if (days := excel_days(floats_of(extremes))) is not None:
        return TimeRule(name, days.unit, days.per_second, "excel", middle), days
    per_second = units_per_second(middle)
    times = Times(extremes, per_second, f"{UNITS[per_second]} since 1970", True)
    return TimeRule(name, times.unit, per_second, "since", middle), times


def count_below(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many times of a block lie below each of some values, ``int64[M]``."""
    times = _finite(floats_of(pl.Series(raw))).drop_nulls().sort().to_numpy()
    return np.searchsorted(times, values, side="left")


def dates_in(raw: np.ndarray, middle: float) -> TimeFacts | None:
    """Facts about the dates that a block's numbers are, written as whole numbers; None if most are none."""
    exact = pl.Series(raw)
    found = whole_dates(_finite(floats_of(exact)), exact, middle)
    if found is None:
        return None
    stamps = found.stamps
    return TimeFacts(found.unit, stamps.null_count(), None, stamps.min(), stamps.max(), None, None)


def _thresholds(per_second: int) -> list[float]:
    """Values of the median on whose sides the same numbers mean different times."""
    units = [sign * 10.0**power for power in (11, 14, 17) for sign in (-1, 1)]
    dates = [year * 10.0 ** (digits - 4) for _, digits, _ in WHOLE_DATES for year in (1900, 2101)]
    sizes = [float(size * per_second) for size in (YEAR_1980, -1e8, 1e8)]
    return sorted(units + dates + sizes)


def _is_decided(low: float, high: float, span: tuple[Any, Any]) -> bool:
    """Whether the times mean the same for every median from ``low`` to ``high``."""
    if low == high:
        return True
    per_second = units_per_second(low)
    edges = _thresholds(per_second)
    if bisect_right(edges, low) != bisect_right(edges, high):
        return False
    if low < YEAR_1980 * per_second:
        return True
    if span[0] >= YEAR_1980 * per_second and span[1] < YEAR_2032 * per_second:
        return True
    good = span[0] >= high / 8 and span[1] <= low * 8
    bad = span[0] < low / 8 or span[1] > high * 8
    return bool(good or bad)


def _is_one_unit(times: Times, middle: float | None) -> bool:
    """Whether the extremes, and so all times, have the unit of the median; as ``same_unit`` decides."""
    low, high = times.stamps[0], times.stamps[1]
    if low >= YEAR_1980 * times.per_second and high < YEAR_2032 * times.per_second:
        return True
    seconds, size = times.stamps / times.per_second, (middle or 0.0) / times.per_second
    if size >= YEAR_1980:
        return bool(seconds.is_between(size / 8, size * 8).all())
    return bool((seconds.abs() < (9e8 if abs(size) < 1e8 else 1e11)).all())


def _narrowed(low: float, high: float, count: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Closer bounds of the median, from the number of times below some values between the bounds."""
    pivots = np.unique(np.concatenate([np.linspace(low, high, _PIVOTS), [np.nextafter(high, np.inf), np.inf]]))
    below = count(pivots)
    total = below[-1]
    first, last = (total - 1) // 2, total // 2  # the places of the one or two values in the middle
    start = int(np.searchsorted(below, first, side="right")) - 1
    end = int(np.searchsorted(below, last, side="right"))
    return float(pivots[max(start, 0)]), min(float(pivots[min(end, len(pivots) - 1)]), high)
