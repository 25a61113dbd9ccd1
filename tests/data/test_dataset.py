import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from forging import change, put, put_ids

from seqrec.data.dataset import Dataset
from seqrec.data.id_table import IdTable
from seqrec.data.mapped import BLOCK, write_array
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.data.split import all_histories, split_last_two
from seqrec.errors import InputError


def numbers() -> Dataset:
    return prepare(pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 9, 7], "timestamp": [1, 2, 3]}))


def words() -> Dataset:
    return prepare(pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["7", "a", "7"]}))


def some_dataset(scale: int = 1) -> Dataset:
    random = np.random.default_rng(2)
    count = 500 * scale
    return prepare(
        pl.DataFrame(
            {
                "user_id": random.integers(0, 60, count),
                "item_id": [f"item-{i}" for i in random.integers(0, 90, count)],
                "timestamp": random.integers(0, 10**10, count),
            }
        ),
        PrepareConfig(min_item_interactions=2),
    )


def check_same(one: Dataset, other: Dataset) -> None:
    for name in ("items", "timestamps", "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert one.user_ids.equals(other.user_ids, check_dtypes=True, check_names=True)
    assert one.item_ids.equals(other.item_ids, check_dtypes=True, check_names=True)
    assert one.has_timestamps == other.has_timestamps
    assert one.before == other.before
    assert one.statistics == other.statistics


def test_save_and_load_memory_maps(tmp_path):
    dataset = some_dataset()
    dataset.save(tmp_path / "new" / "log")
    loaded = Dataset.load(tmp_path / "new" / "log")
    for name in ("items", "timestamps", "offsets"):
        assert isinstance(getattr(loaded, name), np.memmap)
        assert not getattr(loaded, name).flags.writeable
    check_same(loaded, dataset)
    assert loaded.item_indices(["item-3"]).tolist() == dataset.item_indices(["item-3"]).tolist()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["log"]
    loaded.save(tmp_path / "new" / "log")  # onto the files that it is mapped from
    check_same(Dataset.load(tmp_path / "new" / "log"), dataset)
    check_same(loaded, dataset)


def test_a_dataset_without_times_or_origin_survives_saving(tmp_path):
    dataset = replace(words(), before=None)
    dataset.save(str(tmp_path / "log"))
    check_same(Dataset.load(str(tmp_path / "log")), dataset)


def test_saving_through_a_link_keeps_the_link(tmp_path):
    numbers().save(tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    some_dataset().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    check_same(Dataset.load(tmp_path / "there"), some_dataset())


FILES = ["items.npy", "timestamps.npy", "offsets.npy", "user_ids.npy", "user_id_offsets.npy", "item_ids.npy",
         "item_id_offsets.npy", "dataset.json"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        None,
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),
        lambda content: b"\x80" + content,
        lambda content: content[:-3] + b"xyz",
    ],
    ids=["missing", "empty", "half", "one byte short", "zeros", "shifted", "overwritten"],
)
def test_damaged_files_are_one_line(tmp_path, name, damage):
    folder = tmp_path / "log"
    words().save(folder)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage is not None:
        (folder / name).write_bytes(damage(content))
    with pytest.raises(InputError, match="prepare it again") as raised:
        Dataset.load(folder).check()
    assert str(raised.value).startswith(f"{folder}")
    assert "\n" not in str(raised.value)
    assert "pickle" not in str(raised.value)  # no advice to trust the file


@pytest.mark.parametrize(
    "facts",
    [
        {"format_version": "one"},
        {"format_version": None},
        {"interactions": 2},
        {"interactions": "3"},
        {"before": {"users": 1}},
        {"before": "x"},
        *({"without": key} for key in ("format_version", "interactions", "before", "has_timestamps")),
    ],
    ids=str,
)
def test_damaged_facts_are_one_line(tmp_path, facts):
    folder = tmp_path / "log"
    numbers().save(folder)
    whole = json.loads((folder / "dataset.json").read_text()) | facts
    whole.pop(whole.pop("without", None), None)
    (folder / "dataset.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match="prepare it again") as raised:
        Dataset.load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("items", np.array([1, 2], dtype=np.int32)),
        ("items", np.array([1.0, 2.0, 1.0], dtype=np.float32)),
        ("items", np.array([[1], [2], [1]], dtype=np.int32)),
        ("timestamps", np.array([1, 2])),
        ("timestamps", np.array([1, 2, 3, 4])),
        ("offsets", np.array([], dtype=np.int64)),
        ("offsets", np.array([0, 3])),
        ("offsets", np.array([0, 5, 3])),
        ("offsets", np.array([1, 2, 3])),
        ("offsets", np.array([0, 1, 2])),
    ],
)
def test_parts_that_do_not_fit_are_one_line(tmp_path, name, array):
    numbers().save(tmp_path / "log")
    put(tmp_path / "log", name, array)
    with pytest.raises(InputError, match="prepare it again"):
        Dataset.load(tmp_path / "log").check()


