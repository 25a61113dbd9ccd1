"""A small log with titles, a server in a process of its own, and what to expect of a page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl

from seqrec import synthetic_log

HTML = "<img src=x onerror=alert(1)>"
TOKEN = "a-token-of-24-characters"
SECONDS = 60  # the machine may be busy


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """A log whose items have numbers as ids, and what is known of them: one title is HTML, and one is missing."""
    log = synthetic_log(120, genres=3, items_per_genre=10, mean_length=12, seed=1).frame
    names = sorted(log["item_id"].unique())
    numbers = {name: 100 + place for place, name in enumerate(names)}
    titles = [HTML, None, *(name.rpartition(" (")[0] for name in names[2:])]
    genres = [name.rpartition(" (")[2].rstrip(")") for name in names]
    items = pl.DataFrame({"item_id": list(numbers.values()), "title": titles, "genres": genres})
    return log.with_columns(pl.col("item_id").replace_strict(numbers)), items


class Served:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *names: str, token: str | None = None) -> None:
        command = [sys.executable, "-m", "seqrec.cli", "serve", *(str(folder / name) for name in names)]
        command += ["--port", "0", "--store", str(folder / f"events-{'-'.join(names)}-{bool(token)}.db")]
        environment = {key: value for key, value in os.environ.items() if key != "SEQREC_TOKENS"}
        environment |= {"SEQREC_TOKENS": token} if token else {}
        self.log = (folder / "server.log").open("a")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, f"{line}{(folder / 'server.log').read_text()}"
        self.address = found[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        self.log.close()


class Watched:
    """What went wrong on a page: errors in the console, and requests to other places. A test may expect some errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.expected = ""

    def unexpected(self) -> list[str]:
        """The errors that the test did not expect, and the requests to other places."""
        return [
            error for error in self.errors if not (self.expected and re.search(self.expected, error))
        ] + self.outside
