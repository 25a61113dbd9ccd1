"""A forward and backward pass in one compiled call, for the models and losses that have one."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout, dropouts_of
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
    found = [_kept(part, optimizer, task, objective) for part in model.parts]
    if len(task.items) == 0 or None in found:
        return None
    share = (1 if predictions is None else predictions) / (len(task.items) * len(found))
    batches = (task.batch, *task.others)
    losses = [
        _gradients(kept, optimizer, batch, task, objective, share)
        for kept, batch in zip(found, batches, strict=True)
        if kept is not None
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


class _Kept(NamedTuple):
    """What all steps share for a part of the model: finding it took a twentieth of a small step."""

    part: SASRec
    encoder: kernels.Encoder
    dense: kernels.Dense
    table: str  # its name in the optimizer
    dropouts: list[Dropout]

    @property
    def is_usable(self) -> bool:
        """Whether a step can use it: weights may have changed their type, and dropout may be off."""
        probability, random = self.encoder.dropout, self.part.dropout.random
        same = [(x.training, x.probability, x.random) == (True, probability, random) for x in self.dropouts]
        weights = self.encoder.table, *self.encoder.dense
        trained = [x.requires_grad for x in weights]
        return all(same) and all(trained) and (random is not None or probability == 0) and kernels.usable(*weights)


def _kept(part: Model, optimizer: RowAdam, task: Task, objective: Objective) -> _Kept | None:
    """What the compiled pass takes of a part; None if it must take the usual way."""
    if type(part) is not SASRec or task.tokens is not None or objective.loss not in ("bce", "sampled-softmax"):
        return None
    if task.shared is not None and not 0 < len(task.shared) <= _MOST_SHARED:
        return None
    if part not in optimizer.kept:
        encoder = part.compiled()
        table = None if encoder is None else optimizer.table_of(encoder.table)
        if encoder is None or table is None:
            return None
        optimizer.kept[part] = _Kept(part, encoder, kernels.Dense.of(encoder), table, dropouts_of(part))
    kept: _Kept = optimizer.kept[part]
    return kept if kept.is_usable else None


@torch.no_grad()
def _gradients(kept: _Kept, optimizer: RowAdam, batch: Batch, task: Task, objective: Objective, share: float) -> Tensor:
    """Write the gradients of a part, and return its mean loss."""
    part, encoder, shared, asked = kept.part, kept.encoder, None, task.items
    rows = [asked.view(-1), batch.items]
    if task.shared is not None:
        assert task.left_out is not None
        correct = objective.logq_correction == "all"
        less = target_correction(part.num_items, len(task.shared)) if correct else 0.0
        shared = kernels.Shared(task.shared, task.left_out, task.correction, less)
        asked = asked[:, None]
        rows.insert(1, task.shared)
    every = torch.cat(rows)
    optimizer.before_reading(kept.table, every)
    words = part.words(encoder, batch)
    losses, by_rows, by_dense = kernels.sasrec_gradients(
        encoder, batch.items, batch.offsets, asked, shared, share, words, kept.dense
    )
    for weight, gradient in zip(encoder.dense, by_dense, strict=True):
        weight.grad = gradient
    optimizer.tables[kept.table].weight.grad = torch.sparse_coo_tensor(
        every[None], by_rows, encoder.table.shape, check_invariants=False
    )
    return losses.mean().to(torch.float32)
