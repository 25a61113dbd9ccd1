"""Chooses the columns of a log for each role: user, item, timestamp, rating."""

from dataclasses import dataclass, field

import polars as pl

from seqrec.data.formats.summary import LogSummary, some_names
from seqrec.data.formats.text import USUAL_NAMES, Origin, usual_columns
from seqrec.data.formats.time_columns import find_times, position_of_times, usual_times
from seqrec.data.formats.times import clock_of, is_counted, times_of
from seqrec.data.formats.values import PART_ROWS, floats_of, ids_of, is_text, numbers_of, words_for_nothing
from seqrec.errors import InputError

ROLES = tuple(USUAL_NAMES)


@dataclass
class Choice:
    """Columns of each role, chosen by name or position.

    Args:
        roles: columns of the user, the item and, if there is one, the rating.
        times: columns that certainly hold the times: one column, or a date column and a time-of-day column.
        usual: columns with a usual name for times, best first, if ``times`` is empty.
        instead: alternative columns for the user and the item.
    """

    roles: dict[str, str] = field(default_factory=dict)
    times: list[str] = field(default_factory=list)
    usual: list[str] = field(default_factory=list)
    instead: dict[str, list[str]] = field(default_factory=dict)


def choose_columns(frame: pl.DataFrame, log: Origin, given: dict[str, str], summary: LogSummary) -> Choice:
    """Choose columns that the caller named, else columns with usual names or, without a header, in usual positions."""
    names = frame.columns
    seen = some_names(names) + ("" if log.header else " (numbers, as there is no header)")
    guesses = {} if log.header else _guess_by_position(frame, log, given, summary)
    if guesses and not given:
        _refuse_odd_guesses(frame, log, guesses)
    choice, chosen = Choice(), dict[str, str]()
    for role in ROLES:
        parameter = role.removesuffix("_id")
        if role in given:
            same = [name for name in names if name.strip().lower() == given[role].strip().lower()]
            found = sorted(same, key=lambda name: name != given[role])
        elif not log.header:
            found = guesses.get(role, [])
        elif role == "timestamp":
            choice.usual = usual_times(name for name in names if name not in (*given.values(), *chosen.values()))
            continue
        else:
            found = _usual(names, role, given)
        if found and found[0] in chosen.values():
            raise InputError(f"{log.name}: column {found[0]!r} has two roles; name another one with {parameter}=")
        if found:
            chosen[role] = found[0]
            if role == "timestamp":
                choice.times = found[:1] if role in given else found
            choice.instead[role] = found[1:]
        elif role in given or role.endswith("_id"):
            what = f"column {given[role]!r}" if role in given else f"{parameter} column found"
            raise InputError(f"{log.name}: no {what}; name it with {parameter}= (--{parameter}); columns: {seen}")
    choice.roles = {role: name for role, name in chosen.items() if role != "timestamp"}
    used = (*choice.roles.values(), *choice.times)
    for role in ("user_id", "item_id"):
        others = choice.instead[role] if role not in given else _usual(names, role, given)
        whole = [name for name in others if name not in used and frame[name].null_count() == 0]
        choice.instead[role] = whole[:3]
    choice.usual = [name for name in choice.usual if name not in used]
    return choice


def _usual(names: list[str], role: str, given: dict[str, str]) -> list[str]:
    """Columns with a usual name for a role, best first."""
    left = (name for name in names if name not in given.values())
    return usual_columns(left, USUAL_NAMES[role].split(), exact=role)


