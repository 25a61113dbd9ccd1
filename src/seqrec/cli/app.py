"""Entry point of the command line: runs one command and turns errors into one line.

Slow imports happen inside :func:`main`, so that Ctrl-C works cleanly from the start.
"""

import _thread
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
from typing import Any

from seqrec import __version__
from seqrec.cli import begin
from seqrec.errors import InputError, one_line

_OF_A_PATH = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS}
#: Environment variable that shows the traceback of a bug in seqrec.
TRACEBACK = "SEQREC_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 after success, 1 after a bug in seqrec, 2 after input that a person can correct, 130 after Ctrl-C.
    """
    begin.note(of_process=arguments is None)
    if arguments is None:
        _wait_briefly()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings(), _interruptions() as interrupted:
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *rest, **more: _say(f"warning: {message}", "yellow")
            try:
                result = _run(arguments)
                sys.stdout.flush()
            except BaseException as error:  # a panic of polars is no Exception
                kept = InputError, KeyboardInterrupt, SystemExit, GeneratorExit
                if interrupted() and not isinstance(error, kept):  # libraries may hide what Ctrl-C raised
                    raise KeyboardInterrupt from error
                raise
    except KeyboardInterrupt as error:
        with _uninterrupted():  # a second Ctrl-C must not end in a traceback
            _say(_with_notes("stopped", error), "yellow")
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader (head, less) has ended; otherwise Python would complain when it closes the stream
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        message, code = _explained(error, arguments)
        if isinstance(error, OSError):
            _drop_output()
        if code == 1 and os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        _say(_with_notes(f"error: {message}", error), "red")
        return code
    return result


def _wait_briefly() -> None:
    """Let OpenMP's threads wait for each other for some 20 µs before they sleep, unless the user settles that.

    By default they wait for milliseconds, computing, so that beside another busy process two threads take several times
    as long as one. The library reads this when it is loaded, with torch.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {*os.environ}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _run(arguments: list[str]) -> int:
    """Parse and run one command. Returns its exit status."""
    from seqrec.cli.parser import parsed

    command, computes = parsed(arguments)
    if computes:
        from seqrec.device import threads

        with threads():
            result = command()
    else:
        result = command()
    return result if isinstance(result, int) else 0


def _explained(error: BaseException, arguments: list[str]) -> tuple[str, int]:
    """The message for an error, and the exit status."""
    if isinstance(error, InputError):
        return str(error), 2
    from cyclopts import CycloptsError

    from seqrec.files import explain_os_error

    if isinstance(error, CycloptsError):
        from seqrec.cli.usage import usage_line

        return usage_line(error, arguments), 2
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return f"not enough memory ({one_line(error)}); give smaller sizes or a smaller log", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return str(explain_os_error(error, Path("standard output"))), 2
    if isinstance(error, OSError) and error.filename is not None and error.errno in _OF_A_PATH:
        return f"{error.filename}: cannot be opened ({error.strerror}); check the path and its permissions", 2
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "seqrec" in Path(frame.filename).parts]
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return (
        f"this is a bug in seqrec, not in your input: {type(error).__name__}{where} ({one_line(error)}); please "
        f"report it with the command, the version ({__version__}) and the output with {TRACEBACK}=1",
        1,
    )


def _with_notes(text: str, error: BaseException) -> str:
    """A line, followed by the notes that were added to the error, such as the state of the run."""
    return "; ".join([text, *getattr(error, "__notes__", [])])


def _say(text: str, style: str) -> None:
    from seqrec.cli.console import PlainConsole

    PlainConsole(stderr=True, soft_wrap=True).print(text, style=style, markup=False, highlight=False)


def _drop_output() -> None:
    """Discard all further output to standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Record Ctrl-C inside the context: KeyboardInterrupt is raised as usual, but a library may swallow it.

    If nothing can catch it, as in a callback of an import, Python only prints it. It is then raised again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread receives signals
        return
    pressed, timers = False, []

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    def again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            timers.append(threading.Timer(0.05, _thread.interrupt_main))  # at once, it would be lost like the first
            timers[-1].daemon = True
            timers[-1].start()
        else:
            hook(unraisable)

    before, hook = signal.signal(signal.SIGINT, note), sys.unraisablehook
    sys.unraisablehook = again
    try:
        yield lambda: pressed
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C inside the context."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
