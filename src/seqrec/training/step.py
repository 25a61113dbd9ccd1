"""One optimizer step, and the batches and tasks of an epoch."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from seqrec.data.batches import Columns, Epoch
from seqrec.data.negatives import Sampler
from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout, seed_dropout
from seqrec.training.compiled import compiled_gradients
from seqrec.training.config import TrainConfig
from seqrec.training.objective import Objective, Task, draw_task, training_loss
from seqrec.training.optim import RowAdam, clip_gradients

#: Sums gradients of several processes: see :func:`optimizer_step`.
Reduce = Callable[[RowAdam, Task, Tensor], Tensor]


def epoch_of(
    model: Model,
    histories: Histories,
    config: TrainConfig,
    number: int = 0,
    shard: tuple[int, int] = (0, 1),
    columns: Columns | None = None,
) -> Epoch:
    """The pass number ``number`` (from 0) over the training histories, as the model and its options define it."""
    config = config.resolved()
    assert config.batch_size is not None
    assert config.windows is not None
    return Epoch(
        histories,
        batch_size=config.batch_size,
        max_length=model.max_length,
        seed=config.seed,
        epoch=number,
        shard=shard,
        random_start=model.random_start,
        windows=config.windows,
        columns=columns,
    )


def tasks_of(
    model: Model, epoch: Epoch, histories: Histories, objective: Objective, sampler: Sampler, first_step: int = 0
) -> Iterator[Task]:
    """Yield the task of each step of an epoch, starting at ``first_step``.

    Args:
        model: model in training.
        epoch: epoch that provides the batches.
        histories: complete training histories, each user at its index. A user's own items are never negatives.
        objective: the loss and its negatives.
        sampler: ``objective.sampler(histories)``.
        first_step: number of the first step, from 0.
    """
    for step in range(first_step, len(epoch)):
        batch = epoch[step]
        some = histories.take(batch.users.numpy())
        task = draw_task(model, batch, some, objective, sampler, epoch.draws(step, 1))
        part = epoch.part(step)
        yield replace(task, counts=False) if part is not None and part.is_empty else task


def seed_step(dropouts: list[Dropout], epoch: Epoch, step: int, device: torch.device) -> None:
    """Seed the random numbers of a step's forward pass: a function of seed, epoch and step."""
    draws = epoch.draws(step, 2)
    seed_dropout(dropouts, draws)
    if device.type != "cpu":  # the CPU uses the numbers of seed_dropout instead
        rank = epoch.shard[0]
        torch.manual_seed(int(draws.child(rank).common().integers(2**62)))


def optimizer_step(
    model: Model,
    optimizer: RowAdam,
    task: Task,
    objective: Objective,
    device: torch.device,
    *,
    clip_norm: float | None = None,
    reduce: Reduce | None = None,
    ended: Callable[[str], None] | None = None,
) -> Tensor:
    """Take one optimizer step.

    ``reduce`` must turn the gradients of each process into those of all processes together. It is called with the
    optimizer, the task and its loss, and returns the loss of all: the mean over all predictions. Every process calls it
    once per step, even if its number P of predictions that count is 0, between the backward pass and clipping. Before
    it, each ``parameter.grad`` is the gradient of the summed loss of this process's P predictions, or None. After it,
    ``grad`` must be the gradient of the mean over the predictions of all processes: the sum of ``grad`` divided by the
    sum of P. Gradients of ``optimizer.tables`` are sparse (COO, with repeated rows) unless the loss reads the whole
    catalogue; all others are dense. Sparse gradients may be concatenated, because the optimizer adds up repeated rows.

    Args:
        model: model in training.
        optimizer: optimizer of the model.
        task: predictions of this process. They may not count if several processes share a batch.
        objective: the loss.
        device: device of the model.
        clip_norm: maximum joint norm of the gradients.
        reduce: function that combines the gradients of several processes, as described above.
        ended: function that is called with the name of each phase when it ends: forward, backward, optimizer. If
            one compiled call does both, forward is the time of both.

    Returns:
        The loss, a mean over the predictions of all processes.
    """
    optimizer.zero_grad()
    predictions = None if reduce is None else task.predictions
    found = compiled_gradients(model, optimizer, task, objective, predictions) if device.type == "cpu" else None
    if found is not None:
        loss = found
    else:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = training_loss(model, task, objective, device)
    if ended is not None:
        ended("forward")
    if found is None:
        loss.backward(None if predictions is None else loss.new_full((), predictions))
    if ended is not None:
        ended("backward")
    if reduce is not None:
        loss = reduce(optimizer, task, loss.detach())
    if clip_norm is not None:
        clip_gradients(optimizer.gradients(), clip_norm)
    optimizer.step()
    if ended is not None:
        ended("optimizer")
    return loss
