"""Reads descriptions of items from JSON: one object per line, an array, or one object with an entry per item."""

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
from seqrec.data.formats.values import LONE
from seqrec.errors import InputError

#: Names of the columns made from an object that maps ids to entries.
ID, ENTRY = "item_id", "categories"
MOST_KEYS = 2000
MOST_LITERAL = 2**20  # longest line, in characters, that is read as a Python literal
_STRING = r"""[uU]?(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_NUMBER = r"-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"

Row = dict[str, Any]


def read_objects(source: Source) -> tuple[pl.DataFrame, Origin]:
    """Read objects into a frame with a column per key, of texts, numbers or lists; keys with other values are ignored.

    Lines may also be Python literals, as in older files of Amazon's metadata. They are parsed without running any
    code: only strings, numbers, lists, tuples, dictionaries, True, False and None are accepted.

    Raises:
        InputError: a line is neither a JSON object nor such a literal.
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
    series = [_column(name, columns.pop(name)) for name in list(columns)]  # each list is freed once converted
    return pl.DataFrame(series), Origin(str(source.path), separator="\n", source=source)


def _by_key(source: Source, rows: Iterable[Row]) -> dict[str, list[Any]]:
    """Values of each key, None for objects that lack the key; values that cannot be a column are replaced by ``{}``."""
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
    """The value of a Python literal; raises ``ValueError`` for anything else.

    The text is checked before Python parses it, because long chains of operators could exhaust the parser's stack.
    """
    if len(text) > MOST_LITERAL:
        raise ValueError("the line is too long")
    rest = re.sub(_NUMBER, "0", re.sub(_STRING, "s", text))
    if not re.fullmatch(r"(?:[\s{}\[\](),:0s]|True|False|None)*+", rest) or re.search(r"[0s]\s*0|0\s*s", rest):
        raise ValueError("it is not a literal")
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("it is not a literal") from error


def _is_object(line: str) -> bool:
    """Whether a line is a complete object."""
    try:
        return isinstance(_parse(line)(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse(line: str) -> Callable[[str], Any]:
    """The parser for lines like this one."""
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
    """The objects in a file that is a single JSON document."""
    try:
        found = json.loads(read_whole(source))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else short(error)
        raise InputError(f"{source.path}: is not JSON ({reason}); write one object per line, in UTF-8") from None
    if isinstance(found, dict):
        return _rows_of_map(found) if _maps_ids(found) else [found]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{source.path}: is not a list of JSON objects; write one object per item")
    return found


def _maps_ids(found: Row) -> bool:
    """Whether an object has an entry per item, rather than being an item itself."""
    kinds = {type(value) for value in found.values()}
    return len(kinds) == 1 and kinds <= {list, dict}


def _rows_of_map(found: Row) -> list[Row]:
    """``{"i1": {"title": …}}`` or ``{"i1": ["a category", …]}`` as rows."""
    return [{ID: key, **(value if isinstance(value, dict) else {ENTRY: value})} for key, value in found.items()]


def _slim(value: Any) -> Any:
    """A value of a column, with nested lists flattened; ``{}`` for anything but text, numbers and lists of these."""
    if isinstance(value, list | tuple):
        if type(value) is list and all(type(one) is str for one in value):
            return value
        flat = _flat(value)
        return {} if any(isinstance(one, dict | list | tuple | set) for one in flat) else flat
    return {} if isinstance(value, dict | set) else value


def _column(name: str, values: list[Any]) -> pl.Series:
    """Values of a key as a series of numbers, texts or lists; of type Object if any value is something else."""
    if any(isinstance(value, dict) for value in values):
        return pl.Series(name, [None] * len(values), dtype=pl.Object)
    if any(isinstance(value, list) for value in values):
        return _lists(name, [[] if value is None or value == "" else _flat(value) for value in values])
    kind, change = _kind(values)
    return pl.Series(name, [None if value is None else change(value) for value in values], dtype=kind)


def _lists(name: str, values: list[list[Any]]) -> pl.Series:
    """Lists as a series, made from the flat values and their offsets, because polars is slow with Python lists."""
    import pyarrow as pa  # slow to import, and few files need it

    kind, change = _kind(one for value in values for one in value)
    known = [[one for one in value if one is not None] for value in values]
    flat = pl.Series([change(one) for value in known for one in value], dtype=kind)
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in known], dtype=np.int64)])
    return pl.Series(name, pa.LargeListArray.from_arrays(offsets, flat.to_arrow()), dtype=pl.List(kind))


def _kind(values: Iterable[Any]) -> tuple[Any, Callable[[Any], Any]]:
    """The type of a column, and a function that converts its values to that type."""
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
    """A value as text without lone surrogates. 5.0 becomes 5, because columns of mixed types may hold ids."""
    if isinstance(value, float) and math.isfinite(value) and value == value // 1:
        value = int(value)
    text = str(value)
    return text if text.isascii() else LONE.sub("\ufffd", text)


def _flat(value: Any) -> list[Any]:
    """Flatten nested lists; if they were nested, each value is kept only once."""
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
