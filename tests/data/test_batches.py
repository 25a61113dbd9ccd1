import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.batches import Batch, Columns, Epoch, histories_of, pack, trainable
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories, split_last_two

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def dataset_of(lengths: list[int], seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(lengths)), lengths)
    return prepare(
        pl.DataFrame(
            {
                "user_id": users,
                "item_id": random.integers(0, 20, len(users)),
                "timestamp": random.integers(0, 1000, len(users)),
            }
        )
    )


def unpack(batch: Batch) -> list[tuple[int, list[int], list[int], list[int], list[int]]]:
    """(user, items, targets, positions, timestamps) of each row; checks types and sizes."""
    for name in ("items", "targets", "positions", "offsets", "users", "timestamps"):
        assert getattr(batch, name).dtype == torch.int64, name
    total = int(batch.offsets[-1])
    assert {len(getattr(batch, name)) for name in ("items", "targets", "positions", "timestamps")} == {total}
    assert batch.offsets[0] == 0
    assert len(batch.offsets) == len(batch) + 1 == len(batch.users) + 1
    return [
        (
            int(batch.users[row]),
            *(
                getattr(batch, name)[batch.offsets[row] : batch.offsets[row + 1]].tolist()
                for name in ("items", "targets", "positions", "timestamps")
            ),
        )
        for row in range(len(batch))
    ]


def naive(histories: Histories, max_length: int, with_targets: bool) -> list:
    result = []
    for user, start, end in zip(histories.users, histories.starts, histories.ends, strict=True):
        items = histories.dataset.items[start:end].tolist()
        times = histories.dataset.timestamps[start:end].tolist()
        targets = [0] * len(items)
        if with_targets:
            items, targets, times = items[:-1], items[1:], times[:-1]
        items, targets, times = items[-max_length:], targets[-max_length:], times[-max_length:]
        result.append((int(user), items, targets, list(range(len(items))), times))
    return result


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, max_length=st.integers(1, 12), with_targets=st.booleans(), data=st.data())
def test_pack_is_the_naive_loop(lengths, max_length, with_targets, data):
    histories = split_last_two(dataset_of(lengths)).train
    rows = data.draw(st.lists(st.integers(0, len(histories) - 1), max_size=15))
    histories = histories.take(np.array(rows, dtype=np.int64))
    batch = pack(histories, max_length, with_targets)
    assert unpack(batch) == naive(histories, max_length, with_targets)
    lengths = [len(row[1]) for row in unpack(batch)]
    assert batch.lengths.tolist() == lengths
    assert batch.rows.tolist() == [row for row, length in enumerate(lengths) for _ in range(length)]
    if all(lengths):
        assert batch.items[batch.last].tolist() == [row[1][-1] for row in unpack(batch)]


def test_targets_are_the_next_items():
    histories = histories_of(dataset_of([30]), [np.array([3, 1, 4, 1, 5]), np.array([9, 2])])
    batch = pack(histories, max_length=3, with_targets=True)
    assert unpack(batch) == [(-1, [1, 4, 1], [4, 1, 5], [0, 1, 2], [1, 2, 3]), (-1, [9], [2], [0], [0])]
    batch = pack(histories, max_length=3)
    assert unpack(batch) == [(-1, [4, 1, 5], [0] * 3, [0, 1, 2], [2, 3, 4]), (-1, [9, 2], [0, 0], [0, 1], [0, 1])]


def test_histories_without_an_item_give_no_token():
    histories = histories_of(dataset_of([3]), [np.array([], dtype=np.int64), np.array([2, 3]), np.array([1])])
    for with_targets, lengths in ((False, [0, 2, 1]), (True, [0, 1, 0])):
        batch = pack(histories, 5, with_targets)
        assert batch.lengths.tolist() == lengths
        assert len(unpack(batch)) == 3
    assert len(pack(histories_of(dataset_of([3]), []), 5)) == 0


def test_histories_of_strangers_keep_their_times():
    dataset = dataset_of([4, 4])
    histories = histories_of(dataset, [np.array([1, 2]), np.array([3])], [np.array([50, 60]), np.array([7])])
    assert [row[4] for row in unpack(pack(histories, 5))] == [[50, 60], [7]]
    assert histories.dataset.num_items == dataset.num_items
    assert histories.users.tolist() == [-1, -1]


def test_pack_does_not_share_memory_with_the_dataset():
    dataset = dataset_of([5, 5])
    before = dataset.items.copy(), dataset.timestamps.copy()
    batch = pack(all_histories(dataset), 5)
    batch.items.zero_()
    batch.timestamps.zero_()
    np.testing.assert_array_equal(dataset.items, before[0])
    np.testing.assert_array_equal(dataset.timestamps, before[1])


def test_pack_reads_memory_maps(tmp_path):
    dataset = dataset_of([5, 1, 8])
    dataset.save(tmp_path / "log")
    mapped = Dataset.load(tmp_path / "log")
    assert unpack(pack(all_histories(mapped), 4)) == unpack(pack(all_histories(dataset), 4))


