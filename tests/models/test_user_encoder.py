"""Features of users at the input: against models whose items carry the user's vector, in all that take them."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.data.draws import Draws, Part
from seqrec.data.features import Features
from seqrec.data.prepare import prepare
from seqrec.data.split import all_histories
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.ensemble import Ensemble
from seqrec.models.features import OWNERS, UNKNOWN, UserEncoder

ITEMS, USERS, CODES, VALUES = 30, 20, 7, 3
ABLE = [name for name, kind in MODELS.items() if kind.VECTORS_OF_ITEMS]


def features() -> Features:
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, USERS)
    codes = [np.sort(random.permutation(CODES)[:count]) for count in counts]
    values = np.zeros((USERS + 1, VALUES), dtype=np.float32)
    values[1:] = random.standard_normal((USERS, VALUES))
    return Features(np.concatenate([[0, 0], np.cumsum(counts)]), np.concatenate(codes).astype(np.int64), values)


def model_of(name: str, **more: Any) -> Model:
    sizes = {"embedding_dim": 8, "max_length": 6} | ({"num_blocks": 2} if name != "gru4rec" else {})
    sizes |= {"user_features": "some", "num_user_codes": CODES, "num_user_values": VALUES} | more
    torch.manual_seed(0)
    model = build_model(name, sizes, ITEMS, USERS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if model.user_encoder.encoder is not None:  # type: ignore[union-attr]
        model.set_user_features(features())
    return model.eval()


def plain_of(name: str, model: Model, added: np.ndarray) -> Model:
    """A model without features whose items carry the vector of one user at the input."""
    plain = model_of(name, user_features=None, num_user_codes=0, num_user_values=0)
    weights = {name: weight for name, weight in model.state_dict().items() if "user_encoder" not in name}
    plain.load_state_dict(weights)
    with torch.no_grad():
        plain.item_embedding.weight += torch.from_numpy(added.astype(np.float32))  # type: ignore[union-attr, operator]
    return plain


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(1)
    users = np.repeat(np.arange(USERS), np.arange(USERS) % 8 + 2)
    items = np.r_[np.arange(ITEMS), random.integers(0, ITEMS, len(users) - ITEMS)]
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users)) * 100}))


def naive(model: Model, user: int) -> np.ndarray:
    """The vector of a user in float64; -1 is somebody unknown."""
    if user < 0:
        return np.zeros(8)
    encoder, some = model.user_encoder.encoder, features()  # type: ignore[union-attr]
    codes, values = (one.detach().double().numpy() for one in (encoder.code_vectors, encoder.value_vectors))  # type: ignore[union-attr]
    mine = some.codes[some.offsets[user + 1] : some.offsets[user + 2]]
    found = some.values[user + 1].astype(np.float64) @ values
    return found + (sum(codes[code] for code in mine) / len(mine) if len(mine) else 0)


def someone_of(dataset: Dataset) -> Batch:
    """All users, and one who is not in the dataset."""
    histories = all_histories(dataset)
    strange = replace(histories, users=np.r_[histories.users[:-1], -1])
    return pack(strange, 6)


@pytest.mark.parametrize("name", ABLE)
def test_each_token_carries_the_vector_of_its_user_and_so_do_gradients(name: str, dataset: Dataset):
    model, batch = model_of(name), someone_of(dataset)
    encoder = model.user_encoder.encoder  # type: ignore[union-attr]
    some, upstream = features(), torch.randn(len(batch.items), model.encode(batch).shape[1])
    (model.encode(batch) * upstream).sum().backward()
    by_codes, by_values = np.zeros((CODES, 8)), np.zeros((VALUES, 8))
    with torch.no_grad():
        hidden, last = model.encode(batch), model.encode_last(batch)
    assert torch.allclose(last, hidden[batch.last], atol=1e-5)
    histories = all_histories(dataset)
    for row, user in enumerate(batch.users.tolist()):
        own = pack(replace(histories.take(slice(row, row + 1)), users=batch.users[row : row + 1].numpy()), 6)
        tokens = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        plain = plain_of(name, model, naive(model, user))
        found = plain.encode(own)
        assert torch.allclose(found, hidden[tokens], atol=2e-5), user
        (found * upstream[tokens]).sum().backward()
        by_user = plain.item_embedding.weight.grad.to_dense().sum(dim=0).double().numpy()  # type: ignore[union-attr, operator]
        mine = some.codes[some.offsets[user + 1] : some.offsets[user + 2]] if user >= 0 else []
        for code in mine:
            by_codes[code] += by_user / len(mine)
        by_values += np.outer(some.values[user + 1], by_user) if user >= 0 else 0
    scale = max(np.abs(by_codes).max(), 1)
    np.testing.assert_allclose(encoder.code_vectors.grad, by_codes, atol=1e-4 * scale)
    np.testing.assert_allclose(encoder.value_vectors.grad, by_values, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ABLE)
def test_no_token_sees_the_future(name: str, dataset: Dataset):
    model, batch = model_of(name), someone_of(dataset)
    later = batch.positions >= 2
    with torch.no_grad():
        before = model.encode(batch)
        changed = model.encode(replace(batch, items=torch.where(later, batch.items % ITEMS + 1, batch.items)))
    assert torch.allclose(before[~later], changed[~later], atol=1e-6)
    assert not torch.allclose(before[later], changed[later], atol=1e-3)


def test_training_shows_some_users_as_unknown_the_same_in_every_process():
    sizes = {"user_features": "some", "num_user_codes": CODES, "num_user_values": VALUES}
    encoder = UserEncoder(50_000, 4, MODELS["sasrec"].Config(**sizes))
    values = np.repeat(np.float32([0, 1]), [1, 50_000])[:, None].repeat(VALUES, axis=1)
    encoder.set_features(Features(np.zeros(50_002, np.int64), np.zeros(0, np.int64), values))
    users, found = torch.arange(50_000), []
    encoder.reset(0.1)
    whole = encoder.eval().vectors(users)
    encoder.train()
    for step in range(2):
        for part in (None, Part(np.array([3, 4]), 1, 2, 1)):
            seed_dropout(dropouts_of(encoder), Draws([5, step], part))
            vectors = encoder.vectors(users)
            kept = vectors.any(dim=1)
            assert torch.equal(vectors[kept], whole[kept])
            assert float(1 - kept.float().mean()) == pytest.approx(UNKNOWN, abs=0.006)
            assert torch.equal(encoder.vectors(users.flip(0)).any(dim=1), kept.flip(0))
            found.append(kept)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_ssept_keeps_the_features_of_users_that_it_replaces(dataset: Dataset):
    model = model_of("ssept", sse_user=1.0)
    batch = pack(all_histories(dataset), 6, with_targets=True)
    shown = model.corrupt(batch, Draws([0]))
    assert not (shown.users == batch.users).any()
    assert torch.equal(shown.to("cpu").of_users[OWNERS], batch.users)
    with torch.no_grad():
        one = model.user_encoder(torch.zeros(len(batch.items), 8), shown)  # type: ignore[operator]
        assert torch.equal(one, model.user_encoder(torch.zeros(len(batch.items), 8), batch))  # type: ignore[operator]
    assert (
        OWNERS
        not in model_of("ssept", user_features=None, num_user_codes=0, num_user_values=0)
        .corrupt(batch, Draws([0]))
        .of_users
    )


def test_members_of_an_ensemble_share_the_features(dataset: Dataset):
    members = [model_of(name) for name in ("sasrec", "ssept", "gru4rec")]
    ensemble, batch = Ensemble(members).eval(), someone_of(dataset)
    ensemble.set_user_features(features())
    with torch.no_grad():
        mean = sum((part.score(part.encode(batch)) for part in members), torch.zeros(())) / 3
        found: Tensor = ensemble.score(ensemble.encode(batch))
    assert torch.allclose(found, mean, atol=1e-5)


def test_features_that_are_not_set_or_do_not_fit(dataset: Dataset):
    fresh = build_model("sasrec", {"user_features": "a", "num_user_codes": CODES, "embedding_dim": 8}, ITEMS, USERS)
    with pytest.raises(ValueError, match="the features of the users are not set"):  # they are never ignored silently
        fresh.encode(pack(histories_of(dataset, [np.array([1, 2])]), 6))
    some = features()
    with pytest.raises(ValueError, match="features are those of 19 users, not of 20"):
        model_of("sasrec").set_user_features(some._replace(offsets=some.offsets[:-1], values=some.values[:-1]))
    with pytest.raises(ValueError, match="there are no features of users; build the model with their number"):
        build_model("sasrec", {"embedding_dim": 8}, ITEMS, USERS).set_user_features(some)
