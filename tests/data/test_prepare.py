import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.dataset import Dataset, Statistics
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.errors import InputError

# Rows of a log: few users, items and moments, so that ties, repetitions and small counts abound.
ROWS = st.lists(
    st.tuples(st.integers(-2, 4), st.integers(0, 6), st.integers(0, 3), st.integers(1, 5)),
    min_size=1,
    max_size=60,
)


def frame_of(rows, has_timestamps=True, as_text=False) -> pl.DataFrame:
    users, items, times, ratings = zip(*rows, strict=True)
    columns = {"user_id": pl.Series(users, dtype=pl.Int64), "item_id": pl.Series(items, dtype=pl.Int64)}
    if as_text:
        columns = {name: column.cast(pl.String) for name, column in columns.items()}
    if has_timestamps:
        columns["timestamp"] = pl.Series(times, dtype=pl.Int64)
    return pl.DataFrame({**columns, "rating": pl.Series(ratings, dtype=pl.Float64)})


def naive(rows, config: PrepareConfig, has_timestamps=True) -> dict[int, list[tuple[int, int]]]:
    """The (item id, time) history of each user, by loops over Python lists."""
    histories: dict[int, list[tuple[int, int, int]]] = {}
    for line, (user, item, time, rating) in enumerate(rows):
        histories.setdefault(user, []).append((item, time if has_timestamps else line, rating))
    for user, history in histories.items():
        history = sorted(history, key=lambda entry: entry[1])  # Python's sort is stable
        if config.min_rating is not None:
            history = [entry for entry in history if entry[2] >= config.min_rating]
        kept, met = [], set()
        for entry in history:
            if config.duplicates == "drop" and entry[0] in met:
                continue
            if config.duplicates == "drop-consecutive" and kept and kept[-1][0] == entry[0]:
                continue
            kept.append(entry)
            met.add(entry[0])
        histories[user] = kept
    while True:
        counts = Counter(entry[0] for history in histories.values() for entry in history)
        smaller = {
            user: [entry for entry in history if counts[entry[0]] >= config.min_item_interactions]
            if len(history) >= config.min_user_interactions
            else []
            for user, history in histories.items()
        }
        done = config.core == "once" or smaller == histories
        histories = smaller
        if done:
            break
    return {u: [(item, time) for item, time, _ in h] for u, h in histories.items() if h}


def by_user(dataset: Dataset) -> dict:
    """The same form as ``naive``'s, from the arrays."""
    return {
        dataset.user_ids[u]: [
            (dataset.item_ids[int(dataset.items[n]) - 1], int(dataset.timestamps[n]))
            for n in range(dataset.offsets[u], dataset.offsets[u + 1])
        ]
        for u in range(dataset.num_users)
    }


def check_arrays(dataset: Dataset) -> None:
    assert dataset.items.dtype == np.int32
    assert dataset.timestamps.dtype == np.int64
    assert dataset.offsets.dtype == np.int64
    assert dataset.offsets[0] == 0
    assert dataset.offsets[-1] == dataset.num_interactions
    assert (np.diff(dataset.offsets) > 0).all()
    assert set(dataset.items.tolist()) == set(range(1, dataset.num_items + 1))
    for ids in (dataset.user_ids, dataset.item_ids):
        assert ids.to_list() == sorted(set(ids.to_list()))


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS,
    has_timestamps=st.booleans(),
    as_text=st.booleans(),
    config=st.builds(
        PrepareConfig,
        min_rating=st.sampled_from([None, 2, 3.5]),
        duplicates=st.sampled_from(["keep", "drop-consecutive", "drop"]),
        min_user_interactions=st.integers(1, 4),
        min_item_interactions=st.integers(1, 4),
        core=st.sampled_from(["once", "repeat"]),
    ),
)
def test_prepare_is_the_naive_loop(rows, has_timestamps, as_text, config):
    expected = naive(rows, config, has_timestamps)
    frame = frame_of(rows, has_timestamps, as_text)
    if not expected:
        with pytest.raises(InputError, match="nothing is left of"):
            prepare(frame, config)
        return
    dataset = prepare(frame, config)
    check_arrays(dataset)
    if as_text:
        expected = {str(u): [(str(item), time) for item, time in h] for u, h in expected.items()}
    assert by_user(dataset) == expected
    assert dataset.has_timestamps == has_timestamps


