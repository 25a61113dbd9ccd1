import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from seqrec.data.batches import histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Split, all_histories, split_last_two
from seqrec.errors import InputError, TrainingWarning
from seqrec.models.base import Model
from seqrec.models.markov import Markov, MarkovConfig
from seqrec.models.popularity import Popularity, PopularityConfig
from seqrec.models.recent_popularity import RecentPopularity, RecentPopularityConfig
from seqrec.ranking.topk import best
from seqrec.recommender import Recommender

DAY = 86_400
BASELINES = [Popularity, RecentPopularity, Markov]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(0)
    return prepare(
        pl.DataFrame(
            {
                "user_id": random.integers(40, size=500),
                "item_id": random.zipf(1.6, size=500).clip(max=25),
                "timestamp": np.sort(random.integers(60 * DAY, size=500)),
            }
        )
    )


@pytest.fixture(scope="module")
def split(dataset: Dataset) -> Split:
    return split_last_two(dataset)


def counted(kind: type[Model], split: Split, **config: float) -> Model:
    model = kind(kind.Config(**config), split.train.dataset.num_items, 0)
    model.count(split.train)
    return model


def training_items(split: Split) -> list[list[int]]:
    train = split.train
    return [train.dataset.items[start:end].tolist() for start, end in zip(train.starts, train.ends, strict=True)]


def test_popularity_counts_training_alone(dataset, split):
    model = counted(Popularity, split)
    expected = np.zeros(dataset.num_items + 1)
    for items in training_items(split):
        for item in items:
            expected[item] += 1
    scores = model.score(torch.ones(2, 1))
    np.testing.assert_array_equal(scores.numpy(), [expected, expected])


@pytest.mark.parametrize("days", [0.5, 7, 1000])
def test_recent_popularity_orders_by_recent_and_then_all(dataset, split, days):
    model = counted(RecentPopularity, split, days=days)
    train = split.train
    last = max(dataset.timestamps[end - 1] for end in train.ends)
    recent = np.zeros(dataset.num_items + 1)
    overall = np.zeros(dataset.num_items + 1)
    for start, end in zip(train.starts, train.ends, strict=True):
        for item, moment in zip(dataset.items[start:end], dataset.timestamps[start:end], strict=True):
            overall[item] += 1
            recent[item] += moment >= last - days * DAY
    scores = model.score(torch.ones(1, 1))[0].numpy()
    np.testing.assert_array_equal(np.floor(scores), recent)
    for a in range(1, len(scores)):
        for b in range(1, len(scores)):
            assert (scores[a] > scores[b]) == ((recent[a], overall[a]) > (recent[b], overall[b]))


def test_recent_popularity_needs_timestamps():
    dataset = prepare(pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3]}))
    model = RecentPopularity(RecentPopularityConfig(), dataset.num_items)
    with pytest.raises(InputError, match="needs timestamps"):
        model.count(all_histories(dataset))


@pytest.mark.parametrize("alpha", [0.1, 5.0])
def test_markov_is_smoothed_transition_shares(dataset, split, alpha):
    model = counted(Markov, split, alpha=alpha)
    size = dataset.num_items + 1
    transitions, counts = np.zeros((size, size)), np.zeros(size)
    for items in training_items(split):
        for item in items:
            counts[item] += 1
        for item, after in itertools.pairwise(items):
            transitions[item, after] += 1
    share = (counts + 1) / (counts.sum() + dataset.num_items)
    share[0] = 0
    expected = (transitions + alpha * share) / (transitions.sum(axis=1, keepdims=True) + alpha)
    hidden = torch.arange(1, size)[:, None]
    scores = model.score(hidden).numpy()
    np.testing.assert_allclose(np.exp(scores), expected[1:], rtol=1e-5)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-5)
    assert np.isneginf(scores[:, 0]).all()


@pytest.mark.parametrize("kind", BASELINES)
def test_score_has_the_shapes_of_the_contract(dataset, split, kind):
    model = counted(kind, split)
    hidden = model.encode(pack(split.test.histories, 1))
    whole = model.score(hidden)
    assert whole.shape == (len(split.test), dataset.num_items + 1)
    some = torch.tensor([3, 1, 7, 3])  # with a repetition, as shared negatives may have
    torch.testing.assert_close(model.score(hidden, some), whole[:, some], rtol=0, atol=0)
    each = torch.randint(1, dataset.num_items + 1, (len(hidden), 5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.score(hidden, each), whole.gather(1, each), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", BASELINES)
def test_a_fresh_model_loads_the_state(dataset, split, kind):
    model = counted(kind, split)
    assert not list(model.parameters())
    fresh = kind(kind.Config(), dataset.num_items, dataset.num_users)
    fresh.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    for ours, theirs in zip(best(model, split.test.histories, 5), best(fresh, split.test.histories, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Also for a model that has already counted another log.
    other = kind(kind.Config(), dataset.num_items, dataset.num_users)
    other.count(all_histories(dataset))
    other.load_state_dict(model.state_dict())
    for ours, theirs in zip(best(model, split.test.histories, 5), best(other, split.test.histories, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_state_without_the_transitions_is_refused(dataset, split):
    state = counted(Markov, split).state_dict()
    del state["keys"]
    with pytest.raises(RuntimeError, match="keys"):
        Markov(MarkovConfig(), dataset.num_items).load_state_dict(state)


@pytest.mark.parametrize("kind", BASELINES)
def test_counting_again_forgets_what_was(dataset, split, kind):
    model = counted(kind, split)
    model.count(all_histories(dataset))
    model.count(split.train)
    for name, value in counted(kind, split).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", BASELINES)
def test_empty_and_single_histories_are_no_trouble(dataset, kind):
    model = kind(kind.Config(), dataset.num_items)
    model.count(histories_of(dataset, [np.array([], dtype=int), np.array([3]), np.array([2, 3])]))
    items, _ = best(model, histories_of(dataset, [np.array([2])]), 2)
    assert items[0, 0] == 3
    model.count(histories_of(dataset, [np.array([], dtype=int)]))
    items, _ = best(model, histories_of(dataset, [np.array([2])]), 2)
    assert items.tolist() == [[1, 3]]


@pytest.mark.parametrize("config", [lambda: MarkovConfig(alpha=0), lambda: RecentPopularityConfig(days=0)])
def test_settings_out_of_range_are_refused(config):
    with pytest.raises(InputError, match="give more than 0"):
        config()


def test_popularity_has_nothing_to_set():
    assert PopularityConfig().max_length == 1


def test_markov_of_a_log_without_transitions_is_saved(tmp_path: Path) -> None:
    rows = pl.DataFrame({"user_id": ["a", "b", "c"], "item_id": ["x", "y", "x"], "timestamp": [1, 2, 3]})
    with pytest.warns(TrainingWarning):
        Recommender("markov").fit(rows, tmp_path / "run")
    assert Recommender.load(tmp_path / "run").recommend(histories=[["y"]], k=1)["item_id"].to_list() == ["x"]
