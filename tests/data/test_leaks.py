"""The check of a split against naive loops, and every kind of leak planted by hand."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec import (
    InputError,
    SASRec,
    SASRecConfig,
    Split,
    SplitConfig,
    TrainConfig,
    prepare,
    read_log,
    split_by_time,
    split_last_two,
    train,
)
from seqrec.data.dataset import Dataset
from seqrec.data.split import Histories, Targets

ROWS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=60)

ROW_OF_NOBODY = np.array([[-1], [0], [0]])  # users, starts, ends


def dataset_of(rows, has_timestamps=True) -> Dataset:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(frame if has_timestamps else frame.drop("timestamp"))


def overlapping(users: int = 20, length: int = 10) -> Dataset:
    """Users who are all active from the beginning to the end."""
    return dataset_of(
        [(user, (3 * user + step) % 13, 100 * step + user) for user in range(users) for step in range(length)]
    )


def naive(split: Split) -> dict[str, float]:
    """The counts of a check, target by target."""
    data = split.train.dataset
    trained = [
        place for start, end in zip(split.train.starts, split.train.ends, strict=True) for place in range(start, end)
    ]
    targets = split.test.histories
    times = sorted(data.timestamps[targets.ends].tolist())
    middle = times[len(times) // 2]
    last = max((int(data.timestamps[place]) for place in trained), default=-1)
    tied = copied = 0
    for user, start, end in zip(targets.users, targets.starts, targets.ends, strict=True):
        mine = int(data.timestamps[end])
        beside = [place for place in (end - 1, end + 1) if data.offsets[user] <= place < data.offsets[user + 1]]
        tied += any(int(data.timestamps[place]) == mine for place in beside)
        row = int(data.items[end]), mine
        copied += row in [(int(data.items[place]), int(data.timestamps[place])) for place in range(start, end)]
    return {
        "train_interactions": len(trained),
        "late_interactions": sum(int(data.timestamps[place]) > middle for place in trained) / max(len(trained), 1),
        "late_targets": sum(time < last for time in times) / len(times),
        "tied_targets": tied,
        "copied_targets": copied,
    }


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, cut=st.integers(1, 11), by_time=st.booleans())
def test_what_a_check_counts_is_the_naive_loop(rows, cut, by_time):
    dataset = dataset_of(rows)
    try:
        split = split_by_time(dataset, cut, cut + 1) if by_time else split_last_two(dataset)
    except InputError:
        return
    found = split.check()
    assert (found.split, found.users, found.interactions) == (split.name, dataset.num_users, dataset.num_interactions)
    assert (found.valid_users, found.test_users) == (len(split.valid), len(split.test))
    assert (found.valid_from, found.test_from) == ((cut, cut + 1) if by_time else (None, None))
    if len(split.test):
        wanted = naive(split)
        assert {name: getattr(found, name) for name in wanted} == pytest.approx(wanted)
        if by_time:
            assert (found.late_interactions, found.late_targets, found.copied_targets) == (0, 0, 0)
    else:
        assert found.late_interactions is found.late_targets is found.tied_targets is None


def with_train(split: Split, **changes) -> Split:
    return replace(split, train=replace(split.train, **changes))


def moved(targets: Targets, by: int) -> Targets:
    """The histories end later or earlier; the items are those that follow."""
    ends = targets.histories.ends + by
    return replace(
        targets, histories=replace(targets.histories, ends=ends), items=targets.histories.dataset.items[ends]
    )


def longer_for(split: Split, user: int, by: int) -> Split:
    ends = np.array(split.train.ends)
    ends[user] += by
    return with_train(split, ends=ends)


def without_targets(split: Split, user: int) -> Split:
    keep = split.valid.histories.users != user, split.test.histories.users != user
    return replace(split, valid=split.valid.take(keep[0]), test=split.test.take(keep[1]))


def mistaken(split: Split) -> Split:
    """The histories contain their targets: the whole history of each user."""
    ends = split.train.dataset.offsets[split.test.histories.users + 1]
    return replace(split, test=replace(split.test, histories=replace(split.test.histories, ends=ends)))


def of_another(split: Split) -> Split:
    other = overlapping(20)
    return replace(split, test=replace(split.test, histories=replace(split.test.histories, dataset=other)))


def unknown(split: Split) -> Split:
    users = np.full(len(split.test), -1)
    return replace(split, test=replace(split.test, histories=replace(split.test.histories, users=users)))


def shuffled(split: Split) -> Split:
    data = split.train.dataset
    backwards = replace(data, timestamps=data.timestamps[::-1].copy())
    parts = {"train": replace(split.train, dataset=backwards)}
    for name in ("valid", "test"):
        targets = split.targets(name)
        parts[name] = replace(targets, histories=replace(targets.histories, dataset=backwards))
    return replace(split, **parts)


BY_HAND = {
    "test items are trained on": (
        "last-two", lambda s: with_train(s, ends=s.train.dataset.offsets[1:]),
        r"20 validation targets are in training histories \(first: user 0\)"),
    "validation items are trained on": (
        "last-two", lambda s: with_train(s, ends=s.train.ends + 1), "20 validation targets are in training histories"),
    "one user's test item is trained on": (
        "last-two", lambda s: replace(longer_for(s, 7, 2), valid=s.valid.take(s.valid.histories.users != 7)),
        r"1 test targets are in training histories \(first: user 7\)"),
    "validation and test are the same": (
        "last-two", lambda s: replace(s, test=s.valid), "20 test targets are known to validation"),
    "validation histories hold the test items": (
        "last-two", lambda s: replace(s, valid=s.test, test=s.valid), "20 test targets are known to validation"),
    "histories hold their targets": (
        "last-two", mistaken, "20 test targets are not the item right after their history, which may contain them"),
    "targets are other items": (
        "last-two", lambda s: replace(s, test=replace(s.test, items=s.test.items % 13 + 1)), "20 test targets are not"),
    "targets of one user under another": (
        "last-two", lambda s: replace(s, valid=replace(s.valid, items=np.roll(s.valid.items, 1))), "are not the item"),
    "too few targets": (
        "last-two", lambda s: replace(s, test=replace(s.test, items=s.test.items[:-1])), "20 histories and 19 targets"),
    "histories of other users": (
        "last-two", lambda s: with_train(s, users=s.train.users[::-1]), "in training 20 histories are not"),
    "histories of nobody": (
        "last-two", lambda s: with_train(s, users=s.train.users + 1), "in training 1 histories are not of their user"),
    "targets of a user who is not in the log": (
        "last-two", unknown, "in test 20 histories are not of their user"),
    "a target of nobody, without a history": (
        "last-two", lambda s: replace(s, test=Targets(Histories(s.train.dataset, *ROW_OF_NOBODY), np.array([1]))),
        r"1 test targets are not the item right after their history.*first: row 0, of no user"),
    "histories that end before they start": (
        "last-two", lambda s: with_train(s, starts=s.train.ends + 1), "in training 20 histories are not"),
    "histories beyond the interactions": (
        "last-two", lambda s: with_train(s, ends=s.train.ends + 10_000), "in training 20 histories"),
    "parts of different datasets": ("last-two", of_another, "training and test are of different datasets"),
    "fewer ends than users": ("last-two", lambda s: with_train(s, ends=s.train.ends[:-1]), "20 starts and 19 ends"),
    "histories not in the order of time": ("last-two", shuffled, r"not in the order of time \(user 0 by index\)"),
    "training after the cut": (
        "time", lambda s: longer_for(without_targets(s, 3), 3, 1),
        r"1 training histories reach into the time of validation \(first: user 3\)"),
    "training after the test's cut": (
        "time", lambda s: replace(longer_for(without_targets(s, 3), 3, 2), valid=s.valid.take(slice(0))),
        "1 training histories reach into the time of test"),
    "test histories after the cut": (
        "time", lambda s: replace(s, valid=s.valid.take(slice(0)), cuts=(800, 810)),
        r"10 histories of test reach into its time \(first: user 10\)"),
    "validation targets after their period": (
        "time", lambda s: replace(s, valid=moved(s.valid, 1), test=s.test.take([]), cuts=(950, 960)),
        "validation targets are outside of its time"),
    "test targets before their period": (
        "time", lambda s: replace(s, cuts=(s.cuts[0], s.cuts[1] + 90)), "20 test targets are outside"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_leak_made_by_hand_is_found(kind):
    name, change, message = BY_HAND[kind]
    dataset = overlapping()
    split = split_by_time(dataset, 800, 900) if name == "time" else split_last_two(dataset)
    split.check()
    assert len(split.valid) == len(split.test) == 20
    with pytest.raises(InputError, match=message):
        change(split).check()


def test_a_split_that_leaks_is_not_trained_on():
    split = split_last_two(overlapping())
    leaking = with_train(split, ends=split.train.ends + 2)
    model = SASRec(SASRecConfig(max_length=8, embedding_dim=8, num_blocks=1), 13)
    with pytest.raises(InputError, match="the split leaks: 20 validation targets are in training histories"):
        train(model, leaking, TrainConfig(epochs=1))


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, data=st.data())
def test_any_interaction_moved_into_training_is_found(rows, data):
    """Whatever target is added to training, as a history of its own, is found; whatever is no target is not a leak."""
    split = split_last_two(dataset_of(rows))
    place = data.draw(st.integers(0, split.train.dataset.num_interactions - 1))
    user = int(np.searchsorted(split.train.dataset.offsets, place, side="right")) - 1
    more = Histories(
        split.train.dataset,
        np.append(split.train.users, user),
        np.append(split.train.starts, place),
        np.append(split.train.ends, place + 1),
    )
    if place in {*split.valid.histories.ends.tolist(), *split.test.histories.ends.tolist()}:
        with pytest.raises(InputError, match=r"1 (validation|test) targets are in training histories"):
            replace(split, train=more).check()
    else:
        assert replace(split, train=more).check().train_interactions == split.check().train_interactions


def test_parts_without_targets_and_users_of_nowhere_are_no_leak():
    dataset = overlapping()
    nobody = split_last_two(dataset).test.take(slice(0))
    everything = Histories(dataset, np.arange(20), dataset.offsets[:-1], dataset.offsets[1:])
    found = Split(everything, nobody, nobody).check()
    assert (found.split, found.train_interactions, found.test_users) == ("custom", 200, 0)
    assert found.lines()[0].startswith("split: custom; training has 200 interactions (100%) of 20 users")
    columns = (everything.users, everything.starts, everything.ends)
    strangers = Histories(
        dataset, *(np.append(column, value) for column, value in zip(columns, (-1, 0, 0), strict=True))
    )
    assert Split(strangers, nobody, nobody).check().train_users == 20


def test_what_the_lines_say():
    split = split_by_time(overlapping(), 800, 900)
    first, second = split.check().lines()
    assert first == (
        "split: by time, validation from 800, test from 900; training has 160 interactions (80%) of 20 users; "
        "validation 20 users, test 20 users of 20"
    )
    assert "no target is in its own history or in training; training ends before validation begins" in second
    second = split_last_two(overlapping()).check().lines()[1]
    assert "training has seen the future of 0%" not in second
    assert second.endswith("no test target is earlier than anything in training")
    early = dataset_of([(user, step, 1000 * user + step) for user in range(10) for step in range(5)])
    second = split_last_two(early).check().lines()[1]
    assert "seen the future of 90% of the test targets (40% of its interactions are later than the median" in second
    same = dataset_of([(user, item, 7) for user in range(3) for item in (1, 2, 2)])
    second = split_last_two(same).check().lines()[1]
    assert "; 3 test targets have the same time as the interaction before or after them" in second
    assert "; 3 are copies of interactions in their history, which --duplicates drop-copies removes" in second
    second = split_last_two(dataset_of([(1, 1, 1), (1, 2, 2), (1, 3, 3)], has_timestamps=False)).check().lines()[1]
    assert second.endswith("without times nobody knows whether training is later than the targets")


@pytest.mark.real
def test_movielens_is_split_by_time(real_data):
    dataset = prepare(read_log(real_data / "ml-100k" / "ml-100k.inter"))
    split = SplitConfig().apply(dataset)
    found = split.check()
    assert (found.split, found.valid_users, found.test_users, found.train_users) == ("time", 81, 90, 751)
    assert found.late_targets == 0
    wanted = naive(split)
    assert {name: getattr(found, name) for name in wanted} == pytest.approx(wanted)
    found = split_last_two(dataset).check()
    wanted = naive(split_last_two(dataset))
    assert {name: getattr(found, name) for name in wanted} == pytest.approx(wanted)
    assert found.late_targets > 0.99
