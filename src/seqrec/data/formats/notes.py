"""The warning for what was guessed of a log, or left aside."""

import sys
import warnings
from itertools import takewhile
from pathlib import Path
from traceback import walk_stack


class LogWarning(UserWarning):
    """Something in a log was guessed, or left aside although it looks like something that matters."""


def warn_of_log(name: object, note: str) -> None:
    """Warn where the package was called, however deep in it this is."""
    package = str(Path(__file__).parents[2])
    inside = takewhile(lambda step: step[0].f_code.co_filename.startswith(package), walk_stack(sys._getframe()))
    warnings.warn(f"{name}: {note}", LogWarning, stacklevel=1 + sum(1 for _ in inside))
