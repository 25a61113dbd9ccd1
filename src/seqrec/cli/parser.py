"""From arguments to a command. Commands are imported only when they are used."""

import re
from collections.abc import Callable, Sequence
from typing import Any, get_args

from cyclopts import App, Parameter, Token, convert

import seqrec
from seqrec.cli.arguments import name_ids

#: The location and the help text of each command. ``fit`` and ``tune`` have the flags of one model.
COMMANDS = {
    "inspect": ("commands:inspect", "Describe a log, before and after the filters."),
    "fetch": ("commands:fetch_command", "Download a public data set by name, unless it is there already."),
    "fit": ("fit:{model}", "Train a model on a log and write a run folder."),
    "tune": (
        "tuning:{model}",
        "Search the options of a model on validation items, then write a run folder with the best ones.",
    ),
    "evaluate": (
        "runs:evaluate_command",
        "Evaluate a run on the held-out item of every user, beside simple baselines.",
    ),
    "recommend": (
        "runs:recommend_command",
        "Recommend items to users of the log (by default to all of them), or for one history.",
    ),
    "similar": ("runs:similar_command", "Find the items most similar to an item."),
    "export": (
        "exports:export_command",
        "Write a run as an ONNX file, which recommends without seqrec and without torch.",
    ),
    "serve": (
        "serving:serve_command",
        "Serve recommendations over HTTP, with a web page to try them, and record events.",
    ),
    "report": (
        "runs:report_command",
        "Write one HTML page about a run, or several side by side: tests, curves, pictures, examples.",
    ),
    "compare": (
        "commands:compare_command",
        "Train several models on equal terms and test which is better.\n\n"
        "All models get the same budget and rank the same candidates. The others are tested against the first.",
    ),
    "demo": ("trials:demo_command", "Train SASRec on a built-in log and compare it with the best possible score."),
    "bench": (
        "trials:bench_command",
        "Measure how fast this machine trains, ranks and recommends, and how that scales. It takes a few minutes.",
    ),
}
#: Commands that do not need torch, whose import takes seconds.
WITHOUT_TORCH = {"inspect", "fetch_command"}


def make_app(model: str = "sasrec") -> App:
    """The command line.

    Args:
        model: model whose flags ``fit`` and ``tune`` have.
    """
    app = App(
        name="seqrec",
        help=seqrec.__doc__ or "",
        version=seqrec.__version__,
        help_format="plaintext",
        default_parameter=Parameter(negative="", consume_multiple=True, converter=_converted),
    )
    for name, (place, text) in COMMANDS.items():
        app.command(f"seqrec.cli.{place.format(model=model)}", name=name, help=text)
    return app


def parsed(arguments: list[str]) -> tuple[Callable[[], Any], bool]:
    """The command that the arguments name, ready to be called, and whether it uses torch."""
    app = make_app(model_named(arguments))
    command, bound, _ = app.parse_args(name_ids(app, arguments), exit_on_error=False, print_error=False)
    is_ours = command.__module__.startswith("seqrec.")  # otherwise it prints help
    return lambda: command(*bound.args, **bound.kwargs), is_ours and command.__name__ not in WITHOUT_TORCH


def model_named(arguments: Sequence[str]) -> str:
    """The model that ``--model`` names, which decides the flags of ``fit`` and ``tune``."""
    name = "sasrec"
    for index, argument in enumerate(arguments):
        if argument == "--model" and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith("--model="):
            name = argument.partition("=")[2]
    return name if re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) else "sasrec"


def _converted(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert values as cyclopts does, but refuse fractions for whole numbers, which cyclopts would round."""
    if _holds_int(kind):
        for token in tokens:
            try:
                fraction = not float(token.value).is_integer()
            except (ValueError, OverflowError):
                continue  # cyclopts reports it
            if fraction:
                raise ValueError(f"{token.value} is not a whole number")
    return convert(kind, tokens)


def _holds_int(kind: Any) -> bool:
    """Whether a type hint means whole numbers: int, int | None, tuple[int, ...] and so on, without float."""
    parts = get_args(kind)
    return kind is int or (float not in parts and any(_holds_int(part) for part in parts))
