"""When the command began, for time limits that hold for all of it, from the start of the process."""

import os
import time
from pathlib import Path

_MOST = 120.0  # seconds that starting Python may have taken; an older process did other things before
_began: list[float] = []


def note(of_process: bool) -> None:
    """Note that a command begins now, or began with the process if it is all that the process does."""
    _began[:] = [time.monotonic() - (_age() if of_process else 0.0)]


def began() -> float:
    """Reading of ``time.monotonic`` when the command began."""
    return _began[-1] if _began else time.monotonic()


def _age() -> float:
    """Seconds since the process started, as far as the system tells; 0 if it does not."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return age if 0 <= age <= _MOST else 0.0
