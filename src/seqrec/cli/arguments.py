"""Ids among the arguments. An id that begins with a hyphen must not be read as a flag."""

from collections.abc import Iterator
from difflib import get_close_matches

from cyclopts import App

_LISTS = {"recommend": ("--users", "--history")}  # flags that ids follow


def name_ids(app: App, arguments: list[str]) -> list[str]:
    """Join each id after ``--users`` or ``--history`` to its flag, as in ``--users=-Usr0``.

    Ids of Yelp and YouTube often begin with a hyphen. All arguments up to the next flag of the command are ids. An
    argument that resembles a flag is left as it is, so that a typing error is reported. ``--`` ends the flags.
    """
    lists = _LISTS.get(arguments[0], ()) if arguments else ()
    if not lists:
        return arguments
    known = {name for argument in app[arguments[0]].assemble_argument_collection() for name in argument.names}
    return list(_named(arguments, lists, known | {"--help", "-h", "--version"}))


def _named(arguments: list[str], lists: tuple[str, ...], known: set[str]) -> Iterator[str]:
    flag, rest, given = "", False, False
    for argument in arguments:
        if flag and not rest and argument == "--":
            rest = True
        elif flag and (rest or not _is_flag(argument, known)):
            yield f"{flag}={argument}"
            given = True
        else:
            if flag and not given:
                yield flag  # no id followed, which the command reports
            flag, given = (argument, False) if argument in lists else ("", False)
            if not flag:
                yield argument
    if flag and not given:
        yield flag


def _is_flag(argument: str, known: set[str]) -> bool:
    name = argument.partition("=")[0]
    return name in known or (name.startswith("--") and bool(get_close_matches(name, known, 1, 0.8)))
