"""Checks that a split holds no leak: nothing that is tested is known to training, or to the history before it."""

from dataclasses import dataclass

import numpy as np

from seqrec.data.histories import Histories, Targets
from seqrec.data.moments import shown
from seqrec.errors import InputError

_ADVICE = "make the split again, with split_by_time or split_last_two"


@dataclass(frozen=True)
class SplitCheck:
    """What :meth:`Split.check` found out about a split without leaks.

    Some things no split of its kind can avoid. With ``last-two``, training knows what other users did after the time of
    a target, and equal times leave the order of interactions to chance. Such things are counted here.

    Args:
        split: ``time``, ``last-two`` or ``custom``.
        reason: why this split was chosen, if nobody asked for it.
        valid_from: start of validation in Unix seconds; None unless the split is by time.
        test_from: start of the test, likewise.
        users: number of users in the log.
        train_users: number of users with a training history.
        train_interactions: number of interactions in training.
        interactions: number of interactions in the log.
        valid_users: number of validation targets, one per user.
        test_users: number of test targets, one per user.
        late_interactions: share of the training interactions that are later than the median test target; None if there
            are no times or no test targets, as for the next two.
        late_targets: share of the test targets that are earlier than the last training interaction, so that training
            has seen something of their future.
        tied_targets: number of test targets with the same time as the interaction before or after them. Which of these
            comes first is guessed: the order is that of the log.
        copied_targets: number of test targets that are a copy of an interaction in their history: same item and time.
    """

    split: str
    reason: str | None
    valid_from: int | None
    test_from: int | None
    users: int
    train_users: int
    train_interactions: int
    interactions: int
    valid_users: int
    test_users: int
    late_interactions: float | None = None
    late_targets: float | None = None
    tied_targets: int | None = None
    copied_targets: int | None = None

    def lines(self) -> list[str]:
        """Two lines for people: the split, and what its check found."""
        how = {"time": "by time", "last-two": "last-two, for comparison with papers"}.get(self.split, self.split)
        if self.valid_from is not None and self.test_from is not None:
            how += f", validation from {shown(self.valid_from)}, test from {shown(self.test_from)}"
        why = f" (because {self.reason})" if self.reason else ""
        share = self.train_interactions / max(self.interactions, 1)
        sizes = [
            f"training has {self.train_interactions:,} interactions ({share:.0%}) of {self.train_users:,} users",
            f"validation {self.valid_users:,} users, test {self.test_users:,} users of {self.users:,}",
        ]
        found = ["no target is in its own history or in training"]
        if self.split == "time":
            found.append("training ends before validation begins, and validation before the test")
        elif self.late_interactions is None:
            found.append("without times nobody knows whether training is later than the targets")
        elif self.late_targets:
            found.append(
                f"but training has seen the future of {self.late_targets:.0%} of the test targets "
                f"({self.late_interactions:.0%} of its interactions are later than the median target), which a split "
                "by time avoids"
            )
        else:
            found.append("no test target is earlier than anything in training")
        if self.tied_targets:
            found.append(
                f"{self.tied_targets:,} test targets have the same time as the interaction before or after them, so "
                "their order is a guess: that of the log"
            )
        if self.copied_targets:
            found.append(
                f"{self.copied_targets:,} are copies of interactions in their history, which --duplicates drop-copies "
                "removes"
            )
        return [f"split: {how}{why}; {'; '.join(sizes)}", f"split checked: {'; '.join(found)}"]


def check_split(train: Histories, valid: Targets, test: Targets, cuts: tuple[int, int] | None) -> SplitCheck:
    """The check behind :meth:`Split.check`, of the parts of a split and its cut points."""
    dataset = train.dataset.check()
    parts = {name: targets for name, targets in (("validation", valid), ("test", test)) if len(targets)}
    _check_ranges(train, "training")
    for name, targets in parts.items():
        _check_targets(targets, name, train)
    trained = train.mask()
    for name, targets in parts.items():
        _refuse(trained[targets.histories.ends], targets.histories, f"{name} targets are in training histories")
    if len(parts) == 2:
        known = valid.histories.mask()
        known[valid.histories.ends] = True
        _refuse(known[test.histories.ends], test.histories, "test targets are known to validation")
    if dataset.has_timestamps:
        _check_order(dataset.timestamps, dataset.offsets)
    if cuts is not None:
        _check_cuts(train, parts, cuts)
    facts = _found_in_times(train, test, trained) if dataset.has_timestamps and len(test) else {}
    valid_from, test_from = cuts or (None, None)
    return SplitCheck(
        split="custom",
        reason=None,
        valid_from=valid_from,
        test_from=test_from,
        users=dataset.num_users,
        train_users=int(np.count_nonzero(train.lengths)),
        train_interactions=int(np.count_nonzero(trained)),
        interactions=dataset.num_interactions,
        valid_users=len(valid),
        test_users=len(test),
        **facts,  # type: ignore[arg-type]
    )


def _refuse(wrong: np.ndarray, histories: Histories, what: str) -> None:
    """Raise an error that counts the wrong rows and names the user of the first."""
    if wrong.any():
        row = int(np.argmax(wrong))
        user = int(histories.users[row])
        name = f"user {histories.dataset.user_ids[user]}" if user >= 0 else f"row {row}, of no user"
        raise InputError(f"the split leaks: {int(wrong.sum()):,} {what} (first: {name}); {_ADVICE}")


