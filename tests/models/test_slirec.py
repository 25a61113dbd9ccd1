import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from planted import planted_log
from torch import Tensor

from seqrec import Recommender, TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.errors import InputError, TrainingWarning
from seqrec.models import slirec
from seqrec.models.base import Model
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.models.slirec import SLiRec, SLiRecConfig, log_interval
from seqrec.ranking.protocols import evaluate
from seqrec.training.loop import train

NUM_ITEMS = 30
History = tuple[list[int], list[int]]  # items and times


def batch_of(histories: list[History], max_length: int, with_targets: bool = False) -> Batch:
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": list(range(1, NUM_ITEMS + 1))}))
    items = [np.array(history[0], dtype=np.int64) for history in histories]
    times = [np.array(history[1], dtype=np.int64) for history in histories]
    return pack(histories_of(dataset, items, times), max_length, with_targets)


def random_histories(seed: int = 0, users: int = 12, longest: int = 14) -> list[History]:
    """Histories with intervals from 0 to weeks."""
    random = np.random.default_rng(seed)
    lengths = [1, 2, longest, *random.integers(1, longest + 1, users - 3)]
    result = []
    for length in lengths:
        gaps = random.choice([0, 1, 600, 90_000, 2_000_000], size=length) * random.integers(1, 5, length)
        result.append((random.integers(1, NUM_ITEMS + 1, length).tolist(), (10**9 + gaps.cumsum()).tolist()))
    return result


SMALL = {
    "max_length": 10,
    "embedding_dim": 8,
    "attention_dim": 5,
    "attention_length": 4,
    "attention_hidden_dims": (7, 6),
    "hidden_dims": (9, 5),
    "category_dim": 3,
    "dropout": 0.0,
}


def model_of(seed: int = 0, **values) -> SLiRec:
    torch.manual_seed(seed)
    model = SLiRec(SLiRecConfig(**SMALL | values), NUM_ITEMS)
    with torch.no_grad():  # away from the neutral or small initial values
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if model.config.num_categories:
        model.set_categories(torch.arange(NUM_ITEMS + 1) % (model.config.num_categories + 1))
    return model


# ---------------------------------------------------------------- an independent implementation


