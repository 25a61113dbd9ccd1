"""Ranks the targets of an evaluation in blocks, each of which can be computed anywhere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from seqrec.data.dataset import Dataset
from seqrec.data.negatives import distinct_negatives_for
from seqrec.data.split import Targets
from seqrec.models.base import Model
from seqrec.ranking import scoring
from seqrec.ranking.additions import rank_after, score_after
from seqrec.ranking.dense import require_numbers
from seqrec.ranking.scoring import Catalogue, evaluation_mode, last_states

# Number of targets whose negatives are drawn with one seed. Changing it changes every sampled result.
_DRAWN_TOGETHER = 1024


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of M targets from one model, and its lists for them.

    ``unreachable`` are targets in the user's history while such items are removed, which no list can contain.
    """

    greater: np.ndarray  # int64[M]
    ties: np.ndarray  # int64[M]
    lists: np.ndarray  # int32[M, top]
    unreachable: np.ndarray  # bool[M]

    @classmethod
    def empty(cls, count: int, top: int) -> "Ranks":
        """Ranks to fill in."""
        numbers = np.zeros((2, count), np.int64)
        return cls(numbers[0], numbers[1], np.zeros((count, top), np.int32), np.zeros(count, dtype=bool))

    def put(self, rows: np.ndarray | slice, part: "Ranks") -> None:
        """Fill in these rows."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(part, field.name)


@dataclass(frozen=True, eq=False)
class Ranker:
    """Ranks blocks of targets with several models, so that the negatives of a block are drawn only once.

    Args:
        models: models to rank with.
        negatives: number of negatives per target; None ranks the complete catalogue.
        seed: seed of the negatives.
        keep_seen: whether the items of the history are ranked too.
        top: length of the lists; 0 for none.
        batch_size: number of users encoded and scored at once.
    """

    models: Sequence[Model]
    negatives: int | None
    seed: int
    keep_seen: bool
    top: int
    batch_size: int

    @cached_property
    def catalogues(self) -> list[Catalogue]:
        """The catalogue of each model, computed at the first use."""
        found = []
        for model in self.models:
            with evaluation_mode(model):
                found.append(Catalogue(model))
        return found

    @cached_property
    def vectors(self) -> list[Tensor | None]:
        """The vectors of all items of each factored model, computed at the first use; None for other models."""
        found = []
        for model in self.models:
            with evaluation_mode(model):
                found.append(model.item_vectors() if model.FACTORED else None)
        return found

    def block(self, targets: Targets, number: int) -> list[Ranks]:
        """Ranks of a block of targets from each model.

        Args:
            targets: the targets at the rows :func:`rows_of_block` of all targets.
            number: number of the block.
        """
        drawn = None
        if self.negatives is not None:
            drawn = _draw(targets, self.negatives, self.seed, number * scoring.USERS_AT_ONCE // _DRAWN_TOGETHER)
        found = []
        for index, model in enumerate(self.models):
            with evaluation_mode(model):
                states = last_states(model, targets.histories, batch_size=self.batch_size)
                if drawn is not None:
                    # If there are more items than candidates, the vectors of all cost more than they save.
                    vectors = self.vectors[index] if drawn.size >= model.num_items else None
                    found.append(_rank_sampled(model, states, targets, drawn, self.batch_size, vectors))
                else:
                    catalogue, ways = self.catalogues[index], (self.keep_seen, self.top, self.batch_size)
                    found.append(rank_full(catalogue, states, targets, *ways))
        return found


#: A function that ranks all blocks of targets, in any order. It yields rows, and the ranks of these rows per model.
Blocks = Callable[[Ranker, Targets], Iterator[tuple[np.ndarray | slice, list[Ranks]]]]


def rows_of_block(number: int) -> slice:
    """The rows of a block. The last bits of a score may depend on which targets are encoded and scored together."""
    return slice(number * scoring.USERS_AT_ONCE, (number + 1) * scoring.USERS_AT_ONCE)


def number_of_blocks(targets: Targets) -> int:
    """Number of blocks of the targets."""
    return -(-len(targets) // scoring.USERS_AT_ONCE)


def in_turn(ranker: Ranker, targets: Targets) -> Iterator[tuple[slice, list[Ranks]]]:
    """Rank one block after another in this process."""
    for number in range(number_of_blocks(targets)):
        rows = rows_of_block(number)
        yield rows, ranker.block(targets.take(rows), number)


def _draw(targets: Targets, negatives: int, seed: int, first: int) -> np.ndarray:
    """Negatives ``int64[M, negatives]``, 0 if fewer items are left for the user. Each 1024 targets have a seed."""
    data = targets.histories.dataset
    users = np.asarray(targets.histories.users, dtype=np.int64)
    seen = _seen_keys(data, users)
    blocks = [
        distinct_negatives_for(
            np.random.default_rng([seed, first + number]),
            data.num_items,
            users[start : start + _DRAWN_TOGETHER],
            negatives,
            seen,
        )
        for number, start in enumerate(range(0, len(users), _DRAWN_TOGETHER))
    ]
    return np.concatenate(blocks)


def _seen_keys(data: Dataset, users: np.ndarray) -> np.ndarray:
    """The part of :attr:`Dataset.seen_keys` for some users, ``int64``; all of them take 8 bytes per interaction."""
    users = np.unique(users)
    data.check_users(users)
    starts, ends = data.offsets[users], data.offsets[users + 1]
    lengths = ends - starts
    places = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    keys = np.repeat(users * (data.num_items + 1), lengths) + data.items[places]
    keys.sort()
    return keys


def _rank_sampled(
    model: Model, states: Tensor, targets: Targets, drawn: np.ndarray, batch_size: int, vectors: Tensor | None
) -> Ranks:
    into = Ranks.empty(len(targets), 0)
    candidates = np.column_stack([targets.items.astype(np.int64), drawn])
    rows = batch_size
    if vectors is None:
        # Every candidate of every user needs a separate vector here. The number of rows keeps them in the cache.
        rows = max(1, min(batch_size, scoring.CELLS // 16 // (candidates.shape[1] * states.shape[1])))
    for start in range(0, len(targets), rows):
        chosen = slice(start, start + rows)
        items = torch.from_numpy(candidates[chosen]).to(states.device)
        scores = score_after(model, targets.histories.take(chosen), states[chosen], items, vectors)
        require_numbers(scores)
        real = items[:, 1:] > 0
        target, others = scores[:, :1], scores[:, 1:]
        ranked = target[:, 0] > -torch.inf
        greater = torch.where(ranked, ((others > target) & real).sum(dim=1), -1)
        ties = torch.where(ranked, ((others == target) & real).sum(dim=1), 0)
        into.greater[chosen] = greater.cpu().numpy()
        into.ties[chosen] = ties.cpu().numpy()
    return into


def rank_full(
    catalogue: Catalogue, states: Tensor, targets: Targets, keep_seen: bool, top: int, batch_size: int
) -> Ranks:
    """Rank the complete catalogue, given the states after the histories. Call it in inference mode."""
    items = targets.items.astype(np.int64)
    unreachable = np.zeros(len(targets), dtype=bool)
    seen = None
    if not keep_seen:
        rows, seen_items = seen = targets.histories.flat()
        unreachable[rows[seen_items == items[rows]]] = True
    ways = {"left_out": seen, "targets": items, "batch_size": batch_size}
    found = rank_after(catalogue, targets.histories, states, top, **ways)  # type: ignore[arg-type]
    assert found.greater is not None
    assert found.ties is not None
    return Ranks(
        np.where(unreachable, -1, found.greater),
        np.where(unreachable, 0, found.ties),
        catalogue.items_of(found.columns).astype(np.int32, copy=False),
        unreachable,
    )
