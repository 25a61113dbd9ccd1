"""Predictor: what answers "what next?" for one history or many, from a run folder."""

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
from seqrec.ranking import scoring
from seqrec.ranking.scoring import Catalogue
from seqrec.ranking.topk import best_of, by_popularity, candidates, check_k, most_popular, nearest, unit_vectors
from seqrec.run.folder import Run
from seqrec.run.place import reading


class Recommendations(list[tuple[Any, float]]):
    """Items for one person, best first, as pairs of id and score; and what they rest on.

    Scores of one person compare with each other only. There are fewer than k pairs where the filters leave fewer.

    Attributes:
        used: items of the history that the model read: those it knows, the last ``max_length`` of them.
        unknown: ids of the history that the catalogue does not have, which were left out.
        popular: whether nothing of the history is known, so that these are the most popular items and their scores
            numbers of interactions.
    """

    __slots__ = ("popular", "unknown", "used")

    def __init__(self, pairs: Iterable[tuple[Any, float]] = (), used: int = 0, unknown: tuple[Any, ...] = ()) -> None:
        super().__init__(pairs)
        self.used, self.unknown, self.popular = used, unknown, used == 0


@dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A trained model and the ids of its items: recommendations for histories, from any number of threads at once.

    It never changes after it is made, and no call changes anything that other threads share: not torch's number of
    threads, not its gradient mode, not the model's training flag. Each call computes with as many threads as torch is
    set to; a server with many callers sets one when it starts (``torch.set_num_threads(1)``). A predictor also works in
    a forked process.

    Example:
        >>> predictor = Predictor.load("run")  # doctest: +SKIP
        >>> predictor.recommend(["B00005N7P0", "B000035Y4P"], k=3)  # doctest: +SKIP
        [('B00005N7NZ', 7.1), ('B00002SUPF', 6.8), ('B000059TOC', 6.5)]

    Args:
        model: in evaluation mode; it must not be trained while the predictor is in use.
        dataset: what it was trained on.
        keep_seen: whether items of the history are recommended again where a call does not say.
    """

    model: Model
    dataset: Dataset
    keep_seen: bool = False

    def __post_init__(self) -> None:
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        watch_forks()
        _ = self.catalogue  # made now, not by the first call

    @classmethod
    def load(cls, folder: str | Path) -> "Predictor":
        """Open a run folder. Of its data, only the ids of the items and the first few histories are read.

        Raises:
            InputError: the folder is not a run, is damaged, or its weights rank nothing.
        """
        watch_forks()
        check_polars("loading a run")
        return reading(folder, lambda: cls._load(Run(folder)))

    @classmethod
    def _load(cls, run: Run) -> "Predictor":
        model = run.model()
        run.check_scores(model)
        dataset = run.dataset
        _ = dataset.item_ids  # in memory from now on, and compared with their checksums
        return cls(model, dataset, bool(run.config.split.keep_seen))

    def recommend(
        self,
        histories: Iterable[Any],
        k: int = 10,
        times: Iterable[Any] | None = None,
        keep_seen: bool | None = None,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
    ) -> Any:
        """The best ``k`` items after each history.

        Args:
            histories: one history, a flat list of item ids in time order; or many, a list of such lists. The entries
                decide: ids (numbers, texts) are one history, lists are many, and a mixture of both is an error. ``[]``
                is one history without items, ``[[]]`` a list of one such history. Arrays, series and iterators do
                as well as lists. 128, "128" and 128.0 are the same id.
            k: items per history; fewer where the filters leave fewer.
            times: of the items, in the shape of ``histories``: numbers since 1970, dates, or ISO texts. They order
                each history (equal ones keep their order), and tisasrec and slirec learn from them.
            keep_seen: recommend items of the history again. By default as the run was validated and tested, which is
                without, unless most users take again what they had.
            allow: recommend these items only; unknown ones are a warning.
            deny: never recommend these items; unknown ones are a warning.

        Returns:
            For one history its :class:`Recommendations`, a list of ``(item_id, score)``; for many a list of them, in
            the same order. Ids that the catalogue does not have are left out of a history and listed in ``unknown``;
            if none are left, the result is the most popular items and ``popular`` is True.

        Raises:
            InputError: what is no history, ``k`` out of range, or times that don't fit.
        """
        lists, one = _lists_of(histories)
        given = given_lists(lists, times if times is None or not one else [times])
        indices = given.indices_in(self.dataset)
        people = histories_from(self.dataset, given, indices, self.model.USES_TIMES)
        unknown: dict[int, tuple[Any, ...]] = {}
        if (indices == 0).any():
            ends = np.cumsum(given.lengths)
            for row in np.unique(np.searchsorted(ends, np.flatnonzero(indices == 0), side="right")).tolist():
                mine = slice(int(ends[row] - given.lengths[row]), int(ends[row]))
                unknown[row] = tuple(given.ids[mine].filter(pl.Series(indices[mine] == 0)).to_list())
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
        """The best ``k`` items for users of the log, after all that is known of them.

        Args:
            users: one id, or a collection of ids. An unknown user has an empty history.
            k: as for :meth:`recommend`, and so are the others. Without ``keep_seen``, items of interactions that the
                filters of ``fit`` dropped are not recommended either.
            keep_seen: as for :meth:`recommend`.
            allow: as for :meth:`recommend`.
            deny: as for :meth:`recommend`.

        Returns:
            As :meth:`recommend`: :class:`Recommendations` of one user, or a list of them.
        """
        people = histories_of_users(self.dataset, self.dataset.user_indices(ids_of(users, "users")))
        found = self._named(people, {}, k, keep_seen, allow, deny)
        return found if _is_collection(users) else found[0]

    def similar(self, items: Any, k: int = 10) -> Any:
        """The ``k`` items nearest to each given one, by the cosine of their embeddings.

        Args:
            items: one id, or a collection of ids; unknown ones are a warning, and are left out.
            k: neighbours per item.

        Returns:
            A list of ``(item_id, cosine)`` for one item; for many, a dictionary of such lists by id.

        Raises:
            InputError: ``k`` out of range, no known item, or a model without embeddings.
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
        """The best items of many people by index, in blocks that are made when they are asked for.

        The same people are encoded and scored together whatever the size of the blocks, because a product of matrices
        of another shape may differ in its last bits.

        Args:
            people: histories of the dataset, or of :func:`histories_of`.
            k: items per person.
            keep_seen: as for :meth:`recommend`.
            allow: indices of the only items to recommend.
            deny: indices of items not to recommend.
            size: people per block; by default one block holds all.

        Yields:
            ``items int64[R, k]`` and ``scores float32[R, k]`` of the next R people; 0 and -inf where nothing is left,
            and the most popular items for empty histories. There is at least one block.
        """
        size = size or max(len(people), 1)
        items, scores = np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
        group = scoring.USERS_AT_ONCE
        done = 0
        for _ in range(0, max(len(people), 1), size):
            parts = [(items, scores)]
            while done < len(people) and sum(len(part[0]) for part in parts) < size:
                parts.append(self._rank(people.take(slice(done, done + group)), k, keep_seen, allow, deny))
                done += group
            items, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
            yield items[:size], scores[:size]
            items, scores = items[size:], scores[size:]

    def neighbours(self, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`similar` finds, by index: ``items int64[M, k]`` and ``cosines float32[M, k]``."""
        check_k(k, self.dataset.num_items - 1)
        if self.model.COUNTED or not self.model.FACTORED:
            name = next(name for name, kind in MODELS.items() if type(self.model) is kind)
            raise InputError(f"{name} has no item embeddings to compare; fit another model, such as sasrec")
        return nearest(self._units, items, k)

    @cached_property
    def catalogue(self) -> Catalogue:
        """All items with their vectors, computed once."""
        with torch.inference_mode():
            return Catalogue(self.model)

    @cached_property
    def _units(self) -> Catalogue:
        with torch.inference_mode():
            return Catalogue(self.model, vectors=unit_vectors(self.model))

    @cached_property
    def _popular(self) -> np.ndarray:
        return by_popularity(self.dataset.item_counts)

    def _rank(
        self, people: Histories, k: int, keep_seen: bool | None, allow: np.ndarray | None, deny: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if keep_seen not in (None, True, False):  # "false" would count as true
            raise InputError(f"keep_seen is {keep_seen!r}; give True or False")
        keep = self.keep_seen if keep_seen is None else keep_seen
        allowed, denied = candidates(self.model.num_items, allow, deny)
        with torch.inference_mode():
            catalogue = self.catalogue if allowed is None else self.catalogue.only(allowed)
            items, scores = best_of(catalogue, people, k, denied, keep_seen=keep)
        empty = people.lengths == 0
        if empty.any():
            popular = most_popular(self._popular, self.dataset.item_counts, k, allowed, denied)
            items[empty], scores[empty] = popular
        return items, scores

    def _named(
        self,
        people: Histories,
        unknown: dict[int, tuple[Any, ...]],
        k: int,
        keep_seen: bool | None,
        allow: Iterable[Any] | None,
        deny: Iterable[Any] | None,
    ) -> list[Recommendations]:
        """Recommendations by id; ``unknown`` has the ids left out of some of the histories, by row."""
        check_k(k, self.dataset.num_items)
        allowed = None if allow is None else known_items(self.dataset, allow, "allow", strict=False)
        denied = None if deny is None else known_items(self.dataset, deny, "deny", strict=False)
        ((items, scores),) = self.rank(people, k, keep_seen=keep_seen, allow=allowed, deny=denied)
        used = np.minimum(people.lengths, int(self.model.config.max_length)).tolist()
        pairs = self._ids_and_scores(items, scores)
        return [
            Recommendations(zip(*pair, strict=True), used[row], unknown.get(row, ())) for row, pair in enumerate(pairs)
        ]

    def _ids_and_scores(self, items: np.ndarray, scores: np.ndarray) -> Iterator[tuple[list[Any], list[float]]]:
        """The ids and scores of each row, without the places that nothing is left for."""
        there = items > 0
        ids = self.dataset.catalogue.values(items[there] - 1)
        values = scores[there].tolist()
        start = 0
        for count in there.sum(axis=1).tolist():
            yield ids[start : start + count], values[start : start + count]
            start += count


def _is_collection(value: Any) -> bool:
    """Whether it holds several values, and is no id itself."""
    if type(value) in (int, str):  # as most are
        return False
    if hasattr(value, "ndim"):  # an array or a tensor; those without dimensions hold one value
        return bool(value.ndim)
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def _lists_of(histories: Any) -> tuple[list[Any], bool]:
    """Histories one by one, and whether a single one was given."""
    if isinstance(histories, Mapping) or not _is_collection(histories) or hasattr(type(histories), "columns"):
        raise InputError(
            f"histories are item ids in a list, or lists of them, not {type(histories).__name__}; give [...] or "
            "[[...], [...]]"
        )
    if isinstance(histories, set | frozenset):
        raise InputError(f"a history is a list of item ids in time order, not a {type(histories).__name__}; give [...]")
    if isinstance(histories, np.ndarray) and histories.ndim > 1:
        return list(histories), False
    # A tensor iterates over tensors.
    lists = list(histories.tolist() if hasattr(histories, "numpy") and hasattr(histories, "tolist") else histories)
    many = {_is_collection(entry) for entry in lists}
    if len(many) > 1:
        raise InputError("some entries are item ids and others are lists of them; give one history or many")
    return ([lists], True) if many != {True} else (lists, False)
