"""The one exception for input that a person can correct, and what a failure leaves."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with status 2. Anything else that is raised is a
    fault of this package and shows its traceback.
    """


def one_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def unchanged_by_failure(method: Method) -> Method:
    """A method that fails leaves its object as it was, never half of the old and half of the new.

    That holds for the object's attributes, not for what they hold: the method must set them, not change them.
    """

    @wraps(method)
    def tried(self: Any, *arguments: Any, **options: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *arguments, **options)
        except BaseException:
            vars(self).update(before)
            raise

    return tried  # type: ignore[return-value]
