"""A disk that is full."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def disk_that_ends_at(size: int) -> Iterator[None]:
    """Files can't grow beyond ``size`` bytes: the kernel answers EFBIG, as a full disk answers ENOSPC.

    Nor is bytecode written, of which half a file would stay: Python does not notice short writes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setitem(os.environ, "PYTHONDONTWRITEBYTECODE", "1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
