"""A forward and backward pass in one compiled call, for the models and losses that have one."""

import torch
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.models.base import Model
from seqrec.models.sasrec import SASRec
from seqrec.training.objective import Objective, Task, target_correction
from seqrec.training.optim import RowAdam

_MOST_SHARED = 8192  # negatives whose scores for 128 tokens every thread keeps: 4 MiB


def compiled_gradients(
    model: Model, optimizer: RowAdam, task: Task, objective: Objective, predictions: int | None
) -> Tensor | None:
    """The loss of a step, after writing the gradients that ``training_loss(...).backward()`` would write.

    Args:
        model: model in training.
        optimizer: optimizer of the model, without gradients.
        task: predictions of the step.
        objective: the loss.
        predictions: factor of the gradients of the mean loss. By default 1.

    Returns:
        None, and nothing is written, unless every part of the model is a SASRec of the default shape on the CPU, and
        the loss is binary cross-entropy or sampled softmax with at most 8,192 negatives.
    """
    found = [_covered(part, optimizer, task, objective) for part in model.parts]
    if len(task.items) == 0 or None in found:
        return None
    share = (1 if predictions is None else predictions) / (len(task.items) * len(found))
    batches = (task.batch, *task.others)
    losses = [
        _gradients(*covered, optimizer, batch, task, objective, share)
        for covered, batch in zip(found, batches, strict=True)
        if covered is not None
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _covered(
    part: Model, optimizer: RowAdam, task: Task, objective: Objective
) -> tuple[SASRec, kernels.Encoder, str] | None:
    """The part, what the compiled pass takes of it, and the name of its table; None if it must take the usual way."""
    if type(part) is not SASRec or task.tokens is not None or objective.loss not in ("bce", "sampled-softmax"):
        return None
    if task.shared is not None and not 0 < len(task.shared) <= _MOST_SHARED:
        return None
    encoder = part.compiled()
    name = None if encoder is None else optimizer.table_of(encoder.table)
    return None if encoder is None or name is None else (part, encoder, name)


@torch.no_grad()
def _gradients(
    part: SASRec,
    encoder: kernels.Encoder,
    name: str,
    optimizer: RowAdam,
    batch: Batch,
    task: Task,
    objective: Objective,
    share: float,
) -> Tensor:
    """Write the gradients of a part, and return its mean loss."""
    shared, asked = None, task.items
    rows = [asked.view(-1), batch.items]
    if task.shared is not None:
        assert task.left_out is not None
        correct = objective.logq_correction == "all"
        less = target_correction(part.num_items, len(task.shared)) if correct else 0.0
        shared = kernels.Shared(task.shared, task.left_out, task.correction, less)
        asked = asked[:, None]
        rows.insert(1, task.shared)
    every = torch.cat(rows)
    optimizer.before_reading(name, every)
    words = part.words(encoder, batch)
    losses, by_rows, by_dense = kernels.sasrec_gradients(
        encoder, batch.items, batch.offsets, asked, shared, share, words
    )
    for weight, gradient in zip(encoder.dense, by_dense, strict=True):
        weight.grad = gradient
    optimizer.tables[name].weight.grad = torch.sparse_coo_tensor(
        every[None], by_rows, encoder.table.shape, check_invariants=False
    )
    return losses.mean().to(torch.float32)
