"""Packed tokens regrouped into rows, for layers that compute with all tokens of a user at once."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.device import copied


class _Layout(NamedTuple):
    places: Tensor
    tokens: Tensor
    mask: Tensor
    rows: int
    host_tokens: np.ndarray


class Grouping:
    """Packed tokens regrouped into G rows of C places, with several short users per row; computed when it is needed.

    ``places int64[G * C]`` names the token at each place (token 0 where the place is empty), ``tokens
    int64[T]`` the place of each token, ``mask float32[G, C, C]`` is 0 where the query (second axis) may
    see the key (third): the same user and not later where ``causal``; and -inf elsewhere.

    Users go into rows longest first, each into the last open row. Attention costs the square of the row's width, so
    the width is the longest history where that is more than ``width``: with histories of a few items a row
    holds many of them, and little is empty.

    Rows are laid out on the host. ``host_offsets`` are the offsets there, which saves a copy from a GPU and the wait
    for all that it still has to do.
    """

    def __init__(
        self, offsets: Tensor, width: int = 64, causal: bool = True, host_offsets: Tensor | None = None
    ) -> None:
        self.offsets = offsets
        self.causal = causal
        self._ends = (offsets.cpu() if host_offsets is None else host_offsets).numpy()
        self._lengths = np.diff(self._ends)
        self.width = max(min(width, int(self._ends[-1])), int(self._lengths.max(initial=1)))
        # All pairs of a query and a key.
        per_user = self._lengths * (self._lengths + 1) // 2 if causal else self._lengths**2
        self.pairs = int(per_user.sum())

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
        """Who sees whom, ``float32[G, C, C]``."""
        return self._made().mask

    @property
    def rows(self) -> int:
        """How many rows there are, G."""
        return self._made().rows

    @torch.compiler.disable  # plain numpy, different for every batch
    def _made(self) -> _Layout:
        return self._layout

    @cached_property
    def cells(self) -> Tensor:
        """Where each pair stands in ``[G, C, C]``, ``int64[P]``: by user, then query, then key."""
        starts = self._ends[:-1].repeat(self._lengths)
        token = np.arange(len(starts))
        counts = token - starts + 1 if self.causal else self._lengths.repeat(self._lengths)
        query = token.repeat(counts)
        key = np.arange(len(query)) - (np.cumsum(counts) - counts).repeat(counts) + starts.repeat(counts)
        place = self._made().host_tokens
        return copied(torch.from_numpy(place[query] * self.width + place[key] % self.width), self.offsets.device)

    def spread(self, x: Tensor) -> Tensor:
        """``[T, D]`` to ``[G, C, D]``; what stands at empty places has no meaning."""
        spread: Tensor = _Move.apply(x, self.places, self.tokens)
        return spread.view(self.rows, self.width, x.shape[-1])

    def collect(self, x: Tensor) -> Tensor:
        """``[G, C, D]`` to ``[T, D]``."""
        return x.reshape(self.rows * self.width, x.shape[-1]).index_select(0, self.tokens)


class _Move(torch.autograd.Function):
    """Gather whose backward is a gather too: each token has one place, and empty ones get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None


@torch.compiler.disable
def group(batch: Batch, width: int = 64, causal: bool = True) -> Grouping:
    """The grouping of a batch's tokens, for all layers."""
    return Grouping(batch.offsets, width, causal, batch.host_offsets)


def _fit(lengths: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """The first place of each user, and how many rows are needed: next-fit, long and short in turn."""
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
