"""The first pass in 8 bits changes nothing but the time, and the recall that is shown is the true one."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import Dataset, InputError, Predictor, Recommender, SASRec, SASRecConfig
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.data.split import all_histories
from seqrec.errors import RunWarning
from seqrec.models.base import Model
from seqrec.models.slirec import SLiRec, SLiRecConfig
from seqrec.models.transitions import TransitionsConfig
from seqrec.ranking import approximate
from seqrec.ranking.additions import counted_addition
from seqrec.ranking.scoring import last_states
from seqrec.ranking.topk import seen_items

pytestmark = pytest.mark.loops

ITEMS = 300
COUNTS = TransitionsConfig(distance=4, decay=0.8, damping=0.25, recency=0.0, max_length=6)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the first pass in catalogues as small as here, for any k."""
    monkeypatch.setattr("seqrec.ranking.scoring.K_OF_ITEMS", 1)
    monkeypatch.setattr(
        "seqrec.ranking.scoring.LARGE", 0
    )  # for any number of histories at once, in the plain build too
    monkeypatch.setattr(approximate, "LEAST_ITEMS", 100)


def log() -> pl.DataFrame:
    """150 users with 5 to 40 of 300 items, the first one with all, and 30 items that each of them rated 1."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(150):
        items = random.integers(0, ITEMS, 5 + user % 36) if user else np.arange(ITEMS)
        rows += [(user, f"i{item}", 1000 * user + place, 5.0) for place, item in enumerate(items.tolist())]
        rows += [(user, f"i{item}", 10**6, 1.0) for item in random.integers(0, ITEMS, 30).tolist()]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return prepare(log(), PrepareConfig(min_rating=2.0))


def model_of(dataset: Dataset, weight: float = 0.0, recency: float = 0.0, ties: bool = False) -> Model:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(max_length=6, embedding_dim=9, num_blocks=1, num_heads=1), dataset.num_items)
    with torch.no_grad():
        model.item_embedding.weight.normal_()
        if ties:  # each vector five times
            model.item_embedding.weight[1:] = model.item_embedding.weight[1:61].repeat(5, 1)[: dataset.num_items]
    if weight:
        constants = TransitionsConfig(**{**vars(COUNTS), "recency": recency, "days": 1.0})
        model.addition = counted_addition(constants, weight, all_histories(dataset))
    return model.eval()


def scores_of(predictor: Predictor) -> np.ndarray:
    """Scores ``float64[U, I + 1]`` after each user's history, one user at a time, with counts added naively."""
    people, model = all_histories(predictor.dataset), predictor.model
    with torch.inference_mode():
        states = last_states(model, people).double()
        scores = (states @ model.item_vectors().double().T).numpy()
        if model.addition is not None:
            counts = model.addition.transitions
            for row in range(len(people)):
                counted = counts.score(counts.newest(people.take(slice(row, row + 1))))[0].double()
                popular = counts.prior().double()
                recent = counts.recent_scores()
                scores[row] += model.addition.weight * (counted - popular + (0 if recent is None else recent)).numpy()
    return scores


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("weight", "recency"), [(0.0, 0.0), (2.0, 0.0), (2.0, 0.4)])
@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("deny", [None, [3, 5, 9], list(range(1, ITEMS - 3))])
def test_the_best_are_those_of_all_scores(
    dataset: Dataset, weight: float, recency: float, keep_seen: bool, deny: list[int] | None
) -> None:
    k = 7
    predictor = Predictor(model_of(dataset, weight, recency), dataset, first_pass=True)
    assert predictor.catalogue.codes is not None
    scores = scores_of(predictor)
    people = all_histories(dataset)
    denied = None if deny is None else np.array(deny)
    for rows in (slice(0, 150), slice(4, 5)):  # a single request goes the same way
        ((items, values),) = predictor.rank(people.take(rows), k, keep_seen=keep_seen, deny=denied)
        for own, best, value, user in zip(scores[rows], items, values, people.users[rows], strict=True):
            out = {0, *(deny or [])}
            if not keep_seen:
                out |= set(seen_items(people.take(slice(user, user + 1)))[1].tolist())
            left = np.array([item for item in range(dataset.num_items + 1) if item not in out], dtype=int)
            expected = left[np.argsort(-own[left], kind="stable")][:k]
            count = len(expected)  # lists are short only if fewer items are left
            assert (best[count:] == 0).all()
            assert (value[count:] == -np.inf).all()
            assert len(set(best[:count].tolist())) == count
            np.testing.assert_allclose(own[best[:count]], own[expected], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(value[:count], own[expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 2.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_same_bits_as_without_a_first_pass(dataset: Dataset, weight: float, ties: bool) -> None:
    model = model_of(dataset, weight, ties=ties)
    people = all_histories(dataset)
    answers = [next(Predictor(model, dataset, first_pass=way).rank(people, 12)) for way in (False, True)]
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])
    if ties and not weight:
        values = answers[1][1]
        tied = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -np.inf)
        assert tied.any()
        assert (answers[1][0][:, 1:] > answers[1][0][:, :-1])[tied].all()


