"""Models on the device "meta", whose weights take no memory: how large they would be, before anything is allocated."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Outline(TorchFunctionMode):
    """A context in which :meth:`created` is called with every tensor that is created, and no random numbers are drawn.

    On the device "meta" these would be none anyway, but torch imports its compiler for them, which takes a second.
    """

    MAKERS = frozenset({"empty", "zeros", "ones", "full", "rand", "randn", "arange", "tensor"})
    DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_"})

    def created(self, tensor: Tensor) -> None:
        """Count a tensor, or raise an error to end the construction."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        made = func(*args, **(kwargs or {}))
        if name in self.MAKERS and isinstance(made, Tensor):
            self.created(made)
        return made
