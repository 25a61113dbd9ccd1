"""One optimizer step."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import training_batches
from seqrec.data.negatives import Sampler
from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.training.config import TrainConfig
from seqrec.training.objective import Objective, Task, draw_task, training_loss
from seqrec.training.optim import RowAdam, clip_gradients


def tasks_of(
    model: Model,
    histories: Histories,
    config: TrainConfig,
    objective: Objective,
    sampler: Sampler,
    epoch: int,
    first_step: int,
) -> Iterator[Task]:
    """What each step of an epoch is to predict, from ``first_step`` on; a function of the seed and these numbers."""
    batches = training_batches(
        histories,
        batch_size=config.batch_size,
        max_length=model.config.max_length,
        seed=config.seed,
        epoch=epoch,
        first_step=first_step,
        random_start=model.random_start,
    )
    for step, batch in enumerate(batches, start=first_step):
        random = np.random.default_rng([config.seed, epoch, step, 1])
        yield draw_task(model, batch, histories.take(batch.users.numpy()), objective, sampler, random)


def optimizer_step(
    model: Model,
    optimizer: RowAdam,
    task: Task,
    config: TrainConfig,
    objective: Objective,
    device: torch.device,
) -> Tensor:
    """One optimizer step; the loss, a mean over its predictions."""
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
        loss = training_loss(model, model.encode, task, objective, device)
    optimizer.zero_grad()
    loss.backward()
    if config.clip_norm is not None:
        clip_gradients(optimizer.gradients(), config.clip_norm)
    optimizer.step()
    return loss
