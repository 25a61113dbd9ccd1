"""Preparing a log of eight Parquet parts on a Ray cluster of this machine, against one process.

    python benchmarks/cluster_prepare.py                        10^7 and 4 * 10^7 rows, two workers
    python benchmarks/cluster_prepare.py --rows 1000000 --repeats 3

Both write the dataset, alternately; the files must be equal. The cluster is started before. Seconds are those of the
clock and, as other programs may run, also those of the processors. The memory of a worker is what it has for itself
(RssAnon); the store, which all processes of a machine share, is shown apart.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl

LOCAL = """
import json, resource, sys, time
from seqrec import prepare, read_log
start, used = time.perf_counter(), time.process_time()
prepare(read_log(sys.argv[1])).save(sys.argv[2])
print(json.dumps({
    "seconds": time.perf_counter() - start, "processor": time.process_time() - used,
    "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def generate(folder: Path, rows: int, parts: int = 8) -> None:
    """Write a log with skewed item counts and shuffled times."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for part in range(parts):
        size = rows // parts
        columns = {
            "user_id": random.integers(1, max(2, rows // 20), size),
            "item_id": (random.pareto(1.0, size) * 50).astype(np.int64) % max(2, rows // 100) + 1,
            "timestamp": random.integers(1_600_000_000, 1_700_000_000, size),
        }
        pl.DataFrame(columns).write_parquet(folder / f"part-{part}.parquet")


class Workers:
    """Memory and processor time of the worker processes of a cluster on this machine, while the block runs."""

    def __init__(self, raylet: int) -> None:
        self.raylet, self.peak, self.shared, self.ended = raylet, 0.0, 0.0, threading.Event()

    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.raylet}/task").glob("*/children")
        return [int(pid) for file in children for pid in file.read_text().split()]

    def used(self) -> float:
        """Seconds of the processors that all workers have used so far."""
        ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in self.pids()]
        return sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")

    def watch(self) -> None:
        while not self.ended.wait(0.02):
            for pid in self.pids():
                try:
                    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                    self.peak = max(self.peak, int(lines["RssAnon"].split()[0]) / 2**20)
                    self.shared = max(self.shared, int(lines["RssShmem"].split()[0]) / 2**20)
                except (OSError, KeyError):
                    continue

    def __enter__(self) -> "Workers":
        self.ended.clear()
        self.peak = self.shared = 0.0
        self.before = self.used()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def parent() -> int:
    """Process that started this one; for a worker that is the raylet."""
    return os.getppid()


def on_cluster(log: Path, out: Path, workers: Workers, number: int) -> dict[str, float]:
    from seqrec.cluster.config import ClusterConfig
    from seqrec.cluster.prepare import prepare_on_cluster

    with workers:
        start, used = time.perf_counter(), time.process_time()
        prepare_on_cluster(log, out, cluster=ClusterConfig(engine="ray", workers=number))
        seconds = time.perf_counter() - start
        used = time.process_time() - used
        processor = used + workers.used() - workers.before
    return {
        "seconds": seconds, "processor": processor, "of the caller": used,
        "gb": workers.peak, "gb of the store": workers.shared,
    }  # fmt: skip


def locally(log: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-c", LOCAL, str(log), str(out)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def is_same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 40_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options_of_ray = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    ray.init("local", num_cpus=options.workers, **options_of_ray)
    workers = Workers(ray.get(ray.remote(parent).remote()))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        base = Path(name)
        generate(base / "small", 80_000)
        on_cluster(base / "small", base / "out", workers, options.workers)
        for rows in options.rows:
            generate(base / "log", rows)
            runs: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
            for _ in range(options.repeats):
                runs["local"].append(locally(base / "log", base / "local"))
                runs["ray"].append(on_cluster(base / "log", base / "out", workers, options.workers))
            median = {
                name: {key: round(statistics.median(run[key] for run in found), 2) for key in found[0]}
                for name, found in runs.items()
            }
            ratios = [
                [ray[key] / local[key] for local, ray in zip(*runs.values(), strict=True)]
                for key in ("seconds", "processor")
            ]
            facts = {f"ray / local, {key}": round(statistics.median(found), 2)
                     for key, found in zip(("seconds", "processor"), ratios, strict=True)}  # fmt: skip
            span = [round(value, 2) for value in (min(ratios[0]), max(ratios[0]))]
            equal = is_same(base / "local", base / "out")
            print(json.dumps({"rows": rows, **median, **facts, "range": span, "equal": equal}), flush=True)
            shutil.rmtree(base / "log")


if __name__ == "__main__":
    main()
