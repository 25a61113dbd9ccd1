"""Encodes histories and ranks the catalogue for them. All scores are computed and compared here."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import pack
from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.models.sparse import SparseModel
from seqrec.ranking.dense import largest, require, require_numbers
from seqrec.ranking.prior import SortedPrior

CELLS = 2**24  # number of scores held at once: 64 MiB
USERS_AT_ONCE = 8192  # number of histories encoded before scoring
ATTENTION_CELLS = 2**24  # highest number of users times squared length in a batch: the size of the attention weights
# The compiled loop pads states to blocks, so for fewer states than this a plain matrix product is faster.
FEW = 8
# For fewer states at once, or in catalogues with fewer items, codes save less time than they take to compute.
MANY, LEAST_COLUMNS = 4096, 20_000
# In catalogues with fewer items, a matrix product for FEW states and more is faster than a pass over given codes. From
# MANY on it is not, but it still is where numbers are added to scores, whose items have to be sorted for the codes, and
# on processors without instructions for products of codes.
LARGE = 250_000
# The first pass finds at most one of this many items, because it has to score several times as many exactly; for many
# states, which matrix products score faster than few, at most one of the second number.
K_OF_ITEMS, K_OF_ITEMS_FOR_MANY = 50, 400

Pairs = tuple[np.ndarray, np.ndarray]  # sorted rows, and an item or a column for each: two int64[P]
# Pairs sorted by row and then by item or column, and a finite number for each, float32[P], to add to its score.
Added = tuple[np.ndarray, np.ndarray, np.ndarray]


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Put the model into evaluation mode, without gradients. Its training mode is restored afterwards."""
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
    """The device of the model's weights."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def last_states(model: Model, histories: Histories, *, max_length: int | None = None, batch_size: int = 512) -> Tensor:
    """The hidden state ``[M, D]`` after each history, on the model's device.

    Histories of similar length are encoded together, in smaller batches if they are long. The model must be in
    evaluation mode; see :func:`evaluation_mode`.

    Raises:
        ValueError: a history is empty.
    """
    max_length = max_length or model.max_length
    lengths = np.minimum(histories.lengths, max_length)
    if len(lengths) and lengths.min() < 1:
        raise ValueError("an empty history has no state; leave it out")
    device = device_of(model)
    if len(lengths) == 1:  # skip the sorting for the most frequent request of a server
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
    """The items to score, one column of scores each. It is immutable, so threads can share it.

    Args:
        model: the model, in evaluation mode.
        items: sorted items of the columns, ``int64[C]``. By default all items, with the padding in column 0.
        vectors: vectors to multiply states with, ``[C, D]``. By default those of the model, if it is factored.
    """

    def __init__(self, model: Model, items: np.ndarray | None = None, vectors: Tensor | None = None) -> None:
        self.model = model
        self.items = items
        self.device = device_of(model)
        self.columns = model.num_items + 1 if items is None else len(items)
        self._items = None if items is None else torch.from_numpy(items).to(self.device)
        #: Numbers to add to the scores of the items, ``float32[C]``, by the model's addition.
        self.offsets = None if vectors is not None else _offsets(model, self._items)
        if vectors is None and model.FACTORED:
            vectors = model.item_vectors() if self._items is None else model.vectors_of(self._items)
            if self.offsets is not None:
                vectors = torch.cat([vectors, self.offsets[:, None].to(vectors.dtype)], dim=1)
        self.vectors = None if vectors is None else at_least_float32(vectors)
        #: Codes of the vectors for a first pass; see :mod:`seqrec.ranking.approximate`.
        self.codes: kernels.Codes | None = None

    @cached_property
    def prior(self) -> SortedPrior:
        """The scores whatever the history, of a model of sparse scores, sorted at the first use."""
        assert isinstance(self.model, SparseModel)
        return SortedPrior.of(self.model, self.items)

    def coded(self) -> "Catalogue":
        """The same catalogue with the codes of a first pass. The vectors must be finite, and float32 on the CPU."""
        catalogue = copy.copy(self)
        assert self.vectors is not None
        catalogue.codes = kernels.codes_of(self.vectors)
        return catalogue

    def only(self, items: np.ndarray) -> "Catalogue":
        """A catalogue of only these items, sorted ``int64[C]``; for a catalogue of all items."""
        vectors = None if self.vectors is None else self.vectors[torch.from_numpy(items).to(self.device)]
        catalogue = Catalogue(self.model, items, vectors)
        if self.offsets is not None:
            catalogue.offsets = self.offsets[torch.from_numpy(items).to(self.device)]
        if isinstance(self.model, SparseModel):
            catalogue.prior = self.prior.only(items)
        return catalogue

    def with_constant(self, states: Tensor) -> Tensor:
        """The states ``[R, D]`` with a column of ones if the last column of the vectors holds the offsets."""
        if self.offsets is None or self.vectors is None:
            return states
        return torch.cat([states, states.new_ones(len(states), 1)], dim=1)

    def codes_for(self, count: int, k: int, added: bool) -> kernels.Codes | None:
        """The codes, if a pass over them is faster for the best k items of so many states; None if not."""
        if not 0 < k * K_OF_ITEMS <= self.columns:
            return None
        if self.codes is not None and (count < FEW or self.columns >= LARGE):
            return self.codes
        many = count >= MANY and self.columns >= max(LEAST_COLUMNS, k * K_OF_ITEMS_FOR_MANY)
        if added or not many or not kernels.codes_are_fast():
            return None
        return self._codes_for_many if self.codes is None else self.codes

    @cached_property
    def _codes_for_many(self) -> kernels.Codes | None:
        """Codes of the vectors if they are possible, computed at the first use."""
        vectors = self.vectors
        if vectors is None or not kernels.usable(vectors) or not vectors.isfinite().all():
            return None
        return kernels.codes_of(vectors)

    @property
    def rows(self) -> int:
        """Number of states to score at once, so that memory is bounded."""
        # A model that is not factored may need a vector for each score.
        cells = CELLS if self.vectors is not None else CELLS // 16
        return max(1, cells // max(1, self.columns))

    def columns_of(self, pairs: Pairs) -> Pairs:
        """Pairs of a row and a column from pairs of a row and an item. Items without a column are left out."""
        rows, items = pairs
        there, columns = self._places(items)
        return rows[there], columns

    def added_columns(self, added: Added) -> Added:
        """The same as :meth:`columns_of`, with the numbers to add."""
        rows, items, values = added
        there, columns = self._places(items)
        return rows[there], columns, values[there]

    def _places(self, items: np.ndarray) -> tuple[np.ndarray | slice, np.ndarray]:
        """Which of the items have a column, and their columns ``int64``."""
        if self.items is None:
            return slice(None), items.astype(np.int64, copy=False)
        if len(self.items) == 0:
            return slice(0), items[:0].astype(np.int64)
        place = np.searchsorted(self.items, items)
        place[place == len(self.items)] = 0
        there = self.items[place] == items
        return there, place[there]

    def items_of(self, columns: np.ndarray) -> np.ndarray:
        """The items of columns, ``int64`` of any shape; 0 for column -1."""
        if self.items is None:
            return np.maximum(columns, 0)
        if len(self.items) == 0:
            return np.zeros_like(columns)
        return np.where(columns >= 0, self.items[columns], 0)

    def score(self, states: Tensor, memory: Tensor) -> Tensor:
        """Scores ``[R, C]``, which the caller may overwrite. A factored model writes them to ``memory[>= R * C]``."""
        if self.vectors is not None:
            out = memory[: len(states) * self.columns].view(len(states), self.columns)
            return torch.mm(at_least_float32(states), self.vectors.T, out=out)
        scores = self.model.score(states) if self._items is None else self.model.score(states, self._items)
        scores = at_least_float32(scores)
        return scores.clone() if self.offsets is None else scores + self.offsets


def _offsets(model: Model, items: Tensor | None) -> Tensor | None:
    """The numbers that the model's addition adds to the scores of these items whatever the history, or None."""
    if model.addition is None or model.addition.weight == 0:
        return None
    recent = model.addition.transitions.recent_scores()
    if recent is None:
        return None
    recent = recent.to(device_of(model))  # the counts stay on the CPU
    return model.addition.weight * (recent if items is None else recent[items])


