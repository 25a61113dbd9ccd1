"""Time and memory of opening a large run and recommending items for one history.

    python benchmarks/opening.py
    python benchmarks/opening.py --users 1000000 --interactions 10000000 --texts

The script writes a run of an untrained SASRec and a generated log to a temporary folder, which it removes at the end
(about 1.6 GB for 10 million users, 100 million interactions and 1 million items of 64 numbers). Then a new process
opens the run, recommends, and reads its own peak memory. The system can reclaim the part of it that is mapped from
files. The files were just written, so they are read from the system's cache, not from the disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch

from seqrec import Dataset
from seqrec.data.id_table import IdTable
from seqrec.run.config import RunConfig
from seqrec.run.folder import Run

# Opens the run in a separate process and prints one line of JSON.
OPEN = """
import json, sys, time
first = time.perf_counter()
import torch
from seqrec import Recommender
try:
    from seqrec import Predictor
except ImportError:
    Predictor = None
torch.set_num_threads(1)

def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(lines[name].split()[0]) >> 10 for name in ("VmHWM", "RssAnon", "RssFile")}

run, history = sys.argv[1], json.loads(sys.argv[2])
found = {"import_seconds": time.perf_counter() - first, "import_cpu_seconds": time.process_time()}
found["import_mb"] = memory()
started, worked = time.perf_counter(), time.process_time()
opened = Recommender.load(run) if Predictor is None else Predictor.load(run)
found["open_seconds"] = time.perf_counter() - started
found["open_cpu_seconds"] = time.process_time() - worked
found["open_mb"] = memory()
started, worked = time.perf_counter(), time.process_time()
answer = opened.recommend(histories=[history], k=10)
found["recommend_seconds"] = time.perf_counter() - started
found["recommend_cpu_seconds"] = time.process_time() - worked
found["recommend_mb"] = memory()
found["asked"] = type(opened).__name__
assert len(answer if Predictor is None else answer[0]) == 10
print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}))
"""


def made_up(users: int, interactions: int, items: int, texts: bool) -> Dataset:
    """A log with varying history lengths, random items, and one second between interactions."""
    random = np.random.default_rng(0)
    mean = interactions // users
    half = random.integers(1, 2 * mean, users // 2)
    lengths = np.concatenate([half, 2 * mean - half, np.full(users % 2, mean)])
    total = int(lengths.sum())
    tables = []
    for name, count in (("user_id", users), ("item_id", items)):
        ids = pl.Series(name, np.arange(count))
        tables.append(IdTable(ids.cast(pl.String).str.zfill(24) if texts else ids))
    return Dataset(
        items=random.integers(1, items + 1, total, dtype=np.int32),
        timestamps=np.arange(1_600_000_000, 1_600_000_000 + total),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        users=tables[0],
        catalogue=tables[1],
        has_timestamps=True,
    )


def write_run(folder: Path, arguments: argparse.Namespace) -> None:
    """Write a run with random weights and a generated log."""
    dataset = made_up(arguments.users, arguments.interactions, arguments.items, arguments.texts)
    config = RunConfig(
        model="sasrec",
        model_config={"embedding_dim": arguments.dim, "max_length": 50},
        num_items=dataset.num_items,
        num_users=dataset.num_users,
        has_timestamps=True,
        fingerprint=dataset.fingerprint,
    )
    torch.manual_seed(0)
    Run.create(folder, config, dataset, weights=config.build().state_dict())


def main() -> None:
    """Write the run, open it in new processes, and print what they measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--interactions", type=int, default=100_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--texts", action="store_true", help="ids of 24 letters instead of integers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder for the temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        run = Path(temporary) / "run"
        write_run(run, arguments)
        sizes = {str(path.relative_to(run)): path.stat().st_size for path in run.rglob("*") if path.is_file()}
        weights = sizes["weights.safetensors"] >> 20
        print(json.dumps({"run_mb": sum(sizes.values()) >> 20, "weights_mb": weights}), flush=True)
        history = [f"{item:024}" if arguments.texts else item for item in range(7, 7 + 20)]
        for _ in range(arguments.repeats):
            command = [sys.executable, "-c", OPEN, str(run), json.dumps(history)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
