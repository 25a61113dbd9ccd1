"""The command line's entry: parses, runs one command, turns errors into one line."""

import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from cyclopts import App, CycloptsError, Parameter, Token, UnknownOptionError, convert

import seqrec
from seqrec.cli.arguments import name_ids
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

_OF_A_PATH = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS}
#: In the environment, it makes a fault of the package show where it was raised.
TRACEBACK = "SEQREC_TRACEBACK"


def make_app(model: str = "sasrec") -> App:
    """The command line; ``fit`` has the flags of one model."""
    app = App(
        name="seqrec",
        help=seqrec.__doc__ or "",
        version=seqrec.__version__,
        default_parameter=Parameter(negative="", consume_multiple=True, converter=_converted),
    )
    for command in (
        inspect, fetch_command, fit_command(model), evaluate_command, recommend_command, similar_command,
        compare_command, demo_command, bench_command,
    ):  # fmt: skip
        app.command(command, name=command.__name__.removesuffix("_command"))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 went well, 1 is a fault of the package, 2 input to correct, 130 a stop by Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = PlainConsole(stderr=True, soft_wrap=True)
    try:
        with warnings.catch_warnings(), threads(), _interruptions() as interrupted:
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *rest, **more: _say(console, f"warning: {message}", "yellow")
            try:
                result = _run(arguments)
                sys.stdout.flush()
            except Exception as error:
                if interrupted() and not isinstance(error, InputError):  # libraries may hide what Ctrl-C raised
                    raise KeyboardInterrupt from error
                raise
    except KeyboardInterrupt as error:
        with _uninterrupted():  # a second one must not turn the end into a traceback
            _say(console, _with_notes("stopped", error), "yellow")
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader (head, less) has gone; Python would complain once more when it closes the stream
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        message, code = _explained(error)
        if isinstance(error, OSError):
            _drop_output()
        if code == 1 and os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        _say(console, _with_notes(f"error: {message}", error), "red")
        return code
    return result


def _run(arguments: list[str]) -> int:
    """Parse and run one command; its exit status."""
    app = make_app(_model_named(arguments))
    command, bound, _ = app.parse_args(name_ids(app, arguments), exit_on_error=False, print_error=False)
    result = command(*bound.args, **bound.kwargs)
    return result if isinstance(result, int) else 0


def _explained(error: BaseException) -> tuple[str, int]:
    """The line for an error, and the exit status."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, CycloptsError):
        hint = ""
        if isinstance(error, UnknownOptionError) and not str(error).startswith("Unknown option: --"):
            hint = " (a value that begins with - is written --flag=VALUE, a file ./NAME)"
        return f"{one_line(error).rstrip('.')}{hint}. See seqrec COMMAND --help", 2
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return f"there is not enough memory ({one_line(error)}); give smaller sizes or a smaller log", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return str(explain_os_error(error, Path("standard output"))), 2
    if isinstance(error, OSError) and error.filename is not None and error.errno in _OF_A_PATH:
        return f"{error.filename}: cannot be opened ({error.strerror}); check the path and its permissions", 2
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "seqrec" in Path(frame.filename).parts]
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return (
        f"this is a fault of seqrec, not of your input: {type(error).__name__}{where} ({one_line(error)}); please "
        f"report it with the command, the version ({seqrec.__version__}) and what it prints with {TRACEBACK}=1",
        1,
    )


def _with_notes(text: str, error: BaseException) -> str:
    """A line, and what those whom an error passed added to it, such as what became of a run."""
    return "; ".join([text, *getattr(error, "__notes__", [])])


def _say(console: PlainConsole, text: str, style: str) -> None:
    console.print(text, style=style, markup=False, highlight=False)


def _drop_output() -> None:
    """Send what is still to be written to standard output nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _converted(kind: Any, tokens: Sequence[Token]) -> Any:
    """What cyclopts makes of the values of one flag, but for fractions, which it would round for a whole number."""
    if _holds_int(kind):
        for token in tokens:
            try:
                fraction = not float(token.value).is_integer()
            except (ValueError, OverflowError):
                continue  # cyclopts says what is wrong with it
            if fraction:
                raise ValueError(f"{token.value} is not a whole number")
    return convert(kind, tokens)


def _holds_int(kind: Any) -> bool:
    """Whether a type hint is of whole numbers: int, int | None, tuple[int, ...] and so on, but not with floats."""
    parts = get_args(kind)
    return kind is int or (float not in parts and any(_holds_int(part) for part in parts))


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """While within, whether Ctrl-C was pressed: KeyboardInterrupt is raised as ever, but a library may swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may take signals
        return
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """While within, Ctrl-C does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _model_named(arguments: Sequence[str]) -> str:
    """The model that ``--model`` names; its flags are those of ``fit``."""
    name = "sasrec"
    for index, argument in enumerate(arguments):
        if argument == "--model" and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith("--model="):
            name = argument.partition("=")[2]
    return name if name in MODELS else "sasrec"