def test_items_that_filters_dropped_stay_left_out(dataset: Dataset) -> None:
    predictor = Predictor(model_of(dataset), dataset, first_pass=True)
    found = predictor.recommend_users(dataset.user_ids.to_list(), 20)
    met = set(log().select("user_id", "item_id").iter_rows())
    assert not met & {(user, item) for user, one in enumerate(found) for item, _ in one}
    assert [len(one) for one in found] == [0] + [20] * 149  # the first user has met every item


def histories(dataset: Dataset) -> dict[int, list[Any]]:
    people = all_histories(dataset)
    rows, items = people.flat()
    ids = dataset.catalogue.values(items - 1)
    return {row: [ids[n] for n in np.flatnonzero(rows == row)] for row in range(len(people))}


@pytest.mark.parametrize("broken", [False, True])
def test_the_recall_is_the_true_one(dataset: Dataset, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "LEAST_RECALL", 0.0)
    monkeypatch.setattr(approximate, "MOST_SCORED", 1.0)
    model = model_of(dataset, 0.0 if broken else 0.5)
    if broken:  # codes of four dimensions alone, and no bound on their error
        real = approximate.kernels.codes_of

        def coarse(vectors: torch.Tensor) -> Any:
            codes = real(vectors)
            codes.blocks[:, 1:] = 64
            return codes._replace(residual=0.0, norms=torch.zeros_like(codes.norms))

        monkeypatch.setattr(approximate.kernels, "codes_of", coarse)
    predictor = Predictor(model, dataset)
    recall = predictor.recall
    assert recall is not None
    assert (recall.k, recall.histories) == (10, 128)
    people = all_histories(dataset).take(np.unique(np.linspace(0, 149, 128).astype(np.int64)))
    exact = Predictor(model, dataset, first_pass=False)
    assert exact.recall is None
    assert exact.catalogue.codes is None
    (wanted, _), (found, _) = (next(one.rank(people, 10)) for one in (exact, predictor))
    shares = [len(set(a[a > 0]) & set(b)) / (a > 0).sum() for a, b in zip(wanted, found, strict=True) if a.any()]
    assert recall.share == pytest.approx(np.mean(shares))
    assert recall.share < 0.9 if broken else recall.share == 1
    assert recall.scored >= 10


