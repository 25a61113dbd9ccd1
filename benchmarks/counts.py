"""Counting transitions at scale, and what adding the counts to scores costs.

    python benchmarks/counts.py --interactions 10000000 --items 1000000

The log is synthetic: histories of 20 items on average, popularity by a power law. The output is the time to count with
the largest distance that is tried and with the default one, the size of the table, and the highest memory; then the
time of finding the best ten items after a history by SASRec alone and with the counts; and the time of an epoch of
SASRec, from some steps.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch

from seqrec import Dataset, SASRec, SASRecConfig, Transitions, TransitionsConfig
from seqrec.data.id_table import IdTable
from seqrec.data.split import all_histories
from seqrec.models.transitions import Addition
from seqrec.ranking.additions import rank_after, recounted
from seqrec.ranking.scoring import Catalogue, last_states
from seqrec.tools.bench import SOFTMAX
from seqrec.tools.steps import time_steps

ROWS = 512


def fastest(functions: dict[str, Callable[[], Any]], times: int = 9) -> dict[str, float]:
    """The least processor time of each function in seconds; they alternate."""
    found = dict.fromkeys(functions, float("inf"))
    for _ in range(times):
        for name, function in functions.items():
            start = time.process_time()
            function()
            found[name] = min(found[name], time.process_time() - start)
    return found


def synthetic(random: np.random.Generator, interactions: int, num_items: int, dated: bool = False) -> Dataset:
    """A log of histories of 20 items on average; with times, a minute after another, if it is dated."""
    chances = np.cumsum(np.arange(1, num_items + 1) ** -0.9)
    places = np.searchsorted(chances / chances[-1], random.random(interactions))
    items = (random.permutation(num_items) + 1).astype(np.int32)[places]
    cuts = np.unique(random.integers(1, interactions, interactions // 20 - 1))
    offsets = np.concatenate([[0], cuts, [interactions]])
    users, catalogue = (
        IdTable(pl.Series(f"{kind}_id", np.arange(count)))
        for kind, count in (("user", len(offsets) - 1), ("item", num_items))
    )
    return Dataset(items, np.arange(interactions) * 60, offsets, users, catalogue, has_timestamps=dated)


def memory() -> float:
    """The highest memory of the process so far, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def counted(dataset: Dataset, **constants: Any) -> Transitions:
    """Count, and print what it takes."""
    before = memory()
    start, used = time.perf_counter(), time.process_time()
    model = Transitions(TransitionsConfig(**constants), dataset.num_items)
    model.count(all_histories(dataset))
    start, used = time.perf_counter() - start, time.process_time() - used
    size = (model.columns.nbytes + model.values.nbytes + model.offsets.nbytes) / 1e9
    print(
        f"{constants}: {start:.1f} s, {used:.1f} s of processor time, {len(model.columns):,} pairs, {size:.2f} GB; "
        f"at most {memory():.2f} GB, {before:.2f} before"
    )
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = synthetic(np.random.default_rng(0), options.interactions, options.items)
    counted(dataset, distance=50)
    counted(dataset, distance=50, neighbours=0.0)
    table = counted(dataset)
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(), dataset.num_items).eval()
    model.addition = Addition(table, 2.0)
    histories = all_histories(dataset).take(slice(0, ROWS))
    with torch.inference_mode():
        states = last_states(model, histories)
        ways = {name: Catalogue(one) for name, one in {"alone": recounted(model, None), "with counts": model}.items()}
        found = fastest({name: lambda one=one: rank_after(one, histories, states, 10) for name, one in ways.items()})
    for name, seconds in found.items():
        print(f"best ten, {name}: {seconds / ROWS * 1e6:.1f} µs a state, {seconds / found['alone']:.2f} times")
    del model, ways, table
    step = time_steps(all_histories(dataset), SASRecConfig(), SOFTMAX, 20)
    seconds = dataset.num_interactions / step["tokens_per_second"]
    print(f"an epoch of sasrec with {SOFTMAX.loss}: {seconds:.0f} s, from 20 steps of {step['tokens']:,} tokens")


if __name__ == "__main__":
    main()
