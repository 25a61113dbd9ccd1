"""Scores of items for histories, in blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import pack
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models.base import Model

CELLS = 2**24  # scores held at once: 64 MiB
USERS_AT_ONCE = 8192  # histories encoded before their items are scored
ATTENTION_CELLS = 2**24  # users times squared length in a batch, which is what attention holds


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Evaluation mode without gradients; the training flag is restored after."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def device_of(model: Model) -> torch.device:
    """Where the model's weights are."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def last_states(model: Model, histories: Histories, *, max_length: int | None = None, batch_size: int = 512) -> Tensor:
    """The hidden state ``[M, D]`` after each history, on the model's device.

    Users of like length are encoded together, fewer at once where histories are long. Use it within
    :func:`scoring`.

    Raises:
        ValueError: an empty history; it has no state.
    """
    max_length = max_length or int(model.config.max_length)
    lengths = np.minimum(histories.lengths, max_length)
    if len(lengths) and lengths.min() < 1:
        raise ValueError("an empty history has no state; leave it out")
    device = device_of(model)
    order = np.argsort(lengths, kind="stable")[::-1].copy()
    parts: list[Tensor] = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + max(1, min(batch_size, ATTENTION_CELLS // longest**2))]
        batch = pack(histories.take(rows), max_length).to(device)
        parts.append(model.encode_last(batch))
        start += len(rows)
    if not parts:
        return torch.empty(0, 0, device=device)
    in_order = torch.cat(parts)
    states = torch.empty_like(in_order)
    states[torch.from_numpy(order).to(device)] = in_order
    return states


class Scorer:
    """A model's scores of a range of candidates, into memory that is used again.

    Args:
        model: in evaluation mode.
        candidates: ``int64[C]`` items that columns stand for; the whole catalogue, with the padding in
            column 0, without it.
    """

    def __init__(self, model: Model, candidates: np.ndarray | None = None) -> None:
        self.model = model
        self.device = device_of(model)
        self.candidates = None if candidates is None else torch.from_numpy(candidates).to(self.device)
        self.columns = model.num_items + 1 if candidates is None else len(candidates)
        self.vectors: Tensor | None = None
        if model.FACTORED:
            self.vectors = model.item_vectors() if self.candidates is None else model.vectors_of(self.candidates)
            self.vectors = at_least_float32(self.vectors)
        self._memory: Tensor | None = None

    @property
    def cells(self) -> int:
        """Scores that may be held at once; a model that is not factored may need a vector for each."""
        return CELLS if self.model.FACTORED else CELLS // 16

    def compiled(self, states: Tensor) -> bool:
        """Whether ``kernels.rank`` takes them."""
        return self.vectors is not None and self.columns > 0 and kernels.usable(states, self.vectors)

    def __call__(self, states: Tensor, start: int, stop: int) -> Tensor:
        """Scores ``[R, stop - start]``, valid until the next call and free to be changed."""
        if self.vectors is not None:
            states = at_least_float32(states)
            size = len(states) * (stop - start)
            if self._memory is None or len(self._memory) < size:
                self._memory = torch.empty(size, dtype=states.dtype, device=self.device)
            memory = self._memory[:size].view(len(states), stop - start)
            return torch.mm(states, self.vectors[start:stop].T, out=memory)
        if self.candidates is None and stop - start == self.columns:
            return at_least_float32(self.model.score(states)).clone()
        if self.candidates is None:
            items = torch.arange(start, stop, device=self.device)
        else:
            items = self.candidates[start:stop]
        return at_least_float32(self.model.score(states, items)).clone()


def seen_columns(scorer: Scorer, seen: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what was seen, from rows and items, without what is no candidate."""
    rows, items = seen
    candidates = scorer.candidates
    if candidates is None:
        return rows, items.astype(np.int64)
    if len(candidates) == 0:
        return rows[:0], items[:0].astype(np.int64)
    there = candidates.cpu().numpy()
    place = np.searchsorted(there, items)
    place[place == len(there)] = 0
    met = there[place] == items
    return rows[met], place[met]


def require_numbers(scores: Tensor) -> None:
    """Raise an InputError where a score is NaN."""
    require(not bool(scores.isnan().any()))


def require(numbers: bool) -> None:
    """Raise an InputError unless all scores are numbers."""
    if not numbers:
        raise InputError("the model gives scores that are not numbers; its training diverged; lower the learning rate")


def mask(scores: Tensor, rows: np.ndarray, columns: np.ndarray) -> None:
    """Set ``scores[rows, columns]`` to -inf, in place."""
    flat = torch.from_numpy(rows * scores.shape[1] + columns).to(scores.device)
    scores.view(-1)[flat] = -torch.inf


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; wider types as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
