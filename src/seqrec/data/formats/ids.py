"""Reads files of ids."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqrec.data.formats.blocks import Source, expanded, open_source, read_checked, short
from seqrec.data.formats.parquet import read_parquet
from seqrec.data.formats.text import EXTENSIONS, USUAL_NAMES, is_parquet, usual_columns
from seqrec.data.formats.values import EXACT
from seqrec.errors import InputError, LogWarning, warn


def read_ids(path: Path, role: str) -> list[str]:
    """Read ids from a file, as text.

    A text file has one id per line; blanks around it and empty lines are ignored. Ids with line ends, or with blanks
    at their ends, need CSV (quoted), JSON lines or Parquet. There, the ids are in the column with a usual name
    (`user_id` or `item_id`), else in the first column. A line of JSON may also be just an id.

    Args:
        path: file of ids, in the format of its extension (.csv, .tsv, .jsonl, .parquet, each also .gz), else text.
        role: "user_id" or "item_id".

    Raises:
        InputError: the file cannot be read, has no id, or has a value that is not an id.
    """
    path, is_folder = expanded(path)
    if is_folder:
        raise InputError(f"{path}: cannot be read (it is a folder); give a file with one id per line")
    source = open_source(path)
    kind = EXTENSIONS.get(path.name.lower().removesuffix(".gz").rpartition(".")[2])
    if source.content == b"":
        ids = []
    elif is_parquet(source, None):
        frame = read_parquet(source)
        values = frame[frame.columns[_place(frame.columns, role) or 0]].to_list() if frame.columns else []
        ids = [_text_of(path, f"row {row}", value) for row, value in enumerate(values, 1)]
    elif kind == "jsonl":
        ids = [_text_of(path, f"line {line}", value) for line, value in _objects(source, role)]
    else:
        text = _decoded(source)
        ids = list(_fields(path, text, "\t" if kind == "tsv" else None, role)) if kind in ("csv", "tsv") else []
        ids = ids if kind in ("csv", "tsv") else [line.strip(" \t\r") for line in text.split("\n")]
        ids = [id for id in ids if id]
    if not ids:
        raise InputError(f"{path}: is empty; give a file with one id per line")
    return ids


def _decoded(source: Source) -> str:
    try:
        return b"".join(read_checked(source)).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source.path}, line {line}: is not UTF-8 text; save the file as UTF-8") from None


def _place(names: list[str], role: str) -> int | None:
    """Position of the best usual name for the ids; None if there is none."""
    found = usual_columns(names, USUAL_NAMES[role].split())
    return names.index(found[0]) if found else None


def _fields(path: Path, text: str, separator: str | None, role: str) -> Iterator[str]:
    """The ids in delimited text, quoted or not."""
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = separator or max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    place, begun = 0, False
    try:
        for fields in reader:
            if not fields:
                continue
            if not begun:
                begun, found = True, _place(fields, role)
                if found is not None:
                    place = found
                    continue
                if len(fields) > 1:
                    warn(f"{path}: no column is called {role}; the first column is used", LogWarning)
            if place >= len(fields) or (not fields[place] and len(fields) > 1):
                raise InputError(f"{path}, line {reader.line_num}: the id is empty; give the row an id, or remove it")
            yield fields[place]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: is not CSV ({short(error)}); check its quotes") from None


def _objects(source: Source, role: str) -> Iterator[tuple[int, Any]]:
    """Line number and id of each JSON line that is not blank."""
    for number, line in enumerate(_decoded(source).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(
                f"{source.path}, line {number}: is not JSON; write one id or one object per line"
            ) from None
        if isinstance(value, dict):
            names = list(value)
            value = value[names[_place(names, role) or 0]] if names else None
        yield number, value


def _text_of(path: Path, where: str, value: Any) -> str:
    """An id as text, in the same form as the ids of a log."""
    if isinstance(value, str) and value.strip():
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"{path}, {where}: {value!r} holds a lone surrogate, which is not valid text; correct it")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < EXACT:
        return str(int(value))
    if value is None or isinstance(value, str):
        raise InputError(f"{path}, {where}: the id is empty; give the row an id, or remove it")
    raise InputError(f"{path}, {where}: {short(value)} is not an id; write ids as text or integers")
