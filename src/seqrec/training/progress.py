"""Progress of training on the terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seqrec import kernels


def described(device: torch.device, count: int) -> str:
    """The device and the number of threads, as text."""
    loops = "" if kernels.library() else ", without the compiled loops (no C++ compiler at install, or turned off)"
    return f"on {device}, {count} thread{'s' * (count != 1)}" + (loops if device.type == "cpu" else "")


class EpochBar:
    """Progress of an epoch on the terminal: tokens, tokens per second, time left; and one line per epoch.

    ``phase`` stands before the number of each epoch.
    """

    def __init__(self, progress: Progress, tokens: int, phase: str) -> None:
        self.progress, self.tokens, self.phase = progress, tokens, phase
        self.task = progress.add_task("", total=tokens, rate="", visible=False)
        self.started = 0.0
        self.first = 0

    def start(self, epoch: int, epochs: int) -> None:
        """Start the bar of an epoch."""
        self.started = time.perf_counter()
        self.first = -1
        description = f"{self.phase}epoch {epoch}/{epochs}"
        self.progress.reset(self.task, description=description, total=self.tokens, visible=True)

    def update(self, done: int) -> None:
        """Show how many tokens of the epoch are done."""
        if self.first < 0:
            self.first, self.started = done, time.perf_counter()
        rate = (done - self.first) / max(time.perf_counter() - self.started, 1e-9)
        self.progress.update(self.task, completed=done, rate=f"{rate:,.0f} tokens/s" if rate else "")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(text, highlight=False)

    def row(self, row: dict[str, Any]) -> None:
        """Print the line of a finished epoch."""
        found = f"  valid ndcg@10 {row['ndcg@10']:.4f}" if "ndcg@10" in row else ""
        self.progress.console.print(
            f"{self.phase}epoch {row['epoch']:>3}  loss {row['loss']:.4f}  {row['total_seconds']:.1f} s, steps "
            f"{row['seconds']:.1f} s  {row['tokens_per_second']:,.0f} tokens/s{found}",
            soft_wrap=True,
            highlight=False,
        )


@contextmanager
def epoch_bar(show: bool, tokens: int, phase: str = "") -> Iterator[EpochBar]:
    """A progress bar for all epochs of one training. It prints nothing unless ``show`` is true."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    # A separate console, because silencing rich's shared one would silence everything else that prints with it.
    with Progress(*columns, console=Console(quiet=not show), transient=True, disable=not show) as progress:
        yield EpochBar(progress, tokens, phase)
