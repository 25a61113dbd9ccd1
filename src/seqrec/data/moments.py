"""Times that people give, for histories or as cut points: numbers in any unit, dates, ISO texts."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from seqrec.data.formats.times import YEAR_1980, units_per_second
from seqrec.errors import InputError

Moment = int | float | str | date
MICROSECONDS = 10**6  # per second
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBERS: Any = (Real, Decimal)
_ADVICE = "give numbers since 1970, dates or ISO texts, all of the same kind and unit"


def moments_of(times: Any, lengths: Sequence[int]) -> np.ndarray:
    """Microseconds since 1970 of all items, history by history, ``int64[sum of lengths]``.

    The size of a number tells its unit, as in a log: seconds below 1e11, milliseconds below 1e14, microseconds below
    1e17, else nanoseconds. Dates without a zone are UTC.

    Args:
        times: list of times for each history.
        lengths: number of items of each history.

    Raises:
        InputError: the lengths differ from ``lengths``, or a value is not a time.
    """
    if isinstance(times, str | bytes) or not isinstance(times, Iterable):
        raise InputError(f"times are lists, one per history, not {times!r}; give [[...], [...]]")
    parts = [_listed(part) for part in times]
    if len(parts) != len(lengths):
        raise InputError(f"there are times for {len(parts)} histories, but {len(lengths)} histories; give a list each")
    for number, (part, length) in enumerate(zip(parts, lengths, strict=True), 1):
        if len(part) != length:
            raise InputError(f"history {number} has {length} items and {len(part)} times; give one time per item")
    values = [_plain(value) for part in parts for value in part]
    kinds = {isinstance(value, datetime) for value in values}
    if len(kinds) > 1:
        raise InputError(f"some times are numbers and some are dates; {_ADVICE}")
    if kinds == {True}:
        found = [(value - _EPOCH) // timedelta(microseconds=1) for value in values]  # type: ignore[operator]
        return np.array(found, dtype=np.int64)
    units = sorted({units_per_second(value) for value in values if value})  # type: ignore[arg-type]
    if len(units) > 1:
        raise InputError(f"times have different units, such as seconds and milliseconds; {_ADVICE}")
    per_second = units[0] if units else 1
    return np.array([int(value * MICROSECONDS // per_second) for value in values], dtype=np.int64)  # type: ignore[operator]


def moment_of(given: Moment, name: str = "a moment") -> int:
    """Convert a moment to Unix seconds, rounded down as timestamps of a log are.

    Args:
        given: an ISO date with or without a time (UTC unless it names a zone), a ``date`` or ``datetime``, or a number
            since 1970 in seconds, milli-, micro- or nanoseconds, distinguished by its size as in a log.
        name: name of the moment in error messages.

    Raises:
        InputError: ``given`` has none of these forms.
    """
    advice = f"{name} is {given!r}; give an ISO date such as 2020-09-26 or 2020-09-26T10:00, or Unix seconds"
    try:
        if isinstance(given, str):
            text = given.strip()
            try:
                given = float(text) if "." in text else int(text)
            except ValueError:
                given = datetime.fromisoformat(text.upper().replace("UTC", "Z").replace(" Z", "Z").replace("/", "-"))
        if isinstance(given, date):
            exact = given if isinstance(given, datetime) else datetime.combine(given, time())
            exact = exact if exact.tzinfo else exact.replace(tzinfo=UTC)
            return math.floor(exact.timestamp())
        if isinstance(given, bool) or not isinstance(given, int | float | np.number) or not math.isfinite(given):
            raise InputError(advice)
    except (ValueError, OverflowError) as error:
        raise InputError(advice) from error
    return int(given // units_per_second(given))


def written(moment: int) -> str:
    """A moment as messages show it: 1600000000 (2020-09-13T12:26:40)."""
    return f"{moment} ({found})" if (found := _date(moment)) else str(moment)


def shown(moment: int) -> str:
    """A moment as titles show it: 2020-09-13T12:26:40, or the number if it is before 1980 and so hardly a date."""
    return (moment >= YEAR_1980 and _date(moment)) or str(moment)


def _date(moment: int) -> str | None:
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # outside of the years that datetime knows
        return None


def _listed(times: Any) -> list[Any]:
    """The times of one history as a list."""
    if isinstance(times, np.ndarray) and times.dtype.kind == "M":
        times = times.astype("datetime64[us]")  # tolist() would turn nanoseconds into numbers
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(times, name):
            times = getattr(times, name)()
            break
    if isinstance(times, str | bytes) or not isinstance(times, Iterable):
        raise InputError(f"the times of a history are a list, not {times!r}; give [[...], [...]]")
    return list(times)


def _plain(value: Any) -> int | float | datetime:
    """One time as a number or as a datetime with a zone."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, datetime) and value == value:  # NaT is a datetime, too
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    if isinstance(value, date) and value == value:
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not abs(value) < 9e18:
        raise InputError(f"{value!r} is not a time; {_ADVICE}")
    return int(value) if value == int(value) else float(value)


def _from_text(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.strip().removesuffix(" UTC"))
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
