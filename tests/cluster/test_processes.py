"""Training by several processes: real ones, which exchange gradients over gloo."""

import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from together import run_together

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Split, split_last_two
from seqrec.errors import InputError
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.ranking.protocols import ranks
from seqrec.recommender import Recommender
from seqrec.run.folder import Run
from seqrec.training import state
from seqrec.training.checks import objective_of
from seqrec.training.config import TrainConfig
from seqrec.training.following import follow
from seqrec.training.loop import train
from seqrec.training.objective import mark_tables
from seqrec.training.optim import RowAdam
from seqrec.training.processes import Processes
from seqrec.training.sharded import ShardedEmbedding, sharded_model, sharded_ranks
from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of

pytestmark = pytest.mark.cluster
SIZES: dict[str, dict[str, Any]] = {
    "sasrec": {"num_blocks": 2, "num_heads": 2}, "ssept": {"user_dim": 4}, "gru4rec": {}, "bert4rec": {"num_heads": 2},
    "caser": {"num_vertical": 2}, "tisasrec": {}, "slirec": {}, "esasrec": {"num_heads": 2}, "lrurec": {},
    "hstu": {"time_buckets": 0},
}  # fmt: skip


def log(users: int = 90, items: int = 60) -> pl.DataFrame:
    random = np.random.default_rng(0)
    lengths = random.integers(4, 16, users)
    start = np.repeat(random.integers(0, items, users), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    return pl.DataFrame({"user_id": np.repeat(np.arange(users), lengths), "item_id": (start + step) % items})


def split_of(dataset: Dataset) -> Split:
    return split_last_two(dataset)


def model_of(name: str, dataset: Dataset) -> Model:
    torch.manual_seed(0)
    kind = MODELS[name]
    sizes = kind.Config(max_length=8, embedding_dim=12, **SIZES[name])
    return kind(sizes, dataset.num_items, dataset.num_users)


def trained(processes, name: str, config: TrainConfig):
    """Losses, validation and weights of a training."""
    split = split_of(prepare(log()))
    model = model_of(name, split.train.dataset)
    found = train(model, split, config, processes=processes)
    return [(row["loss"], row.get("ndcg@10")) for row in found.epochs], found.best_epoch, model.state_dict()


def all_trained(processes, configs):
    return [trained(processes, name, config) for name, config in configs]


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_processes_trains_the_same_model(world: int) -> None:
    # 90 users in batches of 8: the last batch has two windows, and with four processes some get none.
    plain = TrainConfig(epochs=3, batch_size=8, seed=1, evaluate_every=1, learning_rate=0.01)
    configs = [
        ("sasrec", plain),
        ("sasrec", replace(plain, loss="cross-entropy", clip_norm=0.5)),
        ("sasrec", replace(plain, loss="bce", negatives=3, learning_rate_schedule="linear", windows="all")),
        ("ssept", replace(plain, negatives=20, loss="gbce")),
        ("bert4rec", replace(plain, negatives=20, loss="sampled-softmax")),
        ("gru4rec", replace(plain, loss="bpr-max")),
        ("esasrec", plain),
        ("lrurec", plain),
    ]
    expected = all_trained(None, configs)
    found = run_together(all_trained, world, configs)
    for number, (name, _) in enumerate(configs):
        rows, best, weights = expected[number]
        for rank in range(world):
            assert [loss for loss, _ in found[rank][number][0]] == pytest.approx(
                [loss for loss, _ in rows], rel=1e-4
            ), name
            assert found[rank][number][0] == found[0][number][0]  # every process knows the same figures
            assert found[rank][number][1] == found[0][number][1]
        assert [value for _, value in found[0][number][0]] == pytest.approx([v for _, v in rows], abs=0.03), name
        if best == found[0][number][1]:
            tables = [key for key in weights if key.endswith("item_embedding.weight")]
            assert tables
            for key in tables:  # the gradients of some biases are 0, and Adam makes steps of rounding errors
                torch.testing.assert_close(found[0][number][2][key], weights[key], rtol=0.02, atol=2e-3)


def steps_of(processes, name: str, config: TrainConfig, users: int, items: int) -> dict[str, Any]:
    """Bytes, rows and weights after an epoch of steps."""
    split = split_of(prepare(log(users, items)))
    model = model_of(name, split.train.dataset).train()
    mark_tables(model)
    objective = objective_of(model, model.num_items, config)
    optimizer = RowAdam(model, 0.01)
    epoch = epoch_of(model, split.train, config, shard=processes.shard)
    sent, touched = [], []
    for number, task in enumerate(tasks_of(model, epoch, split.train, objective, objective.sampler(split.train))):
        seed_step([], epoch, number, torch.device("cpu"))
        before = processes.bytes_sent
        optimizer_step(model, optimizer, task, objective, torch.device("cpu"), reduce=processes)
        sent.append(processes.bytes_sent - before)
        shared = [] if task.shared is None else task.shared.tolist()
        touched.append(len({*task.batch.items.tolist(), *task.items.ravel().tolist(), *shared}))
    dense = sum(one.numel() for one in optimizer.dense.values())
    return {"sent": sent, "touched": touched, "dense": dense, "weights": model.state_dict()}


def test_gradients_of_tables_are_sent_by_row_and_copies_stay_equal() -> None:
    config = TrainConfig(loss="sampled-softmax", negatives=30, batch_size=16)
    found = run_together(steps_of, 3, "sasrec", config, 200, 5000)
    for key, value in found[0]["weights"].items():
        assert all(torch.equal(value, other["weights"][key]) for other in found[1:]), key  # bit for bit
    most = max(max(one["touched"]) for one in found)
    for one in found:
        # 12 numbers and an index per row, in room for a tenth more than the most so far; some steps need two rounds
        assert max(one["sent"][1:]) <= 4 * (2.2 * 1.1 * most * 13 + one["dense"] + 20)
        assert np.median(one["sent"]) <= 4 * (1.2 * most * 13 + one["dense"] + 20)
        assert max(one["sent"]) < 4 * 5000 * 12  # the table


SHARDED = TrainConfig(epochs=2, batch_size=16, seed=3, evaluate_every=1, shard_items=True, transitions="off",
                      loss="sampled-softmax", negatives=25, learning_rate=0.01)  # fmt: skip


def sharded(processes, out: str, how: str = "", minutes: float = 0, killed_after: int = 0) -> dict[str, Any]:
    """Fit a divided table; the figures of the first process. With ``minutes``, only the end has a checkpoint."""
    state._TIMES = 10**9  # as if writing had taken long
    if not processes.is_first:
        follow(processes)
        return {}
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        if steps == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    options = {**asdict(SHARDED), "checkpoint_minutes": minutes}
    recommender = Recommender("sasrec", max_length=8, embedding_dim=12, dropout=0.2, user_features="group", **options)
    users = pl.DataFrame({"user_id": range(90), "group": [f"g{user % 4}" for user in range(90)]})
    recommender.fit(log(), out, users=users, stop=stop, **{how: True} if how else {})
    return {"epochs": recommender.epochs, "metrics": recommender.metrics}


def one_step_then_ranks(processes, config: TrainConfig) -> Any:
    """A lookup, its gradients and the ranks of a divided table beside those of a whole one."""
    split = split_of(prepare(log()))
    whole = model_of("sasrec", split.train.dataset)
    model = model_of("sasrec", split.train.dataset)
    table = ShardedEmbedding(model.num_items + 1, 12, processes)
    table.shard.weight.data.copy_(whole.item_embedding.weight.data[table.first : table.last])
    model.item_embedding = table  # type: ignore[assignment]
    random = np.random.default_rng(processes.rank)
    for shape in ((7,), (3, 4), (0,), (40,)):
        rows = torch.from_numpy(random.integers(0, model.num_items + 1, shape))
        assert torch.equal(table(rows), whole.item_embedding(rows))
    with pytest.raises(InputError, match="all rows of the item table"):
        model.item_vectors()
    ours = sharded_ranks(model, split.valid, keep_seen=False)
    theirs = ranks(whole, split.valid)
    return [np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("world", [2, 3])
def test_a_divided_table_looks_up_and_ranks_as_a_whole_one(world: int) -> None:
    for differences in run_together(one_step_then_ranks, world, SHARDED):
        assert differences == [0, 0]


def test_a_divided_table_trains_as_a_whole_one(tmp_path: Path) -> None:
    Recommender("popularity").fit(log(), tmp_path / "3")
    ways = {2: ("", 10), 3: ("overwrite", 0)}
    two, three = (run_together(sharded, world, str(tmp_path / f"{world}"), *ways[world])[0] for world in ways)
    losses = [row["loss"] for row in two["epochs"]]
    assert losses == pytest.approx([row["loss"] for row in three["epochs"]], rel=1e-4)
    assert two["metrics"]["test"]["full"]["metrics"]["ndcg@10"] == pytest.approx(
        three["metrics"]["test"]["full"]["metrics"]["ndcg@10"], abs=0.03
    )
    # One process with a whole table that starts from the same weights.
    run = Run(tmp_path / "2")
    start = sharded_model(run.config, Processes(0, 1))
    weights = start.state_dict()
    weights["item_embedding.weight"] = weights.pop("item_embedding.shard.weight")
    whole = run.model()
    whole.load_state_dict(weights)
    alone = train(whole, run.split, replace(SHARDED, shard_items=False, average_decay=0.0))
    assert losses == pytest.approx([row["loss"] for row in alone.epochs], rel=1e-4)
    assert [row["ndcg@10"] for row in two["epochs"]] == pytest.approx(
        [row["ndcg@10"] for row in alone.epochs], abs=0.03
    )
    for other in (Run(tmp_path / "3").model(), whole):
        ours, theirs = run.model().item_embedding.weight, other.item_embedding.weight
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-3)
        by_group = [model.user_encoder.encoder.code_vectors for model in (run.model(), other)]
        torch.testing.assert_close(*by_group, rtol=0.02, atol=1e-3)
        assert torch.equal(ours[0], torch.zeros(12))


def test_a_divided_training_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    undisturbed = run_together(sharded, 2, str(tmp_path / "whole"))[0]
    run_together(sharded, 2, str(tmp_path / "cut"), "", 0, 4, killed=True)  # of the six steps of the first epoch
    (left,) = (path.name for path in (tmp_path / "cut/state").iterdir() if path.is_dir())
    assert left.startswith("sharded-0-")
    resumed = run_together(sharded, 3, str(tmp_path / "cut"), "resume")[0]
    losses = [row["loss"] for row in undisturbed["epochs"]]
    assert [row["loss"] for row in resumed["epochs"]] == pytest.approx(losses, rel=1e-4)
    assert [path.name for path in (tmp_path / "cut/state").iterdir() if path.is_dir()] == ["sharded-2-0"]
