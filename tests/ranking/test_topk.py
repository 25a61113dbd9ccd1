import copy
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec.data.batches import Batch, histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.ranking.scoring import Catalogue, evaluation_mode, last_states
from seqrec.ranking.topk import best, by_popularity, candidates, most_popular, nearest, unit_vectors


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(0)
    users = random.integers(40, size=400)
    return prepare(
        pl.DataFrame({"user_id": users, "item_id": random.integers(30, size=400), "timestamp": np.arange(400)})
    )


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> SASRec:
    torch.manual_seed(0)
    return SASRec(SASRecConfig(max_length=6, embedding_dim=8, num_blocks=1), dataset.num_items)


@dataclass(frozen=True)
class FixedConfig:
    max_length: int = 1


class Fixed(Model):
    """Scores depend only on the last item: rows of a given table."""

    Config = FixedConfig
    FACTORED = False

    def __init__(self, scores: np.ndarray) -> None:
        super().__init__()
        self.config = FixedConfig()
        self.num_items = scores.shape[1] - 1
        self.register_buffer("scores", torch.from_numpy(scores.astype(np.float32)))

    def encode(self, batch: Batch) -> Tensor:
        return batch.items[:, None]

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        rows = self.scores[hidden[:, 0]]
        if items is None:
            return rows
        return rows[:, items] if items.dim() == 1 else rows.gather(1, items)


def table(num_items: int, levels: int, seed: int = 0) -> np.ndarray:
    """A model whose scores have many ties."""
    return np.random.default_rng(seed).integers(levels, size=(num_items + 1, num_items + 1))


