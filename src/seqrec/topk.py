"""Score histories, filter, best k. Memory is bounded by blocks of users and of the catalogue."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import histories_of, pack
from seqrec.data.prepare import Dataset
from seqrec.data.split import Histories, all_histories
from seqrec.errors import InputError
from seqrec.models import MODELS
from seqrec.models.base import Model

CELLS = 2**24  # scores held at once: 64 MiB
USERS_AT_ONCE = 8192  # histories encoded before their items are scored
_ATTENTION_CELLS = 2**24  # users times squared length in a batch, which is what attention holds


def best(
    model: Model,
    histories: Histories,
    k: int,
    *,
    max_length: int | None = None,
    keep_seen: bool = False,
    allow: np.ndarray | None = None,
    deny: np.ndarray | None = None,
    batch_size: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items that the model scores highest after each history, best first.

    Items of equal score come in the order of their indices, the lower first. The catalogue is scored in
    blocks, of which only the best so far are kept.

    Args:
        model: any model; its training flag is as before afterwards.
        histories: M histories. After an empty one, which no model can score, nothing is recommended.
        k: items a history; may be more than the catalogue has.
        max_length: items of a history that the model sees; its ``config.max_length`` without it.
        keep_seen: recommend items of the history too. Otherwise none of the whole history is
            recommended, whether or not the model sees all of it.
        allow: item indices; only these are recommended. Zeros (unknown ids) are ignored.
        deny: item indices; these are not recommended.
        batch_size: users encoded at once, and scored where the compiled loops don't run.

    Returns:
        ``items int64[M, k]`` and ``scores float32[M, k]``; 0 and -inf where no candidate is left.

    Raises:
        InputError: scores that are not numbers.
        ValueError: k below 1, or item indices outside the catalogue.
    """
    if k < 1:
        raise ValueError(f"k is {k}; give 1 or more")
    candidates, denied = _candidates(model.num_items, allow, deny)
    items = np.zeros((len(histories), k), dtype=np.int64)
    scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
    scorable = np.flatnonzero(histories.lengths > 0)
    with scoring(model):
        scorer = Scorer(model, candidates)
        for start in range(0, len(scorable), USERS_AT_ONCE):
            rows = scorable[start : start + USERS_AT_ONCE]
            states = last_states(model, histories.take(rows), max_length=max_length, batch_size=batch_size)
            if scorer.compiled(states):
                seen = None if keep_seen else histories.take(rows).flat()
                items[rows], scores[rows] = _best_at_once(scorer, states, k, denied, seen)
                continue
            for first in range(0, len(rows), batch_size):
                block = rows[first : first + batch_size]
                seen = None if keep_seen else histories.take(block).flat()
                found, values = _best_of_catalogue(scorer, states[first : first + batch_size], k, denied, seen)
                items[block] = found.cpu().numpy()
                scores[block] = values.float().cpu().numpy()
    return items, scores


