"""Item files in every format: columns found, warnings, and errors."""

import gzip
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from seqrec.data.formats.items import read_items, read_items_with_summary
from seqrec.data.formats.read import read_log
from seqrec.errors import InputError, LogWarning


def flags(*on: int) -> str:
    return "|".join("1" if place in on else "0" for place in range(19))


U_ITEM = (
    f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|{flags(3, 4, 5)}\n"
    f"2|Misérables, Les (1995)|01-Jan-1995||http://x|{flags(8, 12)}\n"
    f'3|"Quo" Vadis|||http://y|{flags(0)}\n'
)
AMAZON = [
    {"asin": "0001", "title": "The Crucible's", "categories": [["Books", "Plays"], ["Books"]], "price": 9.5,
     "salesRank": {"Books": 1}, "description": None},
    {"asin": "B2", "categories": [], "price": None, "imUrl": "http://x", "also_bought": ["0001", "7"]},
]  # fmt: skip
#: Name, content, and of the frame that comes of it: ids, titles, categories and the other columns.
FORMS: dict[str, tuple[str, str | bytes, list[Any], list[Any] | None, list[Any] | None, dict[str, list[Any]]]] = {
    "u.item": ("u.item", U_ITEM.encode("latin-1"), [1, 2, 3],
               ["Toy Story (1995)", "Misérables, Les (1995)", '"Quo" Vadis'],
               [["Animation", "Children's", "Comedy"], ["Drama", "Musical"], ["unknown"]],
               {"release_date": ["01-Jan-1995", "01-Jan-1995", None]}),
    "movies.dat": ("movies.dat", "1::Toy Story (1995)::Animation|Comedy\n73::Père: X (1995)::Drama\n".encode("latin-1"),
                   [1, 73], ["Toy Story (1995)", "Père: X (1995)"], [["Animation", "Comedy"], ["Drama"]], {}),
    "movies.csv": ("movies.csv",
                   'movieId,title,genres\n1,"President, The (1995)",Comedy|Drama\n2,X,(no genres listed)\n',
                   [1, 2], ["President, The (1995)", "X"], [["Comedy", "Drama"], []], {}),
    "recbole": ("a.item", "item_id:token\ttitle:token_seq\tclass:token_seq\tprice:float\tyear:token\tv:float_seq\n"
                "1\tToy Story\tAction Comedy\t12.5\t1995\t0.5 2\n2\tEye\tAction\t\t1996\t1 4\n",
                [1, 2], ["Toy Story", "Eye"], [["Action", "Comedy"], ["Action"]],
                {"price": [12.5, None], "year": ["1995", "1996"], "v": [[0.5, 2], [1, 4]]}),
    "amazon": ("meta.json", "\n".join(map(json.dumps, AMAZON)), ["0001", "B2"], ["The Crucible's", None],
               [["Books", "Plays"], []], {"price": [9.5, None], "also_bought": [None, "0001\n7"]}),
    "amazon, literals": ("meta.json", "\n".join(map(repr, AMAZON)), ["0001", "B2"], ["The Crucible's", None],
                         [["Books", "Plays"], []], {"price": [9.5, None]}),
    "amazon 2023": ("m.jsonl",
                    '{"main_category": "Beauty", "title": "A", "parent_asin": "B1", "categories": ["Hair"]}\n'
                    '{"main_category": "Beauty", "title": "B", "parent_asin": "B2", "categories": []}\n',
                    ["B1", "B2"], ["A", "B"], [["Hair"], []], {"main_category": ["Beauty", "Beauty"]}),
    "array": ("a.json", json.dumps([{"id": 7, "name": "A"}, {"id": "x", "name": "B"}], indent=1),
              ["7", "x"], ["A", "B"], None, {}),
    "map to lists": ("a.json", '{"4": [1, 2], "83": [2]}', ["4", "83"], None, [["1", "2"], ["2"]], {}),
    "map to objects": ("a.json", '{"4": {"title": "A"},\n "83": {"title": "B"}}', ["4", "83"], ["A", "B"], None, {}),
    "tsv, money": ("a.tsv", "sku\tdepartment\tprice\tname\nA1\tToys, Kids\t$1,200.00\tBall\nA2\tFood, Drink\t$3\tTea\n",
                   ["A1", "A2"], ["Ball", "Tea"], [["Toys, Kids"], ["Food, Drink"]], {"price": [1200.0, 3.0]}),
    "commas between categories": ("a.csv", 'anime_id,name,genre\n1,A,"Comedy, Drama"\n2,B,Drama\n3,C,Comedy\n',
                                  [1, 2, 3], ["A", "B", "C"], [["Comedy", "Drama"], ["Drama"], ["Comedy"]], {}),
    "lists as text": ("a.csv", "item_id,tags\n1,\"['a', 'b c']\"\n2,\"['b c']\"\n", [1, 2], None,
                      [["a", "b c"], ["b c"]], {}),
    "zip codes are texts": ("a.csv", "item_id,zip\n1,01234\n2,04321\n", [1, 2], None, None,
                            {"zip": ["01234", "04321"]}),
    "a noun": ("a.csv", "track_id,artist,track\n1,X,Song\n2,X,Air\n", [1, 2],
               ["Song", "Air"], None, {"artist": ["X", "X"]}),
    "vectors as text": ("a.csv", 'id,emb\n1,"[0.5, 1]"\n2,"[2, 3]"\n', [1, 2], None, None,
                        {"emb": [[0.5, 1], [2, 3]]}),
    "no header": ("a.csv", "A1,Ball,Toys|Kids,5\nA2,Tea,Food,6\n", ["A1", "A2"], ["Ball", "Tea"],
                  [["Toys", "Kids"], ["Food"]], {"4": [5.0, 6.0]}),
    "no header, news": ("a.tsv", "N1\tsport\tA title\nN2\tsport\tAnother\nN3\tsport\tThird\nN4\tnews\tLast\n",
                        ["N1", "N2", "N3", "N4"], ["A title", "Another", "Third", "Last"],
                        [["sport"], ["sport"], ["sport"], ["news"]], {}),
    "bars": ("a.txt", "id|title|category\n1|A|x\n2|B|y\n", [1, 2], ["A", "B"], [["x"], ["y"]], {}),
    "comments above": ("a.csv", "# made by hand\nitem_id,title\n1,A\n", [1], ["A"], None, {}),
    "of Excel": ("a.csv", "sep=;\nitem_id;title\n1;A, B\n", [1], ["A, B"], None, {}),
    "gzipped": ("a.jsonl.gz", gzip.compress(b'{"item_id": 1, "title": "Z"}\n'), [1], ["Z"], None, {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore::seqrec.errors.LogWarning")
def test_forms(form, tmp_path: Path):
    name, content, ids, titles, categories, others = FORMS[form]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    frame, summary = read_items_with_summary(tmp_path / name)
    assert frame["item_id"].to_list() == ids
    assert (frame["title"].to_list() if "title" in frame else None) == titles
    assert (frame["categories"].to_list() if "categories" in frame else None) == categories
    for column, values in others.items():
        found = frame[column].to_list()
        assert np.allclose(found, values) if isinstance(values[0], list) else found == values, column
    assert set(summary.kept) == set(frame.columns) - {"item_id", "title", "categories"}
    assert set(summary.columns) == ({"item_id", "title", "categories"} & set(frame.columns)) - {"item_id"} | {"item"}


COLUMNS = {"item_id": [3, 4], "title": ["A", None], "genres": [["x", "y"], []], "price": [1.5, None],
           "vec": [[1.0, 2.0], [3.0, 4.0]]}  # fmt: skip


@pytest.mark.parametrize("make", [pl.DataFrame, pl.LazyFrame, pd.DataFrame, pa.table])
def test_frames(make: Callable[..., Any]):
    frame = read_items(make(COLUMNS))
    assert frame.to_dict(as_series=False) == {
        "item_id": [3, 4], "title": ["A", None], "categories": [["x", "y"], []], "price": [1.5, None],
        "vec": [[1.0, 2.0], [3.0, 4.0]],
    }  # fmt: skip
    assert frame.schema["vec"] == pl.Array(pl.Float32, 2)


def test_parquet_and_folders_of_parts(tmp_path: Path):
    pl.DataFrame(COLUMNS).write_parquet(tmp_path / "part.parquet")
    assert read_items(tmp_path).equals(read_items(tmp_path / "part.parquet"))
    assert read_items(tmp_path)["title"].to_list() == ["A", None]


def test_what_is_said(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("code,price,x\nA,3,\nB,x\xe9,\n".encode("latin-1") + b"".join(
        b"C%d,4,\n" % number for number in range(20)
    ))  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame, summary = read_items_with_summary(tmp_path / "a.csv")
    said = [str(warning.message) for warning in caught]
    assert {warning.category for warning in caught} == {LogWarning}
    assert len(said) == 3
    assert said[0].endswith("is not UTF-8 and is read as Windows-1252 (Latin-1)")
    assert said[1].endswith("no column has a usual name for item ids; the first one, 'code', is used")
    assert said[2].endswith("column 'price' has values that are not numbers (1, such as 'xé'); they count as unknown")
    assert frame["price"][:3].to_list() == [3, None, 4]
    assert summary.lines()[0].endswith("a.csv: columns used: item = code")
    assert summary.lines()[1:] == ["numbers kept: price", "columns ignored: x (empty)"]


@pytest.mark.parametrize(
    ("prices", "read"),
    [
        (["12,50", "1.299,00 €", "€ 7"], [12.5, 1299, 7]),
        (["12,50", "1.299", "-0,5"], [12.5, 1299, -0.5]),
        (["1,299", "2,500", "7"], [1299, 2500, 7]),
        (["1,299.00", "2,500", "$ 7.5"], [1299, 2500, 7.5]),
        (["1,2", "1.5", "3"], ["1,2", "1.5", "3"]),  # a comma and a point in one column are no numbers
        (["1,2,3", "4,5", "6"], ["1,2,3", "4,5", "6"]),
    ],
)
def test_decimal_commas(prices: list[str], read: list[Any], tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("id;price;brand\n" + "".join(f"{number};{price};x\n" for number, price in enumerate(prices)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = read_items(path)
    assert frame["price"].to_list() == read
    said = [str(warning.message) for warning in caught]
    commas = [f"{path}: the commas in column 'price' are read as decimal points"]
    assert said == (commas if 12.5 in read else [])


def test_an_unknown_title_column_is_told():
    rows = {"id": [1, 2, 3], "bezeichnung": ["Rock", "Hut", "Hose"], "brand": ["x", "x", "x"], "price": [1, 2, 3]}
    line = "no column is named like a title; to show one of these, rename it to title: bezeichnung"
    assert line in read_items_with_summary(pl.DataFrame(rows))[1].lines()
    assert line not in read_items_with_summary(pl.DataFrame(rows | {"name": ["a", "b", "c"]}))[1].lines()


def test_the_id_column_can_be_named():
    frame = pl.DataFrame({"item_id": [1], "Code": ["a"]})
    assert read_items(frame, item="code")["item_id"].to_list() == ["a"]
    with pytest.raises(InputError, match="no column 'x'; choose from item_id, Code"):
        read_items(frame, item="x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("item_id,title\n", "describes no item"),
        ("item_id,title\n1,a\n,b\n", "line 3: the item id is empty"),
        ("abc\ndef\n", "no separated columns; separate its columns by commas or tabs"),
        ('{"a": 1}\nfoo\n', "line 2: not a JSON object"),
        ('[{"a": 1}, 2]', "is not a list of JSON objects"),
        ('{"a": 1,\n', "is not JSON"),
        ("[" * 100_000, "is not JSON|nested too deeply"),
        (b"item_id,title\n1,a\0b\n", "is binary"),
        (b"PK\x03\x04" + bytes(50), "looks like a zip archive"),
        ("item_id,title\n1,a,b\n", r"too many fields|has 2 fields"),
    ],
)
def test_bad_files(content: str | bytes, message: str, tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as raised:
        read_items(tmp_path / "a.csv")
    assert "\n" not in str(raised.value)


def test_more_columns_than_a_table_may_have(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seqrec.data.formats.items.MOST_COLUMNS", 3)
    with pytest.raises(InputError, match="has 4 columns, more than 3; write numbers as one column of lists"):
        read_items(pl.DataFrame({"item_id": [1], "a": [1], "b": [2], "c": [3]}))


@pytest.mark.parametrize("source", ["", "nowhere.csv", 5, [1, 2]])
def test_bad_sources(source: Any):
    with pytest.raises(InputError):
        read_items(source)


def test_values_that_are_no_columns():
    frame = pl.DataFrame(
        {"item_id": [1, 2], "ragged": [[1.0], [1.0, 2.0]], "nested": [{"a": 1}, {"a": 2}], "bytes": [b"a", b"b"],
         "large": [2**60 + 1, 5], "flag": [True, None], "endless": [float("inf"), 1.0]}
    )  # fmt: skip
    found, summary = read_items_with_summary(frame)
    assert summary.ignored == {
        "ragged": "lists of several lengths", "nested": "nested values", "bytes": "bytes",
    }  # fmt: skip
    assert found["large"].to_list() == [str(2**60 + 1), "5"]  # a float would round it
    assert found["flag"].to_list() == [1.0, None]
    assert found["endless"].to_list() == [None, 1.0]


@pytest.mark.real
def test_the_items_of_movielens(real_data: Path):
    frame, summary = read_items_with_summary(real_data / "ml-100k" / "ml-100k.item")
    assert frame.height == 1682
    assert summary.columns == {"item": "item_id", "title": "movie_title", "categories": "class"}
    assert frame["title"][49] == "Star Wars"


@pytest.mark.parametrize("read", [read_items, read_log])
def test_a_device_is_refused_before_it_is_read(read: Any):
    for device in ("/dev/zero", "/dev/null"):  # the first has no end
        with pytest.raises(InputError, match="is a device, not a file"):
            read(device)
