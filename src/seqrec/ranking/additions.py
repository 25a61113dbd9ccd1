"""Scores with transition counts added to those of a model, for some of the items after each history."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqrec.data.split import Histories
from seqrec.models.transitions import Transitions
from seqrec.ranking.scoring import Added, Catalogue, Pairs, Ranking, last_states, of_rows, rank

ROWS = 2048  # histories whose counts are held at once; after each, some thousand items have any


@dataclass(frozen=True, eq=False)
class Addition:
    """Transition counts to add to the scores of a model: ``logits + weight * counts``.

    Args:
        transitions: the counts, in evaluation mode.
        weight: factor of the counts.
    """

    transitions: Transitions
    weight: float

    def after(self, histories: Histories) -> Tensor:
        """What the counts see of each of M histories, ``int64[M, R]``."""
        return last_states(self.transitions, histories)

    def score(self, seen: Tensor, items: Tensor) -> Tensor:
        """The numbers to add to the scores of candidates ``int64[M, C]``, given the result of :meth:`after`."""
        return self.weight * self.transitions.looked_up(seen, items)


def rank_after(
    catalogue: Catalogue,
    states: Tensor,
    k: int,
    addition: Addition | None = None,
    seen: Tensor | None = None,
    *,
    left_out: Pairs | None = None,
    denied: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    batch_size: int = 512,
) -> Ranking:
    """As :func:`rank`, with an addition to the scores.

    Transitions alone are ranked as an addition to popularity, so that no score is computed for the many items that
    never came after an item of the history.

    Args:
        catalogue: as for :func:`rank`.
        states: as for :func:`rank`.
        k: as for :func:`rank`.
        addition: counts to add.
        seen: result of :meth:`Addition.after` for the histories of ``states``.
        left_out: as for :func:`rank`.
        denied: as for :func:`rank`.
        targets: as for :func:`rank`.
        batch_size: as for :func:`rank`.
    """
    if isinstance(catalogue.model, Transitions) and addition is None:
        addition, seen = Addition(catalogue.model, 1.0), states
        prior = catalogue.model.prior()[:, None]
        items = slice(None) if catalogue.items is None else torch.from_numpy(catalogue.items)
        catalogue = Catalogue(catalogue.model, catalogue.items, prior[items])
        states = torch.ones(len(seen), 1, device=seen.device)
    if addition is None:
        return rank(catalogue, states, k, left_out=left_out, denied=denied, targets=targets, batch_size=batch_size)
    assert seen is not None
    parts = []
    for start in range(0, max(len(states), 1), ROWS):
        part = slice(start, start + ROWS)
        pairs = None
        if left_out is not None:
            own = of_rows(left_out[0], start, ROWS)
            pairs = left_out[0][own] - start, left_out[1][own]
        added = catalogue.added_columns(_added(addition, seen[part]))
        wanted = None if targets is None else targets[part]
        ways = {"left_out": pairs, "denied": denied, "targets": wanted, "added": added, "batch_size": batch_size}
        parts.append(rank(catalogue, states[part], k, **ways))  # type: ignore[arg-type]
    joined = {
        field: None if getattr(parts[0], field) is None else np.concatenate([getattr(part, field) for part in parts])
        for field in Ranking._fields
    }
    return Ranking(**joined)  # type: ignore[arg-type]


def _added(addition: Addition, seen: Tensor) -> Added:
    rows = addition.transitions.rows(seen)
    owner = np.repeat(np.arange(len(seen)), np.diff(rows.offsets))
    return owner, rows.columns.astype(np.int64, copy=False), np.float32(addition.weight) * rows.values
