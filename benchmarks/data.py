"""Time and peak memory from a log to a saved Dataset, each in a process of its own.

python benchmarks/data.py ml-1m.txt            a log of yours
python benchmarks/data.py --rows 10000000      a generated CSV of so many rows
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

CHILD = """
import resource, sys, time
start = time.perf_counter()
from seqrec import prepare, read_log
ready = time.perf_counter()
frame = read_log(sys.argv[1])
read = time.perf_counter()
dataset = prepare(frame)
prepared = time.perf_counter()
dataset.save(sys.argv[2])
saved = time.perf_counter()
import json
print(json.dumps({
    "interactions": dataset.num_interactions, "users": dataset.num_users, "items": dataset.num_items,
    "import": ready - start, "read": read - ready, "prepare": prepared - read, "save": saved - prepared,
    "total": saved - ready, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def generate(path: Path, rows: int, seed: int = 0) -> None:
    """A CSV with skewed items and users, in time order: user_id,item_id,timestamp."""
    random = np.random.default_rng(seed)
    users = random.integers(1, max(2, rows // 20), rows)
    items = (random.pareto(1.0, rows) * 50).astype(np.int64) % max(2, rows // 100) + 1
    times = np.sort(random.integers(1_600_000_000, 1_700_000_000, rows))
    pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).write_csv(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = options.log
        if log is None:
            log = Path(folder) / "log.csv"
            start = time.perf_counter()
            generate(log, options.rows)
            print(f"generated {options.rows:,} rows in {time.perf_counter() - start:.1f} s", file=sys.stderr)
        for number in range(options.repeats):
            command = [sys.executable, "-c", CHILD, str(log), str(Path(folder) / f"dataset-{number}")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(json.dumps({k: round(v, 3) for k, v in json.loads(done.stdout).items()}), flush=True)


if __name__ == "__main__":
    main()