def _check_ranges(histories: Histories, name: str) -> None:
    """Refuse histories that are not a part of the interactions of their user."""
    data, users = histories.dataset, np.asarray(histories.users)
    starts, ends = np.asarray(histories.starts), np.asarray(histories.ends)
    if not len(users) == len(starts) == len(ends):
        raise InputError(f"{name} has {len(users)} users, {len(starts)} starts and {len(ends)} ends; {_ADVICE}")
    wrong = (users < -1) | (users >= data.num_users) | (starts < 0) | (ends < starts) | (ends > data.num_interactions)
    if not wrong.any():
        owner = np.maximum(users, 0)  # -1 is a user who is not in the dataset, and owns nothing
        outside = (users < 0) | (starts < data.offsets[owner]) | (ends > data.offsets[owner + 1])
        wrong = outside & (ends > starts)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"the split is damaged: in {name} {int(wrong.sum()):,} histories are not of their user (first: row {row}); "
            f"{_ADVICE}"
        )


def _check_targets(targets: Targets, name: str, train: Histories) -> None:
    """Refuse targets that are not the interaction right after their history."""
    histories, data = targets.histories, train.dataset
    if histories.dataset is not data:
        raise InputError(f"training and {name} are of different datasets; {_ADVICE}")
    _check_ranges(histories, name)
    if len(targets.items) != len(histories):
        raise InputError(f"{name} has {len(histories)} histories and {len(targets.items)} targets; {_ADVICE}")
    ends, owner = np.asarray(histories.ends), np.maximum(histories.users, 0)
    wrong = (histories.users < 0) | (ends < data.offsets[owner]) | (ends >= data.offsets[owner + 1])
    inside = np.minimum(ends, data.num_interactions - 1)
    wrong |= data.items[inside] != targets.items
    _refuse(wrong, histories, f"{name} targets are not the item right after their history, which may contain them")


def _check_order(timestamps: np.ndarray, offsets: np.ndarray) -> None:
    """Refuse histories that are not in the order of time."""
    back = timestamps[1:] < timestamps[:-1]
    inner = offsets[1:-1]
    back[inner[(inner > 0) & (inner < len(timestamps))] - 1] = False  # last of one user, first of the next
    if back.any():
        user = int(np.searchsorted(offsets, np.argmax(back), side="right")) - 1
        raise InputError(
            f"the dataset is not in the order of time (user {user} by index), so targets may be earlier than their "
            "history; make it with prepare"
        )


def _last_times(histories: Histories) -> np.ndarray:
    """Time of the last interaction of each history, ``int64[M]``; the lowest number there is for an empty one."""
    times = histories.dataset.timestamps[np.maximum(histories.ends - 1, 0)]
    return np.where(histories.lengths > 0, times, np.iinfo(np.int64).min)


def _check_cuts(train: Histories, parts: dict[str, Targets], cuts: tuple[int, int]) -> None:
    """Refuse what lies on the wrong side of the cut points of a split by time."""
    periods = {"validation": (cuts[0], cuts[1]), "test": (cuts[1], None)}
    for name, targets in parts.items():
        begin, end = periods[name]
        _refuse(_last_times(train) >= begin, train, f"training histories reach into the time of {name}")
        late = _last_times(targets.histories) >= begin
        _refuse(late, targets.histories, f"histories of {name} reach into its time")
        times = train.dataset.timestamps[targets.histories.ends]
        outside = (times < begin) | (times >= end if end is not None else False)
        _refuse(outside, targets.histories, f"{name} targets are outside of its time")


def _found_in_times(train: Histories, test: Targets, trained: np.ndarray) -> dict[str, float | int]:
    """The fields of a check that compare the times of test targets with training and with their neighbours."""
    data, histories = train.dataset, test.histories
    times = data.timestamps[histories.ends]
    count = int(np.count_nonzero(trained))
    middle = np.sort(times)[len(times) // 2]
    later = int(np.count_nonzero(trained & (data.timestamps > middle)))
    before = (histories.lengths > 0) & (_last_times(histories) == times)
    after = histories.ends + 1
    has_next = after < data.offsets[histories.users + 1]
    next_times = data.timestamps[np.minimum(after, data.num_interactions - 1)]
    tied = test.take(before)
    rows, items = tied.histories.flat()
    same_time = _flat_times(tied.histories) == times[before][rows]
    copied = np.unique(rows[same_time & (items == tied.items[rows])])
    return {
        "late_interactions": later / count if count else 0.0,
        "late_targets": float((times < _last_times(train).max(initial=np.iinfo(np.int64).min)).mean()),
        "tied_targets": int(np.count_nonzero(before | (has_next & (next_times == times)))),
        "copied_targets": len(copied),
    }


def _flat_times(histories: Histories) -> np.ndarray:
    """Time of each interaction in the order of :meth:`Histories.flat`."""
    lengths = histories.lengths
    first = np.cumsum(lengths) - lengths
    places = np.arange(int(lengths.sum())) + np.repeat(histories.starts - first, lengths)
    return histories.dataset.timestamps[places]
