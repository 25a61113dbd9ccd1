"""Recommend to many generated users on a Ray cluster, with a worker killed in the middle, beside the local command.

    python benchmarks/cluster_recommend.py
    python benchmarks/cluster_recommend.py --users 250000 --repeats 3 --no-local

The script writes a run of an untrained SASRec and a generated log to a temporary folder. It then runs, in turn, the
local command on one thread, the command with two workers of one thread on a cluster of this machine, and the same again
with one worker killed as soon as half of the parts are there. It checks that the parts hold the rows, values and order
of the local file, and each user once. It prints one line of JSON per command: seconds in all, users per second, and the
peak memory of the workers in MB. ``anon`` is what belongs to a worker alone; ``peak`` also has mapped files, which they
share and the system can reclaim. Other work on the machine slows all of them, so the processor seconds of the command
and of its workers, the start included, say more than the time.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from opening import write_run

from seqrec.cluster.recommend import BLOCK

WORKER = "ray::MapWorker"


def workers_of(command: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The workers that a command has started."""
    try:
        found = psutil.Process(command.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    workers = []
    for process in found:
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                workers.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return workers


def processor_seconds(process: psutil.Process) -> float:
    """Processor time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(process: psutil.Process) -> dict[str, int]:
    """Memory of a process in MB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return {"anon": int(lines["RssAnon"].split()[0]) >> 10, "peak": int(lines["VmHWM"].split()[0]) >> 10}


def timed(arguments: list[str], parts: Path | None = None, kill_at: int | None = None) -> dict[str, Any]:
    """Run a command and watch its workers; kills one of them once there are ``kill_at`` parts."""
    started, killed, most = time.perf_counter(), None, {"anon": 0, "peak": 0}
    used: dict[int, float] = {}
    with subprocess.Popen([sys.executable, "-m", "seqrec.cli", *arguments], stdout=subprocess.DEVNULL) as command:
        while command.poll() is None:
            time.sleep(0.1)
            workers = workers_of(command) if parts is not None else []
            for process in (psutil.Process(command.pid), *workers):
                try:
                    used[process.pid] = processor_seconds(process)
                except psutil.Error:
                    continue  # it has ended
            for worker in workers:
                try:
                    most = {name: max(value, most[name]) for name, value in memory(worker).items()}
                except (OSError, KeyError):
                    continue  # it has ended
            there = len(list(parts.glob("part-*.parquet"))) if parts is not None else 0
            if kill_at is not None and killed is None and there >= kill_at and workers:
                os.kill(workers[0].pid, signal.SIGKILL)
                killed = {"pid": workers[0].pid, "parts": there}
    assert command.returncode == 0, arguments
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1)}
    found["processor_seconds"] = {
        "command": round(used.pop(command.pid, 0.0), 1),
        "workers": [round(seconds, 1) for seconds in used.values()],
    }
    if kill_at is not None:
        found["killed"] = killed
    if parts is not None:
        found["worker_mb"] = most
    return found


def check(parts: Path, users: int, local: Path | None) -> dict[str, Any]:
    """Compare the parts with the local file, and count users."""
    table = pl.concat(pl.read_parquet(part) for part in sorted(parts.glob("part-*.parquet")))
    found = {
        "users": table["user_id"].n_unique(),
        "duplicates": table.height - table.select("user_id", "rank").n_unique(),
        "complete": json.loads((parts / "_recommendations.json").read_text())["complete"],
    }
    assert found["users"] == users
    assert found["duplicates"] == 0
    if local is not None:
        found["equal"] = table.equals(pl.read_parquet(local))
        assert found["equal"]
    return found


def main() -> None:
    """Write the run, recommend in each way, and print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--texts", action="store_true", help="ids of 24 letters instead of integers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--local", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--folder", type=Path, help="folder for the temporary folder")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        run, parts, local = (Path(temporary, name) for name in ("run", "parts", "local.parquet"))
        write_run(run, arguments)
        for _ in range(arguments.repeats):
            if arguments.local:
                show("local", arguments.users, timed(["recommend", str(run), "--out", str(local)]))
            for kill_at in (None, max(1, arguments.users // BLOCK // 2)):
                shutil.rmtree(parts, ignore_errors=True)
                command = ["recommend", str(run), "--out", str(parts), "--engine", "ray"]
                found = timed([*command, "--workers", str(arguments.workers)], parts, kill_at)
                name = "ray" if kill_at is None else "ray, one worker killed"
                show(name, arguments.users, found | check(parts, arguments.users, local if arguments.local else None))


def show(name: str, users: int, found: dict[str, Any]) -> None:
    """Print one line."""
    line = {"command": name, "users_per_second": round(users / found["seconds"]), **found}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
