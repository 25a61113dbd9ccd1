"""The only door to the compiled loops, which checks all that passes it.

Each loop declares what it takes as a :class:`Loop`, in the words of our docstrings: a compiled function trusts
its arguments, and one wrong shape would have it read or write beyond them.
"""

import ctypes
import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.kernels.loader import library

_NUMBERS: dict[str, Any] = {
    "int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double,
    "addresses": ctypes.byref,
}  # fmt: skip
_KINDS = {name: getattr(torch, name) for name in ("bool", "int16", "int32", "int64", "float32", "float64")}
_ARRAY = re.compile(r"(\w+): (\w+)\[(.*)\](\?)?(?: (.+))?")
_NUMBER = re.compile(r"(\w+): (\w+)(?: (dividing|below) (\w+))?")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_NOWHERE = ctypes.c_void_p(None)


class _Length(NamedTuple):
    """One length of a shape: ``times * product of names + plus``."""

    names: tuple[str, ...]
    times: int = 1
    plus: int = 0
    at_least: bool = False

    @classmethod
    def parse(cls, text: str) -> "_Length":
        at_least = text.startswith(">= ")
        product, _, plus = text.removeprefix(">= ").partition(" + ")
        factors = product.split(" * ")
        names = tuple(factor for factor in factors if not factor.isdigit())
        times = int(np.prod([int(factor) for factor in factors if factor.isdigit()], dtype=np.int64))
        return cls(names, times, int(plus or 0), at_least)

    @property
    def alone(self) -> str | None:
        """The name of a length that is one size and nothing else."""
        plain = len(self.names) == 1 and (self.times, self.plus, self.at_least) == (1, 0, False)
        return self.names[0] if plain else None

    def fits(self, length: int, sizes: dict[str, int]) -> bool:
        """Whether a length is this one; a name that is met for the first time is what makes it so."""
        product = self.times
        for name in self.names:
            if name not in sizes:
                sizes[name], rest = divmod(length - self.plus, product) if product else (0, 1)
                return rest == 0 and sizes[name] >= 0
            product *= sizes[name]
        return length >= product + self.plus if self.at_least else length == product + self.plus


class _Size(NamedTuple):
    """A size that is passed as a number: ``times * product of names / divisor``."""

    times: int
    names: tuple[str, ...]
    divisor: str

    @classmethod
    def parse(cls, text: str) -> "_Size":
        size, _, divisor = text.partition(" / ")
        length = _Length.parse(size)
        return cls(length.times, length.names, divisor)

    def of(self, sizes: dict[str, int]) -> int:
        """Its value."""
        value = self.times
        for name in self.names:
            value *= sizes[name]
        return value // sizes[self.divisor] if self.divisor else value


class _Array(NamedTuple):
    """An array among the arguments, as declared."""

    name: str
    kind: torch.dtype
    lengths: tuple[_Length, ...]
    declared: str
    optional: bool
    flat: bool  # of any shape: its numbers are counted
    content: tuple[str, ...]
    names: tuple[str | None, ...]  # of lengths that are a size by itself, which most are


