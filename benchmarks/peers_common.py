"""Code that the peers of `make bench-peers` share: the log, the clock, the turns and the command line.

It runs in the environment of each peer, so it does not import seqrec. It imports pandas only after setting the number
of threads.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Turns:
    """Waits for a turn before each timed step, and times it.

    It also records the CPU seconds of all threads. If they are far below wall time x threads, the machine was busy.
    """

    def __init__(self, pace: bool) -> None:
        self.pace = pace
        self.waited = 0.0
        self.taken: dict[str, list[dict[str, Any]]] = {"epoch": [], "recommend": []}
        self._start_clock()

    def start(self, kind: str) -> None:
        """Wait until the driver sends a line, and start the clock."""
        if self.pace:
            start = time.perf_counter()
            say(ready=kind, number=len(self.taken[kind]) + 1)
            if not sys.stdin.readline():
                raise SystemExit("stdin closed while waiting for a turn")
            self.waited += time.perf_counter() - start
        self._start_clock()

    def _start_clock(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self, kind: str, **more: Any) -> None:
        """Stop the clock and report the time to the driver."""
        times = {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}
        self.taken[kind].append({kind: len(self.taken[kind]) + 1, **times, **more})
        say(**self.taken[kind][-1])


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


def run(
    package: str,
    losses: Sequence[str],
    distributions: Sequence[str],
    measure: Callable[[argparse.Namespace, Turns], dict[str, Any]],
) -> None:
    """Parse arguments, measure, and write the result, with the versions of ``distributions``."""
    args = parse(package, losses)
    # Thread pools read these when they load, so the heavy imports come after.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    turns = Turns(args.pace)
    found = measure(args, turns)
    result = {
        "package": package,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in distributions}},
        "settings": {key: value for key, value in vars(args).items() if key not in ("log", "json", "pace")},
        "log": args.log.name,
        **found,
        "epochs": turns.taken["epoch"],
        "recommends": turns.taken["recommend"],
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    say(done=str(args.json))


def parse(package: str, losses: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Time the SASRec of {package}: epochs and recommendations.")
    parser.add_argument("--log", type=Path, required=True, help="'user item' lines in time order")
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--epochs-timed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="number of steps per epoch; by default all")
    parser.add_argument("--recommend-repeats", type=int, default=1)
    parser.add_argument("--recommend-batch-size", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--loss", choices=losses, default=losses[0])
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", action="store_true", help="wait for a line on stdin before each timed step")
    return parser.parse_args()
