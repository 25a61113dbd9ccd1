"""What the workers that train on a cluster and the process that started them tell each other.

The board is an actor on the machine of that process, and ends with it.
"""

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

from seqrec.errors import LogWarning, MissingTimesWarning, RunWarning, TrainingWarning, UnknownIdWarning

EVERY = 0.5  # seconds between two looks at the board
_KINDS = {kind.__name__: kind for kind in (LogWarning, MissingTimesWarning, RunWarning, TrainingWarning,
                                           UnknownIdWarning)}  # fmt: skip


class Board:
    """Lines and result of the first worker, an error that would happen again, and the wish to stop."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.attempts = 0
        self.asked_to_stop = False
        self.error: Exception | None = None
        self.result: Any = None

    def begin(self) -> int:
        """Note that the workers start. Returns how many times they have, this one included."""
        self.attempts += 1
        return self.attempts

    def end(self, result: Any) -> None:
        """Note the result."""
        self.result = result

    def ended(self) -> Any:
        """The result; None before the end."""
        return self.result

    def exchange(self, lines: list[tuple[str, str]]) -> bool:
        """Add lines: the name of a warning, or an empty text, and the line. Returns whether to stop."""
        self.lines += lines
        return self.asked_to_stop

    def take(self) -> list[tuple[str, str]]:
        """Remove all lines and return them."""
        taken, self.lines = self.lines, []
        return taken

    def stop(self) -> None:
        """Ask the workers to stop."""
        self.asked_to_stop = True

    def fail(self, error: Exception) -> None:
        """Note the first error that would happen again if the workers started again."""
        self.error = self.error or error

    def failed(self) -> Exception | None:
        """That error."""
        return self.error


def new_board(ray: ModuleType) -> Any:
    """Start a board on this machine."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return ray.remote(num_cpus=0, label_selector=here)(Board).remote()


def show(lines: list[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Print lines from the board, and repeat warnings."""
    for kind, line in lines:
        if kind:
            warnings.warn(line, _KINDS.get(kind, UserWarning), stacklevel=2)
        else:
            say(line)


class Writer(io.TextIOBase):
    """Standard output of the first worker: complete lines wait here until the board takes them."""

    def __init__(self) -> None:
        self.rest = ""
        self.lines: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Add text."""
        with self._lock:
            *lines, self.rest = (self.rest + text).split("\n")
            self.lines += [("", line) for line in lines]
        return len(text)

    def warn(self, message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        """Take the place of ``warnings.showwarning``."""
        del where, more
        with self._lock:
            self.lines.append((category.__name__, str(message)))

    def take(self) -> list[tuple[str, str]]:
        """Remove the complete lines and return them."""
        with self._lock:
            taken, self.lines = self.lines, []
        return taken


@contextmanager
def posting(board: Any, ask: threading.Event) -> Iterator[Writer]:
    """Send what the block prints and warns of to the board, and set ``ask`` when the board asks to stop."""
    import ray

    writer, done = Writer(), threading.Event()

    def send() -> None:
        if ray.get(board.exchange.remote(writer.take())):
            ask.set()

    def keep_sending() -> None:
        while not done.wait(EVERY):
            send()

    thread = threading.Thread(target=keep_sending, daemon=True)
    thread.start()
    try:
        with redirect_stdout(writer), warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = writer.warn
            yield writer
    finally:
        done.set()
        thread.join()
        send()


def check(board: Any) -> None:
    """Raise the error on the board, if there is one."""
    import ray

    if (error := ray.get(board.failed.remote())) is not None:
        raise error
