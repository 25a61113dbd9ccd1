"""Devices and threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from seqrec.errors import InputError, one_line

CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def threads(asked: int | None = None) -> Iterator[int]:
    """So many threads for torch and the compiled loops while within; how many they are.

    Without a number they are what torch has (a core each, or what OMP_NUM_THREADS or the program said), but not more
    than the processors that the process may use: in a container that is given two of sixty-four, sixty-four threads
    that wait for each other are many times slower than two.
    """
    before = torch.get_num_threads()
    count = asked or min(before, usable_processors())
    if count != before:
        torch.set_num_threads(count)
    try:
        yield count
    finally:
        if count != before:
            torch.set_num_threads(before)


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


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else MPS, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which a device without numbers has none of
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not to be had here ({one_line(error)}); give auto or cpu") from error
    return device
