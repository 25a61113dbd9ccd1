"""JSON lines → a frame."""

import io
import json
import re
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import Source, read_checked, read_sample, short
from seqrec.data.formats.text import Origin
from seqrec.errors import InputError

# Half of a pair that stands for one character: alone it is no text, and polars makes the same of any.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE = re.compile("[\ud800-\udfff]")


def read_jsonl(source: Source) -> tuple[pl.DataFrame, Origin]:
    """One object per line as columns."""
    if read_sample(source)[0].lstrip().startswith("["):
        raise InputError(f"{source.path}, line 1: is a JSON array; write one object per line (jq -c '.[]' FILE)")
    text = b"".join(read_checked(source))
    try:
        frame = pl.read_ndjson(io.BytesIO(text), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        _blame(source, text)
        advice = "write one object per line, with values of one type for each key"
        raise InputError(f"{source.path}: is not JSON lines ({short(error)}); {advice}") from None
    if _SURROGATE.search(text):
        _blame(source, text)
    return frame, Origin(str(source.path), separator="\n", source=source)


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
