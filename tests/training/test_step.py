"""One optimizer step: several processes that sum their gradients get the same result as one."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from seqrec.data.batches import Batch
from seqrec.data.split import Split
from seqrec.device import threads
from seqrec.models import MODELS
from seqrec.models.blocks import dropouts_of
from seqrec.training.checks import objective_of
from seqrec.training.config import BETA1, TrainConfig
from seqrec.training.objective import Task, mark_tables
from seqrec.training.optim import RowAdam
from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of

CPU = torch.device("cpu")
SIZES = {"sasrec": {"num_blocks": 1, "dropout": 0.0}, "caser": {"dropout": 0.0}, "bert4rec": {"dropout": 0.0}}


class Process:
    """One of several workers that train together. Each runs in its own thread, with its own copy of the model."""

    def __init__(self, name: str, split: Split, config: TrainConfig, rank: int, world: int) -> None:
        torch.manual_seed(0)
        kind = MODELS[name]
        dataset = split.train.dataset
        sizes = kind.Config(max_length=5, embedding_dim=8, **SIZES[name])
        self.model = kind(sizes, dataset.num_items, dataset.num_users).train()
        mark_tables(self.model)
        self.config, self.objective = config, objective_of(self.model, dataset.num_items, config)
        # With a tiny epsilon, Adam would turn rounding errors into steps where the gradient is 0 (biases of keys).
        self.optimizer = RowAdam(self.model, 0.01, betas=(BETA1, config.beta2), epsilon=1e-4)
        self.epoch = epoch_of(self.model, split.train, config, shard=(rank, world))
        self.tasks = [*tasks_of(self.model, self.epoch, split.train, self.objective,
                                self.objective.sampler(split.train))]  # fmt: skip
        self.error: BaseException | None = None

    def step(self, number: int, task: Task, reduce=None) -> None:
        seed_step(dropouts_of(self.model), self.epoch, number, CPU)
        optimizer_step(self.model, self.optimizer, task, self.objective, CPU, clip_norm=self.config.clip_norm,
                       reduce=reduce)  # fmt: skip

    def run(self, reduce) -> None:
        try:
            for number, task in enumerate(self.tasks):
                self.step(number, task, reduce)
        except BaseException as error:
            self.error = error
            raise

    def weights(self) -> dict[str, torch.Tensor]:
        self.optimizer.catch_up()
        return self.model.state_dict()


class Exchange:
    """Sums the gradients of threads, as all-reduce does for processes."""

    def __init__(self, world: int) -> None:
        self.world, self.met = world, threading.Barrier(world, timeout=60)
        self.given: list[tuple[RowAdam, int]] = []
        self.lock = threading.Lock()
        self.counts: list[list[int]] = []

    def __call__(self, optimizer: RowAdam, task: Task, loss: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.given.append((optimizer, task.predictions))
        if self.met.wait() == 0:
            self._sum()
        self.met.wait()
        return loss

    @torch.no_grad()
    def _sum(self) -> None:
        optimizers, counts = zip(*self.given, strict=True)
        self.given = []
        self.counts.append(sorted(counts))
        models = [{**one.dense, **{name: table.weight for name, table in one.tables.items()}} for one in optimizers]
        for parts in zip(*(model.values() for model in models), strict=True):
            weighed = [part.grad / sum(counts) for part in parts if part.grad is not None]
            for part in parts:
                if weighed and weighed[0].is_sparse:
                    rows = torch.cat([one._indices() for one in weighed], dim=1)
                    values = torch.cat([one._values() for one in weighed])
                    part.grad = torch.sparse_coo_tensor(rows, values, part.shape, check_invariants=True)
                elif weighed:
                    part.grad = torch.stack(weighed).sum(dim=0)


def joined(tasks: list[Task]) -> Task:
    """The tasks of all processes as one task."""
    batches = [task.batch for task in tasks]
    tokens = np.cumsum([0, *(len(batch.items) for batch in batches)]).tolist()
    names = ("items", "targets", "positions", "users", "timestamps")
    parts = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    offsets = [batch.offsets[1:] + first for batch, first in zip(batches, tokens, strict=False)]
    batch = Batch(**parts, offsets=torch.cat([torch.zeros(1, dtype=torch.int64), *offsets]))
    predicting = None
    if tasks[0].tokens is not None:
        predicting = torch.cat([task.tokens + first for task, first in zip(tasks, tokens, strict=False)])
    return Task(batch, predicting, torch.cat([task.items for task in tasks]))


@pytest.mark.parametrize(
    ("name", "loss", "clip"),
    [
        ("sasrec", "bce", None),
        ("sasrec", "cross-entropy", 0.1),
        ("caser", "bce", 0.1),
        ("bert4rec", "cross-entropy", None),
    ],
)
@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_sum_gradients_train_as_one(split: Split, name: str, loss, clip, world: int) -> None:
    # 33 users in batches of 8: the last batch has a single window, and all processes but one get none of it.
    config = TrainConfig(loss=loss, batch_size=8, seed=3, clip_norm=clip)
    together = [Process(name, split, config, rank, world) for rank in range(world)]
    alone = Process(name, split, config, 0, 1)
    exchange = Exchange(world)
    with threads(1):
        running = [threading.Thread(target=process.run, args=(exchange,)) for process in together]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert [process.error for process in together] == [None] * world
        start = {key: value.clone() for key, value in alone.model.state_dict().items()}
        for number, tasks in enumerate(zip(*(process.tasks for process in together), strict=True)):
            alone.step(number, joined([task for task in tasks if task.counts]))
    assert len(alone.tasks) == len(exchange.counts) == 5
    assert exchange.counts[-1][: world - 1] == [0] * (world - 1) < exchange.counts[-1]
    expected = alone.weights()
    assert any((value != start[key]).any() for key, value in expected.items())
    for process in together:
        for key, value in process.weights().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-5)
    ours, other = (process.weights() for process in together[:2])
    assert all(torch.equal(value, other[key]) for key, value in ours.items())  # otherwise the copies would drift apart


@pytest.mark.parametrize("name", [name for name, kind in MODELS.items() if not kind.COUNTED])
def test_a_process_without_a_row_takes_part_in_the_step(split: Split, name: str) -> None:
    kind = MODELS[name]
    dataset = split.train.dataset
    model = kind(replace(kind.Config(), max_length=5), dataset.num_items, dataset.num_users).train()
    mark_tables(model)
    config = TrainConfig(batch_size=8)
    objective = objective_of(model, dataset.num_items, config)
    asked: list[int] = []
    last = epoch_of(model, split.train, config, shard=(4, 5))
    (task,) = tasks_of(model, last, split.train, objective, objective.sampler(split.train), first_step=len(last) - 1)
    assert len(task.items) > task.predictions == 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = RowAdam(model)
    loss = optimizer_step(model, optimizer, task, objective, CPU, clip_norm=1.0,
                          reduce=lambda _, task, loss: asked.append(task.predictions) or loss)  # fmt: skip
    assert (asked, bool(loss > 0), optimizer.steps) == ([0], True, 1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_phases_are_told_as_they_end(split: Split) -> None:
    one = Process("sasrec", split, TrainConfig(loss="bce", batch_size=8), 0, 1)
    told: list[str] = []
    optimizer_step(one.model, one.optimizer, one.tasks[0], one.objective, CPU, ended=told.append)
    assert told == ["forward", "backward", "optimizer"]
