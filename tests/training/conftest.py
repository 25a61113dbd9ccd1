"""What several tests of training use."""

import numpy as np
import polars as pl
import pytest

from seqrec.data.prepare import prepare
from seqrec.data.split import Split, split_last_two


@pytest.fixture(scope="module")
def split() -> Split:
    """33 users with 4 to 12 of 30 items."""
    random = np.random.default_rng(0)
    lengths = random.integers(4, 13, 33)
    users = np.repeat(np.arange(33), lengths)
    return split_last_two(prepare(pl.DataFrame({"user_id": users, "item_id": random.integers(30, size=len(users))})))
