"""Ranking by sparse scores gives what a full sort of all scores gives, to the last bit."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec.data.batches import Batch, histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import all_histories, split_last_two
from seqrec.errors import InputError
from seqrec.models import build_model
from seqrec.models.base import Model
from seqrec.models.counting import Rows
from seqrec.models.sparse import SparseModel, SparseScores
from seqrec.predictor import Predictor
from seqrec.ranking import protocols, sparse
from seqrec.ranking.baselines import NAMES
from seqrec.ranking.prior import sorted_prior
from seqrec.ranking.scoring import Catalogue, evaluation_mode, last_states
from seqrec.ranking.sparse import rank_sparse
from seqrec.ranking.topk import best

ITEMS = 40
#: What the prior may be. The norms make different ones of ``near`` equal.
PRIORS: dict[str, Any] = {
    "numbers": lambda random: random.normal(size=ITEMS + 1),
    "equal": lambda random: np.ones(ITEMS + 1),
    "few": lambda random: random.integers(-1, 2, ITEMS + 1) * -0.5,  # 0 of both signs
    "near": lambda random: 0.25 + random.integers(0, 30, ITEMS + 1) * 2.0**-25,
    "infinite": lambda random: random.choice([-np.inf, 0.0, 1.0], ITEMS + 1),
}


@dataclass(frozen=True)
class GivenConfig:
    max_length: int = 1


class Given(SparseModel):
    """Given scores; a hidden state is its number."""

    def __init__(self, prior: np.ndarray, scores: SparseScores) -> None:
        super().__init__()
        self.config, self.num_items = GivenConfig(), len(prior) - 1
        self.values, self.scores = torch.from_numpy(prior.astype(np.float32)), scores

    def prior(self) -> Tensor:
        return self.values

    def sparse_scores(self, hidden: Tensor) -> SparseScores:
        return self.scores._replace(which=self.scores.which[hidden[:, 0].numpy()])


class Dense(Model):
    """Another model, of which nothing is known but its scores of all items."""

    FACTORED = False

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.config, self.num_items = model, model.config, model.num_items

    def encode(self, batch: Batch) -> Tensor:
        return self.model.encode(batch)

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        return self.model.score(hidden, items)


@pytest.fixture(params=["as it is", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "ROWS", 7)
    if request.param == "numpy":
        monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)


def scores_of(random: np.random.Generator, states: int, rows: int, added: bool) -> SparseScores:
    """Random scores, with no entries in some rows and all items in others."""
    there = random.random((rows, ITEMS + 1)) < random.choice([0, 0.2, 0.5, 1], rows)[:, None]
    there[:, 0] = False
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int64)
    values = random.choice([-np.inf, -1.0, 0.0, 0.25, 1.0, 2.5], there.sum()).astype(np.float32)
    norms = random.choice([0.0, 1.0, 300.0], rows).astype(np.float32)
    return SparseScores(random.integers(rows, size=states), norms, Rows(offsets, np.nonzero(there)[1], values), added)


def naive(prior: np.ndarray, scores: SparseScores, state: int) -> np.ndarray:
    """The scores of one state, by their definition: ``float32[I + 1]``."""
    row = int(scores.which[state])
    found = prior.astype(np.float32) - scores.norms[row]
    for entry in range(scores.rows.offsets[row], scores.rows.offsets[row + 1]):
        item, value = scores.rows.columns[entry], scores.rows.values[entry]
        found[item] = found[item] + value if scores.added else value
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", PRIORS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("chosen", [None, [2, 3, 5, 11, 17, 18, 19, 30, 40], [7]])
def test_ranking_is_a_full_sort(kind: str, added: bool, chosen: list[int] | None) -> None:
    random = np.random.default_rng([added, len(kind)])
    states = 18
    prior, scores = PRIORS[kind](random), scores_of(random, states, 11, added)
    model = Given(prior, scores)
    items = None if chosen is None else np.array(chosen)
    columns = list(range(1, ITEMS + 1)) if chosen is None else list(range(len(chosen)))
    pairs = np.sort(random.integers(states, size=60)), random.choice(columns, 60)  # some of them twice
    targets = random.choice(columns, states)
    hidden = torch.arange(states)[:, None]
    for denied, left_out in ((None, pairs), (np.array(columns[::4]), None), (np.array(columns), pairs)):
        gone = set() if denied is None else set(denied.tolist())
        ignored = set() if left_out is None else set(zip(*map(np.ndarray.tolist, left_out), strict=True))
        for k in (0, 1, 5, ITEMS + 3):
            with evaluation_mode(model):
                catalogue = Catalogue(model, items)
                assert catalogue.vectors is None
                ways = {"left_out": left_out, "denied": denied}
                found = rank_sparse(catalogue, hidden, k, targets=targets, **ways)  # type: ignore[arg-type]
                listed = rank_sparse(catalogue, hidden, k, **ways)  # type: ignore[arg-type]
            assert listed.greater is listed.ties is None
            assert found.greater is not None
            assert found.ties is not None
            np.testing.assert_array_equal(listed.columns, found.columns)
            for state in range(states):
                row = naive(prior, scores, state)[slice(None) if items is None else items]
                usable = [c for c in columns if c not in gone and (state, c) not in ignored]
                listing = sorted((c for c in usable if row[c] > -np.inf), key=lambda c: (-row[c], c))[:k]
                rest = k - len(listing)
                assert found.columns[state].tolist() == listing + [-1] * rest
                assert found.scores[state].tolist() == [*row[listing].tolist(), *[-np.inf] * rest]
                limit = row[targets[state]]
                if targets[state] in usable:
                    expected = sum(row[c] > limit for c in usable), sum(row[c] == limit for c in usable) - 1
                    expected = (-1, 0) if limit == -np.inf else expected
                    assert (found.greater[state], found.ties[state]) == expected


def test_any_number_of_threads_gives_the_same() -> None:
    random = np.random.default_rng(4)
    model = Given(PRIORS["near"](random), scores_of(random, 100, 30, True))
    pairs = np.sort(random.integers(100, size=300)), random.integers(1, ITEMS + 1, 300)
    targets, hidden = random.integers(1, ITEMS + 1, 100), torch.arange(100)[:, None]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(rank_sparse(Catalogue(model), hidden, 6, left_out=pairs, targets=targets))
    for found in results[1:]:
        for one, other in zip(results[0], found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("states", [0, 3])
def test_nothing_to_rank(states: int) -> None:
    random = np.random.default_rng(0)
    model = Given(np.ones(ITEMS + 1), scores_of(random, 3, 2, False))
    hidden = torch.arange(states)[:, None]
    for catalogue in (Catalogue(model), Catalogue(model, np.empty(0, np.int64)), Catalogue(model, np.array([4]))):
        if states and catalogue.columns:
            continue
        found = rank_sparse(catalogue, hidden, 3, targets=np.zeros(states, np.int64))
        assert (found.columns == -1).all()
        assert found.columns.shape == found.scores.shape == (states, 3)
        assert found.greater is not None
        assert found.greater.shape == (states,)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("where", ["prior", "own", "norm"])
def test_scores_that_are_not_numbers_are_refused(where: str) -> None:
    random = np.random.default_rng(0)
    scores, prior = scores_of(random, 5, 5, False), np.ones(ITEMS + 1)
    prior[0] = np.nan  # of no consequence
    assert rank_sparse(Catalogue(Given(prior, scores)), torch.arange(5)[:, None], 2).columns.min() > 0
    scores.rows.values[:] = np.nan if where == "own" else 0.0
    prior[3] = {"prior": np.nan, "norm": np.inf, "own": 1.0}[where]
    scores.norms[:] = np.inf if where == "norm" else 0.0
    with pytest.raises(InputError, match="not numbers"):
        rank_sparse(Catalogue(Given(prior, scores)), torch.arange(5)[:, None], 2)


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_the_prior_is_sorted_by_value_and_column(size: int) -> None:
    random = np.random.default_rng(size)
    values = random.choice([-np.inf, np.inf, -0.0, 0.0, -1e-40, 1e-40, 3e38, -7.5, -7.25, 1.5, np.nan], size)
    found = sorted_prior(values.astype(np.float32))
    ranked = np.flatnonzero(~np.isnan(values))
    expected = ranked[np.argsort(-values[ranked], kind="stable")]
    assert found.order.tolist() == expected.tolist()
    np.testing.assert_array_equal(found.descending, values.astype(np.float32)[expected])
    some = np.arange(0, size, 3)
    expected = expected[~np.isin(expected, some)]
    assert found.without(some).order.tolist() == expected.tolist()
    assert found.without(some[:0]) is found


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(2)
    users = np.concatenate([random.integers(70, size=900), np.arange(70), np.arange(70), np.arange(70)])
    items = random.zipf(1.5, size=len(users)).clip(max=60)
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users)) * 3600}))


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("recent-popularity", {"days": 0.01}),
    ("markov", {"alpha": 1e6}),
    ("markov", {"alpha": 1e-3}),
    ("transitions", {"recency": 0.5, "days": 1.0, "successors": 3}),
]


@pytest.mark.slow_but_one
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=str)
def test_evaluations_are_those_of_dense_scores(dataset: Dataset, name: str, config: dict[str, Any]) -> None:
    split = split_last_two(dataset)
    model = build_model(name, config, dataset.num_items, dataset.num_users).eval()
    model.count(split.train)
    ways: dict[str, Any] = {"train_counts": split.train.item_counts(), "seed": 3, "k": (1, 10)}
    for more in ({}, {"keep_seen": True}, {"protocol": "sampled", "negatives": 9}):
        both = [protocols.evaluate(one, split.test, **ways, **more) for one in (model, Dense(model))]
        ours, theirs = (replace(found, seconds=0.0).to_dict() for found in both)
        assert ours == theirs


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=str)
@pytest.mark.parametrize("users", [3, 70])  # after few users, most items have no followers
@pytest.mark.parametrize("filters", [{}, {"allow": [9, 3, 20, 31, 2]}, {"deny": [1, 2, 3]}, {"allow": []}], ids=str)
def test_lists_are_those_of_dense_scores(
    dataset: Dataset, name: str, config: dict[str, Any], users: int, filters: dict[str, list[int]]
) -> None:
    model = build_model(name, config, dataset.num_items, dataset.num_users).eval()
    model.count(all_histories(dataset).take(slice(0, users)))
    people = histories_of(dataset, [np.array([], dtype=int), np.array([3]), np.array([9, 5, 5]), np.array([50])])
    given: dict[str, Any] = {key: np.array(value, dtype=np.int64) for key, value in filters.items()}
    for keep_seen in (False, True):
        for k in (1, 8, 100):
            lists = [best(one, people, k, keep_seen=keep_seen, **given) for one in (model, Dense(model))]
            for found, expected in zip(*lists, strict=True):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=str)
def test_scores_of_some_items_are_those_of_all(dataset: Dataset, name: str, config: dict[str, Any]) -> None:
    model = build_model(name, config, dataset.num_items, dataset.num_users).eval()
    histories = all_histories(dataset)
    assert isinstance(model, SparseModel)
    model.count(histories)
    with evaluation_mode(model):
        states = last_states(model, histories.take(slice(0, 20)))
        whole = model.score(states)
        some = torch.tensor([3, 1, 7, 3, 50])
        assert torch.equal(model.score(states, some), whole[:, some])
        each = torch.randint(0, dataset.num_items + 1, (len(states), 5), generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.score(states, each), whole.gather(1, each))
        assert model.score(states[:0]).shape == (0, dataset.num_items + 1)


def test_a_predictor_filters_the_sorted_prior(dataset: Dataset) -> None:
    """The catalogue of allowed items is a part of that of all items."""
    model = build_model("popularity", {}, dataset.num_items, dataset.num_users).eval()
    model.count(all_histories(dataset))
    predictor = Predictor(model, dataset)
    chosen = np.array([5, 9, 11, 40])
    ((items, scores),) = predictor.rank(all_histories(dataset).take(slice(0, 9)), 3, allow=chosen)
    expected = best(Dense(model), all_histories(dataset).take(slice(0, 9)), 3, allow=chosen)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(scores, expected[1])
