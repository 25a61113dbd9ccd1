"""The time of one training step by phase, and the number of its operations: the core of ``seqrec bench``."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqrec import kernels
from seqrec.data.dataset import Dataset
from seqrec.data.id_table import IdTable
from seqrec.data.split import Histories
from seqrec.models.blocks import dropouts_of
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.training.config import BETA1, TrainConfig
from seqrec.training.objective import Objective, mark_tables
from seqrec.training.optim import RowAdam
from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of

PHASES = ("draw", "forward", "backward", "optimizer")
BATCH_SIZE = 128
WARM_UP = 3  # steps that are not timed


def generated(users: int, items: int, mean_length: int, seed: int) -> Dataset:
    """A random log with the shape of a shop's log: geometric lengths from 3, and few popular items."""
    random = np.random.default_rng(seed)
    lengths = 2 + random.geometric(1 / max(mean_length - 2, 1), users)
    # The third power of a uniform number is mostly small, so the first items are the popular ones.
    drawn = (items * random.random(int(lengths.sum())) ** 3).astype(np.int32) + 1
    return Dataset(
        items=drawn,
        timestamps=np.arange(len(drawn), dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        users=IdTable(pl.int_range(users, eager=True)),
        catalogue=IdTable(pl.int_range(items, eager=True)),
        has_timestamps=False,
    )


def matmul_rate(tokens: int, dim: int) -> dict[str, float]:
    """Floating-point operations per second in the matrix products of one linear layer, forward and backward.

    Measured for torch's products, and for seqrec's own if they are compiled.
    """
    x, weight, out = torch.randn(tokens, dim), torch.randn(dim, dim), torch.randn(tokens, dim)
    ways = {"torch": torch.mm} | ({"seqrec": kernels.product} if kernels.usable(x) else {})

    def products(mm: Callable[[Tensor, Tensor], Tensor]) -> None:
        for _ in range(20):
            mm(x, weight)
            mm(out.T, x)
            mm(out, weight.T)

    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(9):  # alternating; the first of each does not count
        for way, mm in ways.items():
            taken[way].append(seconds_of(partial(products, mm)))
    return {way: 20 * 6 * tokens * dim * dim / median(seconds[1:]) for way, seconds in taken.items()}


def arithmetic(config: SASRecConfig, tokens: int, pairs: int, candidates: int) -> float:
    """Floating-point operations of one step, forward and backward: linear layers, attention and scores."""
    dim = config.embedding_dim
    linear = config.num_blocks * (3 + 2) * dim * dim * tokens
    attention = config.num_blocks * 2 * dim * pairs
    return 2.0 * 3 * (linear + attention + candidates * dim * tokens)


def time_steps(
    histories: Histories, config: SASRecConfig, objective: Objective, steps: int, seed: int = 0
) -> dict[str, Any]:
    """Median seconds of a training step, in total and by phase, and its tokens and floating-point operations."""
    torch.manual_seed(seed)
    num_items = histories.dataset.num_items
    model = SASRec(config, num_items).train()
    mark_tables(model)
    training = TrainConfig(batch_size=BATCH_SIZE, seed=seed).resolved()
    assert training.learning_rate is not None
    optimizer = RowAdam(model, training.learning_rate, betas=(BETA1, training.beta2))
    dropouts, sampler, cpu = dropouts_of(model), objective.sampler(histories), torch.device("cpu")
    taken: dict[str, list[float]] = {phase: [] for phase in PHASES}
    tokens: list[int] = []
    pairs: list[int] = []
    number, step = 0, 0
    epoch = epoch_of(model, histories, training)
    tasks = tasks_of(model, epoch, histories, objective, sampler)
    clock = _Clock(taken)
    for timed in range(-WARM_UP, steps):
        if step == len(epoch):
            number, step = number + 1, 0
            epoch = epoch_of(model, histories, training, number)
            tasks = tasks_of(model, epoch, histories, objective, sampler)
        clock.start(counts=timed >= 0)
        task = next(tasks)
        seed_step(dropouts, epoch, step, cpu)
        clock.ended("draw")
        optimizer_step(model, optimizer, task, objective, cpu, ended=clock.ended)
        step += 1
        if timed >= 0:
            tokens.append(len(task.batch.items))
            pairs.append(int((task.batch.lengths * (task.batch.lengths + 1) // 2).sum()))
    count = num_items if objective.negatives is None else 1 + objective.negatives
    totals = [sum(parts) for parts in zip(*taken.values(), strict=True)]
    flops = arithmetic(config, int(median(tokens)), int(median(pairs)), count)
    return {
        "seconds": median(totals),
        "tokens": int(median(tokens)),
        "tokens_per_second": sum(tokens) / sum(totals),
        "flops": flops,
        **{phase: median(values) for phase, values in taken.items()},
    }


class _Clock:
    """Records the seconds of each phase of a step."""

    def __init__(self, taken: dict[str, list[float]]) -> None:
        self.taken = taken

    def start(self, counts: bool) -> None:
        """Start a step, which is recorded if it ``counts``."""
        self.counts, self.last = counts, time.perf_counter()

    def ended(self, phase: str) -> None:
        """End a phase of the step."""
        now = time.perf_counter()
        if self.counts:
            self.taken[phase].append(now - self.last)
        self.last = now


def seconds_of(work: Callable[[], Any]) -> float:
    """The seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
