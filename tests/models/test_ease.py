"""EASE against its definition: least squares for each item, with a weight of 0 for the item itself."""

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, Recommender
from seqrec.data.batches import histories_of, pack
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories
from seqrec.models.ease import EASE, EASEConfig


def random_lists(seed: int, users: int, items: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, items + 1, random.integers(1, 9)).tolist() for _ in range(users)]


def histories(lists: list[list[int]], items: int) -> Histories:
    dataset = prepare(pl.DataFrame({"user_id": [0] * items, "item_id": np.arange(1, items + 1)}))
    return histories_of(dataset, [np.array(history, dtype=np.int32) for history in lists])


def by_least_squares(lists: list[list[int]], items: int, l2: float) -> np.ndarray:
    """The weights ``float64[I + 1, I + 1]``, one column at a time, from the other items alone."""
    x = np.zeros((len(lists), items + 1))
    for row, history in enumerate(lists):
        x[row, history] = 1
    weights = np.zeros((items + 1, items + 1))
    for item in range(1, items + 1):
        others = [other for other in range(1, items + 1) if other != item]
        a = x[:, others]
        weights[others, item] = np.linalg.solve(a.T @ a + l2 * np.eye(len(others)), a.T @ x[:, item])
    return weights


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("double", [0, 8000])
def test_weights_are_those_of_least_squares(seed, double, monkeypatch):
    monkeypatch.setattr("seqrec.models.ease.DOUBLE", double)
    items, l2 = 5 + 4 * seed, (0.5, 3.0)[seed % 2]
    lists = random_lists(seed, 30, items)
    given = histories(lists, items)
    model = EASE(EASEConfig(l2=l2), items)
    model.count(given)
    expected = by_least_squares(lists, items, l2)
    np.testing.assert_allclose(model.weights.numpy(), expected, atol=1e-5)
    batch = pack(given, 200)
    scores = model.score(model.encode_last(batch)).numpy()
    naive = np.stack([expected[sorted(set(history))].sum(axis=0) for history in lists])
    np.testing.assert_allclose(scores, naive, atol=1e-4)
    assert torch.equal(model.encode(batch)[batch.last], model.encode_last(batch))
    some = torch.tensor([1, items])
    np.testing.assert_allclose(model.score(model.encode_last(batch), some).numpy(), naive[:, [1, items]], atol=1e-4)
    own = some.expand(len(lists), 2)
    np.testing.assert_allclose(model.score(model.encode_last(batch), own).numpy(), naive[:, [1, items]], atol=1e-4)


def test_only_the_last_items_are_seen():
    given = histories([[1, 2, 3, 5, 4, 4], [3]], 5)
    model = EASE(EASEConfig(l2=1.0, max_length=3), 5)
    model.count(given)
    assert model.encode_last(pack(given, 3)).sort(dim=1).values.tolist() == [[0, 4, 5], [0, 0, 3]]


def test_too_many_items_are_refused():
    with pytest.raises(InputError, match="at most 20,000 items, not 20,001; fit transitions"):
        EASE(EASEConfig(), 20_001)


@pytest.mark.parametrize("l2", [0, -1, float("nan")])
def test_impossible_regularisation_is_refused(l2):
    with pytest.raises(InputError, match="l2"):
        Recommender("ease", l2=l2)
