"""From a batch to a loss, compared with loops over predictions and negatives."""

import itertools
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec import TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, pack
from seqrec.data.dataset import Dataset
from seqrec.data.draws import Draws
from seqrec.data.negatives import PopularitySampler, UniformSampler
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models.base import Loss, Model
from seqrec.models.gru4rec import GRU4Rec, GRU4RecConfig
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.models.ssept import SSEPT, SSEPTConfig
from seqrec.ranking.metrics import hit_rate
from seqrec.ranking.protocols import ranks
from seqrec.training.config import LogQ
from seqrec.training.loop import train
from seqrec.training.objective import (
    Objective,
    _own_negatives,
    draw_task,
    mark_tables,
    training_loss,
)

NUM_ITEMS = 30
SHARED = [loss for loss in get_args(Loss) if loss not in ("bce", "cross-entropy")]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """A log whose low items are far more popular than the high ones."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 12, 40)
    users = np.repeat(np.arange(40), lengths)
    items = np.r_[np.arange(NUM_ITEMS), (NUM_ITEMS * random.random(len(users) - NUM_ITEMS) ** 3).astype(np.int64)]
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}))


class Plain(Model):
    """Hidden states and scores from one table. It records the items that it scored."""

    SPARSE_TABLES = frozenset({"item_embedding"})

    def __init__(self, num_items: int, factored: bool = True) -> None:
        super().__init__()
        self.FACTORED = factored  # type: ignore[misc]
        self.num_items = num_items
        self.item_embedding = torch.nn.Embedding(num_items + 1, 4)
        self.user_embedding = torch.nn.Embedding(1, 4)
        self.asked: list[Tensor | None] = []

    def encode(self, batch: Batch) -> Tensor:
        return self.item_embedding(batch.items) + self.user_embedding(torch.zeros_like(batch.items))

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def vectors_of(self, items: Tensor) -> Tensor:
        self.asked.append(items)
        return self.item_embedding(items)


class TwoTargets(Plain):
    """A model in which each token except a user's first predicts its own item and its target."""

    def corrupt(self, batch: Batch, random: np.random.Generator) -> Batch:
        return replace(batch, items=torch.where(batch.positions % 2 == 0, batch.items, batch.targets))

    def training_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = (batch.positions > 0).nonzero()[:, 0].repeat_interleave(2)
        items = torch.stack([batch.items, batch.targets], dim=1)[batch.positions > 0].flatten()
        return tokens, items


class NoTargets(Plain):
    """A model without predictions."""

    def training_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)


def model_of(kind: type[Plain], dataset: Dataset, factored: bool = True) -> Plain:
    torch.manual_seed(0)
    return kind(dataset.num_items, factored).double()


def objective_of(
    loss: Loss,
    negatives: int | None = 12,
    popularity: float = 0.0,
    bpr_penalty: float = 0.7,
    logq_correction: LogQ = "all",
) -> Objective:
    return Objective(loss, negatives, popularity, bpr_penalty, logq_correction=logq_correction)


def loss_of(
    model: Model, histories: Histories, objective: Objective, seed: int = 0, max_length: int = 5
) -> tuple[Tensor, Batch]:
    """The loss of a batch of all histories, and the batch."""
    batch = pack(histories, max_length, with_targets=True)
    sampler = objective.sampler(histories)
    cpu = torch.device("cpu")
    task = draw_task(model, batch, histories, objective, sampler, Draws([seed]))
    return training_loss(model, task, objective, cpu), batch


