"""Ensembles: the mean of the scores of several models, each trained as if it were alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, Predictor, Recommender
from seqrec.data.batches import pack
from seqrec.data.draws import Draws
from seqrec.data.prepare import prepare
from seqrec.data.split import all_histories, split_last_two
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.models.ensemble import BEFORE_MIXED, MIXED, Ensemble
from seqrec.models.gru4rec import GRU4Rec
from seqrec.models.ssept import SSEPT
from seqrec.run.config import RunConfig
from seqrec.training.objective import Objective, draw_task, training_loss

SIZES = {"embedding_dim": 8, "max_length": 6}
FACTORED = [name for name, kind in MODELS.items() if kind.FACTORED and not kind.COUNTED]
SMALL = {**SIZES, "num_blocks": 1, "batch_size": 16, "epochs": 3, "ensemble": 2, "split": "last-two",
         "transitions": "off"}  # fmt: skip


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
    return Ensemble([build_model(name, config, 20, num_users) for _ in range(count)])


@pytest.fixture(scope="module")
def histories():
    return all_histories(prepare(log()))


@pytest.mark.slow_but_one
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
    task = draw_task(model, batch, some, objective, objective.sampler(train), Draws([0]))
    value = training_loss(model, task, objective, torch.device("cpu"))
    value.backward()
    gradients = [part.item_embedding.weight.grad.clone() for part in model.parts]
    losses = []
    for part, gradient in zip(model.parts, gradients, strict=True):
        part.zero_grad()
        own = training_loss(part, replace(task, others=()), objective, torch.device("cpu"))
        own.backward()
        losses.append(own.item())
        torch.testing.assert_close(part.item_embedding.weight.grad / 3, gradient, atol=1e-7, rtol=1e-4)
    assert value.item() == pytest.approx(np.mean(losses), rel=1e-5)


def mixed(first: str, count: int, **sizes) -> Ensemble:
    """A mixed ensemble as a run builds it."""
    values = vars(MODELS[first].Config(**SIZES, **sizes).resolved())
    training = {"ensemble": count, "ensemble_kinds": "mixed"}
    return RunConfig(first, values, 20, 60, False, "", training=training).build()


@pytest.mark.parametrize("first", MIXED)
def test_kinds_take_turns_beginning_with_the_one_that_was_asked_for(first):
    dropout = "hidden_dropout" if first == "gru4rec" else "dropout"
    model = mixed(first, 4, **{dropout: 0.125})
    start = MIXED.index(first)
    assert [type(part) for part in model.parts] == [MODELS[MIXED[(start + n) % 3]] for n in range(4)]
    for part in model.parts:
        assert (part.config.max_length, part.config.embedding_dim) == (6, 8)
        assert getattr(part.config, "hidden_dropout" if isinstance(part, GRU4Rec) else "dropout") == 0.125
        if isinstance(part, SSEPT) and first != "ssept":
            assert part.config.user_dim == 8
    one, again = model.parts[0], model.parts[3]
    assert not torch.equal(one.item_embedding.weight, again.item_embedding.weight)


@pytest.mark.parametrize("first", BEFORE_MIXED)
def test_hstu_and_lrurec_go_before_the_kinds_that_take_turns(first):
    model = mixed(first, 5, dropout=0.125)
    turns = ["HSTU", "LRURec", "SASRec", "SSEPT", "GRU4Rec", "LRURec"]
    assert [type(part).__name__ for part in model.parts] == (turns[:5] if first == "hstu" else turns[1:])
    assert {part.config.max_length for part in model.parts} == {6}
    assert [getattr(part.config, "dropout", 0.125) for part in model.parts] == [0.125] * 5


def test_in_a_mixed_ensemble_each_kind_sees_its_own_batch_and_predicts_the_same_targets(histories):
    model = mixed("sasrec", 5).train()
    for module in model.modules():
        if hasattr(module, "active"):
            module.eval()
    train = split_last_two(histories.dataset).train
    objective = Objective("sampled-softmax", 5, 0.25, 1.0)
    some = train.take(np.arange(20))
    batch = pack(some, model.max_length, with_targets=True)
    task = draw_task(model, batch, some, objective, objective.sampler(train), Draws([0]))
    seen = [task.batch, *task.others]
    assert [one is batch for one in seen] == [True, False, True, True, False]
    assert seen[1] is seen[4]
    assert not torch.equal(seen[1].users, batch.users)  # SSE-PT shows most histories as other users'
    value = training_loss(model, task, objective, torch.device("cpu"))
    alone = [
        training_loss(part, replace(task, batch=shown, others=()), objective, torch.device("cpu")).item()
        for part, shown in zip(model.parts, seen, strict=True)
    ]
    assert value.item() == pytest.approx(np.mean(alone), rel=1e-5)
    moved = task.to(torch.device("meta"))
    assert moved.others[0] is moved.others[3] or len({id(one) for one in (moved.batch, *moved.others)}) == 2


@pytest.mark.parametrize("first", [*MIXED, *BEFORE_MIXED])
def test_scores_of_a_mixed_ensemble_are_the_mean_of_those_of_its_members(first, histories):
    model = mixed(first, 3).eval()
    batch = pack(histories, model.max_length)
    with torch.no_grad():
        hidden = [part.encode_last(batch) for part in model.parts]
        mean = torch.stack([part.score(h).double() for part, h in zip(model.parts, hidden, strict=True)]).mean(0)
        found = model.score(model.encode_last(batch))
    torch.testing.assert_close(found[:, 1:].double(), mean[:, 1:], atol=1e-6, rtol=1e-4)


def test_a_run_keeps_a_mixed_ensemble_and_resumes_it_to_the_same_bytes(tmp_path: Path):
    options = SMALL | {"ensemble": 3, "ensemble_kinds": "mixed", "evaluate_every": 1}
    Recommender(**options).fit(log(), tmp_path / "one")
    Recommender(**options | {"epochs": 2}).fit(log(), tmp_path / "two")
    Recommender(**options).fit(log(), tmp_path / "two", resume=True)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    loaded = Recommender.load(tmp_path / "one")
    assert [type(part).__name__ for part in loaded.model.parts] == ["SASRec", "SSEPT", "GRU4Rec"]
    expected = loaded.recommend(k=5)
    first = expected.filter(pl.col("user_id") == expected["user_id"][0])
    found = Predictor.load(tmp_path / "one").recommend_users(first["user_id"][0], 5)
    assert [item for item, _ in found] == first["item_id"].to_list()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("caser", {"ensemble": 2}, "is for sasrec, ssept, gru4rec, hstu, lrurec; caser takes same"),
        ("ssept", {"ensemble": 2, "sse_target": 0.1}, "leave out sse_target"),
        ("gru4rec", {"ensemble": 2, "elu": 0.5, "loss": "bpr-max"}, "can't be averaged"),
        ("sasrec", {"ensemble": 1}, "give more models"),
        ("sasrec", {"ensemble": 2, "ensemble_kinds": "all"}, "same or mixed"),
    ],
)
def test_kinds_that_cannot_be_mixed_are_refused(model, options, message, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        Recommender(model, **{"ensemble_kinds": "mixed", "epochs": 1} | options).fit(log(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_an_ensemble(tmp_path: Path):
    recommender = Recommender(**SMALL | {"transitions": "auto"}).fit(log(), tmp_path / "run")
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
    options = SMALL | {"evaluate_every": 1}  # otherwise the last epoch of the shorter one is validated in addition
    Recommender(**options).fit(log(), tmp_path / "one")
    Recommender(**options | {"epochs": 2}).fit(log(), tmp_path / "two")
    Recommender(**options).fit(log(), tmp_path / "two", resume=True)
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
