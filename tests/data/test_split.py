import re
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.dataset import Dataset
from seqrec.data.moments import moment_of
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, Split, SplitConfig, all_histories, split_by_time, split_last_two
from seqrec.errors import InputError

ROWS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=60)


def dataset_of(rows, has_timestamps=True) -> Dataset:
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    columns = {"user_id": users, "item_id": items}
    return prepare(pl.DataFrame(columns | ({"timestamp": times} if has_timestamps else {})))


def lists(dataset: Dataset) -> list[list[tuple[int, int]]]:
    """The (item, time) history of each user index."""
    return [
        [(int(dataset.items[n]), int(dataset.timestamps[n])) for n in range(*dataset.offsets[u : u + 2])]
        for u in range(dataset.num_users)
    ]


def items_of(histories: Histories) -> list[tuple[int, list[int]]]:
    return [
        (int(user), histories.dataset.items[start:end].tolist())
        for user, start, end in zip(histories.users, histories.starts, histories.ends, strict=True)
    ]


def pairs(targets) -> list[tuple[int, list[int], int]]:
    assert len(targets) == len(targets.items) == len(targets.histories)
    return [(*row, int(item)) for row, item in zip(items_of(targets.histories), targets.items, strict=True)]


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_last_two_is_the_naive_loop(rows):
    dataset = dataset_of(rows)
    train, valid, test, before_test = [], [], [], []
    for user, history in enumerate(lists(dataset)):
        items = [item for item, _ in history]
        before_test.append((user, items[:-1] if len(items) >= 3 else items))
        if len(items) < 3:
            train.append((user, items))
        else:
            train.append((user, items[:-2]))
            valid.append((user, items[:-2], items[-2]))
            test.append((user, items[:-1], items[-1]))
    split = split_last_two(dataset)
    assert items_of(split.train) == train
    assert pairs(split.valid) == valid
    assert pairs(split.test) == test
    assert split.before_test is not None
    assert items_of(split.before_test) == before_test
    assert split.train.lengths.tolist() == [len(items) for _, items in train]
    assert split.targets("valid") is split.valid
    assert split.targets("test") is split.test


def test_users_of_one_two_and_three_items():
    rows = [(1, 10, 0), (2, 10, 0), (2, 11, 1), (3, 10, 0), (3, 11, 1), (3, 12, 2)]
    split = split_last_two(dataset_of(rows))
    assert items_of(split.train) == [(0, [1]), (1, [1, 2]), (2, [1])]
    assert pairs(split.valid) == [(2, [1], 2)]
    assert pairs(split.test) == [(2, [1, 2], 3)]


@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_a_refit_holds_nothing_out(rows):
    dataset = dataset_of(rows)
    split = split_last_two(dataset)
    everything = [(user, [item for item, _ in history]) for user, history in enumerate(lists(dataset))]
    for name, wanted in (("train", split.train), ("train+valid", split.before_test), ("all", None)):
        again = split.refit(name)
        assert items_of(again.train) == (everything if wanted is None else items_of(wanted))
        assert (len(again.valid), len(again.test)) == (0, 0)
    with pytest.raises(ValueError, match="give before_test"):
        Split(split.train, split.valid, split.test).histories("train+valid")


def test_nobody_to_test_and_an_unknown_name():
    split = split_last_two(dataset_of([(1, 10, 0), (2, 10, 0)]))
    assert (len(split.train), len(split.valid), len(split.test)) == (2, 0, 0)
    with pytest.raises(InputError, match="unknown split 'train'; give valid or test"):
        split.targets("train")


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, cuts=st.tuples(st.integers(-1, 14), st.integers(-1, 14)), shift=st.sampled_from([0, 0.5]))
def test_by_time_is_the_naive_loop(rows, cuts, shift):
    dataset = dataset_of(rows)
    valid_from, test_from = cuts  # a fraction of a second is rounded down, as the times of a log are
    train, valid, test, before_test = [], [], [], []
    for user, history in enumerate(lists(dataset)):
        before_valid = [item for item, time in history if time < valid_from]
        between = [item for item, time in history if valid_from <= time < test_from]
        after = [item for item, time in history if time >= test_from]
        train.append((user, before_valid))
        before_test.append((user, before_valid + between))
        if before_valid and between:
            valid.append((user, before_valid, between[0]))
        if (before_valid or between) and after:
            test.append((user, before_valid + between, after[0]))
    times = [time for history in lists(dataset) for _, time in history]
    if not min(times) < valid_from < test_from <= max(times):
        with pytest.raises(InputError, match=r"there is no interaction|the first before the second"):
            split_by_time(dataset, valid_from + shift, test_from + shift)
        return
    split = split_by_time(dataset, valid_from + shift, test_from + shift)
    assert items_of(split.train) == train
    assert pairs(split.valid) == valid
    assert pairs(split.test) == test
    assert split.before_test is not None
    assert items_of(split.before_test) == before_test


