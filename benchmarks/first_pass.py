"""Ways to find the best 10 of many vectors by their product with a state: time, recall, memory and time to build.

    python benchmarks/first_pass.py RUN [ITEMS] [--only NAME ...]

One state at a time, on one thread, against a ranking by all scores in float32. The vectors are of two kinds: those of
RUN, a run folder of a factored model, each repeated with noise of half the deviation of its column, with states after
real histories; and independent normal ones with normal states, the worst case for anything that looks for clusters.
The ways take turns, state by state, so that other programs slow all of them down alike. Times to build are of the
processor. Those of faiss and usearch are measured if these libraries are installed; seqrec does not need them.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from seqrec import Predictor, kernels
from seqrec.data.split import all_histories
from seqrec.ranking.scoring import last_states

K, STATES, SEED = 10, 100, 0
Ask = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("items", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for kind, (vectors, states) in {"of a run": of_run(given.run, given.items), "normal": normal(given.items)}.items():
        print(f"{len(vectors):,} vectors {kind} x {vectors.shape[1]}")
        compare(vectors, states, given.only)


def of_run(folder: str, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a run's items with noise, and states after its histories."""
    random = np.random.default_rng(SEED)
    predictor = Predictor.load(folder)
    people = all_histories(predictor.dataset)
    with torch.inference_mode():
        states = last_states(predictor.model, people.take(random.choice(len(people), STATES, replace=False))).numpy()
        base = predictor.model.item_vectors()[1:].float().numpy()
    vectors = base[random.integers(0, len(base), items)]
    vectors += 0.5 * base.std(axis=0) * random.standard_normal(vectors.shape, dtype=np.float32)
    return vectors, states


def normal(items: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent normal vectors and states."""
    random = np.random.default_rng(SEED)
    return tuple(random.standard_normal((count, 64), dtype=np.float32) for count in (items, STATES))  # type: ignore


def compare(vectors: np.ndarray, states: np.ndarray, only: list[str]) -> None:
    """Build each way, let them take turns, and print a row for each."""
    exact = kernels.rank(torch.from_numpy(states), torch.from_numpy(vectors), K).columns.numpy()
    ways: dict[str, Ask] = {}
    built = {}
    for name, build in contenders(vectors):
        if only and not any(name.startswith(wanted) for wanted in only):
            continue
        start = time.thread_time()
        ways[name] = build()
        built[name] = time.thread_time() - start
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    own: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    for state, best in zip(states, exact, strict=True):
        for name, ask in ways.items():
            start, own_start = time.perf_counter(), time.thread_time()
            found = ask(state[None])
            seconds[name].append(time.perf_counter() - start)
            own[name].append(time.thread_time() - own_start)
            shares[name].append(len(np.intersect1d(found, best)) / K)
    for name in ways:
        middle, high = 1000 * np.percentile(seconds[name][5:], [50, 99])
        busy, busiest = 1000 * np.percentile(own[name][5:], [50, 99])
        print(
            f"  {name:28} p50 {middle:6.2f} ms  p99 {high:6.2f} ms  of processor time p50 {busy:6.2f} ms  p99 "
            f"{busiest:6.2f} ms  recall {np.mean(shares[name]):.4f}  built in {built[name]:.1f} s",
            flush=True,
        )


def contenders(vectors: np.ndarray) -> Iterator[tuple[str, Callable[[], Ask]]]:
    """Names, and functions that build an index and return the function that asks it."""
    tensor = torch.from_numpy(vectors)
    yield "all scores", lambda: lambda state: torch.topk(torch.from_numpy(state) @ tensor.T, K).indices.numpy()

    def by_codes() -> Ask:
        codes = kernels.codes_of(tensor)
        return lambda state: kernels.rank_by_codes(torch.from_numpy(state), tensor, codes, K).columns.numpy()

    yield "codes of 8 bits, exact", by_codes
    if importlib.util.find_spec("faiss"):
        for name in ("SQ8", "SQfp16", "IVF1024,Flat", "IVF1024,SQ8", "IVF1024,PQ32x4fs", "HNSW32"):
            for effort in (16, 64, 256) if name.startswith(("IVF", "HNSW")) else (0,):
                yield (
                    f"faiss {name} {effort or ''}".strip(),
                    lambda name=name, effort=effort: of_faiss(vectors, name, effort),
                )
    if importlib.util.find_spec("usearch"):
        yield "usearch f16", lambda: of_usearch(vectors, "f16")
        yield "usearch i8", lambda: of_usearch(vectors, "i8")


INDICES: dict[tuple[int, str], object] = {}


def of_faiss(vectors: np.ndarray, name: str, effort: int) -> Ask:
    """An index of faiss, built once for all efforts; compressed ones score 100 candidates again."""
    import faiss

    faiss.omp_set_num_threads(1)
    key = id(vectors), name
    if key not in INDICES:
        index = faiss.index_factory(vectors.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        random = np.random.default_rng(SEED)
        index.train(vectors[random.choice(len(vectors), min(len(vectors), 50_000), replace=False)])
        index.add(vectors)
        INDICES[key] = index
    index = INDICES[key]
    parameters = None
    if name.startswith("IVF"):
        parameters = faiss.SearchParametersIVF(nprobe=effort)
    elif name.startswith("HNSW"):
        parameters = faiss.SearchParametersHNSW(efSearch=effort)
    if "Flat" in name or name.startswith("HNSW"):
        return lambda state: index.search(state, K, params=parameters)[1]  # type: ignore[attr-defined]

    def again(state: np.ndarray) -> np.ndarray:
        found = index.search(state, 100, params=parameters)[1][0]  # type: ignore[attr-defined]
        return found[np.argsort(-(vectors[found] @ state[0]))[:K]]

    return again


def of_usearch(vectors: np.ndarray, kind: str) -> Ask:
    """A graph of usearch; 100 candidates are scored again."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype=kind)
    index.add(np.arange(len(vectors)), vectors, threads=1)

    def ask(state: np.ndarray) -> np.ndarray:
        found = index.search(state[0], 100, threads=1).keys.astype(np.int64)
        return found[np.argsort(-(vectors[found] @ state[0]))[:K]]

    return ask


if __name__ == "__main__":
    main()
