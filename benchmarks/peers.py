"""Compare seqrec with RecTools' SASRecModel: one epoch of training and recommending for everybody.

    make bench-peers LOG=games.txt
    python benchmarks/peers.py games.txt --loss cross-entropy --peer-steps 4 --repeats 2

Both train the same sizes on the same log in one run, in turn, so that a change in the machine's speed
meets both: epoch of theirs, epoch of ours, and so on, then the same with recommendations. RecTools lives
in an environment of its own, ``.venv-rectools``, which is made at the first call. The ratio of medians
counts; absolute times say little on a shared machine. With the loss over the whole catalogue an epoch of RecTools
takes half an hour, so ``--peer-steps`` times a few of its steps, and a step of ours is a whole epoch's mean.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENT = ROOT / ".venv-rectools"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, help="a log that both read: 'user item' lines in time order")
    parser.add_argument("--repeats", type=int, default=3, help="timed epochs and recommendations, after one warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--loss", choices=["bce", "cross-entropy"], default="bce")
    parser.add_argument("--peer-steps", type=int, default=None, help="steps of RecTools' epochs that are timed")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    # Threads are fixed before torch starts, the same number for both.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["MKL_NUM_THREADS"] = str(options.threads)
    install()
    peer = Peer(options)
    ours = Ours(options)
    times: dict[str, list[float]] = {"rectools epoch": [], "seqrec epoch": []}
    for _ in range(options.repeats + 1):
        times["rectools epoch"].append(peer.next("epoch") * ours.steps / (options.peer_steps or ours.steps))
        times["seqrec epoch"].append(ours.epoch())
    times |= {"rectools recommend": [], "seqrec recommend": []}
    for _ in range(options.repeats + 1):
        times["rectools recommend"].append(peer.next("recommend"))
        times["seqrec recommend"].append(ours.recommend())
    report(options, times, peer.finish())


def install() -> None:
    """Make RecTools' environment, once. The trainer is capped at the newest that RecTools allows."""
    if (ENVIRONMENT / ".installed").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    packages = ["torch", "numpy", "rectools[torch]", "pytorch-lightning<2.6"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([ENVIRONMENT / "bin/python", "-m", "pip", "install", "-q", *constraints, *packages], check=True)
    (ENVIRONMENT / ".installed").touch()


class Peer:
    """RecTools in a process of its own that waits between steps for our turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.result = ENVIRONMENT / "result.json"
        command = [
            ENVIRONMENT / "bin/python", HERE / "peers_rectools.py", "--log", options.log, "--pace",
            "--loss", {"bce": "BCE", "cross-entropy": "softmax"}[options.loss],
            *(["--steps", options.peer_steps] if options.peer_steps else []),
            "--negatives", "1", "--epochs-timed", options.repeats + 1, "--recommend-repeats", options.repeats + 1,
            "--threads", options.threads, "--max-length", 50, "--dimension", 100, "--blocks", 2, "--heads", 1,
            "--batch-size", 128, "--json", self.result,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def next(self, kind: str) -> float:
        """Let it take one step; seconds."""
        self._read_until("ready")
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read_until(kind)["seconds"])

    def finish(self) -> dict[str, Any]:
        """Its own report."""
        self._read_until("done")
        if self.process.wait() != 0:
            raise SystemExit("RecTools failed; its message stands above")
        found: dict[str, Any] = json.loads(self.result.read_text())
        return found

    def _read_until(self, key: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                message: dict[str, Any] = json.loads(line)
                if key in message:
                    return message
        raise SystemExit(f"RecTools ended before {key!r}; its message stands above")


class Ours:
    """The same work with seqrec."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from seqrec import Recommender, prepare, read_log, split_last_two
        from seqrec.data.batches import trainable

        torch.set_num_threads(options.threads)
        self.dataset = prepare(read_log(options.log))
        self.options: dict[str, Any] = {
            "loss": options.loss, "negatives": 1, "epochs": 1, "evaluate_every": 0, "batch_size": 128, "max_length": 50,
            "embedding_dim": 100, "num_blocks": 2, "num_heads": 1, "dropout": 0.2, "device": "cpu",
        }  # fmt: skip
        self.recommender = Recommender("sasrec", **self.options)
        trained = trainable(split_last_two(self.dataset).train)
        self.steps = -(-len(trained) // self.options["batch_size"])

    def epoch(self) -> float:
        """One epoch from fresh weights; seconds of training alone."""
        self.recommender.fit(self.dataset)
        return float(self.recommender.epochs[0]["seconds"])

    def recommend(self) -> float:
        """Ten items for every user of the log, the whole call."""
        start = time.perf_counter()
        self.recommender.recommend(k=10)
        return time.perf_counter() - start


def report(options: argparse.Namespace, times: dict[str, list[float]], peer: dict[str, Any]) -> None:
    """Print medians and ratios without the warm-up, and write them."""
    import torch

    import seqrec

    result: dict[str, Any] = {
        "log": options.log.name,
        "threads": options.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seqrec": seqrec.__version__,
        "rectools": peer["versions"]["rectools"],
        "times": times,
        "ratios": {},
    }
    for step in ("epoch", "recommend"):
        theirs, ours = (times[f"{name} {step}"][1:] for name in ("rectools", "seqrec"))
        pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
        result["ratios"][step] = statistics.median(theirs) / statistics.median(ours)
        print(
            f"{step:10} rectools {statistics.median(theirs):7.2f} s   seqrec {statistics.median(ours):7.2f} s   "
            f"{result['ratios'][step]:5.1f} times faster (pairs {min(pairs):.1f} to {max(pairs):.1f})"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
