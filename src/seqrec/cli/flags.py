"""The flags of the command line, made from the dataclasses of options: help text, range and group."""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import Group, Parameter

from seqrec.data.fields import Options, range_of

INPUT, MODEL, TRAINING, EVALUATION, OUTPUT, SERVER, CLUSTER = (
    Group(name, sort_key=number)
    for number, name in enumerate(("Input", "Model", "Training", "Evaluation", "Output", "Server", "Cluster"), start=1)
)
#: Help group of each dataclass's flags, and of single fields that belong to another group.
GROUPS = {
    "ClusterConfig": CLUSTER,
    "ServeConfig": SERVER,
    "TuneConfig": TRAINING,
    "TrainConfig": TRAINING,
    "SplitConfig": EVALUATION,
    "ReadConfig": INPUT,
    "PrepareConfig": INPUT,
}
ELSEWHERE = {
    "patience": EVALUATION,
    "min_gain": EVALUATION,
    "evaluate_every": EVALUATION,
    "validation_users": EVALUATION,
    "checkpoint_minutes": OUTPUT,
}


def _is_file(kind: Any, value: Any) -> None:
    """Refuse a flag instead of a file name. To accept -, cyclopts must accept everything that begins with it."""
    del kind
    if value is not None and value.startswith("-") and value != "-":
        raise ValueError("give a file, or - for standard output")


Json = Annotated[
    str | None,
    Parameter(
        help="Also write the result as JSON to this file; - writes to standard output.",
        allow_leading_hyphen=True,
        validator=_is_file,
        group=OUTPUT,
    ),
]
Items = Annotated[
    Path | None,
    Parameter(
        help="File that describes the items. Their titles appear beside ids, slirec learns their categories, and other "
        "models what --features names.",
        group=INPUT,
    ),
]
Track = Annotated[Literal["mlflow", "tensorboard"] | None, Parameter(group=OUTPUT)]
Users = Annotated[
    Path | None,
    Parameter(help="File that describes the users. Models learn what --user-features names.", group=INPUT),
]
Out = Annotated[Path | None, Parameter(group=OUTPUT)]
Format = Annotated[
    Literal["table", "csv", "jsonl", "parquet"] | None,
    Parameter(help="Output format. By default from the ending of --out, or a table.", group=OUTPUT),
]


def with_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add help texts to a command, and turn each parameter that is a dataclass of options into one flag per field."""
    texts = texts_of(function)
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name in texts:
            function.__annotations__[name] = Annotated[hint, Parameter(help=texts[name])]
        kinds: list[Any] = [
            kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Options)
        ]
        if kinds:
            function.__annotations__[name] = Annotated[flags_of(kinds[0]) | None, Parameter(name="*")]
    return function


class _Made(type):
    """Counts instances of the original dataclass as its own, which its constructor returns.

    cyclopts lets pydantic check this, if another part of the program has imported pydantic.
    """

    original: type

    def __instancecheck__(cls, thing: Any) -> bool:
        return isinstance(thing, cls.original)


class _Flags(metaclass=_Made):
    pass


@cache
def flags_of(kind: Any) -> Any:
    """A dataclass with the same fields, annotated for flags. Its constructor returns the original dataclass."""
    hints, texts = get_type_hints(kind, include_extras=True), texts_of(kind)
    annotated: Any = Annotated
    shown = []
    for one in fields(kind):
        if one.metadata.get("settled"):  # the data decide
            continue
        allowed = range_of(hints[one.name])
        text = texts[one.name] + (f" [range: {allowed}]" if allowed else "")
        group = ELSEWHERE.get(one.name) or GROUPS.get(kind.__name__, MODEL)
        tells = one.default is not False and one.default is not None  # the text explains None
        hint = annotated[hints[one.name], Parameter(help=text, group=group, show_default=tells)]
        shown.append((one.name, hint, field(default=None if one.default is MISSING else one.default)))
    body = {"__module__": kind.__module__, "__new__": lambda _, **values: kind(**values), "original": kind}
    return make_dataclass(kind.__name__, shown, bases=(_Flags,), namespace=body, frozen=True)


def texts_of(kind: Any) -> dict[str, str]:
    """The text of each entry under ``Args`` in a docstring, for the help of its flag."""
    found: dict[str, str] = {}
    for base in getattr(kind, "__bases__", ()):
        if issubclass(base, Options):
            found |= texts_of(base)
    name, inside = "", False
    for line in (inspect.getdoc(kind) or "").splitlines():
        if line == "Args:":
            inside = True
        elif inside and (entry := re.match(r" {4}(\w+): (.*)", line)):
            name, found[entry[1]] = entry[1], entry[2]
        elif inside and line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
        elif line.strip():
            inside = False
    # A text that mentions another field means its flag here.
    return {
        one: re.sub(r"``(\w+)``", lambda word: flag(word[1]) if word[1] in found else word[1], text)
        for one, text in found.items()
    }


def flag(name: str) -> str:
    """The flag of an option."""
    return f"--{name.replace('_', '-')}"