def naive(model: Plain, histories: Histories, objective: Objective, seed: int = 0, max_length: int = 5) -> float:
    """The same loss in a loop over predictions, with the same negatives."""
    batch = pack(histories, max_length, with_targets=True)
    sampler = objective.sampler(histories)
    draws = Draws([seed])
    shown = model.corrupt(batch, draws)
    random = draws.child(0).common()
    tokens, items = model.training_targets(shown)
    tokens = torch.arange(len(items)) if tokens is None else tokens
    count = objective.negatives or 1024
    drawn = []
    if objective.loss != "cross-entropy":
        uniform = isinstance(sampler, UniformSampler)
        drawn = (sampler.draw_distinct(random, count) if uniform else sampler.draw(random, count)).tolist()
    table = model.item_embedding.weight.detach().numpy()
    counts = histories.item_counts().astype(float)
    total = 0.0
    for token, target in zip(tokens.tolist(), items.tolist(), strict=True):
        row = int(np.searchsorted(batch.offsets.numpy(), token, side="right")) - 1
        own = set(histories.dataset.items[histories.starts[row] : histories.ends[row]].tolist())
        hidden = table[int(shown.items[token])] + model.user_embedding.weight.detach().numpy()[0]
        r_i = float(hidden @ table[target])
        if objective.loss == "cross-entropy":
            total += math.log(sum(math.exp(hidden @ table[j]) for j in range(1, len(table)))) - r_i
            continue
        negatives = [j for j in drawn if j not in own]
        scores = [float(hidden @ table[j]) for j in negatives]
        if objective.loss == "sampled-softmax":
            if objective.popularity:
                weights = [counts[j] ** objective.popularity for j in negatives]
                whole = sum(c**objective.popularity for c in counts[1:] if c)
                scores = [
                    r - math.log(w / whole * histories.dataset.num_items) for r, w in zip(scores, weights, strict=True)
                ]
            if objective.logq_correction == "all":
                r_i -= math.log(histories.dataset.num_items / len(drawn))
            total += math.log(1 + sum(math.exp(r - r_i) for r in scores))
            continue
        if objective.loss == "gbce":
            alpha = min(len(drawn) / (len(table) - 2), 1)  # more negatives than items do not raise alpha
            beta = alpha * (objective.calibration * (1 - 1 / alpha) + 1 / alpha)  # as in the paper
            total -= beta * math.log(1 / (1 + math.exp(-r_i))) + sum(math.log(1 / (1 + math.exp(r))) for r in scores)
            continue
        shares = [math.exp(r) / sum(map(math.exp, scores)) for r in scores]
        if not scores:
            continue
        if objective.loss == "bpr-max":
            total -= math.log(sum(s / (1 + math.exp(r - r_i)) for s, r in zip(shares, scores, strict=True)))
            total += objective.bpr_penalty * sum(s * r * r for s, r in zip(shares, scores, strict=True))
        else:
            pairs = zip(shares, scores, strict=True)
            total += sum(s * (1 / (1 + math.exp(r_i - r)) + 1 / (1 + math.exp(-r * r))) for s, r in pairs)
    return total / len(items)


@pytest.mark.parametrize("loss", [*SHARED, "cross-entropy"])
@pytest.mark.parametrize(
    ("popularity", "kind", "factored"),
    [(0.0, Plain, True), (0.0, TwoTargets, False), (0.75, Plain, False), (0.75, TwoTargets, True)],
)
def test_the_loss_is_the_naive_loop(dataset, loss, popularity, kind, factored):
    histories = split_last_two(dataset).train
    model = model_of(kind, dataset, factored)
    for negatives in (1, 12, 40):
        objective = objective_of(loss, negatives, popularity)
        found, _ = loss_of(model, histories, objective, seed=3)
        # Logits are rounded to float32, except in the blocked losses.
        assert found.item() == pytest.approx(naive(model, histories, objective, seed=3), rel=1e-5)


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("popularity", [0.0, 0.5])
def test_sampled_softmax_without_the_targets_correction_is_the_naive_loop(dataset, popularity, factored):
    histories = split_last_two(dataset).train
    model = model_of(Plain, dataset, factored)
    objective = objective_of("sampled-softmax", 7, popularity, logq_correction="negatives")
    found, _ = loss_of(model, histories, objective, seed=4)
    assert found.item() == pytest.approx(naive(model, histories, objective, seed=4), rel=1e-5)


