"""The learning rate of each step."""

import numpy as np
import pytest
import torch
from torch import nn

from seqrec.training.schedule import Schedule, schedule_of


def rates(schedule: Schedule, steps: int) -> list[float]:
    return schedule(np.arange(1, steps + 1)).tolist()


def test_shapes() -> None:
    assert rates(Schedule("constant", 4, 8), 8) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert rates(Schedule("linear", 0, 4), 6) == [1, 0.75, 0.5, 0.25, 0, 0]
    assert rates(Schedule("linear", 2, 6), 6) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates(Schedule("cosine", 2, 6), 7) == pytest.approx([0.5, 1, 1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert rates(Schedule("linear", 4, 4), 4) == [0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("name", "warmup"), [("linear", 0), ("linear", 10), ("cosine", 0), ("constant", 10)])
def test_they_are_those_of_torch(name: str, warmup: int) -> None:
    parts = torch.optim.lr_scheduler
    total = 50
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    falls = {"linear": lambda: parts.LinearLR(optimizer, 1.0, 0.0, total - warmup),
             "cosine": lambda: parts.CosineAnnealingLR(optimizer, total - warmup),
             "constant": lambda: parts.ConstantLR(optimizer, 1.0)}  # fmt: skip
    scheduler = falls[name]()
    if warmup:
        rise = parts.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
        scheduler = parts.SequentialLR(optimizer, [rise, scheduler], [warmup])
    expected = []
    for _ in range(total):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(Schedule(name, warmup, total), total) == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]


def test_a_step_alone_has_the_rate_that_it_has_among_all() -> None:
    schedule = Schedule("cosine", 7, 90)
    alone = [float(schedule(np.array([step]))[0]) for step in range(1, 100)]
    assert alone == rates(schedule, 99)


def test_steps_or_a_share_of_them() -> None:
    assert schedule_of("constant", 0, 100) is None
    assert schedule_of("constant", 1, 100) is None
    assert schedule_of("constant", 0.3, 100) == Schedule("constant", 30, 100)
    assert schedule_of("cosine", 25, 100) == Schedule("cosine", 25, 100)
    assert schedule_of("linear", 0, 100) == Schedule("linear", 0, 100)