class OneByOne:
    """The model in float64, one user, token and candidate at a time, directly from the equations."""

    def __init__(self, model: SLiRec) -> None:
        self.config = model.config
        self.weights = {name: value.detach().double() for name, value in model.state_dict().items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        bias = self.weights.get(f"{name}.bias", torch.zeros((), dtype=torch.float64))
        return self.weights[f"{name}.weight"] @ x + bias

    def network(self, x: Tensor, name: str, activation) -> Tensor:
        x = activation(self.linear(x, f"{name}.first"))
        layer = 0
        while f"{name}.middle.{layer}.weight" in self.weights:
            x = activation(self.linear(x, f"{name}.middle.{layer}"))
            layer += 1
        return self.linear(x, f"{name}.last")[0]

    def vector(self, item: int) -> Tensor:
        vector = self.weights["item_embedding.weight"][item]
        if "categories" in self.weights:
            category = int(self.weights["categories"][item])
            vector = torch.cat([vector, self.weights["category_embedding.weight"][category]])
        return vector * math.sqrt(self.config.embedding_dim)

    def long_term(self, x: list[Tensor]) -> Tensor:
        a = torch.stack([self.network(step, "long_attention", torch.tanh) for step in x]).softmax(dim=0)
        return sum(weight * step for weight, step in zip(a, x, strict=True))

    def states(self, x: list[Tensor], times: list[int]) -> list[Tensor]:
        d = self.config.embedding_dim
        h = c = torch.zeros(d, dtype=torch.float64)
        result = []
        for k, step in enumerate(x):
            last = interval(times[k] - times[k - 1]) if k else interval(0)
            delta = self.linear(last, "short_term.since_last").tanh()
            span = self.linear(interval(times[k] - times[0]), "short_term.since_first").tanh()
            i, f, o, j, t_delta, t_s = self.linear(step, "short_term.input").split(d)
            from_h = self.linear(h, "short_term.recurrent").split(d)
            o_delta, gate_delta = self.linear(delta, "short_term.last_gates").split(d)
            o_span, gate_span = self.linear(span, "short_term.first_gates").split(d)
            forget = (f + from_h[1]).sigmoid() * (t_delta + gate_delta).sigmoid()
            put = (i + from_h[0]).sigmoid() * (t_s + gate_span).sigmoid()
            c = forget * c + put * (j + from_h[3]).tanh()
            h = (o + from_h[2] + o_delta + o_span).sigmoid() * c.tanh()
            result.append(h)
        return result

    def scores(self, items: list[int], times: list[int]) -> Tensor:
        """Logits ``[tokens, I + 1]``."""
        items, times = items[-self.config.max_length :], times[-self.config.max_length :]
        x = [self.vector(item) for item in items]
        states = self.states(x, times)
        rows = []
        for i in range(len(items)):
            long = self.long_term(x[: i + 1])
            gap = interval(times[i] - times[i - 1]) if i else interval(0)
            seen = range(max(0, i + 1 - self.config.attention_length), i + 1)
            rows.append([])
            for candidate in range(NUM_ITEMS + 1):
                target = self.vector(candidate)
                query = self.linear(target, "query")
                query = torch.where(query > 0, query, self.weights["query_activation.weight"] * query)
                e = [
                    self.network(
                        torch.cat([states[k], query, states[k] * query, interval(times[i] - times[k])]),
                        "attention",
                        torch.sigmoid,
                    )
                    for k in seen
                ]
                a = torch.stack(e).softmax(dim=0)
                short = sum(weight * states[k] for weight, k in zip(a, seen, strict=True))
                alpha = self.network(torch.cat([target, long, short, gap]), "fusion", torch.sigmoid).sigmoid()
                preference = alpha * long + (1 - alpha) * short
                rows[-1].append(self.network(torch.cat([target, preference]), "prediction", torch.relu))
        return torch.tensor(rows)


def interval(seconds: int) -> Tensor:
    return torch.tensor([math.log(1 + abs(seconds)) / math.log(1 + 24 * 3600)], dtype=torch.float64)


CONFIGS = [
    {},
    {"attention_length": 1},
    {"attention_length": 50},  # more than the history has
    {"max_length": 1},
    {"max_length": 3},
    {"attention_hidden_dims": (4,), "hidden_dims": (3,)},
    {"hidden_dims": (6, 5, 4)},
    {"num_categories": 4},
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("values", "with_targets"),
    [*((values, False) for values in CONFIGS), ({}, True), ({"max_length": 1}, True)],
    ids=str,
)
def test_packed_is_one_by_one(values, with_targets):
    model = model_of(**values)
    histories = random_histories(users=5, longest=12)
    batch = batch_of(histories, model.config.max_length, with_targets)
    hidden = model.encode(batch)
    assert hidden.shape == (int(batch.offsets[-1]), 8 + 2 + model.slots * 9)
    naive = OneByOne(model)
    for row, (items, times) in enumerate(histories):
        if with_targets:
            items, times = items[:-1], times[:-1]
        if not items:
            continue
        ours = model.score(hidden[batch.offsets[row] : batch.offsets[row + 1]])
        torch.testing.assert_close(ours.double(), naive.scores(items, times), rtol=1e-4, atol=1e-4)


def test_the_output_of_a_network_has_a_bias_where_it_makes_a_difference():
    """Biases matter in fusion and prediction, but not in front of a softmax, which ignores a constant."""
    model = model_of().eval()
    batch = batch_of(random_histories(), 10)
    before = model.score(model.encode(batch))
    for network in (model.long_attention, model.attention, model.fusion, model.prediction):
        with_bias = network.last.bias is not None
        raised = network.last.register_forward_hook(lambda module, inputs, output: output + 1.5)
        after = model.score(model.encode(batch))
        raised.remove()
        if network is model.prediction:
            torch.testing.assert_close(after, before + 1.5)
        assert torch.allclose(after, before, atol=1e-5) != with_bias
    moved = model.score(model.encode(batch))
    with torch.no_grad():
        model.fusion.last.bias += 1.5
    assert not torch.allclose(model.score(model.encode(batch)), moved, atol=1e-3)


def test_gradients_of_packed_and_one_by_one():
    model = model_of(num_categories=4).double()
    histories = random_histories(3)
    batch = batch_of(histories, 10, with_targets=True)
    together = torch.nn.functional.cross_entropy(model.score(model.encode(batch)), batch.targets, reduction="sum")
    gradients = torch.autograd.grad(together, list(model.parameters()))
    alone = torch.zeros((), dtype=torch.float64)
    for history in histories:
        one = batch_of([history], 10, with_targets=True)
        if len(one.items):
            logits = model.score(model.encode(one))
            alone = alone + torch.nn.functional.cross_entropy(logits, one.targets, reduction="sum")
    for a, b in zip(gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("cells", [30, 100, 1000])
def test_scores_in_blocks_of_any_size(cells, monkeypatch):
    model = model_of()
    hidden = model.encode(batch_of(random_histories(users=4), 10))
    each = torch.randint(1, NUM_ITEMS + 1, (len(hidden), 5), generator=torch.Generator().manual_seed(0))
    full, some = model.score(hidden), model.score(hidden, each)
    monkeypatch.setattr(slirec, "_CELLS", cells)
    torch.testing.assert_close(model.score(hidden), full)
    torch.testing.assert_close(model.score(hidden, each), some)
    torch.testing.assert_close(full.gather(1, each), some)


# ---------------------------------------------------------------- times


def test_log_interval():
    seconds = torch.tensor([0, 86_400, 365 * 86_400, -86_400])
    expected = [0, 1, math.log(1 + 365 * 86_400) / math.log(86_401), 1]
    assert log_interval(seconds).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("times", "same"),
    [
        ([100, 900, 1000, 90_000], False),  # the interval before the last one, and one of the ages
        ([0, 500, 1000, 90_000], False),  # only the first action
        ([1100, 1500, 2000, 91_000], True),  # all of them by the same amount
    ],
)
def test_only_intervals_matter(times, same):
    model = model_of()
    before, after = (
        model.score(model.encode(batch_of([([1, 2, 3, 4], moments)], 10)))[-1]
        for moments in ([100, 500, 1000, 90_000], times)
    )
    assert torch.allclose(before, after, atol=1e-6) == same


def test_later_times_do_not_change_earlier_states():
    model = model_of()
    items, times = list(range(1, 9)), [0, 1000, 2000, 5000, 5500, 600_000, 900_000, 990_000]
    before = model.score(model.encode(batch_of([(items, times)], 10)))
    for cut in range(1, 8):
        later = times[:cut] + [time + 10**6 for time in times[cut:]]
        after = model.score(model.encode(batch_of([(items, later)], 10)))
        torch.testing.assert_close(after[:cut], before[:cut])
        assert (after[cut:] - before[cut:]).abs().max() > 1e-5


def test_alpha_weighs_long_and_short():
    model = model_of()
    hidden = model.encode(batch_of(random_histories(), 10))
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.zero_()
        model.fusion.first.bias.fill_(100)  # all activations are 1
        for layer in model.fusion.middle:
            layer.bias.fill_(100)
        model.fusion.last.weight.fill_(100)
    moved = hidden.clone()
    moved[:, 8 + 2 + model.slots :] += 1  # the states
    torch.testing.assert_close(model.score(moved), model.score(hidden))  # alpha is 1
    with torch.no_grad():
        model.fusion.last.weight.fill_(-100)
    moved = hidden.clone()
    moved[:, :8] += 1  # the long-term preference
    torch.testing.assert_close(model.score(moved), model.score(hidden))  # alpha is 0


# ---------------------------------------------------------------- categories, initial weights, configuration


def test_categories():
    model = model_of(num_categories=4)
    batch = batch_of(random_histories(), 10)
    before = model.score(model.encode(batch))
    state = safetensors.torch.load(safetensors.torch.save(model.state_dict()))
    again = SLiRec(model.config, NUM_ITEMS)
    again.load_state_dict(state)
    assert torch.equal(again.score(again.encode(batch)), before)
    model.set_categories(torch.zeros(NUM_ITEMS + 1, dtype=torch.int64))
    assert not torch.allclose(model.score(model.encode(batch)), before)
    with pytest.raises(ValueError, match=r"shape \(3,\); give \(31,\)"):
        model.set_categories(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="categories are from 0 to 5"):
        model.set_categories(torch.arange(NUM_ITEMS + 1) % 6)
    with pytest.raises(ValueError, match="num_categories is 0"):
        model_of().set_categories(torch.zeros(NUM_ITEMS + 1, dtype=torch.int64))


def test_training_with_categories_keeps_them():
    dataset = prepare(planted_log(users=20))
    model = SLiRec(SLiRecConfig(**SMALL, num_categories=2), dataset.num_items)
    categories = torch.arange(dataset.num_items + 1) % 3
    model.set_categories(categories)
    start = model.category_embedding.weight.detach().clone()
    train(model, split_last_two(dataset), TrainConfig(epochs=3, evaluate_every=0))
    assert torch.equal(model.categories.long(), categories)
    assert not torch.equal(model.category_embedding.weight, start)


def test_an_empty_batch_and_users_without_items():
    model = model_of()
    assert model.encode(batch_of([], 10)).shape == (0, 8 + 2 + 4 * 9)
    alone = model.encode(batch_of([([3, 4], [5, 6])], 10))
    torch.testing.assert_close(model.encode(batch_of([([], []), ([3, 4], [5, 6]), ([], [])], 10)), alone)


def test_the_start():
    model = SLiRec(SLiRecConfig(num_categories=3), 5000)
    assert (model.item_embedding.weight[0] == 0).all()
    assert model.item_embedding.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (model.query_activation.weight == 0.1).all()
    biases = model.short_term.input.bias.view(6, 64)
    assert biases.sum(dim=1).tolist() == [0, 64, 0, 0, 0, 0]  # the forget gate
    start = {name: value.std().item() for name, value in model.state_dict().items() if value.numel() > 1}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset()
    for name, value in model.state_dict().items():
        if name in start:
            assert value.std().item() == pytest.approx(start[name], rel=0.3, abs=1e-6), name
    assert model.fusion.last.bias.item() == model.prediction.last.bias.item() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"attention_dim": 0}, "attention_dim is 0"),
        ({"attention_length": 0}, "attention_length is 0"),
        ({"attention_length": 10**9}, "attention_length is 1000000000; give 1 to 1024"),
        ({"attention_hidden_dims": ()}, "attention_hidden_dims is \\(\\); give at least one number"),
        ({"hidden_dims": (8, 0)}, r"hidden_dims is \(8, 0\)"),
        ({"num_categories": -1}, "num_categories is -1; give 0 or more"),
        ({"num_categories": 2, "category_dim": 64}, "category_dim is 64; give less than embedding_dim 64"),
        ({"category_dim": 0}, "category_dim is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        SLiRecConfig(**values)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- learning


def log_of_categories(users: int = 200, items: int = 300, length: int = 6) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The category of the next item follows from that of the last item; which of its 50 items comes is random."""
    random = np.random.default_rng(0)
    walk = (random.integers(6, size=(users, 1)) + np.arange(length)) % 6
    walk += 6 * random.integers(items // 6, size=walk.shape)
    times = np.tile(np.arange(length) * 1000, users)
    log = pl.DataFrame({"user_id": np.repeat(np.arange(users), length), "item_id": walk.ravel(), "timestamp": times})
    names = [[f"category {item % 6}", "of no account"] for item in range(items)]
    return log, pl.DataFrame({"item_id": range(items), "categories": names})


@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")  # some items have no interactions
@pytest.mark.slow
def test_categories_of_the_items_are_learnt(tmp_path: Path):
    log, items = log_of_categories()
    options = {"embedding_dim": 16, "category_dim": 8, "max_length": 5, "dropout": 0.0, "batch_size": 32, "epochs": 20,
               "attention_length": 3, "attention_hidden_dims": (8,), "hidden_dims": (8,), "learning_rate": 0.02,
               "evaluate_every": 0, "seed": 1}  # fmt: skip

    def share(recommender: Recommender) -> float:
        """The share of recommended items that belong to the next category."""
        data = recommender.dataset
        last = data.item_ids.gather(data.items[data.offsets[1:] - 1] - 1).to_numpy()
        following = pl.DataFrame({"user_id": data.user_ids, "next": (last + 1) % 6})
        frame = recommender.recommend(k=10, keep_seen=True).join(following, on="user_id")
        return (frame["item_id"] % 6 == frame["next"]).mean()

    without = Recommender("slirec", **options).fit(log)
    with pytest.warns(
        TrainingWarning, match=r"learns one of 6 categories per item; items with several \(\d+\) count under the first"
    ):
        learnt = Recommender("slirec", **options).fit(log, items=items)
    assert share(learnt) > 2 * share(without)
    learnt.save(tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.model.config.num_categories == 6
    assert again.recommend(k=3).equals(learnt.recommend(k=3))


def test_categories_can_be_turned_off():
    log, items = log_of_categories(users=20)
    log = log.join(items.with_columns(pl.col("categories").list.first()), on="item_id")  # the log has the column itself
    options = {"embedding_dim": 20, "epochs": 1, "evaluate_every": 0, "transitions": "off"}
    with_all = Recommender("slirec", **options).fit(log)
    assert with_all.model.config.num_categories == 6
    assert Recommender("slirec", **options, num_categories=2).fit(log).model.config.num_categories == 2
    without = Recommender("slirec", **options, num_categories=0).fit(log)
    assert without.recommend(k=5).equals(Recommender("slirec", **options).fit(log.drop("categories")).recommend(k=5))


def with_shuffled_times(dataset: Dataset, seed: int = 1) -> Dataset:
    """The same histories, with the intervals of each shuffled."""
    random = np.random.default_rng(seed)
    times = dataset.timestamps.copy()
    for start, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        times[start + 1 : end] = times[start] + random.permutation(np.diff(times[start:end])).cumsum()
    return replace(dataset, timestamps=times)


def hit_rate(model: Model, dataset: Dataset) -> float:
    """HR@1 after training."""
    split = split_last_two(dataset)
    config = TrainConfig(epochs=20, learning_rate=0.02, batch_size=64, evaluate_every=0, loss="bce", negatives=4)
    train(model, split, config)
    found = evaluate(model, split.test, train_counts=split.train.item_counts(), k=(1,), keep_seen=True)
    return found.metrics["hr@1"]


@pytest.mark.slow
def test_it_learns_from_time_gaps():
    dataset = prepare(planted_log())
    sizes = {"max_length": 8, "embedding_dim": 32, "dropout": 0.0}
    config = SLiRecConfig(**sizes, attention_dim=16, attention_length=4, attention_hidden_dims=(16,), hidden_dims=(32,))
    torch.manual_seed(0)
    real = hit_rate(SLiRec(config, 20), dataset)
    torch.manual_seed(0)
    shuffled = hit_rate(SLiRec(config, 20), with_shuffled_times(dataset))
    torch.manual_seed(0)
    without = hit_rate(SASRec(SASRecConfig(**sizes), 20), dataset)
    assert real > 0.9
    assert max(shuffled, without) < 0.65  # guessing one of two gives 0.5


def test_save_load_recommend(tmp_path: Path):
    log = planted_log(users=40)
    options = {"embedding_dim": 8, "max_length": 6, "epochs": 2, "attention_hidden_dims": (5,), "hidden_dims": (6, 4)}
    recommender = Recommender("slirec", **options).fit(log, tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.model_config == replace(recommender.model_config, num_categories=0)  # resolved
    expected = recommender.recommend(users=[3, 5], k=4)
    assert expected.height == 8
    assert again.recommend(users=[3, 5], k=4).equals(expected)
    people = pl.DataFrame({"user_id": ["a"] * 3, "item_id": [1, 2, 9], "timestamp": [5, 60, 70_000]})
    assert again.recommend(histories=people, k=3).height == 3
    with pytest.raises(InputError, match="slirec has no item embeddings"):
        again.similar([4], k=2)
