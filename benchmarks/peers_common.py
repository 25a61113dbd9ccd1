"""Code that the peers of `make bench-peers` share: the log, the vectors, the clock, the turns and the command line.

It runs in the environment of each peer, so it does not import seqrec. It imports numpy and pandas only after setting
the number of threads.
"""

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Turns:
    """Waits for a turn before each timed step, and times it.

    It also records the processor time of all threads, which other work on the machine changes much less.
    """

    def __init__(self, pace: bool) -> None:
        self.pace = pace
        self.waited = 0.0
        self.taken: dict[str, list[dict[str, Any]]] = {}
        self._start_clock()

    def start(self, kind: str) -> None:
        """Wait until the driver sends a line, and start the clock."""
        if self.pace:
            start = time.perf_counter()
            say(ready=kind, number=len(self.taken.get(kind, [])) + 1)
            if not sys.stdin.readline():
                raise SystemExit("stdin closed while waiting for a turn")
            self.waited += time.perf_counter() - start
        self._start_clock()

    def _start_clock(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self, kind: str, **more: Any) -> None:
        """Stop the clock and report the time to the driver. ``more`` may hold times that were measured otherwise."""
        times = {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}
        taken = self.taken.setdefault(kind, [])
        taken.append({kind: len(taken) + 1, **times, **more})
        say(**taken[-1])

    @contextmanager
    def turn(self, kind: str) -> Iterator[None]:
        """Wait for a turn, and time the block."""
        self.start(kind)
        yield
        self.end(kind)


def read_log(path: Path) -> "pd.DataFrame":
    """Read 'user item' lines, which are in time order."""
    import pandas as pd

    return pd.read_csv(path, sep=r"\s+", header=None, names=["user_id", "item_id"])


def split(log: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]":
    """Training rows, histories for the test, test rows.

    Leave-last-two-out: for users with three or more items, the last item is for the test and the one before it for
    validation. Users with fewer items only train. The history for the test includes the validation item.
    """
    by_user = log.groupby("user_id")["item_id"]
    from_end = by_user.cumcount(ascending=False)
    short = by_user.transform("size") < 3
    return log[short | (from_end >= 2)], log[short | (from_end >= 1)], log[~short & (from_end == 0)]


def hits(recommended: "pd.DataFrame", test: "pd.DataFrame") -> dict[str, float]:
    """HR@10 and NDCG@10 over all test users. A user without recommendations counts as a miss."""
    ranks = test.merge(recommended, on=["user_id", "item_id"])["rank"]
    return {
        "hr@10": len(ranks) / len(test),
        "ndcg@10": sum(1 / math.log2(1 + rank) for rank in ranks) / len(test),
    }


@dataclass(frozen=True)
class Vectors:
    """What the peers of the job `rank` search: vectors of items and states of users, and the items of each user.

    Args:
        folder: the folder of the files, and of the lists that are found.
        items: vectors of the items, ``float32[I, D]``.
        states: states of the users, ``float32[U, D]``.
        offsets: where the items of each user start and end in ``seen``, ``int64[U + 1]``.
        seen: different items of the users, sorted within each user, ``int64[P]``.
    """

    folder: Path
    items: "np.ndarray"
    states: "np.ndarray"
    offsets: "np.ndarray"
    seen: "np.ndarray"

    @classmethod
    def load(cls, folder: Path) -> "Vectors":
        import numpy as np

        return cls(folder, *(np.load(folder / f"{name}.npy") for name in ("items", "states", "offsets", "seen")))

    def save(self) -> None:
        import numpy as np

        self.folder.mkdir(exist_ok=True)
        for name in ("items", "states", "offsets", "seen"):
            np.save(self.folder / f"{name}.npy", getattr(self, name))

    def rank(
        self,
        args: argparse.Namespace,
        turns: Turns,
        every: "Callable[[], np.ndarray]",
        unseen: "Callable[[], np.ndarray]",
    ) -> dict[str, Any]:
        """Time two ways to find ten items for each user: among all items, and among those that the user has not seen.

        The driver compares the lists, ``int64[U, 10]``, which are written to the folder.
        """
        import numpy as np

        for kind, search in (("rank", every), ("unseen", unseen)):
            for _ in range(args.repeats):
                with turns.turn(kind):
                    found = search()
            np.save(self.folder / f"{kind}-{args.name}.npy", np.asarray(found, dtype=np.int64))
        return {"users": len(self.states), "catalogue": len(self.items), "dimension": self.items.shape[1]}


Job = Callable[[argparse.Namespace, Turns], dict[str, Any]]


def run(package: str, losses: Sequence[str], distributions: Sequence[str], jobs: Mapping[str, Job]) -> None:
    """Parse arguments, do a job, and write the result, with the versions of ``distributions``."""
    args = parse(package, losses, list(jobs))
    # Thread pools read these when they load, so the heavy imports come after.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = str(args.threads)
    turns = Turns(args.pace)
    found = jobs[args.job](args, turns)
    result = {
        "package": package,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in distributions}},
        "settings": {key: value for key, value in vars(args).items() if not isinstance(value, Path) and key != "pace"},
        "log": args.log.name,
        **found,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "turns": turns.taken,
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    say(done=str(args.json))


def parse(package: str, losses: Sequence[str], jobs: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Time {package} for `make bench-peers`.")
    parser.add_argument("--log", type=Path, required=True, help="'user item' lines in time order; for read, any log")
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--job", choices=jobs, default=jobs[0], help="what to time")
    parser.add_argument("--repeats", type=int, default=1, help="number of times that each step of the job is timed")
    parser.add_argument("--name", default=package, help="name of the lists that are written")
    parser.add_argument("--vectors", type=Path, default=None, help="folder of the vectors to rank")
    parser.add_argument("--steps", type=int, default=None, help="number of steps per epoch; by default all")
    parser.add_argument("--epochs-only", action="store_true", help="do not recommend after training")
    parser.add_argument("--recommend-batch-size", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    if losses:
        parser.add_argument("--loss", choices=losses, default=losses[0])
    parser.add_argument("--bucket", type=int, default=None, help="replay only: rows per bucket of similar lengths")
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", action="store_true", help="wait for a line on stdin before each timed step")
    return parser.parse_args()
