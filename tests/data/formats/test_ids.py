"""Files of ids, one per line or as a table: every id can be named in one of them."""

import csv
import gzip
import io
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqrec.data.formats.ids import read_ids
from seqrec.errors import InputError, LogWarning


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def parquet(**columns: list | pl.Series) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


FILES = {
    "text": ("ids.txt", "i1\ni2\n", ["i1", "i2"]),
    "text, no ending": ("ids", "i1\ni2", ["i1", "i2"]),
    "text, blanks, empty lines and a mark": ("ids.txt", "\ufeff i1 \r\n\r\n\t007\t\n", ["i1", "007"]),
    "text, old line ends": ("ids.txt", "i1\ri2\r", ["i1", "i2"]),
    "text, UTF-16": ("ids.txt", "i1\r\ni2\r\n".encode("utf-16"), ["i1", "i2"]),
    "text, gzipped": ("ids.txt.gz", "i1\ni2\n", ["i1", "i2"]),
    "text, other ends of lines in ids": ("ids", "a\u2028b\nc\x85d\n e\x0cf\n", ["a\u2028b", "c\x85d", "e\x0cf"]),
    "text, quotes and commas are part of ids": ("ids.txt", '"a", b\n#c\n', ['"a", b', "#c"]),
    "csv, no header": ("ids.csv", "i1\ni2\n", ["i1", "i2"]),
    "csv, header": ("ids.csv", "item_id\ni1\n007\n", ["i1", "007"]),
    "csv, the column of the name": ("ids.csv", "note,itemId,x\na,i1,b\n,i2,\n", ["i1", "i2"]),
    "csv, the best name": ("ids.csv", "product;item_id\na;i1\nb;i2\n", ["i1", "i2"]),
    "csv, quoted": ("ids.csv", 'item_id\n" a "\n"f,""g"""\n\n', [" a ", 'f,"g"']),
    "csv, quoted line ends": ("ids.csv", 'item_id\n"b\nc"\n"d\re"\n"h\r\ni"\n', ["b\nc", "d\re", "h\r\ni"]),
    "csv, an id alone": ("ids.csv", '"b\rc"', ["b\rc"]),
    "csv, CRLF": ("ids.csv", '"item_id"\r\n"i1"\r\n', ["i1"]),
    "tsv": ("ids.tsv", "name\titem_id\na, b\ti1\n", ["i1"]),
    "csv, gzipped": ("ids.csv.gz", "item_id\ni1\n", ["i1"]),
    "jsonl, ids": ("ids.jsonl", '"i1"\n 7 \n\n"a\\n b "\n7.0\n', ["i1", "7", "a\n b ", "7"]),
    "jsonl, objects": ("ids.jsonl", '{"x": 1, "item_id": "007"}\n{"item_id": 5}\n', ["007", "5"]),
    "jsonl, objects of other names": ("ids.ndjson", '{"x": "a"}\n{"x": "b"}\n', ["a", "b"]),
    "parquet": ("ids.parquet", parquet(x=[1], item_id=["a\rb "]), ["a\rb "]),
    "parquet, another ending": ("ids.txt", parquet(key=[1, 2**60 + 1]), ["1", str(2**60 + 1)]),
    "parquet, floats": ("ids.pq", parquet(item_id=[1.0, 12.0]), ["1", "12"]),
    "parquet, categories": ("ids.pq", parquet(item_id=pl.Series(["a", "b"], dtype=pl.Categorical)), ["a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files(tmp_path: Path, case: str) -> None:
    name, content, expected = FILES[case]
    assert read_ids(put(tmp_path, name, content), "item_id") == expected


def test_the_role_says_the_column(tmp_path: Path) -> None:
    path = put(tmp_path, "ids.csv", "item_id,user_id\ni1,u1\n")
    assert (read_ids(path, "item_id"), read_ids(path, "user_id")) == (["i1"], ["u1"])


def test_the_first_column_where_none_has_the_name_is_said(tmp_path: Path) -> None:
    path = put(tmp_path, "ids.csv", "i1,5\ni2,6\n")
    with pytest.warns(LogWarning, match="no column is called item_id; the first column is used"):
        assert read_ids(path, "item_id") == ["i1", "i2"]


ERRORS = {
    "missing": ("none.txt", None, "none.txt: No such file"),
    "a long name": ("n" * 300, None, "File name too long"),
    "empty": ("ids.txt", "", "is empty; give a file with one id per line"),
    "only blanks": ("ids.csv", "\n\n", "is empty; give a file with one id per line"),
    "only a header": ("ids.csv", "item_id\n", "is empty"),
    "empty Parquet": ("ids.parquet", parquet(item_id=[]), "is empty"),
    "Latin-1": ("ids.txt", b"a\nJos\xe9\n", "line 2: is not UTF-8"),
    "binary": ("ids.txt", b"a\0b", "is binary or UTF-16"),
    "a page": ("ids.txt", "<html>\n", "looks like a web page"),
    "no id in a row": ("ids.csv", "user_id,item_id\nu1,i1\nu2,\n", "line 3: the id is empty"),
    "a short row": ("ids.csv", "user_id,item_id\nu1,i1\nu2\n", "line 3: the id is empty"),
    "no JSON": ("ids.jsonl", '"i1"\n{"item_id"\n', "line 2: is not JSON"),
    "deep JSON": ("ids.jsonl", '"i1"\n' + "[" * 100_000 + "\n", "line 2: is not JSON"),
    "a list": ("ids.jsonl", '"i1"\n["i2"]\n', r"line 2: \['i2'\] is not an id"),
    "true": ("ids.jsonl", "true\n", "line 1: True is not an id"),
    "a fraction": ("ids.jsonl", "5.5\n", "line 1: 5.5 is not an id"),
    "a float that may be several integers": ("ids.jsonl", "1e17\n", "line 1: 1e"),
    "infinite": ("ids.jsonl", "Infinity\n", "line 1: inf is not an id"),
    "null": ("ids.jsonl", '{"item_id": null}\n', "line 1: the id is empty"),
    "an empty object": ("ids.jsonl", "{}\n", "line 1: the id is empty"),
    "a lone surrogate": ("ids.jsonl", '"\\ud800"\n', "line 1: .* lone surrogate"),
    "a missing id in Parquet": ("ids.parquet", parquet(item_id=["a", None]), "row 2: the id is empty"),
    "dates": ("ids.parquet", parquet(item_id=pl.Series([1]).cast(pl.Date)), "row 1: .* is not an id"),
    "damaged Parquet": ("ids.parquet", b"PAR1 and no more", "not Parquet, or is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(tmp_path: Path, case: str) -> None:
    name, content, message = ERRORS[case]
    path = tmp_path / name
    if content is not None:
        put(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_ids(path, "item_id")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(it is a folder\)"):
        read_ids(tmp_path, "item_id")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=5)
ids = st.lists(texts.filter(lambda text: text.strip()), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=ids, kind=st.sampled_from(["csv", "jsonl", "parquet"]))
def test_any_id_can_be_named(tmp_path: Path, ids: list[str], kind: str) -> None:
    path = tmp_path / f"ids.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["item_id"], *([id] for id in ids)])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(id) + "\n" for id in ids))
    else:
        pl.DataFrame({"item_id": ids}).write_parquet(path)
    assert read_ids(path, "item_id") == ids
