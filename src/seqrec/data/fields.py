"""Options: dataclass fields declare the values they take; they are checked here, wherever the values come from."""

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from numbers import Real
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from seqrec.errors import InputError

_LARGEST = sys.float_info.max
_INFINITE = (float("inf"), float("-inf"))
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "an object"}


@dataclass(frozen=True)
class Range:
    """Numbers that a field takes: ``Annotated[float, Range(0, below=1)]``. For a tuple, it applies to each number.

    Args:
        least: smallest number.
        most: largest number; infinity is allowed only if ``most`` is infinity.
        above: exclusive lower bound.
        below: exclusive upper bound.
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
        """The range in words, for error messages and the help of a flag."""
        most = None if self.most in _INFINITE else self.most
        if self.least is not None and most is not None:
            return f"{self.least} to {most}"
        if self.least is not None and self.below is None:
            return f"{self.least} or more"
        ends = {"at least": self.least, "more than": self.above, "at most": most, "less than": self.below}
        return " and ".join(f"{words} {end}" for words, end in ends.items() if end is not None)


Count = Annotated[int, Range(1)]
#: Number of items of a history that a model sees. The limit is above any real history and keeps products small.
Length = Annotated[int, Range(1, 2**20)]
Share = Annotated[float, Range(0, 1)]
#: Probability of dropout; at 1 nothing would be left.
Dropped = Annotated[float, Range(0, below=1)]
Weight = Annotated[float, Range(0)]


class Options:
    """Base class of dataclasses that hold options; converts and checks the values as the fields declare.

    Numpy numbers become Python numbers, 5.0 becomes 5 in an integer field, and lists become tuples.

    Raises:
        InputError: a value has the wrong type or is out of range; the message names the field and the values it takes.
            Fractions in integer fields are refused rather than silently rounded, and so is NaN.
    """

    # In a slot, so that it is none of the values in ``vars``.
    __slots__ = ("given",)
    #: Names of the fields that were given when the object was made.
    given: frozenset[str]
    #: Values of fields that are None by default because the best one depends on the log, for use without a log.
    PLAIN: ClassVar[Mapping[str, Any]] = {}

    def __new__(cls, *rest: Any, **values: Any) -> Self:
        """Note the names that are given."""
        del rest
        made = super().__new__(cls)
        object.__setattr__(made, "given", frozenset(values))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """The values, for pickle and copy; what was given is not kept."""
        return dict(vars(self))

    def __post_init__(self) -> None:
        """Convert and check every field, then call :meth:`check`."""
        kind = type(self)
        for name, hint in _hints(kind).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if value is not getattr(kind, name, MISSING):  # most are the default, which a class has as its attribute
                object.__setattr__(self, name, _checked(name, value, hint))
        self.check()

    def check(self) -> None:
        """Raise if values contradict each other, although each is valid by itself."""

    def resolved(self) -> Self:
        """A copy in which defaults replace None: those that depend on other fields, and those of ``PLAIN``."""
        plain = {name: value for name, value in self.PLAIN.items() if getattr(self, name) is None}
        return replace(self, **plain) if plain else self  # type: ignore[type-var]


def check_fields(kind: type, values: Mapping[str, Any], *, complete: bool = False) -> dict[str, Any]:
    """Convert and check values for the fields of a dataclass as :class:`Options` does, for example a JSON object.

    Args:
        kind: dataclass that declares the fields.
        values: value by field name.
        complete: whether all fields without a default must be present.

    Raises:
        InputError: a name is unknown or missing, or a field does not take its value.
    """
    hints = _hints(kind)
    for name in values:
        if name not in hints:
            raise InputError(f"{str(name)[:80]!r} is unknown; choose from {', '.join(hints)}")
    for field in fields(kind):
        if complete and field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{field.name} is missing")
    return {name: _checked(name, value, hints[name]) for name, value in values.items()}


def by_kind(options: Mapping[str, Any], kinds: Sequence[type], owner: str, also: str) -> list[dict[str, Any]]:
    """The options that each of several dataclasses declares.

    Args:
        options: value by field name.
        kinds: dataclasses.
        owner: name of what takes the options, for error messages.
        also: name of another option that it takes, for error messages.

    Raises:
        InputError: none of them declares an option.
    """
    known = [{field.name for field in fields(kind)} for kind in kinds]
    unknown = sorted(set(options) - set().union(*known))
    if unknown:
        names = ", ".join(sorted({also}.union(*known)))
        raise InputError(f"{owner} has no option {unknown[0]!r}; it takes {names}")
    return [{name: value for name, value in options.items() if name in names} for names in known]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a hint.

    Integers also fit float, and lists fit tuple. Bool and NaN do not count as numbers. Integers must fit into 64 bits.
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


@cache
def range_of(hint: Any) -> Range | None:
    """The range that a type hint declares, also inside of ``X | None`` or a tuple; None if it declares none."""
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
    """The value, converted as its field needs it; raises if it has the wrong type or is out of range."""
    value = _plain(value, hint)
    allowed, is_tuple = range_of(hint), isinstance(value, tuple)
    numbers = [one for one in (value if is_tuple else (value,)) if type(one) in (int, float)]
    is_fraction = type(value) is float and fits(0.5, hint)  # fits every float but NaN
    if any(type(one) is int and not fits(one, int) for one in numbers):
        wanted = "a smaller number"
    elif not fits(value, hint) and not (is_fraction and allowed):
        wanted = _in_words(hint)
    elif is_tuple and not value:
        wanted = "at least one number"
    elif allowed is not None and not all(one in allowed for one in numbers):
        wanted = f"{allowed} each" if is_tuple else str(allowed)
    else:
        return value
    raise InputError(f"{name} is {_short(value)}; give {wanted}{', or leave it out' if fits(None, hint) else ''}")


def _plain(value: Any, hint: Any) -> Any:
    """The value as a plain Python object: numpy numbers and whole floats converted, lists as tuples."""
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


def _in_words(hint: Any) -> str:
    """The type of a field, for an error message."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in get_args(hint) if one is not type(None))
    if origin is Annotated:
        return _in_words(get_args(hint)[0])
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
