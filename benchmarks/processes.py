"""Training by several processes on this machine: speed, equality of the losses, bytes exchanged, and memory.

    python benchmarks/processes.py steps LOG --world 1 2 4         # losses, tokens/s and bytes of 1, 2 and 4 processes
    python benchmarks/processes.py steps --items 1000000           # the same with a generated log of so many items
    python benchmarks/processes.py epochs LOG --world 1 2          # tokens/s of an epoch of fit as it is by default
    python benchmarks/processes.py memory --items 4000000          # peak memory of fit, alone and with --shard-items
    python benchmarks/processes.py memory --items 4000000 --limit 3000  # the same where a process gets so many MB

Each process has one thread. Runs alternate, because other work on the machine changes the speed from minute to minute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def generated(items: int, users: int = 60_000, length: int = 12) -> pl.DataFrame:
    """A log in which every item occurs, and half of the interactions are with popular ones."""
    random = np.random.default_rng(0)
    count = max(users * length, 2 * items)
    popular = np.minimum(random.pareto(0.6, count) * 50, items - 1).astype(np.int64)
    chosen = np.where(np.arange(count) % 2 == 0, np.arange(count) // 2 % items, popular)
    return pl.DataFrame({"user_id": np.arange(count) // length, "item_id": chosen})


def take_steps(log: str, steps: int, batch_size: int) -> dict[str, Any]:
    """Take steps as ``fit`` does, in one process or as one of several."""
    import torch

    from seqrec.data.formats.read import read_log
    from seqrec.data.prepare import prepare
    from seqrec.data.split import split_last_two
    from seqrec.models.blocks import dropouts_of
    from seqrec.models.sasrec import SASRec, SASRecConfig
    from seqrec.training.checks import objective_of
    from seqrec.training.config import BETA1, TrainConfig
    from seqrec.training.objective import mark_tables
    from seqrec.training.optim import RowAdam
    from seqrec.training.processes import launched
    from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of

    torch.set_num_threads(1)
    split = split_last_two(prepare(read_log(log)))
    num_items, cpu = split.train.dataset.num_items, torch.device("cpu")
    training = TrainConfig(batch_size=batch_size).resolved()
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(max_length=50), num_items).train()
    mark_tables(model)
    objective = objective_of(model, num_items, training)
    sampler, dropouts = objective.sampler(split.train), dropouts_of(model)
    optimizer = RowAdam(model, 0.001, betas=(BETA1, training.beta2))
    rows: list[tuple[float, float, int, int]] = []  # loss, end, tokens, bytes
    with launched() as processes:
        shard = processes.shard if processes else (0, 1)
        for number in range(10**6):
            epoch = epoch_of(model, split.train, training, number, shard)
            for step, task in enumerate(tasks_of(model, epoch, split.train, objective, sampler)):
                before = processes.bytes_sent if processes else 0
                seed_step(dropouts, epoch, step, cpu)
                loss = float(optimizer_step(model, optimizer, task, objective, cpu, reduce=processes).detach())
                tokens = processes.totals.tokens if processes else len(task.batch.items)
                sent = processes.bytes_sent - before if processes else 0
                rows.append((loss, time.perf_counter(), tokens, sent))
                if len(rows) == steps:
                    break
            if len(rows) == steps:
                break
    seconds = rows[-1][1] - rows[9][1]
    return {
        "losses": [row[0] for row in rows],
        "tokens_per_second": sum(row[2] for row in rows[10:]) / seconds,
        "bytes": statistics.median(row[3] for row in rows[10:]),
        "table": 4 * model.item_embedding.weight.numel(),
    }


def started(world: int, *command: str) -> list[str]:
    """A command that starts so many processes of a Python file or module."""
    if world == 1:
        return [sys.executable, *command]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", *command]


def compare_steps(log: str, options: argparse.Namespace) -> None:
    found: dict[int, list[dict[str, Any]]] = {world: [] for world in options.world}
    for _ in range(options.repeats):
        for world in options.world:
            with tempfile.TemporaryDirectory() as folder:
                out = f"{folder}/out.json"
                more = ["one", log, f"--steps={options.steps}", f"--batch-size={options.batch_size}", f"--out={out}"]
                subprocess.run(started(world, __file__, *more), check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
                found[world].append(json.loads(Path(out).read_text()))
    first = found[options.world[0]]
    for world, runs in found.items():
        speed = [run["tokens_per_second"] for run in runs]
        ratios = [run["tokens_per_second"] / one["tokens_per_second"] for run, one in zip(runs, first, strict=True)]
        apart = max(abs(a / b - 1) for a, b in zip(runs[0]["losses"][:100], first[0]["losses"][:100], strict=True))
        share = runs[0]["bytes"] / runs[0]["table"]
        print(
            f"{world} processes: {statistics.median(speed):,.0f} tokens/s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}); losses of 100 steps differ by {apart:.1e} at most; "
            f"{runs[0]['bytes']:,.0f} bytes sent per step and process, {share:.2%} of the table"
        )


def compare_epochs(log: str, options: argparse.Namespace) -> None:
    """An epoch of ``seqrec fit`` with the options that it chooses itself, but without the time at its start and end."""
    found: dict[int, list[float]] = {world: [] for world in options.world}
    for _ in range(options.repeats):
        for world in options.world:
            with tempfile.TemporaryDirectory() as folder:
                more = ["-m", "seqrec", "fit", log, f"--out={folder}/run", "--threads=1", "--epochs=1"]
                more += ["--evaluate-every=0", "--transitions=off", "--item-init=random"]
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                subprocess.run(started(world, *more), check=True, env=ENVIRONMENT, **quiet)
                found[world].append(pl.read_csv(f"{folder}/run/epochs.csv")["tokens_per_second"][0])
    for world, speed in found.items():
        ratios = [a / b for a, b in zip(speed, found[options.world[0]], strict=True)]
        print(
            f"{world} processes: {statistics.median(speed):,.0f} tokens/s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def peaks(command: list[str], limit: int | None) -> tuple[dict[int, float], int]:
    """The peak memory of each process of a command in MB (resident, as the system counts it), and its exit status.

    With a ``limit``, the system refuses a process more than so many MB that it could write to.
    """
    found: dict[int, float] = {}
    if limit is not None:
        command = ["prlimit", f"--data={limit << 20}", *command]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as top:
        while top.poll() is None:
            tree = [top.pid]
            for pid in tree:
                try:
                    tree += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                    text = Path(f"/proc/{pid}/status").read_text()
                    anonymous = int(text.split("RssAnon:")[1].split()[0]) / 1024
                    found[pid] = max(found.get(pid, 0.0), anonymous)
                except (OSError, IndexError, ValueError):
                    continue
            time.sleep(0.05)
        return found, top.returncode


def fit_only(log: str, out: str, batch_size: int) -> None:
    """Train for an epoch into a run folder, validate, save and leave out the test, which takes hours at this size."""
    from seqrec.data.dataset import Dataset
    from seqrec.recommender import Recommender
    from seqrec.training import fitting
    from seqrec.training.following import follow
    from seqrec.training.processes import launched

    fitting._tested = lambda *_: {}
    with launched() as processes:
        if processes is not None and not processes.is_first:
            follow(processes)
            return
        recommender = Recommender(
            "sasrec", max_length=50, dropout=0.5, epochs=1, loss="sampled-softmax", transitions="off", windows="last",
            validation_users=200, batch_size=batch_size, average_decay=0.0, item_init="random", ensemble=1,
            shard_items=processes is not None, checkpoint_minutes=1,
        )  # fmt: skip
        recommender.fit(Dataset.load(log), out)
        print(recommender.epochs, file=sys.stderr)


def compare_memory(log: str, options: argparse.Namespace) -> None:
    from seqrec.data.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        prepare(pl.read_parquet(log)).save(f"{folder}/data")
        for world in options.world:
            name = "one process" if world == 1 else f"{world}, table divided"
            more = ["fit", f"{folder}/data", f"--batch-size={options.batch_size}", f"--out={folder}/{world}"]
            found, status = peaks(started(world, __file__, *more), options.limit)
            most = sorted(found.values(), reverse=True)[:world]
            epochs = Path(f"{folder}/{world}/epochs.csv")
            print(f"{name}: status {status}, peak of anonymous memory {', '.join(f'{one:,.0f}' for one in most)} MB")
            print(epochs.read_text() if epochs.exists() else "no epoch was completed", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("steps", "epochs", "memory", "one", "fit"))
    parser.add_argument("log", nargs="?")
    parser.add_argument("--items", type=int)
    parser.add_argument("--world", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, help="MB of memory that each process gets; for memory")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.what == "one":
        result = take_steps(options.log, options.steps, options.batch_size)
        if os.environ.get("RANK", "0") == "0":
            Path(options.out).write_text(json.dumps(result))
        return
    if options.what == "fit":
        fit_only(options.log, options.out, options.batch_size)
        return
    with tempfile.TemporaryDirectory() as folder:
        log = options.log
        if log is None:
            log = f"{folder}/log.parquet"
            generated(options.items).write_parquet(log)
        {"steps": compare_steps, "epochs": compare_epochs, "memory": compare_memory}[options.what](log, options)


if __name__ == "__main__":
    main()