def test_by_time_holds_nothing_of_the_future():
    random = np.random.default_rng(0)
    count = 20_000
    dataset = dataset_of(
        list(
            zip(
                random.integers(0, 900, count),
                random.integers(0, 50, count),
                random.integers(0, 4000, count),
                strict=True,
            )
        )
    )
    split = split_by_time(dataset)
    valid_from, test_from = np.sort(dataset.timestamps)[[int(np.ceil(0.8 * (count - 1))), 9 * count // 10]]
    inputs = {"train": split.train, "valid": split.valid.histories, "test": split.test.histories}
    for name, histories in inputs.items():
        assert len(histories) > 500
        for start, end in zip(histories.starts, histories.ends, strict=True):
            assert (dataset.timestamps[start:end] < (test_from if name == "test" else valid_from)).all()
    for targets, low, high in ((split.valid, valid_from, test_from), (split.test, test_from, np.inf)):
        times = dataset.timestamps[targets.histories.ends]
        assert ((times >= low) & (times < high)).all()
        assert (targets.histories.lengths > 0).all()
        assert (targets.histories.ends < dataset.offsets[targets.histories.users + 1]).all()


def test_by_time_takes_one_default_and_one_cut():
    dataset = dataset_of([(1, item, item) for item in range(100)])
    split = split_by_time(dataset, valid_from=50)
    assert split.train.lengths.tolist() == [50]
    assert split.test.histories.lengths.tolist() == [90]
    split = split_by_time(dataset, test_from=95)
    assert split.valid.histories.lengths.tolist() == [80]
    assert split.test.items.tolist() == [96]


@pytest.mark.parametrize(
    ("valid_from", "test_from", "message"),
    [
        (8, 5, r"start at 8 .* and the test at 5 .*; give two moments, the first before the second"),
        (5, 5, "the first before the second"),
        (0, 5, r"there is no interaction before valid_from = 0 \(1970-01-01T00:00:00\); the log runs from 0 .* to 9 "),
        (-10, -5, "there is no interaction before valid_from = -10"),
        (10, None, "there is no interaction at or after valid_from = 10 .*; the log runs from 0 "),
        (5, 10, "there is no interaction at or after test_from = 10 "),
        (None, "2020-09-26", r"there is no interaction at or after test_from = 1601078400 \(2020-09-26T00:00:00\)"),
        (10**30, None, "there is no interaction at or after valid_from = 1000000000000000000000;"),
        (float("nan"), 5, "valid_from is nan; give an ISO date"),
        (5, "yesterday", "test_from is 'yesterday'; give an ISO date"),
        (True, None, "valid_from is True"),
    ],
)
def test_bad_cuts(valid_from, test_from, message):
    with pytest.raises(InputError, match=message):
        split_by_time(dataset_of([(1, item, item) for item in range(10)]), valid_from, test_from)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("2020-09-26", 1601078400),
        ("2020/09/26", 1601078400),
        ("2020-09-26T10:00", 1601114400),
        ("2020-09-26 10:00:30.9Z", 1601114430),
        ("2020-09-26T10:00+05:30", 1601094600),
        ("2020-09-26 10:00 UTC", 1601114400),
        (date(2020, 9, 26), 1601078400),
        (datetime(2020, 9, 26, 10, tzinfo=UTC), 1601114400),
        (1601139189, 1601139189),
        ("1601139189", 1601139189),
        (1601139189999, 1601139189),
        ("1601139189000000", 1601139189),
        (1601139189000000000, 1601139189),
        (-5, -5),
        (7.9, 7),
    ],
)
def test_moments_are_dates_or_numbers_of_any_unit(given, seconds):
    assert moment_of(given) == seconds
    assert SplitConfig(split="time", valid_from=given).valid_from == seconds


def test_cuts_as_the_log_has_them_split_as_seconds_do():
    dataset = dataset_of([(user, item, 1_600_000_000 + 60 * item) for user in range(5) for item in range(10)])
    plain = split_by_time(dataset, 1_600_000_240, 1_600_000_420)
    for valid_from, test_from in (
        (1_600_000_240_000, 1_600_000_420_000),
        ("2020-09-13T12:30:40", "2020-09-13T14:33:40+02:00"),
    ):
        split = split_by_time(dataset, valid_from, test_from)
        assert pairs(split.valid) == pairs(plain.valid)
        assert pairs(split.test) == pairs(plain.test)


def test_share_of_targets_that_repeat():
    again = dataset_of([(user, item % 3, item) for user in range(4) for item in range(6)])
    assert split_last_two(again).valid.repeated() == 1.0
    once = dataset_of([(user, item, item) for user in range(4) for item in range(6)])
    assert split_last_two(once).valid.repeated() == 0.0
    assert split_last_two(dataset_of([(1, 1, 1), (1, 2, 2)])).valid.repeated() == 0.0
    half = dataset_of([(1, 1, 1), (1, 1, 2), (1, 2, 3), (2, 1, 1), (2, 2, 2), (2, 3, 3)])
    assert split_last_two(half).valid.repeated() == 0.5


