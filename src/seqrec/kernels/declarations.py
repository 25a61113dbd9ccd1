"""The notation in which a compiled loop declares its arguments; see :class:`seqrec.kernels.arrays.Loop`."""

import ctypes
import re
from math import prod
from typing import Any, NamedTuple

import torch

NUMBERS: dict[str, Any] = {
    "int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double,
    "addresses": ctypes.c_void_p,
}  # fmt: skip
KINDS = {
    name: getattr(torch, name) for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64")
}
_ARRAY = re.compile(r"(\w+): (\w+)\[(.*)\](\?)?(?: (.+))?")
_NUMBER = re.compile(r"(\w+): (\w+)(?: (dividing|below) (\w+))?")


class Length(NamedTuple):
    """One length of a shape: ``times * (product of names) + plus``."""

    names: tuple[str, ...]
    times: int = 1
    plus: int = 0
    at_least: bool = False

    @classmethod
    def parse(cls, text: str) -> "Length":
        """Parse a text such as ``2 * D``, ``B + 1`` or ``>= H * P``."""
        at_least = text.startswith(">= ")
        product, _, plus = text.removeprefix(">= ").partition(" + ")
        factors = product.split(" * ")
        names = tuple(factor for factor in factors if not factor.isdigit())
        times = prod(int(factor) for factor in factors if factor.isdigit())
        return cls(names, times, int(plus or 0), at_least)

    def product(self, but: str | None = None) -> str:
        """The product as a Python expression, without the name ``but``."""
        names = [name for name in self.names if name != but]
        return " * ".join([*([str(self.times)] if self.times != 1 or not names else []), *names])

    def __str__(self) -> str:
        return self.product() + (f" + {self.plus}" if self.plus else "")


class Array(NamedTuple):
    """An argument that is an array."""

    name: str
    kind: str
    lengths: tuple[Length, ...]
    declared: str
    optional: bool
    flat: bool  # any shape; only the number of elements counts
    content: tuple[str, ...]

    @property
    def made(self) -> bool:
        """Whether the call allocates it."""
        return "made" in self.content


class Number(NamedTuple):
    """An argument that is a number; with a ``rule``, it must divide or be below ``size``."""

    name: str
    kind: str
    rule: str | None
    size: str | None


class Size(NamedTuple):
    """A size that is passed as a number: a Python expression."""

    value: str


def parsed(argument: str) -> Array | Number | Size:
    """Parse the declaration of one argument."""
    if found := _ARRAY.fullmatch(argument):
        name, kind, shape, optional, content = found.groups()
        lengths = tuple(map(Length.parse, shape.removeprefix("*").split(", ")))
        declared = argument.removeprefix(f"{name}: ")
        words = tuple(content.split(", ")) if content else ()
        return Array(name, kind, lengths, declared, optional is not None, shape.startswith("*"), words)
    if found := _NUMBER.fullmatch(argument):
        return Number(*found.groups())
    return Size(argument.replace(" / ", " // "))
