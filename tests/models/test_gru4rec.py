import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec import Recommender, TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.split import Split
from seqrec.errors import InputError
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.models.gru4rec import GRU, GRU4Rec, GRU4RecConfig, Steps
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


def model_of(seed: int = 0, **values: Any) -> GRU4Rec:
    torch.manual_seed(seed)
    values = {"max_length": 10, "embedding_dim": 8, "embedding_dropout": 0.0, "hidden_dropout": 0.0} | values
    model = GRU4Rec(GRU4RecConfig(**values), NUM_ITEMS)
    with torch.no_grad():  # away from the small initial values, so that gates differ
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- an independent implementation


def naive_states(model: GRU4Rec, items: list[int]) -> np.ndarray:
    """Hidden states of one user, step by step in float64, from equations 2 to 5 of the 2016 paper."""
    weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    table = weights["item_embedding.weight"]
    inputs = [table[item] * math.sqrt(table.shape[1]) for item in items[-model.config.max_length :]]
    for layer in range(model.config.num_layers):
        w_r, w_z, w = np.split(weights[f"layers.{layer}.input.weight"], 3)
        b_r, b_z, b = np.split(weights[f"layers.{layer}.input.bias"], 3)
        u_r, u_z = np.split(weights[f"layers.{layer}.gates"], 2)
        u = weights[f"layers.{layer}.candidate"]
        h, states = np.zeros(len(u)), []
        for x in inputs:
            z = 1 / (1 + np.exp(-(w_z @ x + u_z @ h + b_z)))  # 3
            r = 1 / (1 + np.exp(-(w_r @ x + u_r @ h + b_r)))  # 5
            candidate = np.tanh(w @ x + u @ (r * h) + b)  # 4
            h = (1 - z) * h + z * candidate  # 2
            states.append(h)
        inputs = states
    return np.array(inputs) * math.sqrt(inputs[0].shape[0])


def naive_scores(model: GRU4Rec, items: list[int]) -> np.ndarray:
    weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    output = weights["output_embedding.weight" if model.config.separate_output else "item_embedding.weight"]
    scores = naive_states(model, items) @ output.T + weights["item_bias.weight"][:, 0]
    alpha = model.config.elu
    return np.where(scores >= 0, scores, alpha * (np.exp(scores) - 1)) if alpha else scores


CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"separate_output": True},
    {"separate_output": True, "hidden_dim": 5, "num_layers": 2},
    {"hidden_dim": 8, "elu": 0.5},
    {"embedding_dim": 1, "max_length": 1},
    {"max_length": 80},
]


