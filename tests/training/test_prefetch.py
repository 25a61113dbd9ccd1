"""Tasks drawn by a thread ahead of the loop: the same ones, and whatever ends the one ends the other."""

import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import Recommender
from seqrec.data.prepare import prepare
from seqrec.data.split import split_last_two
from seqrec.models import SASRec
from seqrec.models.sasrec import SASRecConfig
from seqrec.training.checks import objective_of
from seqrec.training.config import TrainConfig
from seqrec.training.objective import Task
from seqrec.training.prefetch import prefetched
from seqrec.training.step import epoch_of, tasks_of

ELSEWHERE = torch.device("meta")  # any device that is not the CPU


@pytest.fixture
def copies(monkeypatch) -> list[Task]:
    """Copies to the other device stay on the CPU, so that their values can be read."""
    made: list[Task] = []

    def to(task: Task, device: torch.device) -> Task:
        if device == ELSEWHERE:
            made.append(task)
        return task

    monkeypatch.setattr(Task, "to", to)
    return made


def log() -> pl.DataFrame:
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(40), random.integers(4, 9, 40))
    return pl.DataFrame({"user_id": users, "item_id": random.integers(20, size=len(users))})


def drawn():
    split = split_last_two(prepare(log()))
    model = SASRec(SASRecConfig(max_length=5, embedding_dim=4), split.train.dataset.num_items)
    config = TrainConfig(batch_size=8, negatives=5)
    objective = objective_of(model, model.num_items, config)
    epoch = epoch_of(model, split.train, config)
    return tasks_of(model, epoch, split.train, objective, objective.sampler(split.train))


def numbered(count: int, error: BaseException | None = None):
    """Tasks whose items are their number; then an error, if there is one."""
    task = next(drawn())
    for number in range(count):
        yield Task(task.batch, None, torch.tensor([number]))
    if error is not None:
        raise error


def threads_of_tasks() -> int:
    return sum(thread.name == "seqrec-tasks" for thread in threading.enumerate())


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_the_same_tasks_in_the_same_order(ahead, copies):
    expected = list(drawn())
    with prefetched(drawn(), ELSEWHERE, ahead) as tasks:
        found = list(tasks)
    assert len(found) == len(expected) > 3
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.items, theirs.items)
        assert torch.equal(mine.shared, theirs.shared)
        assert torch.equal(mine.batch.items, theirs.batch.items)
        assert all(map(torch.equal, mine.left_out, theirs.left_out))
    assert threads_of_tasks() == 0


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_nothing_is_drawn_ahead(device):
    source = numbered(3)
    with prefetched(source, torch.device(device)) as tasks:
        assert tasks is source
        assert threads_of_tasks() == 0


def test_it_draws_ahead_but_not_without_end(copies):
    with prefetched(numbered(50), ELSEWHERE, 2) as tasks:
        next(tasks)
        deadline = time.monotonic() + 30
        while len(copies) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.2)
        assert len(copies) == 4  # one is taken, two wait, and one waits for room
    assert threads_of_tasks() == 0


@pytest.mark.parametrize("error", [ValueError("no negatives"), KeyboardInterrupt(), MemoryError()])
def test_an_error_reaches_the_loop_after_the_tasks_before_it(error, copies):
    seen = []
    with pytest.raises(type(error)) as caught, prefetched(numbered(5, error), ELSEWHERE) as tasks:
        seen.extend(int(task.items) for task in tasks)
    assert caught.value is error
    assert seen == [0, 1, 2, 3, 4]
    assert threads_of_tasks() == 0


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_the_thread_ends_with_the_loop(taken, copies):
    with pytest.raises(KeyboardInterrupt), prefetched(numbered(1000), ELSEWHERE) as tasks:  # noqa: PT012
        for _ in range(taken):
            next(tasks)
        raise KeyboardInterrupt
    assert threads_of_tasks() == 0
    assert len(copies) <= taken + 3


def test_a_training_that_draws_ahead_ends_with_the_same_bytes(tmp_path, monkeypatch, copies):
    options = {"embedding_dim": 8, "num_blocks": 1, "max_length": 5, "epochs": 3, "batch_size": 8, "negatives": 6}

    def trained(name: str) -> bytes:
        folder: Path = tmp_path / name
        Recommender(**options, ensemble=1).fit(log(), folder)
        return (folder / "weights.safetensors").read_bytes()

    plain = trained("plain")
    assert not copies  # as nothing is copied on the CPU
    ahead = []

    def elsewhere(tasks, device):
        ahead.append(device)
        return prefetched(tasks, ELSEWHERE)

    monkeypatch.setattr("seqrec.training.loop.prefetched", elsewhere)
    assert trained("ahead") == plain
    assert len(ahead) == 3
    assert copies
    assert threads_of_tasks() == 0


@pytest.mark.cuda
def test_the_tasks_on_a_gpu_are_those_of_the_cpu():
    expected = list(drawn())
    with prefetched(drawn(), torch.device("cuda")) as tasks:
        for mine, theirs in zip(tasks, expected, strict=True):
            assert mine.items.device.type == "cuda"
            assert torch.equal(mine.items.cpu(), theirs.items)
            assert torch.equal(mine.batch.items.cpu(), theirs.batch.items)
            assert torch.equal(mine.shared.cpu(), theirs.shared)
            assert mine.host_left_out is not None
            assert mine.host_left_out.device.type == "cpu"
