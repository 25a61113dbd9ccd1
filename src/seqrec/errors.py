"""The exception for input that a person can correct, the warnings, and the text that they show."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from traceback import walk_stack
from typing import Any

#: Characters that a terminal would act on, or that would break a line or change its direction: C0 and C1 controls,
#: line and paragraph separators, direction marks, and lone surrogates.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 300  # characters to show of another library's message


class InputError(ValueError):
    """Input that a person can correct: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with status 2. Control characters, which ids and file names may contain,
    are escaped. Any other exception is a bug in this package.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class LogWarning(UserWarning):
    """Something about a log was guessed, or a part that looks important was ignored."""


class RunWarning(UserWarning):
    """A run folder is in an unexpected state: left-overs of a killed process, or another process writing to it."""


class TrainingWarning(UserWarning):
    """Training continues, but part of it has no effect, validation is impossible, or an option depends on the log."""


class UnknownIdWarning(UserWarning):
    """The caller named a user or an item that the run does not know."""


class MissingTimesWarning(UserWarning):
    """A model that uses times got histories without them, or a model trained without times got histories with them."""


def missing_extra(what: str, extra: str) -> InputError:
    """The error for something that needs an extra, the libraries of which are not installed."""
    return InputError(f"{what} needs libraries that are not installed; pip install 'seqrec[{extra}]' installs them")


def warn(message: str, kind: type[UserWarning]) -> None:
    """Show a warning at the line that called the package, however deep inside of the package this is called."""
    package = str(Path(__file__).parent)
    files = [frame.f_code.co_filename for frame, _ in walk_stack(sys._getframe())]
    inside = max(number for number, file in enumerate(files) if file.startswith(package))
    warnings.warn(printable(message), kind, stacklevel=2 + inside)


def printable(text: str, keep: str = "") -> str:
    """The text with control characters escaped as in Python, so that no terminal acts on them.

    Args:
        text: text from anywhere, such as an id in a log.
        keep: control characters to leave as they are, such as line ends.
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def one_line(error: BaseException) -> str:
    """The message of another library's error on one line: its first line, or two if the first ends with a colon."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


@contextmanager
def unchanged_by_failure(thing: object) -> Iterator[None]:
    """Restore the attributes of an object if the block fails, so that it is never half old and half new.

    Only attributes are restored: the block must assign new values to them, not change the old values in place.
    """
    before = dict(vars(thing))
    try:
        yield
    except BaseException:
        vars(thing).update(before)
        raise


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise unless a value is a whole number of at least ``least``; fractions would silently be rounded later."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}; give a whole number")
    if value < least:
        raise InputError(f"{name} is {value}; give {least} or more")
