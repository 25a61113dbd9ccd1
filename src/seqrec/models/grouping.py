"""Packed tokens rearranged into rows or into time steps, for layers that need all tokens of a user."""

from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.data.draws import Unit
from seqrec.device import copied, not_compiled


class _Layout(NamedTuple):
    places: Tensor
    tokens: Tensor
    mask: Tensor
    rows: int
    host_tokens: np.ndarray


class Grouping:
    """A layout of packed tokens in G rows of C places, with several short histories per row; computed on first use.

    ``places int64[G * C]`` is the token at each place (token 0 if the place is empty), and ``tokens int64[T]`` is the
    place of each token. ``mask float32[G, C, C]`` is 0 where the query (second axis) may see the key (third axis), and
    -inf elsewhere. A query sees the tokens of its own user; if ``causal``, only those up to its own position.

    Each row takes the longest remaining histories while they fit, then the shortest. Attention costs the square of the
    row's width C, which is the length of the longest history but at least ``width`` (or T, if that is less). A row
    then holds many short histories and has few empty places.

    Rows are laid out on the host. ``host_offsets`` is a copy of the offsets there, which saves copying them from a GPU
    and waiting for its pending work.
    """

    def __init__(
        self, offsets: Tensor, width: int = 64, causal: bool = True, host_offsets: Tensor | None = None
    ) -> None:
        self.offsets = offsets
        self.causal = causal
        self._ends = (offsets.cpu() if host_offsets is None else host_offsets).numpy()
        self._lengths = np.diff(self._ends)
        # Lengths of the longest and the shortest history; 0 if there is none.
        self.longest = int(self._lengths.max(initial=0))
        self.shortest = int(self._lengths.min(initial=self.longest))
        self.width = max(min(width, int(self._ends[-1])), self.longest, 1)
        # Number of pairs of a query and a key that it sees.
        per_user = self._lengths * (self._lengths + 1) // 2 if causal else self._lengths**2
        self.pairs = int(per_user.sum())

    @property
    def unit_pairs(self) -> tuple[Unit, int]:
        """What ``pairs`` counts, for random numbers, and their number."""
        return ("pairs" if self.causal else "squares"), self.pairs

    @cached_property
    def _layout(self) -> _Layout:
        lengths, width = self._lengths, self.width
        starts, rows = _fit(lengths, width)
        total = int(self._ends[-1])
        user_of_token = np.repeat(np.arange(len(lengths)), lengths)
        tokens = np.arange(total) - self._ends[:-1][user_of_token] + starts[user_of_token]
        places = np.zeros(rows * width, dtype=np.int64)
        places[tokens] = np.arange(total)
        owner = np.full(rows * width, -1, dtype=np.int64)
        owner[tokens] = user_of_token
        by_row = owner.reshape(rows, width)
        allowed = by_row[:, :, None] == by_row[:, None, :]
        if self.causal:
            allowed &= np.tri(width, dtype=bool)
        mask = np.where(allowed, np.float32(0), np.float32(-np.inf))
        moved = [copied(torch.from_numpy(part), self.offsets.device) for part in (places, tokens, mask)]
        return _Layout(moved[0], moved[1], moved[2], rows, tokens)

    @property
    def places(self) -> Tensor:
        """The token at each place, ``int64[G * C]``."""
        return self._made().places

    @property
    def tokens(self) -> Tensor:
        """The place of each token, ``int64[T]``."""
        return self._made().tokens

    @property
    def mask(self) -> Tensor:
        """0 where a query sees a key, -inf elsewhere, ``float32[G, C, C]``."""
        return self._made().mask

    @property
    def rows(self) -> int:
        """Number of rows, G."""
        return self._made().rows

    @not_compiled  # numpy code with sizes that change with every batch
    def _made(self) -> _Layout:
        return self._layout

    @cached_property
    def cells(self) -> Tensor:
        """The flat index in ``[G, C, C]`` of each pair, ``int64[P]``, ordered by user, query and key."""
        starts = self._ends[:-1].repeat(self._lengths)
        token = np.arange(len(starts))
        counts = token - starts + 1 if self.causal else self._lengths.repeat(self._lengths)
        query = token.repeat(counts)
        key = np.arange(len(query)) - (np.cumsum(counts) - counts).repeat(counts) + starts.repeat(counts)
        place = self._made().host_tokens
        return copied(torch.from_numpy(place[query] * self.width + place[key] % self.width), self.offsets.device)

    def spread(self, x: Tensor) -> Tensor:
        """``[T, D]`` to ``[G, C, D]``. Empty places hold arbitrary values."""
        spread: Tensor = _Move.apply(x, self.places, self.tokens)
        return spread.view(self.rows, self.width, x.shape[-1])

    def collect(self, x: Tensor) -> Tensor:
        """``[G, C, D]`` to ``[T, D]``."""
        return x.reshape(self.rows * self.width, x.shape[-1]).index_select(0, self.tokens)


