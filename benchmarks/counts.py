"""Counting pairs of items that are near each other, and what adding the counts to scores costs.

    python benchmarks/counts.py --interactions 10000000 --items 1000000

The log is synthetic: histories of 20 items on average, popularity by a power law. The output is the time to count pairs
up to 10 steps apart, the size of the result, and the highest memory; then the time of finding the best ten for a state,
alone, with 2,000 numbers added to its scores, and with the counts of 20 items summed up and added.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from seqrec import kernels
from seqrec.models.counting import count_pairs, sum_rows

ROWS = 512


def fastest(functions: dict[str, Callable[[], Any]], times: int = 9) -> dict[str, float]:
    """The least processor time of each function in seconds; they alternate."""
    found = dict.fromkeys(functions, float("inf"))
    for _ in range(times):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            found[name] = min(found[name], time.thread_time() - start)
    return found


def synthetic(random: np.random.Generator, interactions: int, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Items ``int32[N]`` and the limits of their histories ``int64[M + 1]``."""
    chances = np.cumsum(np.arange(1, num_items + 1) ** -0.9)
    places = np.searchsorted(chances / chances[-1], random.random(interactions))
    items = (random.permutation(num_items) + 1).astype(np.int32)[places]
    cuts = np.sort(random.integers(0, interactions, interactions // 20 - 1))
    return items, np.concatenate([[0], cuts, [interactions]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random = np.random.default_rng(0)
    items, limits = synthetic(random, options.interactions, options.items)
    weights = np.arange(1, 11, dtype=np.float32) ** -0.5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for backward in (None, weights):
        start, used = time.perf_counter(), time.process_time()
        table = count_pairs(items, limits[:-1], limits[1:], weights, backward, options.items, 100)
        start, used = time.perf_counter() - start, time.process_time() - used
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{'forward' if backward is None else 'both ways'}: {start:.1f} s, {used:.1f} s of processor time, "
            f"{len(table.columns):,} pairs; {memory / 1e6:.2f} GB at most, {before / 1e6:.2f} before"
        )
    del table
    table = count_pairs(items, limits[:-1], limits[1:], weights, None, options.items, 100)
    states, vectors = torch.randn(ROWS, 64), torch.randn(options.items + 1, 64)
    offsets = np.arange(ROWS + 1) * 20
    chosen, coefficients = items[: offsets[-1]], random.random(offsets[-1]).astype(np.float32)
    rows = torch.arange(ROWS).repeat_interleave(2000)
    columns = np.concatenate([np.sort(random.choice(options.items, 2000, replace=False)) for _ in range(ROWS)]) + 1
    many = rows, torch.from_numpy(columns), torch.rand(len(rows))

    def summed() -> None:
        sums = sum_rows(table, offsets, chosen, coefficients)
        own = np.repeat(np.arange(ROWS), np.diff(sums.offsets))
        added = torch.from_numpy(own), torch.from_numpy(sums.columns), torch.from_numpy(sums.values)
        kernels.rank(states, vectors, 10, added=added)

    found = fastest(
        {
            "alone": lambda: kernels.rank(states, vectors, 10),
            "2,000 numbers per state added": lambda: kernels.rank(states, vectors, 10, added=many),
            "sums of counts made and added": summed,
        }
    )
    for name, seconds in found.items():
        print(f"{name}: {seconds / ROWS * 1e6:.1f} µs per state, {seconds / found['alone']:.2f} times")


if __name__ == "__main__":
    main()
