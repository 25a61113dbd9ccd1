"""Every format, every rule and every error of `read_log`, and the real logs where they are at hand."""

import gzip
import io
import os
import re
import subprocess
import sys
import threading
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from seqrec.data.formats import values
from seqrec.data.formats.read import FORMATS, read_log
from seqrec.errors import InputError

PAIRS = {"user_id": [1, 1, 2], "item_id": [10, 11, 10]}
TIMED = PAIRS | {"timestamp": [100, 300, 200]}
RATED = TIMED | {"rating": [5.0, 3.5, 1.0]}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def parquet(columns: dict[str, list]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def columns_of(source, **options) -> dict[str, list]:
    return read_log(source, **options).to_dict(as_series=False)


# name of the file, its content, what is read
FILES = {
    "csv": ("log.csv", "user_id,item_id,timestamp\n1,10,100\n1,11,300\n2,10,200\n", TIMED),
    "csv, other names and order": ("a.csv", "Rating,MovieId,ts,userId\n5,10,100,1\n3.5,11,300,1\n1,10,200,2", RATED),
    "csv, semicolons": ("a.csv", "user;item;time\n1;10;100\n1;11;300\n2;10;200\n", TIMED),
    "csv, bars": ("a.csv", "user|item|time\n1|10|100\n1|11|300\n2|10|200\n", TIMED),
    "csv, tabs": ("a.csv", "user\titem\ttime\n1\t10\t100\n1\t11\t300\n2\t10\t200\n", TIMED),
    "csv, another extension": ("a.dat", "user,item,time\n1,10,100\n1,11,300\n2,10,200\n", TIMED),
    "csv, CRLF and blank lines": ("a.csv", "user,item\r\n1,10\r\n\r\n1,11\r\n2,10\r\n\r\n\r\n", PAIRS),
    "csv, UTF-16": ("a.csv", "user_id,item_id\n1,10\n1,11\n2,10\n".encode("utf-16"), PAIRS),
    "csv, UTF-16, the other order": ("a.csv", "\ufeffuser,item\n1,10\n1,11\n2,10\n".encode("utf-16-be"), PAIRS),
    "csv, UTF-32": ("a.csv", "user_id,item_id\n1,10\n1,11\n2,10\n".encode("utf-32"), PAIRS),
    "tabs, UTF-16 (Excel's Unicode text)": ("a.txt", "user\titem\r\n1\t10\r\n1\t11\r\n2\t10".encode("utf-16"), PAIRS),
    "csv, byte order mark": ("a.csv", "\ufeffuser_id,item_id\n1,10\n1,11\n2,10\n", PAIRS),
    "csv, quoted": ("a.csv", '"user_id","item_id"\n"1","10"\n"1",11\n2,"10"\n\n', PAIRS),
    "csv, blanks around": ("a.csv", "user_id, item_id, timestamp\n1, 10, 100\n1, 11, 300\n2, 10, 200\n  \n", TIMED),
    "csv, no header": ("a.csv", "1,10\n1,11\n2,10\n", PAIRS),
    "csv, no last line end": ("a.csv", "1,10\n1,11\n2,10", PAIRS),
    "csv, no header, times": ("a.csv", "1,10,100\n1,11,300\n2,10,200\n", TIMED),
    "csv, Amazon's ratings": ("a.csv", "1,10,5.0,100\n1,11,3.5,300\n2,10,1.0,200\n", RATED),
    "csv, no header, time first": ("a.csv", "1,10,100,5\n1,11,300,3.5\n2,10,200,1\n", RATED),
    "tsv": ("a.tsv", "user\titem\ttime\n1\t10\t100\n1\t11\t300\n2\t10\t200\n", TIMED),
    "tsv, MovieLens 100k": ("u.data", "1\t10\t5\t100\n1\t11\t3.5\t300\n2\t10\t1\t200\n", RATED),
    "tsv, quotes that quote nothing": (
        "a.tsv",
        'user\titem\tname\n1\t10\t"Good" film\n1\t11\t5" disc\n2\t10\t"\n',
        PAIRS | {"name": ['"Good" film', '5" disc', '"']},
    ),
    "whitespace pairs": ("a.txt", "1 10\n1 11\n2 10\n", PAIRS),
    "whitespace, runs of blanks": ("a.txt", "  1   10 \n1\t \t11\r\n\n 2 10\n\n", PAIRS),
    "whitespace times": ("a.txt", "1 10 100\n1 11 300\n2 10 200\n", TIMED),
    "whitespace ratings and times": ("a.txt", "1 10 5 100\n1 11 3.5 300\n2 10 1 200\n", RATED),
    "whitespace header": ("a.txt", "user item timestamp\n1 10 100\n1 11 300\n2 10 200\n", TIMED),
    "whitespace, each user once": (
        "a.txt",
        "1 10 978300760\n2 11 978300761\n",
        {"user_id": [1, 2], "item_id": [10, 11], "timestamp": [978300760, 978300761]},
    ),
    "movielens": ("ratings.dat", "1::10::5::100\n1::11::3.5::300\n2::10::1::200\n", RATED),
    "movielens, dates": (
        "ratings.dat",
        "1::a b::5::2000-01-01 10:00:00\n",
        {"user_id": [1], "item_id": ["a b"], "timestamp": [946720800], "rating": [5.0]},
    ),
    "inter": (
        "a.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t5\t1e2\n1\t11\t3.5\t3e2\n2\t10\t1\t2e2\n",
        RATED,
    ),
    "inter, another extension": ("a.txt", "item_id:token\tuser_id:token\n10\t1\n11\t1\n10\t2\n", PAIRS),
    "sequences": ("a.txt", "1 10 11\n2 10\n", PAIRS),
    "sequences, tab after the user": ("a.txt", "1\t10 11\n2\t10\n", PAIRS),
    "sequences, all alike": ("a.txt", "1 10 11\n2 10 12\n", {"user_id": [1, 1, 2, 2], "item_id": [10, 11, 10, 12]}),
    "sequences, all longer": ("a.txt", "a b c d e f\n", {"user_id": ["a"] * 5, "item_id": list("bcdef")}),
    "sequences, users twice": (
        "a.txt",
        "1 2 3\n1 4 5 6\n2 7 8 9 10\n",
        {"user_id": [1, 1, 1, 1, 1, 2, 2, 2, 2], "item_id": [2, 3, 4, 5, 6, 7, 8, 9, 10]},
    ),
    "jsonl": (
        "a.jsonl",
        '{"user": 1, "item": 10, "time": 100}\r\n{"time": 300, "user": 1, "item": 11}\n\n'
        '{"user": 2, "item": 10, "time": 200}\n\n',
        TIMED,
    ),
    "jsonl, Amazon": (
        "reviews.json",
        '{"reviewerID": "A1", "asin": "0001", "overall": 5, "unixReviewTime": 100, "helpful": [1, 2]}\n'
        '{"reviewerID": "A2", "asin": "B02", "overall": 3.5, "unixReviewTime": 90}\n',
        {
            "user_id": ["A1", "A2"],
            "item_id": ["0001", "B02"],
            "timestamp": [100, 90],
            "rating": [5.0, 3.5],
            "helpful": [[1, 2], None],
        },
    ),
    "jsonl, mixed ids, late keys": (
        "a.txt",
        '{"user": 1, "item": 10}\n' * 200 + '{"user": "x", "item": 11, "price": 1}\n',
        {
            "user_id": ["1"] * 200 + ["x"],
            "item_id": [10] * 200 + [11],
            "price": [None] * 200 + [1],
        },
    ),
    "parquet": ("a.parquet", parquet(RATED), RATED),
    "parquet, another extension": ("a.bin", parquet(RATED), RATED),
    "extra columns": (
        "a.csv",
        "price,user,zip,item\n3,1,01234,10\n,1,2,11\n4,2,3,10\n",
        PAIRS | {"price": ["3", None, "4"], "zip": ["01234", "2", "3"]},
    ),
    "empty last column": ("a.csv", "user,item,note\n1,10,\n1,11,x\n2,10,\n", PAIRS | {"note": [None, "x", None]}),
    "empty last column, quotes": (
        "a.csv",
        'user,item,note\n1,10,\n1,11,"x, ""y\nz"\n2,10,\n',
        PAIRS | {"note": [None, 'x, "y\nz', None]},
    ),
}


@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("case", FILES)
def test_files(tmp_path, case, zipped):
    name, content, expected = FILES[case]
    path = write(tmp_path, name + ".gz" * zipped, content)
    assert columns_of(path) == expected
    assert columns_of(str(path)) == expected


@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")
@pytest.mark.parametrize("case", FILES)
def test_the_order_of_columns_and_their_types(tmp_path, case):
    name, content, _ = FILES[case]
    frame = read_log(write(tmp_path, name, content))
    canonical = [name for name in ("user_id", "item_id", "timestamp", "rating") if name in frame.columns]
    assert frame.columns[: len(canonical)] == canonical
    assert {frame.schema["user_id"], frame.schema["item_id"]} <= {pl.Int64, pl.String}
    assert frame.schema.get("timestamp", pl.Int64) == pl.Int64
    assert frame.schema.get("rating", pl.Float64) == pl.Float64


def test_gzip_is_found_without_its_extension(tmp_path):
    path = write(tmp_path, "a.csv", gzip.compress(b"user,item\n1,2\n"))
    assert columns_of(path) == {"user_id": [1], "item_id": [2]}


def test_folder_of_parts_in_the_order_of_names(tmp_path):
    write(tmp_path, "part-1.parquet", parquet({"item": [3], "user": [2]}))
    write(tmp_path, "part-0.parquet", parquet({"user": [1, 1], "item": [1, 2]}))
    write(tmp_path, "_SUCCESS", b"")
    assert columns_of(tmp_path) == {"user_id": [1, 1, 2], "item_id": [1, 2, 3]}


# ---- columns


def test_columns_by_parameter(tmp_path):
    path = write(tmp_path, "a.csv", "who,what,when,how,user_id\n1,10,100,5,x\n1,11,300,3.5,y\n2,10,200,1,z\n")
    options = {"user": "WHO", "item": "what", "timestamp": "when", "rating": "how"}
    assert columns_of(path, **options) == RATED | {"user_id_other": ["x", "y", "z"]}


def test_columns_by_number_without_a_header(tmp_path):
    path = write(tmp_path, "a.csv", "10,1,100,x,7\n11,1,300,x,7\n")
    expected = {"user_id": [1, 1], "item_id": [10, 11], "timestamp": [100, 300], "4": ["x", "x"], "5": ["7", "7"]}
    assert columns_of(path, user="2", item="1", timestamp="3") == expected


@pytest.mark.parametrize(
    ("names", "user", "item"),
    [
        ("session_id user_id item_id", "user_id", "item_id"),
        ("asin reviewerID parent_asin", "reviewerID", "parent_asin"),
        ("userId user_id itemid", "user_id", "itemid"),
        ("SessionId ItemId Time", "SessionId", "ItemId"),
        ("VISITORID ITEM_ID event", "VISITORID", "ITEM_ID"),
        ("customer_id sku", "customer_id", "sku"),
        ("uid track_id", "uid", "track_id"),
    ],
)
def test_the_best_of_the_usual_names(names, user, item):
    frame = pl.DataFrame({name: [number] for number, name in enumerate(names.split())})
    result = read_log(frame)
    assert result["user_id"].to_list() == frame[user].to_list()
    assert result["item_id"].to_list() == frame[item].to_list()


def test_a_word_above_numbers_is_a_header(tmp_path):
    path = write(tmp_path, "a.csv", "who,what\nann,10\nbob,11\n")
    with pytest.raises(InputError, match=r"no user column found; name it with user= \(--user\).*: who, what$"):
        read_log(path)
    # … but a row of data with a number in it is none.
    assert read_log(write(tmp_path, "b.csv", "ann,x9,100\nann,7,200\n"))["item_id"].to_list() == ["x9", "7"]


def test_third_column_of_repeated_small_numbers_is_a_rating(tmp_path):
    path = write(tmp_path, "a.csv", "1,10,5\n1,11,5\n2,10,1\n")
    assert columns_of(path) == PAIRS | {"rating": [5.0, 5.0, 1.0]}
    path = write(tmp_path, "b.csv", "1,10,3\n1,11,1\n2,10,2\n")
    assert columns_of(path) == PAIRS | {"timestamp": [3, 1, 2]}


# ---- ids


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["1", "-2", "9223372036854775807"], [1, -2, 9223372036854775807]),
        (["1", "9223372036854775808"], None),
        (["0000143561", "2"], None),
        (["+1", "2"], None),
        (["-0", "2"], None),
        (["1.0", "2"], [1, 2]),
        (["1.0", "2.5"], None),
        (["1.0", "x"], None),
        (["1", "x"], None),
        (["1 ", "2"], None),
    ],
)
def test_integers_in_text_only_where_they_survive(tmp_path, written, read):
    content = "user,item\n" + "".join(f'"{value}",7\n' for value in written)
    assert columns_of(write(tmp_path, "a.csv", content)) == {"user_id": read or written, "item_id": [7] * len(written)}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pl.Series([1, 2], dtype=pl.UInt8), [1, 2]),
        (pl.Series([1, 2**63], dtype=pl.UInt64), ["1", "9223372036854775808"]),
        (pl.Series([1.0, 2.0]), [1, 2]),
        (pl.Series(["1", "2"]), ["1", "2"]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])), ["a", "b"]),
        (pl.Series([b"a", b"b"]), ["a", "b"]),
        (pl.Series(["1", "2"]).cast(pl.Decimal(10, 2)), [1, 2]),
    ],
)
def test_ids_in_frames(ids, expected):
    assert columns_of(pl.DataFrame({"user": ids, "item": ["x", "y"]}))["user_id"] == expected
    assert columns_of(pl.DataFrame({"user": ["x", "y"], "item": ids}))["item_id"] == expected


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.0, 2.5], "row 2: user id 2.5 is not whole; store ids as"),
        ([1.0, float("nan")], "row 2: the user id is empty"),
        ([1, None], "row 2: the user id is empty"),
        (["", "a"], "row 1: the user id is empty"),
        ([None, None], "row 1: the user id is empty"),
        ([True, False], "holds Boolean"),
        ([[1], [2]], "holds List"),
        ([date(2020, 1, 1)] * 2, "holds Date"),
        ([1e300, 1.0], "row 1: user id 1e"),
    ],
)
def test_bad_ids_in_frames(ids, message):
    with pytest.raises(InputError, match=message):
        read_log(pl.DataFrame({"user": ids, "item": ["x", "y"]}))


