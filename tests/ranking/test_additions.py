"""Ranking with transition counts added equals ranking by dense scores, wherever scores are ranked."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, Split, Targets, all_histories, split_last_two
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.gru4rec import GRU4Rec, GRU4RecConfig
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.models.slirec import SLiRec, SLiRecConfig
from seqrec.models.transitions import Addition, Transitions, TransitionsConfig
from seqrec.predictor import Predictor
from seqrec.ranking import metrics
from seqrec.ranking.additions import counted_addition, recounted
from seqrec.ranking.baselines import NAMES, evaluate_beside
from seqrec.ranking.protocols import evaluate, ranks
from seqrec.ranking.scoring import evaluation_mode, last_states
from seqrec.ranking.topk import best

WEIGHT = 0.7
CONSTANTS = TransitionsConfig(damping=0.25, decay=0.8, distance=4, successors=12, recency=0.3, days=0.005)
UNDATED = replace(CONSTANTS, recency=0.0)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(1)
    users = random.integers(60, size=900)
    items = random.zipf(1.4, size=900).clip(max=45)
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(900)}))


@pytest.fixture(scope="module")
def split(dataset: Dataset) -> Split:
    return split_last_two(dataset)


@pytest.fixture(params=["as it is", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)


def model_of(kind: str, dataset: Dataset, split: Split, weight: float = WEIGHT) -> Model:
    """A model with an addition; or transitions alone, to which nothing is added."""
    torch.manual_seed(0)
    if kind == "transitions":
        alone = Transitions(CONSTANTS, dataset.num_items)
        alone.count(split.train)
        return alone.eval()
    model: Model
    if kind == "sasrec":
        model = SASRec(SASRecConfig(max_length=6, embedding_dim=8, num_blocks=1), dataset.num_items)
    elif kind == "gru4rec":
        model = GRU4Rec(GRU4RecConfig(embedding_dim=8, max_length=6), dataset.num_items)
    else:  # not factored
        model = SLiRec(SLiRecConfig(embedding_dim=8, max_length=6), dataset.num_items, dataset.num_users)
    model.addition = counted_addition(UNDATED if kind == "gru4rec" else CONSTANTS, weight, split.train)
    return model.eval()


def dense(model: Model, histories: Histories) -> np.ndarray:
    """``logits + weight * counts`` ``float32[M, I + 1]``, as one matrix."""
    with evaluation_mode(model):
        scores = model.score(last_states(model, histories)).numpy().astype(np.float64)
        if model.addition is not None:
            counts = model.addition.transitions
            popularity = counts.prior() if counts.recent_scores() is None else counts.prior() - counts.recent_scores()
            counted = counts.score(counts.newest(histories)) - popularity
            scores = scores + model.addition.weight * counted.numpy().astype(np.float64)
    return scores


def usable(histories: Histories, row: int, allow: Any, deny: Any, keep_seen: bool) -> list[int]:
    """Candidates for a person."""
    dataset = histories.dataset
    seen = set() if keep_seen else set(dataset.items[histories.starts[row] : histories.ends[row]].tolist())
    items = range(1, dataset.num_items + 1)
    return [i for i in items if i not in seen and (allow is None or i in allow) and i not in deny]


def greater_of(scores: np.ndarray, targets: Targets, keep_seen: bool) -> np.ndarray:
    """Number of candidates that score above each target; -1 where the history has the target and is left out."""
    found = []
    for row, target in enumerate(targets.items.tolist()):
        others = usable(targets.histories, row, None, [], keep_seen)
        found.append(int((scores[row, others] > scores[row, target]).sum()) if target in others else -1)
    return np.array(found)


@pytest.mark.slow_but_one
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "slirec", "transitions"])
@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize(("allow", "deny"), [(None, []), ([2, 5, 7, 11, 28, 30], [5]), (None, [1, 2, 3]), ([], [])])
def test_the_best_are_those_of_a_full_sort(
    dataset: Dataset, split: Split, kind: str, keep_seen: bool, allow: Any, deny: Any
) -> None:
    model = model_of(kind, dataset, split)
    everyone = all_histories(dataset)
    scores = dense(model, everyone)
    filters = {"allow": None if allow is None else np.array(allow, dtype=np.int64), "deny": np.array(deny, dtype=int)}
    for rows in (slice(0, 60), slice(3, 8), slice(7, 8), slice(0, 0)):  # fewer than 8 states are ranked by torch
        people, own = everyone.take(rows), scores[rows]
        items, values = best(model, people, 6, keep_seen=keep_seen, **filters)
        assert items.shape == (len(people), 6)
        for row in range(len(people)):
            candidates = usable(people, row, allow, deny, keep_seen)
            expected = np.sort(own[row, candidates])[::-1][:6]
            np.testing.assert_allclose(values[row, : len(expected)], expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(own[row, items[row, : len(expected)]], expected, rtol=1e-5, atol=1e-5)
            assert set(items[row, : len(expected)].tolist()) <= set(candidates)
            assert not items[row, len(expected) :].any()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["sasrec", "slirec", "transitions"])
@pytest.mark.parametrize("keep_seen", [False, True])
def test_ranks_are_those_of_dense_scores(dataset: Dataset, split: Split, kind: str, keep_seen: bool) -> None:
    model = model_of(kind, dataset, split)
    targets = split.test
    greater, ties = ranks(model, targets, keep_seen=keep_seen)
    np.testing.assert_array_equal(greater, greater_of(dense(model, targets.histories), targets, keep_seen))
    assert not ties.any() or kind == "transitions"
    few, _ = ranks(model, targets.take(slice(0, 3)), keep_seen=keep_seen)
    np.testing.assert_array_equal(few, greater[:3])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["sasrec", "slirec", "transitions"])
def test_sampled_ranks_use_the_same_scores(dataset: Dataset, split: Split, kind: str) -> None:
    """With every unseen item as a negative, a rank is that of the full ranking without any item of the log's user."""
    model, targets = model_of(kind, dataset, split), split.test
    greater, _ = ranks(model, targets, protocol="sampled", negatives=dataset.num_items)
    scores = dense(model, targets.histories)
    whole = all_histories(dataset)
    for row, target in enumerate(targets.items.tolist()):
        user = int(targets.histories.users[row])
        unseen = usable(whole, user, None, [], False)
        assert greater[row] == (scores[row, unseen] > scores[row, target]).sum()