@pytest.mark.parametrize("ids", [[1], [1, 2, 3], ["1"], ["1", "2", "3"]])
def test_id_tables_of_another_length_are_one_line(tmp_path, ids):
    numbers().save(tmp_path / "log")
    put_ids(tmp_path / "log", "user", pl.Series(ids))
    with pytest.raises(InputError, match="damaged"):
        Dataset.load(tmp_path / "log")


def test_a_newer_format_asks_for_an_update(tmp_path):
    numbers().save(tmp_path / "log")
    facts = json.loads((tmp_path / "log" / "dataset.json").read_text())
    (tmp_path / "log" / "dataset.json").write_text(json.dumps({**facts, "format_version": 99}))
    with pytest.raises(InputError, match=r"format 99 is newer than .*update seqrec"):
        Dataset.load(tmp_path / "log")


def test_an_older_format_says_what_to_do(tmp_path):
    numbers().save(tmp_path / "log")
    change(tmp_path / "log", format_version=1)
    with pytest.raises(InputError, match=r"format 1 is from an earlier seqrec.*prepare it again"):
        Dataset.load(tmp_path / "log")
    (tmp_path / "log/users.parquet").write_bytes(b"")  # which format 1 had
    numbers().save(tmp_path / "log")
    check_same(Dataset.load(tmp_path / "log"), numbers())


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(InputError, match="is missing or not a folder; prepare it again"):
            Dataset.load(tmp_path / name)


def check_old_is_left(folder: Path, old: Dataset) -> None:
    check_same(Dataset.load(folder), old)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half-written beside it


def test_a_full_disk_midway_leaves_the_old_one(tmp_path, monkeypatch):
    old = numbers()
    old.save(tmp_path / "log")

    def full(path, array):
        if path.name == "offsets.npy":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_array(path, array)

    monkeypatch.setattr("seqrec.data.saved.write_array", full)
    with pytest.raises(InputError, match="log: no space left on the disk") as raised:
        some_dataset().save(tmp_path / "log")
    assert "\n" not in str(raised.value)
    check_old_is_left(tmp_path / "log", old)


def test_an_interruption_midway_leaves_the_old_one(tmp_path, monkeypatch):
    old = numbers()
    old.save(tmp_path / "log")

    def interrupt(path, array):
        if path.name == "item_ids.npy":
            raise KeyboardInterrupt
        return write_array(path, array)

    monkeypatch.setattr("seqrec.data.saved.write_array", interrupt)
    with pytest.raises(KeyboardInterrupt):
        some_dataset().save(tmp_path / "log")
    check_old_is_left(tmp_path / "log", old)


def test_a_failing_rename_leaves_the_old_one(tmp_path, monkeypatch):
    old = numbers()
    old.save(tmp_path / "log")
    rename = Path.replace

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="cannot be written"):
        some_dataset().save(tmp_path / "log")
    monkeypatch.undo()
    check_old_is_left(tmp_path / "log", old)


# A process whose files may not grow past a limit meets what a full disk gives: short writes.
LIMITED = """
import resource, sys
sys.dont_write_bytecode = True
import numpy as np, polars as pl
from seqrec.data.prepare import prepare
from seqrec.errors import InputError
count = 20_000
random = np.random.default_rng(0)
items = [random.bytes(20).hex() for _ in range(count)]
dataset = prepare(pl.DataFrame({"user_id": np.arange(count) // 5, "item_id": items}))
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        dataset.save(sys.argv[1])
    except InputError as error:
        print(error)
"""


def test_short_writes_say_no_space_and_leave_the_old_one(tmp_path):
    pytest.importorskip("resource")
    old = numbers()
    old.save(tmp_path / "log")
    limits = ["0", "50000", "150000", "170000"]  # a header, items, timestamps, an id table
    script = [sys.executable, "-c", LIMITED, str(tmp_path / "log"), *limits]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = f"{tmp_path / 'log'}: no space left on the disk; free some or choose another folder\n"
    assert done.stdout == len(limits) * line
    check_old_is_left(tmp_path / "log", old)