def naive(
    scores: np.ndarray, histories: Histories, k: int, keep_seen: bool, allow: list[int] | None, deny: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    items = np.zeros((len(histories), k), dtype=np.int64)
    values = np.full((len(histories), k), -np.inf, dtype=np.float32)
    for row, (start, end) in enumerate(zip(histories.starts, histories.ends, strict=True)):
        seen = set(histories.dataset.items[start:end].tolist())
        usable = [
            item
            for item in range(1, scores.shape[1])
            if (keep_seen or item not in seen) and (allow is None or item in allow) and item not in deny
        ]
        usable.sort(key=lambda item: (-scores[row, item], item))
        for place, item in enumerate(usable[:k]):
            items[row, place], values[row, place] = item, scores[row, item]
    return items, values


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize(
    ("allow", "deny"), [(None, []), ([2, 5, 7, 11, 28], []), (None, [1, 2, 3, 30]), ([1, 2, 3, 4], [2]), ([], [])]
)
@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("factored", [True, False])
def test_best_is_a_full_sort(dataset, model, keep_seen, allow, deny, k, factored):
    histories = all_histories(dataset)
    last = dataset.items[histories.ends - 1]
    if factored:
        with evaluation_mode(model):
            scores = model.score(last_states(model, histories)).numpy()
    else:
        ties = table(dataset.num_items, 4)
        scores = ties[last].astype(np.float32)
        model = Fixed(ties)
    items, values = best(
        model,
        histories,
        k,
        keep_seen=keep_seen,
        allow=None if allow is None else np.array(allow, dtype=np.int64),
        deny=np.array(deny, dtype=np.int64),
    )
    expected_items, expected_values = naive(scores, histories, k, keep_seen, allow, deny)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_allclose(values, expected_values, rtol=1e-4, atol=1e-5)
    assert (items.dtype, values.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("cells", [1, 100, 16 * 40 * 7])
@pytest.mark.parametrize("factored", [True, False])
def test_blocks_of_the_catalogue_change_nothing(dataset, model, monkeypatch, cells, factored):
    model = model if factored else Fixed(table(dataset.num_items, 3))
    arguments = {"allow": np.arange(3, 29), "deny": np.array([7, 8])}
    whole = [best(model, all_histories(dataset), 5), best(model, all_histories(dataset), 5, **arguments)]
    monkeypatch.setattr("seqrec.ranking.scoring.CELLS", cells)
    blocks = [best(model, all_histories(dataset), 5), best(model, all_histories(dataset), 5, **arguments)]
    for (items, values), (block_items, block_values) in zip(whole, blocks, strict=True):
        np.testing.assert_array_equal(items, block_items)
        np.testing.assert_allclose(values, block_values, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_batch_size_changes_nothing(dataset, model, monkeypatch, batch_size):
    items, values = best(model, all_histories(dataset), 5)
    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", 11)
    again, same = best(model, all_histories(dataset), 5, batch_size=batch_size)
    np.testing.assert_array_equal(items, again)
    np.testing.assert_allclose(values, same, atol=1e-5)


def test_seen_items_are_those_of_the_whole_history(dataset):
    constant = Fixed(np.zeros((dataset.num_items + 1, dataset.num_items + 1)))
    items, _ = best(constant, histories_of(dataset, [np.array([1, 2, 3, 9])]), 3)
    assert items.tolist() == [[4, 5, 6]]


def test_an_empty_history_gets_nothing(dataset, model):
    histories = histories_of(dataset, [np.array([4, 5]), np.array([], dtype=int), np.array([6])])
    items, values = best(model, histories, 3)
    assert (items[1] == 0).all()
    assert np.isneginf(values[1]).all()
    assert (items[[0, 2]] > 0).all()
    with evaluation_mode(model), pytest.raises(ValueError, match="empty history"):
        last_states(model, histories)
    nobody, _ = best(model, histories.take(slice(0, 0)), 3)
    assert nobody.shape == (0, 3)


def test_last_states_are_those_of_each_history_alone(dataset, model, monkeypatch):
    monkeypatch.setattr("seqrec.ranking.scoring.ATTENTION_CELLS", 50)
    histories = all_histories(dataset)
    with evaluation_mode(model):
        states = last_states(model, histories)
        for row in range(len(histories)):
            alone = last_states(model, histories.take(slice(row, row + 1)))
            torch.testing.assert_close(states[row : row + 1], alone, atol=1e-5, rtol=1e-4)
        shorter = last_states(model, histories, max_length=2)
    assert not torch.allclose(states, shorter)


def test_scores_that_are_not_numbers_are_refused(dataset, model):
    scores = np.zeros((dataset.num_items + 1, dataset.num_items + 1))
    scores[:, 17] = np.nan
    with pytest.raises(InputError, match="lower the learning rate"):
        best(Fixed(scores), all_histories(dataset), 3)


def neighbours(model: Model, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    with evaluation_mode(model):
        return nearest(Catalogue(model, vectors=unit_vectors(model)), items, k)


@pytest.mark.parametrize("few", [1, 100])
def test_nearest_in_blocks(model, monkeypatch, few):
    monkeypatch.setattr("seqrec.ranking.scoring.FEW", few)  # the compiled loops, and torch
    items = np.array([3, 1, 17, 3])
    whole = neighbours(model, items, 4)
    assert whole[0].shape == whole[1].shape == (4, 4)
    vectors = model.item_vectors().detach().double().numpy()[1:]
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, item in enumerate(items.tolist()):
        cosines = units @ units[item - 1]
        cosines[item - 1] = -2
        np.testing.assert_array_equal(whole[0][row], np.argsort(-cosines)[:4] + 1)
        np.testing.assert_allclose(whole[1][row], np.sort(cosines)[::-1][:4], atol=1e-5)
    monkeypatch.setattr("seqrec.ranking.scoring.CELLS", 1)
    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", 3)
    found = neighbours(model, items, 4)
    assert np.array_equal(found[0], whole[0])
    np.testing.assert_allclose(found[1], whole[1], rtol=1e-5)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.item_embedding.weight[5] = torch.nan
    with pytest.raises(InputError, match="not numbers"):
        neighbours(broken, items, 4)


@pytest.mark.parametrize(
    ("allow", "deny"), [(None, None), ([2, 5, 1], None), (None, [4, 1]), ([1, 2, 4], [4]), ([], [])]
)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_most_popular_come_by_count_and_then_by_index(allow, deny, k):
    counts = np.array([0, 3, 7, 3, 9, 0, 7])
    left = [item for item in range(1, 7) if (allow is None or item in allow) and item not in (deny or [])]
    left.sort(key=lambda item: (-counts[item], item))
    chosen = candidates(6, *(None if ids is None else np.array(ids, dtype=np.int64) for ids in (allow, deny)))
    items, scores = most_popular(by_popularity(counts), counts, k, *chosen)
    rest = k - len(left[:k])
    assert items.tolist() == left[:k] + [0] * rest
    assert scores.tolist() == [*counts[left[:k]].tolist(), *[-np.inf] * rest]


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_is_restored(dataset, model, training):
    model.train(training)
    best(model, all_histories(dataset), 1)
    assert model.training is training
    assert model.blocks[0].training is training
    model.eval()


def test_wrong_arguments_are_refused(dataset, model):
    with pytest.raises(ValueError, match="item index 99"):
        best(model, all_histories(dataset), 1, allow=np.array([99]))
    with pytest.raises(ValueError, match="item index -1"):
        best(model, all_histories(dataset), 1, deny=np.array([-1]))
    with pytest.raises(ValueError, match="k is 0"):
        best(model, all_histories(dataset), 0)
