"""Folders of Parquet parts: what belongs to the log, what is hidden, what is refused, and types that differ."""

import gzip
import os
import re
import warnings
from datetime import date, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec.data.formats.read import read_log
from seqrec.errors import InputError, LogWarning

FIRST = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]})
SECOND = pl.DataFrame({"user_id": ["v"], "item_id": ["c"], "timestamp": [3]})


def put(folder: Path, name: str, frame: pl.DataFrame = SECOND) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "log", "part-0.parquet", FIRST)
    return tmp_path / "log"


def rows(folder: Path) -> list[tuple]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_log(folder).rows()


@pytest.mark.parametrize(
    "name",
    ["b.PARQUET", "c.pq", "d.snappy.parquet", "e.parq", "part-00001", "000001_0", "x.gz.parquet", "f.parquet.gz"],
)
def test_parts_of_any_usual_name(folder: Path, name: str) -> None:
    put(folder, name)
    assert sorted(rows(folder)) == sorted([*FIRST.rows(), *SECOND.rows()])


def test_parts_gzipped_as_a_whole(folder: Path) -> None:
    path = put(folder, "e.parquet")
    (folder / "f.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert rows(folder) == [*SECOND.rows(), *SECOND.rows(), *FIRST.rows()]


@pytest.mark.parametrize(
    "name",
    [
        ".hidden/a.parquet", "_temporary/0/a.parquet", "_metadata", "_common_metadata", "_SUCCESS",
        ".part-0.parquet.crc",
    ],
)  # fmt: skip
def test_what_is_hidden_by_convention(folder: Path, name: str) -> None:
    put(folder, name)
    assert rows(folder) == FIRST.rows()


@pytest.mark.parametrize("name", [".part.parquet", "_part.parquet", "._part-0.parquet"])
def test_hidden_parts_are_left_out_and_said(folder: Path, name: str) -> None:
    put(folder, name)
    with pytest.warns(LogWarning, match=rf"log: {re.escape(name)} is ignored, as names that begin with"):
        assert read_log(folder).rows() == FIRST.rows()


def test_hidden_as_pyarrow_has_it(folder: Path) -> None:
    for name in ("_x.parquet", ".y.parquet", "z.parquet", "_dir/a.parquet", ".dir/b.parquet"):
        put(folder, name)
    with pytest.warns(LogWarning, match="are hidden by convention"):
        found = read_log(folder).rows()
    assert found == pl.from_arrow(pa.dataset.dataset(folder).to_table()).rows()


@pytest.mark.parametrize("name", ["README.txt", "part.parquet.bak.txt", "a.csv", "checksums.md5"])
def test_what_is_left_out_is_said(folder: Path, name: str) -> None:
    (folder / name).write_text("user,item\n1,2\n")
    with pytest.warns(LogWarning, match=rf"log: {name} is ignored, as only Parquet parts are read"):
        assert read_log(folder).rows() == FIRST.rows()


def test_columns_that_folders_say(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["a"]})
    for place in ("year=2021/month=01/a.parquet", "year=2022/month=12/b.parquet", "year=2022/month=12/c.parquet"):
        put(tmp_path, place, frame)
    put(tmp_path, "year=__HIVE_DEFAULT_PARTITION__/month=New%20Year/d.parquet", frame)
    read = read_log(tmp_path)
    assert read.columns == ["user_id", "item_id", "year", "month"]
    assert read["year"].to_list() == [2021, 2022, 2022, None]
    assert read["month"].to_list() == ["01", "12", "12", "New Year"]


