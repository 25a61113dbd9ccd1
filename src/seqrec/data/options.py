"""Options that a program gives, in the type that their field declares."""

from collections.abc import Mapping
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from seqrec.errors import InputError


def plain_options(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by field of a dataclass; numpy's numbers become Python's, 5.0 becomes 5 for a whole number.

    Raises:
        InputError: a fraction for a whole number, which would be rounded somewhere without a word, or no number at all.
    """
    hints = get_type_hints(kind)
    return {name: _plain(name, value, hints[name]) for name, value in options.items()}


def _plain(name: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
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
