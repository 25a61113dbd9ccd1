"""Encode histories, and rank the catalogue by their states: the one place where scores are computed and compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

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
# The compiled loop scores whole panels of states, so fewer than these are ranked sooner by one product of matrices.
FEW = 8

Pairs = tuple[np.ndarray, np.ndarray]  # rows in rising order and, for each, an item or a column: two int64


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Evaluation mode without gradients; a model that was in training is so again afterwards."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()


def device_of(model: Model) -> torch.device:
    """Where the model's weights are."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def last_states(model: Model, histories: Histories, *, max_length: int | None = None, batch_size: int = 512) -> Tensor:
    """The hidden state ``[M, D]`` after each history, on the model's device.

    Users of similar length are encoded together, fewer at once where histories are long. The model must be in
    evaluation mode, see :func:`evaluation_mode`.

    Raises:
        ValueError: a history is empty; it has no state.
    """
    max_length = max_length or int(model.config.max_length)
    lengths = np.minimum(histories.lengths, max_length)
    if len(lengths) and lengths.min() < 1:
        raise ValueError("an empty history has no state; leave it out")
    device = device_of(model)
    if len(lengths) == 1:  # nothing to put in order: what a server asks for most
        return model.encode_last(pack(histories, max_length).to(device))
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


class Catalogue:
    """The items that states are scored against. Nothing in it changes, so any number of threads may use one.

    Args:
        model: in evaluation mode.
        items: ``int64[C]`` that columns stand for, sorted; by default all, with the padding in column 0.
        vectors: ``[C, D]`` to multiply states with; by default those of the model, where it is factored.
    """

    def __init__(self, model: Model, items: np.ndarray | None = None, vectors: Tensor | None = None) -> None:
        self.model = model
        self.items = items
        self.device = device_of(model)
        self.columns = model.num_items + 1 if items is None else len(items)
        self._items = None if items is None else torch.from_numpy(items).to(self.device)
        if vectors is None and model.FACTORED:
            vectors = model.item_vectors() if self._items is None else model.vectors_of(self._items)
        self.vectors = None if vectors is None else at_least_float32(vectors)

    def only(self, items: np.ndarray) -> "Catalogue":
        """Some of all items, ``int64[C]``, sorted."""
        vectors = None if self.vectors is None else self.vectors[torch.from_numpy(items).to(self.device)]
        return Catalogue(self.model, items, vectors)

    @property
    def rows(self) -> int:
        """How many states may be scored at once, so that memory is bounded."""
        # A model that is not factored may need a vector for each score.
        cells = CELLS if self.vectors is not None else CELLS // 16
        return max(1, cells // max(1, self.columns))

    def columns_of(self, pairs: Pairs) -> Pairs:
        """Rows and columns, from rows and items; without the items that are not here."""
        rows, items = pairs
        if self.items is None:
            return rows, items.astype(np.int64, copy=False)
        if len(self.items) == 0:
            return rows[:0], items[:0].astype(np.int64)
        place = np.searchsorted(self.items, items)
        place[place == len(self.items)] = 0
        there = self.items[place] == items
        return rows[there], place[there]

    def items_of(self, columns: np.ndarray) -> np.ndarray:
        """Items of columns, ``int64`` of any shape; 0 for -1."""
        if self.items is None:
            return np.maximum(columns, 0)
        if len(self.items) == 0:
            return np.zeros_like(columns)
        return np.where(columns >= 0, self.items[columns], 0)

    def score(self, states: Tensor, memory: Tensor) -> Tensor:
        """Scores ``[R, C]``, free to be changed; in ``memory[>= R * C]`` where the model is factored."""
        if self.vectors is not None:
            out = memory[: len(states) * self.columns].view(len(states), self.columns)
            return torch.mm(at_least_float32(states), self.vectors.T, out=out)
        scores = self.model.score(states) if self._items is None else self.model.score(states, self._items)
        return at_least_float32(scores).clone()


class Ranking(NamedTuple):
    """What :func:`rank` finds for R states."""

    columns: np.ndarray  # int64[R, k] of the best, by score and then by column; -1 where there are fewer
    scores: np.ndarray  # float32[R, k]; -inf where there are fewer
    greater: np.ndarray | None  # int64[R], columns that score above the target; -1 where it scores -inf
    ties: np.ndarray | None  # int64[R], other columns that score as the target does


def rank(
    catalogue: Catalogue,
    states: Tensor,
    k: int,
    *,
    left_out: Pairs | None = None,
    denied: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    batch_size: int = 512,
) -> Ranking:
    """Score the catalogue by each state; find the best and, where there are targets, how many come before them.

    Compiled loops do it where there are any, a tile of states and items at a time; torch does it in blocks of states.

    Args:
        catalogue: what is scored.
        states: ``[R, D]``, of :func:`last_states`.
        k: how many of the best are wanted; may be 0, or more than there are.
        left_out: rows and columns that don't count. A target that is left out has a rank of no meaning.
        denied: ``int64``, columns that don't count for anybody. The padding never does.
        targets: ``int64[R]``, the column of each state's target.
        batch_size: states scored at once by torch, at most.

    Raises:
        InputError: a score is not a number.
    """
    denied = np.empty(0, dtype=np.int64) if denied is None else denied
    if catalogue.items is None:
        denied = np.append(denied, 0)
    count = len(states)
    columns, scores = np.full((count, k), -1, dtype=np.int64), np.full((count, k), -np.inf, dtype=np.float32)
    greater, ties = (None if targets is None else np.zeros(count, dtype=np.int64) for _ in range(2))
    ranking = Ranking(columns, scores, greater, ties)
    if count == 0 or catalogue.columns == 0:
        return ranking
    vectors = catalogue.vectors
    if vectors is not None and (targets is not None or count >= FEW) and kernels.usable(states, vectors):
        _rank_compiled(vectors, states, left_out, denied, targets, ranking)
        return ranking
    rows = min(batch_size, catalogue.rows, count)
    kind = states.dtype if vectors is None else vectors.dtype
    memory = torch.empty(0 if vectors is None else rows * catalogue.columns, dtype=kind, device=catalogue.device)
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        into = Ranking(*(None if found is None else found[part] for found in ranking))  # type: ignore[arg-type]
        pairs = None
        if left_out is not None:
            low, high = np.searchsorted(left_out[0], [start, start + rows])
            pairs = left_out[0][low:high] - start, left_out[1][low:high]
        wanted = None if targets is None else targets[part]
        _rank_block(catalogue.score(states[part], memory), pairs, denied, wanted, into)
    return ranking


def _rank_compiled(
    vectors: Tensor, states: Tensor, left_out: Pairs | None, denied: np.ndarray, targets: np.ndarray | None,
    into: Ranking,
) -> None:  # fmt: skip
    skipped = torch.zeros(len(vectors), dtype=torch.bool)
    skipped[torch.from_numpy(denied)] = True
    pairs = None if left_out is None else (torch.from_numpy(left_out[0]), torch.from_numpy(left_out[1]))
    wanted = None if targets is None else torch.from_numpy(targets)
    found = kernels.rank(states, vectors, min(into.columns.shape[1], len(vectors)), pairs, skipped, wanted)
    require(found.numbers)
    width = found.columns.shape[1]
    into.columns[:, :width], into.scores[:, :width] = found.columns.numpy(), found.scores.numpy()
    if found.greater is not None and found.ties is not None and into.greater is not None and into.ties is not None:
        into.greater[:], into.ties[:] = found.greater.numpy(), found.ties.numpy() - 1


def _rank_block(
    scores: Tensor, left_out: Pairs | None, denied: np.ndarray, targets: np.ndarray | None, into: Ranking
) -> None:
    """Rank ``scores[R, C]``, which change."""
    device = scores.device
    # The target's score comes out of the same matrix: computed apart, it could differ in the last bit.
    target = None if targets is None else scores.gather(1, torch.from_numpy(targets).to(device)[:, None])
    scores[:, torch.from_numpy(denied).to(device)] = -torch.inf
    if left_out is not None:
        flat = torch.from_numpy(left_out[0] * scores.shape[1] + left_out[1]).to(device)
        scores.view(-1)[flat] = -torch.inf
    if into.columns.shape[1]:
        into.columns[:], into.scores[:] = largest(scores, into.columns.shape[1])
    else:
        require_numbers(scores.amax(dim=1))
    if target is None or into.greater is None or into.ties is None:
        return
    greater, ties = _count(scores, target)
    # What scores -inf is never recommended: a miss, not a tie with all that was left out.
    never = (target[:, 0] == -torch.inf).cpu().numpy()
    into.greater[:], into.ties[:] = np.where(never, -1, greater), np.where(never, 0, ties)


def _count(scores: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores above and, the target itself left out, equal to ``target[R, 1]`` in each row."""
    if scores.device.type != "cpu":
        above, equal = (scores > target).sum(dim=1), (scores == target).sum(dim=1)
        return above.cpu().numpy(), equal.cpu().numpy() - 1
    # One row at a time stays in the processor's cache, and numpy counts booleans without widening them: a tenth of the
    # time that torch takes for the whole block.
    greater = np.empty(len(scores), dtype=np.int64)
    ties = np.empty(len(scores), dtype=np.int64)
    values, all_scores = target[:, 0].numpy(), scores.numpy()
    for row, value in enumerate(values):
        greater[row] = np.count_nonzero(all_scores[row] > value)
        ties[row] = np.count_nonzero(all_scores[row] == value) - 1
    return greater, ties


def largest(scores: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of each row of ``scores[R, C]``: ``columns int64[R, k]``, ``values float32[R, k]``.

    Ordered by value, then by column; -1 and -inf where there are fewer than k above -inf.

    Raises:
        InputError: a score is NaN.
    """
    rows, width = scores.shape
    columns, values = np.full((rows, k), -1, dtype=np.int64), np.full((rows, k), -np.inf, dtype=np.float32)
    if rows == 0 or width == 0:
        return columns, values
    k = min(k, width)
    # One more than is wanted shows where the last place is shared. Of so few, numpy makes less work than torch.
    top, place = (part.cpu().numpy() for part in torch.topk(scores, min(k + 1, width), dim=1))
    require(not np.isnan(top[:, 0]).any())  # NaN sorts first
    if k < width:
        top, place = top[:, :k], _settle_ties(scores, top, place)
    order = np.lexsort((place, -top), axis=1)
    top, place = np.take_along_axis(top, order, 1), np.take_along_axis(place, order, 1)
    values[:, :k] = top
    columns[:, :k] = np.where(top > -np.inf, place, -1)
    return columns, values


def _settle_ties(scores: Tensor, top: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The columns of the first k of k + 1 highest, the lowest of those that equal the k-th value.

    ``torch.topk`` takes any of them. Rows where none is left outside need nothing.
    """
    k = top.shape[1] - 1
    cut = top[:, k - 1]
    tied = np.flatnonzero((cut == top[:, k]) & (cut > -np.inf)).tolist()
    if tied:
        # A few rows as a rule; all of them for a model that scores by counts.
        all_scores = scores.cpu().numpy()
        for row in tied:
            above = np.count_nonzero(top[row, :k] > cut[row])
            place[row, above:k] = np.flatnonzero(all_scores[row] == cut[row])[: k - above]
    return place[:, :k]


def require_numbers(scores: Tensor) -> None:
    """Raise an InputError where a score is NaN."""
    require(not bool(scores.isnan().any()))


def require(numbers: bool) -> None:
    """Raise an InputError unless all scores are numbers."""
    if not numbers:
        raise InputError("the model gives scores that are not numbers; its training diverged; lower the learning rate")


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; wider types as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