def _guess_by_position(
    frame: pl.DataFrame, log: Origin, given: dict[str, str], summary: LogSummary
) -> dict[str, list[str]]:
    """Guess the roles of columns without a header; makes no guess for more than four columns."""
    taken = {name.strip() for name in given.values()}
    if not 2 <= frame.width <= 4 or "user_id" in given or "item_id" in given:
        return {}
    if taken:
        left = [name for name in frame.columns if name not in taken]
        return {"user_id": left[:1], "item_id": left[1:2]}
    if (early := _early_times(frame, log, summary)) is not None:
        return early
    guesses = {"user_id": ["1"], "item_id": ["2"]}
    if frame.width == 2:
        return guesses
    small = [bool(floats_of(frame[name]).is_between(0, 10).fill_null(False).all()) for name in frame.columns[2:]]
    if frame.width == 3:
        # Times between 0 and 10 occur only in tiny logs, where a user rarely has two interactions at once.
        # In a large log the first rows usually decide, which avoids a table of all rows.
        twice = pl.struct("1", "3").is_duplicated().any()
        is_rating = small[0] and any(rows.select(twice).item() for rows in (frame[:PART_ROWS], frame))
        return guesses | {"rating" if is_rating else "timestamp": ["3"]}
    days = times_of(frame["3"])
    if days is not None and days.is_whole and days.is_days() and clock_of(frame["4"]) is not None:
        summary.warn("columns '3' and '4' are joined to the time; to use only one, name it with --timestamp")
        return guesses | {"timestamp": ["3", "4"]}
    swapped = small[1] and not small[0]
    rating, time = ("4", "3") if swapped else ("3", "4")
    return guesses | {"timestamp": [time], "rating": [rating]}


def _early_times(frame: pl.DataFrame, log: Origin, summary: LogSummary) -> dict[str, list[str]] | None:
    """Roles of the columns if one of the first two holds times instead of a user or an item; None if neither does.

    Dates are always times. Numbers that look like Unix times may be ids, so they raise an error that asks for the
    roles, but only if no other column holds times, and most values differ, unlike those of users and items.
    """
    times = position_of_times(frame.iter_columns())
    early = [name for name in times if name in ("1", "2")]
    dates = [name for name in early if not frame[name].dtype.is_integer()]
    clear = [name for name in early if name in dates or not is_counted(frame[name])]
    often = all(frame[name].n_unique() * 2 < frame.height for name in early)
    if not dates and (len(times) > len(early) or (often and not clear)):
        _refuse_ratings_as_items(frame, log)
        return None
    time = (dates or early)[0]
    left = [name for name in frame.columns if name != time]
    flags = " ".join(f"--{role} {name}" for role, name in zip(("user", "item"), left, strict=False))
    if len(left) < 2:
        raise InputError(f"{log.name}: column {time} holds times, so the user or the item is missing; add its column")
    if not dates or len(early) > 1 or (frame.width == 4 and time == "1"):
        raise InputError(
            f"{log.name}: column {time} looks like times, and there is no header; name the columns, for example "
            f"{flags} --timestamp {time}"
        )
    summary.warn(
        f"column {time} holds times; read as {flags} --timestamp {time}; if that is wrong, give these flags yourself"
    )
    return {"user_id": left[:1], "item_id": left[1:2], "timestamp": [time]}


def _refuse_odd_guesses(frame: pl.DataFrame, log: Origin, guesses: dict[str, list[str]]) -> None:
    """Raise if a column guessed to be the user or the item is very unlikely to be one."""
    for role in ("user_id", "item_id"):
        for name in guesses.get(role, []):
            rows = frame[name].head(PART_ROWS)
            if rows.dtype == pl.String and rows.str.contains(":").all() and clock_of(rows) is not None:
                odd = "times of the day"
            elif role == "item_id" and frame.width > 2 and frame.height > 2 and frame[name].n_unique() == 1:
                odd = "one value in all rows"
            elif role == "user_id" and frame.width == 4 and frame.height >= 20 and _counts_rows(rows):
                odd = "the numbers of the rows"
            else:
                continue
            raise InputError(
                f"{log.name}: column {name}, expected to be the {role.removesuffix('_id')}, holds {odd}, and there is "
                "no header; name the columns by number: --user N --item N --timestamp N, counted from 1"
            )


def _counts_rows(values: pl.Series) -> bool:
    """Whether the values are consecutive numbers, such as 0, 1, 2, …."""
    numbers = values.cast(pl.Int64, strict=False)
    return numbers.null_count() == 0 and bool((numbers.diff().drop_nulls() == 1).all())


