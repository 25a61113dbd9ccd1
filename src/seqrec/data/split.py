"""What trains, what validates and what tests, as ranges over one :class:`Dataset`: nothing is copied."""

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Literal

import numpy as np

from seqrec.data.dataset import Dataset
from seqrec.data.fields import Options
from seqrec.data.statistics import counts_of
from seqrec.errors import InputError

Moment = int | float | str | date
#: Which windows of a long history training shows.
Windows = Literal["last", "all"]
FEW = 10_000  # targets from which a share is estimated


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of M users: ``dataset.items[starts[m]:ends[m]]`` is that of ``users[m]``.

    ``users int64[M]`` are user indices of the dataset; -1 is somebody who is not in it.
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
    """What is to be predicted: ``items int32[M]``, each the next item after the history in the same row."""

    histories: Histories
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray | slice) -> "Targets":
        """The targets at these rows."""
        return Targets(self.histories.take(rows), self.items[rows])

    def repeated(self) -> float:
        """The share of targets whose item is in the history already, of some ten thousand; 0 if there are none."""
        if len(self) == 0:
            return 0.0
        few = self.take(np.linspace(0, len(self) - 1, min(len(self), FEW)).astype(np.int64))
        rows, items = few.histories.flat()
        return len(np.unique(rows[items == few.items[rows]])) / len(few)


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
    """The complete history of every user, to recommend from."""
    dataset.check()
    return Histories(dataset, np.arange(dataset.num_users), dataset.offsets[:-1], dataset.offsets[1:])


def histories_of_users(dataset: Dataset, users: np.ndarray) -> Histories:
    """The complete histories of some users, by index; -1 has an empty one."""
    dataset.check_users(users)
    known = users >= 0
    inside = np.where(known, users, 0)
    starts = np.where(known, dataset.offsets[inside], 0)
    ends = np.where(known, dataset.offsets[inside + 1], 0)
    return Histories(dataset, users, starts, ends)


def split_last_two(dataset: Dataset) -> Split:
    """Leave the last two out: the last item of a user tests, the one before it validates.

    Users with fewer than 3 items only train. The history before a test target includes the
    validation item (Kang & McAuley 2018, section IV-A).
    """
    dataset.check()
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


