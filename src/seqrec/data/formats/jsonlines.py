"""JSON lines → a frame."""

import io
import json
import math
import re
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import Source, read_checked, read_sample
from seqrec.data.formats.text import Origin
from seqrec.errors import InputError

# Half of a pair that stands for one character: alone it is no text, and polars makes the same of any.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_WHOLE = 2**53  # below it a float stands for one integer
_LONE = re.compile("[\ud800-\udfff]")


def read_jsonl(source: Source) -> tuple[pl.DataFrame, Origin]:
    """One object per line as columns."""
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
    # Integers that came as floats, as one value of the column is one, are read again as they are written.
    floats = [column.name for column in frame.iter_columns() if column.dtype == pl.Float64]
    large = [name for name in floats if (frame[name].abs() >= _WHOLE).any()]
    if large:
        rows = [json.loads(line) for line in text.split(b"\n") if line.strip()]
        exact = {name: _whole([row.get(name) for row in rows]) for name in large}
        frame = frame.with_columns(**{name: column for name, column in exact.items() if column is not None})
    return frame, Origin(str(source.path), separator="\n", source=source)


def _whole(values: list[Any]) -> pl.Series | None:
    """Values as integers, where all are, or are small floats such as 5.0."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int) or (abs(value) < _WHOLE and value == value // 1) for value in known):
        whole = [value if value is None else int(value) for value in values]
        if all(value is None or -(2**63) <= value < 2**63 for value in whole):
            return pl.Series(whole, dtype=pl.Int64)
    return None


def _by_column(source: Source, text: bytes) -> pl.DataFrame:
    """Objects that polars refuses, as some key has values of several kinds: slow, but no other column suffers."""
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
        else:  # no ids, no times and no numbers, whatever they look like: lists, so that nothing takes them for such
            lists = [None if value is None else [json.dumps(value, ensure_ascii=False)] for value in values]
            columns.append(pl.Series(name, lists, dtype=pl.List(pl.String)))
    if not columns:
        raise InputError(f"{source.path}: holds only empty objects; give a log with interactions")
    return pl.DataFrame(columns)


def _written(number: float) -> str:
    """A number as polars writes it where others of the column are text: 5.0 as 5."""
    return str(int(number)) if number == number // 1 and abs(number) < _WHOLE else str(number)


def _blame(source: Source, text: bytes) -> None:
    """Raise the error for the first line that is no object, or holds what is no text."""
    for number, line in enumerate(io.BytesIO(text), 1 + source.skipped):
        if not line.strip():
            continue
        where = f"{source.path}, line {number}"
        try:
            value = json.loads(line.decode(), parse_constant=_no_number)
            lone = _LONE.search(json.dumps(value, ensure_ascii=False))
        except RecursionError:
            raise InputError(f"{where}: is nested too deeply; leave out what is no column") from None
        except ValueError:
            value, lone = None, None
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a JSON object; write one per line, in UTF-8")
        if lone:
            raise InputError(f"{where}: holds a lone surrogate (\\ud800 to \\udfff), which is no text; correct it")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")  # Python reads and writes NaN and Infinity
