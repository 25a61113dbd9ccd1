"""The one exception for input that a person can correct, the warnings, and what of them is shown to people."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from traceback import walk_stack
from typing import Any

#: What a terminal would act on, or what would break a line or turn its direction: C0 and C1 controls, line and
#: paragraph separators, marks of direction, and lone surrogates.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 300  # characters of another library's message


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with status 2. Control characters, which ids and names of files may
    hold, are shown escaped. Anything else that is raised is a fault of this package.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class LogWarning(UserWarning):
    """Something in a log was guessed, or left aside although it looks like something that matters."""


class RunWarning(UserWarning):
    """What became of a run folder, where nobody asked: left-overs of a killed process, or another one at work."""


class TrainingWarning(UserWarning):
    """Training goes on, but part of it learns nothing, validates nothing, or was chosen by what the log holds."""


class UnknownIdWarning(UserWarning):
    """A user or an item that the run does not know was asked for."""


class MissingTimesWarning(UserWarning):
    """A model that knows time was given histories without times, or one that learnt none was given some."""


def warn(message: str, kind: type[UserWarning]) -> None:
    """Warn of the line that called the package, however deep in it this is."""
    package = str(Path(__file__).parent)
    files = [frame.f_code.co_filename for frame, _ in walk_stack(sys._getframe())]
    inside = max(number for number, file in enumerate(files) if file.startswith(package))
    warnings.warn(printable(message), kind, stacklevel=2 + inside)


def printable(text: str, keep: str = "") -> str:
    """The text with control characters escaped as Python writes them, so that no terminal acts on them.

    Args:
        text: anything, such as an id of a log.
        keep: control characters that stay, such as line ends where lines are wanted.
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line: its first, or two where the first announces the second."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


@contextmanager
def unchanged_by_failure(thing: object) -> Iterator[None]:
    """What fails within leaves an object as it was, never half of the old and half of the new.

    That holds for the object's attributes, not for what they hold: set them, don't change them.
    """
    before = dict(vars(thing))
    try:
        yield
    except BaseException:
        vars(thing).update(before)
        raise


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of ``least`` or more; a fraction would be rounded somewhere without a word."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}; give a whole number")
    if value < least:
        raise InputError(f"{name} is {value}; give {least} or more")
