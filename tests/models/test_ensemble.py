"""Ensembles: the mean of the scores of several models, each trained as if it were alone."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, Predictor, Recommender
from seqrec.data.batches import pack
from seqrec.data.prepare import prepare
from seqrec.data.split import all_histories, split_last_two
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.models.ensemble import Ensemble
from seqrec.training.objective import Objective, draw_task, training_loss

SIZES = {"embedding_dim": 8, "max_length": 6}
FACTORED = [name for name, kind in MODELS.items() if kind.FACTORED and not kind.COUNTED]
SMALL = {**SIZES, "num_blocks": 1, "batch_size": 16, "epochs": 3, "ensemble": 2, "split": "last-two"}


def log(users: int = 60, items: int = 20) -> pl.DataFrame:
    """Users who walk round a ring of items, with some noise."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(users):
        start = random.integers(items)
        rows += [(user, int(start + n + random.integers(2)) % items, n) for n in range(random.integers(4, 9))]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def ensemble(name: str, count: int = 3, num_users: int = 60) -> Ensemble:
    config = {key: value for key, value in SIZES.items() if key in vars(MODELS[name].Config())}
    return Ensemble(lambda: build_model(name, config, 20, num_users), count)


@pytest.fixture(scope="module")
def histories():
    return all_histories(prepare(log()))


@pytest.mark.parametrize("name", FACTORED)
def test_scores_are_the_mean_of_those_of_the_members(name, histories):
    model = ensemble(name).eval()
    batch = pack(histories, model.max_length)
    items = torch.tensor([3, 1, 20])
    with torch.no_grad():
        for encoded in ("encode", "encode_last"):
            hidden = [getattr(part, encoded)(batch) for part in model.parts]
            mean = torch.stack([part.score(h).double() for part, h in zip(model.parts, hidden, strict=True)]).mean(0)
            found = model.score(getattr(model, encoded)(batch))
            torch.testing.assert_close(found[:, 1:].double(), mean[:, 1:], atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(model.score(getattr(model, encoded)(batch), items), found[:, items])
    different = [part.score(h)[0, 1:] for part, h in zip(model.parts, hidden, strict=True)]
    assert not torch.allclose(different[0], different[1])


@pytest.mark.parametrize("loss", ["sampled-softmax", "bce", "cross-entropy"])
def test_each_member_is_trained_on_its_own_loss(loss, histories):
    model: Model = ensemble("sasrec").train()
    for module in model.modules():
        if hasattr(module, "active"):
            module.eval()  # without dropout the members' losses can be computed one at a time
    train = split_last_two(histories.dataset).train
    objective = Objective(loss, None if loss == "cross-entropy" else 5, 0.0, 1.0)
    some = train.take(np.arange(20))
    batch = pack(some, model.max_length, with_targets=True)
    task = draw_task(model, batch, some, objective, objective.sampler(train), np.random.default_rng(0))
    value = training_loss(model, task, objective, torch.device("cpu"))
    value.backward()
    gradients = [part.item_embedding.weight.grad.clone() for part in model.parts]
    losses = []
    for part, gradient in zip(model.parts, gradients, strict=True):
        part.zero_grad()
        own = training_loss(part, task, objective, torch.device("cpu"))
        own.backward()
        losses.append(own.item())
        torch.testing.assert_close(part.item_embedding.weight.grad / 3, gradient, atol=1e-7, rtol=1e-4)
    assert value.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_run_keeps_an_ensemble(tmp_path: Path):
    recommender = Recommender(**SMALL).fit(log(), tmp_path / "run")
    assert len(recommender.model.parts) == 2
    one, other = (part.item_embedding.weight for part in recommender.model.parts)
    assert not torch.allclose(one, other)
    expected = recommender.recommend(k=5)
    assert Recommender.load(tmp_path / "run").recommend(k=5).equals(expected)
    predictor = Predictor.load(tmp_path / "run")
    first = expected.filter(pl.col("user_id") == expected["user_id"][0])
    assert [item for item, _ in predictor.recommend_users(first["user_id"][0], 5)] == first["item_id"].to_list()
    similar = recommender.similar([3], k=19)
    assert similar["score"].is_between(-1.001, 1.001).all()
    assert recommender.evaluate().metrics == Recommender.load(tmp_path / "run").evaluate().metrics


def test_an_ensemble_resumes_to_the_same_bytes(tmp_path: Path):
    Recommender(**SMALL).fit(log(), tmp_path / "one")
    Recommender(**SMALL | {"epochs": 2}).fit(log(), tmp_path / "two")
    Recommender(**SMALL).fit(log(), tmp_path / "two", resume=True)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_a_refit_of_an_ensemble(tmp_path: Path):
    recommender = Recommender(**SMALL, refit="all").fit(log(), tmp_path / "run")
    assert recommender.trained_on == "all"
    assert len(Recommender.load(tmp_path / "run").model.parts) == 2


@pytest.mark.parametrize("name", ["slirec"])
def test_models_that_are_not_factored_are_refused(name, tmp_path: Path):
    with pytest.raises(InputError, match="can't be averaged; leave out ensemble"):
        Recommender(name, ensemble=2, epochs=1).fit(log(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [0, -1, 101, 1.5])
def test_impossible_numbers_of_models(count):
    with pytest.raises(InputError, match="ensemble"):
        Recommender(ensemble=count)
