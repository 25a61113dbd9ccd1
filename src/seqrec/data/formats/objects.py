"""Descriptions of items as JSON → a frame: objects per line, an array, or one object with an entry per item."""

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.formats.blocks import Source, read_lines, read_whole, short
from seqrec.data.formats.text import Origin
from seqrec.errors import InputError

#: Columns of an object that maps ids to entries.
ID, ENTRY = "item_id", "categories"
MOST_KEYS = 2000
MOST_LITERAL = 2**20  # characters of a line that is read as a Python literal
_STRING = r"""[uU]?(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_NUMBER = r"-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_LONE = re.compile("[\ud800-\udfff]")

Row = dict[str, Any]


def read_objects(source: Source) -> tuple[pl.DataFrame, Origin]:
    """A frame with a column per key, whose values are texts, numbers or lists; other values become structs.

    Lines may also be Python literals, as the older files of Amazon's metadata have them. They are read without
    running anything: only strings, numbers, lists, tuples, dictionaries, True, False and None are accepted.

    Raises:
        InputError: a line that is none of these.
    """
    first = next((line for line in read_lines(source, False) if line.strip()), "").strip()
    rows: Iterable[Row]
    if first.startswith("[") or not _is_object(first):
        rows = _rows_of_document(source)
    else:
        lines = _rows_by_line(source)
        begin = list(islice(lines, 2))
        rows = _rows_of_map(begin[0]) if len(begin) == 1 and _maps_ids(begin[0]) else chain(begin, lines)
    columns = _by_key(source, rows)
    series = [_column(name, columns.pop(name)) for name in list(columns)]  # a list goes when it has been converted
    return pl.DataFrame(series), Origin(str(source.path), separator="\n", source=source)


def _by_key(source: Source, rows: Iterable[Row]) -> dict[str, list[Any]]:
    """The values of each key, None where an object does not have it; of what is no column only that it was there."""
    columns: dict[str, list[Any]] = {}
    count = 0
    for row in rows:
        for name, value in row.items():
            column = columns.setdefault(str(name), [])
            column.extend([None] * (count - len(column)))
            column.append(_slim(value))
        count += 1
        if len(columns) > MOST_KEYS:
            reason = f"has more than {MOST_KEYS:,} different keys"
            raise InputError(f"{source.path}: {reason}; write one object per item, all with the same keys")
    if not columns:
        raise InputError(f"{source.path}: describes no item; give one object per item")
    for column in columns.values():
        column.extend([None] * (count - len(column)))
    return columns


def parse_literal(text: str) -> Any:
    """The value of a Python literal; raises ``ValueError`` for anything that is none.

    The text is looked at before Python's parser sees it: long chains of operators could exhaust its stack.
    """
    if len(text) > MOST_LITERAL:
        raise ValueError("the line is too long")
    rest = re.sub(_NUMBER, "0", re.sub(_STRING, "s", text))
    if not re.fullmatch(r"(?:[\s{}\[\](),:0s]|True|False|None)*+", rest) or re.search(r"[0s]\s*0|0\s*s", rest):
        raise ValueError("it is no literal")
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("it is no literal") from error


def _is_object(line: str) -> bool:
    """Whether a line holds an object of its own."""
    try:
        return isinstance(_parse(line)(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse(line: str) -> Callable[[str], Any]:
    """What reads lines like this one."""
    return parse_literal if re.match(r"\s*\{\s*u?'", line) else json.loads


def _rows_by_line(source: Source) -> Iterator[Row]:
    """The object of each line that is not blank."""
    for number, line in enumerate(read_lines(source, False), 1):
        if not line.strip():
            continue
        try:
            row = _parse(line)(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{source.path}, line {number}: not a JSON object; write one per line, in UTF-8")
        yield row


def _rows_of_document(source: Source) -> list[Row]:
    """The objects of a file that is one JSON document."""
    try:
        found = json.loads(read_whole(source))
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else short(error)
        raise InputError(f"{source.path}: is not JSON ({said}); write one object per line, in UTF-8") from None
    if isinstance(found, dict):
        return _rows_of_map(found) if _maps_ids(found) else [found]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{source.path}: is not a list of JSON objects; write one object per item")
    return found


def _maps_ids(found: Row) -> bool:
    """Whether an object has an entry per item, and is not one item itself."""
    kinds = {type(value) for value in found.values()}
    return len(kinds) == 1 and kinds <= {list, dict}


def _rows_of_map(found: Row) -> list[Row]:
    """``{"i1": {"title": …}}`` or ``{"i1": ["a category", …]}`` as rows."""
    return [{ID: key, **(value if isinstance(value, dict) else {ENTRY: value})} for key, value in found.items()]


def _slim(value: Any) -> Any:
    """A value of a column, with nested lists as one; an empty object for what is no text, number or list of these."""
    if isinstance(value, list | tuple):
        if type(value) is list and all(type(one) is str for one in value):
            return value
        flat = _flat(value)
        return {} if any(isinstance(one, dict | list | tuple | set) for one in flat) else flat
    return {} if isinstance(value, dict | set) else value


def _column(name: str, values: list[Any]) -> pl.Series:
    """Values of one key as a series: numbers, texts, lists of one of them, or objects where any is something else."""
    if any(isinstance(value, dict) for value in values):
        return pl.Series(name, [None] * len(values), dtype=pl.Object)
    if any(isinstance(value, list) for value in values):
        return _lists(name, [[] if value is None or value == "" else _flat(value) for value in values])
    kind, change = _kind(values)
    return pl.Series(name, [None if value is None else change(value) for value in values], dtype=kind)


def _lists(name: str, values: list[list[Any]]) -> pl.Series:
    """Lists as a series: their values in a row and where each list ends, as polars is slow with lists of Python's."""
    import pyarrow as pa  # takes its time, and few files need it

    kind, change = _kind(one for value in values for one in value)
    known = [[one for one in value if one is not None] for value in values]
    flat = pl.Series([change(one) for value in known for one in value], dtype=kind)
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in known], dtype=np.int64)])
    return pl.Series(name, pa.LargeListArray.from_arrays(offsets, flat.to_arrow()), dtype=pl.List(kind))


