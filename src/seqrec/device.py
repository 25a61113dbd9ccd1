"""Devices, threads and memory."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from seqrec.errors import InputError, one_line

if TYPE_CHECKING:
    import torch

Function = TypeVar("Function", bound=Callable[..., Any])
CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def threads(asked: int | None = None) -> Iterator[int]:
    """Set the number of threads of torch and the compiled loops for the block; yields that number.

    By default it is torch's own number (one per core, or as set by OMP_NUM_THREADS or the program), but at most the
    number of processors that the process may use: in a container with 2 of 64 processors, 64 threads that wait for
    each other are many times slower than 2. In a process that was forked after its parent computed, it is always 1:
    OpenMP's threads stay with the parent, and the child would wait for them forever.
    """
    import torch  # imported here because it takes seconds, and reading a log does not need it

    watch_forks()
    before = torch.get_num_threads()
    count = 1 if _forked.is_set() else asked or min(before, usable_processors())
    if count != before:
        torch.set_num_threads(count)
    try:
        yield count
    finally:
        if count != before:
            torch.set_num_threads(before)


_forked = Event()  # set in a process that was forked after its parent computed
_lost = Event()  # set once polars' threads are known to be missing in this process
_PATIENCE = 5.0  # seconds; polars' threads answer within milliseconds if they exist


@cache
def watch_forks() -> None:
    """Make processes that are forked from now on compute with a single thread, as they have no other."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_be_forked)


def _be_forked() -> None:
    import torch

    _forked.set()
    torch.set_num_threads(1)


def check_polars(what: str) -> None:
    """Raise in a forked process without polars' threads, where polars would wait for them forever.

    Args:
        what: the operation that needs polars, for the message.

    Raises:
        InputError: the threads are missing.
    """
    if not _forked.is_set():
        return
    if not _lost.is_set():
        import polars as pl

        frame = pl.DataFrame({"number": [2, 1]})
        probe = Thread(target=frame.sort, args=("number",), daemon=True)  # hangs if there are no threads
        probe.start()
        probe.join(_PATIENCE)
        if probe.is_alive():
            _lost.set()
    if _lost.is_set():
        raise InputError(
            f"{what} needs threads, and this process lost them when it was forked; do it before the fork, or start "
            "the process with spawn"
        )


def usable_processors() -> int:
    """Number of processors that this process may use, by its affinity and the container's quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, period_name in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (CGROUP / name).read_text().split()
            words += (CGROUP / period_name).read_text().split() if period_name else []
            quota, period = (int(word) for word in words)  # raises for "max", which means no quota
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            count = min(count, -(-quota // period))
    return max(count, 1)


def memory() -> int:
    """Bytes of memory that this process may use: the machine's memory, or the container's limit."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            size = min(size, int((CGROUP / name).read_text()))  # raises for "max", which means no limit
        except (OSError, ValueError):
            continue
    return size


def not_compiled(function: Function) -> Function:
    """Decorator for a function that torch.compile must call and not trace, as with ``torch.compiler.disable``.

    That one imports the compiler, which takes a second even where nothing is ever compiled.
    """

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        if "torch._dynamo" in sys.modules:  # otherwise nothing can be compiling
            import torch

            return torch.compiler.disable(function)(*arguments, **options)
        return function(*arguments, **options)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called  # type: ignore[return-value]


@contextmanager
def usual_torch() -> Iterator[None]:
    """Set torch's modes as training needs them: gradients on, no autocast, float32 and the CPU by default.

    The program's own settings are restored afterwards.
    """
    import torch

    kind = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if kind != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, kind)
        yield


@contextmanager
def own_random_state(device: "torch.device", seed: int | None = None) -> Iterator[None]:
    """Restore the state of torch's global random generators after the block.

    Args:
        device: device whose generators are restored, in addition to the CPU's.
        seed: seed of the CPU's generator for the block; by default it keeps its state.
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def pick_device(name: str = "auto") -> "torch.device":
    """The device with a name; ``auto`` is CUDA if it is available, else MPS, else the CPU.

    Raises:
        InputError: the device is not available, or cannot compute.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        if not isinstance(name, str):
            raise TypeError("it is not a name")
        device = torch.device(name)
        torch.empty(1, device=device).item()  # fails on a device without data, such as meta
    except Exception as error:  # each backend raises its own type for a missing device
        reason = one_line(error).partition(". ")[0]
        raise InputError(f"device {name!r} is not available ({reason}); give auto or cpu") from error
    return torch.device("cpu") if device.type == "cpu" else device  # cpu:0 is the same device


def is_on(value: "torch.Tensor", device: "torch.device") -> bool:
    """Whether a tensor is on a device; without an index, that is any device of its type."""
    return value.device.type == device.type and device.index in (None, value.device.index)


def copied(value: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a tensor to a device. A copy from the CPU to a GPU uses pinned memory, so that it runs in the background."""
    if value.device.type != "cpu" or device.type in ("cpu", "mps"):
        return value.to(device)
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