def test_a_low_recall_and_many_candidates_turn_it_off(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(dataset)
    monkeypatch.setattr(approximate, "MOST_SCORED", 0.001)
    with pytest.warns(RunWarning, match=r"leaves \d+% of the catalogue.*scores all"):
        predictor = Predictor(model, dataset)
    assert predictor.catalogue.codes is None
    assert predictor.recall is None
    assert Predictor(model, dataset, first_pass=True).catalogue.codes is not None
    monkeypatch.setattr(approximate, "LEAST_RECALL", 1.1)
    with pytest.warns(RunWarning, match="finds only 100.0% of the best 10"):
        assert Predictor(model, dataset, first_pass=True).catalogue.codes is None


def test_when_it_is_used_by_default(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "MOST_SCORED", 1.0)
    model = model_of(dataset)
    assert Predictor(model, dataset).catalogue.codes is not None
    assert Predictor(model, dataset, first_pass=False).catalogue.codes is None
    with monkeypatch.context() as patch:
        patch.setattr(approximate, "LEAST_ITEMS", ITEMS + 10)
        assert Predictor(model, dataset).catalogue.codes is None
    people = all_histories(dataset)
    predictor, exact = Predictor(model, dataset), Predictor(model, dataset, first_pass=False)
    allow = np.arange(1, ITEMS, 2)
    ((items, values),) = predictor.rank(people, 5, allow=allow)  # all allowed items are scored
    ((expected, same),) = exact.rank(people, 5, allow=allow)
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_array_equal(values, same)
    monkeypatch.setattr("seqrec.ranking.scoring.K_OF_ITEMS", 50)
    monkeypatch.setattr("seqrec.kernels.rank_by_codes", None)  # not called for so large a k
    ((items, _),) = predictor.rank(people, ITEMS // 2)
    np.testing.assert_array_equal(items, next(exact.rank(people, ITEMS // 2))[0])


@pytest.mark.slow
def test_threads_get_the_same_answers(dataset: Dataset) -> None:
    predictor = Predictor(model_of(dataset, 1.0), dataset, first_pass=True)
    asked = [items for _, items in sorted(histories(dataset).items())][1:]
    alone = [predictor.recommend(one, 6) for one in asked]
    before = torch.get_num_threads()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda one: predictor.recommend(one, 6), asked * 3)) == alone * 3
    torch.set_num_threads(2)
    try:
        assert [predictor.recommend(one, 6) for one in asked] == alone
    finally:
        torch.set_num_threads(before)


def test_where_it_is_not_possible(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SLiRecConfig(embedding_dim=8, max_length=6)
    other = SLiRec(config, dataset.num_items, dataset.num_users).eval()
    assert Predictor(other, dataset).recall is None  # by default, all items are scored
    with pytest.raises(InputError, match="does not score by products with item vectors; leave first_pass out"):
        Predictor(other, dataset, first_pass=True)
    model = model_of(dataset)
    endless = copy.deepcopy(model)
    with torch.no_grad():
        endless.get_parameter("item_embedding.weight")[5, 2] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        Predictor(endless, dataset, first_pass=True)
    with pytest.raises(InputError, match="first_pass is 'yes'; give True, False or None"):
        Predictor(model, dataset, first_pass="yes")  # type: ignore[arg-type]
    monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)
    assert Predictor(model, dataset).catalogue.codes is None
    with pytest.raises(InputError, match="needs the compiled loops"):
        Predictor(model, dataset, first_pass=True)


def test_a_state_that_is_no_number_is_an_error(dataset: Dataset) -> None:
    model = model_of(dataset)
    predictor = Predictor(model, dataset, first_pass=True)
    with torch.no_grad():
        model.get_parameter("position_embedding.weight").fill_(torch.nan)
    with pytest.raises(InputError, match="not numbers"):
        predictor.recommend(["i1", "i2"])


def test_a_run_is_opened_with_it(dataset: Dataset, tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": np.repeat(np.arange(60), 8), "item_id": np.arange(480) % 200})
    recommender = Recommender(embedding_dim=8, max_length=5, epochs=1, threads=1, evaluate_every=0, split="last-two")
    recommender.fit(frame).save(tmp_path / "run")
    predictor = Predictor.load(tmp_path / "run", first_pass=True)
    assert predictor.recall is not None
    assert predictor.recall.share == 1
    exact = Predictor.load(tmp_path / "run", first_pass=False)
    assert exact.recall is None
    assert [item for item, _ in predictor.recommend([1, 2, 3])] == [item for item, _ in exact.recommend([1, 2, 3])]


def test_many_histories_at_once_get_the_same_answers(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small catalogues a matrix product ranks them, and the first pass a few: bit for bit the same."""
    people = all_histories(dataset)
    predictor = Predictor(model_of(dataset), dataset)
    with_codes = next(predictor.rank(people, 10))
    monkeypatch.setattr("seqrec.ranking.scoring.LARGE", 10**6)
    monkeypatch.setattr("seqrec.kernels.rank_by_codes", lambda *rest: pytest.fail("the first pass is used"))
    without = next(predictor.rank(people, 10))
    for found, expected in zip(with_codes, without, strict=True):
        np.testing.assert_array_equal(found, expected)
