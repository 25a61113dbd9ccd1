import math

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec import Recommender
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.prepare import prepare
from seqrec.errors import InputError
from seqrec.models.sasrec import SASRec, SASRecConfig

NUM_ITEMS = 30


def batch_of(item_lists: list[list[int]], max_length: int, with_targets: bool = False) -> Batch:
    items = list(range(1, NUM_ITEMS + 1))
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": items}))
    return pack(histories_of(dataset, [np.array(i, dtype=np.int64) for i in item_lists]), max_length, with_targets)


def random_lists(seed: int = 0, users: int = 12, longest: int = 14) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = [1, 2, longest, *random.integers(1, longest + 1, users - 3)]
    return [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in lengths]


def model_of(seed: int = 0, **values) -> SASRec:
    torch.manual_seed(seed)
    model = SASRec(SASRecConfig(**{"max_length": 10, "embedding_dim": 8, "dropout": 0.0} | values), NUM_ITEMS)
    with torch.no_grad():  # so that norms and biases differ from their neutral initial values
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- an independent implementation


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / ((centred**2).mean(dim=-1, keepdim=True) + 1e-8).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def padded_sasrec(model: SASRec, items: list[int]) -> Tensor:
    """Hidden states of one user, left-padded to ``max_length`` as in the authors' code, in float64."""
    config = model.config
    n, d = config.max_length, config.embedding_dim
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    items = items[-n:]
    padded = torch.tensor([0] * (n - len(items)) + items)
    real = padded != 0
    x = weights["item_embedding.weight"][padded] * math.sqrt(d) + weights["position_embedding.weight"]
    x = x * real[:, None]
    visible = torch.ones(n, n).tril().bool() & real[None, :]
    visible |= torch.eye(n).bool()  # padding sees itself, but nothing reads it
    for b in range(config.num_blocks):
        name = f"blocks.{b}"

        def attention(queries: Tensor, keys: Tensor, name: str = name) -> Tensor:
            q = linear(queries, weights, f"{name}.attention.query")
            k, v = linear(keys, weights, f"{name}.attention.key_value").split(q.shape[1], dim=1)
            heads = []
            for part in torch.arange(q.shape[1]).chunk(config.num_heads):
                scores = q[:, part] @ k[:, part].T / math.sqrt(len(part))
                heads.append(scores.masked_fill(~visible, -1e300).softmax(dim=1) @ v[:, part])
            mixed = torch.cat(heads, dim=1)
            return linear(mixed, weights, f"{name}.attention.output") if q.shape[1] != d else mixed

        def feedforward(x: Tensor, name: str = name) -> Tensor:
            count = len(config.feedforward_dims or (d,))
            for layer in range(count):
                x = linear(x, weights, f"{name}.feedforward.layers.{layer}").clamp(min=0)
            return linear(x, weights, f"{name}.feedforward.layers.{count}")

        first, second = f"{name}.attention_norm", f"{name}.feedforward_norm"
        if config.norm == "paper":
            queries = norm(x, weights, first)
            x = queries + attention(queries, x)
            x = norm(x, weights, second)
            x = x + feedforward(x)
        elif config.norm == "pre":
            x = x + attention(norm(x, weights, first), norm(x, weights, first))
            x = x + feedforward(norm(x, weights, second))
        else:
            x = norm(x + attention(x, x), weights, first)
            x = norm(x + feedforward(x), weights, second)
        x = x * real[:, None]
    return norm(x, weights, "final_norm")[real]


CONFIGS = [
    {},
    {"norm": "pre"},
    {"norm": "post"},
    {"num_heads": 2},
    {"num_heads": 2, "norm": "pre", "attention_dim": 6},
    {"num_heads": 2, "norm": "post", "attention_dim": 16, "feedforward_dims": (5, 11)},
    {"attention_dim": 3, "feedforward_dims": (20,)},
    {"num_blocks": 0},
    {"num_blocks": 3, "num_heads": 8},
    {"max_length": 1},
    {"max_length": 80},  # longer than a row of the grouping
]