def test_a_user_per_folder(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": ["a", "b"]})
    for user in ("007", "7", "_8"):
        put(tmp_path, f"user_id={user}/part.parquet", frame)
    assert rows(tmp_path) == [(user, item) for user in ("007", "7", "_8") for item in "ab"]
    _ = put(tmp_path, "_user=1/part.parquet", frame)
    with pytest.raises(InputError, match="has other key=value folders than"):
        read_log(tmp_path)


def test_columns_of_folders_and_files(tmp_path: Path) -> None:
    put(tmp_path, "user_id=v/part.parquet")
    assert rows(tmp_path) == SECOND.rows()
    put(tmp_path, "user_id=w/part.parquet")
    with pytest.raises(InputError, match="column 'user_id' contradicts the names of the folders user_id=…"):
        read_log(tmp_path)


def test_partitions_as_pyarrow_reads_them(tmp_path: Path) -> None:
    shops = [1, 2, 1, 2, 3, 3]
    table = pa.table({"user_id": list("abcdab"), "item_id": list("uvwxyz"), "timestamp": range(6), "shop": shops})
    pq.write_to_dataset(table, tmp_path, partition_cols=["shop"])
    expected = pl.from_arrow(pa.dataset.dataset(tmp_path, partitioning="hive").to_table())
    assert sorted(rows(tmp_path)) == sorted(expected.rows())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: os.symlink("nowhere", folder / "e.parquet"), r"e\.parquet: is a broken symbolic link"),
        (lambda folder: os.symlink("loop", folder / "loop"), r"loop: is a broken symbolic link"),
        (lambda folder: os.symlink(folder, folder / "day=1"), r"day=1: is a link to a folder above it"),
        (lambda folder: (folder / "e.parquet").write_bytes(b""), r"e\.parquet: is not Parquet, or is damaged"),
        (lambda folder: (folder / "e.parquet").write_bytes(b"PAR1PAR1"), r"e\.parquet: is not Parquet, or is damaged"),
        (lambda folder: (folder / "e.parquet").write_text("<html>"), r"e\.parquet: looks like a web page"),
        (lambda folder: os.mkfifo(folder / "e.parquet"), r"e\.parquet: is not a regular file"),
        (lambda folder: put(folder, "old/a.parquet"), r"log: has Parquet in a folder inside of it \(old\)"),
        (lambda folder: put(folder, "day=1/a.parquet"), r"day=1/a\.parquet: has other key=value folders|part-0"),
        (lambda folder: (folder / "_delta_log").mkdir(), r"log: is a Delta table, whose parts may be outdated"),
        (lambda folder: (folder / ".hoodie").mkdir(), r"log: is a Hudi table"),
        (lambda folder: put(folder, "x.parquet", FIRST.drop("item_id")), r"x\.parquet: has other columns.*item_id"),
    ],
)
def test_folders_that_are_refused(folder: Path, make, message: str) -> None:
    make(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_log(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"is a folder without \.parquet files"),
        (["_SUCCESS", ".a.parquet"], r"is a folder without \.parquet files"),
        (["notes.md"], r"is a folder without \.parquet files"),
        (["log.csv"], r"is a folder; give the file in it \(log\.csv\)"),
        (["part-0.csv", "part-1.csv"], r"is a folder of \.csv files, which are not read as one; join the parts"),
        (["part-0.csv.gz", "part-1.csv.gz"], r"is a folder of \.csv\.gz files"),
        (["part-0.jsonl", "part-1.jsonl", "_SUCCESS"], r"is a folder of \.jsonl files"),
    ],
)
def test_folders_without_parquet(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("user,item\n1,2\n")
    with pytest.raises(InputError, match=message):
        read_log(tmp_path)


# ---- types that differ: what holds all values exactly, else an error


def ints(*values: int, dtype=pl.Int64) -> pl.Series:
    return pl.Series(values, dtype=dtype)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (ints(1, dtype=pl.Int32), ints(2**60 + 1), [1, 2**60 + 1]),
        (ints(1, dtype=pl.UInt64), ints(-1), [1, -1]),
        (ints(2**60 + 1), pl.Series([5.0]), [2**60 + 1, 5]),
        (pl.Series([5.0], dtype=pl.Float32), ints(16777217), [5, 16777217]),
        (ints(7), pl.Series(["007"]), ["7", "007"]),
        (pl.Series(["a"], dtype=pl.Categorical), pl.Series(["b"]), ["a", "b"]),
        (pl.Series(["a"], dtype=pl.Enum(["a"])), pl.Series(["b"], dtype=pl.Categorical), ["a", "b"]),
        (ints(2**63, dtype=pl.UInt64), ints(1), "UInt64"),
        (ints(2**60 + 1), pl.Series([5.5]), "Float64, Int64"),
        (pl.Series(["a"]), pl.Series([1.0]), "Float64, String"),
        (ints(1), pl.Series([True]), "Boolean, Int64"),
        (pl.Series(["a"]), pl.Series([date(2020, 1, 1)]), "Date, String"),
        (pl.Series(["a"]), pl.Series([["a"]]), "List"),
    ],
)
def test_ids_of_several_types(tmp_path: Path, one: pl.Series, other: pl.Series, expected: list | str) -> None:
    for number, ids in enumerate((one, other)):
        put(tmp_path, f"{number}.parquet", pl.DataFrame({"item": ids, "user": ["u"]}))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=f"the parts have different types .column 'item': .*{expected}"):
            read_log(tmp_path)
    else:
        assert read_log(tmp_path)["item_id"].to_list() == expected


