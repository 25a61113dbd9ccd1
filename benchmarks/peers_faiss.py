"""Times faiss's exact search, IndexFlatIP: one of the peers of `make bench-peers`, for the job `rank`.

Run it with the Python of its own environment, on vectors that peers_seqrec.py wrote:

    python3.11 -m venv .venv-faiss
    .venv-faiss/bin/pip install -c constraints.txt numpy faiss-cpu
    .venv-faiss/bin/python benchmarks/peers_faiss.py --log games.txt --vectors vectors --json out.json

faiss can't leave out other items for each query. So for unseen items it finds as many more items as the user has seen,
of which the seen ones are then removed. Users with similar numbers of seen items are searched together, so that one
long history does not make all searches longer. Adding the vectors to the index is not timed.
"""

import argparse
from typing import Any

from peers_common import Turns, Vectors, run


def rank(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(args.threads)
    given = Vectors.load(args.vectors)
    index = faiss.IndexFlatIP(given.items.shape[1])
    index.add(given.items)
    users, items = len(given.states), len(given.items)
    counts = np.diff(given.offsets)
    pairs = np.repeat(np.arange(users), counts) * items + given.seen
    # Ten, and as many as were seen, rounded up to a power of two.
    widths = np.minimum(10 + 2 ** np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64), items)

    def every() -> np.ndarray:
        return index.search(given.states, 10)[1]

    def unseen() -> np.ndarray:
        best = np.empty((users, 10), dtype=np.int64)
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            found = index.search(given.states[rows], int(width))[1]
            keys = rows[:, None] * items + found
            is_seen = pairs[np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)] == keys
            first = np.argsort(is_seen, axis=1, kind="stable")[:, :10]
            best[rows] = np.take_along_axis(found, first, axis=1)
        return best

    return given.rank(args, turns, every, unseen) | {"options": faiss.get_compile_options()}


if __name__ == "__main__":
    run("faiss", (), ("faiss-cpu", "numpy"), {"rank": rank})
