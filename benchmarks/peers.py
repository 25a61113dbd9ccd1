"""Compare seqrec's speed with SASRec in RecTools and RecBole: training an epoch, and recommending for all users.

    make bench-peers LOG=games.txt
    python benchmarks/peers.py games.txt --peers rectools --loss cross-entropy --peer-steps 4 --repeats 2

All packages train a model of the same sizes on the same log, alternately, so that changes in the machine's speed affect
all of them: an epoch of each peer, an epoch of seqrec, and so on, then the same with recommendations. Each peer has its
own environment, ``.venv-rectools`` or ``.venv-recbole``, which is created by the first call. The ratio of the medians
is the result; absolute times say little on a shared machine.

Epochs differ between packages, so the report describes them, and gives the ratio per target as well as per epoch.
RecTools and seqrec train every position of a history at once. RecBole makes a sequence of every prefix and trains only
its last position: 6.3 times the sequences on games.txt, for 1.07 times the targets. RecBole has no BCE for SASRec, so
its BPR, also with one negative, is compared with seqrec's BCE. All packages have cross-entropy over the whole
catalogue. If an epoch takes too long, ``--peer-steps`` times only some of its steps, and the report scales the time;
this is the default for RecBole. seqrec always trains complete epochs.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Package:
    """The requirements of a peer, its names for the losses, and the number of timed steps per epoch (0 for all)."""

    install: tuple[str, ...]
    losses: dict[str, str]
    steps: int


PACKAGES = {
    # RecTools does not allow a newer trainer.
    "rectools": Package(
        install=("torch", "numpy", "rectools[torch]", "pytorch-lightning<2.6"),
        losses={"bce": "BCE", "cross-entropy": "softmax"},
        steps=0,
    ),
    # RecBole 1.2.1 uses types that numpy 2 removed, and assignments to frames that pandas 3 ignores. Its TensorBoard
    # needs pkg_resources of an older setuptools.
    "recbole": Package(
        install=("torch", "numpy<2", "pandas<3", "setuptools<81", "recbole"),
        losses={"bce": "BPR", "cross-entropy": "CE"},
        steps=200,
    ),
}


def main() -> None:
    options = parse()
    # The number of threads, the same for all packages, must be set before torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["MKL_NUM_THREADS"] = str(options.threads)
    for name in options.peers:
        install(name)
    ours = Ours(options)
    peers = {name: Peer(name, steps, options) for name, steps in zip(options.peers, options.peer_steps, strict=True)}
    times: dict[str, list[float]] = {}
    for step in ("epoch", "recommend"):
        turns = {name: partial(peer.next, step) for name, peer in peers.items()} | {"seqrec": getattr(ours, step)}
        for _ in range(options.repeats + 1):
            for name, turn in turns.items():
                times.setdefault(f"{name} {step}", []).append(turn())
                # Shows progress, because a run takes minutes.
                print(f"{name} {step}: {times[f'{name} {step}'][-1]:.1f} s", file=sys.stderr, flush=True)
    found = {name: peer.finish() for name, peer in peers.items()} | {"seqrec": ours.epoch_of()}
    for name, about in found.items():
        scale = about["epoch_steps"] / about["steps"]
        times[f"{name} epoch"] = [seconds * scale for seconds in times[f"{name} epoch"]]
    report(options, times, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, help="log for all packages: 'user item' lines in time order")
    parser.add_argument("--peers", default=",".join(PACKAGES), help=f"from {','.join(PACKAGES)}; by default all")
    parser.add_argument("--repeats", type=int, default=3, help="timed epochs and recommendations, after one warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--loss", choices=["bce", "cross-entropy"], default="bce")
    parser.add_argument(
        "--peer-steps",
        default=None,
        help="number of timed steps per epoch, one for all peers or one per peer, such as 3,200; 0 for all steps",
    )
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    for name in options.peers:
        if name not in PACKAGES:
            parser.error(f"--peers: {name!r} is not one of {', '.join(PACKAGES)}")
    try:
        steps = [int(part) for part in options.peer_steps.split(",")] if options.peer_steps else []
    except ValueError:
        parser.error(f"--peer-steps: {options.peer_steps!r} is not a number or a list of numbers with commas")
    if not steps:
        steps = [PACKAGES[name].steps for name in options.peers]
    options.peer_steps = steps * len(options.peers) if len(steps) == 1 else steps
    if len(options.peer_steps) != len(options.peers) or min(steps) < 0:
        parser.error("--peer-steps: give one number, or one per peer, all at least 0")
    return options


def environment(name: str) -> Path:
    return ROOT / f".venv-{name}"


def install(name: str) -> None:
    """Create a peer's environment, if it does not exist yet."""
    folder = environment(name)
    if (folder / ".installed").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = ["-c", str(ROOT / "constraints.txt")]
    pip = [str(folder / "bin/python"), "-m", "pip"]
    subprocess.run([*pip, "install", "-q", *constraints, *PACKAGES[name].install], check=True)
    (folder / ".installed").touch()


