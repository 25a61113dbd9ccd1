"""Time and peak memory of preparing a log and saving the Dataset, and of loading it and training.

    python benchmarks/data.py ml-1m.txt                           your own log
    python benchmarks/data.py --rows 10000000                     a generated CSV with this many rows
    python benchmarks/data.py --rows 100000000 --format parquet   Parquet; `parts` is a folder of Parquet parts

Each measurement runs in a separate process.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

BLOCK_ROWS = 10_000_000
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
    "log": sys.argv[1].rpartition("/")[2],
    "interactions": dataset.num_interactions, "users": dataset.num_users, "items": dataset.num_items,
    "import": ready - start, "read": read - ready, "prepare": prepared - read, "save": saved - prepared,
    "total": saved - ready, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""
TRAIN = """
import itertools, resource, sys, time
from seqrec import Dataset, Recommender
start = time.perf_counter()
dataset = Dataset.load(sys.argv[1])
loaded = time.perf_counter()
steps = itertools.count(1)
plain = {"loss": "sampled-softmax", "batch_size": 128, "ensemble": 1, "epochs": 1, "evaluate_every": 0}
recommender = Recommender("sasrec", **plain).fit(dataset, stop=lambda: next(steps) >= 200)
import json
row = recommender.epochs[0]
print(json.dumps({
    "load": loaded - start, "fit": time.perf_counter() - loaded, "steps": 200,
    "step_seconds": row["seconds"], "tokens_per_second": row["tokens_per_second"],
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def generate(path: Path, rows: int, seed: int = 0, format: str = "csv") -> None:
    """Write a log with skewed item counts, in time order: user_id,item_id,timestamp.

    The format is CSV, one Parquet file, or a folder of Parquet parts. Rows are written in blocks, so that any number of
    rows fits into memory.
    """
    random = np.random.default_rng(seed)
    names = ["user_id", "item_id", "timestamp"]
    parquet = None
    if format == "parts":
        path.mkdir()
    for start in range(0, rows, BLOCK_ROWS):
        size = min(BLOCK_ROWS, rows - start)
        users = random.integers(1, max(2, rows // 20), size)
        items = (random.pareto(1.0, size) * 50).astype(np.int64) % max(2, rows // 100) + 1
        # Each block starts where the one before it ends in time.
        first, last = (1_600_000_000 + 100_000_000 * row // rows for row in (start, start + size))
        times = np.sort(random.integers(first, max(last, first + 1), size))
        frame = pl.DataFrame([users, items, times], schema=names)
        if format == "csv":
            with path.open("ab") as file:
                frame.write_csv(file, include_header=start == 0)
        elif format == "parts":
            frame.write_parquet(path / f"part-{start // BLOCK_ROWS:03}.parquet")
        else:
            table = frame.to_arrow()
            parquet = parquet or pq.ParquetWriter(path, table.schema)
            parquet.write_table(table)
    if parquet is not None:
        parquet.close()


def measured(code: str, *arguments: Path) -> dict:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--format", choices=("csv", "parquet", "parts"), default="csv")
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        log = options.log
        if log is None:
            log = Path(folder) / ("log" if options.format == "parts" else f"log.{options.format}")
            start = time.perf_counter()
            generate(log, options.rows, format=options.format)
            print(f"generated {options.rows:,} rows in {time.perf_counter() - start:.1f} s", file=sys.stderr)
        for number in range(options.repeats):
            dataset = Path(folder) / f"dataset-{number}"
            for found in (measured(CHILD, log, dataset), measured(TRAIN, dataset)):
                rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}
                print(json.dumps(rounded), flush=True)
            shutil.rmtree(dataset)


if __name__ == "__main__":
    main()