@pytest.mark.parametrize(
    ("values", "with_targets"),
    [*((values, False) for values in CONFIGS), ({}, True), ({"max_length": 1}, True)],
    ids=str,
)
def test_packed_is_padded(values, with_targets):
    model = model_of(**values)
    lists = random_lists(users=5, longest=70) if values.get("max_length") == 80 else random_lists()
    batch = batch_of(lists, model.config.max_length, with_targets)
    hidden = model.encode(batch)
    assert hidden.shape == (int(batch.offsets[-1]), model.config.embedding_dim)
    for row, items in enumerate(lists):
        # The padded window of a training history has the same positions: its last input comes last.
        inputs = items[:-1] if with_targets else items
        if not inputs:
            continue
        expected = padded_sasrec(model, inputs)
        ours = hidden[batch.offsets[row] : batch.offsets[row + 1]]
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)
        scores = model.score(ours)
        table = model.item_embedding.weight.double()
        torch.testing.assert_close(scores.double(), expected @ table.T, rtol=1e-4, atol=1e-4)


def test_gradients_of_packed_and_one_by_one():
    model = model_of(num_heads=2).double()
    lists = random_lists(3)
    batch = batch_of(lists, 10, with_targets=True)
    together = torch.nn.functional.cross_entropy(model.score(model.encode(batch)), batch.targets, reduction="sum")
    gradients = torch.autograd.grad(together, list(model.parameters()))
    alone = torch.zeros((), dtype=torch.float64)
    for items in lists:
        one = batch_of([items], 10, with_targets=True)
        if len(one.items):
            logits = model.score(model.encode(one))
            alone = alone + torch.nn.functional.cross_entropy(logits, one.targets, reduction="sum")
    for a, b in zip(gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_of_items_matters():
    model = model_of()
    hidden = model.encode(batch_of([[1, 2, 3], [2, 1, 3]], 10))
    assert (hidden[2] - hidden[5]).abs().max() > 1e-3


def test_only_the_last_max_length_items_matter():
    model = model_of(max_length=4)
    scores = [
        model.score(model.encode(batch_of([items], 4))) for items in ([9, 8, 1, 2, 3, 4], [1, 2, 3, 4], [5, 1, 2, 3, 4])
    ]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[1], scores[2])


def test_an_empty_batch_and_users_without_items():
    model = model_of(num_heads=2)
    assert model.encode(batch_of([], 10)).shape == (0, 8)
    lists = [[], [3, 4], []]
    torch.testing.assert_close(model.encode(batch_of(lists, 10)), model.encode(batch_of([[3, 4]], 10)))


def test_the_start():
    model = SASRec(SASRecConfig(embedding_dim=64), 5000)
    table = model.item_embedding.weight
    assert (table[0] == 0).all()
    assert 0 < table[1:].std() < 0.2
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std() > 0, name
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset()
    for name, value in model.state_dict().items():
        assert value.std().item() == pytest.approx(start[name].std().item(), rel=0.2, abs=1e-6), name
        assert value.mean().item() == pytest.approx(start[name].mean().item(), abs=0.05), name
    torch.manual_seed(2)
    fresh = SASRec(SASRecConfig(embedding_dim=64), 5000)
    torch.manual_seed(2)
    again = SASRec(SASRecConfig(embedding_dim=64), 5000)
    for name, value in again.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name  # a seed fixes the initial weights


@pytest.mark.parametrize("loss", ["bce", "sampled-softmax", "cross-entropy"])
def test_training_never_reads_the_padding(loss):
    log = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 3, 3, 3], "item_id": [1, 2, 3, 3, 1, 4, 5, 6]})
    negatives = None if loss == "cross-entropy" else 2
    for model in ("sasrec", "ssept", "tisasrec"):
        recommender = Recommender(model, loss=loss, negatives=negatives, epochs=3, embedding_dim=4, l2=0.1).fit(log)
        weight = recommender.model.item_embedding.weight
        assert (weight[0] == 0).all()
        assert (weight[1:] != 0).all()


