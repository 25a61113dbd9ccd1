"""Compare seqrec's speed with other packages: training an epoch, recommending, searching vectors, reading a log.

    make bench-peers LOG=games.txt
    python benchmarks/peers.py games.txt --peers rectools --loss cross-entropy --peer-steps 4 --repeats 2
    python benchmarks/peers.py games.txt --peers replay --loss sampled-softmax --threads 1
    python benchmarks/peers.py games.txt --job rank
    python benchmarks/peers.py log.csv --job read        a log with user_id, item_id and timestamp, or Parquet

The packages work alternately, so that changes in the machine's speed affect all of them: an epoch of each peer, an
epoch of seqrec, and so on, then the same with recommendations. Each has a process of its own (``peers_NAME.py``), and
each peer its own environment, such as ``.venv-rectools``, which is created by the first call. The ratio of the medians
is the result, by the clock and in processor time: absolute times say little on a shared machine, and on a busy one the
clock says little at all.

The jobs:

- ``train``, of a SASRec of the same sizes on the same log: epochs, and recommending ten items to everybody. Epochs
  differ between packages, so the report describes them, and gives the ratio per target as well as per epoch. RecTools,
  RePlay and seqrec train every position of a history at once; ``replay`` does so in buckets of 32 histories of similar
  length, ``replay-padded`` without. RecBole makes a sequence of every prefix and trains only its last position: 6.3
  times the sequences on games.txt, for 1.07 times the targets. RecBole has no BCE for SASRec, so its BPR, also with one
  negative, is compared with seqrec's BCE. If an epoch takes too long, ``--peer-steps`` times only some of its steps,
  and the report scales the time; this is the default for RecBole. seqrec always trains complete epochs.
- ``rank``: exact search of the ten best items for the states of all users, with the same vectors, by faiss's
  IndexFlatIP and implicit's topk; first among all items, then among unseen ones. The lists are compared too.
- ``read``: from a log in a file to files that training reads, in a new process each time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Per position, or per batch for all its positions.
NEGATIVES = {"bce": 1, "sampled-softmax": 1024, "cross-entropy": 1}
STEPS = {"train": ("epoch", "recommend"), "rank": ("rank", "unseen"), "read": ("read",)}

Times = dict[tuple[str, str], list[dict[str, Any]]]  # of each package and step: seconds and cpu_seconds of each turn


@dataclass(frozen=True)
class Package:
    """What a peer requires and takes part in.

    Args:
        install: its requirements.
        jobs: the jobs that it can do.
        losses: its names for the losses that it has.
        steps: number of timed steps per epoch, 0 for all.
        of: name of its script and its environment, if several peers share them.
        more: further arguments of its script.
    """

    install: tuple[str, ...]
    jobs: tuple[str, ...] = ("train",)
    losses: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    of: str = ""
    more: tuple[str, ...] = ()


# lightning 2.6.2 and 2.6.3 on PyPI were malware.
REPLAY = Package(
    install=("torch", "numpy", "replay-rec[torch]==0.22.*", "lightning<2.6", "pytorch-lightning<2.6"),
    jobs=("train", "read"),
    losses={"bce": "BCESampled", "sampled-softmax": "CESampled", "cross-entropy": "CE"},
    of="replay",
    more=("--bucket", "32"),
)
PACKAGES = {
    # RecTools does not allow a newer trainer.
    "rectools": Package(
        install=("torch", "numpy", "rectools[torch]", "pytorch-lightning<2.6"),
        losses={"bce": "BCE", "cross-entropy": "softmax"},
    ),
    # RecBole 1.2.1 uses types that numpy 2 removed, and assignments to frames that pandas 3 ignores. Its TensorBoard
    # needs pkg_resources of an older setuptools.
    "recbole": Package(
        install=("torch", "numpy<2", "pandas<3", "setuptools<81", "recbole"),
        losses={"bce": "BPR", "cross-entropy": "CE"},
        steps=200,
    ),
    "replay": REPLAY,
    "replay-padded": replace(REPLAY, jobs=("train",), more=("--epochs-only",)),
    "faiss": Package(install=("numpy", "faiss-cpu"), jobs=("rank",)),
    "implicit": Package(install=("numpy", "implicit"), jobs=("rank",)),
}


def main() -> None:
    options = parse()
    for name in options.peers:
        install(name)
    with tempfile.TemporaryDirectory() as folder:
        times, found = (read if options.job == "read" else alternate)(options, Path(folder))
        for name, about in found.items():
            scale = about.get("epoch_steps", 1) / about.get("steps", 1)
            for taken in times.get((name, "epoch"), []):
                taken.update(seconds=taken["seconds"] * scale, cpu_seconds=taken["cpu_seconds"] * scale)
        report(options, times, found, Path(folder))


def alternate(options: argparse.Namespace, folder: Path) -> tuple[Times, dict[str, Any]]:
    """Let the packages take their steps in turn. Returns the times of each package and step, and their reports."""
    # seqrec comes first, because it writes the vectors that the others rank.
    workers = {name: Worker(name, options, folder, options.repeats + 1) for name in ("seqrec", *options.peers)}
    times: Times = {}
    for step in STEPS[options.job]:
        for _ in range(options.repeats + 1):
            for worker in workers.values():
                if step != "recommend" or not worker.epochs_only:
                    worker.next(step, times)
    return times, {name: worker.finish() for name, worker in workers.items()}


def read(options: argparse.Namespace, folder: Path) -> tuple[Times, dict[str, Any]]:
    """Let the packages read the log in turn, each time in a new process."""
    times: Times = {}
    found = {}
    for _ in range(options.repeats + 1):
        for name in ("seqrec", *options.peers):
            worker = Worker(name, options, folder, 1)
            worker.next("read", times)
            found[name] = worker.finish()
    return times, found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, help="log for all packages: 'user item' lines in time order; for read, a CSV "
                        "or Parquet file with user_id, item_id and timestamp")  # fmt: skip
    parser.add_argument("--job", choices=list(STEPS), default="train", help="what to time")
    parser.add_argument("--peers", default=None, help=f"from {','.join(PACKAGES)}; by default all that can do the job")
    parser.add_argument("--repeats", type=int, default=3, help="number of times each step is timed, after one warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--loss", choices=list(NEGATIVES), default="bce")
    parser.add_argument(
        "--peer-steps",
        default=None,
        help="number of timed steps per epoch, one for all peers or one per peer, such as 3,200; 0 for all steps",
    )
    parser.add_argument("--epochs-only", action="store_true", help="do not recommend after training")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    able = [
        name
        for name, package in PACKAGES.items()
        if options.job in package.jobs and (options.job != "train" or options.loss in package.losses)
    ]
    options.peers = able if options.peers is None else options.peers.split(",")
    for name in options.peers:
        if name not in able:
            what = f"--job {options.job}" + (f" --loss {options.loss}" if options.job == "train" else "")
            parser.error(f"--peers: {name!r} is not one of {', '.join(able)}, which can do {what}")
    try:
        steps = [int(part) for part in options.peer_steps.split(",")] if options.peer_steps else []
    except ValueError:
        parser.error(f"--peer-steps: {options.peer_steps!r} is not a number or a list of numbers with commas")
    if not steps:
        steps = [PACKAGES[name].steps for name in options.peers]
    steps = steps * len(options.peers) if len(steps) == 1 else steps
    if len(steps) != len(options.peers) or min(steps) < 0:
        parser.error("--peer-steps: give one number, or one per peer, all at least 0")
    options.peer_steps = dict(zip(options.peers, steps, strict=True))
    return options


def environment(name: str) -> Path:
    return ROOT / f".venv-{PACKAGES[name].of or name}"


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


class Worker:
    """A package in a separate process, which waits between its steps."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path, repeats: int) -> None:
        self.name = name
        self.result = folder / f"{name}.json"
        python, script, more = sys.executable, name, ["--loss", options.loss]
        if name in PACKAGES:
            package = PACKAGES[name]
            python, script, more = environment(name) / "bin/python", package.of or name, [*package.more]
            if options.job == "train":
                more += ["--loss", package.losses[options.loss]]
            if options.peer_steps[name]:
                more += ["--steps", options.peer_steps[name]]
        command = [
            python, HERE / f"peers_{script}.py", "--log", options.log, "--job", options.job, "--name", name, "--pace",
            *more, "--negatives", NEGATIVES[options.loss], "--repeats", repeats, "--threads", options.threads,
            "--vectors", folder, "--max-length", 50, "--dimension", 100, "--blocks", 2, "--heads", 1,
            "--batch-size", 128, "--json", self.result,
        ]  # fmt: skip
        if options.epochs_only:
            command.append("--epochs-only")
        self.epochs_only = "--epochs-only" in command
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        # Waiting here means that its untimed work does not overlap the turns of others.
        self._read_until("ready")

    def next(self, step: str, times: Times) -> None:
        """Let the package take one step, and append its times."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        taken = self._read_until(step)
        times.setdefault((self.name, step), []).append(taken)
        # Shows progress, because a run takes minutes.
        print(f"{self.name} {step}: {taken['seconds']:.2f} s, processor {taken['cpu_seconds']:.2f} s", file=sys.stderr)
        self._read_until("ready", "done")

    def finish(self) -> dict[str, Any]:
        """Wait for the end of the package and return its report."""
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


def report(options: argparse.Namespace, times: Times, found: dict[str, dict[str, Any]], folder: Path) -> None:
    """Print and write what was done, and medians and ratios without the warm-up."""
    result: dict[str, Any] = {
        "log": options.log.name,
        "job": options.job,
        "loss": options.loss,
        "threads": options.threads,
        "packages": found,
        "times": {f"{name} {step}": taken for (name, step), taken in times.items()},
        "ratios": {},
    }
    for name, about in found.items():
        print(f"{name}: {described(options.job, about)}")
    for step, name in ((step, name) for step in STEPS[options.job] for name in options.peers if (name, step) in times):
        for clock, label in (("seconds", "clock"), ("cpu_seconds", "processor")):
            theirs, ours = ([taken[clock] for taken in times[who, step][1:]] for who in (name, "seqrec"))
            pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
            ratio = statistics.median(theirs) / statistics.median(ours)
            result["ratios"][f"{name} {step} {label}"] = ratio
            line = (
                f"{step:10} {name:13} {label:9} {statistics.median(theirs):8.2f} s   "
                f"seqrec {statistics.median(ours):7.2f} s   "
                f"{ratio:5.2f} times faster (pairs {min(pairs):.2f} to {max(pairs):.2f})"
            )
            if step == "epoch":
                per_target = ratio * found["seqrec"]["train_targets"] / found[name]["train_targets"]
                line += f", {per_target:.1f} per target"
            print(line)
        if options.job == "rank":
            print(f"{step:10} {name:13} {compared(folder, step, name)}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def described(job: str, about: dict[str, Any]) -> str:
    """What a package did, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if name != "python")
    if job == "rank":
        return f"{versions}; {about['users']:,} states, {about['catalogue']:,} items x {about['dimension']}"
    if job == "read":
        return (
            f"{versions}; {about['rows']:,} rows, {about['users']:,} users, {about['items']:,} items; "
            f"peak {about['peak_gb']:.2f} GB"
        )
    return (
        f"{versions}; {about['settings']['loss']}: an epoch has {about['train_sequences']:,} sequences, "
        f"{about['train_positions']:,} positions computed, {about['train_targets']:,} targets, "
        f"{about['epoch_steps']:,} steps, {about['steps']:,} timed"
    )


def compared(folder: Path, step: str, name: str) -> str:
    """How a peer's lists differ from seqrec's, in one line. Where they do, exact scores show whether it is a tie."""
    import numpy as np

    ours, theirs = (np.load(folder / f"{step}-{who}.npy") for who in ("seqrec", name))
    items, states = (np.load(folder / f"{part}.npy").astype(np.float64) for part in ("items", "states"))
    rows = np.flatnonzero((ours != theirs).any(axis=1))
    scores = [np.einsum("ud,ukd->uk", states[rows], items[lists[rows]]) for lists in (ours, theirs)]
    gap = np.abs(scores[0] - scores[1]).max(initial=0) / np.abs(scores[0]).max(initial=1)
    same = len(ours) - len(rows)
    return f"the same list for {same:,} of {len(ours):,} users; scores of the others differ by at most {gap:.1e}"


if __name__ == "__main__":
    main()
