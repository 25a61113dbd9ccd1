"""Reads JSON lines into a frame."""

import io
import json
import math
import re
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import Source, read_checked, read_sample
from seqrec.data.formats.text import Origin
from seqrec.data.formats.values import EXACT, LONE
from seqrec.errors import InputError

# Escape of one half of a surrogate pair. A lone half is not valid text, and polars reads all of them alike.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_jsonl(source: Source) -> tuple[pl.DataFrame, Origin]:
    """Read one object per line into columns."""
    if read_sample(source)[0].lstrip().startswith("["):
        raise InputError(f"{source.path}, line 1: is a JSON array; write one object per line (jq -c '.[]' FILE)")
    text = b"".join(read_checked(source))
    try:
        frame = pl.read_ndjson(io.BytesIO(text), infer_schema_length=None)
    except pl.exceptions.PolarsError:
        _blame(source, text)
        frame = _by_column(source, text)
    if _SURROGATE.search(text):
        _blame(source, text)
    # A column with one float makes all its integers floats; large ones are read again to keep them exact.
    floats = [column.name for column in frame.iter_columns() if column.dtype == pl.Float64]
    large = [name for name in floats if (frame[name].abs() >= EXACT).any()]
    if large:
        rows = [json.loads(line) for line in text.split(b"\n") if line.strip()]
        exact = {name: _whole([row.get(name) for row in rows]) for name in large}
        frame = frame.with_columns(**{name: column for name, column in exact.items() if column is not None})
    return frame, Origin(str(source.path), separator="\n", source=source)


def _whole(values: list[Any]) -> pl.Series | None:
    """Values as integers, if all are integers or small whole floats such as 5.0; else None."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int) or (abs(value) < EXACT and value == value // 1) for value in known):
        whole = [value if value is None else int(value) for value in values]
        if all(value is None or -(2**63) <= value < 2**63 for value in whole):
            return pl.Series(whole, dtype=pl.Int64)
    return None


def _by_column(source: Source, text: bytes) -> pl.DataFrame:
    """Read objects that polars refuses because a key has values of several types. Slow, but keeps the other columns."""
    rows = [json.loads(line) for line in text.split(b"\n") if line.strip()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values} - {type(None)}
        if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values if value is not None):
            columns.append(pl.Series(name, values, dtype=pl.Int64))
        elif kinds == {float} or kinds == {bool}:
            columns.append(pl.Series(name, values, dtype=pl.Boolean if bool in kinds else pl.Float64))
        elif kinds <= {int, float, str} and not {math.inf, -math.inf} & {v for v in values if isinstance(v, float)}:
            texts = [value if value is None or isinstance(value, str) else _written(value) for value in values]
            columns.append(pl.Series(name, texts, dtype=pl.String))
        else:  # kept as lists, so that they are never taken for ids, times or numbers
            lists = [None if value is None else [json.dumps(value, ensure_ascii=False)] for value in values]
            columns.append(pl.Series(name, lists, dtype=pl.List(pl.String)))
    if not columns:
        raise InputError(f"{source.path}: holds only empty objects; give a log with interactions")
    return pl.DataFrame(columns)


def _written(number: float) -> str:
    """A number as polars writes it in a column with texts: 5.0 as 5."""
    return str(int(number)) if number == number // 1 and abs(number) < EXACT else str(number)


def _blame(source: Source, text: bytes) -> None:
    """Raise the error for the first line that is not an object, or that has invalid text."""
    for number, line in enumerate(io.BytesIO(text), 1 + source.skipped):
        if not line.strip():
            continue
        where = f"{source.path}, line {number}"
        try:
            value = json.loads(line.decode(), parse_constant=_no_number)
            lone = LONE.search(json.dumps(value, ensure_ascii=False))
        except RecursionError:
            raise InputError(f"{where}: is nested too deeply; leave out the nested values") from None
        except ValueError:
            value, lone = None, None
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a JSON object; write one per line, in UTF-8")
        if lone:
            raise InputError(
                f"{where}: holds a lone surrogate (\\ud800 to \\udfff), which is not valid text; correct it"
            )


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # Python would accept NaN and Infinity