# ---- timestamps

NOON = 1706702400  # 2024-01-31 12:00:00 UTC


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ([str(NOON), str(NOON + 1)], [NOON, NOON + 1]),
        (["0", "-5"], [0, -5]),
        (["8.8e8", "880000001.0"], [880000000, 880000001]),
        ([f"{NOON}000", f"{NOON + 1}000"], [NOON, NOON + 1]),
        ([f"{NOON}000000"] * 2, [NOON, NOON]),
        ([f"{NOON}000000000"] * 2, [NOON, NOON]),
        (["2024-01-31", "2024-02-01"], [NOON - 43200, NOON + 43200]),
        (["2024/01/31", "2024/02/01"], [NOON - 43200, NOON + 43200]),
        (["2024-01-31 12:00:00", "2024-01-31T12:00:01"], [NOON, NOON + 1]),
        (["2024-01-31T12:00:00Z", "2024-01-31 12:00:01 UTC"], [NOON, NOON + 1]),
        (["2024-01-31T14:00:00+02:00", "2024-01-31T07:00:01.000-0500"], [NOON, NOON + 1]),
        (["2024-01-31 12:00", " 2024-01-31 12:00:01 "], [NOON, NOON + 1]),
        (["2024-01-31", "2024-01-31 12:00:00"], [NOON - 43200, NOON]),
    ],
)
def test_timestamps_in_text(tmp_path, written, seconds):
    content = "user,item,timestamp\n" + "".join(f"1,2,{value}\n" for value in written)
    assert columns_of(write(tmp_path, "a.csv", content))["timestamp"] == seconds
    assert columns_of(pl.DataFrame({"user": [1, 1], "item": [2, 2], "time": written}))["timestamp"] == seconds


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([datetime(2024, 1, 31, 12)], dtype=pl.Datetime("ms")),
        pl.Series([datetime(2024, 1, 31, 12)], dtype=pl.Datetime("ns")),
        pl.Series([datetime(2024, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))]).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([float(NOON)], dtype=pl.Float32).cast(pl.Float64) * 0 + NOON,
        pl.Series([NOON], dtype=pl.UInt64),
        pl.Series([NOON * 1000]),
    ],
)
def test_timestamps_in_frames(times):
    result = read_log(pl.DataFrame({"user": ["a"], "item": ["b"], "time": times}))
    assert result["timestamp"].to_list() == [NOON]
    assert result.schema["timestamp"] == pl.Int64


