"""Transition counts: scores against the formula of the docstring in float64, what a state sees, and bad tables."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec.data.batches import histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories, split_last_two
from seqrec.errors import InputError
from seqrec.models.popularity import Popularity, PopularityConfig
from seqrec.models.transitions import LEAST_WEIGHT, PRIOR, Transitions, TransitionsConfig
from seqrec.ranking.topk import best

CONFIGS: list[dict[str, Any]] = [
    {},
    {"distance": 1, "neighbours": 0.0, "scale": 1.0, "decay": 0.4},
    {"distance": 3, "damping": 1.0, "scale": 30.0, "decay": 1.0},
    {"damping": 0.25, "neighbours": 30.0, "max_length": 4},
    {"decay": 0.9, "successors": 3},
    {"successors": 1, "neighbours": 10.0, "max_length": 1},
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(3)
    items = random.zipf(1.5, size=700).clip(max=30)
    users = np.sort(random.integers(45, size=700))
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(700)}))


@pytest.fixture(scope="module")
def train(dataset: Dataset) -> Histories:
    return split_last_two(dataset).train


def counted(train: Histories, wanted: np.ndarray | None = None, **config: Any) -> Transitions:
    model = Transitions(TransitionsConfig(**config), train.dataset.num_items)
    model.count(train, wanted)
    return model.eval()


def lists_of(histories: Histories) -> list[list[int]]:
    starts, ends = histories.starts.tolist(), histories.ends.tolist()
    return [histories.dataset.items[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


def naive_weights(train: Histories, config: TransitionsConfig) -> np.ndarray:
    """W ``float64[I + 1, I + 1]``, of which each row keeps its highest."""
    assert config.scale is not None
    assert config.damping is not None
    assert config.neighbours is not None
    assert config.distance is not None
    size = train.dataset.num_items + 1
    after, beside, n = np.zeros((size, size)), np.zeros((size, size)), np.zeros(size)
    for history in lists_of(train):
        for q, j in enumerate(history):
            n[j] += 1
            for p in range(max(0, q - config.distance), q):
                if history[p] != j:
                    after[history[p], j] += 1 / (q - p)
                    beside[history[p], j] += 1
                    beside[j, history[p]] += 1
    mean = n[1:].sum() / (size - 1)
    found = np.zeros((size, size))
    for i in range(1, size):
        for j in range(1, size):
            damped = after[i, j] * ((mean + 5) / (n[j] + 5)) ** config.damping
            found[i, j] = math.log(1 + config.scale * damped)
            found[i, j] += config.neighbours * beside[i, j] / math.sqrt((n[i] + 5) * (n[j] + 5))
        dropped = np.argsort(-found[i], kind="stable")[config.successors or 400 :]
        found[i, dropped] = 0
    return found


def naive_scores(train: Histories, weights: np.ndarray, config: TransitionsConfig, history: list[int]) -> np.ndarray:
    """Scores ``float64[I + 1]`` after a history, given W."""
    assert config.decay is not None
    counts = np.bincount(np.concatenate(lists_of(train)))
    counts = np.pad(counts, (0, train.dataset.num_items + 1 - len(counts)))
    seen = [(config.decay**age, item) for age, item in enumerate(history[::-1][: config.max_length])]
    seen = [(weight, item) for weight, item in seen if weight >= LEAST_WEIGHT]
    total = sum(weight for weight, _ in seen)
    scores = sum((weight / total * weights[item] for weight, item in seen), np.zeros(len(weights)))
    prior = PRIOR * np.log1p(counts) / max(1, np.log1p(counts).max())
    found: np.ndarray = scores + prior
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_scores_are_those_of_the_formula(
    train: Histories, config: dict[str, Any], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)
    model = counted(train, **config)
    batch = pack(all_histories(train.dataset), model.max_length)
    scores = model.score(model.encode(batch)).numpy()
    assert scores.shape == (len(batch.items), train.dataset.num_items + 1)
    weights = naive_weights(train, model.config)
    for row in (0, 3, 17, 30):
        history = batch.items[batch.offsets[row] : batch.offsets[row + 1]].tolist()
        for length in {1, 2, len(history) // 2 + 1, len(history)} - {len(history) + 1}:
            expected = naive_scores(train, weights, model.config, history[:length])
            found = scores[batch.offsets[row] + length - 1]
            np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_states_of_the_last_tokens_agree(train: Histories, config: dict[str, Any]) -> None:
    model = counted(train, **config)
    histories = all_histories(train.dataset)
    batch = pack(histories, model.max_length)
    last = model.encode_last(batch)
    assert last.shape == (len(histories), model.reach)
    assert torch.equal(last, model.encode(batch)[batch.last])
    assert torch.equal(last, model.newest(histories))


def test_states_of_short_histories_end_with_zeros(dataset: Dataset, train: Histories) -> None:
    model = counted(train, decay=0.5)
    given = histories_of(dataset, [np.array([4]), np.array([], dtype=np.int64), np.array([7, 2, 9])])
    states = model.newest(given)
    assert states[:, :4].tolist() == [[4, 0, 0, 0], [0, 0, 0, 0], [9, 2, 7, 0]]
    assert not states[:, 3:].any()
    rows = model.rows(states)
    assert rows.offsets[1] == rows.offsets[2]  # nothing follows nothing
    assert torch.equal(model.score(states)[1], model.prior())
    assert torch.equal(model.score(states, torch.tensor([[3, 1]] * 3))[1], model.prior()[[3, 1]])
    assert model.newest(given.take(slice(0, 0))).shape == (0, model.reach)


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        ({"decay": 0.5}, 10), ({"decay": 0.5, "max_length": 6}, 6), ({"decay": 1.0, "max_length": 7}, 7),
        ({"decay": 1e-9}, 1), ({"decay": 0.9}, 50), ({"decay": 0.9, "max_length": 500}, 66), ({"max_length": 1}, 1),
    ],
)  # fmt: skip
def test_older_items_than_the_reach_change_nothing(dataset: Dataset, train: Histories, config: Any, reach: int) -> None:
    model = counted(train, **config)
    assert model.reach == reach
    items = np.arange(70) % 6 + 1  # often followed by others
    before = model.score(model.newest(histories_of(dataset, [items])))
    older, within = items.copy(), items.copy()
    older[:-reach] = 8
    within[-reach] = 8
    assert torch.equal(model.score(model.newest(histories_of(dataset, [older]))), before)
    assert not torch.equal(model.score(model.newest(histories_of(dataset, [within]))), before)


def test_rows_of_items_that_are_not_wanted_are_empty(dataset: Dataset, train: Histories) -> None:
    wanted = np.zeros(dataset.num_items + 1, dtype=bool)
    wanted[[0, 2, 5]] = True
    full, some = counted(train), counted(train, wanted)
    assert torch.equal(some.counts, full.counts)
    for item in range(dataset.num_items + 1):
        states = torch.tensor([[item]])
        expected = full.rows(states).columns if wanted[item] else []
        np.testing.assert_array_equal(some.rows(states).columns, expected)
    assert torch.equal(some.score(torch.tensor([[5, 2]])), full.score(torch.tensor([[5, 2]])))


def test_counts_of_another_model_are_shared(train: Histories) -> None:
    counts = counted(train, decay=1.0)
    config = TransitionsConfig(decay=0.3)
    model = Transitions(config, train.dataset.num_items).take(counts)
    states = model.newest(train)
    assert model.columns.data_ptr() == counts.columns.data_ptr()
    assert torch.equal(model.score(states), counted(train, decay=0.3).score(states))


def test_what_is_not_given_has_a_default() -> None:
    defaults = TransitionsConfig().resolved()
    given = {name: value for name, value in vars(defaults).items() if name != "successors"}  # depends on the catalogue
    assert None not in given.values()
    asked = TransitionsConfig(
        distance=3, scale=2.0, damping=0.5, neighbours=0.0, decay=1.0, recency=0.5, days=2.0, successors=9
    )
    assert asked.resolved() == asked


def test_recent_interactions_count_for_every_history() -> None:
    frame = pl.DataFrame(
        {
            "user_id": [0, 0, 0, 1, 1],
            "item_id": [1, 2, 3, 3, 4],
            "timestamp": [0, 50 * 86_400, 99 * 86_400, 0, 100 * 86_400],
        }
    )
    histories = all_histories(prepare(frame))
    model, plain = (Transitions(TransitionsConfig(recency=some, days=2.0), 4) for some in (0.5, 0.0))
    for counts in (model, plain):
        counts.count(histories)
    assert model.recent.tolist() == [0, 0, 0, 1, 1]
    assert plain.recent_scores() is None
    states = plain.newest(histories)
    expected = plain.score(states) + 0.5 * torch.log1p(torch.tensor([0.0, 0, 0, 1, 1]))
    torch.testing.assert_close(model.score(states), expected)
    candidates = torch.tensor([[3, 1], [4, 2]])
    torch.testing.assert_close(model.score(states, candidates), expected.gather(1, candidates))


@pytest.mark.parametrize(
    "wrong",
    [
        {"distance": 0}, {"distance": 10**5}, {"scale": 0.0}, {"scale": math.nan}, {"damping": -0.1}, {"damping": 1.1},
        {"neighbours": -1.0}, {"neighbours": math.inf}, {"decay": 0.0}, {"decay": 1.1}, {"successors": 0},
        {"max_length": 0}, {"max_length": 2**70}, {"decay": "fast"},
    ],
)  # fmt: skip
def test_constants_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TransitionsConfig(**wrong)


BAD: dict[str, dict[str, torch.Tensor]] = {
    "counts are all zero": {"counts": torch.zeros(4, dtype=torch.int64)},
    "counts are negative": {"counts": torch.tensor([0, 1, -1, 2])},
    "recent counts are negative": {"recent": torch.tensor([0, 1, -1, 2])},
    "more columns": {"columns": torch.tensor([2, 3, 1, 1], dtype=torch.int32)},
    "fewer values": {"values": torch.ones(2)},
    "column 0": {"columns": torch.tensor([2, 0, 1], dtype=torch.int32)},
    "a column above the catalogue": {"columns": torch.tensor([2, 4, 1], dtype=torch.int32)},
    "a negative column": {"columns": torch.tensor([2, -3, 1], dtype=torch.int32)},
    "offsets that do not begin at 0": {"offsets": torch.tensor([1, 1, 2, 2, 3])},
    "offsets that end early": {"offsets": torch.tensor([0, 0, 1, 2, 2])},
    "offsets that end late": {"offsets": torch.tensor([0, 0, 1, 2, 9])},
    "offsets that fall": {"offsets": torch.tensor([0, 2, 1, 3, 3])},
    "huge offsets": {"offsets": torch.tensor([0, 2**62, -(2**62), 3, 3])},
}


def small() -> Transitions:
    """Counts of three items."""
    model = Transitions(TransitionsConfig(), 3)
    state = {"counts": [0, 3, 2, 1], "recent": [0, 0, 1, 0], "offsets": [0, 0, 1, 2, 3], "columns": [2, 3, 1]}
    kinds = {"columns": torch.int32}
    tensors = {name: torch.tensor(part, dtype=kinds.get(name, torch.int64)) for name, part in state.items()}
    model.load_state_dict({**tensors, "values": torch.tensor([1.0, 2.0, 3.0])})
    return model


def test_a_loaded_table_scores() -> None:
    model = small()
    model.check_weights()
    scores = model.score(torch.tensor([[2]]))[0] - model.prior()
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, 0.0, 2.0]))


@pytest.mark.parametrize("what", BAD)
def test_an_impossible_table_is_refused(what: str) -> None:
    model = small()
    model.load_state_dict({**model.state_dict(), **BAD[what]})
    with pytest.raises(ValueError, match=r"counts|columns|offsets"):
        model.check_weights()


def test_it_finds_what_popularity_cannot() -> None:
    """In a log of rings, the next item is certain; popularity knows nothing."""
    rows = [(f"u{u}", (u * 5 + step) % 35 + 1, step) for u in range(60) for step in range(8)]
    ring = prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    split = split_last_two(ring)
    shares = []
    for model in (counted(split.train), Popularity(PopularityConfig(), ring.num_items)):
        model.count(split.train)
        found = best(model, split.test.histories, 1)[0][:, 0]
        shares.append(float((found == split.test.items).mean()))
    assert shares[0] == 1.0
    assert shares[1] < 0.3
