"""Response time of a Predictor, and a check that threads that share one get the same answers as a single thread.

    python benchmarks/predictor.py RUN [MANY_ITEMS]

RUN is a run folder. Its Predictor answers, on one thread, for single histories of 20 items that are drawn from the
catalogue with a fixed seed. Then an untrained SASRec with MANY_ITEMS items (by default 1,000,000) and width 64 does the
same, and its answers are compared with a full sort of float64 scores. Last, 1 to 8 threads ask RUN's Predictor 10,000
times.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import torch

from seqrec import Predictor, SASRec, SASRecConfig
from seqrec.data.batches import histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.id_table import IdTable
from seqrec.ranking.scoring import last_states

LENGTH, K, SEED = 20, 10, 0


def main(run: str, many: int = 1_000_000) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    predictor = Predictor.load(run)
    print(f"{run}: loaded in {time.perf_counter() - start:.2f} s, {predictor.dataset.num_items:,} items")
    asked = histories(predictor, 10_000)
    show("one history of 20", lambda number: predictor.recommend(asked[number % 1000], K), 2000)
    show("a thousand at once", lambda number: predictor.recommend(asked[:1000], K), 10)
    show("an empty history", lambda number: predictor.recommend([], K), 200)
    large = untrained(many)
    print(f"{many:,} items x 64:")
    of_large = histories(large, 100)
    show("one history of 20", lambda number: large.recommend(of_large[number % 100], K), 100)
    show("without 1,000 denied items", lambda number: large.recommend(of_large[0], K, deny=range(1000)), 20)
    print(f"  equal to a full sort in float64: {sum(map(is_exact, [large] * 20, of_large))} of 20")
    threads(predictor, asked)


def histories(predictor: Predictor, count: int) -> list[list[Any]]:
    """Histories of distinct items, drawn uniformly."""
    random = np.random.default_rng(SEED)
    ids = predictor.dataset.item_ids
    return [ids.gather(random.choice(len(ids), LENGTH, replace=False)).to_list() for _ in range(count)]


def show(name: str, ask: Callable[[int], Any], count: int) -> None:
    """Print the time of one call, and the CPU time of this thread; the difference goes to other programs."""
    for number in range(min(count, 20)):
        ask(number)
    seconds, own = [], []
    for number in range(count):
        start, cpu_start = time.perf_counter(), time.thread_time()
        ask(number)
        seconds.append(time.perf_counter() - start)
        own.append(time.thread_time() - cpu_start)
    middle, high = 1000 * np.percentile(seconds, [50, 99])
    busy = 1000 * np.percentile(own, 50)
    print(f"  {name}: p50 {middle:.2f} ms, p99 {high:.2f} ms; CPU p50 {busy:.2f} ms ({count} times)")


def untrained(items: int) -> Predictor:
    """A SASRec with many items and random weights."""
    torch.manual_seed(SEED)
    model = SASRec(SASRecConfig(embedding_dim=64), items).eval()
    one, ids = np.array([1], dtype=np.int32), IdTable(pl.Series("item_id", np.arange(items)))
    times, offsets = np.array([0], dtype=np.int64), np.array([0, 1], dtype=np.int64)
    users = IdTable(pl.Series("user_id", [1]))
    return Predictor(model, Dataset(one, times, offsets, users, ids, has_timestamps=False))


def is_exact(predictor: Predictor, history: list[Any]) -> bool:
    """Whether the list equals that of a full sort, except for items whose scores are equal in float32."""
    found = predictor.recommend(history, K)
    ids = predictor.dataset.item_indices(history)
    with torch.inference_mode():
        state = last_states(predictor.model, histories_of(predictor.dataset, [ids])).double()[0]
        scores = (predictor.model.item_vectors().double() @ state).numpy()
    scores[[0, *ids]] = -np.inf
    mine = scores[predictor.dataset.item_indices([item for item, _ in found])]
    return bool(np.allclose(mine, np.sort(scores)[::-1][:K], rtol=1e-6, atol=0))


def threads(predictor: Predictor, asked: list[list[Any]]) -> None:
    """Ask the same questions from one thread and from several, and compare the answers."""
    wanted = None
    for count in (1, 2, 4, 8):
        start = time.perf_counter()
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(lambda history: predictor.recommend(history, K), asked))
        seconds = time.perf_counter() - start
        wanted = wanted or found
        same = "the same answers" if found == wanted else "OTHER ANSWERS"
        print(f"{count} threads ask {len(asked):,} times: {len(asked) / seconds:,.0f} per second, {same}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
