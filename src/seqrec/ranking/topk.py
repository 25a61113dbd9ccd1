"""The best k items after each history, the most popular ones, and those nearest to an item."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.data.split import Histories
from seqrec.errors import InputError, check_whole
from seqrec.models.base import Model
from seqrec.ranking import scoring
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

    Items of equal score come in the order of their indices, the lower first.

    Args:
        model: any model; its training flag is as before afterwards.
        histories: M histories. After an empty one, which no model can score, nothing is recommended.
        k: items per history; may be more than the catalogue has.
        max_length: items of a history that the model sees; by default its ``config.max_length``.
        keep_seen: recommend items of the history too. Otherwise none of the whole history is
            recommended, whether or not the model sees all of it, and nothing that the user met in interactions
            that the filters of :class:`PrepareConfig` dropped.
        allow: item indices; only these are recommended. Zeros (unknown ids) are ignored.
        deny: item indices; these are not recommended.
        batch_size: users encoded at once, and scored at once where the compiled loops don't run.

    Returns:
        ``items int64[M, k]`` and ``scores float32[M, k]``; 0 and -inf where no candidate is left.

    Raises:
        InputError: a score is not a number.
        ValueError: k below 1, or item indices outside the catalogue.
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
    """What :func:`best` gives, of a catalogue that was made once; in inference mode.

    Args:
        catalogue: the items that are recommended, and the model that scores them.
        histories: as for :func:`best`, and so are the arguments that are not named here.
        k: as for :func:`best`.
        denied: sorted items that are not recommended; of a catalogue of all items.
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
        left_out = None if keep_seen else catalogue.columns_of(met(part))
        found = rank(catalogue, states, k, left_out=left_out, denied=denied, batch_size=batch_size)
        items[rows], scores[rows] = catalogue.items_of(found.columns), found.scores
    return items, scores


def by_popularity(counts: np.ndarray) -> np.ndarray:
    """All items, ``int64[I]``, those with the most interactions first; ``counts int64[I + 1]`` says how many."""
    return np.argsort(-counts[1:], kind="stable") + 1


def most_popular(
    order: np.ndarray, counts: np.ndarray, k: int, allowed: np.ndarray | None, denied: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first k items of :func:`by_popularity` that the filters leave, for people of whom nothing is known.

    Args:
        order: of :func:`by_popularity`.
        counts: as there.
        k: how many.
        allowed: of :func:`candidates`, and so is ``denied``.
        denied: sorted items.

    Returns:
        ``items int64[k]`` and ``scores float32[k]``, which are the counts; 0 and -inf where fewer are left.
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
    """Output vectors of length 1, ``float32[I + 1, D]``; without a bias, which says nothing of likeness."""
    vectors = model.item_vectors().float()
    return F.normalize(vectors[:, :-1] if model.BIAS_COLUMN else vectors, dim=1)


def nearest(catalogue: Catalogue, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other items nearest to each of ``items int64[M]`` by the cosine of their vectors, nearest first.

    Args:
        catalogue: of all items, with the vectors of :func:`unit_vectors`.
        items: indices.
        k: neighbours per item.

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


def met(histories: Histories) -> Pairs:
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


def check_k(k: int, most: int) -> None:
    """Raise an InputError where k is no whole number from 1 to ``most``."""
    check_whole("k", k, least=1)
    if k > most:
        raise InputError(f"k is {k}, more than there are items to choose from ({most}); give at most {most}")


def candidates(
    num_items: int, allow: np.ndarray | None, deny: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Sorted allowed items or None for all, and the sorted denied ones that are still to be left out."""
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