@pytest.mark.usefixtures("way")
def test_blocks_of_histories_change_nothing(dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("sasrec", "transitions"):
        model = model_of(kind, dataset, split)
        everyone = all_histories(dataset)
        items, scores = best(model, everyone, 5)
        greater = ranks(model, split.test)
        monkeypatch.setattr("seqrec.ranking.additions.ROWS", 9)
        again, same = best(model, everyone, 5)
        np.testing.assert_array_equal(again, items)
        np.testing.assert_allclose(same, scores, rtol=1e-6)
        np.testing.assert_array_equal(ranks(model, split.test), greater)
        monkeypatch.undo()


def test_more_histories_than_are_held_at_once(dataset: Dataset, split: Split) -> None:
    model = model_of("sasrec", dataset, split)
    everyone = all_histories(dataset)
    many = everyone.take(np.random.default_rng(0).integers(0, len(everyone), 5000))
    items, scores = best(model, many, 4)
    once, expected = best(model, everyone, 4)
    np.testing.assert_array_equal(items, once[many.users])
    np.testing.assert_allclose(scores, expected[many.users], rtol=1e-5)


@pytest.mark.usefixtures("way")
def test_weight_0_is_the_model_alone(dataset: Dataset, split: Split) -> None:
    model = model_of("sasrec", dataset, split, weight=0.0)
    assert model.addition is not None
    assert len(model.addition.transitions.columns) == 0  # nothing is kept that is not used
    alone = recounted(model, None)
    assert alone.addition is None
    for one, other in zip(best(model, all_histories(dataset), 5), best(alone, all_histories(dataset), 5), strict=True):
        np.testing.assert_array_equal(one, other)
    sampled = {"protocol": "sampled", "negatives": 20}
    np.testing.assert_array_equal(ranks(model, split.test, **sampled), ranks(alone, split.test, **sampled))  # type: ignore[arg-type]


def test_a_sum_is_not_its_parts(dataset: Dataset, split: Split) -> None:
    """The other tests would also pass if nothing were added."""
    model = model_of("sasrec", dataset, split)
    assert model.addition is not None
    lists = [
        best(one, all_histories(dataset), 5)[0] for one in (model, recounted(model, None), model.addition.transitions)
    ]
    assert not np.array_equal(lists[0], lists[1])
    assert not np.array_equal(lists[0], lists[2])
    heavy = copy.copy(model)
    heavy.addition = Addition(model.addition.transitions, 1e4)
    closer = best(heavy, all_histories(dataset), 1)[0] == lists[2][:, :1]
    assert closer.mean() > 0.9


@pytest.mark.parametrize("kind", ["sasrec", "transitions"])
def test_the_counts_see_no_more_of_a_history_than_was_asked_for(dataset: Dataset, split: Split, kind: str) -> None:
    model = model_of(kind, dataset, split)
    people = all_histories(dataset)
    expected = best(model, people.newest(2), 5, keep_seen=True)
    found = best(model, people, 5, max_length=2, keep_seen=True)
    np.testing.assert_array_equal(found[0], expected[0])
    assert not np.array_equal(found[0], best(model, people, 5, keep_seen=True)[0])


@pytest.mark.parametrize("kind", ["sasrec", "transitions"])
def test_the_future_changes_nothing(dataset: Dataset, split: Split, kind: str) -> None:
    """Neither what comes after a history, nor the held-out items, are read by counting and ranking."""
    model = model_of(kind, dataset, split)
    items = dataset.items.copy()
    held_out = np.ones(len(items), dtype=bool)
    held_out[split.train.mask()] = False
    items[held_out] = np.random.default_rng(0).integers(1, dataset.num_items + 1, held_out.sum())
    other = copy.copy(dataset)
    object.__setattr__(other, "items", items)
    changed = split_last_two(other)
    assert not np.array_equal(changed.test.items, split.test.items)
    again = model_of(kind, other, changed)
    for one, same in zip(best(again, changed.train, 7), best(model, split.train, 7), strict=True):
        np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_an_evaluation_shows_the_model_alone_and_the_counts(dataset: Dataset, split: Split, protocol: Any) -> None:
    """The counts in use are of the whole log, those of the evaluation of the training histories."""
    model = model_of("sasrec", dataset, split)
    deployed = recounted(model, all_histories(dataset))
    ways: dict[str, Any] = {"protocol": protocol, "negatives": 15}
    found = evaluate_beside(deployed, "sasrec", split, "train", **ways)
    assert list(found.baselines) == ["sasrec", *NAMES]
    assert model.addition is not None
    expected = {"": model, "sasrec": recounted(model, None), "transitions": model.addition.transitions}
    values = {name: metrics.named("ndcg@10", *ranks(one, split.test, **ways)) for name, one in expected.items()}
    assert found.metrics["ndcg@10"] == pytest.approx(values[""].mean())
    for name in ("sasrec", "transitions"):
        assert found.baselines[name].metrics["ndcg@10"] == pytest.approx(values[name].mean())
        assert found.differences[name].mean == pytest.approx((values[""] - values[name]).mean())
    assert found.differences.keys() == found.baselines.keys()
    refitted = evaluate_beside(deployed, "sasrec", split, "train+valid", **ways)
    counts = recounted(model, split.histories("train+valid"))
    again = metrics.named("ndcg@10", *ranks(counts, split.test, **ways))
    assert refitted.metrics["ndcg@10"] == pytest.approx(again.mean())
    alone = evaluate_beside(deployed, "sasrec", split, "train", baselines=False, **ways)
    assert alone.metrics == pytest.approx(found.metrics)
    assert not alone.baselines


def test_an_evaluation_without_weight_is_of_the_model_alone(dataset: Dataset, split: Split) -> None:
    model = model_of("sasrec", dataset, split, weight=0.0)
    found = evaluate_beside(model, "sasrec", split, "train")
    assert list(found.baselines) == list(NAMES)
    counts = split.train.item_counts()
    assert found.metrics == pytest.approx(evaluate(recounted(model, None), split.test, train_counts=counts).metrics)


def test_a_predictor_adds_the_counts(dataset: Dataset, split: Split) -> None:
    model = model_of("sasrec", dataset, split)
    predictor = Predictor(model, dataset)
    everyone = all_histories(dataset)
    items, scores = best(model, everyone, 5)
    users = dataset.users.values(np.arange(3))
    for row, found in enumerate(predictor.recommend_users(users, k=5)):
        assert [item for item, _ in found] == dataset.catalogue.values(items[row] - 1)
        assert [score for _, score in found] == pytest.approx(scores[row].tolist(), rel=1e-5)
    history = dataset.catalogue.values(dataset.items[everyone.starts[0] : everyone.ends[0]] - 1)
    asked = [item for item, _ in predictor.recommend(history, k=5)]
    assert asked == dataset.catalogue.values(items[0] - 1)
    allowed = dataset.catalogue.values(np.array([3, 8, 9]))
    assert {item for item, _ in predictor.recommend(history, k=3, allow=allowed, keep_seen=True)} == set(allowed)


def test_recounting_leaves_the_model_as_it_is(dataset: Dataset, split: Split) -> None:
    model = model_of("sasrec", dataset, split)
    before = model.addition
    other = recounted(model, all_histories(dataset))
    assert model.addition is before
    assert before is not None
    assert other.addition is not None
    assert other.addition.weight == before.weight
    assert other.addition.transitions.config == before.transitions.config
    assert int(other.addition.transitions.counts.sum()) == dataset.num_interactions
    assert [p.data_ptr() for p in other.parameters()] == [p.data_ptr() for p in model.parameters()]


def test_counts_that_may_have_seen_the_targets_are_refused(dataset: Dataset, split: Split) -> None:
    model = model_of("sasrec", dataset, split)
    train_counts = split.train.item_counts()
    assert evaluate(model, split.test, train_counts=train_counts).users == len(split.test)
    deployed = recounted(model, all_histories(dataset))
    with pytest.raises(InputError, match=r"may have seen the items to evaluate; use Recommender\.evaluate"):
        evaluate(deployed, split.test, train_counts=train_counts)