class Ranking(NamedTuple):
    """The result of :func:`rank` for R states."""

    columns: np.ndarray  # int64[R, k], best first, ties by column; -1 if there are fewer
    scores: np.ndarray  # float32[R, k]; -inf if there are fewer
    greater: np.ndarray | None  # int64[R], number of columns that score above the target; -1 if the target scores -inf
    ties: np.ndarray | None  # int64[R], number of other columns with the target's score

    @classmethod
    def empty(cls, count: int, k: int, targets: bool) -> "Ranking":
        """The result for R states before anything is found; with ranks if there are targets."""
        columns, scores = np.full((count, k), -1, dtype=np.int64), np.full((count, k), -np.inf, dtype=np.float32)
        greater, ties = (np.zeros(count, dtype=np.int64) if targets else None for _ in range(2))
        return cls(columns, scores, greater, ties)


def rank(
    catalogue: Catalogue,
    states: Tensor,
    k: int,
    *,
    left_out: Pairs | None = None,
    denied: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    added: Added | None = None,
    batch_size: int = 512,
) -> Ranking:
    """Score the catalogue for each state, and find the best columns and the ranks of targets.

    The compiled loops compute scores in tiles of states and items; torch computes them in blocks of states.

    Args:
        catalogue: items to score.
        states: hidden states ``[R, D]`` from :func:`last_states`.
        k: number of best columns to find; may be 0, or more than there are.
        left_out: pairs of a row and a column to ignore. If a target is among them, its rank has no meaning.
        denied: columns to ignore in all rows, ``int64``. The padding is always ignored.
        targets: column of each state's target, ``int64[R]``. None if ranks are not needed.
        added: rows and columns, and numbers to add to their scores, as from :meth:`Catalogue.added_columns`. What is
            ignored stays ignored.
        batch_size: highest number of states that torch scores at once.

    Raises:
        InputError: a score is not a number.
    """
    denied = np.empty(0, dtype=np.int64) if denied is None else denied
    if catalogue.items is None:
        denied = np.append(denied, 0)
    count = len(states)
    ranking = Ranking.empty(count, k, targets is not None)
    if count == 0 or catalogue.columns == 0:
        return ranking
    vectors = catalogue.vectors
    codes = catalogue.codes_for(count, k, added is not None) if targets is None else None
    many = targets is not None or count >= FEW or codes is not None
    if vectors is not None and many and kernels.usable(states, vectors):
        _rank_compiled(vectors, codes, states, left_out, denied, targets, added, ranking)
        return ranking
    rows = min(batch_size, catalogue.rows, count)
    kind = states.dtype if vectors is None else vectors.dtype
    memory = torch.empty(0 if vectors is None else rows * catalogue.columns, dtype=kind, device=catalogue.device)
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        into = Ranking(*(None if found is None else found[part] for found in ranking))  # type: ignore[arg-type]
        pairs = more = None
        if left_out is not None:
            own = of_rows(left_out[0], start, rows)
            pairs = left_out[0][own] - start, left_out[1][own]
        if added is not None:
            own = of_rows(added[0], start, rows)
            more = added[0][own] - start, added[1][own], added[2][own]
        wanted = None if targets is None else targets[part]
        _rank_block(catalogue.score(states[part], memory), pairs, denied, wanted, more, into)
    return ranking


