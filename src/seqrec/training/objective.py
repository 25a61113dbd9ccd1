"""From a batch to a loss: what is predicted, against which negatives, by which loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.data.negatives import (
    Loss,
    PopularitySampler,
    Sampler,
    UniformSampler,
    collisions,
    contains,
    negatives_for,
    own_keys,
)
from seqrec.data.split import Histories
from seqrec.device import copied
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.training.config import LogQ, default_negatives
from seqrec.training.losses import (
    binary_cross_entropy,
    binary_cross_entropy_of,
    blocked_cross_entropy,
    blocked_sampled_softmax,
    bpr_max,
    cross_entropy,
    gbce_weight,
    sampled_softmax,
    top1_max,
)


@dataclass(frozen=True)
class Objective:
    """What a step of training minimises.

    Args:
        loss: a name of ``Loss``.
        negatives: negatives per position (bce) or per batch (the others; cross-entropy has none). Default: see
            :func:`default_negatives`.
        popularity: negatives are drawn in proportion to their training count to this power; 0 for uniform.
        bpr_penalty: weight of the score regularisation in bpr-max.
        calibration: t of gbce.
        logq_correction: the logits that sampled softmax corrects for the probability of drawing their items: ``all``,
            so that it estimates the softmax over the catalogue (except for the user's other items, which are never
            negatives, and items that ``popularity`` never draws), or only those of the ``negatives``.
    """

    loss: Loss
    negatives: int | None
    popularity: float
    bpr_penalty: float
    calibration: float = 0.75
    logq_correction: LogQ = "all"

    def __post_init__(self) -> None:
        if self.negatives is None and self.loss != "cross-entropy":
            object.__setattr__(self, "negatives", default_negatives(self.loss))

    def sampler(self, histories: Histories) -> Sampler:
        """The sampler of negatives."""
        if self.popularity == 0:
            return UniformSampler(histories.dataset.num_items)
        return PopularitySampler(histories.item_counts(), self.popularity)


def mark_tables(model: Model) -> None:
    """Give lookups in the model's sparse tables gradients by row."""
    for table in model.sparse_tables().values():
        table.sparse = True


@dataclass(frozen=True)
class Task:
    """The P predictions of a step, on the CPU or on the model's device.

    Args:
        batch: the batch that the model sees.
        tokens: ``int64[P]``, the tokens that predict, in rising order; None for every token once.
        items: the items to predict: ``int64[P]``; for bce ``int64[P, 1 + N]``, each with its negatives.
        shared: ``int64[N]``, the negatives of the losses that share them.
        left_out: pairs (prediction, index into ``shared``) that do not count: two ``int64``.
        correction: ``float32[N]``, what sampled softmax subtracts from the logits of ``shared``.
    """

    batch: Batch
    tokens: Tensor | None
    items: Tensor
    shared: Tensor | None = None
    left_out: tuple[Tensor, Tensor] | None = None
    correction: Tensor | None = None

    def to(self, device: torch.device) -> "Task":
        """The same on another device."""
        if self.items.device == device:
            return self

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else copied(value, device)

        pairs = self.left_out
        return Task(
            self.batch.to(device), moved(self.tokens), copied(self.items, device), moved(self.shared),
            None if pairs is None else (copied(pairs[0], device), copied(pairs[1], device)), moved(self.correction),
        )  # fmt: skip


def draw_task(
    model: Model,
    batch: Batch,
    histories: Histories,
    objective: Objective,
    sampler: Sampler,
    random: np.random.Generator,
) -> Task:
    """Choose the predictions of a batch and draw their negatives. This does not read the model's weights.

    Args:
        model: the model in training.
        batch: a batch on the CPU.
        histories: the complete training histories of the batch's users, in its order. A user's own items are never
            drawn as negatives.
        objective: the loss and its negatives.
        sampler: ``objective.sampler(...)``.
        random: random numbers for corruption and negatives.
    """
    shown = model.corrupt(batch, random)
    tokens, items = model.training_targets(shown)
    count = objective.negatives
    if len(items) == 0 or count is None:
        return Task(shown, tokens, items)
    owner, owned = histories.flat()
    token_rows = (shown.rows if tokens is None else shown.rows[tokens]).numpy()
    if objective.loss == "bce":
        try:
            own = own_keys(owner, owned, model.num_items)
            drawn = negatives_for(random, sampler, token_rows, count, own)
        except ValueError as error:
            raise InputError(f"{error} for bce; take another loss or leave such users out") from error
        asked = items.numpy()
        if shown.targets is not batch.targets:  # some may be items that are not their user's
            asked = _told_apart(
                asked,
                drawn,
                lambda which: negatives_for(random, sampler, token_rows[which], 1, own)[:, 0],
                batch.targets.numpy() if tokens is None else asked,
            )
        return Task(shown, tokens, torch.from_numpy(np.column_stack([asked, drawn])))
    shared = _shared(sampler, random, count)
    token, negative = _own_negatives(token_rows, owner, owned, shared)
    if shown.targets is not batch.targets:  # some may be items that are not their user's
        own = own_keys(owner, owned, model.num_items)
        foreign = np.flatnonzero(~contains(own, token_rows * (model.num_items + 1) + items.numpy()))
        which, more = collisions(shared, items.numpy()[foreign])
        token = np.concatenate([token, foreign[which]])
        order = np.argsort(token, kind="stable")
        token, negative = token[order], np.concatenate([negative, more])[order]
    pairs = torch.from_numpy(token), torch.from_numpy(negative)
    return Task(shown, tokens, items, torch.from_numpy(shared), pairs, _correction(sampler, shared))


