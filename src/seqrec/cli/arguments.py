"""Ids among the arguments: one that begins with a hyphen is an id, not a flag."""

from collections.abc import Iterator
from difflib import get_close_matches

from cyclopts import App

_LISTS = {"recommend": ("--users", "--history")}  # flags that ids follow


def name_ids(app: App, arguments: list[str]) -> list[str]:
    """The arguments with each id after ``--users`` or ``--history`` joined to its flag, as ``--users=-Usr0``.

    Ids of Yelp and YouTube often begin with a hyphen. All up to the next flag that the command knows is taken for
    ids; what is nearly such a flag stays as it is, so that a slip of the pen is an error. A lone ``--`` ends the flags.
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
                yield flag  # nothing followed: the command says so
            flag, given = (argument, False) if argument in lists else ("", False)
            if not flag:
                yield argument
    if flag and not given:
        yield flag


def _is_flag(argument: str, known: set[str]) -> bool:
    name = argument.partition("=")[0]
    return name in known or (name.startswith("--") and bool(get_close_matches(name, known, 1, 0.8)))
