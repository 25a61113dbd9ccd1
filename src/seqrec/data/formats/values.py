"""Ids and numbers out of a column."""

from collections.abc import Callable

import polars as pl

from seqrec.data.formats.blocks import short
from seqrec.data.formats.text import Origin
from seqrec.errors import InputError

PART_ROWS = 1 << 22


def is_text(log: Origin) -> bool:
    """Whether the columns are those of `read_text`: text, or integers that stand for it."""
    return log.separator not in (None, "\n")


def ids_of(log: Origin, values: pl.Series, role: str) -> pl.Series:
    """Int64 or String ids, or the error for the first that is none."""
    if isinstance(values.dtype, (pl.Categorical, pl.Enum, pl.Binary)):
        values = values.cast(pl.String, strict=False)
    is_text, is_float = values.dtype == pl.String, values.dtype.is_float()
    if is_text and log.separator and str(values[0]) != str(values[0]).strip():
        stripped = values.str.strip_chars()
        # Blanks around separators ('1, 2') are no part of an id, unless only some values have them.
        values = stripped if (stripped != values).all() else values
    blank = by_parts(values, lambda part: part.str.strip_chars() == "") if is_text else None
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


def numbers_of(log: Origin, values: pl.Series, role: str, kind: str = "a number") -> pl.Series:
    """Finite Float64 values, or the error for the first that is none."""
    advice = f"correct or remove it, or name another column with {role}= (--{role})"
    if values.dtype not in (pl.String, pl.Null) and not values.dtype.is_numeric():
        raise InputError(f"{log.name}: {role} column {values.name!r} holds {values.dtype}; {advice}")
    numbers = floats_of(values)
    good = (numbers.abs() < 9e18).fill_null(False)  # neither NaN nor infinite, and what Int64 can hold
    log.check(good, lambda row: f"{role} {written(log, values[row])} is not {kind}; {advice}")
    return numbers


def floats_of(values: pl.Series) -> pl.Series:
    """Float64 values; null where a value is no number."""
    if values.dtype != pl.String:
        return values.cast(pl.Float64, strict=False)
    return by_parts(values, lambda part: part.str.strip_chars().cast(pl.Float64, strict=False))


def by_parts(values: pl.Series, change: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """The changed values; part by part, so that what comes between stays small."""
    starts = range(0, len(values), PART_ROWS) or [0]
    return pl.concat([change(values.slice(start, PART_ROWS)) for start in starts])


def written(log: Origin, value: object) -> str:
    """A value as messages show it: in quotation marks where the file is text."""
    return short(str(value) if is_text(log) and value is not None else value)
