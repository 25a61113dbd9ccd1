"""Finds the compiled library, and decides which tensors it can be used for."""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

VERSION = 27
#: The functions that return a size, an int64.
SIZES = (
    "adam_catch_up", "adam_sum", "block_saves", "recurrent_saves", "weigh_pairs", "weigh_pairs_room", "sum_rows",
    "sum_rows_room",
)  # fmt: skip
#: The builds that a processor can run, best first, by torch's name for its capability. Others run only ``plain``.
RUNS = {"AVX512": ("avx512", "avx2", "plain"), "AVX2": ("avx2", "plain")}


def name_of(processor: str) -> str:
    """The name of the library's file. It does not end in .so, or Python would take it for a module."""
    return f"kernels-{processor}.so.1"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None if it was not built, has another version or is turned off.

    torch is imported first, so that both share one pool of OpenMP threads.
    """
    if os.environ.get("SEQREC_KERNELS") == "0":
        return None
    for processor in RUNS.get(torch.backends.cpu.get_cpu_capability(), ("plain",)):
        try:
            found = ctypes.CDLL(str(Path(__file__).with_name(name_of(processor))))
            found.seqrec_kernels_version.restype = ctypes.c_int32
            for name in SIZES:
                getattr(found, f"seqrec_{name}").restype = ctypes.c_int64
            if found.seqrec_kernels_version() == VERSION:
                return found
        except (OSError, AttributeError):
            continue
    return None


def usable(*tensors: Tensor) -> bool:
    """Whether the compiled loops can be used: float32 tensors on the CPU, outside tracing and autocast."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or library() is None:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return all([x.dtype is torch.float32 and x.is_cpu for x in tensors])  # noqa: C419 (faster)
