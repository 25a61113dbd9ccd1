"""A device that computes nothing, on which everything fails that would make a GPU's host wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
aten = torch.ops.aten

#: Operations that return a number to the host, or whose result has a size that the host has to wait for.
WAITING = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.nonzero_numpy,
    aten.masked_select, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.unique_dim_consecutive, aten.coalesce, aten._coalesce, aten.bincount, aten.histc, aten.multinomial,
    aten._to_dense, aten.to_sparse, aten._assert_async, aten._embedding_bag, aten.segment_reduce,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_}


class Waits(AssertionError):
    """Something waits for the device."""


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise at the first thing on the device ``meta`` that would make the host wait if it were a GPU."""
    with _Making(), _Operations():
        yield


class _Making(TorchFunctionMode):
    """Tensors made of numbers of the host, which are copied from memory that the host waits for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor) and made.device == META:
            raise Waits(f"{func.__name__} copies to the device and waits for it")
        return made


class _Operations(TorchDispatchMode):
    """Raises at the first operation on the device ``meta`` that would make the host wait if it were a GPU.

    These are the operations above; indexing with booleans; copies from the device, or to it from memory of the host
    that the host waits for; and operations that mix both devices, which fail on a GPU or copy in secret. What torch
    can't compute on ``meta``, such as ``item`` and ``nonzero``, raises by itself.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [x for x in tensors if x.device == META]
        here = [x for x in tensors if x.device != META]
        if operation in (aten._to_copy, aten.copy_):
            _check_copy(func, args, kwargs)
        elif there:
            if operation in WAITING:
                raise Waits(f"{func} waits for the device")
            if operation in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
                raise Waits(f"{func} with booleans waits for their number")
            if operation is aten.repeat_interleave and kwargs.get("output_size") is None:
                raise Waits(f"{func} waits for the size of its result")
            if [x for x in here if x.numel() and (x.dim() or operation in INDEXING)]:
                raise Waits(f"{func} mixes tensors of the host and the device")
        return func(*args, **kwargs)


def _check_copy(func: Any, args: Any, kwargs: Any) -> None:
    if func.overloadpacket is aten._to_copy:
        source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        waits = not kwargs.get("non_blocking")
    else:
        target, source = args[0].device, args[1].device
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    if source == META != target:
        raise Waits("a copy from the device waits for it")
    if target == META != source and waits:
        raise Waits("a copy to the device waits for it")


def waiting_calls() -> Iterator[tuple[str, Any]]:
    """Names of ways to wait for a device, and functions that do so, given ``int64[5]`` on the device."""
    yield "item", lambda x: x[0].item()
    yield "bool", lambda x: bool(x.sum() > 0)
    yield "cpu", lambda x: x.cpu()
    yield "tolist", lambda x: x.tolist()
    yield "numpy", lambda x: x.numpy()
    yield "nonzero", lambda x: x.nonzero()
    yield "where", lambda x: torch.where(x > 1)
    yield "boolean index", lambda x: x[x > 1]
    yield "boolean index assignment", lambda x: x.__setitem__(x > 1, x[:2])
    yield "masked_select", lambda x: x.masked_select(x > 1)
    yield "unique", lambda x: x.unique()
    yield "repeat_interleave", lambda x: x.repeat_interleave(x)
    yield "bincount", lambda x: x.bincount()
    yield "equal", lambda x: torch.equal(x, x + 1)
    yield "tensor", lambda x: torch.tensor([1, 2], device=x.device)
    yield "new_tensor", lambda x: x.new_tensor([1, 2])
    yield "to the device", lambda x: torch.arange(5).to(x.device)
    yield "index of the host", lambda x: x[torch.tensor([0, 1])]
    yield "sum with the host", lambda x: x + torch.arange(5)
    yield "coalesce", lambda x: torch.sparse_coo_tensor(x[None], x.float(), (9,), check_invariants=False).coalesce()