def of_rows(rows: np.ndarray, start: int, count: int) -> slice:
    """Where the pairs of ``count`` rows from ``start`` on are, given the sorted rows of all pairs."""
    return slice(*np.searchsorted(rows, [start, start + count]).tolist())


def _rank_compiled(
    vectors: Tensor, codes: kernels.Codes | None, states: Tensor, left_out: Pairs | None, denied: np.ndarray,
    targets: np.ndarray | None, added: Added | None, into: Ranking,
) -> None:  # fmt: skip
    skipped = torch.zeros(len(vectors), dtype=torch.bool)
    skipped[torch.from_numpy(denied)] = True
    pairs = None if left_out is None else (torch.from_numpy(left_out[0]), torch.from_numpy(left_out[1]))
    wanted = None if targets is None else torch.from_numpy(targets)
    more = None
    if added is not None:
        more = torch.from_numpy(added[0]), torch.from_numpy(added[1]), torch.from_numpy(added[2])
    k = min(into.columns.shape[1], len(vectors))
    if codes is not None:
        likely = kernels.rank_by_codes(states, vectors, codes, k, pairs, skipped, more)
        require(likely.numbers)
        into.columns[:], into.scores[:] = likely.columns.numpy(), likely.scores.numpy()
        return
    found = kernels.rank(states, vectors, k, pairs, skipped, wanted, more)
    require(found.numbers)
    width = found.columns.shape[1]
    into.columns[:, :width], into.scores[:, :width] = found.columns.numpy(), found.scores.numpy()
    if found.greater is not None and found.ties is not None and into.greater is not None and into.ties is not None:
        into.greater[:], into.ties[:] = found.greater.numpy(), found.ties.numpy() - 1


def _rank_block(
    scores: Tensor, left_out: Pairs | None, denied: np.ndarray, targets: np.ndarray | None, added: Added | None,
    into: Ranking,
) -> None:  # fmt: skip
    """Rank ``scores[R, C]``, which are overwritten."""
    device = scores.device
    if added is not None:
        flat = torch.from_numpy(added[0] * scores.shape[1] + added[1]).to(device)
        scores.view(-1).index_add_(0, flat, torch.from_numpy(added[2]).to(device, scores.dtype))
    # The target's score must come from the same matrix: computed separately, it could differ in the last bit.
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
    # An item with score -inf is never recommended, so as a target it is a miss, not a tie with the ignored items.
    never = (target[:, 0] == -torch.inf).cpu().numpy()
    into.greater[:], into.ties[:] = np.where(never, -1, greater), np.where(never, 0, ties)


def _count(scores: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The number of scores above ``target[R, 1]`` and, besides the target itself, equal to it, in each row."""
    if scores.device.type != "cpu":
        above, equal = (scores > target).sum(dim=1), (scores == target).sum(dim=1)
        return above.cpu().numpy(), equal.cpu().numpy() - 1
    # A single row stays in the processor's cache, and numpy counts booleans without widening them. This takes a tenth
    # of torch's time for all rows.
    greater = np.empty(len(scores), dtype=np.int64)
    ties = np.empty(len(scores), dtype=np.int64)
    values, all_scores = target[:, 0].numpy(), scores.numpy()
    for row, value in enumerate(values):
        greater[row] = np.count_nonzero(all_scores[row] > value)
        ties[row] = np.count_nonzero(all_scores[row] == value) - 1
    return greater, ties


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision converted to float32; wider types unchanged."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