def moment_of(given: Moment, name: str = "a moment") -> int:
    """A moment in Unix seconds, rounded down like the times of a log.

    Args:
        given: an ISO date with or without a time, in UTC unless it names a zone; a ``date`` or ``datetime``; or a
            number since 1970 in seconds, milli-, micro- or nanoseconds, told apart by its size as in a log.
        name: what the moment is called in an error.

    Raises:
        InputError: it is none of these.
    """
    advice = f"{name} is {given!r}; give an ISO date such as 2020-09-26 or 2020-09-26T10:00, or unix seconds"
    try:
        if isinstance(given, str):
            text = given.strip()
            try:
                given = float(text) if "." in text else int(text)
            except ValueError:
                given = datetime.fromisoformat(text.upper().replace("UTC", "Z").replace(" Z", "Z").replace("/", "-"))
        if isinstance(given, date):
            exact = given if isinstance(given, datetime) else datetime.combine(given, time())
            exact = exact if exact.tzinfo else exact.replace(tzinfo=UTC)
            return math.floor(exact.timestamp())
        if isinstance(given, bool) or not isinstance(given, int | float | np.number) or not math.isfinite(given):
            raise InputError(advice)
    except (ValueError, OverflowError) as error:
        raise InputError(advice) from error
    size = abs(given)
    unit = 1 if size < 1e11 else 10**3 if size < 1e14 else 10**6 if size < 1e17 else 10**9
    return int(given // unit)


def written(moment: int) -> str:
    """A moment for people: 1600000000 (2020-09-13T12:26:40)."""
    try:
        return f"{moment} ({datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S})"
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return str(moment)


def split_by_time(dataset: Dataset, valid_from: Moment | None = None, test_from: Moment | None = None) -> Split:
    """Two cut points for everybody: train before the first, validate between them, test after the second.

    A user's target in a period is the first item in it, and the history is everything before the period. A
    user with nothing before the period, or nothing in it, has no target there. So a training input
    never holds an interaction of the future, a validation input none from ``valid_from`` on, and a
    test input none from ``test_from`` on.

    Args:
        dataset: must have timestamps.
        valid_from: first moment of validation, as :func:`moment_of` takes it. By default 80 % of the interactions are
            earlier.
        test_from: first moment of the test, likewise. By default 90 % are earlier.

    Raises:
        InputError: there are no timestamps, or a cut point has nothing before it or nothing after it.
    """
    dataset.check()
    if not dataset.has_timestamps:
        raise InputError("the log has no timestamps, which a split by time needs; use the split last-two")
    first, last = int(dataset.timestamps.min()), int(dataset.timestamps.max())
    log = f"the log goes from {written(first)} to {written(last)}"
    cuts = {"valid_from": (valid_from, 0.8), "test_from": (test_from, 0.9)}
    valid_cut, test_cut = (
        int(np.quantile(dataset.timestamps, share, method="higher")) if given is None else moment_of(given, name)
        for name, (given, share) in cuts.items()
    )
    in_order = valid_cut < test_cut or None in (valid_from, test_from)
    for name, cut in (("valid_from", valid_cut), ("test_from", test_cut)):
        if in_order and cuts[name][0] is not None and not first < cut <= last:
            side = "before" if cut <= first else "at or after"
            raise InputError(
                f"no interaction lies {side} {name} = {written(cut)}; {log}; give a moment within it, as an ISO date "
                "or in unix seconds"
            )
    if valid_cut >= test_cut:
        raise InputError(
            f"the split by time validates from {written(valid_cut)} and tests from {written(test_cut)}; {log}; give "
            "two moments, the first before the second"
        )
    users = np.arange(dataset.num_users)
    starts = np.asarray(dataset.offsets[:-1])
    ends = np.asarray(dataset.offsets[1:])
    before_valid = starts + _count_before(dataset, valid_cut)
    before_test = starts + _count_before(dataset, test_cut)
    if not (before_valid > starts).any():
        raise InputError(f"no interaction lies before {written(valid_cut)}; {log}; give a later start of validation")
    return Split(
        train=Histories(dataset, users, starts, before_valid),
        valid=_first_after(dataset, users, starts, before_valid, before_test),
        test=_first_after(dataset, users, starts, before_test, ends),
    )


def _count_before(dataset: Dataset, moment: int) -> np.ndarray:
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
class SplitConfig(Options):
    """What trains, validates and tests.

    Args:
        split: How to split the log. last-two: the last item of each user tests and the one before it validates (users
            with fewer than 3 only train); time: the same two moments for everybody.
        valid_from: Start of validation, with --split time: an ISO date, with or without a time (UTC unless it names a
            zone), or Unix seconds. By default after 80 % of the log.
        test_from: Start of the test, likewise. By default after 90 % of the log.
        keep_seen: Keep items of the history in the rankings that validate and test, and in what the run recommends;
            --keep-seen=false removes them. By default they stay only if most validation items were in the history.
    """

    split: Literal["last-two", "time"] = "last-two"
    valid_from: int | str | None = None
    test_from: int | str | None = None
    keep_seen: bool | None = None

    def __post_init__(self) -> None:
        """Also turn dates into Unix seconds."""
        for name in ("valid_from", "test_from"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, moment_of(getattr(self, name), name))
        super().__post_init__()

    def apply(self, dataset: Dataset) -> Split:
        """Split a dataset."""
        if self.split == "time":
            return split_by_time(dataset, self.valid_from, self.test_from)
        if self.valid_from is not None or self.test_from is not None:
            raise InputError("valid_from and test_from belong to the split by time; give --split time too")
        return split_last_two(dataset)
