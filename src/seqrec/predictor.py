"""Predictor: recommends the next items for one history or many, from a run folder."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from seqrec.data.dataset import Dataset
from seqrec.data.ids import ids_of
from seqrec.data.people import given_lists, histories_from, known_items, listed_items
from seqrec.data.split import Histories, histories_of_users
from seqrec.device import check_polars, watch_forks
from seqrec.errors import InputError
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.models.features import fold_features
from seqrec.ranking import scoring
from seqrec.ranking.approximate import Recall, with_first_pass
from seqrec.ranking.scoring import Catalogue
from seqrec.ranking.topk import (
    best_of,
    by_popularity,
    candidates,
    check_k,
    check_keep_seen,
    most_popular,
    nearest,
    unit_vectors,
)
from seqrec.run.folder import Run
from seqrec.run.new_items import with_more_items, with_new_items
from seqrec.run.place import reading


class Recommendations(list[tuple[Any, float]]):
    """Recommended items for one person: a list of ``(item_id, score)``, best first, with details on the history.

    Scores can only be compared within one list. The list is shorter than k if the filters leave fewer items.

    Attributes:
        used: number of items of the history that the model read, at most ``max_length``.
        unknown: ids of the history that are not in the catalogue, and were ignored.
        popular: whether these are the most popular items, because no item of the history is known. The scores are then
            numbers of interactions.
    """

    __slots__ = ("popular", "unknown", "used")

    def __init__(self, pairs: Iterable[tuple[Any, float]] = (), used: int = 0, unknown: tuple[Any, ...] = ()) -> None:
        super().__init__(pairs)
        self.used, self.unknown, self.popular = used, unknown, used == 0


@dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A trained model with its item ids. It recommends items for histories, from any number of threads at once.

    A predictor is immutable, and its calls do not change global state: not torch's number of threads, not the gradient
    mode, not the model's training flag. Each call uses torch's current number of threads. A server that handles many
    requests in parallel should set it to 1 at the start (``torch.set_num_threads(1)``). A predictor also works in a
    forked process.

    Example:
        >>> predictor = Predictor.load("run")  # doctest: +SKIP
        >>> predictor.recommend(["B00005N7P0", "B000035Y4P"], k=3)  # doctest: +SKIP
        [('B00005N7NZ', 7.1), ('B00002SUPF', 6.8), ('B000059TOC', 6.5)]

    Args:
        model: the model, in evaluation mode. It must not be trained while the predictor is in use.
        dataset: the dataset that it was trained on.
        keep_seen: default of ``keep_seen`` in calls: whether to recommend items of the history again.
        first_pass: whether a first pass in 8 bits finds the candidates, which are then ranked exactly. It takes a
            quarter more memory. By default (None) it is used for large catalogues, where it is faster, if the model
            scores by products and the compiled loops are available. With ``allow`` and with a very large ``k``, all
            items are scored.
    """

    model: Model
    dataset: Dataset
    keep_seen: bool = False
    first_pass: bool | None = None

    def __post_init__(self) -> None:
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        watch_forks()
        _ = self.catalogue  # computed now, so that the first call is not slower

    @classmethod
    def load(
        cls, folder: str | Path, first_pass: bool | None = None, mapped: bool = False, new_items: Any = None
    ) -> "Predictor":
        """Open a run folder. This reads the weights, the item ids and a few histories, not the complete dataset.

        Args:
            folder: the run folder.
            first_pass: as for the class.
            mapped: whether the weights stay in their file, memory-mapped, so that processes share them. The file must
                not be changed in place then; ``fit`` replaces it.
            new_items: descriptions of items that training never saw, in any form that :func:`read_items` accepts. A
                model that learned features ranks them too, as after :meth:`Recommender.add_items`.

        Raises:
            InputError: the folder is not a run or is damaged, its weights give no usable ranking, ``first_pass`` is
                True but not possible, or the new items can't be ranked.
        """
        watch_forks()
        check_polars("loading a run")
        return reading(folder, lambda: cls._load(Run(folder), first_pass, mapped, new_items))

    @classmethod
    def _load(cls, run: Run, first_pass: bool | None, mapped: bool, new_items: Any) -> "Predictor":
        dataset = run.dataset
        if new_items is not None:
            dataset = with_new_items(run.config, dataset, new_items)
        model = run.model(mapped=mapped)
        run.check_scores(model)
        if new_items is not None:
            _, model = with_more_items(run.config, model, dataset)
        fold_features(model)
        _ = dataset.item_ids  # load the ids now, and verify their checksums
        return cls(model, dataset, bool(run.config.split.keep_seen), first_pass)

    def recommend(
        self,
        histories: Iterable[Any],
        k: int = 10,
        times: Iterable[Any] | None = None,
        keep_seen: bool | None = None,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
    ) -> Any:
        """Recommend the best ``k`` items after each history.

        Args:
            histories: one history, a flat list of item ids in time order, or a list of histories. ``[]`` is one empty
                history, ``[[]]`` a list with one empty history. Ids and lists cannot be mixed. Arrays, series and
                iterators work like lists. 128, "128" and 128.0 are the same id. Features of users count as unknown.
            k: number of items per history.
            times: times of the items, in the shape of ``histories``: numbers since 1970, dates, or ISO texts. Each
                history is sorted by them (equal times keep their order), and tisasrec, hstu and slirec score with
                them.
            keep_seen: whether to recommend items of the history again. By default as in the run's validation and test:
                False, unless most users in the log interact with items repeatedly.
            allow: ids of the only items to recommend. Unknown ids give a warning.
            deny: ids of items not to recommend. Unknown ids give a warning.

        Returns:
            For one history, :class:`Recommendations`, a list of ``(item_id, score)``. For a list of histories, one such
            list per history, in the same order. Ids that are not in the catalogue are ignored and listed in
            ``unknown``. If no id of a history is known, the result is the most popular items, and ``popular`` is True.

        Raises:
            InputError: invalid histories or times, or ``k`` out of range.
        """
        lists, one = _lists_of(histories)
        given = given_lists(lists, times if times is None or not one else [times])
        indices = given.indices_in(self.dataset)
        people = histories_from(self.dataset, given, indices, self.model.USES_TIMES)
        unknown: dict[int, tuple[Any, ...]] = {}
        if (indices == 0).any():
            ends = np.cumsum(given.lengths)
            for row in np.unique(np.searchsorted(ends, np.flatnonzero(indices == 0), side="right")).tolist():
                own = slice(int(ends[row] - given.lengths[row]), int(ends[row]))
                unknown[row] = tuple(given.ids[own].filter(pl.Series(indices[own] == 0)).to_list())
        found = self._named(people, unknown, k, keep_seen, allow, deny)
        return found[0] if one else found

    def recommend_users(
        self,
        users: Any,
        k: int = 10,
        keep_seen: bool | None = None,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
    ) -> Any:
        """Recommend the best ``k`` items to users of the log, after their complete histories.

        Args:
            users: one id, or a collection of ids. An unknown user has an empty history.
            k: number of items per user.
            keep_seen: as for :meth:`recommend`. If seen items are not recommended, items of interactions that the
                filters of ``fit`` dropped are not recommended either.
            allow: as for :meth:`recommend`.
            deny: as for :meth:`recommend`.

        Returns:
            :class:`Recommendations` for one user, or a list of them for a collection.
        """
        people = histories_of_users(self.dataset, self.dataset.user_indices(ids_of(users, "users")))
        found = self._named(people, {}, k, keep_seen, allow, deny)
        return found if _is_collection(users) else found[0]

    def similar(self, items: Any, k: int = 10) -> Any:
        """Find the ``k`` most similar items, by the cosine of their embeddings.

        Args:
            items: one id, or a collection of ids. Unknown ids give a warning and are ignored.
            k: number of neighbours per item.

        Returns:
            For one item, a list of ``(item_id, cosine)``. For a collection, a dictionary of such lists by id.

        Raises:
            InputError: ``k`` is out of range, no item is known, or the model has no embeddings.
        """
        indices = listed_items(self.dataset, items, strict=False)
        found = [list(zip(*pair, strict=True)) for pair in self._ids_and_scores(*self.neighbours(indices, k))]
        if not _is_collection(items):
            return found[0]
        return dict(zip(self.dataset.catalogue.values(indices - 1), found, strict=True))

    def rank(
        self,
        people: Histories,
        k: int,
        *,
        keep_seen: bool | None = None,
        allow: np.ndarray | None = None,
        deny: np.ndarray | None = None,
        size: int | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Find the best items for many people by index, in blocks that are computed on demand.

        Encoding and scoring use the same groups of people for any block size, because the last bits of a matrix product
        may depend on its shape.

        Args:
            people: histories of the dataset, or from :func:`seqrec.data.batches.histories_of`.
            k: number of items per person.
            keep_seen: as for :meth:`recommend`.
            allow: indices of the only items to recommend.
            deny: indices of items not to recommend.
            size: number of people per block. By default one block holds all.

        Yields:
            ``items int64[R, k]`` and ``scores float32[R, k]`` of the next R people; 0 and -inf if fewer items are left.
            Empty histories get the most popular items. There is at least one block.
        """
        check_keep_seen(keep_seen)
        keep = self.keep_seen if keep_seen is None else keep_seen
        allowed, denied = candidates(self.model.num_items, allow, deny)
        with torch.inference_mode():
            catalogue = self.catalogue if allowed is None else self.catalogue.only(allowed)
        size = size or max(len(people), 1)
        items, scores = np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
        group = scoring.USERS_AT_ONCE
        done = 0
        for _ in range(0, max(len(people), 1), size):
            parts = [(items, scores)]
            while done < len(people) and sum(len(part[0]) for part in parts) < size:
                some = people.take(slice(done, done + group))
                with torch.inference_mode():
                    found = best_of(catalogue, some, k, denied, keep_seen=keep)
                empty = some.lengths == 0
                if empty.any():
                    popular = most_popular(self._popular, self.dataset.item_counts, k, allowed, denied)
                    found[0][empty], found[1][empty] = popular
                parts.append(found)
                done += group
            items, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
            yield items[:size], scores[:size]
            items, scores = items[size:], scores[size:]

    def neighbours(self, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`similar`, by index: ``items int64[M, k]`` and ``cosines float32[M, k]`` for ``items int64[M]``."""
        check_k(k, self.dataset.num_items - 1)
        if self.model.COUNTED or not self.model.FACTORED:
            name = next(name for name, kind in MODELS.items() if type(self.model.parts[0]) is kind)
            raise InputError(f"{name} has no item embeddings to compare; fit another model, such as sasrec")
        return nearest(self._units, items, k)

    @property
    def catalogue(self) -> Catalogue:
        """All items with their vectors, computed once."""
        return self._catalogue_and_recall[0]

    @property
    def recall(self) -> Recall | None:
        """The measured recall of the first pass, or None if all items are scored exactly."""
        return self._catalogue_and_recall[1]

    @cached_property
    def _catalogue_and_recall(self) -> tuple[Catalogue, Recall | None]:
        with torch.inference_mode():
            return with_first_pass(Catalogue(self.model), self.dataset, self.first_pass, self.keep_seen)

    @cached_property
    def _units(self) -> Catalogue:
        with torch.inference_mode():
            return Catalogue(self.model, vectors=unit_vectors(self.model))

    @cached_property
    def _popular(self) -> np.ndarray:
        return by_popularity(self.dataset.item_counts)

    def _named(
        self,
        people: Histories,
        unknown: dict[int, tuple[Any, ...]],
        k: int,
        keep_seen: bool | None,
        allow: Iterable[Any] | None,
        deny: Iterable[Any] | None,
    ) -> list[Recommendations]:
        """Recommendations by id; ``unknown`` holds the ignored ids of histories, by row."""
        check_k(k, self.dataset.num_items)
        allowed = None if allow is None else known_items(self.dataset, allow, "allow", strict=False)
        denied = None if deny is None else known_items(self.dataset, deny, "deny", strict=False)
        ((items, scores),) = self.rank(people, k, keep_seen=keep_seen, allow=allowed, deny=denied)
        used = np.minimum(people.lengths, self.model.max_length).tolist()
        pairs = self._ids_and_scores(items, scores)
        return [
            Recommendations(zip(*pair, strict=True), used[row], unknown.get(row, ())) for row, pair in enumerate(pairs)
        ]

    def _ids_and_scores(self, items: np.ndarray, scores: np.ndarray) -> Iterator[tuple[list[Any], list[float]]]:
        """The ids and scores of each row, without empty places."""
        there = items > 0
        ids = self.dataset.catalogue.values(items[there] - 1)
        values = scores[there].tolist()
        start = 0
        for count in there.sum(axis=1).tolist():
            yield ids[start : start + count], values[start : start + count]
            start += count


def _is_collection(value: Any) -> bool:
    """Whether a value is a collection of ids, not a single id."""
    if type(value) in (int, str):  # the usual types of ids; this test is fast
        return False
    if hasattr(value, "ndim"):  # an array or a tensor; those without dimensions hold one value
        return bool(value.ndim)
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def _lists_of(histories: Any) -> tuple[list[Any], bool]:
    """The histories as a list, and whether a single history was given."""
    if isinstance(histories, Mapping) or not _is_collection(histories) or hasattr(type(histories), "columns"):
        raise InputError(
            f"histories must be a list of item ids or a list of such lists, not {type(histories).__name__}; give [...] "
            "or [[...], [...]]"
        )
    if isinstance(histories, set | frozenset):
        raise InputError(f"a history is a list of item ids in time order, not a {type(histories).__name__}; give [...]")
    if isinstance(histories, np.ndarray) and histories.ndim > 1:
        return list(histories), False
    # A tensor iterates over tensors.
    lists = list(histories.tolist() if hasattr(histories, "numpy") and hasattr(histories, "tolist") else histories)
    many = {_is_collection(entry) for entry in lists}
    if len(many) > 1:
        raise InputError("histories mix item ids and lists of item ids; give one history or many")
    return ([lists], True) if many != {True} else (lists, False)
