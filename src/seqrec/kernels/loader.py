"""The compiled library: finding it, and what it is used for."""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

VERSION = 18
#: The processors that it is compiled for, and which of these each of torch's names for a processor can run.
RUNS = {"AVX512": ("avx512", "avx2", "plain"), "AVX2": ("avx2", "plain")}


def name_of(processor: str) -> str:
    """The file's name; not .so alone, which Python would take for a module."""
    return f"kernels-{processor}.so.1"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they were not built, are another version's or are turned off.

    torch is loaded first, so both share one pool of OpenMP threads.
    """
    if os.environ.get("SEQREC_KERNELS") == "0":
        return None
    for processor in RUNS.get(torch.backends.cpu.get_cpu_capability(), ("plain",)):
        try:
            found = ctypes.CDLL(str(Path(__file__).with_name(name_of(processor))))
            found.seqrec_kernels_version.restype = ctypes.c_int32
            found.seqrec_adam_catch_up.restype = found.seqrec_block_saves.restype = ctypes.c_int64
            if found.seqrec_kernels_version() == VERSION:
                return found
        except (OSError, AttributeError):
            continue
    return None


def usable(*tensors: Tensor) -> bool:
    """Whether the compiled functions take these: plain float32 on the CPU, outside of a trace and of autocast."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or library() is None:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return all([x.dtype is torch.float32 and x.is_cpu for x in tensors])  # noqa: C419 (faster)
