import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec import Predictor, Recommender, TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.draws import Draws
from seqrec.data.split import Split
from seqrec.errors import InputError
from seqrec.kernels import loader
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.lrurec import LRURec, LRURecBlock, LRURecConfig, recurrence
from seqrec.ranking.metrics import hit_rate
from seqrec.ranking.protocols import ranks
from seqrec.training.loop import train
from seqrec.training.objective import mark_tables

NUM_ITEMS = 30


def batch_of(item_lists: list[list[int]], max_length: int = 10, with_targets: bool = False) -> Batch:
    items = list(range(1, NUM_ITEMS + 1))
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": items}))
    return pack(histories_of(dataset, [np.array(i, dtype=np.int64) for i in item_lists]), max_length, with_targets)


def random_lists(seed: int = 0, users: int = 12, longest: int = 14) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = [1, 2, longest, *random.integers(1, longest + 1, users - 3)]
    return [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in lengths]


def model_of(seed: int = 0, **values: Any) -> LRURec:
    torch.manual_seed(seed)
    model = LRURec(LRURecConfig(**{"max_length": 10, "embedding_dim": 8, "dropout": 0.0} | values), NUM_ITEMS)
    with torch.no_grad():  # away from the small initial values
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- an independent implementation


def naive_states(model: LRURec, items: list[int]) -> np.ndarray:
    """Hidden states of one user, token by token in complex128, from the equations of the paper."""
    weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return np.array([0.5 * one * (1 + math.erf(one / math.sqrt(2))) for one in x])

    table = weights["item_embedding.weight"]
    inputs = [normed(table[item], "embedding_norm") for item in items[-model.config.max_length :]]
    for block in range(model.config.num_blocks):
        own = {name.removeprefix(f"blocks.{block}."): value for name, value in weights.items()}
        nu, theta, gamma = np.exp(own["exponents"])
        factor = np.exp(-nu + 1j * theta)
        size = len(factor)
        b = own["input.weight"][:size] + 1j * own["input.weight"][size:]
        bias = own["input.bias"][:size] + 1j * own["input.bias"][size:]
        c = own["output.weight"][:, :size] - 1j * own["output.weight"][:, size:]
        h, states = np.zeros(size, dtype=complex), []
        for x in inputs:
            h = factor * h + gamma * (b @ x + bias)
            y = normed(x + (c @ h).real + own["output.bias"], f"blocks.{block}.recurrence_norm")
            wide = gelu(own["inner.weight"] @ y + own["inner.bias"])
            y = normed(y + own["outer.weight"] @ wide + own["outer.bias"], f"blocks.{block}.feedforward_norm")
            states.append(y)
        inputs = states
    return np.array(inputs)


CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_blocks": 0},
    {"num_blocks": 3, "state_dim": 5, "feedforward_dim": 7},
    {"embedding_dim": 3, "max_length": 1},
    {"max_length": 250},
]


@pytest.mark.parametrize("values", CONFIGS, ids=str)
@pytest.mark.parametrize("with_targets", [False, True])
def test_packed_is_step_by_step(values, with_targets, monkeypatch):
    """Both in compiled loops and in torch."""
    model = model_of(**values)
    lists = random_lists(longest=220 if values.get("max_length") == 250 else 14, users=6)
    batch = batch_of(lists, model.config.max_length, with_targets)
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(loader, "library", lambda: None)
        hidden = model.encode(batch).detach()
        assert hidden.shape == (len(batch.items), model.config.embedding_dim + 1)
        assert (hidden[:, -1] == 1).all()
        found.append((hidden, model.score(hidden).detach()))
    table = torch.cat([model.item_embedding.weight, model.item_bias.weight], dim=1).detach().double().numpy()
    for row, items in enumerate(lists):
        inputs = items[:-1] if with_targets else items
        if inputs:
            mine = slice(batch.offsets[row], batch.offsets[row + 1])
            expected = naive_states(model, inputs)
            of_scores = np.concatenate([expected, np.ones((len(expected), 1))], axis=1) @ table.T
            for hidden, scores in found:
                np.testing.assert_allclose(hidden[mine, :-1], expected, rtol=1e-3, atol=2e-4)
                np.testing.assert_allclose(scores[mine], of_scores, rtol=1e-3, atol=1e-3)


def naive_recurrence(x: Tensor, factors: Tensor, lengths: list[int]) -> np.ndarray:
    """``h_t = factor * h_(t-1) + x_t`` in complex128, token by token."""
    values, factor = (torch.complex(*part.detach().double().chunk(2, dim=-1)).numpy() for part in (x, factors))
    rows, token = [], 0
    for length in lengths:
        state = np.zeros(len(factor), dtype=complex)
        for _ in range(length):
            state = factor * state + values[token]
            rows.append(state)
            token += 1
    states = np.array(rows).reshape(token, len(factor))
    return np.concatenate([states.real, states.imag], axis=1)


