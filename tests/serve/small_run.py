"""A log of some users who walk through a small catalogue, and runs trained on it."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec import Recommender

ITEMS, USERS = 40, 60
TITLES = {0: "Amélie (2001)", 1: "<b>Bold & brave</b>", 2: "The Third Man", 3: "third man, again"}
OPTIONS: dict[str, Any] = {
    "embedding_dim": 16, "max_length": 8, "epochs": 2, "batch_size": 16, "threads": 1, "evaluate_every": 0,
    "split": "last-two", "seed": 1,
}  # fmt: skip


def make_log() -> pl.DataFrame:
    """Users who walk through the catalogue, with times a minute apart."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        item = int(random.integers(ITEMS))
        for step in range(4 + user % 9):
            rows.append((f"u{user}", f"i{item}", 1_600_000_000 + 60 * step))
            item = (item + int(random.integers(1, 4))) % ITEMS
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def make_items() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(ITEMS)],
            "title": [TITLES.get(item, f"Film {item}") for item in range(ITEMS)],
            "categories": [["even" if item % 2 == 0 else "odd"] for item in range(ITEMS)],
        }
    )


def fit(folder: Path, model: str = "sasrec", **options: Any) -> Path:
    Recommender(model, **OPTIONS | options).fit(make_log(), items=make_items()).save(folder)
    return folder
