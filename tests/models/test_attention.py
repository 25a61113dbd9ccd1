"""The attention weights of the last tokens, against the weights of a full forward pass and a naive implementation."""

import math
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
import torch

from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import all_histories, split_last_two
from seqrec.models import MODELS, blocks, build_model, hstu, tisasrec
from seqrec.models.attention import attention_of
from seqrec.models.base import Model
from seqrec.models.ensemble import Ensemble
from seqrec.models.sasrec import SASRec

NUM_ITEMS = 40
SIZES = {"embedding_dim": 8, "user_dim": 4, "max_length": 9, "num_blocks": 2, "num_heads": 2, "time_span": 30}
WITH_ATTENTION = ["sasrec", "ssept", "tisasrec", "bert4rec", "esasrec", "hstu"]
CASES = [
    *((name, {}) for name in WITH_ATTENTION),
    *((name, {"num_heads": 1, "num_blocks": 1}) for name in WITH_ATTENTION),
    *((name, {"num_heads": 4, "num_blocks": 3, "max_length": 1}) for name in WITH_ATTENTION),
    *(("sasrec", {"norm": norm, "attention_dim": dim}) for norm in ("pre", "post") for dim in (8, 6)),
    ("ssept", {"norm": "pre"}),
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(0)
    lengths = [*range(1, 20), *random.integers(1, 12, 30)]
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.r_[np.arange(NUM_ITEMS), random.integers(0, NUM_ITEMS, len(users) - NUM_ITEMS)]
    times = random.integers(10**9, 10**9 + 10**6, len(users))
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}))


def model_of(name: str, dataset: Dataset, seed: int = 0, **values) -> Model:
    """A model whose attention is far from uniform, in evaluation mode."""
    own = {field.name for field in fields(MODELS[name].Config)}
    torch.manual_seed(seed)
    sizes = {key: value for key, value in (SIZES | values).items() if key in own}
    model = build_model(name, sizes, dataset.num_items, dataset.num_users)
    if model.COUNTED:
        model.count(split_last_two(dataset).train)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


