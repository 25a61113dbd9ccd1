import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import Recommender, kernels, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.draws import Draws
from seqrec.errors import InputError
from seqrec.models.blocks import Dropout, dropouts_of, seed_dropout
from seqrec.models.esasrec import ESASRec, ESASRecConfig
from seqrec.ranking.protocols import evaluate
from seqrec.run.folder import Run
from seqrec.training.config import TrainConfig
from seqrec.training.loop import train

NUM_ITEMS = 30


def batch_of(item_lists: list[list[int]], max_length: int, with_targets: bool = False) -> Batch:
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": list(range(1, NUM_ITEMS + 1))}))
    return pack(histories_of(dataset, [np.array(i, dtype=np.int64) for i in item_lists]), max_length, with_targets)


def random_lists(seed: int = 0, users: int = 12, longest: int = 14) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = [1, 2, longest, *random.integers(1, longest + 1, users - 3)]
    return [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in lengths]


def model_of(seed: int = 0, **values) -> ESASRec:
    torch.manual_seed(seed)
    model = ESASRec(ESASRecConfig(**{"max_length": 10, "embedding_dim": 8, "dropout": 0.0} | values), NUM_ITEMS)
    with torch.no_grad():  # away from the small or neutral initial values
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- an independent implementation: numbers, one by one


