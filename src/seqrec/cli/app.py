"""The command line's entry: parses, runs one command, turns errors into one line."""

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter

import seqrec
from seqrec.cli.commands import (
    bench_command,
    compare_command,
    demo_command,
    evaluate_command,
    fetch_command,
    fit_command,
    inspect,
    recommend_command,
    similar_command,
)
from seqrec.cli.console import PlainConsole
from seqrec.device import threads
from seqrec.errors import InputError, one_line
from seqrec.files import explain_os_error
from seqrec.models import MODELS
from seqrec.predictor import UnknownIdWarning


def make_app(model: str = "sasrec") -> App:
    """The command line; ``fit`` has the flags of one model."""
    app = App(
        name="seqrec",
        help=seqrec.__doc__ or "",
        version=seqrec.__version__,
        default_parameter=Parameter(negative="", consume_multiple=True),
    )
    for command in (
        inspect, fetch_command, fit_command(model), evaluate_command, recommend_command, similar_command,
        compare_command, demo_command, bench_command,
    ):  # fmt: skip
        app.command(command, name=command.__name__.removesuffix("_command"))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 went well, 2 is input that a person can correct, 130 a stop by Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    errors = PlainConsole(stderr=True, soft_wrap=True)

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False)

    try:
        with warnings.catch_warnings(), threads():
            warnings.simplefilter("always", UnknownIdWarning)
            warnings.showwarning = show
            app = make_app(_model_named(arguments))
            command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
            result = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        message = one_line(error)
        if isinstance(error, CycloptsError):
            message += ". See seqrec COMMAND --help."
        errors.print(f"error: {message}", style="red", markup=False, highlight=False)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        message = f"there is not enough memory ({one_line(error)}); give smaller sizes or a smaller log"
        message = "; ".join([message, *getattr(error, "__notes__", [])])
        errors.print(f"error: {message}", style="red", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt as error:
        errors.print("; ".join(["stopped", *getattr(error, "__notes__", [])]), style="yellow", highlight=False)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        errors.print(f"error: {explain_os_error(error, Path('standard output'))}", style="red", markup=False)
        return 2
    return result if isinstance(result, int) else 0


def _model_named(arguments: Sequence[str]) -> str:
    """The model that ``--model`` names; its flags are those of ``fit``."""
    name = "sasrec"
    for index, argument in enumerate(arguments):
        if argument == "--model" and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith("--model="):
            name = argument.partition("=")[2]
    return name if name in MODELS else "sasrec"
