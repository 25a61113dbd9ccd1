"""What trains, what validates and what tests, as ranges over one :class:`Dataset`: nothing is copied."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from seqrec.data.dataset import Dataset, counts_of
from seqrec.errors import InputError


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of M users: ``dataset.items[starts[m]:ends[m]]`` is that of ``users[m]``.

    ``users int64[M]`` are user indices of the dataset, -1 for somebody without one.
    """

    dataset: Dataset
    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """Items in each history, ``int64[M]``."""
        return self.ends - self.starts

    def take(self, rows: np.ndarray | slice) -> "Histories":
        """The histories at these rows."""
        return Histories(self.dataset, self.users[rows], self.starts[rows], self.ends[rows])

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All items, one after another, and the row of each: two ``int64[sum of lengths]``."""
        lengths = self.lengths
        rows = np.repeat(np.arange(len(self)), lengths)
        first = np.cumsum(lengths) - lengths
        source = np.arange(len(rows)) + (self.starts - first)[rows]
        return rows, self.dataset.items[source].astype(np.int64)

    def item_counts(self) -> np.ndarray:
        """How often each item occurs in the histories, ``int64[I + 1]``."""
        return counts_of(self.dataset.items[self._mask()], self.dataset.num_items + 1)

    def _mask(self) -> np.ndarray:
        """Which interactions of the dataset belong to a history, ``bool[N]``."""
        change = np.zeros(self.dataset.num_interactions + 1, dtype=np.int32)
        np.add.at(change, self.starts, 1)
        np.add.at(change, self.ends, -1)
        return np.cumsum(change[:-1], out=change[:-1]) > 0


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted: ``items int32[M]``, each after the history at its row."""

    histories: Histories
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray | slice) -> "Targets":
        """The targets at these rows."""
        return Targets(self.histories.take(rows), self.items[rows])


@dataclass(frozen=True, eq=False)
class Split:
    """Training histories, and targets to validate and to test on."""

    train: Histories
    valid: Targets
    test: Targets

    def targets(self, name: str) -> Targets:
        """``valid`` or ``test`` by name."""
        if name not in ("valid", "test"):
            raise InputError(f"unknown split {name!r}; give valid or test")
        return self.valid if name == "valid" else self.test


def all_histories(dataset: Dataset) -> Histories:
    """Everything that is known of every user, to recommend from."""
    return Histories(dataset, np.arange(dataset.num_users), dataset.offsets[:-1], dataset.offsets[1:])


def split_last_two(dataset: Dataset) -> Split:
    """Leave the last two out: the last item of a user tests, the one before it validates.

    Users with fewer than 3 items only train. The history before a test target includes the
    validation item (Kang & McAuley 2018, section IV-A).
    """
    starts = np.asarray(dataset.offsets[:-1])
    ends = np.asarray(dataset.offsets[1:])
    users = np.arange(dataset.num_users)
    enough = ends - starts >= 3
    train = Histories(dataset, users, starts, np.where(enough, ends - 2, ends))
    chosen = users[enough]
    starts, ends = starts[enough], ends[enough]
    return Split(
        train=train,
        valid=Targets(Histories(dataset, chosen, starts, ends - 2), dataset.items[ends - 2]),
        test=Targets(Histories(dataset, chosen, starts, ends - 1), dataset.items[ends - 1]),
    )


def split_by_time(
    dataset: Dataset, valid_from: int | float | None = None, test_from: int | float | None = None
) -> Split:
    """Two cut points for everybody: train before the first, validate between, test after the second.

    A user's target in a period is the first item in it, after the history of all before the period; a
    user with nothing before the period, or nothing in it, has no target there. So a training input
    never holds an interaction of the future, a validation input nothing from ``valid_from`` on, and a
    test input nothing from ``test_from`` on.

    Args:
        dataset: must have timestamps.
        valid_from: first moment of validation, in unix seconds; without it the moment before which
            80 % of the interactions lie.
        test_from: first moment of the test, in unix seconds; without it 90 %.
    """
    if not dataset.has_timestamps:
        raise InputError("the log has no timestamps, which a split by time needs; use the split last-two")
    if valid_from is None:
        valid_from = int(np.quantile(dataset.timestamps, 0.8, method="higher"))
    if test_from is None:
        test_from = int(np.quantile(dataset.timestamps, 0.9, method="higher"))
    if valid_from >= test_from:
        raise InputError(
            f"the split by time validates from {valid_from} and tests from {test_from}; "
            "give two moments in unix seconds, the first before the second"
        )
    users = np.arange(dataset.num_users)
    starts = np.asarray(dataset.offsets[:-1])
    ends = np.asarray(dataset.offsets[1:])
    before_valid = starts + _count_before(dataset, valid_from)
    before_test = starts + _count_before(dataset, test_from)
    if not (before_valid > starts).any():
        raise InputError(f"no interaction lies before {valid_from}; give a later start of validation")
    return Split(
        train=Histories(dataset, users, starts, before_valid),
        valid=_first_after(dataset, users, starts, before_valid, before_test),
        test=_first_after(dataset, users, starts, before_test, ends),
    )


def _count_before(dataset: Dataset, moment: int | float) -> np.ndarray:
    """Interactions of each user before a moment; histories are in time order."""
    early = np.concatenate([[0], np.cumsum(dataset.timestamps < moment)])
    return early[dataset.offsets[1:]] - early[dataset.offsets[:-1]]


def _first_after(
    dataset: Dataset, users: np.ndarray, starts: np.ndarray, cuts: np.ndarray, ends: np.ndarray
) -> Targets:
    has_both = (cuts > starts) & (ends > cuts)
    histories = Histories(dataset, users[has_both], starts[has_both], cuts[has_both])
    return Targets(histories, dataset.items[cuts[has_both]])


@dataclass(frozen=True)
class SplitConfig:
    """What trains, validates and tests.

    Args:
        split: ``last-two`` (the last item of a user tests, the one before validates; users of fewer
            than 3 only train) or ``time`` (the same two moments for everybody).
        valid_from: first moment of validation (unix seconds), for ``time``; 80 % of the log without it.
        test_from: first moment of the test (unix seconds), for ``time``; 90 % of the log without it.
    """

    split: Literal["last-two", "time"] = "last-two"
    valid_from: int | None = None
    test_from: int | None = None

    def apply(self, dataset: Dataset) -> Split:
        """Split a dataset."""
        if self.split == "time":
            return split_by_time(dataset, self.valid_from, self.test_from)
        if self.split != "last-two":
            raise InputError(f"unknown split {self.split!r}; give last-two or time")
        if self.valid_from is not None or self.test_from is not None:
            raise InputError("valid_from and test_from belong to the split by time; give --split time too")
        return split_last_two(dataset)
