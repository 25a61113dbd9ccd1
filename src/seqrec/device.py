"""Devices and threads."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from seqrec.errors import InputError, one_line

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def threads(asked: int | None = None) -> Iterator[int]:
    """So many threads for torch and the compiled loops while within; how many they are.

    Without a number they are what torch has (a core each, or what OMP_NUM_THREADS or the program said), but not more
    than the processors that the process may use: in a container that is given two of sixty-four, sixty-four threads
    that wait for each other are many times slower than two. In a process that was forked after its parent computed it
    is one: OpenMP's threads stay with the parent, and the child would wait for them without end.
    """
    import torch  # where it is used: it takes seconds, and reading a log needs nothing of it

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
_lost = Event()  # set where polars' threads were found to have stayed with the parent
_PATIENCE = 5.0  # seconds; polars' threads answer within thousandths where there are any


@cache
def watch_forks() -> None:
    """From now on a process that is forked from this one computes on one thread, the only one that it has."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_be_forked)


def _be_forked() -> None:
    import torch

    _forked.set()
    torch.set_num_threads(1)


def check_polars(what: str) -> None:
    """Refuse, in a forked process, what would wait without end for threads of polars that stayed with the parent.

    Raises:
        InputError: ``what`` needs these threads.
    """
    if not _forked.is_set():
        return
    if not _lost.is_set():
        import polars as pl

        frame = pl.DataFrame({"number": [2, 1]})
        probe = Thread(target=frame.sort, args=("number",), daemon=True)  # hangs for ever where there are none
        probe.start()
        probe.join(_PATIENCE)
        if probe.is_alive():
            _lost.set()
    if _lost.is_set():
        raise InputError(
            f"{what} needs threads that this process lost when it was forked; do it before the fork, or start the "
            "process with spawn"
        )


def usable_processors() -> int:
    """Processors that the system gives this process: by affinity and by the container's quota, one at least."""
    few = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, period_name in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (CGROUP / name).read_text().split()
            words += (CGROUP / period_name).read_text().split() if period_name else []
            quota, period = (int(word) for word in words)  # "max" is no number: there is no quota
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            few = min(few, -(-quota // period))
    return max(few, 1)


def memory() -> int:
    """Bytes of memory that the machine, or the container's limit, gives this process."""
    few = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            few = min(few, int((CGROUP / name).read_text()))  # "max" is no number: there is no limit
        except (OSError, ValueError):
            continue
    return few


@contextmanager
def usual_torch() -> Iterator[None]:
    """Torch as training needs it, whatever the program has set: gradients, float32 and the CPU by default, no autocast.

    It is as the program had it afterwards.
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
    """What torch's global generators do within leaves their state as it was.

    Args:
        device: whose generators are kept, beside the CPU's.
        seed: of the CPU's within; by default it goes on from where it is.
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def pick_device(name: str = "auto") -> "torch.device":
    """``auto`` is CUDA where there is one, else MPS, else the CPU.

    Raises:
        InputError: the device is not available, or no device that numbers can be computed on.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        if not isinstance(name, str):
            raise TypeError("it is no name")
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which a device without numbers has none of
    except Exception as error:  # each backend has its own for a device that is not there
        reason = one_line(error).partition(". ")[0]
        raise InputError(f"device {name!r} is not available ({reason}); give auto or cpu") from error
    return torch.device("cpu") if device.type == "cpu" else device  # cpu:0 and its like are one device


def copied(value: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor on another device. A copy from the host to a GPU goes by pinned memory, so that nothing waits for it."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