def training_loss(
    model: Model, encode: Callable[[Batch], Tensor], task: Task, objective: Objective, device: torch.device
) -> Tensor:
    """The loss of a step, a mean over its predictions.

    Args:
        model: the model in training.
        encode: its ``encode``.
        task: what it predicts.
        objective: the loss.
        device: the device of the model.
    """
    if len(task.items) == 0:
        return torch.zeros((), device=device, requires_grad=True)
    task = task.to(device)
    hidden = encode(task.batch)
    if task.tokens is not None:
        hidden = hidden[task.tokens]
    loss = _loss(model, hidden, task, objective, model.FACTORED and device.type == "cpu")
    penalty = model.penalty(task.batch)
    return loss if penalty is None else loss + penalty


def _loss(model: Model, hidden: Tensor, task: Task, objective: Objective, blocked: bool) -> Tensor:
    items = task.items
    if objective.loss == "bce" and blocked:
        return binary_cross_entropy_of(hidden, model.vectors_of(items))
    if objective.loss == "bce":
        logits = model.score(hidden, items).float()
        return binary_cross_entropy(logits[:, 0], logits[:, 1:])
    if objective.loss == "cross-entropy" and not blocked:
        return cross_entropy(model.score(hidden).float(), items)
    if objective.loss == "cross-entropy":
        return blocked_cross_entropy(hidden, model.item_vectors(), items)
    target_logits = model.score(hidden, items[:, None])[:, 0].float()
    assert task.shared is not None
    assert task.left_out is not None
    correction, target_correction = task.correction, None
    if objective.logq_correction == "all":
        target_correction = _target_correction(model.num_items, len(task.shared))
    if objective.loss == "sampled-softmax" and blocked:
        vectors = model.vectors_of(task.shared)
        correction = None if correction is None else correction.to(hidden.dtype)
        return blocked_sampled_softmax(hidden, vectors, target_logits, task.left_out, target_correction, correction)
    negative_logits = model.score(hidden, task.shared).float()
    negative_logits = negative_logits.index_put(task.left_out, negative_logits.new_full((), -torch.inf))
    if objective.loss == "gbce":
        weight = gbce_weight(len(task.shared), model.num_items, objective.calibration)
        return binary_cross_entropy(target_logits, negative_logits, weight)
    if objective.loss == "bpr-max":
        return bpr_max(target_logits, negative_logits, objective.bpr_penalty)
    if objective.loss == "top1-max":
        return top1_max(target_logits, negative_logits)
    return sampled_softmax(target_logits, negative_logits, target_correction, correction)


def _shared(sampler: Sampler, random: np.random.Generator, count: int) -> np.ndarray:
    return sampler.draw_distinct(random, count) if isinstance(sampler, UniformSampler) else sampler.draw(random, count)


def _correction(sampler: Sampler, shared: np.ndarray) -> Tensor | None:
    """What sampled softmax subtracts from the negatives' logits: log of their probability against the uniform one,
    so that a power near 0 is nearly the uniform sampler's loss where training has all items."""  # fmt: skip
    if isinstance(sampler, UniformSampler):
        return None
    return torch.from_numpy((sampler.log_probability(shared) + np.log(sampler.num_items)).astype(np.float32))


def _target_correction(num_items: int, negatives: int) -> float:
    """What sampled softmax subtracts from the targets' logits: ``-log N`` against the uniform ``-log I``, as above."""
    return math.log(num_items / negatives)


def _told_apart(
    items: np.ndarray, drawn: np.ndarray, draw: Callable[[np.ndarray], np.ndarray], before: np.ndarray
) -> np.ndarray:
    """The items to predict, none of which is among its own negatives: these are drawn again, in place.

    Args:
        items: ``int64[P]``.
        drawn: ``int64[P, N]`` negatives of each.
        draw: gives one more negative for each of some predictions.
        before: ``int64[P]``, what takes the place of an item that leaves nothing else to draw.
    """
    for _ in range(100):
        which, place = np.nonzero(drawn == items[:, None])
        if len(which) == 0:
            return items
        drawn[which, place] = draw(which)
    stuck = (drawn == items[:, None]).any(axis=1)
    return np.where(stuck, before, items)


def _own_negatives(
    token_rows: np.ndarray, owner: np.ndarray, owned: np.ndarray, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (prediction, index into ``shared``) where a shared negative is an item of its user, in rising order of
    the prediction.

    Args:
        token_rows: ``int64[P]``, the row in the batch of each prediction.
        owner: rows of the users' own items, rising.
        owned: the items.
        shared: the negatives.
    """
    which, negative = collisions(shared, owned)
    rows = owner[which]  # rising, as owner is
    first = np.searchsorted(rows, token_rows, side="left")
    counts = np.searchsorted(rows, token_rows, side="right") - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(token_rows)), counts), negative[np.repeat(first, counts) + within]
