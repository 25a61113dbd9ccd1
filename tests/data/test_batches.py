import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.batches import Batch, histories_of, pack, trainable, training_batches
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
    for name, value in vars(batch).items():
        assert value.dtype == torch.int64, name
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


@settings(max_examples=150, deadline=None)
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
    batch = pack(all_histories(dataset_of([3, 2])), 4)
    assert batch.to("cpu") is batch
    there = batch.to("meta")
    assert {value.device.type for value in vars(there).values()} == {"meta"}
    assert there.items.shape == batch.items.shape


def epoch(histories, epoch=0, seed=5, first_step=0, batch_size=4) -> list[list]:
    batches = training_batches(
        histories, batch_size=batch_size, max_length=6, seed=seed, epoch=epoch, first_step=first_step
    )
    return [unpack(batch) for batch in batches]


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