class Drawn(PopularitySampler):
    """A sampler that draws given items."""

    items: np.ndarray

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        return self.items


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("popularity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3])
def test_the_corrected_sampled_softmax_estimates_cross_entropy(popularity, count, factored):
    """Over all possible draws, exp(loss) of a prediction has the expectation exp(cross-entropy), exactly.

    The cross-entropy is over the target and the items that its user does not own, since only these can be negatives.
    """
    log = [(0, i, t) for t, i in enumerate([0, 1, 2])] + [(u, i, u) for u in (1, 2, 3) for i in range(u, 6)]
    dataset = prepare(pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row"))
    histories = Histories(dataset, np.arange(4), dataset.offsets[:-1], dataset.offsets[1:])
    one = histories.take(slice(0, 1))
    batch = pack(one, 1, with_targets=True)
    model = model_of(Plain, dataset, factored)
    with torch.no_grad():
        model.item_embedding.weight.mul_(1.5)
    sampler = Drawn(histories.item_counts(), popularity)
    objective = objective_of("sampled-softmax", count, popularity or 1e-9)
    expected, weight = 0.0, 0.0
    for items in itertools.product(range(1, dataset.num_items + 1), repeat=count):
        sampler.items = np.array(items)
        task = draw_task(model, batch, one, objective, sampler, Draws([0]))
        loss = training_loss(model, task, objective, torch.device("cpu"))
        probability = sampler.probabilities[list(items)].prod()
        expected += probability * math.exp(loss.item())
        weight += probability
    assert weight == pytest.approx(1)
    scores = model.score(model.encode(batch))[0]
    (target,) = batch.targets.tolist()
    own = one.flat()[1].tolist()
    others = [j for j in range(1, dataset.num_items + 1) if j not in own]
    full = -scores[[target, *others]].log_softmax(dim=0)[0]
    assert expected == pytest.approx(math.exp(full.item()), rel=1e-5)  # logits are rounded to float32


@pytest.mark.parametrize("loss", [loss for loss in get_args(Loss) if loss != "cross-entropy"])
@pytest.mark.parametrize("popularity", [0.0, 0.5])
def test_an_exchanged_target_is_never_its_own_negative(dataset, loss, popularity):
    """Stochastic shared embeddings may make foreign items targets, which may be drawn as negatives too."""
    histories = split_last_two(dataset).train
    model = SSEPT(SSEPTConfig(embedding_dim=4, user_dim=4, sse_target=0.7), dataset.num_items, dataset.num_users)
    objective = objective_of(loss, 20, popularity)
    sampler = objective.sampler(histories)
    batch = pack(histories, 50, with_targets=True)
    exchanged = met = 0
    for seed in range(5):
        task = draw_task(model, batch, histories, objective, sampler, Draws([seed]))
        targets = task.items[:, 0] if loss == "bce" else task.items
        exchanged += int((targets != batch.targets).sum())
        if loss == "bce":
            assert (task.items[:, 1:] != targets[:, None]).all()
            continue
        token, negative = task.left_out
        assert (token.diff() >= 0).all()
        out = torch.zeros(len(targets), len(task.shared), dtype=torch.bool).index_put(
            (token, negative), torch.tensor(True)
        )
        same = task.shared == targets[:, None]
        assert out[same].all()
        met += int(same.sum())
        owned = [set(dataset.items[a:b].tolist()) for a, b in zip(histories.starts, histories.ends, strict=True)]
        for row, target, line in zip(batch.rows.tolist(), targets.tolist(), out.tolist(), strict=True):
            wanted = [item in owned[row] or item == target for item in task.shared.tolist()]
            assert line == wanted
    assert exchanged > 0.5 * 5 * len(batch.targets)
    assert loss == "bce" or met > 100


def test_bce_keeps_a_target_whose_exchange_would_leave_no_negative():
    """The user owns four of the five items. The fifth is the only negative, and so never the target."""
    log = pl.DataFrame({"user_id": [1] * 4 + [2] * 2, "item_id": [0, 1, 2, 3, 3, 4], "timestamp": range(6)})
    dataset = prepare(log)
    histories = Histories(dataset, np.arange(2), dataset.offsets[:-1], dataset.offsets[1:]).take(slice(0, 1))
    model = SSEPT(SSEPTConfig(embedding_dim=4, user_dim=4, sse_target=1.0), dataset.num_items, dataset.num_users)
    objective = objective_of("bce", 3)
    batch = pack(histories, 50, with_targets=True)
    for seed in range(10):
        sampler = objective.sampler(histories)
        items = draw_task(model, batch, histories, objective, sampler, Draws([seed])).items
        assert (items[:, 1:] == 5).all()
        assert (items[:, 0] != 5).all()


@pytest.mark.parametrize("kind", [Plain, TwoTargets])
def test_bce_takes_negatives_of_each_prediction(dataset, kind):
    histories = split_last_two(dataset).train
    model = model_of(kind, dataset)
    loss, batch = loss_of(model, histories, objective_of("bce", 3))
    shown = model.corrupt(batch, Draws([0]))
    tokens, items = model.training_targets(shown)
    (both,) = model.asked  # the target and its negatives together
    asked, drawn = both[:, :1], both[:, 1:]
    assert torch.equal(asked, items[:, None])
    assert drawn.shape == (len(items), 3)
    rows = (batch.rows if tokens is None else batch.rows[tokens]).tolist()
    for row, line in zip(rows, drawn.tolist(), strict=True):
        assert not {*dataset.items[histories.starts[row] : histories.ends[row]].tolist()} & {*line}
    hidden = model.encode(shown) if tokens is None else model.encode(shown)[tokens]
    target, negative = model.score(hidden, asked), model.score(hidden, drawn)
    expected = -(target.sigmoid().log().sum() + (-negative).sigmoid().log().sum()) / len(items)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_how_many_negatives_without_a_number(dataset):
    histories = split_last_two(dataset).train
    for loss, count in (("bce", 1), ("gbce", 256), ("bpr-max", 1024), ("sampled-softmax", 1024)):
        expected = (2,) if loss == "bce" else ()  # for bce, negatives are scored with the target
        for popularity, shared in ((0.0, min(count, dataset.num_items)), (0.5, count)):
            model = model_of(Plain, dataset, factored=False)
            loss_of(model, histories, objective_of(loss, None, popularity))
            assert model.asked[-1].shape[1:] == expected
            assert expected or len(model.asked[-1]) == shared  # uniform negatives are distinct


@pytest.mark.parametrize("loss", SHARED)
@pytest.mark.parametrize("popularity", [0.0, 1.0])
def test_a_shared_negative_never_counts_against_its_own_user(dataset, loss, popularity):
    """The score of an item that a user owns, even outside the window, does not change that user's loss."""
    histories = split_last_two(dataset).train
    for row in np.flatnonzero(histories.lengths > 3)[:6]:  # longer than the window of 2 and its target
        one = histories.take(slice(row, row + 1))
        own = dataset.items[one.starts[0] : one.ends[0]].tolist()
        # Every item is drawn, so all owned items are among the negatives.
        objective = objective_of(loss, 3000, popularity)
        model = model_of(Plain, dataset)
        sampler = objective.sampler(histories)
        batch = pack(one, 2, with_targets=True)
        task = draw_task(model, batch, one, objective, sampler, Draws([1]))
        value = training_loss(model, task, objective, torch.device("cpu"))
        (gradient,) = torch.autograd.grad(value, model.item_embedding.weight)
        used = {*batch.items.tolist(), *batch.targets.tolist()}
        for item in set(own) - used:
            assert (gradient[item] == 0).all()
        for item in set(range(1, dataset.num_items + 1)) - set(own):
            drawable = popularity == 0 or histories.item_counts()[item] > 0
            assert (gradient[item] != 0).any() == drawable


@pytest.mark.parametrize("loss", SHARED)
def test_users_who_own_all_negatives_cost_nothing(loss):
    """Every user has every item, so there are no negatives."""
    log = pl.DataFrame({"user_id": np.repeat([1, 2], 5), "item_id": [*range(5), *range(5)], "timestamp": [*range(10)]})
    dataset = prepare(log)
    histories = Histories(dataset, np.arange(2), dataset.offsets[:-1], dataset.offsets[1:])
    model = model_of(Plain, dataset)
    value, _ = loss_of(model, histories, objective_of(loss))
    if loss == "gbce":  # its target has a separate term
        batch = pack(histories, 5, with_targets=True)
        own = model.score(model.encode(batch), batch.targets[:, None])
        assert value.item() == pytest.approx((1 + (-own).exp()).log().mean().item(), rel=1e-6)
        return
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, model.item_embedding.weight)
    assert (gradient == 0).all()


def test_bce_says_what_to_do_where_no_negative_is_left():
    log = pl.DataFrame({"user_id": [1] * 5, "item_id": [*range(5)], "timestamp": [*range(5)]})
    dataset = prepare(log)
    histories = Histories(dataset, np.arange(1), dataset.offsets[:-1], dataset.offsets[1:])
    with pytest.raises(InputError, match="no negative for bce") as raised:
        loss_of(model_of(Plain, dataset), histories, objective_of("bce", 1))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loss", get_args(Loss))
def test_nothing_to_predict_is_a_loss_of_0(dataset, loss):
    value, _ = loss_of(model_of(NoTargets, dataset), split_last_two(dataset).train, objective_of(loss))
    value.backward()
    assert value.item() == 0


def test_the_penalty_is_added(dataset):
    histories = split_last_two(dataset).train
    for loss in get_args(Loss):
        without, _ = loss_of(model_of(Plain, dataset), histories, objective_of(loss))
        model = model_of(Plain, dataset)
        model.penalty = lambda batch: torch.tensor(0.25 * len(batch))  # type: ignore[method-assign]
        with_penalty, batch = loss_of(model, histories, objective_of(loss))
        assert with_penalty.item() == pytest.approx(without.item() + 0.25 * len(batch), rel=1e-5)


def test_samplers(dataset):
    histories = split_last_two(dataset).train
    assert isinstance(objective_of("bce").sampler(histories), UniformSampler)
    sampler = objective_of("bce", popularity=0.5).sampler(histories)
    assert isinstance(sampler, PopularitySampler)
    counts = histories.item_counts().astype(float)
    expected = np.sqrt(counts) / np.sqrt(counts).sum()
    drawn = np.bincount(sampler.draw(np.random.default_rng(0), 200_000), minlength=len(counts)) / 200_000
    np.testing.assert_allclose(drawn, expected, atol=0.005)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("loss", get_args(Loss))
def test_every_loss_trains_a_model(loss):
    """A log in which every user walks round the same ring of items: the next item is certain."""
    starts = np.random.default_rng(0).integers(12, size=60)
    rows = [(user, int(start + step) % 12, step) for user, start in enumerate(starts) for step in range(7)]
    split = split_last_two(prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")))
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(max_length=8, embedding_dim=16, num_blocks=1, dropout=0.0), 12)
    options = {"epochs": 25, "batch_size": 16, "learning_rate": 0.015, "evaluate_every": 0}
    options |= {"epochs": 40, "learning_rate": 0.01} if loss == "bce" else {}
    popularity = None if loss == "cross-entropy" else 0.5
    trained = train(model, split, TrainConfig(loss=loss, popularity=popularity, bpr_penalty=0.1, **options))
    losses = [row["loss"] for row in trained.epochs]
    assert losses[-1] < losses[10] < losses[0]
    assert float(hit_rate(*ranks(model, split.test), 1).mean()) > 0.9


def test_marked_tables():
    """Exactly the tables that a model declares have sparse gradients, whatever their sizes."""
    model = GRU4Rec(GRU4RecConfig(embedding_dim=8, separate_output=True), NUM_ITEMS)
    tables = [model.item_embedding, model.output_embedding, model.item_bias]
    sasrec = SASRec(SASRecConfig(max_length=NUM_ITEMS + 1, embedding_dim=8), NUM_ITEMS)
    mark_tables(model)
    assert [table.sparse for table in tables] == [True] * 3
    mark_tables(sasrec)
    assert sasrec.item_embedding.sparse
    assert not sasrec.position_embedding.sparse
    tied = GRU4Rec(GRU4RecConfig(embedding_dim=8), NUM_ITEMS)  # it has no output table
    mark_tables(tied)
    assert sorted(tied.sparse_tables()) == ["item_bias", "item_embedding"]


@pytest.mark.parametrize("loss", get_args(Loss))
def test_gradients_are_sparse_but_where_a_loss_reads_all_of_the_catalogue(dataset, loss):
    model = GRU4Rec(GRU4RecConfig(embedding_dim=8, max_length=5), dataset.num_items)
    mark_tables(model)
    value, _ = loss_of(model, split_last_two(dataset).train, objective_of(loss))
    value.backward()
    for table in (model.item_embedding, model.item_bias):
        assert table.weight.grad.is_sparse == (loss != "cross-entropy")


def test_own_negatives_are_the_naive_loop():
    random = np.random.default_rng(0)
    for _ in range(100):
        users = int(random.integers(1, 6))
        token_rows = np.sort(random.integers(0, users, random.integers(1, 30)))
        owner = np.sort(random.integers(0, users, random.integers(0, 20)))
        owned = random.integers(1, 15, len(owner))
        shared = random.integers(1, 15, random.integers(1, 12))
        tokens, negatives = _own_negatives(token_rows, owner, owned, shared)
        assert (np.diff(tokens) >= 0).all()
        naive = {
            (token, place)
            for token, row in enumerate(token_rows)
            for place, item in enumerate(shared)
            if item in owned[owner == row]
        }
        assert set(zip(tokens.tolist(), negatives.tolist(), strict=True)) == naive
