"""The flags of the command line, made from the dataclasses of options: their help, their range and their group."""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import Group, Parameter

from seqrec.data.fields import Options, range_of

INPUT, MODEL, TRAINING, EVALUATION, OUTPUT = (
    Group(name, sort_key=number)
    for number, name in enumerate(("Input", "Model", "Training", "Evaluation", "Output"), start=1)
)
#: Where the flags of a dataclass stand, and those of its fields that stand elsewhere.
GROUPS = {"TrainConfig": TRAINING, "SplitConfig": EVALUATION, "ReadConfig": INPUT, "PrepareConfig": INPUT}
ELSEWHERE = {
    "patience": EVALUATION,
    "evaluate_every": EVALUATION,
    "validation_users": EVALUATION,
    "checkpoint_minutes": OUTPUT,
}


def _is_file(kind: Any, value: Any) -> None:
    """Refuse a flag in the place of a file name; cyclopts lets a lone - through only with all that begins so."""
    del kind
    if value is not None and value.startswith("-") and value != "-":
        raise ValueError("give a file, or - for standard output")


Json = Annotated[
    str | None,
    Parameter(
        help="Also write the result as JSON to this file; - for standard output.",
        allow_leading_hyphen=True,
        validator=_is_file,
        group=OUTPUT,
    ),
]
Items = Annotated[
    Path | None,
    Parameter(
        help="File that describes the items: their titles are shown beside ids, and slirec learns their categories.",
        group=INPUT,
    ),
]
Format = Annotated[
    Literal["table", "csv", "jsonl", "parquet"] | None,
    Parameter(help="Output format. By default what the ending of --out says, or a table.", group=OUTPUT),
]


def with_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command with its help; a parameter that is a dataclass of options becomes one flag for each field."""
    texts = texts_of(function)
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name in texts:
            function.__annotations__[name] = Annotated[hint, Parameter(help=texts[name])]
        kinds: list[Any] = [
            kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Options)
        ]
        if kinds:
            function.__annotations__[name] = Annotated[flags(kinds[0]) | None, Parameter(name="*")]
    return function


@cache
def flags(kind: Any) -> Any:
    """A stand-in for a dataclass of options: its fields bear what a flag needs, and it makes the dataclass itself."""
    hints, texts = get_type_hints(kind, include_extras=True), texts_of(kind)
    annotated: Any = Annotated
    shown = []
    for one in fields(kind):
        allowed = range_of(hints[one.name])
        text = texts[one.name] + (f" [range: {allowed}]" if allowed else "")
        group = ELSEWHERE.get(one.name) or GROUPS.get(kind.__name__, MODEL)
        tells = one.default is not False and one.default is not None  # what None stands for is in the text
        hint = annotated[hints[one.name], Parameter(help=text, group=group, show_default=tells)]
        shown.append((one.name, hint, field(default=None if one.default is MISSING else one.default)))
    body = {"__module__": kind.__module__, "__new__": lambda _, **values: kind(**values)}
    return make_dataclass(kind.__name__, shown, namespace=body, frozen=True)


def texts_of(kind: Any) -> dict[str, str]:
    """What the docstring of a dataclass or a command says of each field, for the help of a flag."""
    found: dict[str, str] = {}
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
    # A field that another one names is a flag here.
    return {one: re.sub(r"``(\w+)``", lambda word: _flag(word[1], set(found)), text) for one, text in found.items()}


def _flag(name: str, known: set[str]) -> str:
    return f"--{name.replace('_', '-')}" if name in known else name
