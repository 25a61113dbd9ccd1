"""Values of options that come from a file or a program: each must be of the kind that its field declares."""

import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from seqrec.errors import InputError

_LARGEST = sys.float_info.max
_INFINITE = (float("inf"), float("-inf"))


def check_fields(kind: type, values: Mapping[str, Any], *, complete: bool = False, fractions: bool = False) -> None:
    """Refuse values that are of another type than the fields of a dataclass, and names that it doesn't have.

    A whole number stands for a fraction, a list for a tuple; a truth value is no number, nor is NaN, and whole numbers
    have 64 bits.

    Args:
        kind: the dataclass.
        values: by field.
        complete: whether fields without a default must be there.
        fractions: whether fields of whole numbers take any number, as a program may have given it (``epochs=5.0``).

    Raises:
        InputError: says the field, its value and what it takes.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{str(name)[:80]!r} is unknown; there are {', '.join(known)}")
        number = fractions and isinstance(value, float) and fits(0, hints[name]) and abs(value) < 2**63
        if not (number or fits(value, hints[name])):
            raise InputError(f"{name} is {_short(value)}; give {_said(hints[name])}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    if complete and missing:
        raise InputError(f"{missing[0]} is missing")


def plain_options(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by field of a dataclass; numpy's numbers become Python's, 5.0 becomes 5 for a whole number.

    Raises:
        InputError: a fraction for a whole number, which would be rounded somewhere without a word, or no number at all.
    """
    hints = get_type_hints(kind)
    return {name: _plain(name, value, hints[name]) for name, value in options.items()}


def _plain(name: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    others = tuple(one for one in kinds if isinstance(one, type) and one not in (int, float, bool))
    if isinstance(value, others):  # NoneType among them
        return value
    if any(get_origin(one) is tuple and get_args(one)[0] is int for one in kinds):
        if not isinstance(value, list | tuple | np.ndarray):
            raise InputError(f"{name} is {value!r}; give a list of whole numbers")
        return tuple(_plain(name, one, int) for one in value)
    if bool in kinds:
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{name} is {value!r}; give true or false")
        return bool(value)
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if int in kinds:
        if not is_number or not (isinstance(value, Integral) or float(value).is_integer()):
            raise InputError(f"{name} is {value!r}; give a whole number")
        return int(value)
    if float in kinds:
        if not is_number:
            raise InputError(f"{name} is {value!r}; give a number")
        return value.item() if isinstance(value, np.generic) else value
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a type hint names."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is tuple:  # of any length
        return isinstance(value, list | tuple) and all(fits(one, get_args(hint)[0]) for one in value)
    if origin is not None:
        return isinstance(value, origin)
    if type(value) is bool and hint in (int, float):
        return False
    if hint is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if hint is float:
        return isinstance(value, int | float) and (value in _INFINITE or -_LARGEST <= value <= _LARGEST)
    return isinstance(value, hint)


def _said(hint: Any) -> str:
    """What a field takes, in words."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "nothing",
             dict: "an object"}  # fmt: skip
    said = []
    for part in parts:
        if get_origin(part) is Literal:
            said.append(" or ".join(get_args(part)))
        elif get_origin(part) is tuple:
            said.append("a list of whole numbers")
        else:
            said.append(words.get(get_origin(part) or part, str(part)))
    return " or ".join(said)


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