class Peer:
    """Another package in a separate process, which waits between its steps."""

    def __init__(self, name: str, steps: int, options: argparse.Namespace) -> None:
        self.name = name
        self.result = environment(name) / "result.json"
        command = [
            environment(name) / "bin/python", HERE / f"peers_{name}.py", "--log", options.log, "--pace",
            "--loss", PACKAGES[name].losses[options.loss], *(["--steps", steps] if steps else []),
            "--negatives", "1", "--epochs-timed", options.repeats + 1, "--recommend-repeats", options.repeats + 1,
            "--threads", options.threads, "--max-length", 50, "--dimension", 100, "--blocks", 2, "--heads", 1,
            "--batch-size", 128, "--json", self.result,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        # Waiting here means that its untimed work does not overlap the turns of others.
        self._read_until("ready")

    def next(self, kind: str) -> float:
        """Let the peer take one step. Returns its seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = float(self._read_until(kind)["seconds"])
        self._read_until("ready", "done")
        return seconds

    def finish(self) -> dict[str, Any]:
        """Wait for the end of the peer and return its report."""
        if self.process.wait() != 0:
            raise SystemExit(f"{self.name} failed; its message is above")
        found: dict[str, Any] = json.loads(self.result.read_text())
        return found

    def _read_until(self, *keys: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                message: dict[str, Any] = json.loads(line)
                if any(key in message for key in keys):
                    return message
        raise SystemExit(f"{self.name} ended before {keys[0]!r}; its message is above")


class Ours:
    """The same work with seqrec."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from seqrec import Recommender, prepare, read_log

        torch.set_num_threads(options.threads)
        self.dataset = prepare(read_log(options.log))
        self.options: dict[str, Any] = {
            "loss": options.loss, "negatives": 1 if options.loss == "bce" else None, "epochs": 1, "evaluate_every": 0,
            "batch_size": 128, "max_length": 50, "windows": "last", "ensemble": 1,
            "embedding_dim": 100, "num_blocks": 2, "num_heads": 1, "dropout": 0.2, "device": "cpu", "split": "last-two",
        }  # fmt: skip
        self.recommender = Recommender("sasrec", **self.options)

    def epoch(self) -> float:
        """Train one epoch from fresh weights. Returns the seconds of its steps only."""
        self.recommender.fit(self.dataset)
        return float(self.recommender.epochs[0]["seconds"])

    def recommend(self) -> float:
        """Recommend ten items for every user of the log. Returns the seconds of the complete call."""
        start = time.perf_counter()
        self.recommender.recommend(k=10)
        return time.perf_counter() - start

    def epoch_of(self) -> dict[str, Any]:
        """The sizes of an epoch, in the form of the peers' reports."""
        import numpy as np

        import seqrec
        from seqrec.data.batches import trainable

        trained = trainable(seqrec.split_last_two(self.dataset).train)
        # There is no padding, so every computed position is a target.
        targets = int(np.minimum(trained.lengths - 1, self.options["max_length"]).sum())
        steps = -(-len(trained) // self.options["batch_size"])
        return {
            "versions": {"seqrec": seqrec.__version__}, "epoch_steps": steps, "steps": steps,
            "train_sequences": len(trained), "train_targets": targets, "train_positions": targets,
            "recommended_users": self.dataset.num_users,
        }  # fmt: skip


def report(options: argparse.Namespace, times: dict[str, list[float]], found: dict[str, dict[str, Any]]) -> None:
    """Print and write the sizes of the epochs, and medians and ratios without the warm-up."""
    import torch

    result: dict[str, Any] = {
        "log": options.log.name,
        "loss": options.loss,
        "threads": options.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "epochs": found,
        "times": times,
        "ratios": {},
    }
    for name, about in found.items():
        loss = PACKAGES[name].losses[options.loss] if name in PACKAGES else options.loss
        print(
            f"{name} {about['versions'][name]}, {loss}: an epoch has {about['train_sequences']:,} sequences, "
            f"{about['train_positions']:,} positions computed, {about['train_targets']:,} targets, "
            f"{about['epoch_steps']:,} steps, {about['steps']:,} timed; recommends for {about['recommended_users']:,}"
        )
    for step, name in ((step, name) for step in ("epoch", "recommend") for name in options.peers):
        theirs, ours = (times[f"{who} {step}"][1:] for who in (name, "seqrec"))
        pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
        ratio = statistics.median(theirs) / statistics.median(ours)
        result["ratios"][f"{name} {step}"] = ratio
        line = (
            f"{step:10} {name:8} {statistics.median(theirs):8.2f} s   seqrec {statistics.median(ours):7.2f} s   "
            f"{ratio:5.1f} times faster (pairs {min(pairs):.1f} to {max(pairs):.1f})"
        )
        if step == "epoch":
            per_target = ratio * found["seqrec"]["train_targets"] / found[name]["train_targets"]
            result["ratios"][f"{name} target"] = per_target
            line += f", {per_target:.1f} times per target"
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
