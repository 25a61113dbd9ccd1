import json
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from torch import Tensor

from seqrec.data.batches import Batch, histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.negatives import contains
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.data.split import Split, Targets, split_last_two
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.popularity import Popularity, PopularityConfig
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.ranking import metrics, ranker, scoring, topk
from seqrec.ranking.protocols import Evaluation, evaluate, ranks
from seqrec.report.tables import table, with_interval


@dataclass(frozen=True)
class FixedConfig:
    max_length: int = 1


class Fixed(Model):
    """Scores depend only on the user: rows of a given table."""

    Config = FixedConfig
    FACTORED = False

    def __init__(self, scores: np.ndarray) -> None:
        super().__init__()
        self.config = FixedConfig()
        self.num_items = scores.shape[1] - 1
        self.register_buffer("scores", torch.from_numpy(scores.astype(np.float32)))

    def encode(self, batch: Batch) -> Tensor:
        return batch.users[batch.rows][:, None]

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        rows = self.scores[hidden[:, 0]]
        if items is None:
            return rows
        return rows[:, items] if items.dim() == 1 else rows.gather(1, items)


def make(duplicates: str, users: int = 50, items: int = 40) -> Dataset:
    random = np.random.default_rng(0)
    count = users * 8
    return prepare(
        pl.DataFrame(
            {
                "user_id": random.integers(users, size=count),
                "item_id": random.integers(items, size=count),
                "timestamp": np.arange(count),
            }
        ),
        PrepareConfig(duplicates=duplicates),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make("keep")


@pytest.fixture(scope="module")
def split(dataset: Dataset) -> Split:
    return split_last_two(dataset)


@pytest.fixture(scope="module")
def sasrec(dataset: Dataset) -> SASRec:
    torch.manual_seed(0)
    return SASRec(SASRecConfig(max_length=6, embedding_dim=8, num_blocks=1), dataset.num_items)


def tied(dataset: Dataset, levels: int = 6) -> Fixed:
    return Fixed(np.random.default_rng(1).integers(levels, size=(dataset.num_users, dataset.num_items + 1)))


def history(targets: Targets, row: int) -> list[int]:
    found = targets.histories
    return found.dataset.items[found.starts[row] : found.ends[row]].tolist()


def expected_rank(scores: np.ndarray, target: int, candidates: list[int]) -> tuple[int, int]:
    others = [scores[item] for item in candidates if item != target]
    return sum(value > scores[target] for value in others), sum(value == scores[target] for value in others)


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("levels", [1, 6, 10_000])
def test_full_ranks_agree_with_a_plain_loop(dataset, split, keep_seen, levels):
    model = tied(dataset, levels)
    greater, ties = ranks(model, split.test, keep_seen=keep_seen)
    for row, target in enumerate(split.test.items.tolist()):
        seen = set() if keep_seen else set(history(split.test, row))
        candidates = [item for item in range(1, dataset.num_items + 1) if item not in seen]
        scores = model.scores[split.test.histories.users[row]].numpy()
        expected = expected_rank(scores, target, candidates) if target not in seen else (-1, 0)
        assert (greater[row], ties[row]) == expected


def test_full_ranks_of_a_factored_model_agree_with_a_plain_loop(dataset, split, sasrec):
    greater, ties = ranks(sasrec, split.test)
    with scoring.evaluation_mode(sasrec):
        scores = sasrec.score(scoring.last_states(sasrec, split.test.histories)).numpy()
    for row, target in enumerate(split.test.items.tolist()):
        seen = set(history(split.test, row))
        candidates = [item for item in range(1, dataset.num_items + 1) if item not in seen]
        expected = expected_rank(scores[row], target, candidates) if target not in seen else (-1, 0)
        assert (greater[row], ties[row]) == expected


@pytest.mark.parametrize("negatives", [3, 20, 100])  # also more than any user has unseen items
def test_sampled_ranks_agree_with_a_plain_loop(dataset, split, negatives):
    model = tied(dataset)
    greater, ties = ranks(model, split.test, protocol="sampled", negatives=negatives, seed=5)
    drawn = ranker._draw(split.test, negatives, 5, 0)
    for row, target in enumerate(split.test.items.tolist()):
        user = split.test.histories.users[row]
        mine = set(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]].tolist())
        real = [item for item in drawn[row].tolist() if item]
        assert len(set(real)) == len(real) == min(negatives, dataset.num_items - len(mine))
        assert not mine & set(real)
        expected = expected_rank(model.scores[user].numpy(), target, real)
        assert (greater[row], ties[row]) == expected


