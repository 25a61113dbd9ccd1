"""Ids of any type: the same whichever way they come, exact, or one line."""

import json
import uuid
import warnings

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec.data.formats.read import read_log
from seqrec.errors import InputError
from seqrec.recommender import Recommender

UUIDS = [uuid.UUID(int=number * 0x0123456789ABCDEF0123456789ABCD) for number in range(1, 4)]


def users_of(source) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_log(source)["user_id"].to_list()


# ---- ids such as 12.0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1, max_size=8), mixed=st.booleans())
def test_whole_floats_are_integers_whichever_way(tmp_path, numbers, mixed):
    written = [str(n) if mixed and place else f"{n}.0" for place, n in enumerate(numbers)]
    (tmp_path / "a.csv").write_text("user,item\n" + "".join(f"{w},1\n" for w in written))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"user": {w}, "item": 1}}\n' for w in written))
    assert users_of(tmp_path / "a.csv") == numbers
    assert users_of(tmp_path / "a.jsonl") == numbers
    assert users_of(pd.read_csv(tmp_path / "a.csv")) == numbers


OTHERS = [["12.0", "abc"], ["12.5", "13.0"], ["012.0", "1.0"], ["+1.0", "2.0"], ["-0.0", "1.0"]]


@pytest.mark.parametrize("written", OTHERS)
def test_other_text_stays_text(tmp_path, written):
    (tmp_path / "a.csv").write_text("user,item\n" + "".join(f"{w},1\n" for w in written))
    assert users_of(tmp_path / "a.csv") == written


def test_users_are_found_by_what_pandas_reads(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\n" + "".join(f"{u}.0,{i}.0\n" for u in range(128, 132) for i in range(5)))
    fitted = Recommender("popularity").fit(path)
    for users in ([128], ["128"], [128.0], pd.read_csv(path)["user_id"].head(1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted.recommend(users=users, k=1, keep_seen=True)


@pytest.mark.parametrize("number", [2**53, 2**53 + 1, -(2**53), 2**63, 10**300])
def test_floats_that_may_stand_for_several_integers(tmp_path, number):
    message = r"user id .* may have been rounded"
    with pytest.raises(InputError, match=f"row 2: {message}"):
        read_log(pl.DataFrame({"user": [1.0, float(number)], "item": [1, 2]}))
    (tmp_path / "a.jsonl").write_text(f'{{"user": 5.0, "item": 1}}\n{{"user": {number}.0, "item": 1}}\n')
    with pytest.raises(InputError, match=f"line 2: {message}"):
        read_log(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text(f"user,item\n5.0,1\n{float(number)!r},1\n")
    with pytest.raises(InputError, match=f"line 3: {message}"):
        read_log(tmp_path / "a.csv")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-(2**60), 2**60) | st.integers(-9, 9).map(float), min_size=1, max_size=6))
def test_numbers_in_json_lines_are_exact(tmp_path, numbers):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"user": n, "item": 1}) + "\n" for n in numbers))
    assert users_of(tmp_path / "a.jsonl") == numbers  # a float among them, such as 5.0, makes no floats of the others


# ---- UUIDs, bytes, large integers


@pytest.mark.parametrize("kind", ["pandas", "polars", "bytes", "arrow", "arrow bytes", "parquet", "parquet bytes"])
def test_uuids(tmp_path, kind):
    raw = [value.bytes for value in UUIDS]
    items = [1, 2, 3]
    arrow_type = pa.binary(16) if kind.endswith("bytes") or not hasattr(pa, "uuid") else pa.uuid()
    table = pa.table({"user": pa.array(raw, arrow_type), "item": items})
    pq.write_table(table, tmp_path / "a.parquet")
    sources = {
        "pandas": pd.DataFrame({"user": UUIDS, "item": items}),
        "polars": pl.DataFrame({"user": UUIDS, "item": items}),
        "bytes": pl.DataFrame({"user": raw, "item": items}),
    }
    source = sources.get(kind, table if kind.startswith("arrow") else tmp_path / "a.parquet")
    assert users_of(source) == [str(value) for value in UUIDS]


def test_bytes_of_text_and_others():
    assert users_of(pl.DataFrame({"user": [b"abcdefghijklmnop", b"x"], "item": [1, 2]})) == ["abcdefghijklmnop", "x"]
    assert users_of(pl.DataFrame({"user": [b"abcdefghijklmnop"] * 2, "item": [1, 2]})) == ["abcdefghijklmnop"] * 2
    for bad in (b"\xff\xfe", b"a\0"):
        with pytest.raises(InputError, match="row 2: the user id is 2 bytes that are no text"):
            read_log(pl.DataFrame({"user": [b"ab", bad], "item": [1, 2]}))
    with pytest.raises(InputError, match="row 2: the user id is empty"):
        read_log(pl.DataFrame({"user": [b"ab", None], "item": [1, 2]}))


LARGE = [2**64, -(2**70), 5]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame])
def test_integers_beyond_64_bits_are_text(make):
    assert users_of(make({"user": LARGE, "item": [1, 2, 3]})) == [str(value) for value in LARGE]


def test_large_decimals_and_json(tmp_path):
    frame = pl.DataFrame({"user": pl.Series(LARGE).cast(pl.Decimal(38, 0)), "item": [1, 2, 3]})
    assert users_of(frame) == [str(value) for value in LARGE]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"user": n, "item": 1}) + "\n" for n in LARGE))
    assert users_of(tmp_path / "a.jsonl") == [str(value) for value in LARGE]


def test_lone_surrogates():
    frame = pd.DataFrame({"user": pd.Series(["\ud800", "\udc00"], dtype=object), "item": [1, 2]})
    with pytest.raises(InputError, match="row 1: the user id holds a lone surrogate"):
        read_log(frame)


def test_columns_of_mixed_types_that_nobody_needs():
    frame = pd.DataFrame({"user": [1, 2], "item": [3, 4], "tags": [1, "x"], "time": [1.6e9 + 0.5, 1.6e9]})
    result = read_log(frame)
    assert result.drop("tags").rows() == [(2, 4, 1_600_000_000), (1, 3, 1_600_000_000)]
    assert result["tags"].to_list() == ["x", 1]
    assert users_of(frame.rename(columns={"user": "who", "tags": "user"})) == ["x", "1"]