def _refuse_ratings_as_items(frame: pl.DataFrame, log: Origin) -> None:
    """Raise if the second column holds ratings and the third does not."""
    if frame.width < 4 or frame.height < 20:  # in a small log, anything may be a few small numbers
        return
    small = [floats_of(frame[name].head(PART_ROWS)).is_between(0, 10).fill_null(False).all() for name in "234"]
    if small == [True, False, False] and frame["3"].n_unique() > 11 and not position_of_times([frame["3"]]):
        raise InputError(
            f"{log.name}: column 2 looks like ratings, and there is no header; name the columns, for example "
            "--user 1 --item 3 --rating 2 --timestamp 4"
        )


def canonical(
    read: dict[str, pl.Series], log: Origin, choice: Choice, strict_rating: bool, summary: LogSummary
) -> pl.DataFrame:
    """The frame with canonical names and types."""
    columns: dict[str, pl.Series] = {}
    for role in ("user_id", "item_id"):
        parameter, name = role.removesuffix("_id"), choice.roles[role]
        columns[role] = ids_of(log, read.pop(name), parameter, choice.instead[role])
        if nothing := words_for_nothing(columns[role]):
            word, count = nothing
            other = "".join(f"; {other!r} may be the {parameter} (--{parameter})" for other in choice.instead[role])
            summary.warn(f"in {count:,} of {len(columns[role]):,} rows the {parameter} id is the word {word!r}{other}")
        summary.columns[parameter] = name
    rating = read.pop(choice.roles["rating"]) if "rating" in choice.roles else None
    notes = len(summary.notes)
    found = find_times(read, log, choice.times, choice.usual, summary)
    if found is not None:
        columns["timestamp"] = found.seconds
        summary.columns["timestamp"] = " + ".join(found.names)
        summary.time_unit = found.unit
        for name in found.names:
            read.pop(name)
    elif len(summary.notes) == notes and _is_scattered(columns["user_id"]):
        summary.warn("no time column; the lines are taken to be in time order (--timestamp names a column)")
    if rating is not None:
        numbers = ratings_of(log, rating, strict_rating, summary)
        if numbers is None:
            read[rating.name] = rating
        else:
            columns["rating"] = numbers
            summary.columns["rating"] = rating.name
    summary.ignored = list(read)
    for name in list(read):
        extra = read.pop(name)
        # The caller may have chosen another column for a role than the one with its canonical name.
        columns[f"{name}_other" if name in ROLES else name] = extra.cast(pl.String) if is_text(log) else extra
    frame = pl.DataFrame(columns)
    summary.frame_columns = frame.columns
    fine = None if found is None else found.fine
    if fine is not None and not fine.is_sorted():
        # Rounding makes different timestamps equal, and ties keep the order of the rows: sort by the fine timestamps.
        frame = frame.with_columns(fine.alias("\0fine")).sort("\0fine", maintain_order=True).drop("\0fine")
    return frame


def ratings_of(log: Origin, values: pl.Series, strict: bool, summary: LogSummary) -> pl.Series | None:
    """Ratings as numbers, null for gaps; None if some are words, unless ``strict`` makes that an error."""
    if strict:
        return numbers_of(log, values, "rating")
    floats = floats_of(values) if values.dtype == pl.String or values.dtype.is_numeric() else None
    if floats is not None:
        floats = floats.set(floats.is_nan() | (floats.abs() >= 9e18), None)
        empty = values.is_null()
        if values.dtype == pl.String:
            empty = empty | values.str.strip_chars().str.to_lowercase().is_in(["", "nan", "na", "null", "none"])
        elif values.dtype.is_float():
            empty = empty | values.is_nan()
        if (floats.is_not_null() | empty.fill_null(True)).all():
            return floats
    bad = "values of another type" if floats is None else f"{values.filter(floats.is_null() & ~empty)[0]!r}"
    summary.warn(f"column {values.name!r} holds {bad}, so it is not used as a rating (--rating names another column)")
    return None


def _is_scattered(users: pl.Series) -> bool:
    """Whether the rows of some user are not consecutive."""
    if len(users) < 2:
        return False
    return int((users != users.shift(1)).sum()) + 1 > users.n_unique()