@pytest.mark.parametrize("loss", ["bce", "sampled-softmax", "cross-entropy"])
@pytest.mark.parametrize("model", ["gru4rec", "caser", "bert4rec", "slirec"])
def test_training_leaves_the_padding_of_every_model_as_it_was(model, loss):
    """Tables have no ``padding_idx``, for which torch would search every gradient."""
    log = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 3, 3, 3], "item_id": [1, 2, 3, 3, 1, 4, 5, 6]})
    negatives = {"bce": 2, "sampled-softmax": 6}.get(loss)  # all items, so that each prediction has one
    options = {"gru4rec": {"separate_output": True}, "caser": {"l2": 0.1, "num_targets": 2}}.get(model, {})
    recommender = Recommender(model, loss=loss, negatives=negatives, epochs=3, embedding_dim=4, **options).fit(log)
    tables = [module for module in recommender.model.modules() if isinstance(module, torch.nn.Embedding)]
    of_items = [table.weight for table in tables if len(table.weight) == recommender.model.num_items + 1]
    assert of_items
    for weight in of_items:
        assert (weight[0] == 0).all()
        assert (weight[1:] != 0).any()


def test_penalty():
    batch = batch_of([[1, 2, 3], [4, 4]], 10, with_targets=True)
    assert model_of().penalty(batch) is None
    model = model_of(l2=0.7)
    table = model.item_embedding.weight.double()
    looked_up = [1, 2, 4, 2, 3, 4]  # items, then targets
    expected = 0.7 * sum(float((table[item] ** 2).sum().detach()) for item in looked_up) / len(looked_up)
    penalty = model.penalty(batch)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    assert model.item_embedding.weight.grad.abs().sum(dim=1).nonzero()[:, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_blocks": -1}, "num_blocks is -1; give 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"embedding_dim": 10, "num_heads": 3}, "attention_dim 10 is not a multiple of num_heads 3"),
        ({"embedding_dim": 9, "attention_dim": 10, "num_heads": 3}, "attention_dim 10 is not a multiple"),
        ({"attention_dim": 0}, "attention_dim is 0"),
        ({"attention_dim": -8}, "attention_dim is -8"),
        ({"random_start": 1.5}, "random_start is 1.5; give 0 to 1"),
        ({"feedforward_dims": (8, 0)}, "feedforward_dims is"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"l2": float("nan")}, "l2 is nan"),
        ({"norm": "none"}, "norm is 'none'; give paper, pre or post"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        SASRecConfig(**values)
    assert "\n" not in str(raised.value)


def test_odd_but_good_configs():
    config = SASRecConfig(embedding_dim=9, attention_dim=12, num_heads=4, dropout=0.0, feedforward_dims=(1,))
    assert SASRec(config, 5).encode(batch_of([[1, 2]], 50)).shape == (2, 9)


@pytest.mark.parametrize("norm", ["paper", "pre", "post"])
@pytest.mark.parametrize("num_blocks", [0, 1, 3])
def test_the_last_states_alone(norm, num_blocks):
    torch.manual_seed(0)
    config = SASRecConfig(max_length=6, embedding_dim=8, num_blocks=num_blocks, num_heads=2, norm=norm)
    model = SASRec(config, 30).eval()
    lengths = torch.tensor([1, 6, 3, 6, 2])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.randint(1, 31, (int(offsets[-1]),))
    positions = torch.cat([torch.arange(int(length)) for length in lengths])
    batch = Batch(items, items, positions, offsets, torch.arange(5), items)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_last(batch), model.encode(batch)[batch.last])


def test_another_window_is_shown_where_asked_for():
    assert SASRec(SASRecConfig(), 5).random_start == 0
    assert SASRec(SASRecConfig(random_start=0.5), 5).random_start == 0.5
