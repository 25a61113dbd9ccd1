"""From a batch to a loss: the predictions of a step, their negatives, and the loss function."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.data.draws import Draws, TokenDraws
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
from seqrec.device import copied, is_on
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
    """The loss function that training minimises, and its negatives.

    Args:
        loss: name of the loss function.
        negatives: number of negatives, per position for bce and per batch for the other losses; cross-entropy has none.
            By default :func:`default_negatives`.
        popularity: power of an item's training count that its probability as a negative is proportional to; 0 draws
            uniformly.
        bpr_penalty: weight of the score regularisation in bpr-max.
        calibration: t of gbce.
        logq_correction: logits that sampled softmax corrects for the probability of drawing their items. ``all``
            corrects targets and negatives, so that the loss estimates the softmax over the catalogue, except for the
            user's other items, which are never negatives, and items that ``popularity`` never draws. ``negatives``
            corrects only the negatives.
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
    """Make lookups in the model's sparse tables return sparse gradients."""
    for table in model.sparse_tables().values():
        table.sparse = True


@dataclass(frozen=True)
class Task:
    """The P predictions of a step, on the CPU or on the model's device.

    Args:
        batch: batch that the model sees, or the first member of an ensemble.
        tokens: ``int64[P]``, the tokens that predict, in ascending order; None if every token predicts once.
        items: ``int64[P]``, the items to predict; for bce ``int64[P, 1 + N]``, each item followed by its negatives.
        shared: ``int64[N]``, the negatives, for the losses that share them.
        left_out: pairs (prediction, index into ``shared``) that do not count, as two ``int64`` tensors.
        correction: ``float32[N]``, the terms that sampled softmax subtracts from the logits of ``shared``.
        others: batches that the other members of an ensemble see, with the same targets.
        counts: whether the predictions count. They don't in a process that computes a step only because others do.
        host_left_out: the predictions of ``left_out`` on the CPU, if the task is on another device.
    """

    batch: Batch
    tokens: Tensor | None
    items: Tensor
    shared: Tensor | None = None
    left_out: tuple[Tensor, Tensor] | None = None
    correction: Tensor | None = None
    others: tuple[Batch, ...] = ()
    counts: bool = True
    host_left_out: Tensor | None = None

    @property
    def predictions(self) -> int:
        """Number of predictions that count."""
        return len(self.items) if self.counts else 0

    def to(self, device: torch.device) -> "Task":
        """The same task on another device."""
        if is_on(self.items, device):
            return self

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else copied(value, device)

        pairs = self.left_out
        batches = {id(batch): batch.to(device) for batch in (self.batch, *self.others)}
        return Task(
            batches[id(self.batch)], moved(self.tokens), copied(self.items, device), moved(self.shared),
            None if pairs is None else (copied(pairs[0], device), copied(pairs[1], device)), moved(self.correction),
            tuple(batches[id(batch)] for batch in self.others), self.counts, None if pairs is None else pairs[0],
        )  # fmt: skip


def draw_task(
    model: Model,
    batch: Batch,
    histories: Histories,
    objective: Objective,
    sampler: Sampler,
    draws: Draws,
) -> Task:
    """Choose the predictions of a batch and draw their negatives. This does not read the model's weights.

    Args:
        model: model in training.
        batch: batch on the CPU.
        histories: complete training histories of the batch's users, in the batch's order. A user's own items are never
            drawn as negatives.
        objective: the loss and its negatives.
        sampler: ``objective.sampler(...)``.
        draws: random numbers for corruption and negatives.
    """
    shown, *others = model.shown(batch, draws)
    beside = tuple(others)
    tokens, items = model.training_targets(shown)
    count = objective.negatives
    if len(items) == 0 or count is None:
        return Task(shown, tokens, items, others=beside)
    owner, owned = histories.flat()
    token_rows = (shown.rows if tokens is None else shown.rows[tokens]).numpy()
    if objective.loss == "bce":
        try:
            own = own_keys(owner, owned, model.num_items)
            of_tokens = None if tokens is None else tokens.numpy()
            size = len(shown.items)
            drawn = negatives_for(TokenDraws(draws.child(0), size, of_tokens), sampler, token_rows, count, own)
        except ValueError as error:
            raise InputError(f"{error} for bce; choose another loss or leave such users out") from error
        asked = items.numpy()
        if shown.targets is not batch.targets:  # corruption may replace targets by items that the user never had
            asked = _redraw_equal(
                asked,
                drawn,
                lambda which, attempt: _one_more(
                    draws.child(1 + attempt), size, of_tokens, which, sampler, token_rows, own
                ),
                batch.targets.numpy() if tokens is None else asked,
            )
        return Task(shown, tokens, torch.from_numpy(np.column_stack([asked, drawn])), others=beside)
    shared = _shared(sampler, draws.child(0).common(), count)
    token, negative = _own_negatives(token_rows, owner, owned, shared)
    if shown.targets is not batch.targets:  # as above
        own = own_keys(owner, owned, model.num_items)
        foreign = np.flatnonzero(~contains(own, token_rows * (model.num_items + 1) + items.numpy()))
        which, more = collisions(shared, items.numpy()[foreign])
        token = np.concatenate([token, foreign[which]])
        order = np.argsort(token, kind="stable")
        token, negative = token[order], np.concatenate([negative, more])[order]
    pairs = torch.from_numpy(token), torch.from_numpy(negative)
    return Task(shown, tokens, items, torch.from_numpy(shared), pairs, _correction(sampler, shared), beside)