@pytest.mark.parametrize(
    ("values", "with_targets"),
    [*((values, False) for values in CONFIGS), ({}, True), ({"max_length": 1}, True)],
    ids=str,
)
def test_packed_is_step_by_step(values, with_targets):
    model = model_of(**values)
    lists = random_lists(users=5, longest=70) if values.get("max_length") == 80 else random_lists()
    batch = batch_of(lists, model.config.max_length, with_targets)
    hidden = model.encode(batch)
    assert hidden.shape == (len(batch.items), (model.config.hidden_dim or model.config.embedding_dim) + 1)
    assert (hidden[:, -1] == 1).all()
    scores = model.score(hidden)
    for row, items in enumerate(lists):
        inputs = items[:-1] if with_targets else items
        if inputs:
            mine = slice(batch.offsets[row], batch.offsets[row + 1])
            np.testing.assert_allclose(hidden[mine, :-1].detach(), naive_states(model, inputs), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(scores[mine].detach(), naive_scores(model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[3], [1, 1, 1], [4, 1, 3, 3], [0, 2, 0, 5, 1]], ids=str)
def test_the_gradient_by_hand(lengths):
    """The gradient against finite differences, in float64."""
    torch.manual_seed(1)
    layer = GRU(3, 4).double()
    layer.reset()
    steps = Steps(batch_of([[1] * length for length in lengths]))
    x = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def states(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, named, (x, steps))  # type: ignore[no-any-return]

    for value in parameters.values():
        value.data.normal_()
    assert torch.autograd.gradcheck(states, (x, *parameters.values()))


def test_the_gradient_goes_back_through_all_steps():
    model = model_of()
    last = model.encode(batch_of([[1, 2, 3, 4, 5, 6, 7, 8]]))[-1]
    (gradient,) = torch.autograd.grad(last.sum(), model.item_embedding.weight)
    assert (gradient[1:9].abs().sum(dim=1) > 0).all()
    assert (gradient[9:] == 0).all()


@pytest.mark.parametrize("values", [{}, {"separate_output": True, "hidden_dim": 5, "num_layers": 2}], ids=str)
def test_gradients_of_packed_and_one_by_one(values):
    model = model_of(**values).double()
    lists = random_lists(3)
    batch = batch_of(lists, with_targets=True)
    together = F.cross_entropy(model.score(model.encode(batch)), batch.targets, reduction="sum")
    gradients = torch.autograd.grad(together, list(model.parameters()))
    alone = torch.zeros((), dtype=torch.float64)
    for items in lists:
        one = batch_of([items], with_targets=True)
        if len(one.items):
            alone = alone + F.cross_entropy(model.score(model.encode(one)), one.targets, reduction="sum")
    for a, b in zip(gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_steps():
    batch = batch_of([[1, 2], [3, 4, 5], [], [6]])
    steps = Steps(batch)
    assert steps.sizes == [3, 2, 1]
    assert steps.bounds == [(0, 3), (3, 5), (5, 6)]
    assert batch.items[steps.tokens].tolist() == [3, 1, 6, 4, 2, 5]
    assert torch.equal(batch.items[steps.tokens][steps.places], batch.items)
    assert steps.before.tolist() == [0, 1, 3]  # for the items 4, 2 and 5, the places of 3, 1 and 4


# ---------------------------------------------------------------- the points of arXiv 2307.14956


def test_states_never_pass_from_one_user_to_another():
    model = model_of(num_layers=2)
    lists = random_lists(5)
    expected = model.encode(batch_of([[7, 8, 9]]))
    for place in range(len(lists)):
        batch = batch_of([*lists[:place], [7, 8, 9], *lists[place:]])
        found = model.encode(batch)[batch.offsets[place] : batch.offsets[place + 1]]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_shared_table_serves_both_ends():
    shared, separate = model_of(), model_of(separate_output=True)
    assert shared.output_embedding is None
    batch = batch_of([[1, 2]])
    for model, at_output in ((shared, True), (separate, False)):
        hidden = model.encode(batch)
        both = model.score(hidden, torch.tensor([5])).sum()
        (gradient,) = torch.autograd.grad(both, model.item_embedding.weight)
        assert ((gradient[5] != 0).any()) == at_output
        assert (gradient[1] != 0).all()
        assert (gradient[2] != 0).all()


def test_each_item_has_a_bias():
    model = model_of()
    hidden = model.encode(batch_of(random_lists())).detach()
    before = model.score(hidden).detach()
    with torch.no_grad():
        model.item_bias.weight[7] += 2.5
    change = model.score(hidden).detach() - before
    torch.testing.assert_close(change[:, 7], torch.full((len(hidden),), 2.5), rtol=1e-4, atol=1e-5)
    assert (change[:, :7] == 0).all()
    assert (change[:, 8:] == 0).all()


def test_dropout_on_the_embedding_alone():
    """Dropout applies to inputs but never to output vectors, although they share a table."""
    model = model_of(embedding_dropout=0.5)
    batch = batch_of(random_lists())
    dropped: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda layer, arguments: dropped.append(arguments[0]))
    hidden = model.encode(batch)
    whole = math.sqrt(8) * model.item_embedding(batch.items)[Steps(batch).tokens]
    kept = dropped[0] != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[0][kept], 2 * whole[kept])
    assert torch.equal(
        model.score(hidden), hidden @ torch.cat([model.item_embedding.weight, model.item_bias.weight], 1).T
    )
    assert not torch.equal(model.encode(batch), hidden)
    model.eval()
    assert torch.equal(model.encode(batch), model.encode(batch))


