"""From a batch to a loss: what is predicted, against which negatives, by which loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.negatives import PopularitySampler, Sampler, UniformSampler, collisions, negatives_for, own_keys
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.losses import (
    binary_cross_entropy,
    blocked_cross_entropy,
    blocked_sampled_softmax,
    bpr_max,
    cross_entropy,
    sampled_softmax,
    top1_max,
)
from seqrec.models.base import Loss, Model

DEFAULT_NEGATIVES = {"bce": 1}  # a position; the others share theirs in a batch
SHARED_NEGATIVES = 1024


@dataclass(frozen=True)
class Objective:
    """What a step of training minimises.

    Args:
        loss: a name of ``Loss``; that of the model's paper or default without it.
        negatives: negatives a position (bce) or a batch (the others; cross-entropy has none).
        popularity: power of an item's training count in the probability of being drawn as a negative; 0 for
            uniform.
        bpr_penalty: weight of the score regularisation in bpr-max.
    """

    loss: Loss
    negatives: int | None
    popularity: float
    bpr_penalty: float

    def sampler(self, histories: Histories) -> Sampler:
        """Where negatives come from."""
        if self.popularity == 0:
            return UniformSampler(histories.dataset.num_items)
        return PopularitySampler(histories.item_counts(), self.popularity)


def default_popularity(loss: Loss, negatives: int | None, num_items: int) -> float:
    """The ``popularity`` where none is named.

    Sampled softmax does better with negatives a little nearer to what is popular: items that training hardly
    knows are not pushed down at every chance (games.txt: benchmarks/RESULTS.md). Where all items are negatives
    there is nothing to choose, and the other losses' papers draw uniformly.
    """
    return 0.25 if loss == "sampled-softmax" and (negatives or SHARED_NEGATIVES) < num_items else 0.0


def check_loss(loss: str | None) -> None:
    """Raise an InputError for an unknown name."""
    if loss is not None and loss not in get_args(Loss):
        raise InputError(f"unknown loss {loss!r}; give {', '.join(get_args(Loss))}")


def mark_tables(model: Model, loss: Loss) -> None:
    """Let the embedding tables of items and users have gradients by row, but where a loss reads all of them."""
    sizes = (model.num_items + 1, model.num_users + 1)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings in sizes:
            module.sparse = loss != "cross-entropy"


def training_loss(
    model: Model,
    encode: Callable[[Batch], Tensor],
    batch: Batch,
    histories: Histories,
    objective: Objective,
    sampler: Sampler,
    random: np.random.Generator,
    device: torch.device,
) -> Tensor:
    """The loss of a batch, a mean over its predictions.

    Args:
        model: what is trained.
        encode: its ``encode``, compiled or not.
        batch: on the CPU.
        histories: the whole training histories of the batch's users, in its order; no negative is one of a
            user's own items.
        objective: the loss and its negatives.
        sampler: ``objective.sampler(...)``.
        random: of corruption and negatives.
        device: where the model is.
    """
    shown = model.corrupt(batch, random)
    tokens, items = model.training_targets(shown)
    if len(items) == 0:
        return torch.zeros((), device=device, requires_grad=True)
    on_device = shown.to(device)
    targets = items.to(device)
    hidden = encode(on_device)
    if tokens is not None:
        hidden = hidden[tokens.to(device)]
    blocked = model.FACTORED and device.type == "cpu"
    if objective.loss == "cross-entropy" and not blocked:
        loss = cross_entropy(model.score(hidden).float(), targets)
    elif objective.loss == "cross-entropy":
        vectors = model.item_vectors()
        loss = blocked_cross_entropy(hidden, vectors, targets, (hidden * vectors[targets]).sum(dim=1))
    else:
        target_logits = model.score(hidden, targets[:, None])[:, 0].float()
        owner, owned = histories.flat()
        token_rows = shown.rows if tokens is None else shown.rows[tokens]
        count = objective.negatives or DEFAULT_NEGATIVES.get(objective.loss, SHARED_NEGATIVES)
        if objective.loss == "bce":
            try:
                own = own_keys(owner, owned, model.num_items)
                drawn = negatives_for(random, sampler, token_rows.numpy(), count, own)
            except ValueError as error:
                raise InputError(f"{error}; use --loss sampled-softmax or leave such users out") from error
            negative_logits = model.score(hidden, torch.from_numpy(drawn).to(device)).float()
            loss = binary_cross_entropy(target_logits, negative_logits)
        else:
            shared = _shared(sampler, random, count)
            candidates = torch.from_numpy(shared).to(device)
            token, negative = _own_negatives(token_rows.numpy(), owner, owned, shared)
            where_own = torch.from_numpy(token).to(device), torch.from_numpy(negative).to(device)
            correction = _correction(sampler, shared, target_logits)
            if objective.loss == "sampled-softmax" and blocked:
                loss = blocked_sampled_softmax(
                    hidden, model.vectors_of(candidates), target_logits, where_own, correction
                )
            else:
                negative_logits = model.score(hidden, candidates).float()
                negative_logits = negative_logits.index_put(where_own, negative_logits.new_tensor(-torch.inf))
                if objective.loss == "bpr-max":
                    loss = bpr_max(target_logits, negative_logits, objective.bpr_penalty)
                elif objective.loss == "top1-max":
                    loss = top1_max(target_logits, negative_logits)
                else:
                    loss = sampled_softmax(target_logits, negative_logits, None, correction)
    penalty = model.penalty(on_device)
    return loss if penalty is None else loss + penalty


def _shared(sampler: Sampler, random: np.random.Generator, count: int) -> np.ndarray:
    return sampler.draw_distinct(random, count) if isinstance(sampler, UniformSampler) else sampler.draw(random, count)


def _correction(sampler: Sampler, shared: np.ndarray, like: Tensor) -> Tensor | None:
    """What sampled softmax takes off the negatives' logits: log of their probability against the uniform one,
    so that a power near 0 is nearly the uniform sampler's loss."""  # fmt: skip
    if isinstance(sampler, UniformSampler):
        return None
    return torch.from_numpy(sampler.log_probability(shared) + np.log(sampler.num_items)).to(like)


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