def _kind(values: Iterable[Any]) -> tuple[Any, Callable[[Any], Any]]:
    """The type of a column, and what brings its values to that type."""
    kinds: set[type] = set()
    large = False
    for value in values:
        kinds.add(type(value))
        large = large or (type(value) is int and not -(2**63) <= value < 2**63)
    kinds -= {type(None)}
    if kinds <= {int} and not large:
        return (pl.Int64 if kinds else pl.Null), int
    if kinds <= {bool}:
        return pl.Boolean, bool
    return (pl.Float64, float) if kinds <= {int, float} and not large else (pl.String, _text)


def _text(value: Any) -> str:
    """A value as text without lone surrogates; 5.0 as 5, as a column of mixed kinds may hold an id."""
    if isinstance(value, float) and math.isfinite(value) and value == value // 1:
        value = int(value)
    text = str(value)
    return text if text.isascii() else _LONE.sub("\ufffd", text)


def _flat(value: Any) -> list[Any]:
    """Nested lists as one, each value once where they were nested."""
    if not isinstance(value, list | tuple):
        return [value]
    if not any(isinstance(one, list | tuple) for one in value):
        return list(value)
    flat: list[Any] = []
    todo = [iter(value)]
    while todo:
        for one in todo[-1]:
            if isinstance(one, list | tuple):
                todo.append(iter(one))
                break
            flat.append(one)
        else:
            todo.pop()
    plain = [one for one in flat if isinstance(one, str | int | float | None)]
    return list(dict.fromkeys(plain)) if len(plain) == len(flat) else flat