@pytest.mark.parametrize("scale", [10**3, 10**6, 10**9, 1.0])
def test_the_order_within_a_second_is_kept(scale):
    fine = [NOON * scale + part * scale / 10 for part in (3, 1, 2, 1)]
    fine = fine if scale == 1.0 else [int(value) for value in fine]
    result = read_log(pl.DataFrame({"user": [1, 1, 1, 2], "item": [3, 1, 2, 9], "time": fine}))
    assert result["timestamp"].to_list() == [NOON] * 4
    assert result["item_id"].to_list() == [1, 9, 2, 3]  # ties (1 and 9) in the order of the log


def test_whole_seconds_are_not_sorted():
    result = read_log(pl.DataFrame({"user": [1, 1, 1], "item": [1, 2, 3], "time": [3000, 1000, 2000]}))
    assert result["item_id"].to_list() == [1, 2, 3]


# ---- frames


@pytest.mark.parametrize(
    "make",
    [pl.DataFrame, pl.LazyFrame, pd.DataFrame, pa.table, lambda columns: pd.DataFrame(columns).astype("category")],
)
def test_frames(make):
    source = make({"item": ["x", "y"], "user": ["a", "b"]})
    assert columns_of(source) == {"user_id": ["a", "b"], "item_id": ["x", "y"]}


