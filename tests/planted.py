"""Logs in which what comes next can be learnt from times alone."""

import numpy as np
import polars as pl


def planted_log(users: int = 600, items: int = 20, length: int = 10, seed: int = 0) -> pl.DataFrame:
    """The time between the last two items decides which of its two successors follows the last one."""
    random = np.random.default_rng(seed)
    long = random.random((users, length)) < 0.5
    gaps = np.where(long, random.integers(20_000, 90_000, long.shape), random.integers(30, 120, long.shape))
    walk = np.empty((users, length), dtype=np.int64)
    walk[:, 0] = random.integers(items, size=users)
    for step in range(1, length):
        walk[:, step] = (walk[:, step - 1] + np.where(long[:, step - 1], 7, 1)) % items
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), length),
            "item_id": walk.ravel(),
            "timestamp": (10**9 + gaps.cumsum(axis=1)).ravel(),
        }
    )
