"""The best k items after each history, the most popular items, and the items nearest to an item."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.data.split import Histories
from seqrec.errors import InputError, check_whole
from seqrec.models.base import Model
from seqrec.ranking import scoring
from seqrec.ranking.additions import rank_after
from seqrec.ranking.scoring import Catalogue, Pairs, evaluation_mode, last_states, rank


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

    Items with equal scores are in the order of their indices, lowest first.

    Args:
        model: any model. Its training flag is restored afterwards.
        histories: M histories. Nothing is recommended after an empty one, which no model can score.
        k: number of items per history; may be larger than the catalogue.
        max_length: number of items of a history that the model sees. By default its ``max_length``.
        keep_seen: whether to recommend items of the history too. Otherwise no item of the complete history is
            recommended, even if the model sees only a part of it, and no item of the user's interactions that the
            filters of :class:`PrepareConfig` dropped.
        allow: indices of the only items to recommend. Zeros (unknown ids) are ignored.
        deny: indices of items not to recommend.
        batch_size: number of users encoded at once, and scored at once if the compiled loops are not available.

    Returns:
        ``items int64[M, k]`` and ``scores float32[M, k]``; 0 and -inf if fewer candidates are left.

    Raises:
        InputError: a score is not a number.
        ValueError: k is below 1, or an item index is outside the catalogue.
    """
    allowed, denied = candidates(model.num_items, allow, deny)
    ways = {"max_length": max_length, "keep_seen": keep_seen, "batch_size": batch_size}
    with evaluation_mode(model):
        return best_of(Catalogue(model, allowed), histories, k, denied, **ways)  # type: ignore[arg-type]


def best_of(
    catalogue: Catalogue,
    histories: Histories,
    k: int,
    denied: np.ndarray | None = None,
    *,
    max_length: int | None = None,
    keep_seen: bool = False,
    batch_size: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
    """The same as :func:`best`, with an existing catalogue. Call it in inference mode.

    Args:
        catalogue: items to recommend, and the model that scores them.
        histories: as for :func:`best`.
        k: as for :func:`best`.
        denied: sorted items not to recommend; only for a catalogue of all items.
        max_length: as for :func:`best`.
        keep_seen: as for :func:`best`.
        batch_size: as for :func:`best`.
    """
    if k < 1:
        raise ValueError(f"k is {k}; give 1 or more")
    items = np.zeros((len(histories), k), dtype=np.int64)
    scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
    scorable = np.flatnonzero(histories.lengths > 0)
    for start in range(0, len(scorable), scoring.USERS_AT_ONCE):
        rows = scorable[start : start + scoring.USERS_AT_ONCE]
        part = histories.take(rows)
        states = last_states(catalogue.model, part, max_length=max_length, batch_size=batch_size)
        left_out = None if keep_seen else catalogue.columns_of(seen_items(part))
        ways = {"left_out": left_out, "denied": denied, "batch_size": batch_size}
        found = rank_after(catalogue, part.newest(max_length), states, k, **ways)  # type: ignore[arg-type]
        items[rows], scores[rows] = catalogue.items_of(found.columns), found.scores
    return items, scores


def by_popularity(counts: np.ndarray) -> np.ndarray:
    """All items ``int64[I]``, by number of interactions ``counts int64[I + 1]``, highest first."""
    return np.argsort(-counts[1:], kind="stable") + 1


def most_popular(
    order: np.ndarray, counts: np.ndarray, k: int, allowed: np.ndarray | None, denied: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k most popular items that the filters leave, for people without a known history.

    Args:
        order: result of :func:`by_popularity`.
        counts: number of interactions of each item, ``int64[I + 1]``.
        k: number of items.
        allowed: allowed items from :func:`candidates`.
        denied: denied items from :func:`candidates`.

    Returns:
        ``items int64[k]``, and their counts as ``scores float32[k]``; 0 and -inf if fewer items are left.
    """
    if allowed is not None:
        left = allowed[np.argsort(-counts[allowed], kind="stable")][:k]
    else:
        first = order[: k + len(denied)]
        left = first[~np.isin(first, denied)][:k]
    items, scores = np.zeros(k, dtype=np.int64), np.full(k, -np.inf, dtype=np.float32)
    items[: len(left)], scores[: len(left)] = left, counts[left]
    return items, scores


def unit_vectors(model: Model) -> Tensor:
    """Output vectors normalised to length 1, ``float32[I + 1, D]``, without a bias column.

    The product of two of an ensemble is the mean of its members' cosines.
    """
    parts = []
    for part in model.parts:
        vectors = part.item_vectors().float()
        parts.append(F.normalize(vectors[:, :-1] if part.BIAS_COLUMN else vectors, dim=1))
    return torch.cat(parts, dim=1) / len(parts) ** 0.5


def nearest(catalogue: Catalogue, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other items nearest to each item by the cosine of their vectors, nearest first.

    Args:
        catalogue: catalogue of all items, with the vectors of :func:`unit_vectors`.
        items: item indices, ``int64[M]``.
        k: number of neighbours per item.

    Returns:
        ``items int64[M, k]`` and ``cosines float32[M, k]``.
    """
    assert catalogue.vectors is not None
    parts = []
    with torch.inference_mode():
        for start in range(0, len(items), scoring.USERS_AT_ONCE):
            part = items[start : start + scoring.USERS_AT_ONCE].astype(np.int64)
            states = catalogue.vectors[torch.from_numpy(part).to(catalogue.device)]
            parts.append(rank(catalogue, states, k, left_out=(np.arange(len(part)), part)))
    return np.concatenate([part.columns for part in parts]), np.concatenate([part.scores for part in parts])


def seen_items(histories: Histories) -> Pairs:
    """The items that the people of M histories have seen, as sorted rows and items, two ``int64[P]``.

    These are all items of each history and, for users of the dataset, those that its filters dropped.
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


def check_k(k: int, most: int) -> None:
    """Raise an InputError unless k is a whole number from 1 to ``most``."""
    check_whole("k", k, least=1)
    if k > most:
        raise InputError(f"k is {k}, but there are only {most} items to choose from; give at most {most}")


def check_keep_seen(keep_seen: bool | None) -> None:
    """Raise an InputError unless it is True, False or None: the text "false" would count as true."""
    if keep_seen not in (None, True, False):
        raise InputError(f"keep_seen is {keep_seen!r}; give True or False")


def candidates(
    num_items: int, allow: np.ndarray | None, deny: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Sorted allowed items (None for all), and sorted denied items that the allowed ones do not already exclude."""
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