class Loop:
    """A compiled function and what it takes, in the order of its arguments but the last, the number of threads.

    Args:
        name: of the function, without ``seqrec_``.
        arguments: each one of

            - ``name: int64``, a number (or ``int32``, ``float32``, ``float64``); perhaps ``dividing D`` or ``below D``.
            - ``name: float32[T, 2 * D]``, an array without gaps. Sizes are bound where they are met first and must be
              the same elsewhere; ``[>= N]`` is at least as long, ``[*N]`` of any shape with N numbers. ``?`` after it
              lets None pass. After a space stands what it holds: ``rising to T`` (offsets: from 0, never falling, to
              T; with ``by 1`` no history is empty, with ``up to L`` none is longer), ``below N`` (from 0 to N - 1),
              ``sorted``, or how it is passed: ``strided`` (``[M, N]`` with both of its strides), ``halves`` (a
              pointer to each half of a row).
            - ``name: addresses``, what :func:`addresses` gives.
            - ``D``, ``2 * D`` or ``D / H``: a size, as ``int64``, which no caller gives.
        structure: whether all are passed as one C structure.
    """

    def __init__(self, name: str, *arguments: str, structure: bool = False) -> None:
        self.name = name
        self.arrays: list[_Array] = []
        self.numbers: dict[str, tuple[Any, str | None, str]] = {}
        self.order = [argument.partition(":")[0] for argument in arguments]
        for argument in arguments:
            if found := _ARRAY.fullmatch(argument):
                array, kind, shape, optional, content = found.groups()
                flat = shape.startswith("*")
                lengths = tuple(map(_Length.parse, shape.removeprefix("*").split(", ")))
                declared = argument.removeprefix(f"{array}: ")
                words = tuple((content or "").split(", "))
                names = tuple(length.alone for length in lengths)
                self.arrays.append(
                    _Array(array, _KINDS[kind], lengths, declared, optional is not None, flat, words, names)
                )
            elif found := _NUMBER.fullmatch(argument):
                self.numbers[found[1]] = _NUMBERS[found[2]], found[3], found[4]
        self._named = {array.name: array for array in self.arrays}
        self._sizes = {name: _Size.parse(name) for name in self.order if name not in {*self._named, *self.numbers}}
        self._checked = [array for array in self.arrays if {*array.content} - {"", "strided", "halves"}]
        self._structure = structure
        self._type: type[ctypes.Structure] | None = None

    def __call__(self, **given: Any) -> Any:
        """Check all arguments by name and call the function. Sizes that no array has may be given too.

        Raises:
            ValueError: an argument that does not fit what is declared.
            RuntimeError: there are no compiled loops.
        """
        compiled = library()
        if compiled is None:
            raise RuntimeError("the compiled loops are not available (not built, or turned off by SEQREC_KERNELS=0)")
        sizes = {name: value for name, value in given.items() if name.isupper()}
        for array in self.arrays:
            x = given.get(array.name)
            if x is not None or not array.optional:
                self._check(array, x, sizes)
        for array in self._checked:
            if given.get(array.name) is not None:
                self._check_content(array, given[array.name], sizes)
        arguments = self._arguments(given, sizes)
        if self._structure:
            if self._type is None:
                fields = [(f"field{place}", type(value)) for place, value in enumerate(arguments)]
                self._type = type("Given", (ctypes.Structure,), {"_fields_": fields})
            arguments = [ctypes.byref(self._type(*arguments))]
        return getattr(compiled, f"seqrec_{self.name}")(*arguments, ctypes.c_int32(torch.get_num_threads()))

    def _check(self, array: _Array, x: Tensor | None, sizes: dict[str, int]) -> None:
        if x is None:
            raise ValueError(f"{self.name} takes {array.name}: {array.declared}, not None")
        # Some 250 arrays are looked at per step of training, so what is asked of most of them is asked at once.
        if x.dtype is array.kind and x.is_cpu and x.layout is torch.strided:
            shape = (x.numel(),) if array.flat else x.shape
            if len(shape) == len(array.names) and (x.is_contiguous() or "strided" in array.content):
                for name, size, length in zip(array.names, shape, array.lengths):  # noqa: B905
                    if name is None:
                        if not length.fits(size, sizes):
                            break
                    elif sizes.setdefault(name, size) != size:
                        break
                else:
                    return
        self._refuse(array, x, sizes)

    def _refuse(self, array: _Array, x: Tensor, sizes: dict[str, int], why: str = "") -> None:
        kind = str(x.dtype).removeprefix("torch.")
        gaps = "" if x.layout is torch.strided and x.is_contiguous() else ", with gaps"
        where = "" if x.device.type == "cpu" else f", on {x.device}"
        known = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        why = why or f"not {kind}{list(x.shape)}{gaps}{where}"
        raise ValueError(f"{self.name} takes {array.name}: {array.declared} with {known or 'any sizes'}, {why}")

    def _check_content(self, array: _Array, x: Tensor, sizes: dict[str, int]) -> None:
        values = x.numpy()
        for content in array.content:
            word, *more = content.split()
            if word == "rising":  # to T, perhaps by 1, perhaps up to L
                least = 1 if "by" in more else 0
                steps = values[1:] - values[:-1]
                if values[0] != 0 or values[-1] != sizes[more[1]] or (len(steps) and np.minimum.reduce(steps) < least):
                    bounds = f"{int(steps.min(initial=0))} or more from {values[0]} to {values[-1]}"
                    self._refuse(array, x, sizes, f"not by {bounds}")
                if "up" in more and steps.max(initial=0) > sizes[more[-1]]:
                    self._refuse(array, x, sizes, f"not by up to {steps.max()}")
            elif word == "below" and len(values):
                low, high = np.minimum.reduce(values), np.maximum.reduce(values)
                if low < 0 or high >= sizes[more[0]]:
                    self._refuse(array, x, sizes, f"not from {low} to {high}")
            elif word == "sorted" and (values[1:] < values[:-1]).any():
                self._refuse(array, x, sizes, "not in another order")

    def _arguments(self, given: dict[str, Any], sizes: dict[str, int]) -> list[Any]:
        found: list[Any] = []
        for name in self.order:
            if name in self._named:
                array, x = self._named[name], given.get(name)
                if x is None:
                    found.append(_NOWHERE)
                    continue
                found.append(ctypes.c_void_p(x.data_ptr()))
                if "strided" in array.content:
                    found += map(ctypes.c_int64, x.stride())
                elif "halves" in array.content:
                    found.append(ctypes.c_void_p(x.data_ptr() + x.shape[-1] // 2 * x.element_size()))
            elif name in self.numbers:
                kind, rule, size = self.numbers[name]
                value = given[name]
                if (rule == "dividing" and (value < 1 or sizes[size] % value)) or (
                    rule == "below" and not 0 <= value < sizes[size]
                ):
                    raise ValueError(f"{self.name} takes {name} {rule} {size} = {sizes[size]}, not {value}")
                found.append(kind(value))
            else:
                found.append(ctypes.c_int64(self._sizes[name].of(sizes)))
        return found


def lengths_of(offsets: Tensor) -> np.ndarray:
    """Lengths of the histories of a packed batch.

    Raises:
        ValueError: ``offsets`` that are not ``int64[B + 1]``, or fall.
    """
    plain = offsets.dtype is torch.int64 and offsets.dim() == 1 and offsets.device.type == "cpu" and len(offsets)
    lengths = np.diff(offsets.numpy()) if plain else np.array([-1])
    if lengths.min(initial=0) < 0:
        raise ValueError("offsets must be int64[B + 1] in rising order")
    return lengths


def integers(x: Tensor) -> Tensor:
    """Whole numbers of any type as ``int64`` without gaps."""
    if x.dtype not in _INTEGERS:
        raise ValueError(f"{x.dtype} are not whole numbers")
    return x.to(torch.int64).contiguous()


def addresses(tensors: list[Tensor], like: list[Tensor] | None = None) -> ctypes.Array[ctypes.c_void_p]:
    """Where the numbers of ``float32`` tensors are, each of as many as the one in its place in ``like`` (or of one).

    Raises:
        ValueError: another type, gaps, or other sizes.
    """
    if like is not None and len(like) != len(tensors):
        raise ValueError(f"{len(tensors)} tensors where there are {len(like)}")
    for place, x in enumerate(tensors):
        size = 1 if like is None else like[place].numel()
        plain = x.dtype is torch.float32 and x.layout is torch.strided and x.device.type == "cpu"
        if not plain or not x.is_contiguous() or x.numel() != size:
            raise ValueError(f"tensor {place} is {x.dtype}{list(x.shape)}, not float32 of {size} without gaps")
    return (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])


def require_probability(probability: float) -> None:
    """Raise a ValueError unless it is from 0 to 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of dropout is {probability}; give 0 to 1")
