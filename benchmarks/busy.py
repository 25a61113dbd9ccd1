"""An epoch beside other busy processes: threads, and how long threads wait for each other before they sleep.

    python benchmarks/busy.py --busy 0     # alone
    python benchmarks/busy.py --busy 1     # beside one process that computes all the time

Each setting trains in a process of its own, as its wait is read when the OpenMP library is loaded. All of them take an
epoch in turn, while the others wait, so a change of the machine's speed meets all of them. The output is the median and
the range of the seconds and of the processor seconds per epoch, and a digest of the weights: settings with the same
number of threads end with the same ones.
"""

import argparse
import hashlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from typing import Any

#: Threads, and GOMP_SPINCOUNT: how often a waiting thread looks before it sleeps; None is the library's own.
SETTINGS: list[tuple[int, int | None]] = [(1, None), (2, None), (2, 100_000), (2, 10_000), (2, 1_000), (2, 0)]


def train(threads: int, users: int, items: int) -> None:
    """Train an epoch for each line of the standard input, and print its seconds, processor seconds and digest."""
    import torch

    from seqrec.data.split import split_last_two
    from seqrec.models.blocks import dropouts_of
    from seqrec.models.sasrec import SASRec, SASRecConfig
    from seqrec.tools.steps import generated
    from seqrec.training.checks import objective_of
    from seqrec.training.config import BETA1, TrainConfig
    from seqrec.training.objective import mark_tables
    from seqrec.training.optim import RowAdam
    from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    train = split_last_two(generated(users, items, 10, 0)).train
    training, cpu = TrainConfig(loss="bce").resolved(), torch.device("cpu")
    model = SASRec(SASRecConfig(max_length=50), items).train()
    mark_tables(model)
    objective, dropouts = objective_of(model, items, training), dropouts_of(model)
    optimizer = RowAdam(model, 0.001, betas=(BETA1, training.beta2))
    sampler = objective.sampler(train)
    for number, _ in enumerate(sys.stdin):
        start, used = time.perf_counter(), time.process_time()
        epoch = epoch_of(model, train, training, number)
        for step, task in enumerate(tasks_of(model, epoch, train, objective, sampler)):
            seed_step(dropouts, epoch, step, cpu)
            optimizer_step(model, optimizer, task, objective, cpu)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        weights = hashlib.sha256(model.state_dict()["item_embedding.weight"].numpy().tobytes()).hexdigest()[:12]
        print(seconds, used, weights, flush=True)


def compute() -> None:
    while True:
        pass


def started(threads: int, spins: int | None, options: argparse.Namespace) -> Any:
    names = {"OMP_NUM_THREADS": str(threads)} | ({} if spins is None else {"GOMP_SPINCOUNT": str(spins)})
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, __file__, f"--threads={threads}", f"--users={options.users}", f"--items={options.items}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=kept | names, stdin=pipe, stdout=pipe, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--busy", type=int, default=1, help="number of busy processes")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        train(options.threads, options.users, options.items)
        return
    children = [started(threads, spins, options) for threads, spins in SETTINGS]
    busy = [multiprocessing.Process(target=compute, daemon=True) for _ in range(options.busy)]
    taken: list[list[tuple[float, float]]] = [[] for _ in SETTINGS]
    digests = [""] * len(SETTINGS)
    for number in range(1 + options.epochs):  # the first one is not counted
        for place, child in enumerate(children):
            child.stdin.write("\n")
            child.stdin.flush()
            seconds, used, digests[place] = child.stdout.readline().split()
            if number:
                taken[place].append((float(seconds), float(used)))
        if number == 0:
            for process in busy:
                process.start()
    for process in busy:
        process.kill()
    for child in children:
        child.stdin.close()
        child.wait()
    for (threads, spins), rows, digest in zip(SETTINGS, taken, digests, strict=True):
        columns = [f"{statistics.median(x):.2f} ({min(x):.2f}–{max(x):.2f})" for x in zip(*rows, strict=True)]
        wait = "default" if spins is None else f"{spins:,}"
        print(f"{threads} threads, spins {wait}: {columns[0]} s, {columns[1]} s of processor; weights {digest}")


if __name__ == "__main__":
    main()
