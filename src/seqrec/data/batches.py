"""Packs histories into batches: the tokens of many users, one after another, without padding."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqrec.data.dataset import Dataset
from seqrec.data.draws import Draws, Part
from seqrec.data.id_table import IdTable
from seqrec.data.split import Histories, Windows
from seqrec.device import copied, is_on


@dataclass(frozen=True, eq=False)
class Columns:
    """Extra columns of a dataset, by name. Batches carry the rows that belong to their tokens and users.

    Columns of ``interactions`` are ``[N, ...]``, of ``items`` ``[I + 1, ...]`` (row 0 is padding), and of ``users``
    ``[U + 1, ...]`` (the last row is for people who are not in the dataset).
    """

    interactions: Mapping[str, np.ndarray] = field(default_factory=dict)
    items: Mapping[str, np.ndarray] = field(default_factory=dict)
    users: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.interactions, *self.items, *self.users]
        if len(names) > len({*names}):
            raise ValueError(f"the names of extra columns are not unique: {', '.join(sorted(names))}")

    def only(self, names: Iterable[str]) -> "Columns":
        """Only the columns with these names.

        Raises:
            ValueError: a column is missing.
        """
        names = {*names}
        parts = {kind.name: {name: values for name, values in getattr(self, kind.name).items() if name in names}
                 for kind in fields(self)}  # fmt: skip
        missing = names - {name for part in parts.values() for name in part}
        if missing:
            raise ValueError(f"the extra column {min(missing)} is missing")
        return Columns(**parts)

    def of_tokens(self, source: np.ndarray, items: np.ndarray) -> dict[str, Tensor]:
        """Rows for tokens, given their rows in the dataset and their items."""
        found = {name: torch.from_numpy(values[source]) for name, values in self.interactions.items()}
        return found | {name: torch.from_numpy(values[items]) for name, values in self.items.items()}

    def of_users(self, users: np.ndarray) -> dict[str, Tensor]:
        """Rows for users; -1 is someone who is not in the dataset."""
        return {name: torch.from_numpy(values[users]) for name, values in self.users.items()}


@dataclass(frozen=True, eq=False)
class Batch:
    """A packed stream of T tokens from B histories (or windows of histories), one row each.

    ``items int64[T]``, ``targets int64[T]`` (the next item, or 0 for none), ``positions int64[T]`` (0 at the first
    token of each row), ``offsets int64[B + 1]`` (row b has the tokens ``offsets[b]:offsets[b + 1]``), ``users
    int64[B]`` (-1: not in the dataset), ``timestamps int64[T]`` (seconds); and the extra columns that the model reads,
    by name: ``of_tokens [T, ...]`` and ``of_users [B, ...]``.
    """

    items: Tensor
    targets: Tensor
    positions: Tensor
    offsets: Tensor
    users: Tensor
    timestamps: Tensor
    of_tokens: Mapping[str, Tensor] = field(default_factory=dict)
    of_users: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each row, ``int64[B]``."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def last(self) -> Tensor:
        """Index of each user's last token, ``int64[B]``.

        Raises:
            ValueError: a history is empty, so it has no last token.
        """
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not traced and bool((self.host_offsets.diff() < 1).any()):
            raise ValueError("an empty history has no last token; leave it out of the batch")
        return self.offsets[1:] - 1

    def newest(self, tokens: Tensor, count: int) -> Tensor:
        """The items of some tokens and those before them in their rows, newest first.

        Args:
            tokens: ``int64[P]``.
            count: number of items per token.

        Returns:
            ``int64[P, count]``; 0 before the row begins.
        """
        places = tokens[:, None] - torch.arange(count, device=tokens.device)
        starts = self.offsets[self.rows[tokens]]
        return torch.where(places >= starts[:, None], self.items[places.clamp(min=0)], 0)

    @cached_property
    def host_offsets(self) -> Tensor:
        """``offsets`` on the host, so that layouts computed there need not wait for a GPU."""
        return self.offsets.cpu()

    @cached_property
    def rows(self) -> Tensor:
        """The row of each token in the batch, ``int64[T]``."""
        with torch.inference_mode(False):  # so that a batch can be used for training after it was scored
            if self.users.device.type == "cpu":  # numpy takes a third of torch's time
                return torch.from_numpy(np.repeat(np.arange(len(self)), self.lengths.numpy()))
            rows = torch.arange(len(self), device=self.users.device)
            return torch.repeat_interleave(rows, self.lengths, output_size=len(self.items))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        device = torch.device(device)
        if is_on(self.items, device):
            return self
        extra = "of_tokens", "of_users"
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        for name, value in parts.items():
            parts[name] = (
                {key: copied(one, device) for key, one in value.items()} if name in extra else copied(value, device)
            )
        moved = Batch(**parts)
        moved.__dict__["host_offsets"] = self.host_offsets
        return moved


def pack(histories: Histories, max_length: int, with_targets: bool = False, columns: Columns | None = None) -> Batch:
    """Pack the last tokens of each history, at most ``max_length`` of them.

    Args:
        histories: histories to pack.
        max_length: highest number of tokens per history.
        with_targets: whether each token gets the next item as its target, so that a history of n items has n - 1
            tokens. Otherwise it has n tokens, and all targets are 0.
        columns: extra columns of the dataset of these histories.
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
    users = np.asarray(histories.users, dtype=np.int64)
    return Batch(
        items=torch.from_numpy(items),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(positions),
        offsets=torch.from_numpy(offsets),
        users=torch.from_numpy(users),
        timestamps=torch.from_numpy(np.asarray(data.timestamps[source], dtype=np.int64)),
        of_tokens=columns.of_tokens(source, items) if columns else {},
        of_users=columns.of_users(users) if columns else {},
    )