def test_to_another_device_moves_every_part():
    dataset = dataset_of([3, 2])
    batch = pack(all_histories(dataset), 4, columns=columns_of(dataset))
    assert batch.to("cpu") is batch
    there = batch.to("meta")
    assert there.host_offsets is batch.offsets  # which needs no copy back
    parts = {**vars(there), **there.of_tokens, **there.of_users}
    del parts["host_offsets"]
    assert {name for name, value in parts.items() if isinstance(value, dict)} == {"of_tokens", "of_users"}
    tensors = [value for value in parts.values() if not isinstance(value, dict)]
    assert {value.device.type for value in tensors} == {"meta"}
    assert len(tensors) == 6 + 3
    assert there.items.shape == batch.items.shape


@pytest.mark.cuda
def test_nothing_waits_for_a_batch_on_its_way_to_a_gpu():
    batch = pack(all_histories(dataset_of([3, 2, 7])), 4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = batch.to("cuda")
        rows = there.rows
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(rows.cpu(), batch.rows)
    assert torch.equal(there.items.cpu(), batch.items)


def columns_of(dataset: Dataset) -> Columns:
    """A column of each kind, whose values say what they are of."""
    return Columns(
        interactions={"rating": np.arange(dataset.num_interactions, dtype=np.float32) / 2},
        items={"category": np.arange(dataset.num_items + 1) * 10},
        users={"age": np.append(np.arange(dataset.num_users) + 20, -1)},
    )


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, max_length=st.integers(1, 12), with_targets=st.booleans())
def test_extra_columns_go_with_their_tokens_and_users(lengths, max_length, with_targets):
    dataset = dataset_of(lengths)
    histories = all_histories(dataset)
    batch = pack(histories, max_length, with_targets, columns_of(dataset))
    ratings = [float(place) / 2 for start, end in zip(histories.starts, histories.ends, strict=True)
               for place in list(range(start, end - with_targets))[-max_length:]]  # fmt: skip
    assert batch.of_tokens["rating"].tolist() == ratings
    assert batch.of_tokens["category"].tolist() == (10 * batch.items).tolist()
    assert batch.of_users["age"].tolist() == (batch.users + 20).tolist()


def test_columns_by_name():
    dataset = dataset_of([3, 2])
    columns = columns_of(dataset)
    batch = pack(histories_of(dataset, [np.array([2, 1])]), 5, columns=Columns(users=columns.users))
    assert batch.of_users["age"].tolist() == [-1]  # of a stranger
    chosen = columns.only({"category", "age"})
    assert (set(chosen.interactions), set(chosen.items), set(chosen.users)) == (set(), {"category"}, {"age"})
    assert not pack(all_histories(dataset), 5, columns=columns.only([])).of_tokens
    with pytest.raises(ValueError, match="the extra column price is missing"):
        columns.only({"age", "price"})
    with pytest.raises(ValueError, match="names of extra columns are not unique"):
        Columns(items=columns.items, users={"category": columns.users["age"]})


def epoch(histories, epoch=0, seed=5, first_step=0, batch_size=4) -> list[list]:
    batches = Epoch(histories, batch_size=batch_size, max_length=6, seed=seed, epoch=epoch)
    return [unpack(batches[step]) for step in range(first_step, len(batches))]


def joined(batches: list[list]) -> list:
    return [row for batch in batches for row in batch]


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 15), number=st.integers(0, 3))
def test_an_epoch_covers_each_trainable_user_once(lengths, batch_size, number):
    histories = all_histories(dataset_of(lengths))
    batches = epoch(histories, number, batch_size=batch_size)
    rows = joined(batches)
    expected = [row for row in naive(histories, 6, True) if row[1]]
    assert sorted(rows) == sorted(expected)
    assert {row[0] for row in rows} == {u for u, length in enumerate(lengths) if length >= 2}
    assert all(target > 0 for row in rows for target in row[2])
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_epochs_and_seeds_differ_and_repeat():
    histories = all_histories(dataset_of([5] * 50))
    assert epoch(histories, 0) == epoch(histories, 0)
    orders = {
        (seed, number): tuple(row[0] for row in joined(epoch(histories, number, seed)))
        for seed in range(3)
        for number in range(3)
    }
    assert len(set(orders.values())) == 9
    assert tuple(range(50)) not in orders.values()


@pytest.mark.parametrize("first_step", range(15))
def test_an_epoch_resumes_at_any_step(first_step):
    histories = all_histories(dataset_of([1, 2, 3, 4, 5] * 11))
    assert epoch(histories, 3, first_step=first_step) == epoch(histories, 3)[first_step:]


def test_the_shuffle_is_even():
    # Each user stands in each place equally often; the bound is five standard deviations.
    histories = all_histories(dataset_of([2] * 5))
    counts = np.zeros((5, 5))
    for number in range(2000):
        for place, row in enumerate(joined(epoch(histories, number))):
            counts[place, row[0]] += 1
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)


