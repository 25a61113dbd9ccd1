"""Builds an ONNX graph from Python expressions: ``x @ w + b`` adds three nodes.

The graphs are written by hand rather than traced from torch: the models compute on packed tokens with compiled loops,
which cannot be traced, and loops over time, rows of different lengths and dynamic shapes are single operators of ONNX.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from seqrec.errors import missing_extra

#: Version of ONNX's operators, and of its file format. Runtimes from 2023 on read both.
OPSET, IR_VERSION = 18, 8
Number = int | float | bool
_ALL = np.iinfo(np.int64).max


class Value:
    """The result of a node, an input or a constant of a graph, with its type: ``float32``, ``int64`` or ``bool``."""

    def __init__(self, graph: "Graph", name: str, dtype: str) -> None:
        self.graph, self.name, self.dtype = graph, name, dtype

    def op(self, kind: str, *others: "Value | Number", dtype: str | None = None, **attributes: Any) -> "Value":
        """The result of an operator with this as its first input; numbers among the others are of this type."""
        given = [one if isinstance(one, Value) else self.graph.number(one, self.dtype) for one in others]
        return self.graph.op(kind, self, *given, dtype=dtype, **attributes)

    def __add__(self, other: "Value | Number") -> "Value":
        return self.op("Add", other)

    def __sub__(self, other: "Value | Number") -> "Value":
        return self.op("Sub", other)

    def __rsub__(self, other: Number) -> "Value":
        return self.graph.number(other, self.dtype) - self

    def __mul__(self, other: "Value | Number") -> "Value":
        return self.op("Mul", other)

    def __truediv__(self, other: "Value | Number") -> "Value":
        return self.op("Div", other)

    def __matmul__(self, other: "Value") -> "Value":
        return self.op("MatMul", other)

    def __and__(self, other: "Value") -> "Value":
        return self.op("And", other)

    def __gt__(self, other: "Value | Number") -> "Value":
        return self.op("Greater", other, dtype="bool")

    def __ge__(self, other: "Value | Number") -> "Value":
        return self.op("GreaterOrEqual", other, dtype="bool")

    def __lt__(self, other: "Value | Number") -> "Value":
        return self.op("Less", other, dtype="bool")

    def __le__(self, other: "Value | Number") -> "Value":
        return self.op("LessOrEqual", other, dtype="bool")

    def equals(self, other: "Value | Number") -> "Value":
        """Where both are equal, ``bool``."""
        return self.op("Equal", other, dtype="bool")

    def where(self, yes: "Value | Number", no: "Value | Number") -> "Value":
        """``yes`` where this is true, else ``no``. One of them must be a value, which sets the type."""
        typed = yes if isinstance(yes, Value) else no
        assert isinstance(typed, Value)
        parts = [one if isinstance(one, Value) else self.graph.number(one, typed.dtype) for one in (yes, no)]
        return self.graph.op("Where", self, *parts, dtype=typed.dtype)

    def cast(self, dtype: str) -> "Value":
        """The same numbers in another type."""
        if dtype == self.dtype:
            return self
        return self.graph.op("Cast", self, dtype=dtype, to=_code(dtype))

    def named(self, name: str) -> "Value":
        """The same under a name of its own, for an output."""
        self.graph.nodes.append(imported_onnx().helper.make_node("Identity", [self.name], [name]))
        return Value(self.graph, name, self.dtype)

    def size(self, axis: int) -> "Value":
        """Size of an axis, ``int64`` without dimensions."""
        end = {} if axis == -1 else {"end": axis + 1}
        return self.graph.op("Shape", self, dtype="int64", start=axis, **end).reshape()

    def reshape(self, *sizes: "int | Value") -> "Value":
        """In another shape; 0 keeps the size of an axis, -1 takes what is left. Without sizes: no dimensions."""
        if all(isinstance(one, int) for one in sizes):
            return self.graph.op("Reshape", self, self.graph.constant(np.array(sizes, dtype=np.int64)))
        return self.graph.op("Reshape", self, self.graph.shape(*sizes))

    def expand(self, *sizes: "int | Value") -> "Value":
        """Repeated along axes of size 1; 1 keeps the size of an axis."""
        return self.graph.op("Expand", self, self.graph.shape(*sizes))

    def permute(self, *axes: int) -> "Value":
        """With its axes in another order."""
        return self.graph.op("Transpose", self, perm=axes)

    def unsqueeze(self, *axes: int) -> "Value":
        """With new axes of size 1."""
        return self.graph.op("Unsqueeze", self, self.graph.constant(np.array(axes, dtype=np.int64)))

    def squeeze(self, *axes: int) -> "Value":
        """Without axes of size 1."""
        return self.graph.op("Squeeze", self, self.graph.constant(np.array(axes, dtype=np.int64)))

    def slice(self, axis: int, start: "int | Value" = 0, stop: "int | Value" = _ALL) -> "Value":
        """A part of an axis. Numbers below 0 count from the end, and those out of range are limited to the axis."""
        bounds = [self.graph.shape(one) for one in (start, stop)]
        return self.graph.op("Slice", self, *bounds, self.graph.constant(np.array([axis], dtype=np.int64)))

    def rows(self, places: "Value", axis: int = 0) -> "Value":
        """The rows at these places, ``[..., D]``."""
        return self.graph.op("Gather", self, places, axis=axis)

    def picked(self, places: "Value", axis: int) -> "Value":
        """The entries along an axis at places of the shape of the result."""
        return self.graph.op("GatherElements", self, places, axis=axis)

    def put(self, places: "Value", values: "Value", axis: int, add: bool = False) -> "Value":
        """With values written to, or added at, places along an axis."""
        more = {"reduction": "add"} if add else {}
        return self.graph.op("ScatterElements", self, places, values, axis=axis, **more)

    def cumsum(self, axis: int, reverse: bool = False) -> "Value":
        """Running sums, from the end if ``reverse``."""
        place = self.graph.constant(np.array(axis, dtype=np.int64))
        return self.graph.op("CumSum", self, place, reverse=int(reverse))

    def reduce(self, kind: str, *axes: int, keep: bool = False) -> "Value":
        """The ``Sum``, ``Max`` or ``Min`` over axes."""
        over = self.graph.constant(np.array(axes, dtype=np.int64))
        return self.graph.op(f"Reduce{kind}", self, over, keepdims=int(keep))

    def softmax(self, axis: int = -1) -> "Value":
        """Softmax over an axis."""
        return self.op("Softmax", axis=axis)


class Graph:
    """A graph under construction. The body of a loop is a graph of its own that sees the constants of the first one."""

    def __init__(self, parent: "Graph | None" = None) -> None:
        self.root: Graph = self if parent is None else parent.root
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self._tensors: list[Any] = []
        self._known: dict[Any, Value] = {}
        self._kept: list[Any] = []  # arrays whose addresses are keys of _known
        self._names = 0

    def name(self) -> str:
        """A new name."""
        self.root._names += 1
        return f"v{self.root._names}"

    def input(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> Value:
        """An input; sizes that are named may be any."""
        self.inputs.append(imported_onnx().helper.make_tensor_value_info(name, _code(dtype), shape))
        return Value(self, name, dtype)

    def op(self, kind: str, *inputs: Value, dtype: str | None = None, **attributes: Any) -> Value:
        """The result of an operator, of the type of its first input unless ``dtype`` says otherwise."""
        return self.ops(kind, *inputs, dtypes=[dtype or inputs[0].dtype], **attributes)[0]

    def ops(self, kind: str, *inputs: Value | None, dtypes: Sequence[str], **attributes: Any) -> list[Value]:
        """The results of an operator with several; an empty type leaves one out."""
        results = [self.name() if dtype else "" for dtype in dtypes]
        names = ["" if one is None else one.name for one in inputs]
        self.nodes.append(imported_onnx().helper.make_node(kind, names, results, **attributes))
        return [Value(self, name, dtype) for name, dtype in zip(results, dtypes, strict=True)]

    def constant(self, values: np.ndarray | Tensor) -> Value:
        """A constant. The same tensor of weights is stored once, however often it is used."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        small = array.size <= 16
        root = self.root
        key: Any = array.tobytes() if small else array.__array_interface__["data"][0]
        key = key, array.shape, array.strides, array.dtype.str
        if key not in root._known:
            name = root.name()
            root._kept.append(array)
            root._tensors.append(
                imported_onnx().numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            )
            root._known[key] = Value(root, name, array.dtype.name)
        known = root._known[key]
        return Value(self, known.name, known.dtype)

    def number(self, value: Number, dtype: str) -> Value:
        """A constant without dimensions."""
        return self.constant(np.array(value, dtype=dtype))

    def shape(self, *sizes: int | Value) -> Value:
        """Sizes as a vector, ``int64``."""
        if all(isinstance(one, int) for one in sizes):
            return self.constant(np.array(sizes, dtype=np.int64))
        parts = [self.number(one, "int64") if isinstance(one, int) else one for one in sizes]
        return self.concat([part.reshape(1) for part in parts], 0)

    def concat(self, parts: Iterable[Value], axis: int) -> Value:
        """Values one after another along an axis."""
        listed = list(parts)
        return listed[0] if len(listed) == 1 else self.op("Concat", *listed, axis=axis)

    def arange(self, stop: Value | int) -> Value:
        """``0, 1, …, stop - 1``, ``int64``."""
        end = stop if isinstance(stop, Value) else self.number(stop, "int64")
        return self.op("Range", self.number(0, "int64"), end, self.number(1, "int64"))

    def zeros(self, dtype: str, *sizes: int | Value) -> Value:
        """Zeros of a shape that is known only when the graph runs."""
        return self.number(0, dtype).expand(*sizes)

    def scan(
        self, body: Callable[..., tuple[list[Value], list[Value]]], states: Sequence[Value], inputs: Sequence[Value]
    ) -> list[Value]:
        """A loop over the first axis of the inputs.

        Args:
            body: function of the loop's graph, the states and one entry of each input, which returns the new states
                and the results of the step. It may use values from outside.
            states: the first states.
            inputs: values to loop over.

        Returns:
            The last states, and the results of all steps along a new first axis.
        """
        inner = Graph(self)
        shapeless = [inner.input(self.name(), one.dtype, None) for one in (*states, *inputs)]  # type: ignore[arg-type]
        after, results = body(inner, shapeless[: len(states)], shapeless[len(states) :])
        made = inner.made("step", [*after, *results])
        return self.ops(
            "Scan", *states, *inputs, dtypes=[one.dtype for one in (*after, *results)], body=made,
            num_scan_inputs=len(inputs),
        )  # fmt: skip

    def made(self, name: str, outputs: Sequence[Value], shapes: Sequence[Any] | None = None) -> Any:
        """The graph as ONNX has it, with these outputs."""
        helper = imported_onnx().helper
        shapes = [None] * len(outputs) if shapes is None else shapes
        infos = [
            helper.make_tensor_value_info(one.name, _code(one.dtype), shape)
            for one, shape in zip(outputs, shapes, strict=True)
        ]
        return helper.make_graph(self.nodes, name, self.inputs, infos, self._tensors)


def imported_onnx() -> Any:
    """The library, which is an extra."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise missing_extra("an ONNX file", "onnx") from error
    return onnx


def _code(dtype: str) -> int:
    code: int = imported_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return code
