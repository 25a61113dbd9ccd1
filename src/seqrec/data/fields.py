"""Options: what each field takes, declared beside it and checked here, for Python, the command line and config.json."""

import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from numbers import Real
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from seqrec.errors import InputError

_LARGEST = sys.float_info.max
_INFINITE = (float("inf"), float("-inf"))
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "an object"}


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes, as ``Annotated[float, Range(0, below=1)]``; for a tuple, each of its numbers.

    Args:
        least: the smallest.
        most: the largest; infinity is refused unless it stands here.
        above: all must be larger than this.
        below: all must be smaller than this.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (value <= self.most if self.most is not None else value not in _INFINITE)
        )

    def __str__(self) -> str:
        """In words, as errors and the help of a flag say it."""
        most = None if self.most in _INFINITE else self.most
        if self.least is not None and most is not None:
            return f"{self.least} to {most}"
        if self.least is not None and self.below is None:
            return f"{self.least} or more"
        ends = {"at least": self.least, "more than": self.above, "at most": most, "less than": self.below}
        return " and ".join(f"{words} {end}" for words, end in ends.items() if end is not None)


Count = Annotated[int, Range(1)]
#: Items of a history that a model sees; more than anybody's history holds, and few enough to be counted with.
Length = Annotated[int, Range(1, 2**20)]
Share = Annotated[float, Range(0, 1)]
#: A probability of dropout, which must leave something.
Dropped = Annotated[float, Range(0, below=1)]
Weight = Annotated[float, Range(0)]


class Options:
    """Base of the dataclasses that hold options: values are converted and checked as their fields declare.

    numpy's numbers become Python's, 5.0 becomes 5 for a whole number and a list becomes a tuple.

    Raises:
        InputError: a value of another type or out of range, in one line with the field and what it takes. A fraction
            for a whole number is refused, because it would be rounded without a word, and so is NaN.
    """

    def __post_init__(self) -> None:
        """Convert and check every field, then what must hold among them."""
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        self.check()

    def check(self) -> None:
        """Refuse values that are fine by themselves but not together."""

    def resolved(self) -> Self:
        """The same with what None stands for, where other fields decide that."""
        return self


def check_fields(kind: type, values: Mapping[str, Any], *, complete: bool = False) -> dict[str, Any]:
    """Values for the fields of a dataclass, such as those of a JSON object, converted as :class:`Options` does.

    Args:
        kind: the dataclass.
        values: by field.
        complete: whether fields without a default must be there.

    Raises:
        InputError: an unknown name, a missing one, or a value that its field does not take.
    """
    hints = _hints(kind)
    for name in values:
        if name not in hints:
            raise InputError(f"{str(name)[:80]!r} is unknown; there are {', '.join(hints)}")
    for field in fields(kind):
        if complete and field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{field.name} is missing")
    return {name: _checked(name, value, hints[name]) for name, value in values.items()}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a type hint names.

    A whole number stands for a fraction, a list for a tuple; a truth value is no number, nor is NaN, and whole numbers
    have 64 bits.
    """
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if origin is Annotated:
        return fits(value, get_args(hint)[0])
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


def range_of(hint: Any) -> Range | None:
    """The range that a type hint declares, for itself, for what it is beside None, or for the numbers of a tuple."""
    if get_origin(hint) is Annotated:
        for extra in get_args(hint)[1:]:
            if isinstance(extra, Range):
                return extra
    return next((found for one in get_args(hint) if (found := range_of(one))), None)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value as its field takes it."""
    value = _plain(value, hint)
    allowed, is_tuple = range_of(hint), isinstance(value, tuple)
    numbers = [one for one in (value if is_tuple else (value,)) if type(one) in (int, float)]
    is_fraction = type(value) is float and fits(0.5, hint)  # where it does not fit, it is NaN
    if any(type(one) is int and not fits(one, int) for one in numbers):
        wanted = "a smaller number"
    elif not fits(value, hint) and not (is_fraction and allowed):
        wanted = _said(hint)
    elif is_tuple and not value:
        wanted = "at least one number"
    elif allowed is not None and not all(one in allowed for one in numbers):
        wanted = f"{allowed} each" if is_tuple else str(allowed)
    else:
        return value
    raise InputError(f"{name} is {_short(value)}; give {wanted}{', or leave it out' if fits(None, hint) else ''}")


def _plain(value: Any, hint: Any) -> Any:
    """The value as Python has it: no numpy, a tuple for a list, a whole number where that is what it is."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_plain(one, int if fits([1], hint) and not fits([0.5], hint) else float) for one in value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | str) or not isinstance(value, Real) or fits(value, hint):
        return value
    number = float(value)
    return int(number) if fits(0, hint) and number.is_integer() else number


def _said(hint: Any) -> str:
    """What a field takes, in words."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_said(one) for one in get_args(hint) if one is not type(None))
    if origin is Annotated:
        return _said(get_args(hint)[0])
    if origin is Literal:
        *first, last = get_args(hint)
        return f"{', '.join(first)} or {last}" if first else str(last)
    if origin is tuple:
        return "a list of whole numbers"
    return _WORDS.get(origin or hint, str(hint))


def _short(value: Any) -> str:
    is_plain = isinstance(value, str | int | float | bool | tuple | None)
    text = repr(value) if is_plain else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"
