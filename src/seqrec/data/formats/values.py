"""Converts columns to ids and numbers."""

import re
import uuid
from collections.abc import Callable
from shlex import quote

import polars as pl

from seqrec.data.formats.blocks import short
from seqrec.data.formats.text import Origin
from seqrec.errors import InputError

PART_ROWS = 1 << 22
EXACT = 2**53  # below it, floats represent all integers exactly
AS_FLOATS = r"^(0|-?[1-9][0-9]*)(\.0+|(\.[0-9]+)?[eE]\+[0-9]+)?$"
# Dates whose day or month comes first: nobody can tell which.
_OTHER_DATES = r"^\s*\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b"
# Words that other tools write for a missing value.
MISSING = r"NaN nan NAN NA na <NA> <na> N/A n/a #N/A null Null NULL (null) none None NONE nil NIL \N NaT"
ROUNDED = "may have been rounded, as floats are exact below 2^53 only; store ids as integers or strings"
CONTROLS = re.compile("[\0-\x08\x0e-\x1f\x7f]")
LONE = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, which is not valid text


def is_text(log: Origin) -> bool:
    """Whether the columns come from delimited text: they are text, or integers that `shrunk` made of it."""
    return log.separator not in (None, "\n")


def ids_of(log: Origin, values: pl.Series, role: str, instead: list[str] | None = None) -> pl.Series:
    """Convert a column to Int64 or String ids; raises for the first value that is not an id.

    Args:
        log: origin of the column.
        values: the column.
        role: ``user`` or ``item``, for messages.
        instead: alternative columns, for messages.
    """
    values = _plain_type(log, values, role)
    is_text, is_float = values.dtype == pl.String, values.dtype.is_float()
    if is_text and log.separator and str(values[0]) != str(values[0]).strip():
        stripped = values.str.strip_chars()
        # Blanks next to separators ('1, 2') are not part of an id, unless only some values have them.
        values = stripped if (stripped != values).all() else values
    blank = by_parts(values, lambda part: part.str.strip_chars() == "") if is_text else None
    missing = values.is_null() | (blank if blank is not None else values.is_nan() if is_float else False)
    numbers = values.cast(pl.Int64, strict=False) if is_text or values.dtype.is_numeric() else None
    if is_text and numbers is not None and numbers.null_count():
        missing = missing | missing_words(values, numbers)
    if missing.any():
        log.check(~missing, lambda row: _missing(values, missing, row, role, instead or []))
    if numbers is None:
        advice = f"store integers or strings, or name another column with {role}= (--{role})"
        raise InputError(f"{log.name}: {role} column {values.name!r} holds {values.dtype}, not ids; {advice}")
    if is_text and log.separator in (None, "\n"):
        return values
    if is_text and numbers.null_count():
        return _whole_numbers(log, values, role)
    if is_text or values.dtype.is_integer():
        # '0000143561' and '+1' are different ids from 143561 and 1.
        same = numbers.null_count() == 0 and (not is_text or bool((numbers.cast(pl.String) == values).all()))
        return numbers if same else values.cast(pl.String)
    if is_float:
        log.check(~(values.abs() >= EXACT), lambda row: f"{role} id {values[row]} {ROUNDED}")
    whole = (numbers.cast(values.dtype, strict=False) == values).fill_null(False)
    log.check(whole, lambda row: f"{role} id {values[row]} is not whole; store ids as integers or strings")
    return numbers


def _plain_type(log: Origin, values: pl.Series, role: str) -> pl.Series:
    """Convert categories, UUIDs, bytes, whole decimals and Python's large integers to text; other types stay."""
    if isinstance(values.dtype, (pl.Categorical, pl.Enum)):
        return values.cast(pl.String)
    if values.dtype == pl.Binary:
        return _text_of_bytes(log, values, role)
    if values.dtype.is_decimal():
        digits = values.cast(pl.String).str.replace(r"\.0+$", "")
        fits = digits.cast(pl.Int64, strict=False).null_count() == values.null_count()
        return values if fits or digits.str.contains(".", literal=True).any() else digits
    if values.dtype == pl.Object:
        found = values.to_list()
        if all(value is None or type(value) in (int, str, uuid.UUID) for value in found):
            text = [None if value is None else str(value) for value in found]
            good = pl.Series([value is None or value.isprintable() or not LONE.search(value) for value in text])
            log.check(good, lambda row: f"the {role} id holds a lone surrogate, which is not valid text; correct it")
            return pl.Series(values.name, text, dtype=pl.String)
    return values


