"""Handles polars' panics, which are not an Exception, and Ctrl-C, which polars may swallow."""

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
def handled_panics(name: str = "the log") -> Iterator[None]:
    """Turn a panic of polars into an ``InputError`` about ``name``, and raise KeyboardInterrupt if polars drops it."""
    dropped, before = False, sys.unraisablehook

    def note(unraisable: Any) -> None:
        nonlocal dropped
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            dropped = True  # polars then continues, or raises a TypeError about the type of a column
        else:
            before(unraisable)

    is_main = threading.current_thread() is threading.main_thread()  # only the main thread gets Ctrl-C
    if is_main:
        sys.unraisablehook = note
    try:
        yield
    except (pl.exceptions.PanicException, Exception) as error:
        if dropped:
            raise KeyboardInterrupt from error
        if isinstance(error, RecursionError | pl.exceptions.PanicException):
            reason = short_error(error)
            raise InputError(f"{name}: cannot be read ({reason}); write it again with plain columns") from None
        raise
    finally:
        if is_main:
            sys.unraisablehook = before
    if dropped:
        raise KeyboardInterrupt


def handles_panics(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that runs a function inside of :func:`handled_panics`."""

    @wraps(function)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
        with handled_panics():
            return function(*arguments, **options)

    return wrapped


def short_error(error: BaseException) -> str:
    """The first line of the message of an error or of a panic."""
    return short(error if isinstance(error, Exception) else Exception(str(error)))
