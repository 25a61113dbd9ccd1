"""The user table: what is read of each form of file, how it meets the users of a log, and its form on disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import Dataset, InputError, LogWarning, prepare
from seqrec.data.features import vocabulary_of
from seqrec.data.formats.users import read_users_with_summary
from seqrec.data.table import load_table, save_table
from seqrec.data.users import USER_TABLE, UserTable, describe_users

IDS = pl.Series("user_id", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("text", "row", "kinds"),
    [
        (
            "user_id:token\tage:token\tgender:token\tlikes:token_seq\tnear:float_seq\n"
            "7\t24\tM\tx y\t1 2\n8\t\tF\t\t3 4\n",
            {"user_id": 7, "age": "24", "gender": "M", "likes": ["x", "y"], "near": [1.0, 2.0]},
            {"age": "text", "gender": "text", "likes": "list", "near": "vector"},
        ),
        (
            "1|24|M|technician|85711\n2|53|F|other|94043\n",  # MovieLens' u.user
            {"user_id": 1, "age": 24.0, "gender": "M", "occupation": "technician", "zip_code": "85711"},
            {"age": "number", "gender": "text", "occupation": "text", "zip_code": "text"},
        ),
        (
            "1::F::1::10::48067\n2::M::56::16::70072\n",  # MovieLens' users.dat
            {"user_id": 1, "gender": "F", "age": 1.0, "occupation": "10", "zip_code": "48067"},
            {"age": "number", "gender": "text", "occupation": "text", "zip_code": "text"},
        ),
        (
            "age,id,interests,title\n24,u1,art|sport,Dr\n31,u2,,Ms\n",
            {"user_id": "u1", "age": 24.0, "interests": ["art", "sport"], "title": "Dr"},
            {"age": "number", "interests": "list", "title": "text"},
        ),
        (
            '{"id": "u1", "tags": ["x"], "premium": true, "v": [1, 2]}\n{"id": "u2", "tags": [], "v": [2, 3]}\n',
            {"user_id": "u1", "tags": ["x"], "premium": 1.0, "v": [1.0, 2.0]},
            {"tags": "list", "premium": "number", "v": "vector"},
        ),
    ],
)
def test_forms_of_files(tmp_path: Path, text: str, row: dict[str, Any], kinds: dict[str, str]):
    (tmp_path / "users").write_text(text)
    frame, summary = read_users_with_summary(tmp_path / "users")
    assert frame.height == 2
    assert frame.row(0, named=True) == row
    assert summary.kept == kinds
    assert summary.notes == []
    assert UserTable(frame).kinds == kinds


def test_a_guess_is_said(tmp_path: Path):
    (tmp_path / "users.csv").write_text("u1,24,x\nu2,25,y\n")
    with pytest.warns(LogWarning, match=r"has no header; the ids are in column 1, the others are called 2, 3"):
        frame, _ = read_users_with_summary(tmp_path / "users.csv")
    assert frame.columns == ["user_id", "2", "3"]
    with pytest.warns(LogWarning, match="no column has a usual name for user ids; the first one, 'who', is used"):
        read_users_with_summary(pl.DataFrame({"who": [1], "age": [2]}))


def full() -> UserTable:
    vectors = np.array([[1, 2], [np.nan] * 2, [3, 4]], dtype=np.float32)
    frame = pl.DataFrame({
        "user_id": IDS, "age": [20.0, None, 30.0], "job": ["x", None, "x"],
        "likes": pl.Series([["p", "q"], [], ["q"]], dtype=pl.List(pl.String)),
        "near": pl.Series(vectors, dtype=pl.Array(pl.Float32, 2)),
    })  # fmt: skip
    return UserTable(frame)


def test_a_dataset_keeps_it(tmp_path: Path):
    plain = prepare(pl.DataFrame({"user_id": ["a", "a", "b", "c"], "item_id": [1, 2, 1, 2]}))
    plain.save(tmp_path / "plain")
    assert Dataset.load(tmp_path / "plain").user_table is None
    assert "user_table" not in json.loads((tmp_path / "plain/dataset.json").read_text())
    described = replace(plain, user_table=full())
    assert described.fingerprint == plain.fingerprint
    described.save(tmp_path / "described")
    again = Dataset.load(tmp_path / "described").user_table
    assert again is not None
    assert again.frame.equals(full().frame)
    save_table(UserTable(full().frame.with_columns(age=1.0)), tmp_path / "described" / USER_TABLE)
    with pytest.raises(InputError, match="is not the file that was saved"):
        Dataset.load(tmp_path / "described").check()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"user_id": ["a", "b", "d"]}), "belongs to another log"),
        (pl.DataFrame({"user_id": IDS, "age": [1, 2, 3]}), "column age is Int64"),
        (pl.DataFrame({"user_id": IDS, "likes": [["p", None], ["q"], []]}), "column likes has gaps"),
        (pl.DataFrame({"item_id": IDS}), "column user_id is missing"),
        (pl.DataFrame({"user_id": IDS, "age": [1.0, np.inf, 2.0]}), "column age is not finite"),
    ],
)
def test_files_that_are_no_user_tables(tmp_path: Path, frame: pl.DataFrame, message: str):
    frame.write_parquet(tmp_path / USER_TABLE)
    with pytest.raises(InputError, match=message):
        load_table(UserTable, tmp_path / USER_TABLE, IDS)


def test_rows_that_do_not_fit_are_said_and_unknown_values_stay_unknown():
    frame = pl.DataFrame(
        {"user_id": ["c", "z", "a", "c"], "likes": [["p"], ["p"], ["p", "q"], ["q"]], "n": [1, 2, 3, 4]}
    )
    with pytest.warns(LogWarning) as caught:
        found = describe_users(frame, IDS)
    (said,) = [str(one.message) for one in caught]
    assert said == (
        "the DataFrame: users without a description: 1 of 3 (b); ignored descriptions of users that are not in the "
        "log or were filtered out: 1 (z); ignored rows that describe a user again: 1 (c)"
    )
    assert found.frame["likes"].to_list() == [["p", "q"], [], ["p"]]
    assert found.frame["n"].to_list() == [3, None, 1]
    vocabulary, _ = vocabulary_of(found, "likes,n")
    encoded = vocabulary.encode(found)
    names = [[vocabulary.names[code] for code in encoded.codes[a:b]] for a, b in
             zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]  # fmt: skip
    assert names == [[], ["likes\tp", "n\t1"], [], ["likes\tp", "n\t0"]]