def _text_of_bytes(log: Origin, values: pl.Series, role: str) -> pl.Series:
    """UUIDs, if all values have 16 bytes and some are not text; else the bytes decoded as text."""

    def decoded(value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return "\0"

    found = values.to_list()
    text = [decoded(value) for value in found]
    is_text = [value is None or not CONTROLS.search(value) for value in text]
    if not all(is_text) and all(value is None or len(value) == 16 for value in found):
        text = [None if value is None else str(uuid.UUID(bytes=value)) for value in found]
        is_text = [True] * len(text)
    advice = f"store integers or strings, or name another column with {role}= (--{role})"
    good = pl.Series(is_text, dtype=pl.Boolean)
    log.check(good, lambda row: f"the {role} id is {len(found[row])} bytes that are no text; {advice}")
    return pl.Series(values.name, text, dtype=pl.String)


def missing_words(values: pl.Series, numbers: pl.Series) -> pl.Series | bool:
    """Mask of the words for a missing value, if all other values are numbers; else False."""
    for rows in (slice(0, 1000), slice(None)):  # the first rows usually decide
        words = values[rows].filter(numbers[rows].is_null()).unique()
        words = words.filter(~words.str.contains(AS_FLOATS).fill_null(True))
        if not words.str.strip_chars().is_in(["", *MISSING.split()]).all():
            return False
    return values.is_in(words.implode()).fill_null(False)


def _whole_numbers(log: Origin, values: pl.Series, role: str) -> pl.Series:
    """Integers for text that another tool wrote as whole floats (all values like 12.0 or 12); else the text."""
    if not all(by_parts(rows, lambda part: part.str.contains(AS_FLOATS)).all() for rows in (values[:1000], values)):
        return values
    floats = floats_of(values)
    if not by_parts(values, lambda part: part.str.contains("[.eE]")).any() or not (floats == floats.floor()).all():
        return values
    log.check(floats.abs() < EXACT, lambda row: f"{role} id {values[row]!r} {ROUNDED}")
    return floats.cast(pl.Int64)


def _missing(values: pl.Series, missing: pl.Series, row: int, role: str, instead: list[str]) -> str:
    """The message about missing ids, with alternative columns: for anonymous visitors, most ids may be missing."""
    count = int(missing.sum())
    is_word = values.dtype == pl.String and (values[row] or "").strip()
    what = f"the {role} id is missing ({values[row]})" if is_word else f"the {role} id is empty"
    rows = f", as in {count:,} of {len(values):,} rows" if count > 1 else ""
    other = f", or take another column for the {role}: " + " or ".join(f"--{role} {quote(name)}" for name in instead)
    return f"{what}{rows}; give the row an id, or remove it{other if instead else ''}"


def numbers_of(log: Origin, values: pl.Series, role: str, kind: str = "a number") -> pl.Series:
    """Convert a column to finite Float64 values; raises for the first value that is not a number."""
    if values.dtype not in (pl.String, pl.Null) and not values.dtype.is_numeric():
        raise InputError(f"{log.name}: {role} column {values.name!r} holds {values.dtype}; {advice_on(values, role)}")
    numbers = floats_of(values)
    good = (numbers.abs() < 9e18).fill_null(False)  # not NaN, not infinite, and within Int64
    log.check(good, lambda row: f"{role} {written(log, values[row])} is not {kind}; {advice_on(values, role)}")
    return numbers


def advice_on(values: pl.Series, role: str) -> str:
    """What to do about a value of a column that is not a number, or not a time. Reads all of them: for errors only."""
    if role == "timestamp" and values.dtype == pl.String and values.str.contains(_OTHER_DATES).all():
        return "write all of them like 2023-11-15 or 2023-11-15 10:30, or as seconds since 1970"
    return f"correct or remove it, or name another column with {role}= (--{role})"


def floats_of(values: pl.Series) -> pl.Series:
    """Float64 values; null for values that are not numbers."""
    if values.dtype != pl.String:
        return values.cast(pl.Float64, strict=False)
    return by_parts(values, lambda part: part.str.strip_chars().cast(pl.Float64, strict=False))


def by_parts(values: pl.Series, change: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Apply a function to a column part by part, so that its intermediate results stay small."""
    starts = range(0, len(values), PART_ROWS) or [0]
    return pl.concat([change(values.slice(start, PART_ROWS)) for start in starts])


def written(log: Origin, value: object) -> str:
    """A value as messages show it, in quotation marks if the file is text."""
    return short(str(value) if is_text(log) and value is not None else value)


def words_for_nothing(ids: pl.Series) -> tuple[str, int] | None:
    """The most frequent id that is a word for a missing value, and the number of rows with such words."""
    if ids.dtype != pl.String:
        return None
    found = by_parts(ids, lambda part: part.filter(part.is_in(MISSING.split())))
    return None if len(found) == 0 else (found.mode().sort()[0], len(found))
