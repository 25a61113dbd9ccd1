"""JSON lines → a frame."""

import io
import json

import polars as pl

from seqrec.data.formats.blocks import Source, read_checked, read_lines, short, split_records
from seqrec.data.formats.text import Origin
from seqrec.errors import InputError


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # Python reads and writes NaN and Infinity


def read_jsonl(source: Source) -> tuple[pl.DataFrame, Origin]:
    """One object per line as columns."""
    path = source.path
    try:
        text = io.BytesIO(b"".join(read_checked(source)))
        frame = pl.read_ndjson(text, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        for line, (content,) in split_records(read_lines(source, False), "\n", False):
            try:
                bad = not isinstance(json.loads(content, parse_constant=_no_number), dict) or "\ufffd" in content
            except ValueError:
                bad = True
            if bad:
                raise InputError(f"{path}, line {line}: not a JSON object; write one a line, in UTF-8") from None
        raise InputError(f"{path}: is not JSON lines ({short(error)}); write one object a line") from None
    return frame, Origin(str(path), separator="\n", source=source)
