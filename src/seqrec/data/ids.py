"""Converts ids of any type to a series.

128, "128" and 128.0 are the same id. Nothing here uses polars' thread pool: a forked process does not have it and would
wait for it forever.
"""

import math
import re
from collections.abc import Iterable
from decimal import Decimal
from numbers import Real
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl

from seqrec.data.formats.values import EXACT
from seqrec.errors import InputError

_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)(\.0+)?")
_NUMBERS: Any = (Real, Decimal)


def ids_of(ids: Any, what: str = "ids", name: str = "user_id") -> pl.Series:
    """Convert ids, or a single one, to a series of type Int64, String, Float64 (if some are not whole), or Null.

    Args:
        ids: a number, text, UUID, or None or NaN for a missing id; or a list, set, iterator, numpy or Arrow array, or
            polars or pandas column of these.
        what: name of the ids in error messages.
        name: name of the series.

    Raises:
        InputError: ``ids`` is a frame, or a value is not an id.
    """
    if hasattr(type(ids), "columns"):
        raise InputError(f"{what} is a {type(ids).__name__}; give one column of it, such as frame['user_id']")
    if isinstance(ids, pl.Series):
        if isinstance(ids.dtype, (pl.Categorical, pl.Enum)):
            ids = ids.cast(pl.String)
        if ids.dtype == pl.String or ids.dtype.is_integer():
            return ids.alias(name)
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu":
        return pl.Series(name, np.ascontiguousarray(ids, dtype=ids.dtype.newbyteorder("=")))
    values: list[Any] = [_id_of(value, what) for value in _listed(ids)]
    kinds = set(map(type, values)) - {type(None)}
    if float in kinds and str not in kinds:
        return pl.Series(name, values, dtype=pl.Float64, strict=False)
    if str in kinds or any(value is not None and not -(2**63) <= value < 2**63 for value in values):
        return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)
    return pl.Series(name, values, dtype=pl.Int64 if kinds else pl.Null)


def _listed(ids: Any) -> list[Any]:
    """The values of a container, or a single value, as a list."""
    for name in ("to_pylist", "to_list", "tolist", "as_py"):
        if hasattr(ids, name) and not isinstance(ids, type):
            ids = getattr(ids, name)()
            break
    single = isinstance(ids, str | bytes) or not isinstance(ids, Iterable)
    return [ids] if single else list(ids)


def _id_of(value: Any, what: str) -> int | float | str | None:
    """One id as a plain Python value; whole floats become integers, missing values None."""
    if type(value) in (int, str) or value is None:
        return value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "as_py"):
        return _id_of(value.as_py(), what)
    if isinstance(value, np.generic) and value.dtype.kind in "iufU":
        return _id_of(value.item(), what)
    if isinstance(value, str | UUID):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        kind = type(value).__name__
        raise InputError(f"{what}: ids are integers or strings, not {kind} such as {_short(value)}; convert them")
    if math.isnan(value):
        return None
    if not math.isfinite(value) or value != int(value):
        return float(value)
    if isinstance(value, float) and EXACT <= abs(value) < 2**64:
        raise InputError(f"{what}: the id {value!r} is a float, which is not exact at this size; give such ids as "
                         "integers or strings")  # fmt: skip
    return int(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def integers_of(ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Ids as ``int64``, and a mask of the ids that are integers: "7" and "7.0" are; "007" is another id than 7."""
    if ids.dtype.is_signed_integer() and not ids.has_nulls():  # the usual case, without copies
        return ids.to_numpy().astype(np.int64, copy=False), np.ones(len(ids), dtype=bool)
    numbers = ids.cast(pl.Int64, strict=False)
    there = ~numbers.is_null().to_numpy()
    if ids.dtype.is_float():
        values = ids.to_numpy()
        there = there & (np.floor(values) == values)
    elif ids.dtype == pl.String:
        same = numbers.cast(pl.String) == ids
        there = there & np.asarray([bool(one) for one in same.to_list()])
    found = np.zeros(len(ids), dtype=np.int64)
    found[there] = numbers.filter(pl.Series(there)).to_numpy()
    if ids.dtype == pl.String:
        for row in np.flatnonzero(~there).tolist():
            match = _WHOLE.fullmatch(ids[row] or "")
            if match and len(match[1]) < 21 and -(2**63) <= int(match[1]) < 2**63:
                found[row], there[row] = int(match[1]), True
    return found, there


def texts_of(ids: pl.Series) -> list[str | None]:
    """Ids that :func:`ids_of` returned, as texts; None for a missing id."""
    if not ids.dtype.is_float():
        return ids.cast(pl.String).to_list()
    whole = (None if v is None or math.isnan(v) else int(v) if v.is_integer() else v for v in ids.to_list())
    return [None if value is None else str(value) for value in whole]


def other_form(text: str | None) -> str | None:
    """Add ``.0`` to a whole number, as pandas does after a join, or remove it; None for any other text."""
    match = _WHOLE.fullmatch(text or "")
    if match is None:
        return None
    return match[1] if match[2] else f"{match[1]}.0"