def test_metrics_are_means_over_users(dataset, split):
    model = tied(dataset)
    counts = split.train.item_counts()
    found = evaluate(model, split.test, train_counts=counts, k=(3, 10))
    greater, ties = ranks(model, split.test)
    assert found.metrics["hr@3"] == pytest.approx(metrics.hit_rate(greater, ties, 3).mean())
    assert found.metrics["ndcg@10"] == pytest.approx(metrics.ndcg(greater, ties, 10).mean())
    assert found.metrics["mrr"] == pytest.approx(metrics.mrr(greater, ties).mean())
    lists, _ = topk.best(model, split.test.histories, 10)
    assert found.metrics["coverage@3"] == metrics.coverage(lists[:, :3], dataset.num_items)
    assert found.metrics["popularity@10"] == pytest.approx(metrics.popularity(lists, counts).mean())
    assert found.metrics["novelty@10"] == pytest.approx(metrics.novelty(lists, counts).mean())
    assert found.users == len(split.test)
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_a_constant_model_gets_exactly_chance(protocol):
    dataset = make("drop")
    targets = split_last_two(dataset).test
    constant = Fixed(np.zeros((dataset.num_users, dataset.num_items + 1)))
    found = evaluate(constant, targets, train_counts=dataset.item_counts, protocol=protocol, negatives=9, k=(5,))
    if protocol == "sampled":
        candidates = np.full(len(targets), 10)
    else:
        candidates = dataset.num_items - targets.histories.lengths  # no user repeats an item
    assert found.metrics["hr@5"] == pytest.approx((5 / candidates).mean(), abs=1e-12)
    gain = (1 / np.log2(np.arange(2, 7))).sum()
    assert found.metrics["ndcg@5"] == pytest.approx((gain / candidates).mean(), abs=1e-12)