def recurrence_inputs(tokens: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    radius, angle = 0.7 + 0.3 * torch.rand(size), 6.3 * torch.rand(size)
    return torch.randn(tokens, 2 * size), torch.cat([radius * angle.cos(), radius * angle.sin()])


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=6), size=st.sampled_from([1, 3, 17]), seed=st.integers(0, 99))
def test_doubling_is_the_naive_loop(lengths, size, seed):
    x, factors = recurrence_inputs(sum(lengths), size, seed)
    found = recurrence(x, factors, batch_of([[1] * length for length in lengths], 50))
    np.testing.assert_allclose(found, naive_recurrence(x, factors, lengths), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[5], [1, 1], [0, 4, 0, 2], [9, 3]], ids=str)
def test_the_gradient_by_hand(lengths):
    """The gradient of the recurrence against finite differences, in float64."""
    x, factors = (part.double().requires_grad_() for part in recurrence_inputs(sum(lengths), 3))
    batch = batch_of([[1] * length for length in lengths])
    assert torch.autograd.gradcheck(lambda *parts: recurrence(*parts, batch), (x, factors))


@pytest.mark.parametrize("length", [200, 1000])
def test_float32_stays_near_float64_for_long_histories(length):
    torch.manual_seed(0)
    model = LRURec(LRURecConfig(max_length=length, embedding_dim=16), NUM_ITEMS).eval()
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, LRURecBlock)
            block.exponents[0, ::4] = -15  # |lambda| is 1 within float32's precision
            block.exponents[0, 1::4] = 5  # forgets at once
            block.exponents[1, ::3] = -20  # no rotation
    batch = batch_of([np.random.default_rng(1).integers(1, NUM_ITEMS + 1, length).tolist()], length)
    hidden = model.encode(batch)
    hidden.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters()
               if parameter is not model.item_bias.weight)  # fmt: skip
    torch.testing.assert_close(hidden.double(), model.double().encode(batch), rtol=1e-3, atol=1e-3)


