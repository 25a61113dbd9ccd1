"""Training, validation and test parts as ranges over one :class:`Dataset`, without copies."""

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Literal

import numpy as np

from seqrec.data.dataset import Dataset
from seqrec.data.fields import Options
from seqrec.data.formats.times import units_per_second
from seqrec.data.statistics import counts_of
from seqrec.errors import InputError

Moment = int | float | str | date
#: Which windows of a long history are used for training.
Windows = Literal["last", "all"]
#: What weights were trained on: the training histories, all histories up to the test, or the whole log.
TrainedOn = Literal["train", "train+valid", "all"]
#: The same in words, after "trained".
TRAINED: dict[TrainedOn, str] = {
    "train": "without validation and test items",
    "train+valid": "without test items",
    "all": "with all items",
}
MOST_SAMPLED = 10_000  # targets that are enough to estimate a share


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of M users: ``dataset.items[starts[m]:ends[m]]`` is the history of ``users[m]``.

    ``users int64[M]`` are user indices of the dataset; -1 is a user who is not in it.
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
        """Row and item of each interaction, history by history: two ``int64[sum of lengths]``."""
        lengths = self.lengths
        rows = np.repeat(np.arange(len(self)), lengths)
        first = np.cumsum(lengths) - lengths
        source = np.arange(len(rows)) + (self.starts - first)[rows]
        return rows, self.dataset.items[source].astype(np.int64)

    def item_counts(self) -> np.ndarray:
        """Number of times each item occurs in the histories, ``int64[I + 1]``."""
        return counts_of(self.dataset.items[self._mask()], self.dataset.num_items + 1)

    def _mask(self) -> np.ndarray:
        """Mask of the dataset's interactions that belong to a history, ``bool[N]``."""
        change = np.zeros(self.dataset.num_interactions + 1, dtype=np.int32)
        np.add.at(change, self.starts, 1)
        np.add.at(change, self.ends, -1)
        return np.cumsum(change[:-1], out=change[:-1]) > 0


@dataclass(frozen=True, eq=False)
class Targets:
    """Items to predict: ``items int32[M]``, each the next item after the history in the same row."""

    histories: Histories
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray | slice) -> "Targets":
        """The targets at these rows."""
        return Targets(self.histories.take(rows), self.items[rows])

    def repeated(self) -> float:
        """Share of targets whose item is already in the history, estimated from at most 10,000; 0 without targets."""
        if len(self) == 0:
            return 0.0
        sample = self.take(np.linspace(0, len(self) - 1, min(len(self), MOST_SAMPLED)).astype(np.int64))
        rows, items = sample.histories.flat()
        return len(np.unique(rows[items == sample.items[rows]])) / len(sample)


@dataclass(frozen=True, eq=False)
class Split:
    """Training histories, validation targets and test targets.

    ``before_test`` are the histories of all users up to the test, each user at its index, for training once more with
    the validation items.
    """

    train: Histories
    valid: Targets
    test: Targets
    before_test: Histories | None = None

    def targets(self, name: str) -> Targets:
        """``valid`` or ``test`` by name."""
        if name not in ("valid", "test"):
            raise InputError(f"unknown split {name!r}; give valid or test")
        return self.valid if name == "valid" else self.test

    def histories(self, trained_on: TrainedOn) -> Histories:
        """The histories that weights were trained on, each user at its index."""
        if trained_on == "train":
            return self.train
        if trained_on == "all":
            return all_histories(self.train.dataset)
        if self.before_test is None:
            raise ValueError("this split does not know the histories up to the test; give before_test")
        return self.before_test

    def refit(self, trained_on: TrainedOn) -> "Split":
        """A split that trains on these histories and holds nothing out."""
        return Split(self.histories(trained_on), self.valid.take(slice(0)), self.test.take(slice(0)))


def all_histories(dataset: Dataset) -> Histories:
    """Complete history of every user, for recommending."""
    dataset.check()
    return Histories(dataset, np.arange(dataset.num_users), dataset.offsets[:-1], dataset.offsets[1:])


def histories_of_users(dataset: Dataset, users: np.ndarray) -> Histories:
    """Complete histories of some users, by index; -1 gets an empty history."""
    dataset.check_users(users)
    known = users >= 0
    inside = np.where(known, users, 0)
    starts = np.where(known, dataset.offsets[inside], 0)
    ends = np.where(known, dataset.offsets[inside + 1], 0)
    return Histories(dataset, users, starts, ends)


def split_last_two(dataset: Dataset) -> Split:
    """Split off each user's last two items: the last is the test target, the one before it the validation target.

    Users with fewer than 3 items are only used for training. The history before a test target includes the
    validation item (Kang & McAuley 2018, section IV-A).
    """
    dataset.check()
    starts = np.asarray(dataset.offsets[:-1])
    ends = np.asarray(dataset.offsets[1:])
    users = np.arange(dataset.num_users)
    enough = ends - starts >= 3
    train = Histories(dataset, users, starts, np.where(enough, ends - 2, ends))
    before_test = Histories(dataset, users, starts, np.where(enough, ends - 1, ends))
    chosen = users[enough]
    starts, ends = starts[enough], ends[enough]
    return Split(
        train=train,
        valid=Targets(Histories(dataset, chosen, starts, ends - 2), dataset.items[ends - 2]),
        test=Targets(Histories(dataset, chosen, starts, ends - 1), dataset.items[ends - 1]),
        before_test=before_test,
    )


