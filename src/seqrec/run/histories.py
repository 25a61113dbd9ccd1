"""Histories as the lists of users.parquet."""

from typing import Any

import numpy as np
import polars as pl


def met_of(users: pl.DataFrame) -> dict[str, Any]:
    """What users met in interactions that the filters dropped, where the run has any."""
    if "met" not in users.columns:
        return {}
    lengths = users["met"].list.len().to_numpy()
    return {
        "met_items": users["met"].explode().drop_nulls().to_numpy().astype(np.int32, copy=False),
        "met_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    }


def lists_of(values: np.ndarray, offsets: np.ndarray, dtype: Any) -> pl.Series:
    """One list a user, without a Python loop."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    flat = pl.DataFrame({"user": users, "value": pl.Series(np.asarray(values), dtype=dtype)})
    return flat.group_by("user", maintain_order=True).agg("value")["value"]
