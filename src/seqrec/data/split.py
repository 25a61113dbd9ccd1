"""Training, validation and test parts as ranges over one :class:`Dataset`, without copies."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from seqrec.data.dataset import Dataset
from seqrec.data.fields import Options
from seqrec.data.histories import Histories, Targets
from seqrec.data.leaks import SplitCheck, check_split
from seqrec.data.moments import Moment, moment_of, shown, written
from seqrec.errors import InputError, one_line

__all__ = [
    "Histories",
    "Split",
    "SplitConfig",
    "Targets",
    "all_histories",
    "histories_of_users",
    "split_by_time",
    "split_last_two",
]

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
SplitName = Literal["time", "last-two", "custom"]
#: Users that validation and test must each have for a split by time to be chosen: this number, and this share of the
#: users with at least 3 interactions, who are those that the split last-two would test.
FEWEST_TARGETS, LEAST_SHARE = 50, 0.01
_AS_PAPERS = "for comparison with papers"


@dataclass(frozen=True, eq=False)
class Split:
    """Training histories, validation targets and test targets.

    ``name`` says how they were made: ``time``, ``last-two`` or, by anyone else, ``custom``. ``cuts`` are the starts of
    validation and test in Unix seconds, for a split by time. ``reason`` says why this split was chosen, if nobody asked
    for it. ``before_test`` are the histories of all users up to the test, each user at its index, for training once
    more with the validation items.
    """

    train: Histories
    valid: Targets
    test: Targets
    name: SplitName = "custom"
    cuts: tuple[int, int] | None = None
    reason: str | None = None
    before_test: Histories | None = None

    def check(self) -> SplitCheck:
        """Verify on the arrays that nothing of a target is known before it is predicted; done once.

        Each target must be the interaction right after its history, at no earlier time. No target may be in a training
        history; no test target may be in a validation history, or be a validation target too. With ``cuts``, training
        and the histories of validation must end before the first, and the histories of the test before the second. A
        part without targets is not checked. What nobody can rule out is counted, as :class:`SplitCheck` says.

        Fitting and comparing call this, so a leak ends them before anything is trained. It costs a few passes over the
        interactions.

        Raises:
            InputError: there is a leak, or a part does not belong to the dataset.
        """
        return self._checked

    @cached_property
    def _checked(self) -> SplitCheck:
        found = check_split(self.train, self.valid, self.test, self.cuts)
        return replace(found, split=self.name, reason=self.reason)

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
        valid=Targets(
            Histories(dataset, chosen, starts, ends - 2),
            dataset.items[ends - 2],
            f"each user's last item but one, {_AS_PAPERS}",
        ),
        test=Targets(
            Histories(dataset, chosen, starts, ends - 1),
            dataset.items[ends - 1],
            f"each user's last item, {_AS_PAPERS}",
        ),
        name="last-two",
        before_test=before_test,
    )


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
    first_item = f"each user's first item from {shown(valid_cut)} to {shown(test_cut)}"
    valid = _first_after(dataset, users, starts, before_valid, before_test, first_item)
    first_item = f"each user's first item from {shown(test_cut)} on"
    test = _first_after(dataset, users, starts, before_test, ends, first_item)
    train = Histories(dataset, users, starts, before_valid)
    return Split(
        train=train,
        valid=valid,
        test=test,
        name="time",
        cuts=(valid_cut, test_cut),
        before_test=Histories(dataset, users, starts, before_test),
    )


def _count_before(dataset: Dataset, moment: int) -> np.ndarray:
    """Number of interactions of each user before a moment."""
    early = np.concatenate([[0], np.cumsum(dataset.timestamps < moment)])
    return early[dataset.offsets[1:]] - early[dataset.offsets[:-1]]


def _first_after(
    dataset: Dataset, users: np.ndarray, starts: np.ndarray, cuts: np.ndarray, ends: np.ndarray, held_out: str
) -> Targets:
    """Targets at ``cuts``, for users with an interaction before the cut and one from there to the end of the period."""
    has_both = (cuts > starts) & (ends > cuts)
    histories = Histories(dataset, users[has_both], starts[has_both], cuts[has_both])
    return Targets(histories, dataset.items[cuts[has_both]], held_out)


def split_automatically(dataset: Dataset) -> Split:
    """Split by time if the log has times that allow it, else split off the last two items of each user.

    A split by time is what happens in use: the model knows the past and recommends for the future. It needs times that
    tell the order of interactions of different users, and enough users who are active before and after the cut points:
    at least 50, and 1 % of those with 3 interactions or more.
    """
    found, why = _by_time_if_possible(dataset.check())
    if found is not None:
        return replace(found, reason="the log has times")
    return replace(split_last_two(dataset), reason=why)


def _by_time_if_possible(dataset: Dataset) -> tuple[Split | None, str]:
    """The split by time, or None and the reason why it is not possible."""
    if not dataset.has_timestamps:
        return None, "the log has no times"
    if _are_positions(dataset):
        equal = (dataset.timestamps == dataset.timestamps[0]).all()
        return None, "all its times are equal" if equal else "its times only number the interactions of each user"
    try:
        split = split_by_time(dataset)
    except InputError as error:
        return None, f"its times cannot be divided ({one_line(error).partition(';')[0]})"
    needed = max(FEWEST_TARGETS, math.ceil(LEAST_SHARE * np.count_nonzero(np.diff(dataset.offsets) >= 3)))
    for what, count in (
        ("with two interactions before the first cut point", int((split.train.lengths > 1).sum())),
        ("active both before and in the time of validation", len(split.valid)),
        ("active both before and in the time of the test", len(split.test)),
    ):
        if count < needed:
            return None, f"the number of users {what} is {count:,}, and a split by time needs {needed:,} here"
    return split, ""


def _are_positions(dataset: Dataset) -> bool:
    """Whether the times are positions: every history starts at the same number and counts up in the same steps."""
    firsts = dataset.timestamps[dataset.offsets[:-1]]
    if dataset.num_users < 2 or (firsts != firsts[0]).any():
        return False
    steps = np.diff(dataset.timestamps)
    steps = np.delete(steps, dataset.offsets[1:-1] - 1)
    return len(steps) == 0 or bool((steps == steps[0]).all())


@dataclass(frozen=True)
class SplitConfig(Options):
    """How the log is split into training, validation and test.

    Args:
        split: How to split the log. time: at the same two moments for all users, so that the model is tested on the
            future of all that it has learnt; last-two, for comparison with papers: each user's last item is the test
            target and the one before it the validation target (users with fewer than 3 items are only used for
            training); auto: time if the log has times that allow it, else last-two.
        valid_from: Start of validation, for the split by time: an ISO date, with or without a time (UTC unless it names
            a zone), or Unix seconds. By default 80 % of the interactions are earlier.
        test_from: Start of the test, in the same forms. By default 90 % of the interactions are earlier.
        keep_seen: Keep items of the history in the rankings of validation and test, and in recommendations;
            --keep-seen=false removes them. By default they are kept only if most validation items occur in the
            history.
    """

    split: Literal["auto", "time", "last-two"] = "auto"
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
        """Split a dataset; the name of the split tells what ``auto`` chose."""
        has_cuts = self.valid_from is not None or self.test_from is not None
        if self.split == "time" or (self.split == "auto" and has_cuts):
            split = split_by_time(dataset, self.valid_from, self.test_from)
            return split if self.split == "time" else replace(split, reason="cut points are given")
        if has_cuts:
            raise InputError("valid_from and test_from need a split by time; give --split time, or leave out --split")
        return split_automatically(dataset) if self.split == "auto" else split_last_two(dataset)