def test_other_columns_of_several_types(tmp_path: Path) -> None:
    first = FIRST.with_columns(note=None, price=pl.lit(1), rating=pl.lit(4))
    put(tmp_path, "0.parquet", first)
    put(tmp_path, "1.parquet", SECOND.with_columns(rating=pl.lit(3.5), note=pl.lit("x"), price=pl.lit(2.5)))
    read = read_log(tmp_path)
    assert read["note"].to_list() == [None, None, "x"]
    assert read["price"].to_list() == [1.0, 1.0, 2.5]
    assert read["rating"].to_list() == [4.0, 4.0, 3.5]


def test_times_of_several_units(tmp_path: Path) -> None:
    for number, (unit, second) in enumerate((("ms", 0), ("ns", 1), ("us", 2))):
        time = pl.Series([datetime(2020, 1, 1, 0, 0, second, 5000)], dtype=pl.Datetime(unit))
        put(tmp_path, f"{number}.parquet", pl.DataFrame({"user": ["u"], "item": [number], "time": time}))
    put(tmp_path, "3.parquet", pl.DataFrame({"user": ["u"], "item": [3], "time": [date(2020, 1, 2)]}))
    assert read_log(tmp_path)["timestamp"].diff().to_list() == [None, 1, 1, 86398]


numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-(2**54), 2**54) | st.integers(0, 300)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.tuples(st.lists(numbers, min_size=1, max_size=3), st.sampled_from(["i64", "i32", "u64", "f64", "text"])),
        min_size=2,
        max_size=3,
    )
)
def test_no_id_changes(tmp_path_factory, parts) -> None:
    """Whatever the types of the parts: each id is the number that was written, or the folder is refused."""
    folder = tmp_path_factory.mktemp("log")
    kinds = {"i64": pl.Int64, "i32": pl.Int32, "u64": pl.UInt64, "f64": pl.Float64, "text": pl.String}
    written = []
    for number, (ids, kind) in enumerate(parts):
        values = [str(id) for id in ids] if kind == "text" else ids
        series = pl.Series(values, dtype=pl.Int128 if kind == "f64" else None, strict=False)
        try:
            series = pl.Series(values, dtype=kinds[kind]) if kind != "f64" else series.cast(pl.Float64)
        except (pl.exceptions.PolarsError, TypeError, OverflowError):
            return
        if kind == "f64" and any(abs(id) > 2**53 for id in ids):
            return  # was another number before it was written
        written += [str(id) for id in ids]
        put(folder, f"{number}.parquet", pl.DataFrame({"user": ["u"] * len(ids), "item": series}))
    try:
        read = read_log(folder)
    except InputError:
        return
    assert read["item_id"].cast(pl.String).to_list() == written


@pytest.mark.parametrize("zone", ["+05:30", "-03:30", "UTC", "Asia/Tokyo", "+0530"])
def test_zones_that_polars_does_not_know(tmp_path: Path, zone: str, capfd: pytest.CaptureFixture[str]) -> None:
    times = pa.array([1_600_000_000_500, 1_600_000_001_000], pa.timestamp("ms", zone))
    pq.write_table(pa.table({"user_id": ["a", "a"], "item_id": ["x", "y"], "time": times}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [("a", "x", 1_600_000_000), ("a", "y", 1_600_000_001)]
    assert rows(tmp_path) == [("a", "x", 1_600_000_000), ("a", "y", 1_600_000_001)]
    assert capfd.readouterr().err == ""


def test_a_run_is_no_log(tmp_path: Path) -> None:
    put(tmp_path, "items.parquet")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="looks like a run, not a log"):
        read_log(tmp_path)