class _Move(torch.autograd.Function):
    """A gather whose backward is also a gather, since each token has one place. Empty places get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        return gradients[0].index_select(0, tokens), None, None


@not_compiled
def group(batch: Batch, width: int = 64, causal: bool = True) -> Grouping:
    """The :class:`Grouping` of a batch, which all layers share."""
    return Grouping(batch.offsets, width, causal, batch.host_offsets)


def pairs_within(batch: Batch, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """The tokens of all pairs of a query and a key of the same user up to it, in the order of ``grouping.cells``.

    Returns:
        The queries and the keys, each ``int64[P]``.
    """
    counts = batch.positions + 1
    tokens = torch.arange(len(counts), device=counts.device)
    queries = tokens.repeat_interleave(counts, output_size=grouping.pairs)
    first = counts.cumsum(0) - counts
    keys = torch.arange(len(queries), device=counts.device) + (queries - batch.positions[queries] - first[queries])
    return queries, keys


class Steps:
    """Packed tokens reordered by time step: the first tokens of all users, then the second tokens, and so on.

    Within a step, users with longer histories come first, so the users of a step are the first ones of the step before.
    ``tokens int64[T]`` is the token at each place, ``places int64[T]`` the place of each token, and ``sizes`` the
    number of users in each step. ``before`` is the place of the user's previous token, for each place after the first
    step. It is computed on the host, as in :class:`Grouping`.
    """

    @not_compiled  # numpy code with sizes that change with every batch
    def __init__(self, batch: Batch) -> None:
        lengths = batch.host_offsets.diff().numpy()
        rank = np.empty_like(lengths)
        rank[np.argsort(-lengths, kind="stable")] = np.arange(len(lengths))
        sizes = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(lengths.max(initial=0)), side="right")
        starts = np.concatenate([[0], np.cumsum(sizes)])
        step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = starts[step] + np.repeat(rank, lengths)
        tokens = np.empty_like(places)
        tokens[places] = np.arange(len(places))
        before = np.arange(len(places))[starts[min(1, len(sizes))] :] - np.repeat(sizes[:-1], sizes[1:])
        self.sizes: list[int] = sizes.tolist()
        self.bounds: list[tuple[int, int]] = list(pairwise(starts.tolist()))
        device = batch.items.device
        self.tokens, self.places, self.before = (
            copied(torch.from_numpy(part), device) for part in (tokens, places, before)
        )


def _fit(lengths: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """The first place of each user and the number of rows. Next-fit: the longest remaining, else the shortest."""
    order = np.argsort(lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    starts = np.zeros(len(sizes), dtype=np.int64)
    rows, used, low, high = 0, width, 0, len(order) - 1
    while low <= high:
        if used + sizes[order[high]] <= width:
            user, high = order[high], high - 1
        elif used + sizes[order[low]] <= width:
            user, low = order[low], low + 1
        else:
            rows, used = rows + 1, 0
            continue
        starts[user] = (rows - 1) * width + used
        used += sizes[user]
    return starts, rows