def weights_of_the_forward_pass(model: Model, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The weights that ``encode`` really uses in the last block, for a batch of one history: all tokens, in float64."""
    seen = []

    def recording(*arguments, **options):
        mixed, weights = original(*arguments, **options)
        seen.append(weights)
        return mixed, weights

    original = blocks.attend
    with monkeypatch.context() as patch, torch.no_grad():
        for module in (blocks, hstu, tisasrec):
            patch.setattr(module, "attend", recording)
        model.encode(batch)
    last = seen[-1][:, -1]  # [heads, tokens]
    if not model.CAUSAL:  # without the mask, the last token
        last = last[:, :-1] / last[:, :-1].sum(dim=1, keepdim=True)
    if isinstance(model, hstu.HSTU):  # its weights have signs and any sum; the shares of their sizes are told
        last = last.abs() / last.abs().sum(dim=1, keepdim=True)
    return last.mean(dim=0).numpy()


@pytest.mark.parametrize(("name", "values"), CASES, ids=str)
def test_the_weights_are_those_of_the_forward_pass(name, values, dataset, monkeypatch):
    model = model_of(name, dataset, **values)
    # Of 1, 2, 5, 8, 9, 10, 11 and 19 items, and of other users.
    histories = all_histories(dataset).take(np.array([0, 1, 4, 7, 8, 9, 10, 18, 20, 30, 40]))
    found = attention_of(model, pack(histories, model.max_length))
    assert found is not None
    assert len(found) == len(histories)
    model = model.double()
    spread = 0.0
    for row, weights in enumerate(found):
        assert weights.dtype == np.float32
        assert len(weights) == min(histories.lengths[row], model.max_length)
        np.testing.assert_allclose(weights.sum(), 1, atol=1e-5)
        alone = pack(histories.take(slice(row, row + 1)), model.max_length)
        np.testing.assert_allclose(weights, weights_of_the_forward_pass(model, alone, monkeypatch), atol=2e-5)
        spread = max(spread, float(np.ptp(weights)))
    assert spread > 0.1 or model.max_length == 1  # equal weights would show little


def naive_weights(model: SASRec, items: list[int]) -> np.ndarray:
    """The weights of one history in float64, one product at a time; one block with ``norm="paper"``."""
    weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    dim, count = model.config.embedding_dim, model.config.num_heads
    width, inputs = dim // count, []
    for place, item in enumerate(items, start=model.max_length - len(items)):
        inputs.append(
            weights["item_embedding.weight"][item] * math.sqrt(dim) + weights["position_embedding.weight"][place]
        )
    last = inputs[-1] - inputs[-1].mean()
    last = last / math.sqrt((last**2).mean() + 1e-8)
    last = last * weights["blocks.0.attention_norm.weight"] + weights["blocks.0.attention_norm.bias"]
    query = weights["blocks.0.attention.query.weight"] @ last + weights["blocks.0.attention.query.bias"]
    total = np.zeros(len(items))
    for head in range(count):
        scores = []
        for x in inputs:
            key = weights["blocks.0.attention.key_value.weight"] @ x + weights["blocks.0.attention.key_value.bias"]
            part = range(head * width, (head + 1) * width)
            scores.append(sum(query[place] * key[place] for place in part) / math.sqrt(width))
        shares = [math.exp(score - max(scores)) for score in scores]
        total += np.array(shares) / sum(shares)
    return total / count


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_the_weights_of_one_block_by_hand(num_heads, dataset):
    model = model_of("sasrec", dataset, seed=1, num_blocks=1, num_heads=num_heads)
    random = np.random.default_rng(num_heads)
    lists = [random.integers(1, NUM_ITEMS + 1, length) for length in (1, 2, 9, 5, 14)]
    found = attention_of(model, pack(histories_of(dataset, lists), model.max_length))
    for items, weights in zip(lists, found, strict=True):
        np.testing.assert_allclose(weights, naive_weights(model, items[-9:].tolist()), atol=1e-5)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_other_histories_and_items_before_the_window_change_nothing(name, dataset):
    model = model_of(name, dataset)
    random = np.random.default_rng(3)
    times = [np.sort(random.integers(10**9, 10**9 + 10**6, 20)) for _ in range(4)]
    items = [random.integers(1, NUM_ITEMS + 1, 20) for _ in range(4)]
    changed = [one % NUM_ITEMS + 1 for one in items]
    changed[2] = np.r_[changed[2][:-9], items[2][-9:]]
    before, after = (
        attention_of(model, pack(histories_of(dataset, some, times), model.max_length)) for some in (items, changed)
    )
    np.testing.assert_allclose(before[2], after[2], atol=1e-6)
    assert not np.allclose(before[1], after[1], atol=1e-3)


@pytest.mark.parametrize("name", sorted({*MODELS} - {*WITH_ATTENTION}))
def test_models_without_attention(name, dataset):
    model = model_of(name, dataset)
    assert attention_of(model, pack(all_histories(dataset), model.max_length)) is None


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_without_blocks_there_is_no_attention(name, dataset):
    model = model_of(name, dataset, num_blocks=0)
    assert attention_of(model, pack(all_histories(dataset), model.max_length)) is None


def test_an_ensemble_has_the_mean_of_the_members_with_attention(dataset):
    parts = [model_of(name, dataset, seed) for seed, name in enumerate(("sasrec", "gru4rec", "ssept"))]
    model = Ensemble(parts).eval()
    batch = pack(all_histories(dataset), model.max_length)
    first, second = (attention_of(parts[number], batch) for number in (0, 2))
    for weights, one, other in zip(attention_of(model, batch), first, second, strict=True):
        np.testing.assert_allclose(weights, (one + other) / 2, atol=1e-6)
    assert attention_of(Ensemble(parts[1:2]).eval(), batch) is None


def test_empty_batches_and_histories(dataset):
    model = model_of("sasrec", dataset)
    assert attention_of(model, pack(all_histories(dataset).take(slice(0, 0)), 9)) == []
    with pytest.raises(ValueError, match="an empty history"):
        attention_of(model, pack(histories_of(dataset, [np.array([1]), np.array([], dtype=np.int64)]), 9))