def normal(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.array([1 / (1 + math.exp(-value)) for value in x])


def attended(inputs: list[np.ndarray], weights: dict[str, np.ndarray], name: str, heads: int) -> list[np.ndarray]:
    """Causal attention with an output projection, for every token of one history."""
    dim = len(inputs[0])
    keys_values = [linear(x, weights, f"{name}.key_value") for x in inputs]
    found = []
    for at, x in enumerate(inputs):
        query, mixed = linear(x, weights, f"{name}.query"), np.zeros(dim)
        for head in range(heads):
            part = slice(head * dim // heads, (head + 1) * dim // heads)
            scores = [query[part] @ both[:dim][part] / math.sqrt(dim / heads) for both in keys_values[: at + 1]]
            shares = np.exp(np.array(scores) - max(scores))
            for share, both in zip(shares / shares.sum(), keys_values, strict=False):
                mixed[part] += share * both[dim:][part]
        found.append(linear(mixed, weights, f"{name}.output"))
    return found


def block_one_by_one(inputs: list[np.ndarray], weights: dict[str, np.ndarray], name: str, heads: int, factors=None):
    """A LiGR layer in float64: h + F(LayerNorm(h)) * sigmoid(h W + b), for attention and then for SwiGLU.

    ``factors`` are those of dropout after attention, within SwiGLU and after it, one row per token.
    """
    after, within, end = factors or [[1.0] * len(inputs)] * 3
    normed = [normal(x, weights, f"{name}.attention_norm") for x in inputs]
    found = []
    for at, mixed in enumerate(attended(normed, weights, f"{name}.attention", heads)):
        x = inputs[at]
        h = x + sigmoid(linear(x, weights, f"{name}.attention_gate")) * mixed * after[at]
        inner = normal(h, weights, f"{name}.feedforward_norm")
        of_gate, of_value = np.split(weights[f"{name}.feedforward.gate_value.weight"], 2)
        gate = of_gate @ inner
        wide = weights[f"{name}.feedforward.output.weight"] @ (gate * sigmoid(gate) * (of_value @ inner) * within[at])
        found.append(h + sigmoid(linear(h, weights, f"{name}.feedforward_gate")) * wide * end[at])
    return found


def states_one_by_one(model: ESASRec, items: list[int], factors=None) -> np.ndarray:
    """Hidden states [n, D] of one history."""
    weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    first = model.max_length - len(items)
    states = [
        weights["item_embedding.weight"][item] + weights["position_embedding.weight"][first + place]
        for place, item in enumerate(items)
    ]
    for number in range(model.config.num_blocks):
        states = block_one_by_one(states, weights, f"blocks.{number}", model.config.num_heads, factors)
    return np.array(states)


CONFIGS = [
    {},
    {"num_heads": 2},
    {"num_heads": 8, "num_blocks": 3},
    {"num_blocks": 0},
    {"num_blocks": 1, "feedforward_dim": 5},
    {"embedding_dim": 12, "num_heads": 3, "feedforward_dim": 1},
    {"max_length": 1},
    {"max_length": 80},  # longer than a row of the grouping
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_packed_is_one_by_one(values):
    model = model_of(**values).eval()
    lists = random_lists(users=5, longest=70) if values.get("max_length") == 80 else random_lists()
    batch = batch_of(lists, model.max_length)
    with torch.no_grad():
        states, last = model.encode(batch).double().numpy(), model.encode_last(batch).double().numpy()
        scores = model.score(torch.from_numpy(last).float()).double().numpy()
    table = model.item_embedding.weight.detach().double().numpy()
    for row, items in enumerate(lists):
        expected = states_one_by_one(model, items[-model.max_length :])
        part = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        np.testing.assert_allclose(states[part], expected, rtol=1e-4, atol=2e-4)
        np.testing.assert_allclose(last[row], expected[-1], rtol=1e-4, atol=2e-4)
        np.testing.assert_allclose(scores[row], table @ expected[-1], rtol=1e-4, atol=2e-4)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_random_shapes_are_those_of_finite_differences(seed):
    random = np.random.default_rng(seed)
    heads = int(random.integers(1, 4))
    model = model_of(
        seed, num_heads=heads, embedding_dim=heads * int(random.integers(1, 4)), num_blocks=int(random.integers(1, 3)),
        feedforward_dim=int(random.integers(1, 9)), max_length=6,
    )  # fmt: skip
    lists = random_lists(seed, users=5, longest=7)
    batch = batch_of(lists, 6)
    weighing = torch.from_numpy(random.standard_normal((len(batch.items), model.config.embedding_dim)))

    def value() -> float:
        states = np.concatenate([states_one_by_one(model.double(), items[-6:]) for items in lists])
        return float((states * weighing.numpy()).sum())

    (model.float().encode(batch) * weighing.float()).sum().backward()
    gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
    for name, parameter in model.double().named_parameters():
        direction = torch.from_numpy(random.standard_normal(parameter.shape))
        expected = float((gradients[name] * direction).sum())
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = value()
            parameter -= 2e-5 * direction
            below = value()
            parameter += 1e-5 * direction
        scale = float(gradients[name].abs().sum()) + 1
        assert expected == pytest.approx((above - below) / 2e-5, abs=2e-4 * scale, rel=1e-3), name


def test_a_changed_future_changes_only_later_states():
    model = model_of(num_heads=2).eval()
    random = np.random.default_rng(1)
    lists = [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in (10, 4, 7)]
    for cut in range(1, 10):
        other = [[*items[:cut], *(1 + (item + 4) % NUM_ITEMS for item in items[cut:])] for items in lists]
        with torch.no_grad():
            batch = batch_of(lists, 10)
            before, after = model.encode(batch), model.encode(batch_of(other, 10))
        earlier = batch.positions < cut
        torch.testing.assert_close(after[earlier], before[earlier], rtol=1e-5, atol=1e-6)
        assert ((after - before)[~earlier].abs().amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_dropout_of_the_block_is_that_of_the_paper(heads, monkeypatch):
    """The naive block, with the numbers that were dropped, gives the states of training."""
    model = model_of(dropout=0.4, num_blocks=1, num_heads=heads).train()
    model.dropout.probability = model.blocks[0].attention.dropout.probability = 0.0
    lists = random_lists(longest=10)
    batch = batch_of(lists, 10)
    factors: list[np.ndarray] = []
    original = Dropout.words_for

    def recorded(self, x, order=None):
        words = original(self, x, order)
        factors.append(self.kept(words).view(x.shape).double().numpy())
        return words

    monkeypatch.setattr(Dropout, "words_for", recorded)
    seed_dropout(dropouts_of(model), Draws([3]))
    states = model.encode(batch).detach().double().numpy()
    assert [factor.shape[1] for factor in factors] == [8, 32, 8]  # after attention, within the network, and after it
    for factor in factors:
        assert (factor == 0).mean() == pytest.approx(0.4, abs=0.1)
    for row, items in enumerate(lists):
        part = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        expected = states_one_by_one(model, items, [factor[part] for factor in factors])
        np.testing.assert_allclose(states[part], expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("part", ["input", "attention"])
def test_dropout_of_the_input_and_of_the_attention_weights(part):
    model = model_of(dropout=0.4, num_blocks=1).train()
    of_input, of_attention = model.dropout, model.blocks[0].attention.dropout
    for dropout in dropouts_of(model):
        dropout.probability = 0.4 if dropout is {"input": of_input, "attention": of_attention}[part] else 0.0
    seed_dropout(dropouts_of(model), Draws([3]))
    batch = batch_of(random_lists(), 10)
    dropped, again = model.encode(batch), model.eval().encode(batch)
    assert not torch.allclose(dropped, again, atol=1e-3)


@pytest.mark.parametrize("values", [{}, {"num_heads": 4, "feedforward_dim": 7}], ids=str)
def test_compiled_loops_and_torch_give_the_same(values, monkeypatch):
    found = []
    batch = batch_of(random_lists(longest=30), 20)
    for usable in (True, False):
        model = model_of(dropout=0.3, max_length=20, **values).train()
        seed_dropout(dropouts_of(model), Draws([5]))
        if not usable:
            monkeypatch.setattr(kernels, "usable", lambda *tensors: False)
        states = model.encode(batch)
        (states**2).sum().backward()
        found.append([states, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_an_empty_batch_and_users_without_items():
    model = model_of().eval()
    assert model.encode(batch_of([], 10)).shape == (0, 8)
    batch = batch_of([[], [3, 4], [], [5]], 10)
    expected = model.encode(batch_of([[3, 4], [5]], 10))
    torch.testing.assert_close(model.encode(batch), expected)


# ---------------------------------------------------------------- initial weights and configuration


def test_the_start():
    model = ESASRec(ESASRecConfig(), 5000)
    assert (model.item_embedding.weight[0] == 0).all()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "embedding" in name:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), name
        else:
            halves = 2 if name.endswith(("key_value.weight", "gate_value.weight")) else 1
            rows, columns = parameter.shape[0] // halves, parameter.shape[1]
            assert parameter.std().item() == pytest.approx((2 / (rows + columns)) ** 0.5, rel=0.05), name
    torch.manual_seed(2)
    fresh = ESASRec(ESASRecConfig(), 50)
    torch.manual_seed(2)
    for name, value in ESASRec(ESASRecConfig(), 50).state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name  # a seed fixes the initial weights


def test_its_sizes_are_those_of_the_paper():
    config = ESASRecConfig(embedding_dim=24).resolved()
    assert (config.max_length, config.feedforward_dim) == (50, 96)
    block = ESASRec(config, 5).blocks[0]
    # Queries, keys, values and output; two gates; three matrices of the network without biases; two norms.
    expected = 4 * (24 * 24 + 24) + 2 * (24 * 24 + 24) + 3 * 24 * 96 + 4 * 24
    assert sum(parameter.numel() for parameter in block.parameters()) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_blocks": -1}, "num_blocks is -1; give 0 or more"),
        ({"feedforward_dim": 0}, "feedforward_dim is 0; give 1 or more, or leave it out"),
        ({"embedding_dim": 10, "num_heads": 3}, "embedding_dim 10 is not a multiple of num_heads 3"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"random_start": -0.1}, "random_start is -0.1; give 0 to 1"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        ESASRecConfig(**values)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- learning


def walks(users: int, seed: int) -> pl.DataFrame:
    """Each user walks around a circle of items with steps of their own: two items tell the next, one does not."""
    random = np.random.default_rng(seed)
    start, step = random.integers(0, NUM_ITEMS, users), random.integers(1, 6, users)
    items = (start[:, None] + step[:, None] * np.arange(8)) % NUM_ITEMS
    return pl.DataFrame({"user_id": np.repeat(np.arange(users), 8), "item_id": items.ravel()})


def hit_rate(**sizes) -> float:
    """HR@1 on test after training on walks."""
    split = split_last_two(prepare(walks(800, 0)))
    torch.manual_seed(0)
    model = ESASRec(ESASRecConfig(max_length=5, embedding_dim=32, dropout=0.1, **sizes), NUM_ITEMS)
    train(model, split, TrainConfig(epochs=30, batch_size=32, learning_rate=0.003, evaluate_every=0, threads=1))
    found = evaluate(model, split.test, train_counts=split.train.item_counts(), k=(1,), keep_seen=True)
    return found.metrics["hr@1"]


@pytest.mark.slow
def test_it_learns_from_two_items():
    assert hit_rate() > 0.7
    assert hit_rate(num_blocks=0) < 0.4  # the last item alone leaves five


@pytest.mark.parametrize("loss", ["sampled-softmax", "cross-entropy", "bce", "gbce", "bpr-max", "top1-max"])
def test_every_loss_trains_and_a_loaded_run_recommends_the_same(loss, tmp_path: Path):
    options = {"transitions": "off"} if loss == "cross-entropy" else {"transitions": "off", "negatives": 3}
    recommender = Recommender(
        "esasrec", loss=loss, epochs=2, embedding_dim=8, max_length=6, num_heads=2, threads=1, **options
    ).fit(walks(60, 1))
    recommender.save(tmp_path / "run")
    assert (recommender.model.item_embedding.weight[0] == 0).all()
    assert (recommender.model.item_embedding.weight[1:] != 0).any()
    again = Recommender.load(tmp_path / "run")
    history = [3, 5, 7]
    assert again.recommend(histories=[history], k=5).equals(recommender.recommend(histories=[history], k=5))


def test_its_default_loss_is_that_of_the_paper(tmp_path: Path):
    recommender = Recommender("esasrec", epochs=1, embedding_dim=8).fit(walks(60, 1), tmp_path / "run")
    assert recommender.model.config.dropout == 0.2
    assert Run(tmp_path / "run").config.training["loss"] == "sampled-softmax"