def training_loss(model: Model, task: Task, objective: Objective, device: torch.device) -> Tensor:
    """The loss of a step, a mean over its predictions, and over the members of an ensemble.

    Args:
        model: model in training.
        task: predictions of the step.
        objective: the loss.
        device: device of the model.
    """
    if len(task.items) == 0:
        return torch.zeros((), device=device, requires_grad=True)
    task = task.to(device)
    batches = (task.batch, *task.others)
    losses = [
        _loss_of(part, replace(task, batch=batch), objective) for part, batch in zip(model.parts, batches, strict=True)
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _loss_of(model: Model, task: Task, objective: Objective) -> Tensor:
    hidden = model.encode(task.batch)
    if task.tokens is not None:
        hidden = hidden[task.tokens]
    loss = _loss(model, hidden, task, objective)
    penalty = model.penalty(task.batch)
    return loss if penalty is None else loss + penalty


def _loss(model: Model, hidden: Tensor, task: Task, objective: Objective) -> Tensor:
    items, blocked = task.items, model.FACTORED
    if objective.loss == "bce" and blocked and hidden.device.type == "cpu":
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
    correction, of_targets = task.correction, None
    if objective.logq_correction == "all":
        of_targets = target_correction(model.num_items, len(task.shared))
    if objective.loss == "sampled-softmax" and blocked:
        vectors = model.vectors_of(task.shared)
        return blocked_sampled_softmax(
            hidden, vectors, target_logits, task.left_out, of_targets, correction,
            host_tokens=task.host_left_out,
        )  # fmt: skip
    negative_logits = model.score(hidden, task.shared).float()
    negative_logits = negative_logits.index_put(task.left_out, negative_logits.new_full((), -torch.inf))
    if objective.loss == "gbce":
        weight = gbce_weight(len(task.shared), model.num_items, objective.calibration)
        return binary_cross_entropy(target_logits, negative_logits, weight)
    if objective.loss == "bpr-max":
        return bpr_max(target_logits, negative_logits, objective.bpr_penalty)
    if objective.loss == "top1-max":
        return top1_max(target_logits, negative_logits)
    return sampled_softmax(target_logits, negative_logits, of_targets, correction)


def _shared(sampler: Sampler, random: np.random.Generator, count: int) -> np.ndarray:
    return sampler.draw_distinct(random, count) if isinstance(sampler, UniformSampler) else sampler.draw(random, count)


def _correction(sampler: Sampler, shared: np.ndarray) -> Tensor | None:
    """The terms that sampled softmax subtracts from the negatives' logits: log(q * I), for I items.

    A uniform sampler has q = 1 / I and needs none, so a power near 0 gives nearly its loss.
    """
    if isinstance(sampler, UniformSampler):
        return None
    return torch.from_numpy((sampler.log_probability(shared) + np.log(sampler.num_items)).astype(np.float32))


def target_correction(num_items: int, negatives: int) -> float:
    """The term that sampled softmax subtracts from the targets' logits: -log N, plus log I as for the negatives."""
    return math.log(num_items / negatives)


def _one_more(
    draws: Draws,
    size: int,
    tokens: np.ndarray | None,
    which: np.ndarray,
    sampler: Sampler,
    token_rows: np.ndarray,
    own: np.ndarray,
) -> np.ndarray:
    """One more negative for each of the predictions ``which``, of the ``tokens`` of a batch of ``size`` tokens."""
    random = TokenDraws(draws, size, which if tokens is None else tokens[which])
    return negatives_for(random, sampler, token_rows[which], 1, own)[:, 0]


def _redraw_equal(
    items: np.ndarray, drawn: np.ndarray, draw: Callable[[np.ndarray, int], np.ndarray], before: np.ndarray
) -> np.ndarray:
    """Draw negatives again, in place, that equal the item to predict.

    Args:
        items: ``int64[P]``, the items to predict.
        drawn: ``int64[P, N]``, the negatives of each.
        draw: function that draws one more negative for each of the given predictions, given the attempt from 0.
        before: ``int64[P]``, replacements for items that leave nothing else to draw.

    Returns:
        The items to predict, ``int64[P]``. None of them is among its own negatives.
    """
    for attempt in range(100):
        which, place = np.nonzero(drawn == items[:, None])
        if len(which) == 0:
            return items
        drawn[which, place] = draw(which, attempt)
    stuck = (drawn == items[:, None]).any(axis=1)
    return np.where(stuck, before, items)


def _own_negatives(
    token_rows: np.ndarray, owner: np.ndarray, owned: np.ndarray, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (prediction, index into ``shared``) whose negative is one of the user's own items, ordered by prediction.

    Args:
        token_rows: ``int64[P]``, the row of each prediction's user in the batch.
        owner: rows of the users' own items, in ascending order.
        owned: items of the users.
        shared: negatives that the batch shares.
    """
    which, negative = collisions(shared, owned)
    rows = owner[which]  # in ascending order, as owner is
    first = np.searchsorted(rows, token_rows, side="left")
    counts = np.searchsorted(rows, token_rows, side="right") - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(token_rows)), counts), negative[np.repeat(first, counts) + within]