def test_many_ties_keep_the_order_of_the_log():
    # Large enough for a parallel or unstable sort to show itself; the item tells the line.
    random = np.random.default_rng(0)
    count = 50_000
    users = random.integers(0, 20, count)
    times = random.integers(0, 3, count)
    dataset = prepare(pl.DataFrame({"user_id": users, "item_id": np.arange(count), "timestamp": times}))
    expected = np.lexsort((np.arange(count), times, users))
    np.testing.assert_array_equal(dataset.items - 1, expected)
    np.testing.assert_array_equal(dataset.timestamps, times[expected])


def test_without_times_the_rows_are_the_order():
    random = np.random.default_rng(1)
    users = random.integers(0, 20, 5000)
    dataset = prepare(pl.DataFrame({"user_id": users, "item_id": np.arange(5000)}))
    expected = np.lexsort((np.arange(5000), users))
    np.testing.assert_array_equal(dataset.items - 1, expected)
    np.testing.assert_array_equal(dataset.timestamps, expected)
    assert dataset.statistics.tied_timestamps is None


@pytest.mark.parametrize(
    "ids",
    [
        [5, 3, 5, 9],  # near together: a table
        [-(2**62), 2**62, 0, 2**62],  # far apart: a join
        [2**63 - 1, 2**63 - 3, 2**63 - 1, 2**63 - 2],
        [-(2**63), -(2**63) + 2, -(2**63), -(2**63) + 1],
        ["b", "", "ä", "b"],
        ["10", "9", "010", "10"],
    ],
)
def test_ids_round_trip(ids):
    dataset = prepare(pl.DataFrame({"user_id": ids, "item_id": ids[::-1], "timestamp": [1, 2, 3, 4]}))
    assert dataset.user_ids.to_list() == sorted(set(ids))
    assert by_user(dataset) == {
        one: [(item, time) for user, item, time in zip(ids, ids[::-1], [1, 2, 3, 4], strict=True) if user == one]
        for one in set(ids)
    }
    np.testing.assert_array_equal(dataset.user_indices(ids), [sorted(set(ids)).index(one) for one in ids])
    np.testing.assert_array_equal(dataset.item_indices(ids), dataset.user_indices(ids) + 1)


def numbers() -> Dataset:
    return prepare(pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 9, 7], "timestamp": [1, 2, 3]}))


def words() -> Dataset:
    return prepare(pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["7", "a", "7"]}))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["7"], [1]),
        (["7", 9, None, "x"], [1, 2, 0, 0]),
        (np.array([9, 7, 8]), [2, 1, 0]),
        (pl.Series([9, None]), [2, 0]),
        (pl.Series(["9", "7"]), [2, 1]),
        (np.array([7], dtype=np.uint8), [1]),
        ([7.0, 9.0], [1, 2]),
        ([7.5, 6.99999, float("nan"), float("inf")], [0, 0, 0, 0]),
        ([2**63, 2**64 + 7, -(2**70)], [0, 0, 0]),
        (["18446744073709551623", "7.0", " 7", "07.0", "7.5"], [0, 1, 0, 0, 0]),
        ([None], [0]),
        ([], []),
        (pl.Series([], dtype=pl.String), []),
        (iter([9, 7]), [2, 1]),
    ],
)
def test_lookup_among_integers(ids, expected):
    found = numbers().item_indices(ids)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, "a"], [1, 2]),
        ([7], [1]),
        ([7.0, 7.5], [1, 0]),
        (["A", "", None], [0, 0, 0]),
        ([2**70], [0]),
    ],
)
def test_lookup_among_strings(ids, expected):
    assert words().item_indices(ids).tolist() == expected


def test_lookup_of_unknown_users_and_of_what_is_no_id():
    assert numbers().user_indices([2, 3, 1]).tolist() == [1, -1, 0]
    assert words().user_indices(["v", "w"]).tolist() == [1, -1]
    with pytest.raises(InputError, match="list of ids"):
        numbers().user_indices("12")
    with pytest.raises(InputError, match="integers or strings"):
        numbers().user_indices([(1, 2)])