def test_saving_never_removes_what_is_not_a_dataset(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files \(thesis.txt\)"):
        numbers().save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match=r"thesis\.txt: cannot be written"):
        numbers().save(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="cannot be written"):
        numbers().save(tmp_path / "thesis.txt" / "log")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_links_and_pipes_in_a_saved_dataset(tmp_path, name, kind):
    folder = tmp_path / "log"
    words().save(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    if kind == "link":
        (folder / name).symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(folder / name)  # whose opening would wait for a writer
    else:
        (folder / name).mkdir()
    with pytest.raises(InputError, match=name):
        Dataset.load(folder)


def test_arrays_of_objects_are_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    numbers().save(tmp_path / "log")
    np.save(tmp_path / "log/items.npy", np.array([Harm()] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        Dataset.load(tmp_path / "log")
    assert not (tmp_path / "harm").exists()


WRONG = {
    "beyond": ("items", lambda x: x + 100),
    "zero": ("items", lambda x: x * 0),
    "negative": ("items", lambda x: -x),
    "permuted": ("items", lambda x: x[::-1]),
    "exchanged": ("timestamps", lambda x: x[::-1]),
    "late": ("timestamps", lambda x: x + 2**62),
    "earlier": ("timestamps", lambda x: x - 1),
    "falling": ("offsets", lambda x: np.concatenate([x[:1], x[2:3], x[1:2], x[3:]])),
    "shifted": ("offsets", lambda x: np.concatenate([x[:1], x[1:-1] + 1, x[-1:]])),
    "big-endian": ("items", lambda x: x.astype(">i4")),
    "two columns": ("items", lambda x: np.stack([x, x], axis=1)),
    "structure": ("items", lambda x: x.view([("a", np.int32)])),
}


@pytest.mark.parametrize("what", WRONG)
def test_values_of_a_saved_dataset(tmp_path, what):
    name, change = WRONG[what]
    some_dataset().save(tmp_path / "log")
    put(tmp_path / "log", name, np.array(change(np.load(tmp_path / f"log/{name}.npy"))))
    with pytest.raises(InputError, match="prepare it again"):
        Dataset.load(tmp_path / "log").check()


@pytest.mark.parametrize("which", ["user", "item"])
@pytest.mark.parametrize(
    "change",
    [
        lambda ids: ids.reverse(),
        lambda ids: ids.cast(pl.String) + "x",
        lambda ids: ids.head(9),
        lambda ids: pl.Series(range(len(ids))) * 2 - 5,
        lambda ids: pl.Series([ids[0], *ids.head(len(ids) - 1)]),
    ],
)
def test_ids_of_a_saved_dataset(tmp_path, which, change):
    dataset = some_dataset()
    dataset.save(tmp_path / "log")
    put_ids(tmp_path / "log", which, change(getattr(dataset, f"{which}_ids")))
    with pytest.raises(InputError, match="prepare it again"):
        Dataset.load(tmp_path / "log").check()


def test_facts_of_a_saved_dataset(tmp_path):
    numbers().save(tmp_path / "log")
    path = tmp_path / "log/dataset.json"
    whole = json.loads(path.read_text())
    texts = ["[" * 100_000, '{"a":' * 100_000, "[]", "1" * 5000]
    for name in whole:
        for bad in (None, True, -1, 2**70, 1.5, "x", [], {}):
            may_be = {"before": [None], "filters": [None, {}]}.get(name, [])  # what is not known may be left out
            if bad not in may_be and bad is not whole[name]:
                texts.append(json.dumps(whole | {name: bad}))
    for text in texts:
        path.write_text(text)
        with pytest.raises(InputError) as raised:
            Dataset.load(tmp_path / "log").check()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", FILES)
def test_damage_of_a_saved_dataset(tmp_path, name):
    dataset = replace(some_dataset(), users=IdTable(pl.Series([f"u{n:02}" for n in range(60)])))
    dataset.save(tmp_path / "log")
    path = tmp_path / "log" / name
    whole = path.read_bytes()
    dice = np.random.default_rng(3)
    for place in dice.integers(len(whole), size=25):
        flipped = bytes([whole[place] ^ (1 << int(dice.integers(8)))])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            loaded = Dataset.load(tmp_path / "log").check()
        except InputError:
            continue
        assert loaded.fingerprint == dataset.fingerprint


# ---- what is read, and checked, before it is used --------------------------------------------------------------------


def large_dataset() -> Dataset:
    """Enough for several blocks of checksums in each file."""
    random = np.random.default_rng(5)
    users = np.repeat(np.arange(40_000), 5)
    items = [f"item-{i:06}" for i in random.integers(0, 90_000, len(users))]
    return prepare(pl.DataFrame({"user_id": [f"u{u:06}" for u in users], "item_id": items, "timestamp": users}))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "log"
    large_dataset().save(folder)
    return folder


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_damage_elsewhere_is_not_read(large, tmp_path):
    shutil.copytree(large, tmp_path / "log")
    for name in FILES[:-1]:
        assert (tmp_path / "log" / name).stat().st_size > BLOCK + 200
        flip(tmp_path / "log" / name, -1)
    dataset = Dataset.load(tmp_path / "log")
    assert (dataset.num_users, dataset.num_interactions) == (40_000, 200_000)
    found = dataset.user_indices(["u000007", "u000001"])
    assert found.tolist() == [7, 1]
    dataset.check_users(found)
    assert dataset.catalogue.take(np.array([3])).to_list() == large_dataset().item_ids.gather([3]).to_list()
    last = np.array([dataset.num_users - 1])
    for action in (
        lambda: dataset.check_users(last),
        lambda: dataset.user_indices(["u039999"]),
        lambda: dataset.user_indices(["not there"]),
        lambda: dataset.catalogue.take(np.array([dataset.num_items - 1])),
        lambda: dataset.item_counts,
        lambda: dataset.statistics,
        lambda: dataset.seen_keys,
        lambda: dataset.user_ids,
        dataset.check,
        lambda: dataset.save(tmp_path / "again"),
        lambda: split_last_two(dataset),
        lambda: all_histories(dataset),
    ):
        with pytest.raises(InputError, match="is damaged"):
            action()
    assert not (tmp_path / "again").exists()


FORGED = {
    "items": lambda x: np.where(np.arange(len(x)) == 36, 10**6, x).astype(np.int32),
    "timestamps": lambda x: np.where(np.arange(len(x)) == 36, 0, x),
    "offsets": lambda x: np.where(np.arange(len(x)) == 7, 10**9, x),
    "user_id_offsets": lambda x: np.where(np.arange(len(x)) == 20_000, 10**9, x),
    "item_id_offsets": lambda x: np.where(np.arange(len(x)) == 4, -5, x),
    "item_ids": lambda x: np.where(np.arange(len(x)) == 34, 255, x).astype(np.uint8),
}


@pytest.mark.parametrize("name", FORGED)
def test_nothing_out_of_range_is_used(large, tmp_path, name):
    shutil.copytree(large, tmp_path / "log")
    put(tmp_path / "log", name, FORGED[name](np.load(large / f"{name}.npy")))
    dataset = Dataset.load(tmp_path / "log")
    uses = {
        "user_id_offsets": lambda: dataset.user_indices(["u000007"]),
        "item_id_offsets": lambda: dataset.catalogue.take(np.array([3])),
        "item_ids": lambda: dataset.catalogue.take(np.array([3])),
    }
    with pytest.raises(InputError, match="is damaged"):
        uses.get(name, lambda: dataset.check_users(np.array([7])))()
    with pytest.raises(InputError, match="is damaged"):
        dataset.check()


def test_sizes_open_nothing(large):
    dataset = Dataset.load(large)
    assert dataset.num_items == large_dataset().num_items
    assert "series" not in vars(dataset.users) | vars(dataset.catalogue)
    dataset.user_indices(["u000007"])
    dataset.catalogue.take(np.array([3]))
    assert "series" not in vars(dataset.users) | vars(dataset.catalogue)
    assert "item-" not in repr(dataset)


def test_a_saved_dataset_is_the_one_that_was_saved(large, tmp_path):
    dataset, loaded = large_dataset(), Dataset.load(large)
    check_same(loaded.check(), dataset)
    np.testing.assert_array_equal(loaded.item_counts, dataset.item_counts)
    np.testing.assert_array_equal(loaded.seen_keys, dataset.seen_keys)
    ids = [*dataset.user_ids[::500], "x", ""]
    assert loaded.user_indices(ids).tolist() == dataset.user_indices(ids).tolist()
    loaded.save(tmp_path / "again")
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in large.iterdir()
    }


def test_other_arrays_are_not_those_in_the_files(large):
    dataset = Dataset.load(large)
    assert replace(dataset, filters=None).saved is dataset.saved
    other = replace(dataset, timestamps=np.array(dataset.timestamps))
    assert other.saved is None
    assert other.check() is other


def test_an_id_that_64_bits_cannot_hold_is_not_saved(tmp_path):
    ids = pl.Series([1, 2**63], dtype=pl.UInt64)
    dataset = prepare(pl.DataFrame({"user_id": ids, "item_id": ids}))
    with pytest.raises(InputError, match="give such ids as text"):
        dataset.save(tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_noticed_by_the_smallest_array():
    with pytest.raises(OSError, match="No space left"):
        write_array(Path("/dev/full"), np.arange(10))
