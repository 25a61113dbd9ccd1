"""Histories in random order: what stays, what goes, and that nothing of the order is left."""

from collections import Counter
from itertools import permutations

import numpy as np
import polars as pl
import pytest

from seqrec import Dataset, prepare
from seqrec.data.histories import Histories
from seqrec.data.shuffled import without_order
from seqrec.data.split import SplitConfig
from seqrec.models import build_model
from seqrec.ranking.protocols import ranks


def log(seed: int, users: int = 80) -> Dataset:
    """Histories of 1 to 12 items; times differ between users."""
    random = np.random.default_rng(seed)
    rows = [
        (user, int(item), 1_600_000_000 + int(1000 * random.integers(1, 9) * step) + user)
        for user in range(users)
        for step, item in enumerate(random.integers(0, 40, random.integers(1, 13)))
    ]
    return prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


def lists(histories: Histories) -> list[list[int]]:
    return [
        histories.dataset.items[start:end].tolist() for start, end in zip(histories.starts, histories.ends, strict=True)
    ]


@pytest.mark.parametrize("how", ["last-two", "time"])
@pytest.mark.parametrize("seed", range(4))
def test_only_the_order_of_histories_changes(how: str, seed: int) -> None:
    dataset = log(seed)
    before = dataset.items.copy()
    config = SplitConfig(split=how)  # type: ignore[arg-type]
    split = config.apply(dataset)
    found = without_order(split, seed)
    np.testing.assert_array_equal(dataset.items, before)
    parts = [(split.train, found.train)]
    for targets, other in ((split.valid, found.valid), (split.test, found.test)):
        np.testing.assert_array_equal(targets.items, other.items)
        assert other.held_out == targets.held_out
        parts.append((targets.histories, other.histories))
    for histories, other in parts:
        np.testing.assert_array_equal(histories.users, other.users)
        old, new = lists(histories), lists(other)
        assert [sorted(one) for one in old] == [sorted(one) for one in new]
        assert old != new
        np.testing.assert_array_equal(other.dataset.timestamps, dataset.timestamps)
        np.testing.assert_array_equal(other.dataset.seen_keys, dataset.seen_keys)  # the candidates stay
    again = config.apply(found.train.dataset)  # as a fit splits it
    again.check()
    assert lists(again.train) == lists(found.train)
    assert lists(again.valid.histories) == lists(found.valid.histories)
    np.testing.assert_array_equal(again.valid.items, split.valid.items)
    np.testing.assert_array_equal(again.test.items, split.test.items)


def test_every_order_is_as_likely() -> None:
    """Six orders of three items before the test. The validation item, the last of them, has no place of its own."""
    rows = [(user, step, step) for user in range(3000) for step in range(4)]
    split = SplitConfig(split="last-two").apply(
        prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    )
    found = without_order(split, 5)
    counts = Counter(tuple(one) for one in lists(found.test.histories))
    assert set(counts) == set(permutations((1, 2, 3)))
    assert all(abs(count - 500) < 5 * np.sqrt(500) for count in counts.values())
    assert set(Counter(tuple(one) for one in lists(found.train))) == {(1, 2), (2, 1)}


def test_a_seed_fixes_the_order() -> None:
    split = SplitConfig(split="last-two").apply(log(1))
    one, same, other = (without_order(split, seed) for seed in (3, 3, 4))
    assert lists(one.train) == lists(same.train)
    assert lists(one.test.histories) == lists(same.test.histories)
    assert lists(one.train) != lists(other.train)


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_a_model_that_ignores_the_order_ranks_alike(protocol: str) -> None:
    split = SplitConfig(split="last-two").apply(log(2))
    found = []
    for one in (split, without_order(split, 0)):
        model = build_model("popularity", {}, split.train.dataset.num_items, split.train.dataset.num_users)
        model.count(one.train)
        found.append(ranks(model, one.test, protocol=protocol, negatives=5))  # type: ignore[arg-type]
    np.testing.assert_array_equal(*found)