def test_min_rating_without_ratings_and_with_gaps():
    frame = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "rating": [None, 4.0, 3.0]})
    with pytest.raises(InputError, match="1 of 3 interactions have none"):
        prepare(frame, PrepareConfig(min_rating=4))
    assert prepare(frame[1:], PrepareConfig(min_rating=4)).item_ids.to_list() == [2]
    with pytest.raises(InputError, match="needs a rating column"):
        prepare(frame.drop("rating"), PrepareConfig(min_rating=4))


def test_duplicates():
    frame = pl.DataFrame({"user_id": [1] * 6 + [2], "item_id": [5, 5, 6, 5, 6, 6, 6]})

    def items(rule):
        return by_user(prepare(frame, PrepareConfig(duplicates=rule)))

    assert items("keep")[1] == [(5, 0), (5, 1), (6, 2), (5, 3), (6, 4), (6, 5)]
    assert items("drop-consecutive") == {1: [(5, 0), (6, 2), (5, 3), (6, 4)], 2: [(6, 6)]}
    assert items("drop") == {1: [(5, 0), (6, 2)], 2: [(6, 6)]}


def test_once_differs_from_repeat():
    # User 3 falls; then item 2 has one interaction left, and only ``repeat`` counts again.
    frame = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 3], "item_id": [1, 1, 2, 1, 1, 2]})
    once = prepare(frame, PrepareConfig(min_user_interactions=2, min_item_interactions=2, core="once"))
    repeat = prepare(frame, PrepareConfig(min_user_interactions=2, min_item_interactions=2, core="repeat"))
    assert once.item_ids.to_list() == [1, 2]
    assert repeat.item_ids.to_list() == [1]
    assert (once.num_interactions, repeat.num_interactions) == (5, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_user_interactions": 0}, "min_user_interactions is 0; give 1 or more"),
        ({"min_item_interactions": -3}, "min_item_interactions is -3"),
        ({"core": "twice"}, "core is 'twice'; give once or repeat"),
        ({"duplicates": "no"}, "duplicates is 'no'"),
        ({"min_user_interactions": 100}, "nothing is left of 3 interactions after the filters .*100"),
        ({"min_item_interactions": 100}, "nothing is left of 3 interactions"),
    ],
)
def test_bad_configs(values, message):
    frame = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 1]})
    with pytest.raises(InputError, match=message) as raised:
        prepare(frame, PrepareConfig(**values))
    assert "\n" not in str(raised.value)


def test_everything_rated_too_low_and_an_empty_log():
    frame = frame_of([(1, 1, 1, 3), (1, 2, 2, 3)])
    with pytest.raises(InputError, match=r"nothing is left of 2 interactions .*min_rating=4"):
        prepare(frame, PrepareConfig(min_rating=4))
    with pytest.raises(InputError, match="no interactions"):
        prepare(frame.head(0))


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, min_user=st.integers(1, 3))
def test_statistics(rows, min_user):
    config = PrepareConfig(min_user_interactions=min_user)
    kept = naive(rows, config)
    if not kept:
        return
    dataset = prepare(frame_of(rows), config)
    for statistics, histories in ((dataset.before, naive(rows, PrepareConfig())), (dataset.statistics, kept)):
        lengths = [len(history) for history in histories.values()]
        items = {item for history in histories.values() for item, _ in history}
        pairs = Counter((user, time) for user, history in histories.items() for _, time in history)
        tied = sum(count for count in pairs.values() if count > 1)
        assert statistics.users == len(lengths)
        assert statistics.items == len(items)
        assert statistics.interactions == sum(lengths)
        assert statistics.density == pytest.approx(sum(lengths) / len(lengths) / len(items))
        assert statistics.median_length == np.median(lengths)
        assert statistics.p90_length == pytest.approx(np.percentile(lengths, 90))
        assert statistics.max_length == max(lengths)
        assert statistics.tied_timestamps == pytest.approx(tied / sum(lengths))