def test_by_time_needs_times():
    with pytest.raises(InputError, match="needs timestamps"):
        split_by_time(dataset_of([(1, 2, 3), (1, 3, 4)], has_timestamps=False), 1, 2)


def test_all_times_equal_is_an_error_not_an_empty_split():
    with pytest.raises(InputError, match="two moments"):
        split_by_time(dataset_of([(1, item, 7) for item in range(10)]))


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, data=st.data())
def test_take_and_item_counts(rows, data):
    dataset = dataset_of(rows)
    everything = all_histories(dataset)
    assert items_of(everything) == [(u, [item for item, _ in h]) for u, h in enumerate(lists(dataset))]
    np.testing.assert_array_equal(everything.item_counts(), dataset.item_counts)
    split = split_last_two(dataset)
    some = np.array(data.draw(st.permutations(range(len(split.train)))), dtype=np.int64)
    some = some[: data.draw(st.integers(0, len(some)))]
    taken = split.train.take(some)
    assert items_of(taken) == [items_of(split.train)[row] for row in some]
    expected = np.zeros(dataset.num_items + 1, dtype=np.int64)
    for _, items in items_of(taken):
        np.add.at(expected, items, 1)
    np.testing.assert_array_equal(taken.item_counts(), expected)
    rows = slice(1, 3)
    assert pairs(split.test.take(rows)) == pairs(split.test)[rows]
    mask = split.test.items > 2
    assert pairs(split.test.take(mask)) == [pair for pair in pairs(split.test) if pair[2] > 2]


def test_nothing_is_copied():
    dataset = dataset_of([(user, item, item) for user in range(5) for item in range(5)])
    for split in (split_last_two(dataset), split_by_time(dataset, 2, 4)):
        for histories in (split.train, split.valid.histories, split.test.histories):
            assert histories.dataset is dataset


def busy(users: int = 60, length: int = 20, start: int = 1_600_000_000) -> list[tuple[int, int, int]]:
    """Users who are all active all the time."""
    return [
        (user, (7 * user + step) % 30, start + 1000 * step + user) for user in range(users) for step in range(length)
    ]


def test_auto_splits_by_time_if_it_can():
    dataset = dataset_of(busy())
    split = SplitConfig().apply(dataset)
    assert (split.name, split.reason) == ("time", "the log has times")
    wanted = split_by_time(dataset)
    assert (pairs(split.valid), pairs(split.test)) == (pairs(wanted.valid), pairs(wanted.test))
    assert split.cuts == wanted.cuts == (1_600_016_000, 1_600_018_000)
    given = SplitConfig(valid_from=1_600_010_000).apply(dataset)
    assert (given.name, given.reason) == ("time", "cut points are given")
    assert pairs(given.valid) == pairs(split_by_time(dataset, 1_600_010_000).valid)
    assert SplitConfig("time").apply(dataset).reason is None


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            [(user, item, item) for user in range(80) for item in range(8)],
            "its times only number the interactions of each user",
        ),
        ([(user, item, 5) for user in range(80) for item in range(8)], "all its times are equal"),
        (
            [(u, u + i, 5 + (u == 3) * (i == 7)) for u in range(80) for i in range(8)],
            r"its times cannot be divided \(validation would start at 5 .* and the test at 5 [^;]*\)",
        ),
        (busy(users=30), "the number of users with two interactions before the first cut point is 30, and .* needs 50"),
        (
            [(u, i, 1000 * u + i) for u in range(80) for i in range(8)],
            r"users active both before and in the time of validation is [01], and .* needs 50 here",
        ),
        (
            [*busy(), *((u, i, 10**6 * u + i) for u in range(1000, 9000) for i in range(3))],
            r"users active both before and in the time of validation is \d+, and .* needs 81 here",
        ),
    ],
)
def test_auto_says_why_it_cannot_split_by_time(rows, reason):
    dataset = dataset_of(rows)
    split = SplitConfig().apply(dataset)
    assert split.name == "last-two"
    assert re.search(reason, split.reason)
    assert f"last-two, for comparison with papers (because {split.reason}); training has" in split.check().lines()[0]
    assert pairs(split.test) == pairs(split_last_two(dataset).test)
    assert split.check().reason == split.reason


def test_auto_without_times():
    split = SplitConfig().apply(dataset_of(busy(), has_timestamps=False))
    assert (split.name, split.reason, split.cuts) == ("last-two", "the log has no times", None)


def test_last_two_takes_no_cut_points():
    with pytest.raises(InputError, match="need a split by time; give --split time, or leave out --split"):
        SplitConfig("last-two", test_from=5).apply(dataset_of(busy()))