@pytest.mark.parametrize("dim", [1, 7, 15, 30, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the compiled loops, and torch
def test_equal_candidates_have_equal_scores(dim, dtype):
    model = SASRec(SASRecConfig(embedding_dim=dim), 50).to(dtype)
    with torch.no_grad():
        model.item_embedding.weight[1:] = torch.randn(dim)
    scores = model.score(torch.randn(33, dim, dtype=dtype), torch.randint(1, 51, (33, 101)))
    assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_a_model_that_knows_the_target_gets_everything(dataset, split, protocol):
    scores = np.zeros((dataset.num_users, dataset.num_items + 1))
    scores[split.test.histories.users, split.test.items] = 1
    found = evaluate(
        Fixed(scores), split.test, train_counts=dataset.item_counts, protocol=protocol, keep_seen=True, negatives=5
    )
    for name in ("hr@5", "ndcg@5", "mrr@5", "recall@20", "mrr"):
        assert found.metrics[name] == 1
        low, high = found.intervals[name]
        assert 1 - 8 / found.users < low < high == 1


def test_a_target_of_the_history_is_out_of_reach_unless_seen_items_are_kept(dataset, split):
    scores = np.zeros((dataset.num_users, dataset.num_items + 1))
    scores[split.test.histories.users, split.test.items] = 1
    repeats = sum(target in history(split.test, row) for row, target in enumerate(split.test.items.tolist()))
    assert repeats > 0
    found = evaluate(Fixed(scores), split.test, train_counts=dataset.item_counts)
    assert found.unreachable == repeats
    assert found.seen == "removed"
    assert found.metrics["hr@5"] == pytest.approx(1 - repeats / len(split.test))
    kept = evaluate(Fixed(scores), split.test, train_counts=dataset.item_counts, keep_seen=True)
    assert (kept.unreachable, kept.seen) == (0, "kept")


def test_a_score_of_minus_infinity_is_a_miss(dataset, split):
    scores = np.full((dataset.num_users, dataset.num_items + 1), -np.inf)
    for protocol in ("full", "sampled"):
        greater, ties = ranks(Fixed(scores), split.test, protocol=protocol, negatives=5)
        assert (greater == -1).all()
        assert (ties == 0).all()


def test_cold_targets_are_counted(dataset, split):
    counts = split.train.item_counts().copy()
    gone = int(split.test.items[0])
    counts[gone] = 0
    found = evaluate(tied(dataset), split.test, train_counts=counts)
    assert found.cold == (counts[split.test.items] == 0).sum() >= 1


@pytest.mark.parametrize("protocol", ["full", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_and_block_sizes_change_nothing(dataset, split, sasrec, monkeypatch, protocol, batch_size):
    whole = ranks(sasrec, split.test, protocol=protocol, negatives=10)
    monkeypatch.setattr("seqrec.ranking.scoring.CELLS", 16 * 300)
    monkeypatch.setattr("seqrec.ranking.scoring.CELLS", 300)
    parts = ranks(sasrec, split.test, protocol=protocol, negatives=10, batch_size=batch_size)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_negatives_follow_the_seed_and_the_place_alone(monkeypatch):
    dataset = make("drop", users=2500, items=300)
    targets = split_last_two(dataset).test
    drawn = ranker._draw(targets, 10, 0, 0)
    np.testing.assert_array_equal(drawn, ranker._draw(targets, 10, 0, 0))
    assert (drawn != ranker._draw(targets, 10, 1, 0)).any()
    # Each block can draw its negatives separately, which bounds the memory.
    np.testing.assert_array_equal(drawn[1024:2048], ranker._draw(targets.take(slice(1024, 2048)), 10, 0, 1))
    keys = targets.histories.users[:, None] * (dataset.num_items + 1) + drawn
    assert not contains(dataset.seen_keys, keys).any()
    # A pass over the users in parts of several blocks uses the same negatives.
    model = tied(dataset)
    whole = ranks(model, targets, protocol="sampled", negatives=10)
    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", 1024)
    parts = ranks(model, targets, protocol="sampled", negatives=10)
    np.testing.assert_array_equal(whole[0], parts[0])


def test_baselines_meet_the_same_targets_and_negatives(dataset, split, sasrec):
    popularity = Popularity(PopularityConfig(), dataset.num_items)
    popularity.count(split.train)
    counts = split.train.item_counts()
    for protocol in ("full", "sampled"):
        beside = evaluate(
            sasrec,
            split.test,
            train_counts=counts,
            protocol=protocol,
            negatives=9,
            baselines={"popularity": popularity},
        )
        alone = evaluate(popularity, split.test, train_counts=counts, protocol=protocol, negatives=9)
        assert beside.baselines["popularity"].metrics == alone.metrics
        for name, ends in alone.intervals.items():
            assert beside.baselines["popularity"].intervals[name] == pytest.approx(ends)


def test_the_result_goes_into_json_and_a_table(dataset, split):
    model = tied(dataset)
    found = evaluate(model, split.test, train_counts=dataset.item_counts, split="test", baselines={"same": model})
    assert isinstance(found, Evaluation)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["metrics"] == found.metrics
    assert read["intervals"]["hr@10"] == list(found.intervals["hr@10"])
    assert read["baselines"]["same"]["metrics"] == found.metrics
    assert {"protocol", "split", "users", "seconds", "seen", "negatives", "unreachable", "cold"} <= set(read)
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(table(found, "fixed"))
    text = capture.get()
    low, high = found.intervals["ndcg@10"]
    assert with_interval(found.metrics["ndcg@10"], low, high) in text
    assert "recall" not in text
    assert "fixed" in text
    assert "seen items removed" in text


def test_intervals_of_few_hits_have_both_ends():
    assert with_interval(0.5, 0.4, 0.6) == "0.5000 ±0.1000"
    assert with_interval(0.5, 0.41, 0.61) == "0.5000 ±0.1000"
    assert with_interval(0.01, 0.0, 0.0599) == "0.0100 .0000–.0599"
    assert with_interval(1.0, 0.93, 1.0) == "1.0000 .9300–1.0000"


def test_intervals_hold_the_true_mean_where_hits_are_few():
    """With 0, 1 or 2 hits among 100 targets, no interval has the width 0."""
    users, items = np.repeat(np.arange(100), 3), np.arange(300) % 90
    dataset = prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(300)}))
    targets = split_last_two(dataset).test
    scores = np.random.default_rng(0).random((dataset.num_users, dataset.num_items + 1)) + 1
    scores[np.arange(100), targets.items] = 0  # all targets rank last
    for found in (0, 1, 2):
        scores[:found, :] = 0
        scores[np.arange(found), targets.items[:found]] = 3
        result = evaluate(Fixed(scores), targets, train_counts=dataset.item_counts, k=(10,))
        assert result.metrics["hr@10"] == found / 100
        for name in ("hr@10", "recall@10", "ndcg@10", "mrr@10"):
            low, high = result.intervals[name]
            assert 0 <= low <= 0.01 < high < 0.1
        for name in ("popularity@10", "novelty@10"):
            assert result.intervals[name][0] < result.metrics[name] < result.intervals[name][1]


def test_bad_input_is_refused(dataset, split):
    model = tied(dataset)
    counts = dataset.item_counts
    with pytest.raises(InputError, match="unknown protocol 'half'"):
        evaluate(model, split.test, train_counts=counts, protocol="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nobody to evaluate on"):
        evaluate(model, split.test.take(slice(0, 0)), train_counts=counts)
    with pytest.raises(InputError, match="keep_seen is 'false'; give True or False"):
        evaluate(model, split.test, train_counts=counts, keep_seen="false")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="negatives is 0"):
        ranks(model, split.test, protocol="sampled", negatives=0)
    with pytest.raises(InputError, match="lengths of the lists"):
        evaluate(model, split.test, train_counts=counts, k=())
    strangers = Targets(histories_of(dataset, [np.array([1, 2])]), np.array([3]))
    with pytest.raises(ValueError, match="users of the dataset"):
        ranks(model, strangers, protocol="sampled")
    broken = Fixed(np.full((dataset.num_users, dataset.num_items + 1), np.nan))
    for protocol in ("full", "sampled"):
        with pytest.raises(InputError, match="lower the learning rate"):
            evaluate(broken, split.test, train_counts=counts, protocol=protocol, negatives=5)
        with pytest.raises(InputError, match="lower the learning rate"):
            ranks(broken, split.test, protocol=protocol, negatives=5)


def test_the_training_flag_is_restored(split, sasrec):
    sasrec.train()
    ranks(sasrec, split.test)
    assert sasrec.training


def test_fewer_negatives_than_asked_are_told():
    frame = pl.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2], "item_id": [1, 2, 3, 1, 3, 4, 5]})
    few = split_last_two(prepare(frame))
    found = evaluate(tied(few.train.dataset), few.test, protocol="sampled", train_counts=few.train.item_counts())
    assert found.fewest_negatives == 2
    assert found.negatives == 4  # all items but the target
    assert "for some users only 2 unseen items" in str(table(found).caption)