@pytest.mark.parametrize(
    ("users", "times", "share"), [([0, 1, 2], [5, 5, 5], 0), ([0, 0, 0, 1], [5, 5, 6, 6], 0.5), ([3], [1], 0)]
)
def test_tied_share_does_not_cross_users(users, times, share):
    frame = pl.DataFrame({"user_id": users, "item_id": range(len(users)), "timestamp": times})
    assert prepare(frame).statistics.tied_timestamps == share


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_copies_are_counted_and_can_be_dropped(rows):
    read = [row[:3] for row in rows]
    dataset = prepare(frame_of(rows), PrepareConfig(duplicates="drop-copies"))
    assert dataset.before.copies == len(read) - len(set(read))
    assert dataset.statistics.copies == 0
    assert dataset.num_interactions == len(set(read))
    # The same as if the log had each row once, the first of the copies in its place.
    once = list(dict.fromkeys(read))
    expected = prepare(frame_of([(*row, 1) for row in once]))
    np.testing.assert_array_equal(dataset.items, expected.items)
    np.testing.assert_array_equal(dataset.timestamps, expected.timestamps)
    np.testing.assert_array_equal(dataset.offsets, expected.offsets)
    times = [time for _, _, time in read]
    assert (dataset.before.first_time, dataset.before.last_time) == (min(times), max(times))


def test_without_times_nothing_tells_copies():
    frame = frame_of([(1, 1, 0, 1), (1, 1, 0, 1)], has_timestamps=False)
    statistics = prepare(frame).statistics
    assert (statistics.copies, statistics.first_time, statistics.last_time) == (None, None, None)
    with pytest.raises(InputError, match=r"drop-copies' needs timestamps"):
        prepare(frame, PrepareConfig(duplicates="drop-copies"))


def test_statistics_of_older_datasets_know_less(tmp_path):
    dataset = prepare(frame_of([(1, 1, 0, 1), (1, 1, 0, 1)]))
    dataset.save(tmp_path / "data")
    facts = json.loads((tmp_path / "data/dataset.json").read_text())
    for name in ("copies", "first_time", "last_time"):
        del facts["before"][name]
    (tmp_path / "data/dataset.json").write_text(json.dumps(facts))
    assert Dataset.load(tmp_path / "data").before == Statistics(
        **{**vars(dataset.before), "copies": None, "first_time": None, "last_time": None}
    )


@pytest.mark.parametrize("ratings", [[5.0, None, 1.0], ["5", "tbd", "1"]])
def test_a_minimum_rating_needs_every_rating(ratings):
    frame = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "rating": ratings})
    with pytest.raises(InputError, match=r"of 3 interactions have none"):
        prepare(frame, PrepareConfig(min_rating=2))
    assert prepare(frame).num_interactions == 3


@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_counts_and_seen_keys(rows):
    dataset = prepare(frame_of(rows))
    pairs = [
        (u, int(i))
        for u in range(dataset.num_users)
        for i in dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]]
    ]
    counts = Counter(item for _, item in pairs)
    assert dataset.item_counts.tolist() == [counts[item] for item in range(dataset.num_items + 1)]
    assert dataset.seen_keys.tolist() == sorted(u * (dataset.num_items + 1) + i for u, i in pairs)


@pytest.mark.real
def test_games(real_data):
    rows = np.loadtxt(real_data / "games.txt", dtype=np.int64)
    dataset = prepare(pl.DataFrame({"user_id": rows[:, 0], "item_id": rows[:, 1]}))
    check_arrays(dataset)
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions) == (31_013, 23_715, 287_107)
    statistics = dataset.statistics
    assert statistics == dataset.before
    assert statistics.tied_timestamps is None
    assert statistics.max_length == np.bincount(rows[:, 0]).max()
    order = np.argsort(rows[:, 0], kind="stable")
    np.testing.assert_array_equal(dataset.item_ids.to_numpy()[dataset.items - 1], rows[order, 1])
    np.testing.assert_array_equal(np.repeat(dataset.user_ids, np.diff(dataset.offsets)), rows[order, 0])
