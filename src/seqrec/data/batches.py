"""From histories to packed batches: tokens of many users one after another, no padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqrec.data.dataset import Dataset
from seqrec.data.id_table import IdTable
from seqrec.data.split import Histories


@dataclass(frozen=True, eq=False)
class Batch:
    """A packed stream of T tokens of B users.

    ``items int64[T]``, ``targets int64[T]`` (the next item; 0 where there is none), ``positions
    int64[T]`` (0 at the first token of each user), ``offsets int64[B + 1]`` (user b's tokens are
    ``offsets[b]:offsets[b + 1]``), ``users int64[B]`` (-1: not a user of the dataset), ``timestamps
    int64[T]``.
    """

    items: Tensor
    targets: Tensor
    positions: Tensor
    offsets: Tensor
    users: Tensor
    timestamps: Tensor

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each user, ``int64[B]``."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def last(self) -> Tensor:
        """Index of each user's last token, ``int64[B]``.

        Raises:
            ValueError: a history is empty: the token before its end is another user's.
        """
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing() and bool((self.lengths < 1).any()):
            raise ValueError("an empty history has no last token; leave it out")
        return self.offsets[1:] - 1

    @cached_property
    def rows(self) -> Tensor:
        """The row in the batch of each token's user, ``int64[T]``."""
        with torch.inference_mode(False):  # so that a batch that was scored may be trained on
            if self.users.device.type == "cpu":  # numpy does it in a third of the time
                return torch.from_numpy(np.repeat(np.arange(len(self)), self.lengths.numpy()))
            return torch.repeat_interleave(torch.arange(len(self), device=self.users.device), self.lengths)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        if self.items.device == torch.device(device):
            return self
        moved = {field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        return replace(self, **moved)


def pack(histories: Histories, max_length: int, with_targets: bool = False) -> Batch:
    """Pack the last ``max_length`` items of each history.

    With targets, each token's target is the item after it in the history, so a history of n items
    gives n - 1 tokens; without, the n-th item is a token too and every target is 0.
    """
    ends = np.maximum(histories.ends - 1, histories.starts) if with_targets else histories.ends
    starts = np.maximum(histories.starts, ends - max_length)
    lengths = np.maximum(ends - starts, 0)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    source = positions + np.repeat(starts, lengths)
    data = histories.dataset
    items = data.items[source].astype(np.int64)
    targets = data.items[source + 1].astype(np.int64) if with_targets else np.zeros_like(items)
    return Batch(
        items=torch.from_numpy(items),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(positions),
        offsets=torch.from_numpy(offsets),
        users=torch.from_numpy(np.asarray(histories.users, dtype=np.int64)),
        timestamps=torch.from_numpy(np.asarray(data.timestamps[source], dtype=np.int64)),
    )


def trainable(histories: Histories) -> Histories:
    """The histories of two items or more: those that hold a token with a target."""
    return histories.take(histories.lengths >= 2)


def training_batches(
    histories: Histories,
    *,
    batch_size: int,
    max_length: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    random_start: float = 0.0,
) -> Iterator[Batch]:
    """The batches of one epoch, users shuffled.

    A history longer than ``max_length`` + 1 is cut to its end or, with the probability ``random_start``, to a
    window that starts anywhere, drawn anew every epoch (SSE-PT++: Wu et al. 2020, section 3.3).

    The order is a function of ``seed`` and ``epoch`` alone, so training resumes at any ``first_step``
    without replaying what came before.
    """
    usable = trainable(histories)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(usable))
    if random_start:
        spare = np.maximum(usable.lengths - max_length - 1, 0)
        moved = random.random(len(usable)) < random_start
        starts = usable.starts + np.where(moved, (random.random(len(usable)) * (spare + 1)).astype(np.int64), 0)
        ends = np.where(moved, np.minimum(starts + max_length + 1, usable.ends), usable.ends)
        usable = Histories(usable.dataset, usable.users, starts, ends)
    for start in range(first_step * batch_size, len(usable), batch_size):
        yield pack(usable.take(order[start : start + batch_size]), max_length, with_targets=True)


def histories_of(
    dataset: Dataset, item_lists: Sequence[np.ndarray], timestamps: Sequence[np.ndarray] | None = None
) -> Histories:
    """Histories of people who are not in the dataset, from item indices in time order."""
    lengths = np.array([len(items) for items in item_lists], dtype=np.int64)
    items = np.concatenate([np.empty(0, np.int32), *item_lists])
    times = None if timestamps is None else np.concatenate([np.empty(0, np.int64), *timestamps])
    return flat_histories_of(dataset, items, lengths, times)


def flat_histories_of(
    dataset: Dataset, items: np.ndarray, lengths: np.ndarray, timestamps: np.ndarray | None = None
) -> Histories:
    """What :func:`histories_of` gives, from all items one person after another and the length of each history."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if timestamps is None:
        timestamps = np.arange(len(items), dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    nobody = IdTable(pl.Series("user_id", [], dtype=dataset.users.dtype))
    items, timestamps = items.astype(np.int32, copy=False), timestamps.astype(np.int64, copy=False)
    strangers = replace(dataset, items=items, timestamps=timestamps, offsets=offsets, users=nobody, before=None)
    return Histories(strangers, np.full(len(lengths), -1, dtype=np.int64), offsets[:-1], offsets[1:])