def test_dropout_on_the_states_of_every_layer():
    model = model_of(hidden_dropout=0.5, num_layers=2)
    batch = batch_of(random_lists())
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(layer: torch.nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        inputs.append(given[0])
        outputs.append(made)

    for layer in model.layers:
        layer.register_forward_hook(keep)
    hidden = model.encode(batch)
    first, last = outputs[0], math.sqrt(8) * outputs[1][Steps(batch).places]
    for whole, seen in ((first, inputs[1]), (last, hidden[:, :-1])):
        kept = seen != 0
        assert 0.3 < kept.float().mean() < 0.7
        torch.testing.assert_close(seen[kept], 2 * whole[kept])
    assert (hidden[:, -1] == 1).all()  # the bias is never dropped
    # A layer passes complete states on to itself, so those of the first layer are the same without dropout.
    torch.testing.assert_close(first, model.eval().layers[0](inputs[0], Steps(batch)))


def test_the_reset_gate_acts_before_the_matrix():
    """With the gate fully open, the layer is the same as torch's, which applies the gate after the matrix."""
    torch.manual_seed(0)
    ours, theirs = GRU(4, 4), torch.nn.GRU(4, 4)
    ours.reset()
    batch = batch_of([[1] * 6])
    x = torch.randn(6, 4)

    def difference(reset_bias: float) -> float:
        with torch.no_grad():
            ours.input.bias[:4] = reset_bias
            theirs.weight_ih_l0.copy_(ours.input.weight)
            theirs.bias_ih_l0.copy_(ours.input.bias)
            theirs.bias_hh_l0.zero_()
            # Torch's update gate is the complement of ours, so the sign is inverted.
            theirs.weight_ih_l0[4:8] *= -1
            theirs.bias_ih_l0[4:8] *= -1
            theirs.weight_hh_l0.copy_(torch.cat([ours.gates[:4], -ours.gates[4:], ours.candidate]))
            return float((ours(x, Steps(batch)) - theirs(x)[0]).abs().max())

    assert difference(100.0) < 1e-6
    assert difference(0.0) > 1e-3


def test_elu_scores():
    model = model_of(elu=0.5)
    plain = model_of()
    assert plain.FACTORED
    assert not model.FACTORED
    batch = batch_of(random_lists())
    with torch.no_grad():
        hidden = model.encode(batch)
        scores, raw = model.score(hidden), plain.score(hidden)
    assert scores.min() >= -0.5
    assert raw.min() < -0.5
    torch.testing.assert_close(scores, torch.where(raw > 0, raw, 0.5 * (raw.exp() - 1)))


# ---------------------------------------------------------------- initial weights, tables, configuration


def test_the_start():
    model = GRU4Rec(GRU4RecConfig(separate_output=True, num_layers=2), 5000)
    for table in (model.item_embedding, model.output_embedding):
        assert (table.weight[0] == 0).all()
        assert table.weight[1:].std().item() == pytest.approx(0.01, rel=0.05)
    assert (model.item_bias.weight == 0).all()
    for layer in model.layers:
        assert (layer.input.bias == 0).all()
        for matrix, parts in ((layer.input.weight, 3), (layer.gates, 2), (layer.candidate, 1)):
            for part in matrix.chunk(parts):  # Glorot's rule for each gate
                assert part.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    torch.manual_seed(2)
    fresh = GRU4Rec(GRU4RecConfig(), 100).state_dict()
    torch.manual_seed(2)
    for name, value in GRU4Rec(GRU4RecConfig(), 100).state_dict().items():
        assert torch.equal(value, fresh[name]), name


def test_rows_that_are_read_in_training_are_the_tables_own():
    """Training reads tables only through their embedding layers, which bring rows up to date."""
    for values in ({}, {"separate_output": True}):
        model = model_of(**values)
        mark_tables(model)
        model.score(model.encode(batch_of([[1, 2]])), torch.tensor([[5], [6]])).sum().backward()
        for name, parameter in model.named_parameters():
            if "embedding" in name or "bias.weight" in name:
                assert parameter.grad.is_sparse, name


def test_an_empty_batch_and_users_without_items():
    model = model_of(num_layers=2)
    empty = model.encode(batch_of([]))
    assert empty.shape == (0, 9)
    empty.sum().backward()
    assert model.encode(batch_of([[], []])).shape == (0, 9)
    torch.testing.assert_close(model.encode(batch_of([[], [3, 4], []])), model.encode(batch_of([[3, 4]])))


def test_only_the_last_max_length_items_matter():
    model = model_of(max_length=4)
    long, short = (model.encode(batch_of([items], 4)) for items in ([9, 8, 1, 2, 3, 4], [1, 2, 3, 4]))
    assert torch.equal(long, short)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"num_layers": 0}, "num_layers is 0; give 1 or more"),
        ({"hidden_dim": 0}, "hidden_dim is 0; give 1 or more, or leave it out"),
        ({"hidden_dim": 0, "separate_output": True}, "hidden_dim is 0"),
        ({"hidden_dim": 100}, "hidden_dim 100 and embedding_dim 64 differ.* separate_output"),
        ({"embedding_dropout": 1.0}, "embedding_dropout is 1.0; give at least 0 and less than 1"),
        ({"hidden_dropout": -0.1}, "hidden_dropout is -0.1"),
        ({"hidden_dropout": float("nan")}, "hidden_dropout is nan"),
        ({"elu": -0.5}, "elu is -0.5; give 0 or more"),
        ({"elu": float("nan")}, "elu is nan"),
        ({"elu": float("inf")}, "elu is inf"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        GRU4RecConfig(**values)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- learning


KEYS, NOISE = 12, 40


def remembered(users: int = 300, seed: int = 0) -> Split:
    """A key, three items of noise and the answer to the key, three times with different keys.

    Keys are items 1 to 12, answers 13 to 24, and the others are noise, which says nothing about the answer. With only
    popularity and the last item, ten answers are possible.
    """
    random = np.random.default_rng(seed)
    rows = [
        (-1, item, item) for item in range(1, 2 * KEYS + NOISE + 1)
    ]  # one user with all items, to set the order of ids
    for user in range(users):
        keys = random.permutation(KEYS)[:3] + 1
        noise = random.permutation(NOISE)[:9].reshape(3, 3) + 2 * KEYS + 1
        history = np.column_stack([keys, noise, keys + KEYS]).ravel().tolist()
        rows += [(user, item, step) for step, item in enumerate(history)]
    dataset = prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    assert dataset.item_ids.to_list() == list(range(1, 2 * KEYS + NOISE + 1))
    return split_last_two(dataset)


def answers_right(model: Model, split: Split) -> float:
    """How often the last item of a history, an answer, is ranked first."""
    return float(hit_rate(*ranks(model, split.test), 1)[1:].mean())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sampled-softmax", "bpr-max"])
def test_remembers_what_came_long_before(loss):
    split = remembered()
    options: dict[str, Any] = {
        "epochs": 12,
        "batch_size": 50,
        "learning_rate": 0.01,
        "bpr_penalty": 0.1,
        "negatives": 64,
    }
    found = {}
    for length in (20, 1) if loss == "bpr-max" else (20,):  # one loss shows that the last item is not enough
        torch.manual_seed(0)
        values = {"embedding_dropout": 0.0, "hidden_dropout": 0.0, "embedding_dim": 32, "max_length": length}
        model = GRU4Rec(GRU4RecConfig(**values), split.train.dataset.num_items)
        train(model, split, TrainConfig(loss=loss, evaluate_every=0, **options))
        found[length] = answers_right(model, split)
    for name in ("markov", "popularity"):
        other = MODELS[name](MODELS[name].Config(), split.train.dataset.num_items)
        other.count(split.train)
        found[name] = answers_right(other, split)
    assert found[20] > 0.9
    assert max(found.get(1, 0.0), found["markov"], found["popularity"]) < 0.2


def test_fit_recommend_save_and_load(tmp_path):
    random = np.random.default_rng(0)
    log = pl.DataFrame({"user_id": np.repeat(np.arange(30), 6), "item_id": random.integers(0, 25, 180)})
    options = {"embedding_dim": 8, "hidden_dim": 6, "num_layers": 2, "separate_output": True, "loss": "top1-max"}
    fitted = Recommender("gru4rec", epochs=2, popularity=0.75, max_length=5, **options).fit(log)
    expected = fitted.recommend(users=[3, 4], k=5)
    assert expected.height == 10
    fitted.save(tmp_path / "run")
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.model_name == "gru4rec"
    assert loaded.recommend(users=[3, 4], k=5).equals(expected)
