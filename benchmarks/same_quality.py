"""Compare the quality of two versions of seqrec, which train the same models on the same log with the same options.

    git worktree add ../before v0.1.0
    python benchmarks/same_quality.py ml-100k.inter ../before --epochs 20

The NDCG@10 of each test user (full ranking) is compared in pairs. Another version may draw random numbers differently,
so the quality should be equal, but not the bytes. ``--without-kernels`` compares with this version without its compiled
loops instead.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from seqrec.ranking import statistics

ROOT = Path(__file__).resolve().parents[1]
MODELS = "sasrec,ssept,gru4rec,caser,slirec,bert4rec,tisasrec,esasrec,lrurec"
# Options whose defaults have changed since. Both versions get the same values.
CHANGED = {
    "sasrec": {"dropout": 0.5},
    "ssept": {"dropout": 0.3, "user_dim": 32, "sse_user": 0.9, "sse_item": 0.05, "sse_target": 0.0},
}

CHILD = """
import json, sys
import numpy as np
from seqrec import MODELS, Recommender, TrainConfig, prepare, read_log, split_last_two
from seqrec.ranking import metrics
from seqrec.ranking.protocols import ranks
log, model, options, out = sys.argv[1:]
dataset = prepare(read_log(log))
given = {"loss": MODELS[model].LOSS, "max_length": 50} | json.loads(options)
# Later versions choose these from the log.
chosen = {"windows": "last", "ensemble": 1, "item_init": "random", "transitions": "off"}
given |= {name: value for name, value in chosen.items() if hasattr(TrainConfig(), name)}
recommender = Recommender(model, split="last-two", **given).fit(dataset)
np.save(out, metrics.ndcg(*ranks(recommender.model, split_last_two(dataset).test), 10))
print(json.dumps([recommender.epochs[-1]["loss"], sum(row["seconds"] for row in recommender.epochs)]))
"""


def trained(source: Path, kernels: bool, arguments: list[str]) -> tuple[np.ndarray, float, float]:
    """Train with the package in ``source``. Returns NDCG@10 of each test user, the last epoch's loss, and seconds."""
    environment = os.environ | {"PYTHONPATH": str(source)} | ({} if kernels else {"SEQREC_KERNELS": "0"})
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/ndcg.npy"
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments, out], env=environment, cwd=folder, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{source}: {arguments[1]} failed:\n{done.stderr}")
        loss, seconds = json.loads(done.stdout.splitlines()[-1])
        return np.load(out), loss, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("before", type=Path, nargs="?", help="a checkout of the other version")
    parser.add_argument("--without-kernels", action="store_true")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if (options.before is None) != options.without_kernels:
        parser.error("give either a checkout of another version or --without-kernels")
    before = ROOT / "src" if options.before is None else options.before.resolve() / "src"
    sides = [(before, not options.without_kernels), (ROOT / "src", True)]
    for model in options.models.split(","):
        rows, losses, seconds = [], [], []
        for seed in range(options.seeds):
            given = {"epochs": options.epochs, "batch_size": options.batch_size, "evaluate_every": 0, "seed": seed}
            arguments = [str(options.log.resolve()), model, json.dumps(given | CHANGED.get(model, {}))]
            found = [trained(*side, arguments) for side in sides]
            rows.append(np.stack([values for values, _, _ in found]))
            losses.append([loss for _, loss, _ in found])
            seconds.append([time for _, _, time in found])
        old, new = np.mean(rows, axis=0)
        low, high = statistics.difference_intervals((new - old)[:, None])[0]
        print(
            f"{model:9} NDCG@10 {old.mean():.4f} before, {new.mean():.4f} now: {(new - old).mean():+.4f} "
            f"({low:+.4f} to {high:+.4f}); loss {np.mean(losses, axis=0).round(4).tolist()}, "
            f"seconds {np.mean(seconds, axis=0).round(1).tolist()}",
            flush=True,
        )


if __name__ == "__main__":
    main()