def test_trainable_keeps_two_items_and_more():
    histories = all_histories(dataset_of([1, 2, 3, 1]))
    assert trainable(histories).users.tolist() == [1, 2]
    assert epoch(all_histories(dataset_of([1, 1]))) == []


def naive_windows(histories: Histories, max_length: int) -> list[tuple[int, list[int]]]:
    """(user, items) of all windows: each goes on from the last item of the one before it."""
    found = []
    for user, start, end in zip(histories.users, histories.starts, histories.ends, strict=True):
        items = histories.dataset.items[start:end].tolist()
        while len(items) >= 2:
            found.append((int(user), items[-max_length - 1 :]))
            items = items[: max(len(items) - max_length, 0)]
    return found


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    max_length=st.integers(1, 12),
    batch_size=st.integers(1, 9),
    number=st.integers(0, 3),
)
def test_all_windows_cover_every_interaction_once(lengths, max_length, batch_size, number):
    histories = split_last_two(dataset_of(lengths)).train
    options = {"batch_size": batch_size, "max_length": max_length, "seed": 1, "epoch": number}
    every = Epoch(histories, **options, windows="all")
    rows = [row for batch in every for row in unpack(batch)]
    assert sorted((user, [*items, targets[-1]]) for user, items, targets, _, _ in rows) == sorted(
        naive_windows(histories, max_length)
    )
    # Every item of a history but its first is a target once; equal items are told apart by the time before them.
    expected = [(user, item, time) for user, start, end in zip(histories.users, histories.starts, histories.ends,
                                                               strict=True)
                for item, time in zip(histories.dataset.items[start + 1 : end].tolist(),
                                      histories.dataset.timestamps[start : end - 1].tolist(), strict=True)]  # fmt: skip
    found = [(user, item, time) for user, _, targets, _, times in rows
             for item, time in zip(targets, times, strict=True)]  # fmt: skip
    assert sorted(found) == sorted(expected)
    assert all(len(row[1]) <= max_length for row in rows)
    assert every.tokens == len(expected) == sum(len(batch.items) for batch in every)
    assert len(every) == -(-len(rows) // batch_size) == len([*every])
    last = Epoch(histories, **options)
    assert last.tokens == sum(len(batch.items) for batch in last) <= every.tokens
    if max(lengths) - 3 <= max_length:
        assert [unpack(batch) for batch in every] == [unpack(batch) for batch in last]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=25),
    world=st.integers(1, 6),
    batch_size=st.integers(1, 12),
    windows=st.sampled_from(["last", "all"]),
)
def test_shards_are_parts_of_the_batches_of_one_process(lengths, world, batch_size, windows):
    histories = all_histories(dataset_of(lengths))
    options = {"batch_size": batch_size, "max_length": 6, "seed": 2, "epoch": 3, "windows": windows}
    alone = Epoch(histories, **options)
    shards = [Epoch(histories, **options, shard=(rank, world)) for rank in range(world)]
    assert {len(shard) for shard in shards} == {len(alone)}  # or one would wait for the others for ever
    assert {shard.tokens for shard in shards} == {alone.tokens}
    for step in range(len(alone)):
        parts = [shard[step] for shard in shards]
        spare = [world > 1 and shard.part(step).is_empty for shard in shards]
        rows = [row for part, none in zip(parts, spare, strict=True) if not none for row in unpack(part)]
        assert rows == unpack(alone[step])
        assert all(unpack(part) == unpack(alone[step])[:1] for part, none in zip(parts, spare, strict=True) if none)
        tokens = [0 if none else len(part.items) for part, none in zip(parts, spare, strict=True)]
        assert max(tokens) - min(tokens) <= 2 * max(alone[step].lengths)


def test_windows_that_start_anywhere():
    histories = all_histories(dataset_of([30] * 40 + [4] * 5))
    options = {"batch_size": 45, "max_length": 6, "seed": 0}
    batch = Epoch(histories, **options, random_start=0.5)[0]
    ends = {row[0]: row for row in naive(histories, 6, True)}
    elsewhere = [row for row in unpack(batch) if row != ends[row[0]]]
    assert 8 < len(elsewhere) < 32
    assert {len(row[1]) for row in elsewhere} == {6}
    assert len(batch.items) == Epoch(histories, **options).tokens


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_epochs_that_are_none(shard):
    histories = all_histories(dataset_of([5, 5]))
    with pytest.raises(ValueError, match="shard is"):
        Epoch(histories, batch_size=4, max_length=6, seed=0, shard=shard)
    with pytest.raises(ValueError, match="windows='all', which shows every window"):
        Epoch(histories, batch_size=4, max_length=6, seed=0, random_start=0.1, windows="all")
    one = Epoch(histories, batch_size=4, max_length=6, seed=0)
    for step in (-1, 1):
        with pytest.raises(IndexError):
            one[step]
