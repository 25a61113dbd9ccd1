"""Score histories, filter, best k. Memory is bounded by blocks of users and of the catalogue."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.split import Histories, all_histories
from seqrec.errors import InputError, check_whole
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.ranking import scoring
from seqrec.ranking.scoring import Scorer, evaluation_mode, last_states, mask, require, require_numbers, seen_columns


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
            recommended, whether or not the model sees all of it, and nothing that the user met in interactions
            that the filters of :class:`PrepareConfig` dropped.
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
    with evaluation_mode(model):
        scorer = Scorer(model, candidates)
        for start in range(0, len(scorable), scoring.USERS_AT_ONCE):
            rows = scorable[start : start + scoring.USERS_AT_ONCE]
            states = last_states(model, histories.take(rows), max_length=max_length, batch_size=batch_size)
            if scorer.compiled(states):
                seen = None if keep_seen else met(histories.take(rows))
                items[rows], scores[rows] = _best_at_once(scorer, states, k, denied, seen)
                continue
            for first in range(0, len(rows), batch_size):
                block = rows[first : first + batch_size]
                seen = None if keep_seen else met(histories.take(block))
                found, values = _best_of_catalogue(scorer, states[first : first + batch_size], k, denied, seen)
                items[block] = found.cpu().numpy()
                scores[block] = values.float().cpu().numpy()
    return items, scores


def ranked(
    model: Model,
    histories: Histories,
    k: int,
    popular: tuple[np.ndarray, np.ndarray] | None = None,
    size: int | None = None,
    **filters: Any,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """What :func:`best` finds as the rows of a table, without the places that nothing is left for.

    Whatever the size of the blocks, the same people are encoded and scored together: a product of matrices of another
    shape may have other last bits.

    Args:
        model: as for :func:`best`.
        histories: as for :func:`best`.
        k: as for :func:`best`.
        popular: of :func:`most_popular`, which goes to those with an empty history.
        size: histories per block; all in one without it.
        filters: keywords of :func:`best`.

    Yields:
        For each block ``rows int64[R]`` of its histories, ``items int64[R]``, ``scores float32[R]`` and
        ``ranks int64[R]`` from 1, by row and rank. There is one block at least.
    """
    size = size or max(len(histories), 1)
    items, scores = np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
    done = 0
    for start in range(0, max(len(histories), 1), size):
        parts = [(items, scores)]
        while done < min(start + size, len(histories)):
            group = histories.take(slice(done, done + scoring.USERS_AT_ONCE))
            parts.append(best(model, group, k, **filters))
            if popular is not None:
                empty = group.lengths == 0
                parts[-1][0][empty], parts[-1][1][empty] = popular
            done += len(group)
        items, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        there = items[:size] > 0
        rows, places = np.nonzero(there)
        yield rows, items[:size][there], scores[:size][there], places + 1
        items, scores = items[size:], scores[size:]


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
        for rows in torch.from_numpy(items).split(max(scoring.CELLS // len(vectors), 1)):
            cosines = vectors[rows] @ vectors.T
            cosines[:, 0] = -torch.inf
            cosines[torch.arange(len(rows)), rows] = -torch.inf
            top = cosines.topk(k, dim=1)
            require_numbers(top.values[:, 0])  # NaN sorts first
            parts.append((top.indices.numpy(), top.values.numpy()))
    found, values = zip(*parts, strict=True)
    return np.concatenate(found), np.concatenate(values)


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


def met(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    """What the people of M histories have met, as rows in rising order and items: two ``int64``.

    That is all of each history and, of users of the dataset, what its filters dropped.
    """
    rows, items = histories.flat()
    data = histories.dataset
    if data.met_items is None or data.met_offsets is None:
        return rows, items
    users = np.maximum(histories.users, 0)
    starts = data.met_offsets[users]
    lengths = np.where(histories.users >= 0, data.met_offsets[users + 1] - starts, 0)
    more = np.repeat(np.arange(len(histories)), lengths)
    source = np.arange(len(more)) + (starts - (np.cumsum(lengths) - lengths))[more]
    rows, items = np.concatenate([rows, more]), np.concatenate([items, data.met_items[source].astype(np.int64)])
    order = np.argsort(rows, kind="stable")
    return rows[order], items[order]


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
    check_whole("k", k, least=1)
    if k > most:
        raise InputError(f"k is {k}, more than there are items to choose from ({most}); give at most {most}")


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
