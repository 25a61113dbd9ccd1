"""One optimizer step, and what it is given."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Columns, Epoch
from seqrec.data.negatives import Sampler
from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout, seed_dropout
from seqrec.training.config import TrainConfig
from seqrec.training.objective import Objective, Task, draw_task, training_loss
from seqrec.training.optim import RowAdam, clip_gradients

#: Sums gradients of several processes: see :func:`optimizer_step`.
Reduce = Callable[[Model, int], None]


def epoch_of(
    model: Model,
    histories: Histories,
    config: TrainConfig,
    number: int = 0,
    shard: tuple[int, int] = (0, 1),
    columns: Columns | None = None,
) -> Epoch:
    """The pass over the training histories that a model and its configuration ask for, by number, from 0."""
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
    """What each step of an epoch is to predict, from ``first_step`` on.

    Args:
        model: what is trained.
        epoch: whose batches are taken.
        histories: the whole training histories, each user at its index; no negative is one of a user's own items.
        objective: the loss and its negatives.
        sampler: ``objective.sampler(histories)``.
        first_step: from 0.
    """
    for step in range(first_step, len(epoch)):
        batch = epoch[step]
        random = np.random.default_rng(epoch.seed_of(step, 1))
        yield draw_task(model, batch, histories.take(batch.users.numpy()), objective, sampler, random)


def seed_step(dropouts: list[Dropout], epoch: Epoch, step: int, device: torch.device) -> None:
    """Start the random numbers of a step's forward pass, which are a function of seed, epoch, step and process."""
    seed = epoch.seed_of(step, 2)
    seed_dropout(dropouts, seed)
    if device.type != "cpu":  # which has dropout of its own
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))


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
    """One optimizer step; the loss, a mean over this process's predictions.

    Args:
        model: what is trained.
        optimizer: its optimizer.
        task: what is to be predicted; it may be nothing where several processes share a batch.
        objective: the loss.
        device: where the model is.
        clip_norm: joint norm that gradients are scaled down to.
        reduce: called with the model and the number P of this process's predictions, once per step, after the
            gradients are there and before they are clipped: by every process at every step, also where P is 0.
            ``parameter.grad`` then is the gradient of the mean over this process's P predictions, or None where there
            is none. That of a table of ``model.sparse_tables()`` is sparse (COO: rows with repetitions, and a vector
            for each) unless the loss reads the whole catalogue; all others are dense. It leaves in ``grad`` the
            gradient of the mean over the predictions of all processes: the sum of ``P * grad``, divided by the sum of
            P. Sparse ones may be joined without adding up repeated rows, as the optimizer does that.
        ended: told the name of each phase as it ends: forward, backward, optimizer.
    """
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
        loss = training_loss(model, model.encode, task, objective, device)
    if ended is not None:
        ended("forward")
    optimizer.zero_grad()
    loss.backward()
    if ended is not None:
        ended("backward")
    if reduce is not None:
        reduce(model, len(task.items))
    if clip_norm is not None:
        clip_gradients(optimizer.gradients(), clip_norm)
    optimizer.step()
    if ended is not None:
        ended("optimizer")
    return loss
