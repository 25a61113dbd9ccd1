"""Ranking with transition counts added to the scores of a model, for the few items that have any."""

import copy

import numpy as np
from torch import Tensor

from seqrec import kernels
from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.models.sparse import SparseModel
from seqrec.models.transitions import Addition, Transitions, TransitionsConfig
from seqrec.ranking.scoring import Catalogue, Pairs, Ranking, of_rows, rank
from seqrec.ranking.sparse import rank_sparse

ROWS = 2048  # histories whose counts are held at once; after each, some thousand items have any


def counted_addition(constants: TransitionsConfig, weight: float, histories: Histories) -> Addition:
    """Transition counts of some histories to add with a weight. Of those with weight 0 no table is made."""
    num_items = histories.dataset.num_items
    transitions = Transitions(constants, num_items)
    transitions.count(histories, None if weight else np.zeros(num_items + 1, dtype=bool))
    return Addition(transitions.eval(), weight)


def recounted(model: Model, histories: Histories | None, counts: Transitions | None = None) -> Model:
    """The same model with its addition counted on other histories, or without an addition. They share their weights.

    Args:
        model: any model.
        histories: histories to count. None for no addition.
        counts: the counts of these histories with the same constants, if there are any already.
    """
    other = copy.copy(model)
    other.addition = None
    if histories is not None and model.addition is not None and counts is not None:
        other.addition = Addition(counts.eval(), model.addition.weight)
    elif histories is not None and model.addition is not None:
        other.addition = counted_addition(model.addition.transitions.config, model.addition.weight, histories)
    return other


def rank_after(
    catalogue: Catalogue,
    histories: Histories,
    states: Tensor,
    k: int,
    *,
    left_out: Pairs | None = None,
    denied: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    batch_size: int = 512,
) -> Ranking:
    """As :func:`rank`, with the model's addition, if it has one. ``states`` are those after ``histories``."""
    addition = catalogue.model.addition
    if addition is None or addition.weight == 0:
        if isinstance(catalogue.model, SparseModel):
            return rank_sparse(catalogue, states, k, left_out=left_out, denied=denied, targets=targets)
        return rank(catalogue, states, k, left_out=left_out, denied=denied, targets=targets, batch_size=batch_size)
    states = catalogue.with_constant(states)
    parts = []
    for start in range(0, max(len(states), 1), ROWS):
        part = slice(start, start + ROWS)
        pairs = None
        if left_out is not None:
            own = of_rows(left_out[0], start, ROWS)
            pairs = left_out[0][own] - start, left_out[1][own]
        rows = addition.transitions.rows(addition.transitions.newest(histories.take(part)))
        values = np.float32(addition.weight) * rows.values
        parts.append(
            rank(
                catalogue, states[part], k, left_out=pairs, denied=denied, batch_size=batch_size,
                targets=None if targets is None else targets[part],
                added=catalogue.added_columns((rows.owners, rows.columns.astype(np.int64, copy=False), values)),
            )
        )  # fmt: skip
    found = (None if field[0] is None else np.concatenate(field) for field in zip(*parts, strict=True))
    return Ranking(*found)  # type: ignore[arg-type]


def score_after(
    model: Model, histories: Histories, states: Tensor, items: Tensor, vectors: Tensor | None = None
) -> Tensor:
    """Scores of each history's own candidates ``int64[R, C]``, with the model's addition: ``float32[R, C]``.

    ``vectors`` are those of all items if they are known, ``float32[I + 1, D]``: the same scores take less time then.
    """
    if vectors is None or not kernels.usable(states, vectors):
        scores = model.score(states, items)
    else:
        scores = kernels.score_items(states, vectors, items)
    if model.addition is None or model.addition.weight == 0:
        return scores
    transitions = model.addition.transitions
    counts, recent = transitions.looked_up(transitions.newest(histories), items), transitions.recent_scores()
    return scores + model.addition.weight * (counts if recent is None else counts + recent.to(items.device)[items])