def test_gradients_of_packed_and_one_by_one():
    model = model_of().double()
    lists = random_lists(3)
    batch = batch_of(lists, with_targets=True)
    together = torch.nn.functional.cross_entropy(model.score(model.encode(batch)), batch.targets, reduction="sum")
    gradients = torch.autograd.grad(together, list(model.parameters()))
    alone = torch.zeros((), dtype=torch.float64)
    for items in lists:
        one = batch_of([items], with_targets=True)
        if len(one.items):
            logits = model.score(model.encode(one))
            alone = alone + torch.nn.functional.cross_entropy(logits, one.targets, reduction="sum")
    for a, b in zip(gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_the_gradient_goes_back_to_the_first_item():
    model = model_of(max_length=40)
    last = model.encode(batch_of([[*range(1, 21)]], 40))[-1]
    (gradient,) = torch.autograd.grad(last[:-1].square().sum(), model.item_embedding.weight)
    assert (gradient[1:21].abs().sum(dim=1) > 0).all()
    assert (gradient[21:] == 0).all()


def test_there_are_no_positions():
    """A state depends on the items and their order, not on the place in the window or on what is beside it."""
    model = model_of(max_length=20)
    alone = model.encode(batch_of([[7, 8, 9]], 20))
    longer = model.encode(batch_of([[1, 2, 3], [7, 8, 9, 4, 5], [7, 8, 9]], 20))
    torch.testing.assert_close(longer[3:6], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(longer[8:], alone, rtol=1e-5, atol=1e-6)
    other = model.encode(batch_of([[8, 7, 9]], 20))
    assert (other[-1] - alone[-1]).abs().max() > 1e-3


# ---------------------------------------------------------------- the start, tables, dropout, configuration


def test_the_start():
    torch.manual_seed(0)
    model = LRURec(LRURecConfig(), 5000)
    assert (model.item_embedding.weight[0] == 0).all()
    assert (model.item_bias.weight == 0).all()
    matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for weight in (model.item_embedding.weight[1:], *matrices):
        assert weight.abs().max() <= 0.04
        assert weight.std().item() == pytest.approx(0.0176, rel=0.05)  # 0.02, without what is beyond 0.04
    for block in model.blocks:
        assert isinstance(block, LRURecBlock)
        radius = torch.complex(*block.factors().chunk(2)).abs()
        assert radius.min() >= 0.8 - 1e-6
        assert radius.max() <= 0.99 + 1e-6
        assert 0.88 < radius.mean() < 0.92  # uniform over the area of the ring
        torch.testing.assert_close(block.exponents[2].exp(), (1 - radius**2).sqrt())
        assert (block.input.bias == 0).all()
    shapes = model.blocks[0].input.weight.shape, model.blocks[0].inner.weight.shape
    assert shapes == ((4 * 64, 64), (4 * 64, 64))


def test_tables_have_gradients_by_row():
    model = model_of()
    mark_tables(model)
    model.score(model.encode(batch_of([[1, 2]])), torch.tensor([[5], [6]])).sum().backward()
    assert model.item_embedding.weight.grad.is_sparse
    assert model.item_bias.weight.grad.is_sparse


def test_dropout_is_where_the_authors_have_it(monkeypatch):
    """On the embedding before its norm, on the output of the recurrence, and twice in the network."""
    model = model_of(dropout=0.4, num_blocks=1).train()
    seed_dropout(dropouts_of(model), Draws([0]))
    seen: list[tuple[Tensor, Tensor]] = []
    for dropout in dropouts_of(model):
        dropout.register_forward_hook(lambda layer, inputs, made: seen.append((inputs[0], made)))
    batch = batch_of(random_lists(users=40))
    monkeypatch.setattr(loader, "library", lambda: None)
    hidden = model.encode(batch)
    assert [before.shape[1] for before, _ in seen] == [8, 8, 32, 8]
    for before, made in seen:
        kept = made != 0
        assert 0.5 < kept.float().mean() < 0.7
        torch.testing.assert_close(made[kept], before[kept] / (1 - round(0.4 * 65536) / 65536))
    assert torch.equal(seen[0][0], model.item_embedding(batch.items))
    assert (hidden[:, -1] == 1).all()


def test_an_empty_batch_and_users_without_items(monkeypatch):
    model = model_of()
    for _ in range(2):
        empty = model.encode(batch_of([]))
        assert empty.shape == (0, 9)
        empty.sum().backward()
        assert model.encode(batch_of([[], []])).shape == (0, 9)
        torch.testing.assert_close(model.encode(batch_of([[], [3, 4], []])), model.encode(batch_of([[3, 4]])))
        monkeypatch.setattr(loader, "library", lambda: None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"num_blocks": -1}, "num_blocks is -1; give 0 or more"),
        ({"state_dim": 0}, "state_dim is 0; give 1 or more, or leave it out"),
        ({"feedforward_dim": 0}, "feedforward_dim is 0; give 1 or more, or leave it out"),
        ({"dropout": 1.0}, "dropout is 1.0; give at least 0 and less than 1"),
        ({"dropout": float("nan")}, "dropout is nan"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        LRURecConfig(**values)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- learning


KEYS, NOISE = 8, 20


def remembered(users: int = 300, seed: int = 0) -> Split:
    """A key, three items of noise and the answer to the key, three times. Only the key says what the answer is."""
    random = np.random.default_rng(seed)
    rows = [(-1, item, item) for item in range(1, 2 * KEYS + NOISE + 1)]  # one user with all items sets their order
    for user in range(users):
        keys = random.permutation(KEYS)[:3] + 1
        noise = random.permutation(NOISE)[:9].reshape(3, 3) + 2 * KEYS + 1
        history = np.column_stack([keys, noise, keys + KEYS]).ravel().tolist()
        rows += [(user, item, step) for step, item in enumerate(history)]
    return split_last_two(prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")))


def answers_right(model: Model, split: Split) -> float:
    """How often the last item of a history, an answer, is ranked first."""
    return float(hit_rate(*ranks(model, split.test), 1)[1:].mean())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross-entropy", "sampled-softmax"])
def test_remembers_what_came_long_before(loss):
    split = remembered()
    options: dict[str, Any] = {"epochs": 20, "batch_size": 50, "learning_rate": 0.003, "evaluate_every": 0}
    found = {}
    for length in (20, 1) if loss == "cross-entropy" else (20,):  # one loss shows that the last item is not enough
        torch.manual_seed(0)
        config = LRURecConfig(dropout=0.0, embedding_dim=32, max_length=length)
        model = LRURec(config, split.train.dataset.num_items)
        train(model, split, TrainConfig(loss=loss, **options))
        found[length] = answers_right(model, split)
    counted = MODELS["markov"](MODELS["markov"].Config(), split.train.dataset.num_items)
    counted.count(split.train)
    assert found[20] > 0.9
    assert max(found.get(1, 0.0), answers_right(counted, split)) < 0.35


@pytest.mark.slow_but_one
@pytest.mark.parametrize("loss", ["sampled-softmax", "gbce", "bpr-max", "top1-max", "bce", "cross-entropy"])
def test_fit_recommend_save_and_load(loss, tmp_path):
    random = np.random.default_rng(0)
    log = pl.DataFrame({"user_id": np.repeat(np.arange(30), 6), "item_id": random.integers(0, 25, 180)})
    options = {"epochs": 2, "max_length": 5, "embedding_dim": 8, "loss": loss, "transitions": "off"}
    fitted = Recommender("lrurec", **options).fit(log)
    expected = fitted.recommend(users=[3, 4], k=5)
    assert expected.height == 10
    fitted.save(tmp_path / "run")
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.model_name == "lrurec"
    assert loaded.recommend(users=[3, 4], k=5).equals(expected)
    mine = expected.filter(pl.col("user_id") == 3)["item_id"].to_list()
    assert [item for item, _ in Predictor.load(tmp_path / "run").recommend_users(3, 5)] == mine
