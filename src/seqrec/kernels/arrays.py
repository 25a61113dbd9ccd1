"""The only door to the compiled loops, which checks all that passes it.

Each loop declares what it takes as a :class:`Loop`, in the words of our docstrings: a compiled function trusts
its arguments, and one wrong shape would have it read or write beyond them. A step of training passes some 200 arrays,
so each declaration becomes a Python function of its own (see ``generate.py``).
"""

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.kernels.declarations import KINDS, NUMBERS, Array, Number, Size, parsed
from seqrec.kernels.generate import solved, source
from seqrec.kernels.loader import library

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
              pointer to each half of a row), ``made`` (by the door, for the function to write).
            - ``name: addresses``, what :func:`addresses` gives.
            - ``D``, ``2 * D`` or ``D / H``: a size, as ``int64``, which no caller gives.
        structure: whether all are passed as one C structure.
    """

    def __init__(self, name: str, *arguments: str, structure: bool = False) -> None:
        self.name = name
        self.arguments = [parsed(argument) for argument in arguments]
        self.structure = structure
        self._run: Callable[[dict[str, Any]], Any] | None = None

    def __call__(self, **given: Any) -> Any:
        """Check all arguments by name and call the function. Sizes that no array has are given too.

        Returns:
            What the function returns; where the door made arrays, a tuple of that and of these, in their order.

        Raises:
            ValueError: an argument that does not fit what is declared.
            RuntimeError: there are no compiled loops.
        """
        compiled = library()
        if compiled is None:
            raise RuntimeError("the compiled loops are not available (not built, or turned off by SEQREC_KERNELS=0)")
        if self._run is None:
            self._run = self._generated(compiled)
        return self._run(given)

    def _generated(self, compiled: ctypes.CDLL) -> Callable[[dict[str, Any]], Any]:
        """The function that checks what is given and calls the compiled one."""
        function = compiled[f"seqrec_{self.name}"]  # an object of its own, as two loops may declare one function
        function.restype = getattr(compiled, f"seqrec_{self.name}").restype
        types = list(self._types())
        structure: Any = None
        if self.structure:
            fields = [(f"field{place}", kind) for place, kind in enumerate(types)]
            structure = type("Given", (ctypes.Structure,), {"_fields_": fields})
            types = [ctypes.c_void_p]
        function.argtypes = [*types, ctypes.c_int32]
        names: dict[str, Any] = {
            **KINDS, **_content_checks(compiled), "strided": torch.strided, "empty": torch.empty,
            "cpu": torch.device("cpu"), "solved": solved,
            "threads": torch.get_num_threads, "byref": ctypes.byref, "structure": structure, "function": function,
            "refuse": self._refuse, "refuse_number": self._refuse_number,
        }  # fmt: skip
        exec(source(self.arguments, self.structure), names)
        run: Callable[[dict[str, Any]], Any] = names["run"]
        return run

    def _types(self) -> Iterable[Any]:
        for argument in self.arguments:
            if isinstance(argument, Size):
                yield ctypes.c_int64
            elif isinstance(argument, Number):
                yield NUMBERS[argument.kind]
            else:
                yield ctypes.c_void_p
                if "strided" in argument.content:
                    yield from (ctypes.c_int64, ctypes.c_int64)
                elif "halves" in argument.content:
                    yield ctypes.c_void_p

    def _refuse(self, name: str, given: dict[str, Any], found: dict[str, Any]) -> None:
        """Say what is wrong with an array, given the sizes that were found before."""
        array = next(x for x in self.arguments if isinstance(x, Array) and x.name == name)
        x = given.get(name)
        if x is None:
            raise ValueError(f"{self.name} takes {name}: {array.declared}, not None")
        sizes = {size: value for size, value in found.items() if size.isupper() and value is not None}
        known = ", ".join(f"{size} = {value}" for size, value in sizes.items())
        plain = x.layout is torch.strided and x.is_cpu and x.is_contiguous()
        kind = str(x.dtype).removeprefix("torch.")
        gaps = "" if x.layout is torch.strided and x.is_contiguous() else ", with gaps"
        where = "" if x.is_cpu else f", on {x.device}"
        why = plain and _wrong_content(array, x, sizes)
        why = why or f"not {kind}{list(x.shape)}{gaps}{where}"
        raise ValueError(f"{self.name} takes {name}: {array.declared} with {known or 'any sizes'}, {why}")

    def _refuse_number(self, name: str, value: Any, rule: str, size: int) -> None:
        raise ValueError(f"{self.name} takes {name} {rule} {size}, not {value}")


def _content_checks(compiled: ctypes.CDLL) -> dict[str, Any]:
    """The compiled functions that look at an array's numbers, by the names that generated code has for them."""
    checks = {}
    for name, more in (("rising", 3), ("below", 1), ("sorted", 0)):
        checks[name] = getattr(compiled, f"seqrec_{name}")
        checks[name].argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * (1 + more)]
    return checks


def _wrong_content(array: Array, x: Tensor, sizes: dict[str, int]) -> str:
    """What is wrong with an array's numbers, in words; nothing where its shape is."""
    values = x.numpy()
    for word, *more in (content.split() for content in array.content):
        if len(values) == 0:
            break
        if word == "rising":
            steps = np.diff(values)
            least = f"{steps.min(initial=0)} to {steps.max(initial=0)}"
            return f"not from {values[0]} to {values[-1]} in steps of {least}"
        if word == "below" and (values.min() < 0 or values.max() >= sizes[more[0]]):
            return f"not from {values.min()} to {values.max()}"
        if word == "sorted" and (values[1:] < values[:-1]).any():
            return "not in another order"
    return ""


def lengths_of(offsets: Tensor) -> np.ndarray:
    """Lengths of the histories of a packed batch.

    Raises:
        ValueError: ``offsets`` that are not ``int64[B + 1]``, or fall.
    """
    plain = offsets.dtype is torch.int64 and offsets.dim() == 1 and offsets.is_cpu and len(offsets)
    values = offsets.numpy() if plain else np.array([0, -1])
    lengths: np.ndarray = values[1:] - values[:-1]
    if len(lengths) and np.minimum.reduce(lengths) < 0:
        raise ValueError("offsets must be int64[B + 1] in rising order")
    return lengths


def integers(x: Tensor) -> Tensor:
    """Whole numbers of any type as ``int64`` without gaps."""
    if x.dtype not in _INTEGERS:
        raise ValueError(f"{x.dtype} are not whole numbers")
    return x.to(torch.int64).contiguous()


def addresses(tensors: list[Tensor], sizes: list[int]) -> ctypes.Array[ctypes.c_void_p]:
    """Where the numbers of ``float32`` tensors are; ``sizes`` says how many each one has.

    Raises:
        ValueError: another type, gaps, or other sizes.
    """
    if len(sizes) != len(tensors):
        raise ValueError(f"{len(tensors)} tensors where there are {len(sizes)}")
    for x, size in zip(tensors, sizes, strict=True):
        if (
            x.dtype is not torch.float32
            or x.layout is not torch.strided
            or not x.is_cpu
            or not x.is_contiguous()
            or x.numel() != size
        ):
            raise ValueError(f"a tensor is {x.dtype}{list(x.shape)}, not float32 of {size} without gaps")
    return (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])


def require_probability(probability: float) -> None:
    """Raise a ValueError unless it is from 0 to 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"the probability of dropout is {probability}; give 0 to 1")