def ranked(
    model: Model, histories: Histories, k: int, popular: tuple[np.ndarray, np.ndarray] | None = None, **filters: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What :func:`best` finds as the rows of a table, without the places that nothing is left for.

    Args:
        model: as for :func:`best`.
        histories: as for :func:`best`.
        k: as for :func:`best`.
        popular: of :func:`most_popular`, which goes to those with an empty history.
        filters: keywords of :func:`best`.

    Returns:
        ``rows int64[R]`` of the histories, ``items int64[R]``, ``scores float32[R]`` and ``ranks int64[R]``
        from 1, by row and rank.
    """
    items, scores = best(model, histories, k, **filters)
    if popular is not None:
        empty = histories.lengths == 0
        items[empty], scores[empty] = popular
    there = items > 0
    rows, places = np.nonzero(there)
    return rows, items[there], scores[there], places + 1


def most_popular(dataset: Dataset, k: int, **filters: Any) -> tuple[np.ndarray, np.ndarray]:
    """The one ranking for all of whom nothing is known: ``items int64[1, k]`` and ``scores float32[1, k]``."""
    kind = MODELS["popularity"]
    model = kind(kind.Config(), dataset.num_items, dataset.num_users)
    model.count(all_histories(dataset))
    return best(model, histories_of(dataset, [np.array([1])]), k, **filters | {"keep_seen": True})


def nearest(model: Model, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other items nearest to each of ``items int64[M]`` by the cosine of their vectors, nearest first.

    A bias, which says nothing of likeness, is left out.

    Returns:
        ``items int64[M, k]`` and ``cosines float32[M, k]``.
    """
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode():
        vectors = model.item_vectors().float()
        vectors = F.normalize(vectors[:, :-1] if model.BIAS_COLUMN else vectors, dim=1)
        for rows in torch.from_numpy(items).split(max(CELLS // len(vectors), 1)):
            cosines = vectors[rows] @ vectors.T
            cosines[:, 0] = -torch.inf
            cosines[torch.arange(len(rows)), rows] = -torch.inf
            top = cosines.topk(k, dim=1)
            require_numbers(top.values[:, 0])  # NaN sorts first
            parts.append((top.indices.numpy(), top.values.numpy()))
    found, values = zip(*parts, strict=True)
    return np.concatenate(found), np.concatenate(values)


@contextmanager
def scoring(model: Model) -> Iterator[None]:
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
        rows = order[start : start + max(1, min(batch_size, _ATTENTION_CELLS // longest**2))]
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
            self.vectors = _at_least_float32(self.vectors)
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
            states = _at_least_float32(states)
            size = len(states) * (stop - start)
            if self._memory is None or len(self._memory) < size:
                self._memory = torch.empty(size, dtype=states.dtype, device=self.device)
            memory = self._memory[:size].view(len(states), stop - start)
            return torch.mm(states, self.vectors[start:stop].T, out=memory)
        if self.candidates is None and stop - start == self.columns:
            return _at_least_float32(self.model.score(states)).clone()
        if self.candidates is None:
            items = torch.arange(start, stop, device=self.device)
        else:
            items = self.candidates[start:stop]
        return _at_least_float32(self.model.score(states, items)).clone()


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row of ``scores[R, C]``: ``columns int64[R, k]``, ``values[R, k]``.

    Ordered by value, then by column; -1 and -inf where there are fewer than k above -inf.

    Raises:
        InputError: a score is NaN.
    """
    rows, width = scores.shape
    columns = torch.full((rows, k), -1, dtype=torch.int64, device=scores.device)
    values = torch.full((rows, k), -torch.inf, dtype=scores.dtype, device=scores.device)
    if rows == 0 or width == 0:
        return columns, values
    k = min(k, width)
    top, place = torch.topk(scores, min(k + 1, width), dim=1)
    require_numbers(top[:, 0])  # NaN sorts first
    if k < width:
        place = _settle_ties(scores, top, place)
        top = top[:, :k]
    place, order = place.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    values[:, :k] = top
    columns[:, :k] = torch.where(top > -torch.inf, place.gather(1, order), -1)
    return columns, values


def _settle_ties(scores: Tensor, top: Tensor, place: Tensor) -> Tensor:
    """The columns of the first k of k + 1 highest, the lowest of those that equal the k-th value.

    ``torch.topk`` takes any of them. Rows where none is left outside need nothing.
    """
    k = top.shape[1] - 1
    cut = top[:, k - 1]
    tied = torch.nonzero((cut == top[:, k]) & (cut > -torch.inf))[:, 0].tolist()
    place = place[:, :k]
    if not tied:
        return place
    above = (top[:, :k] > cut[:, None]).sum(dim=1).tolist()
    # A few rows as a rule. All of them for a model that scores by counts, where numpy is much faster.
    all_scores, cuts, settled = scores.cpu().numpy(), cut.cpu().numpy(), place.cpu().numpy()
    for row in tied:
        settled[row, above[row] :] = np.flatnonzero(all_scores[row] == cuts[row])[: k - above[row]]
    return torch.from_numpy(settled).to(place.device)


def _best_at_once(
    scorer: Scorer, states: Tensor, k: int, denied: np.ndarray, seen: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`_best_of_catalogue` gives, from the compiled loops; also for many users."""
    assert scorer.vectors is not None
    skipped = torch.zeros(scorer.columns, dtype=torch.bool)
    skipped[torch.from_numpy(denied)] = True
    skipped[0] |= scorer.candidates is None  # the padding
    rows, columns = seen_columns(scorer, seen) if seen is not None else (np.empty(0, np.int64),) * 2
    pairs = torch.from_numpy(rows), torch.from_numpy(columns)
    found = kernels.rank(states, scorer.vectors, min(k, scorer.columns), pairs, skipped)
    require(found.numbers)
    items, scores = np.zeros((len(states), k), dtype=np.int64), np.full((len(states), k), -np.inf, dtype=np.float32)
    best = found.columns if scorer.candidates is None else scorer.candidates[found.columns.clamp(min=0)]
    items[:, : best.shape[1]] = torch.where(found.columns >= 0, best, 0).numpy()
    scores[:, : best.shape[1]] = found.scores.numpy()
    return items, scores


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


def _best_of_catalogue(
    scorer: Scorer,
    states: Tensor,
    k: int,
    denied: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[Tensor, Tensor]:
    """``items int64[R, k]`` and ``values[R, k]`` over all blocks of the candidates."""
    device = states.device
    items = torch.zeros(len(states), k, dtype=torch.int64, device=device)
    values: Tensor | None = None
    if seen is not None:
        rows, columns = seen_columns(scorer, seen)
        order = np.argsort(columns, kind="stable")
        seen = rows[order], columns[order]
    width = max(1, scorer.cells // max(1, len(states)))
    # Column 0 of the whole catalogue is the padding.
    for start in range(0 if scorer.candidates is not None else 1, scorer.columns, width):
        stop = min(start + width, scorer.columns)
        scores = scorer(states, start, stop)
        if seen is not None:
            low, high = np.searchsorted(seen[1], [start, stop])
            mask(scores, seen[0][low:high], seen[1][low:high] - start)
        low, high = np.searchsorted(denied, [start, stop])
        if high > low:
            scores[:, torch.from_numpy(denied[low:high] - start).to(device)] = -torch.inf
        found, high_values = largest(scores, k)
        names = scorer.candidates[found.clamp(min=0) + start] if scorer.candidates is not None else found + start
        names = torch.where(found >= 0, names, 0)
        if values is None:
            items, values = names, high_values
        else:
            # What is kept has lower indices than what comes, so a stable sort keeps the order of ties.
            values, order_of = torch.cat([values, high_values], dim=1).sort(dim=1, descending=True, stable=True)
            items = torch.cat([items, names], dim=1).gather(1, order_of)[:, :k]
            values = values[:, :k]
    if values is None:
        values = torch.full((len(states), k), -torch.inf, device=device)
    return items, values


def check_k(k: int, most: int) -> None:
    """Raise an InputError where k is no whole number from 1 to ``most``."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise InputError(f"k is {k!r}; give a whole number")
    if k < 1:
        raise InputError(f"k is {k}; give 1 or more")
    if k > most:
        raise InputError(f"k is {k}, more than there are items to choose from ({most}); give at most {most}")


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


def _candidates(
    num_items: int, allow: np.ndarray | None, deny: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Sorted allowed items or None for all, and the sorted denied ones that are still to be masked."""
    denied = _known(num_items, deny) if deny is not None else np.empty(0, dtype=np.int64)
    if allow is None:
        return None, denied
    return np.setdiff1d(_known(num_items, allow), denied), np.empty(0, dtype=np.int64)


def _known(num_items: int, items: np.ndarray) -> np.ndarray:
    known = np.unique(np.asarray(items, dtype=np.int64))
    if len(known) and (known[0] < 0 or known[-1] > num_items):
        wrong = known[0] if known[0] < 0 else known[-1]
        raise ValueError(f"item index {wrong} is not in the catalogue of 1 to {num_items}")
    return known[known > 0]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