def test_pandas_with_missing_values():
    frame = pd.DataFrame({"user": [1.0, None], "item": [1, 2]})
    with pytest.raises(InputError, match="DataFrame, row 2: the user id is empty"):
        read_log(frame)
    assert columns_of(frame[:1]) == {"user_id": [1], "item_id": [1]}


def test_pandas_times_and_mixed_types():
    frame = pd.DataFrame({"user": [1], "item": [2], "date": pd.to_datetime(["2024-01-31 12:00"], utc=True)})
    assert columns_of(frame)["timestamp"] == [NOON]
    with pytest.raises(InputError, match="the DataFrame: user column 'user' holds Object, not ids"):
        read_log(pd.DataFrame({"user": [1, "x", b"z"], "item": [1, 2, 3]}))


@pytest.mark.parametrize("source", [None, 3, [1, 2], {"user": [1]}])
def test_other_objects(source):
    with pytest.raises(InputError, match=r"cannot read .*; give a path"):
        read_log(source)


def test_pandas_is_not_imported_without_need(tmp_path):
    path = write(tmp_path, "a.csv", "user,item\n1,2\n")
    code = "import sys, seqrec; seqrec.read_log(sys.argv[1]); assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


# ---- errors: name, content, options, where, what

ERRORS = {
    "missing": ("a.csv", None, {}, "", "no such file.*check the path"),
    "empty": ("a.csv", "", {}, "", "is empty"),
    "empty, zipped": ("a.csv.gz", "", {}, "", "is empty"),
    "only blank lines": ("a.csv", "\n\n \n", {}, "", "is empty"),
    "only a header": ("a.csv", "user,item,timestamp\n", {}, "", "no rows"),
    "only a header, jsonl": ("a.parquet", parquet({"user": [], "item": []}), {}, "", "no rows"),
    "unknown format": ("a.csv", "user,item\n1,2\n", {"format": "excel"}, None, "unknown format 'excel'.*csv"),
    "gz that is none": ("b.csv.GZ", b"user,item\n1,2\n", {}, "", "not gzipped"),
    "cut-off gz": ("a.csv", gzip.compress(b"user,item\n1,2\n" * 99)[:-12], {}, "", "damaged or cut-off gzip"),
    "broken gz": ("a.csv", b"\x1f\x8bnothing of the kind", {}, "", "damaged or cut-off gzip"),
    "parquet that is none": ("a.parquet", "user,item\n1,2\n", {}, "", "not Parquet, or is damaged.*write it again"),
    "cut-off parquet": ("a.parquet", parquet(RATED)[:-20], {}, "", "not Parquet, or is damaged"),
    "binary": ("a.csv", b"user,item\n\x00\x01,3\n", {}, "", "is binary or UTF-16; give UTF-8"),
    "UTF-16 without a mark": ("a.csv", "user,item\n1,2\n".encode("utf-16-le"), {}, "", "UTF-16; give UTF-8"),
    "cut-off UTF-16": ("a.csv", "user,item\n1,2\n".encode("utf-16")[:-1], {}, "line 2", "not UTF-16 text, although"),
    "Latin-1": ("a.csv", "user,item\n1,2\nJos\xe9,3\n".encode("latin-1"), {}, "line 3", "save the file as UTF-8"),
    "Latin-1, whitespace": ("a.txt", "1 2\nJos\xe9 3\n".encode("latin-1"), {}, "line 2", "save the file as UTF-8"),
    "Latin-1, jsonl": ("a.jsonl", '{"user":"a"}\n{"user":"\xe9"}\n'.encode("latin-1"), {}, "line 2", "UTF-8"),
    "short row": ("a.csv", "user,item,time\n1,2,3\n\n1,2\n", {}, "line 4", r"too few fields \(2, not 3\).*correct"),
    "short row, CRLF": ("a.csv", "user,item,time\r\n1,2,3\r\n1,2\r\n", {}, "line 3", "too few fields"),
    "short row, no header": ("a.csv", "1,2,3\n1,2\n1,3,4\n", {}, "line 2", "too few fields"),
    "short row, quotes": ("a.csv", 'user,item,x\n"a\nb","c,d",\n"a,b,c",2\n', {}, "line 4", "too few fields"),
    "short row, tsv": ("a.tsv", "user\titem\ttime\n1\t2\t3\n1\t2\n", {}, "line 3", "too few fields"),
    "short row, movielens": ("r.dat", "1::2::3::4\n1::2\n", {}, "line 2", "too few fields"),
    "short row, inter": ("a.inter", "user_id:token\titem_id:token\n1\t2\n3\n", {}, "line 3", "too few fields"),
    "short row, whitespace": ("a.txt", "1 2\n\n1\n2 3\n", {}, "line 3", "has 1 field"),
    "short row, whitespace header": ("a.txt", "user item\n1 2\n1\n", {}, "line 3", "has 1 field"),
    "short row, timed whitespace": (
        "a.txt",
        "1 2 9\n1 3 8\n1 4\n",
        {},
        "line 3",
        "has 2 fields instead of 3.*sequences",
    ),
    "short row, format given": ("a.txt", "1 2\n2 3 4\n", {"format": "whitespace"}, "line 2", "3 fields instead of 2"),
    "long row": ("a.csv", "user,item\n1,2\n1,2,3\n", {}, "line 3", r"too many fields \(3, not 2\).*correct it"),
    "sequence without items": ("a.txt", "1 2 3 4\n2\n", {"format": "sequences"}, "line 2", "has 1 field"),
    "open quotation mark": ("a.csv", 'user,item\n1,2\n"3,4\n5,6\n', {}, "line 3", "too few fields.*quotes"),
    "empty user": ("a.csv", "user,item\n1,2\n,3\n", {}, "line 3", "the user id is empty; give the row an id"),
    "empty item": ("a.csv", 'user,item\n1,2\n1,""\n', {}, "line 3", "the item id is empty"),
    "empty item after a quoted line end": (
        "a.csv",
        'user,item\n"a\nb",2\n\n1,\n',
        {},
        "line 5",
        "the item id is empty",
    ),
    "NaN among integers": ("a.csv", "user,item\n1,2\nNaN,3\n", {}, "line 3", r"user id is missing \(NaN\)"),
    "bad time": ("a.csv", "user,item,time\n1,2,3\n1,2,soon\n", {}, "line 3", "timestamp 'soon' is not a number or an"),
    "bad time first": ("a.csv", "user,item,time\n1,2,soon\n1,2,3\n", {}, "line 2", "timestamp 'soon'.*timestamp="),
    "empty time": ("a.csv", "user,item,time\n1,2,3\n1,2,\n", {}, "line 3", r"timestamp \(empty\)"),
    "NaN time": ("a.csv", "user,item,time\n1,2,3\n1,2,nan\n", {}, "line 3", "timestamp 'nan'"),
    "infinite time": ("a.csv", "user,item,time\n1,2,1e999\n", {}, "line 2", "timestamp '1e999'"),
    "no date": ("a.csv", "user,item,date\n1,2,2024-01-31\n1,2,2024-02-30\n", {}, "line 3", "timestamp '2024-02-30'"),
    "number among dates": ("a.csv", "user,item,date\n1,2,2024-01-31\n1,2,17\n", {}, "line 3", "timestamp '17'"),
    "American date": ("a.csv", "user,item,date\n1,2,01/31/2024\n", {}, "line 2", "timestamp '01/31/2024'"),
    "bad time, no header": ("a.csv", "1,2,5.0,3\n1,2,5.0,x\n", {}, "line 2", "timestamp 'x'"),
    "bad time, movielens": ("a.dat", "1::2::5::3\n1::2::5::x\n", {}, "line 2", "timestamp 'x'"),
    "bad rating": ("a.csv", "user,item,r\n1,2,5\n1,2,good\n", {"rating": "r"}, "line 3", "rating 'good' is not a num"),
    "empty rating": ("a.csv", "user,item,r\n1,2,5\n1,2,\n", {"rating": "r"}, "line 3", r"rating \(empty\).*rating="),
    "NaN rating": ("a.csv", "user,item,r\n1,2,NaN\n", {"rating": "r"}, "line 2", "rating 'NaN' is not a number"),
    "bad JSON": (
        "a.jsonl",
        '{"user": 1, "item": 2}\n\n{"user": 1, "item"\n',
        {},
        "line 3",
        "not a JSON object; write one per line",
    ),
    "JSON, no object": ("a.jsonl", '{"user": 1, "item": 2}\n5\n', {}, "line 2", "not a JSON object"),
    "JSON array": (
        "a.json",
        '[{"user": 1, "item": 2},\n{"user": 1, "item": 3}]\n',
        {},
        "",
        "a JSON array.*write one object per line",
    ),
    "JSON array, other values": ("a.json", "[1,\n2]\n", {}, "line 1", "is a JSON array; write one object per line"),
    "JSON array of one line": ("a.json", '[{"user": 1, "item": 2}]', {}, "", "a JSON array.*write one object per line"),
    "JSON, missing key": ("a.jsonl", '{"user": 1, "item": 2}\n\n{"user": 1}\n', {}, "line 3", "item id is empty"),
    "JSON, not said so": ("a.csv", "user,item\n1,2\n", {"format": "jsonl"}, "line 1", "not a JSON object"),
    "no user column": ("a.csv", "foo,item\na,2\n", {}, "", r"no user column found.*user= \(--user\).*foo, item"),
    "no item column": ("a.csv", "user,foo\na,2\n", {}, "", r"no item column found.*item= \(--item\).*user, foo"),
    "no such column": (
        "a.csv",
        "user,item\n1,2\n",
        {"timestamp": "when"},
        "",
        "no column 'when'.*timestamp=.*user, item",
    ),
    "no such number": ("a.csv", "1,2\n", {"user": "7", "item": "1"}, "", "no column '7'.*1, 2.*no header"),
    "five columns": ("a.csv", "1,2,3,4,5\n1,2,3,4,5\n", {}, "", "no user column found.*1, 2, 3, 4, 5.*no header"),
    "one column": ("a.csv", "user\n1\n", {}, "line 1", "has 1 field"),
    "two roles": (
        "a.csv",
        "user,item\n1,2\n",
        {"user": "user", "item": "user"},
        "",
        "'user' has two roles; name another one with item=",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(tmp_path, case):
    name, content, options, where, what = ERRORS[case]
    path = tmp_path / name
    if content is not None:
        path = write(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        read_log(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(what, message, re.IGNORECASE)
    if where is not None:
        assert message.startswith(f"{path}, {where}:" if where else f"{path}: ")


def test_errors_of_folders(tmp_path):
    with pytest.raises(InputError, match=r"folder without \.parquet files"):
        read_log(tmp_path)
    write(tmp_path, "0.parquet", parquet({"user": [1], "item": [2]}))
    with pytest.raises(InputError, match=r"is a folder, but format=csv needs a file"):
        read_log(tmp_path, format="csv")
    write(tmp_path, "1.parquet", parquet({"user": [1], "thing": [2]}))
    with pytest.raises(InputError, match=r"1\.parquet: has other columns than the first part \(item, thing\)"):
        read_log(tmp_path)
    write(tmp_path, "1.parquet", parquet({"user": [1], "item": [[1]]}))
    with pytest.raises(InputError, match="the parts have different types"):
        read_log(tmp_path)
    write(tmp_path, "1.parquet", b"PAR1 cut off")
    with pytest.raises(InputError, match=r"1\.parquet: is not Parquet, or is damaged"):
        read_log(tmp_path)


def test_permission_denied(tmp_path, monkeypatch):
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.csv: Permission denied; check the path and its permissions"):
        read_log(tmp_path / "a.csv")


PATHS = {
    "no such user": ("~nosuchuser/log.csv", "home directory"),
    "a long name": ("n" * 300, "File name too long"),
    "a long path": ("/".join(["n" * 200] * 30), "File name too long"),
    "a null character": ("a\0b", "not a path"),
    "below a file": ("log.csv/log.csv", "Not a directory"),
    "a link to itself": ("loop", "symbolic links|No such file"),
    "a link to nothing": ("nowhere", "No such file"),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_cannot_be_opened(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "log.csv", "user,item\n1,2\n")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing")
    name, message = PATHS[case]
    with pytest.raises(InputError, match=message) as caught:
        read_log(name)
    assert "\n" not in str(caught.value)


def test_an_empty_path():
    with pytest.raises(InputError, match="the path of the log is empty"):
        read_log("")


@pytest.mark.parametrize("name", ["is_dir", "is_file", "stat", "read_bytes"])
def test_folders_that_may_not_be_entered(tmp_path, monkeypatch, name):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    path = write(tmp_path, "a.csv", "user,item\n1,2\n")
    monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(InputError, match=r"a\.csv: Permission denied; check the path and its permissions"):
        read_log(path)


def test_parts_that_may_not_be_opened(tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, "0.parquet", parquet({"user": [1], "item": [2]}))
    for name in ("iterdir", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            with pytest.raises(InputError, match="Permission denied; check the path"):
                read_log(tmp_path)


def test_pipes(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for content, expected in (("user,item\n1,2\n", (1, 2)), ("user,item\r1,2\r", (1, 2)), ("sep=;\n1;2\n", (1, 2))):
        writer = threading.Thread(target=path.write_text, args=(content,))
        writer.start()
        assert read_log(path, user=None).rows() == [expected]
        writer.join()


def test_ctrl_c_that_polars_drops(tmp_path):
    """Where Python code that polars calls raises it, polars turns it into a TypeError about the type of a column."""
    path = write(tmp_path, "a.csv", "user,item\n1,2\n")
    read_log(path)
    calls = []

    def interrupt(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.endswith("polars/datatypes/classes.py"):
            calls.append(frame.f_code.co_name)
            if len(calls) == number:
                raise KeyboardInterrupt

    for number in range(1, 60):
        calls.clear()
        sys.setprofile(interrupt)
        try:
            read_log(path)
        except KeyboardInterrupt:
            continue
        finally:
            sys.setprofile(None)
        assert len(calls) < number, calls[-1]


def test_panics_of_polars_are_one_line(tmp_path, monkeypatch):
    def panic(*arguments, **options):
        raise pl.exceptions.PanicException("index out of bounds\nmore")

    path = write(tmp_path, "a.csv", "user,item\n1,2\n")
    monkeypatch.setattr(pl, "read_csv", panic)
    with pytest.raises(InputError, match=r"a\.csv: cannot be read \(index out of bounds\); write it again"):
        read_log(path)


@pytest.mark.parametrize("depth", [1040, 200_000])
def test_deep_json(tmp_path, depth):
    line = '{"user": 1, "item": 2}\n'
    path = write(tmp_path, "a.jsonl", line + '{"user": 1, "item": 2, "note": ' + "[" * depth + "]" * depth + "}\n")
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: is nested too deeply|a\.jsonl: is not JSON lines"):
        read_log(path)


def test_json_values_of_all_kinds(tmp_path):
    path = write(
        tmp_path,
        "a.jsonl",
        '{"user": 1, "item": "007", "note": {"a": [1, {"b": null}]}}\n{"item": 7, "user": 9007199254740993}\n',
    )
    assert read_log(path)["item_id"].to_list() == ["007", "7"]
    assert read_log(path)["user_id"].to_list() == [1, 9007199254740993]


def test_integers_beside_floats_in_json(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"user": 9007199254740993, "item": 1}\n{"user": 5.0, "item": 2}\n')
    assert read_log(path)["user_id"].to_list() == [9007199254740993, 5]


def test_a_json_key_of_several_kinds_stops_no_other(tmp_path):
    path = write(
        tmp_path, "a.jsonl", '{"user": 1, "item": "a", "note": {"x": 1}}\n{"user": 2, "item": "b", "note": 5}\n'
    )
    assert read_log(path).select("user_id", "item_id").rows() == [(1, "a"), (2, "b")]
    write(tmp_path, "a.jsonl", '{"user": 1, "item": 2}\n{"user": true, "item": 2}\n')
    with pytest.raises(InputError, match="user column 'user' holds List"):
        read_log(path)


@pytest.mark.parametrize("text", ["\\ud800", "x\\udfff", "\\ude00\\ud83d"])
def test_lone_surrogates_are_no_ids(tmp_path, text):
    path = write(tmp_path, "a.jsonl", f'{{"user": "\\ud83d\\ude00", "item": 2}}\n{{"user": "{text}", "item": 2}}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: holds a lone surrogate"):
        read_log(path)


def test_pairs_of_surrogates_are_text(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"user": "\\ud83d\\ude00", "item": "\\\\ud800"}\n')
    assert read_log(path).rows() == [("\U0001f600", "\\ud800")]


def test_frames_of_other_libraries_with_columns_that_polars_does_not_know():
    columns = {"user": ["a"], "item": ["b"]}
    table = pa.table({**columns, "odd": pa.array([1], pa.timestamp("s", "Mars/Olympus"))})
    assert read_log(table).rows()[0][:2] == ("a", "b")
    frame = pd.DataFrame(columns).assign(odd=[1 + 2j])
    with pytest.raises(InputError, match=r"cannot be read \(.*\); give columns one type and name"):
        read_log(frame)


# ---- format= overrides what would be detected


def test_format_overrides(tmp_path):
    pairs = write(tmp_path, "a.txt", "1 10\n2 11\n")
    assert columns_of(pairs, format="sequences") == columns_of(pairs) == {"user_id": [1, 2], "item_id": [10, 11]}
    triples = write(tmp_path, "b.txt", "1 10 5\n2 11 6\n")
    assert columns_of(triples)["item_id"] == [10, 5, 11, 6]
    assert columns_of(triples, format="whitespace")["item_id"] == [10, 11]
    assert read_log(write(tmp_path, "c.tsv", "user,item\n1,2\n"), format="csv").shape == (1, 2)
    assert tuple(sorted(FORMATS)) == FORMATS


# ---- any ids survive the way through a file

texts = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufeff"), min_size=1, max_size=8
).filter(lambda text: text == text.strip())
# Without numbers such as 2016042600, which are read as dates with hours if all times are.
moments = st.integers(10**9, 1_970_000_000) | st.integers(2_101_000_000, 2**32)
rows = st.lists(st.tuples(texts, texts, moments), min_size=1, max_size=20)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(rows=[('a,"b', "c\td", 10**9), ('"', "''", 10**9), ("ü", "本", 2**31), ("0001", "+1", 2**32)])
@given(rows=rows)
def test_any_ids_round_trip(tmp_path, format, rows):
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    missing = set(values.MISSING.split())
    # Between numbers, a word like 'none' is a missing value, which is an error.
    assume(
        all(
            missing.isdisjoint(ids) or re.search("[A-DF-Za-df-z]", "".join(set(ids) - missing))
            for ids in (users, items)
        )
    )
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    path = tmp_path / f"log.{format}"
    if format == "parquet":
        frame.write_parquet(path)
    elif format == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator="," if format == "csv" else "\t")
    result = read_log(path)
    assert result["user_id"].cast(pl.String).to_list() == users
    assert result["item_id"].cast(pl.String).to_list() == items
    assert result["timestamp"].to_list() == times


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=1, max_size=9))
def test_any_histories_round_trip_as_sequences(tmp_path, histories):
    content = "".join(f"{user} {' '.join(map(str, history))}\n" for user, history in enumerate(histories))
    result = read_log(write(tmp_path, "a.txt", content))
    expected = [(user, item) for user, history in enumerate(histories) for item in history]
    assert result.rows() == expected


# ---- real logs


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "users", "items", "rows", "columns"),
    [
        ("games.txt", 31013, 23715, 287107, 2),
        ("ml-1m.txt", 6040, 3416, 999608, 2),
        ("beauty-5core.txt", 22363, 12101, 198502, 2),
        ("ml-100k/ml-100k.inter", 943, 1682, 100000, 4),
    ],
)
def test_real_logs(real_data, name, users, items, rows, columns):
    frame = read_log(real_data / name)
    assert frame.shape == (rows, columns)
    assert (frame["user_id"].n_unique(), frame["item_id"].n_unique()) == (users, items)
    assert frame.schema["user_id"] == frame.schema["item_id"] == pl.Int64
    if columns == 4:
        assert frame.row(0) == (196, 242, 881250949, 3.0)