def moment_of(given: Moment, name: str = "a moment") -> int:
    """Convert a moment to Unix seconds, rounded down as timestamps of a log are.

    Args:
        given: an ISO date with or without a time (UTC unless it names a zone), a ``date`` or ``datetime``, or a number
            since 1970 in seconds, milli-, micro- or nanoseconds, distinguished by its size as in a log.
        name: name of the moment in error messages.

    Raises:
        InputError: ``given`` has none of these forms.
    """
    advice = f"{name} is {given!r}; give an ISO date such as 2020-09-26 or 2020-09-26T10:00, or Unix seconds"
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
    return int(given // units_per_second(given))


def written(moment: int) -> str:
    """A moment as messages show it: 1600000000 (2020-09-13T12:26:40)."""
    try:
        return f"{moment} ({datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S})"
    except (ValueError, OverflowError, OSError):  # outside of the years that datetime knows
        return str(moment)


def split_by_time(dataset: Dataset, valid_from: Moment | None = None, test_from: Moment | None = None) -> Split:
    """Split at the same two moments for all users: train before the first, validate up to the second, test from there.

    A user's target in a period is the first item in that period, and its history is everything before the period. A
    user with no interaction before the period, or none in it, has no target there. Training therefore sees nothing
    from ``valid_from`` on, and a test history nothing from ``test_from`` on.

    Args:
        dataset: dataset with timestamps.
        valid_from: start of validation, in any form that :func:`moment_of` takes. By default 80 % of the interactions
            are earlier.
        test_from: start of the test, in the same forms. By default 90 % of the interactions are earlier.

    Raises:
        InputError: the dataset has no timestamps, or there is no interaction before or after a cut point.
    """
    dataset.check()
    if not dataset.has_timestamps:
        raise InputError("a split by time needs timestamps, and the log has none; use the split last-two")
    first, last = int(dataset.timestamps.min()), int(dataset.timestamps.max())
    log = f"the log runs from {written(first)} to {written(last)}"
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
                f"there is no interaction {side} {name} = {written(cut)}; {log}; give a moment within it, as an ISO "
                "date or in Unix seconds"
            )
    if valid_cut >= test_cut:
        raise InputError(
            f"validation would start at {written(valid_cut)} and the test at {written(test_cut)}; {log}; give two "
            "moments, the first before the second"
        )
    users = np.arange(dataset.num_users)
    starts = np.asarray(dataset.offsets[:-1])
    ends = np.asarray(dataset.offsets[1:])
    before_valid = starts + _count_before(dataset, valid_cut)
    before_test = starts + _count_before(dataset, test_cut)
    if not (before_valid > starts).any():
        raise InputError(f"there is no interaction before {written(valid_cut)}; {log}; give a later valid_from")
    return Split(
        train=Histories(dataset, users, starts, before_valid),
        valid=_first_after(dataset, users, starts, before_valid, before_test),
        test=_first_after(dataset, users, starts, before_test, ends),
        before_test=Histories(dataset, users, starts, before_test),
    )


def _count_before(dataset: Dataset, moment: int) -> np.ndarray:
    """Number of interactions of each user before a moment."""
    early = np.concatenate([[0], np.cumsum(dataset.timestamps < moment)])
    return early[dataset.offsets[1:]] - early[dataset.offsets[:-1]]


def _first_after(
    dataset: Dataset, users: np.ndarray, starts: np.ndarray, cuts: np.ndarray, ends: np.ndarray
) -> Targets:
    """Targets at ``cuts``, for users with an interaction before the cut and one from there to the end of the period."""
    has_both = (cuts > starts) & (ends > cuts)
    histories = Histories(dataset, users[has_both], starts[has_both], cuts[has_both])
    return Targets(histories, dataset.items[cuts[has_both]])


@dataclass(frozen=True)
class SplitConfig(Options):
    """How the log is split into training, validation and test.

    Args:
        split: How to split the log. last-two: each user's last item is the test target and the one before it the
            validation target (users with fewer than 3 items are only used for training); time: at the same two
            moments for all users.
        valid_from: Start of validation, with --split time: an ISO date, with or without a time (UTC unless it names a
            zone), or Unix seconds. By default 80 % of the interactions are earlier.
        test_from: Start of the test, in the same forms. By default 90 % of the interactions are earlier.
        keep_seen: Keep items of the history in the rankings of validation and test, and in recommendations;
            --keep-seen=false removes them. By default they are kept only if most validation items occur in the
            history.
    """

    split: Literal["last-two", "time"] = "last-two"
    valid_from: int | str | None = None
    test_from: int | str | None = None
    keep_seen: bool | None = None

    def __post_init__(self) -> None:
        """Convert dates to Unix seconds, then check all fields."""
        for name in ("valid_from", "test_from"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, moment_of(getattr(self, name), name))
        super().__post_init__()

    def apply(self, dataset: Dataset) -> Split:
        """Split a dataset."""
        if self.split == "time":
            return split_by_time(dataset, self.valid_from, self.test_from)
        if self.valid_from is not None or self.test_from is not None:
            raise InputError("valid_from and test_from need a split by time; add --split time")
        return split_last_two(dataset)
