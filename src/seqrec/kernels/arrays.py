"""The only way to call the compiled loops. It checks every argument first.

A compiled function trusts its arguments: with a wrong shape it would read or write outside the arrays. So each loop
declares its arguments as a :class:`Loop`, in the notation of our docstrings. A training step passes about 200 arrays;
to keep the checks cheap, a Python function is generated from each declaration (see ``generate.py``).
"""

import ctypes
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.kernels.declarations import KINDS, NUMBERS, Array, Number, Size, parsed
from seqrec.kernels.generate import solved, source
from seqrec.kernels.loader import library

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Loop:
    """A compiled function, declared by its arguments.

    Arguments are declared in the order of the C function's parameters. Its last parameter, the number of threads, is
    added by the call.

    Args:
        name: name of the function, without the prefix ``seqrec_``.
        arguments: one declaration per parameter:

            - ``name: int64`` (or ``int32``, ``float32``, ``float64``): a number. ``dividing D`` or ``below D`` after
              the type limits its value.
            - ``name: float32[T, 2 * D]``: a contiguous array. The first array that has a size sets it, and the others
              must match. ``[>= N]`` is an array of at least N numbers, ``[*N]`` one of any shape with N numbers. ``?``
              after the shape allows None. Conditions and ways of passing follow after a space:

              - ``rising to T``: offsets that start at 0, never decrease and end at T. With ``by 1`` no history is
                empty, with ``up to L`` none is longer than L.
              - ``below N`` or ``below N + 1``: all values are from 0 to one less. For ``int64`` and ``int32``.
              - ``sorted``: the values never decrease. With ``within rows`` they may where the array ``rows``, of the
                same length and declared before, has another value.
              - ``strided``: a matrix with gaps is allowed, and its two strides are passed too.
              - ``halves``: two pointers are passed, to the left and to the right half of the rows.
              - ``made``: the call allocates the array, and the function writes it.
            - ``name: addresses``: the result of :func:`addresses`.
            - ``D``, ``2 * D`` or ``D / H``: a size, passed as ``int64`` and taken from the arrays.
        structure: whether the arguments are passed as one C structure.
    """

    def __init__(self, name: str, *arguments: str, structure: bool = False) -> None:
        self.name = name
        self.arguments = [parsed(argument) for argument in arguments]
        self.structure = structure
        self._run: Callable[[dict[str, Any]], Any] | None = None

    def __call__(self, **given: Any) -> Any:
        """Check the arguments, given by name, and call the function.

        A size that no array shows must be given by name as well.

        Returns:
            The function's return value. If arrays are ``made``, a tuple of that value and these arrays, in the order
            of their declaration.

        Raises:
            ValueError: an argument does not match its declaration.
            RuntimeError: the compiled loops are not available.
        """
        compiled = library()
        if compiled is None:
            raise RuntimeError("the compiled loops are not available (not built, or turned off by SEQREC_KERNELS=0)")
        if self._run is None:
            self._run = self._generated(compiled)
        return self._run(given)

    def _generated(self, compiled: ctypes.CDLL) -> Callable[[dict[str, Any]], Any]:
        """The generated function, which checks the arguments and calls the compiled function."""
        function = compiled[f"seqrec_{self.name}"]  # a new object, since two loops may declare one function
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
            "threads": torch.get_num_threads, "byref": ctypes.byref, "addressof": ctypes.addressof,
            "structure": structure, "function": function, "refuse": self._refuse, "refuse_number": self._refuse_number,
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
        """Raise a ValueError about the array ``name``; ``found`` holds the sizes known so far."""
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
    """The compiled functions that check an array's values, by their names in generated code."""
    checks = {}
    number, array = ctypes.c_int64, ctypes.c_void_p
    for name, *more in (
        ("rising", number, number, number), ("below", number), ("below_int32", number), ("sorted",),
        ("sorted_within", array),
    ):  # fmt: skip
        checks[name] = getattr(compiled, f"seqrec_{name}")
        checks[name].argtypes = [array, number, *more]
    return checks


def _wrong_content(array: Array, x: Tensor, sizes: dict[str, int]) -> str:
    """What is wrong with an array's values, in words; empty if only its shape is wrong."""
    values = x.numpy()
    for word, *more in (content.split() for content in array.content):
        if len(values) == 0:
            break
        if word == "rising":
            steps = np.diff(values)
            sizes_of_steps = f"{steps.min(initial=0)} to {steps.max(initial=0)}"
            return f"but it runs from {values[0]} to {values[-1]} in steps of {sizes_of_steps}"
        known = word != "below" or more[0] in sizes  # otherwise another array's shape is wrong too
        if word == "below" and known and (values.min() < 0 or values.max() >= sizes[more[0]] + int("+" in more)):
            return f"but its values are from {values.min()} to {values.max()}"
        if word == "sorted" and (values[1:] < values[:-1]).any():
            return f"but it is not {' '.join([word, *more])}"
    return ""


def lengths_of(offsets: Tensor) -> np.ndarray:
    """Lengths ``int64[B]`` of the histories of a packed batch.

    Raises:
        ValueError: ``offsets`` are not ``int64[B + 1]``, or decrease.
    """
    plain = offsets.dtype is torch.int64 and offsets.dim() == 1 and offsets.is_cpu and len(offsets)
    values = offsets.numpy() if plain else np.array([0, -1])
    lengths: np.ndarray = values[1:] - values[:-1]
    if len(lengths) and np.minimum.reduce(lengths) < 0:
        raise ValueError("offsets must be int64[B + 1] in ascending order")
    return lengths


def integers(x: Tensor) -> Tensor:
    """Integers of any type as contiguous ``int64``.

    Raises:
        ValueError: another type.
    """
    if x.dtype not in _INTEGERS:
        raise ValueError(f"{x.dtype} is not an integer type")
    return x.to(torch.int64).contiguous()


def addresses(tensors: list[Tensor], sizes: list[int]) -> ctypes.Array[ctypes.c_void_p]:
    """Pointers to the data of contiguous ``float32`` tensors that have ``sizes`` numbers each.

    Raises:
        ValueError: another type or size, or a tensor that is not contiguous.
    """
    if len(sizes) != len(tensors):
        raise ValueError(f"{len(tensors)} tensors, but {len(sizes)} sizes")
    for x, size in zip(tensors, sizes, strict=True):
        if (
            x.dtype is not torch.float32
            or x.layout is not torch.strided
            or not x.is_cpu
            or not x.is_contiguous()
            or x.numel() != size
        ):
            raise ValueError(f"a tensor is {x.dtype}{list(x.shape)}, not contiguous float32 with {size} numbers")
    return (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])


class Remembered:
    """:func:`addresses` for lists of tensors that are mostly those of the call before, by name.

    It checks a list again if it has other tensors, or if one of them has moved. It keeps the tensors alive, so that no
    other one can take the place of one of them.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[Tensor], list[int], list[int], ctypes.Array[ctypes.c_void_p]]] = {}

    def addresses(self, name: str, tensors: list[Tensor], sizes: list[int]) -> ctypes.Array[ctypes.c_void_p]:
        """The same as :func:`addresses`."""
        places = [x.data_ptr() for x in tensors]
        if name in self._known:
            before, before_sizes, before_places, found = self._known[name]
            if places == before_places and sizes == before_sizes and all(map(is_, tensors, before)):
                return found
        found = addresses(tensors, sizes)
        self._known[name] = [*tensors], [*sizes], places, found
        return found


def require_probability(probability: float) -> None:
    """Raise a ValueError unless ``probability`` is from 0 to 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"the dropout probability is {probability}; give 0 to 1")
