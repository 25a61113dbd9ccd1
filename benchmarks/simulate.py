"""A model of training on many workers: how long an epoch takes, and where more workers stop paying. Nothing is trained.

    python benchmarks/simulate.py
    python benchmarks/simulate.py --lengths ml-1m --items 10000000 --cv 0.3
    python benchmarks/simulate.py --measure-rows

It compares the two ways in which workers exchange the gradients of the item table: ``rows`` (every worker receives the
rows that the others touched, as by default) and ``shards`` (``--shard-items``: rows and their gradients travel between
a worker and their holders). The output is Markdown. docs/scaling.md has it, with the assumptions:

- A step takes 0.8 ms and a constant per token, as measured with sampled softmax and 2 threads, one worker per machine.
- The tokens of each worker are those that :class:`seqrec.data.batches.Epoch` gives it; lengths are log-normal.
- Items are drawn by a power of their rank; the workers share 1,024 negatives. What each holder is asked for is counted.
- At most 32 workers are drawn; they stand for the others.
- The step of a worker varies log-normally with ``--cv``, independently of the others', and the slowest decides.
- Gathering and summing go around a ring, one message per neighbour, as in gloo. Nothing overlaps with computing.
- Every received row takes time too, because all workers update all rows: ``--measure-rows`` measures it.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import nn

from seqrec import Dataset
from seqrec.data.batches import Epoch
from seqrec.data.id_table import IdTable
from seqrec.data.split import all_histories
from seqrec.training.optim import RowAdam

FIXED = 0.8e-3  # seconds of a step of any size
PER_TOKEN = (
    4.4e-3 - FIXED
) / 860  # seconds: those of a step of 860 tokens (benchmarks/RESULTS.md) without the fixed ones
PER_ROW = 0.3e-6  # seconds to sum and apply the gradient of a received row, one thread
DENSE = 0.2e6  # bytes of the gradients that are not of tables
DIM, NEGATIVES = 64, 1024
ROOM = 1.1  # messages are as long as the longest, and a tenth more
PER_MESSAGE = 5e-6  # seconds of each message of an exchange with all others, beside the latency
#: Mean and deviation of the logarithm of the history's length.
LENGTHS = {"games": (1.40, 0.81), "ml-1m": (4.56, 1.03)}
WORKERS = (16, 32, 64, 128, 256)
GAIN = 1.25  # doubling the workers pays if it makes an epoch this much faster


@dataclass(frozen=True)
class Load:
    """What the workers do in a step, from simulated batches. Skews are the largest value as a multiple of the mean."""

    tokens: float  # mean per worker
    token_skew: float  # of the workers' tokens
    touched: float  # mean number of distinct rows that a worker's gradients touch
    asked: float  # mean number of rows that a worker asks the holders for
    holder_skew: float  # of the rows that holders are asked for
    slowest: float  # time of the slowest worker, as a multiple of the mean


def generated(users: int, lengths: str, random: np.random.Generator) -> Dataset:
    """Histories of log-normal length, at least 2, of one item."""
    sizes = np.exp(random.normal(*LENGTHS[lengths], users)).clip(1, 5000).round().astype(np.int64) + 1
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    items, times = np.ones(offsets[-1], np.int32), np.zeros(offsets[-1], np.int64)
    users_table, catalogue = (IdTable(pl.Series(f"{kind}_id", np.arange(count)))
                              for kind, count in (("user", users), ("item", 1)))  # fmt: skip
    return Dataset(items, times, offsets, users_table, catalogue, has_timestamps=False)


def simulated(workers: int, batch: int, given: argparse.Namespace) -> Load:
    """The loads of a step with so many users per worker."""
    random = np.random.default_rng([workers, batch])
    size, steps = workers * batch, max(1, 2**15 // (workers * batch))
    histories = all_histories(generated(steps * size, given.lengths, random))
    ways = {"batch_size": size, "max_length": given.max_length, "seed": 0}
    mean = Epoch(histories, **ways).tokens / steps / workers
    ranks = np.linspace(0, workers - 1, min(workers, 32)).astype(int)
    most = np.full(steps, mean)
    for rank in ranks if workers > 1 else []:
        parts = [Epoch(histories, **ways, shard=(int(rank), workers)).part(step) for step in range(steps)]
        most = np.maximum(most, [part.lengths[part.first : part.last].sum() for part in parts])
    chances = np.cumsum(np.arange(1, given.items + 1) ** -given.zipf)
    place = random.permutation(given.items)  # popular items are anywhere in the table
    inputs, touched, loads = 0, 0, np.zeros(workers)
    negatives = random.integers(0, given.items, NEGATIVES)
    for _ in ranks:
        drawn = place[np.searchsorted(chances / chances[-1], random.random(int(mean) + batch))]
        own = np.unique(drawn[: int(mean)])
        inputs += len(own)
        touched += len(np.unique(np.concatenate([drawn, negatives])))
        for rows in (own, own, negatives):  # inputs, targets (nearly the same items) and negatives
            loads += np.bincount(rows * workers // given.items, minlength=workers)
    spread = np.sqrt(np.log(1 + given.cv**2))
    times = np.exp(random.normal(-(spread**2) / 2, spread, (2000, workers)))
    return Load(
        mean, float(most.mean() / mean), touched / len(ranks), 2 * inputs / len(ranks) + NEGATIVES,
        float(loads.max() / loads.mean()), float(times.max(axis=1).mean()) if workers > 1 else 1.0,
    )  # fmt: skip


def step_of(exchange: str, workers: int, load: Load, gbits: float, given: argparse.Namespace) -> dict[str, float]:
    """Bytes that a worker receives in a step, and its seconds: computing, waiting for the slowest, network, rows."""
    own = FIXED + PER_TOKEN * load.tokens
    slowest = (FIXED + PER_TOKEN * load.tokens * load.token_skew) * load.slowest
    others, latency = workers - 1, given.latency * 1e-6
    dense, ring = 2 * DENSE * others / workers, 2 * others * latency  # gathering takes half as long at the same time
    if exchange == "rows":
        received = others * load.touched * ROOM * 4 * (DIM + 1)
        seconds, rows = ring, others * load.touched
    else:
        received = load.asked * load.holder_skew * (2 * 4 * DIM + 8) * others / workers
        lookups = 3 * 4 * (latency + others * PER_MESSAGE)  # numbers of rows, rows, vectors, gradients
        seconds, rows = ring + lookups, load.asked * load.holder_skew if others else 0
    seconds = (received + dense) * 8e-9 / gbits + (seconds if others else 0)
    return {"bytes": received + dense, "own": own, "waiting": slowest - own, "network": seconds, "rows": PER_ROW * rows}


def epoch_of(exchange: str, workers: int, load: Load, gbits: float, given: argparse.Namespace) -> tuple[float, ...]:
    """Megabytes per step, hours of an epoch, and the share of them that a worker computes (the efficiency)."""
    step = step_of(exchange, workers, load, gbits, given)
    seconds = sum(step[part] for part in ("own", "waiting", "network", "rows"))
    return step["bytes"] / 1e6, given.interactions / (workers * load.tokens) * seconds / 3600, step["own"] / seconds


def paying(exchange: str, loads: dict[int, Load], gbits: float, given: argparse.Namespace) -> int:
    """The number of workers up to which each doubling pays."""
    hours = {workers: epoch_of(exchange, workers, load, gbits, given)[1] for workers, load in loads.items()}
    return next((workers for workers in hours if hours[workers] < GAIN * hours.get(2 * workers, np.inf)), WORKERS[-1])


def measured_rows(count: int = 50_000, items: int = 1_000_000) -> float:
    """Processor seconds per row that one thread takes to sum and apply received gradients."""
    torch.set_num_threads(1)
    optimizer = RowAdam(nn.Sequential(nn.Embedding(items + 1, 64, sparse=True), nn.Linear(8, 8)).train(), 0.001)
    random, found = np.random.default_rng(0), []
    chances = np.cumsum(np.arange(1, items + 1) ** -0.85)
    for _ in range(9):
        rows = torch.from_numpy(1 + np.searchsorted(chances / chances[-1], random.random(count)))
        gradients = torch.randn(count, 64) * 1e-3
        start = time.process_time()
        optimizer.set_row_gradients("0.weight", rows, gradients.clone())
        optimizer.step()
        found.append(time.process_time() - start)
        optimizer.zero_grad()
    return sorted(found)[4] / count


def show(given: argparse.Namespace) -> None:
    """Print both tables."""
    loads = {batch: {workers: simulated(workers, batch, given) for workers in (1, 2, 4, 8, *WORKERS)}
             for batch in given.batch}  # fmt: skip
    print("| users per worker | workers | tokens | waiting | rows: MB | hours | efficiency | shards: MB | hours | "
          "efficiency |\n" + "| --- " * 10 + "|")  # fmt: skip
    for batch, found in loads.items():
        for workers in (1, *WORKERS):
            load, wait = found[workers], step_of("rows", workers, found[workers], given.gbits[0], given)
            cells = [f"{batch:,}", str(workers), f"{load.tokens:,.0f}", f"{wait['waiting'] / wait['own']:.0%}"]
            for exchange in ("rows", "shards") if workers > 1 else ("rows",):
                size, hours, share = epoch_of(exchange, workers, load, given.gbits[0], given)
                cells += [f"{size:,.1f}" if size < 10 else f"{size:,.0f}", f"{hours:.2g}", f"{share:.0%}"]
            print("| " + " | ".join(cells + [""] * (10 - len(cells))) + " |")
    print("\n| users per worker | exchange | " + " | ".join(f"{gbits:g} Gbit/s" for gbits in given.gbits) + " |\n"
          + "| --- " * (2 + len(given.gbits)) + "|")  # fmt: skip
    for batch, found in loads.items():
        for exchange in ("rows", "shards"):
            best = " | ".join(str(paying(exchange, found, gbits, given)) for gbits in given.gbits)
            print(f"| {batch:,} | {exchange} | {best} |")
    last = loads[given.batch[0]][WORKERS[-1]]
    print(f"\n{WORKERS[-1]} workers of {given.batch[0]} users: the most tokens are {last.token_skew:.2f} times the mean"
          f", the most rows asked for {last.holder_skew:.2f}, the slowest step {last.slowest:.2f}.")  # fmt: skip


def main() -> None:
    """Read the options and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--interactions", type=float, default=1e10)
    add("--items", type=int, default=1_000_000)
    add("--lengths", choices=LENGTHS, default="games", help="log whose lengths of histories are used")
    add("--max-length", type=int, default=50)
    add("--zipf", type=float, default=0.85, help="exponent of popularity (games 0.85, ml-1m 0.70)")
    add("--batch", type=int, nargs="+", default=[128, 1024, 4096], help="users per worker and step")
    add("--gbits", type=float, nargs="+", default=[10, 25, 100], help="the first one is for the large table")
    add("--latency", type=float, default=30, help="of a message, in microseconds")
    add("--cv", type=float, default=0.1, help="deviation of a worker's step, as a share of its mean")
    add("--measure-rows", action="store_true", help="measure the time per received row instead")
    given = parser.parse_args()
    if given.measure_rows:
        print(f"{measured_rows() * 1e6:.2f} microseconds per received row")
    else:
        show(given)


if __name__ == "__main__":
    main()
