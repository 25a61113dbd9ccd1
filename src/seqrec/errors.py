"""The one exception for input that a person can correct."""

from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with status 2. Anything else that is raised is a
    fault of this package and shows its traceback.
    """


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of ``least`` or more; a fraction would be rounded somewhere without a word."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}; give a whole number")
    if value < least:
        raise InputError(f"{name} is {value}; give {least} or more")


def one_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
