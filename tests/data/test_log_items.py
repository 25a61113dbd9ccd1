"""Titles and categories that stand in the log itself."""

import warnings
from typing import Any

import polars as pl
import pytest

from seqrec import LogWarning, PrepareConfig, prepare, read_log
from seqrec.data.dataset import Dataset


def log(**columns: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 3], "item_id": ["b", "a", "b", "c", "b", "a"], **columns})


def prepared(frame: pl.DataFrame) -> tuple[Dataset, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = prepare(frame)
    assert {warning.category for warning in caught} <= {LogWarning}
    return found, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["title", "name", "Item Name", "product_title"])
def test_a_title_beside_each_interaction(name: str):
    found, said = prepared(log(**{name: ["B", "A", "B", "C", "B", None]}))
    assert said == []
    assert found.item_table is not None
    assert found.item_table.frame.to_dict(as_series=False) == {"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]}
    assert found.item_table.summary is not None
    assert found.item_table.summary.columns == {"title": name}
    assert found.fingerprint == prepare(log()).fingerprint


def test_the_most_frequent_title_counts_and_conflicts_are_said():
    rows = log(title=["B", "A", "B!", "C", "B", "A"])
    found, said = prepared(pl.concat([rows, rows]))
    assert said == ["the log's column 'title' has several values for 1 of 3 items (b); the most frequent one is used"]
    assert found.item_table is not None
    assert found.item_table.frame["title"].to_list() == ["A", "B", "C"]
    tied, _ = prepared(
        pl.concat([log(title=["B", "A", "B", "C", "B!", "A"]), log(title=["B!", "A", "B", "C", "B", "A"])])
    )
    assert tied.item_table is not None
    assert tied.item_table.frame["title"][1] == "B"


def test_titles_of_reviews_are_not_titles_of_items():
    found, said = prepared(log(title=["great", "bad", "so so", "fine", "never again", "love it"]))
    assert said == [
        "the log's column 'title' differs between rows of the same item, so it is not the title of items and is ignored"
    ]
    assert found.item_table is None


@pytest.mark.parametrize("columns", [{}, {"price": [1, 2, 3, 4, 5, 6]}, {"label": ["0", "1", "0", "1", "0", "1"]}])
def test_no_column_of_items(columns: dict[str, list[Any]]):
    found, said = prepared(log(**columns))
    assert (found.item_table, said) == (None, [])


def test_categories_of_the_log():
    found, said = prepared(log(category=["x|y", "y", "x|y", "z", "x|y", "y"], title=["B", "A", "B", "C", "B", "A"]))
    assert said == []
    assert found.item_table is not None
    assert found.item_table.frame["categories"].to_list() == [["y"], ["x", "y"], ["z"]]
    assert found.item_table.items_of("y").tolist() == [1, 2]


def test_items_that_the_filters_drop_are_not_in_the_table():
    found = prepare(log(title=["B", "A", "B", "C", "B", "A"]), PrepareConfig(min_item_interactions=2))
    assert found.item_table is not None
    assert found.item_table.frame["title"].to_list() == ["A", "B"]


def test_from_a_file(tmp_path):
    (tmp_path / "log.csv").write_text("user,movie_id,movie_title,ts\n1,5,Five,1\n1,7,Seven,2\n2,7,Seven,3\n")
    found = prepare(read_log(tmp_path / "log.csv")).item_table
    assert found is not None
    assert found.frame.to_dict(as_series=False) == {"item_id": [5, 7], "title": ["Five", "Seven"]}
