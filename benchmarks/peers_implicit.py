"""Times implicit's topk: one of the peers of `make bench-peers`, for the job `rank`.

Run it with the Python of its own environment, on vectors that peers_seqrec.py wrote:

    python3.11 -m venv .venv-implicit
    .venv-implicit/bin/pip install -c constraints.txt numpy implicit
    .venv-implicit/bin/python benchmarks/peers_implicit.py --log games.txt --vectors vectors --json out.json

It is the function that recommends in all its matrix factorisations, and leaves out the seen items itself.
"""

import argparse
from typing import Any

from peers_common import Turns, Vectors, run


def rank(args: argparse.Namespace, turns: Turns) -> dict[str, Any]:
    import numpy as np
    from implicit.cpu.topk import topk
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    given = Vectors.load(args.vectors)
    ones = np.ones(len(given.seen), dtype=np.float32)
    seen = csr_matrix((ones, given.seen, given.offsets), shape=(len(given.states), len(given.items)))

    def found(seen: Any = None) -> np.ndarray:
        return topk(given.items, given.states, 10, filter_query_items=seen, num_threads=args.threads)[0]

    # implicit has threads of its own, and advises that BLAS should have one.
    with threadpool_limits(1, "blas"):
        return given.rank(args, turns, found, lambda: found(seen))


if __name__ == "__main__":
    run("implicit", (), ("implicit", "scipy", "numpy"), {"rank": rank})
