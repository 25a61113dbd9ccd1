"""Item vectors made of features: against naive loops, in every model that takes them."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec import InputError
from seqrec.data.batches import Batch, pack
from seqrec.data.dataset import Dataset
from seqrec.data.draws import Draws, Part
from seqrec.data.features import Features
from seqrec.data.prepare import prepare
from seqrec.data.split import all_histories
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.ensemble import Ensemble
from seqrec.models.features import IdDropout, ItemEmbedding, fold_features
from seqrec.models.sasrec import SASRecConfig
from seqrec.training.objective import mark_tables

ITEMS, CODES, VALUES = 30, 7, 3
ABLE = [name for name, kind in MODELS.items() if kind.VECTORS_OF_ITEMS]


def features(seed: int = 0, items: int = ITEMS) -> Features:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 4, items)
    codes = [np.sort(random.permutation(CODES)[:count]) for count in counts]
    values = np.zeros((items + 1, VALUES), dtype=np.float32)
    values[1:] = random.standard_normal((items, VALUES))
    return Features(np.concatenate([[0, 0], np.cumsum(counts)]), np.concatenate(codes).astype(np.int64), values)


def model_of(name: str, **more: Any) -> Model:
    sizes = {"embedding_dim": 8, "max_length": 6} | ({"num_blocks": 1} if name != "gru4rec" else {})
    sizes |= {"features": "some", "num_codes": CODES, "num_values": VALUES, "id_dropout": 0.5} | more
    torch.manual_seed(0)
    model = build_model(name, sizes, ITEMS, 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.set_features(features())
    return model.eval()


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(1)
    users = np.repeat(np.arange(20), 8)
    items = np.r_[np.arange(ITEMS), random.integers(0, ITEMS, len(users) - ITEMS)]
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}))


def naive(table: ItemEmbedding, item: int, some: Features) -> np.ndarray:
    """The vector of an item in float64, without id dropout."""
    assert table.encoder is not None
    own, codes, values = (
        weight.detach().double().numpy()  # type: ignore[union-attr]
        for weight in (table.weight, table.encoder.code_vectors, table.encoder.value_vectors)
    )
    found = own[item] + some.values[item].astype(np.float64) @ values
    mine = some.codes[some.offsets[item] : some.offsets[item + 1]]
    return found + (sum(codes[code] for code in mine) / len(mine) if len(mine) else 0)


def test_vectors_are_those_of_a_naive_loop():
    table = model_of("sasrec").item_embedding
    assert isinstance(table, ItemEmbedding)
    expected = np.array([naive(table, item, features()) for item in range(ITEMS + 1)])
    np.testing.assert_allclose(table.all().detach(), expected, atol=1e-6)
    random = np.random.default_rng(2)
    for shape in [(), (1,), (7,), (4, 5), (0,), (2, 0)]:
        items = torch.from_numpy(random.integers(0, ITEMS + 1, shape))
        np.testing.assert_allclose(table(items).detach(), expected[items.numpy()], atol=1e-6)


@pytest.mark.parametrize("sizes", [{"num_values": 0}, {"num_codes": 0}])
def test_features_of_one_kind(sizes: dict[str, int]):
    some, whole = model_of("sasrec", num_codes=CODES, num_values=VALUES).item_embedding, features()
    other = ItemEmbedding(ITEMS, 8, SASRecConfig(features="some", **{"num_codes": CODES, "num_values": VALUES} | sizes))
    other.load_state_dict({name: weight for name, weight in some.state_dict().items() if name in other.state_dict()})  # type: ignore[union-attr, operator]
    no_codes = "num_values" not in sizes
    given = Features(
        np.zeros_like(whole.offsets) if no_codes else whole.offsets,
        whole.codes[:0] if no_codes else whole.codes,
        whole.values if no_codes else whole.values[:, :0],
    )
    other.set_features(given)
    both = Features(given.offsets, given.codes, whole.values if no_codes else np.zeros_like(whole.values))
    expected = np.array([naive(some, item, both) for item in range(ITEMS + 1)])  # type: ignore[arg-type]
    np.testing.assert_allclose(other.all().detach(), expected, atol=1e-6)
    np.testing.assert_allclose(other(torch.arange(ITEMS + 1)).detach(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ABLE)
def test_every_model_reads_and_scores_by_the_vectors(name: str, dataset: Dataset):
    model = model_of(name)
    batch = pack(all_histories(dataset), 6)
    with torch.no_grad():
        before = model.score(model.encode(batch))
        assert torch.allclose(model.vectors_of(torch.arange(ITEMS + 1)), model.item_vectors(), atol=1e-6)
        plain = build_model(name, {**vars(model.config), "features": None, "id_dropout": 0.0, "num_codes": None,
                                   "num_values": None}, ITEMS, 20)  # fmt: skip
        plain.load_state_dict({n: w for n, w in model.state_dict().items() if ".encoder." not in n})
        plain.item_embedding.weight.copy_(model.item_embedding.all())  # type: ignore[union-attr, operator]
        assert torch.allclose(plain.eval().score(plain.encode(batch)), before, atol=1e-5)
        fold_features(model)
        assert torch.allclose(model.score(model.encode(batch)), before, atol=1e-5)
        assert "item_embedding.encoder.code_vectors" not in model.state_dict()


@pytest.mark.parametrize("name", ABLE)
def test_gradients_reach_features_and_ids(name: str, dataset: Dataset):
    model = model_of(name).train()
    mark_tables(model)
    seed_dropout(dropouts_of(model), Draws([0]))
    batch = pack(all_histories(dataset), 6, with_targets=True)
    model.score(model.encode(batch), torch.stack([batch.targets, batch.targets % ITEMS + 1], dim=1)).sum().backward()
    table = model.item_embedding
    assert isinstance(table, ItemEmbedding)
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert table.encoder is not None
    for vectors in (table.encoder.code_vectors, table.encoder.value_vectors):
        assert vectors is not None
        assert vectors.grad is not None
        assert vectors.grad.abs().sum() > 0
    dense = table.weight.grad.to_dense()
    kept = table.id_dropout.keeps(torch.arange(ITEMS + 1))  # type: ignore[union-attr]
    assert not dense[~kept].any()
    assert dense[kept].any()


def test_id_dropout_leaves_out_the_same_items_in_a_step():
    dropout = IdDropout(0.3)
    items = torch.arange(100_000)
    masks = []
    for step in range(3):
        for part in (None, Part(np.array([3, 4]), 0, 1, 0), Part(np.array([3, 4]), 1, 2, 1)):
            seed_dropout([dropout], Draws([5, step], part))
            masks.append(dropout.keeps(items))
            assert torch.equal(dropout.keeps(items), masks[-1])
            assert torch.equal(dropout.keeps(items.view(-1, 10).flip(0)), masks[-1].view(-1, 10).flip(0))
        assert torch.equal(masks[-1], masks[-2])  # in every process
        assert torch.equal(masks[-1], masks[-3])
        assert float(masks[-1].float().mean()) == pytest.approx(0.7, abs=0.006)
    one, other = masks[0].float() - 0.7, masks[-1].float() - 0.7
    assert abs(float((one * other).mean())) < 0.003  # steps are independent, and so are neighbours
    assert abs(float((one[1:] * one[:-1]).mean())) < 0.003


def test_id_dropout_acts_in_training_alone():
    model = model_of("sasrec")
    table, items = model.item_embedding, torch.arange(ITEMS + 1)
    assert isinstance(table, ItemEmbedding)
    whole = table.all()
    model.train()
    seed_dropout(dropouts_of(model), Draws([0]))
    assert table.id_dropout is not None
    kept = table.id_dropout.keeps(items)
    assert 0 < int(kept.sum()) < ITEMS
    assert torch.allclose(table.all(), whole - table.weight * ~kept[:, None], atol=1e-6)
    assert torch.allclose(table(items), table.all(), atol=1e-6)


def test_an_ensemble_shares_the_features(dataset: Dataset):
    members = [model_of(name) for name in ("sasrec", "gru4rec")]
    ensemble = Ensemble(members).eval()
    batch: Batch = pack(all_histories(dataset), 6)
    ensemble.set_features(features(3))
    with torch.no_grad():
        mean = sum((part.score(part.encode(batch)) for part in members), torch.zeros(())) / 2
        assert torch.allclose(ensemble.score(ensemble.encode(batch)), mean, atol=1e-5)
        other: Tensor = model_of("sasrec").score(model_of("sasrec").encode(batch))
        assert not torch.allclose(members[0].score(members[0].encode(batch)), other, atol=1e-3)


def test_features_that_do_not_fit():
    model = model_of("sasrec")
    some = features()
    for wrong, message in [
        (features(items=ITEMS - 1), "features are those of 29 items, not of 30"),
        (some._replace(values=some.values[:, :1]), "features are those of"),
        (some._replace(codes=some.codes + CODES), "a feature has the code"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.set_features(wrong)
    plain = build_model("sasrec", {"embedding_dim": 8}, ITEMS, 20)
    with pytest.raises(ValueError, match="there are no features; build the model with their number"):
        plain.set_features(some)


def test_options():
    assert SASRecConfig().resolved().features == ""
    assert SASRecConfig(features="all").resolved().features == "all"
    with pytest.raises(InputError, match=r"id_dropout is 0\.2, but there are no features; give features, or leave it"):
        SASRecConfig(id_dropout=0.2)
    with pytest.raises(InputError, match="features are shared by input and output; leave out separate_output"):
        build_model("gru4rec", {"features": "all", "separate_output": True}, ITEMS, 20)
    with pytest.raises(InputError, match="id_dropout is 1"):
        replace(SASRecConfig(features="all"), id_dropout=1.0)
