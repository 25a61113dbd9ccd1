"""What polars raises that is no Exception, and the Ctrl-C that it may swallow."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import polars as pl

from seqrec.data.formats.blocks import short
from seqrec.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def explained(name: str = "the log") -> Iterator[None]:
    """While within, a panic of polars is one line, and Ctrl-C is KeyboardInterrupt even where polars drops it."""
    dropped, before = False, sys.unraisablehook

    def note(unraisable: Any) -> None:
        nonlocal dropped
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            dropped = True  # polars then goes on, or raises a TypeError about the type of a column
        else:
            before(unraisable)

    is_main = threading.current_thread() is threading.main_thread()  # the only one that Ctrl-C reaches
    if is_main:
        sys.unraisablehook = note
    try:
        yield
    except (pl.exceptions.PanicException, Exception) as error:
        if dropped:
            raise KeyboardInterrupt from error
        if isinstance(error, RecursionError | pl.exceptions.PanicException):
            reason = short_error(error)
            raise InputError(f"{name}: cannot be read ({reason}); write it again, as plain as can be") from None
        raise
    finally:
        if is_main:
            sys.unraisablehook = before
    if dropped:
        raise KeyboardInterrupt


def explaining(function: Callable[P, R]) -> Callable[P, R]:
    """The function, within :func:`explained`."""

    @wraps(function)
    def within(*arguments: P.args, **options: P.kwargs) -> R:
        with explained():
            return function(*arguments, **options)

    return within


def short_error(error: BaseException) -> str:
    """The first line of an error or of a panic of polars, which is no Exception."""
    return short(error if isinstance(error, Exception) else Exception(str(error)))