def trainable(histories: Histories) -> Histories:
    """The histories with at least two items, which have a token with a target."""
    return histories.take(histories.lengths >= 2)


class Epoch:
    """One pass over the training windows: ``len(epoch)`` steps, where ``epoch[step]`` is the batch of a step.

    A window is a stretch of at most ``max_length`` + 1 items of a history. Each of its items but the last is a token,
    with the next item as its target.

    Batches depend only on the arguments. So training can resume at any step without replaying earlier ones, and several
    processes can share an epoch: each takes its part of every batch, and the parts one after another are the batch that
    one process would get. The token counts of two parts differ by at most twice the longest window. All processes have
    the same number of steps. If a batch has no window for a process (:meth:`part`), the process gets the first window
    of the batch, whose predictions must not count: it takes part in the step as all the others do.

    Args:
        histories: training histories. Those with fewer than two items have no window.
        batch_size: number of windows per batch, over all processes.
        max_length: highest number of tokens per window.
        seed: seed of the order and of random windows.
        epoch: number of the pass, from 0; each pass has its own order.
        shard: rank of this process and number of processes.
        random_start: probability that a history longer than a window shows a random window instead of its last one,
            drawn again for every epoch (SSE-PT++: Wu et al. 2020, section 3.3).
        windows: ``last`` for one window per history, at its end; ``all`` to cut each history into windows from its end,
            so that every item but the first is a target exactly once.
        columns: extra columns that batches carry.
    """

    def __init__(
        self,
        histories: Histories,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        epoch: int = 0,
        shard: tuple[int, int] = (0, 1),
        random_start: float = 0.0,
        windows: Windows = "last",
        columns: Columns | None = None,
    ) -> None:
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard is {shard}; give (rank, world) with 0 <= rank < world")
        if random_start and windows == "all":
            raise ValueError("random_start has no effect with windows='all', which shows every window; give only one")
        usable = trainable(histories)
        self._windows = every_window(usable, max_length) if windows == "all" else usable
        self.batch_size, self.max_length, self.random_start = batch_size, max_length, random_start
        self.seed, self.epoch, self.shard, self.columns = seed, epoch, shard, columns

    def __len__(self) -> int:
        return math.ceil(len(self._windows) / self.batch_size)

    @property
    def tokens(self) -> int:
        """Number of tokens in the pass, over all processes."""
        return int(np.minimum(self._windows.lengths - 1, self.max_length).sum())

    def __iter__(self) -> Iterator[Batch]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, step: int) -> Batch:
        """This process's part of the batch of a step."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} is out of range; the epoch has {len(self)} steps")
        chosen, part = self._chosen(step), self.part(step)
        if part is not None:
            chosen = chosen.take(slice(0, 1) if part.is_empty else slice(part.first, part.last))
        return pack(chosen, self.max_length, with_targets=True, columns=self.columns)

    def part(self, step: int) -> Part | None:
        """The rows of this process in the batch of a step; None if it is the only process."""
        rank, world = self.shard
        if world == 1:
            return None
        lengths = np.minimum(self._chosen(step).lengths - 1, self.max_length)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # Each cut is at the end of the row that is nearest to equal numbers of tokens.
        cuts = np.searchsorted((ends[1:] + ends[:-1]) / 2, ends[-1] * np.arange(world + 1) / world)
        cuts[-1] = len(lengths)
        return Part(lengths, int(cuts[rank]), int(cuts[rank + 1]), rank)

    def draws(self, step: int, purpose: int) -> Draws:
        """The random numbers of a step for one purpose."""
        part = self.part(step)
        if part is not None and part.is_empty:  # its predictions do not count
            part = replace(part, first=0, last=1)
        return Draws([self.seed, self.epoch, step, purpose], part)

    def _chosen(self, step: int) -> Histories:
        """The windows of a step, over all processes."""
        windows, order = self._drawn
        first = step * self.batch_size
        return windows.take(order[first : first + self.batch_size])

    @cached_property
    def _drawn(self) -> tuple[Histories, np.ndarray]:
        """The windows and their order."""
        windows = self._windows
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(windows))
        if self.random_start:
            spare = np.maximum(windows.lengths - self.max_length - 1, 0)
            moved = random.random(len(windows)) < self.random_start
            drawn = (random.random(len(windows)) * (spare + 1)).astype(np.int64)
            starts = windows.starts + np.where(moved, drawn, 0)
            ends = np.where(moved, np.minimum(starts + self.max_length + 1, windows.ends), windows.ends)
            windows = Histories(windows.dataset, windows.users, starts, ends)
        return windows, order


def every_window(histories: Histories, max_length: int) -> Histories:
    """Cut histories from their end into windows of ``max_length`` tokens; the first window may have fewer.

    Each window starts with the last item of the window before it, so every item of a history except the first is the
    target of exactly one token.
    """
    counts = -(-(histories.lengths - 1) // max_length)
    owner = np.repeat(np.arange(len(histories)), counts)
    from_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(owner)) - 1
    ends = histories.ends[owner] - from_end * max_length
    starts = np.maximum(histories.starts[owner], ends - max_length - 1)
    return Histories(histories.dataset, histories.users[owner], starts, ends)


def histories_of(
    dataset: Dataset, item_lists: Sequence[np.ndarray], timestamps: Sequence[np.ndarray] | None = None
) -> Histories:
    """Histories of people who are not in the dataset, from item indices in time order.

    By default, timestamps are 0, 1, 2, … within each history.
    """
    lengths = np.array([len(items) for items in item_lists], dtype=np.int64)
    items = np.concatenate([np.empty(0, np.int32), *item_lists])
    times = None if timestamps is None else np.concatenate([np.empty(0, np.int64), *timestamps])
    return flat_histories_of(dataset, items, lengths, times)


def flat_histories_of(
    dataset: Dataset, items: np.ndarray, lengths: np.ndarray, timestamps: np.ndarray | None = None
) -> Histories:
    """The same as :func:`histories_of`, from the concatenated items and the length of each history."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if timestamps is None:
        timestamps = np.arange(len(items), dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    no_users = IdTable(pl.Series("user_id", [], dtype=dataset.users.dtype))
    items, timestamps = items.astype(np.int32, copy=False), timestamps.astype(np.int64, copy=False)
    strangers = replace(dataset, items=items, timestamps=timestamps, offsets=offsets, users=no_users, before=None)
    return Histories(strangers, np.full(len(lengths), -1, dtype=np.int64), offsets[:-1], offsets[1:])
