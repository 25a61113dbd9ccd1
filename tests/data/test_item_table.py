"""The item table: how descriptions meet a catalogue, its categories, and its form on disk."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from seqrec import Dataset, InputError, LogWarning, prepare
from seqrec.data.items import ITEM_TABLE, ItemTable, describe, titles_of
from seqrec.data.table import load_table, save_table

IDS = pl.Series("item_id", ["a", "b", "c", "d"])


def table(**columns: Any) -> ItemTable:
    return ItemTable(pl.DataFrame({"item_id": IDS, **columns}))


def full() -> ItemTable:
    """A table with a column of every kind, each with something unknown."""
    vectors = np.array([[1, 2], [np.nan] * 2, [3, 4], [5, 6]], dtype=np.float32)
    return table(
        title=["A", None, "C", "D\u202e"],
        categories=pl.Series([["x", "root"], [], ["root", "y", "x"], ["root"]], dtype=pl.List(pl.String)),
        price=[1.5, None, 3.0, -1.0],
        text=[None, "t", "u", "v"],
        vector=pl.Series(vectors, dtype=pl.Array(pl.Float32, 2)),
    )


@pytest.mark.parametrize("ids", [[1, 2, 3], ["1", "2", "3"], [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("known", [[1, 2, 3], ["1", "2", "3"]])
def test_ids_mean_the_same_however_they_are_written(ids: list[Any], known: list[Any]):
    frame = pd.DataFrame({"item_id": ids[::-1], "title": ["C", "B", "A"]})
    found = describe(frame, pl.Series("item_id", known))
    assert found.titles is not None
    assert found.titles.to_list() == ["A", "B", "C"]
    assert found.frame["item_id"].to_list() == known


def test_what_does_not_fit_is_said():
    frame = pl.DataFrame(
        {"item_id": ["c", "z", "a", "c"], "title": ["C", "Z", "A", "other"], "v": [[1.0], [2], [3], [4]]}
    )
    with pytest.warns(LogWarning) as caught:
        found = describe(frame, IDS)
    (said,) = [str(warning.message) for warning in caught]
    assert said == (
        "the DataFrame: items without a description: 2 of 4 (b, d); ignored descriptions of items that are not in "
        "the log or were filtered out: 1 (z); ignored rows that describe an item again: 1 (c)"
    )
    assert found.frame["title"].to_list() == ["A", None, "C", None]
    assert np.array_equal(found.vectors("v"), [[3], [np.nan], [1], [np.nan]], equal_nan=True)
    assert found.summary is not None
    assert (found.summary.described, found.summary.unknown, found.summary.repeated) == (2, 1, 1)


def test_nothing_matches():
    with pytest.raises(InputError, match="column 'sku' holds ids like 7, the log ids like 'a'; give") as raised:
        describe(pl.DataFrame({"sku": [7, 8], "title": ["A", "B"]}), IDS)
    assert "\n" not in str(raised.value)


def test_a_file_counts_before_the_log():
    log = table(title=["log a", "log b", None, None], categories=pl.Series([["l"]] * 4))
    frame = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", None, None, "D"]})
    found = describe(frame, IDS, log).frame
    assert found["title"].to_list() == ["A", "log b", None, "D"]
    assert found["categories"].to_list() == [["l"]] * 4


def test_items_of_a_category():
    found = full()
    assert found.category_names == ["root", "x", "y"]
    assert found.items_of("x").tolist() == [1, 3]
    assert found.items_of("root").tolist() == [1, 3, 4]
    with pytest.raises(InputError, match="no item has the category 'z'; there are 3 categories: root, x, y"):
        found.items_of("z")
    assert table().category_names == []
    with pytest.raises(InputError, match="there are no categories"):
        table().items_of("x")


def test_one_category_per_item():
    codes, names = full().first_categories()
    assert codes.tolist() == [0, 1, 0, 2, 0]  # every item that has a category has the root: it says nothing
    assert names == ["x", "y"]
    assert full().first_categories(1)[0].tolist() == [0, 1, 0, 0, 0]
    assert table().first_categories()[1] == []
    same = table(categories=[["x"]] * 4)
    assert same.first_categories()[1] == []


def test_titles_beside_ids():
    found = titles_of(full(), np.array([3, 2, 3]), "name")
    assert {name: values.to_list() for name, values in found.items()} == {"name": ["C", None, "C"]}
    assert titles_of(None, np.array([1])) == titles_of(table(), np.array([1])) == {}


def test_it_comes_back_as_it_was(tmp_path: Path):
    digest = save_table(full(), tmp_path / ITEM_TABLE)
    stored = pl.read_parquet(tmp_path / ITEM_TABLE)
    assert stored.null_count().sum_horizontal().item() == 0
    found = load_table(ItemTable, tmp_path / ITEM_TABLE, IDS, digest)
    assert found.frame.equals(full().frame)
    assert found.kinds == full().kinds == {"price": "number", "text": "text", "vector": "vector"}


def write(frame: pl.DataFrame) -> Any:
    return frame.write_parquet


DAMAGE: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "is damaged"),
    "no Parquet": (lambda path: path.write_text("a,b"), "is damaged"),
    "a link": (lambda path: path.rename(path.with_name("x")) and path.symlink_to("x"), "is a symbolic link"),
    "rows": (write(pl.DataFrame({"item_id": ["a"]})), "it has 1 rows, not 4"),
    "other ids": (write(pl.DataFrame({"item_id": list("abcz")})), "belongs to another catalogue"),
    "ids of another kind": (write(pl.DataFrame({"item_id": [1, 2, 3, 4]})), "belongs to another catalogue"),
    "no ids": (write(pl.DataFrame({"title": list("abcd")})), "column item_id is missing"),
    "a title of numbers": (write(pl.DataFrame({"item_id": IDS, "title": [1.0] * 4})), "column title is Float64"),
    "structs": (write(pl.DataFrame({"item_id": IDS, "x": [{"a": 1}] * 4})), "column x is Struct"),
    "gaps": (write(pl.DataFrame({"item_id": IDS, "title": ["a", None, "c", "d"]})), "column title has gaps"),
    "gaps in a list": (write(pl.DataFrame({"item_id": IDS, "categories": [["a", None]] * 4})), "categories has gaps"),
    "infinity": (write(pl.DataFrame({"item_id": IDS, "n": [float("inf")] * 4})), "column n is not finite"),
    "many columns": (write(pl.DataFrame({"item_id": IDS, **{f"c{n}": [1.0] * 4 for n in range(10_000)}})), "columns"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(kind: str, tmp_path: Path):
    path = tmp_path / ITEM_TABLE
    save_table(full(), path)
    change, message = DAMAGE[kind]
    change(path)
    with pytest.raises(InputError, match=message) as raised:
        load_table(ItemTable, path, IDS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("column", [{"title": ["x" * 1000] * 3000}, {"categories": [["x" * 1000]] * 3000}])
def test_a_long_text_that_many_rows_share_is_not_multiplied(
    column: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("seqrec.data.table.MOST_UNPACKED", 2**20)
    monkeypatch.setattr("seqrec.data.table.MOST_EXPANSION", 10)
    ids = pl.Series("item_id", range(3000))
    pl.DataFrame({"item_id": ids, **column}).write_parquet(tmp_path / ITEM_TABLE)
    with pytest.raises(InputError, match=r"has gaps or long texts"):
        load_table(ItemTable, tmp_path / ITEM_TABLE, ids)


def dataset() -> Dataset:
    return prepare(pl.DataFrame({"user_id": [1, 1, 1, 2, 2], "item_id": ["a", "b", "c", "d", "a"]}))


def test_a_dataset_keeps_it(tmp_path: Path):
    plain = dataset()
    plain.save(tmp_path / "plain")
    assert Dataset.load(tmp_path / "plain").item_table is None
    assert "item_table" not in json.loads((tmp_path / "plain" / "dataset.json").read_text())
    described = plain.with_items(full().frame)
    assert described.fingerprint == plain.fingerprint
    described.save(tmp_path / "described")
    again = Dataset.load(tmp_path / "described").item_table
    assert again is not None
    assert described.item_table is not None
    assert again.frame.equals(described.item_table.frame)
    shutil.copy(tmp_path / "described" / ITEM_TABLE, tmp_path / "other")
    save_table(table(title=["other"] * 4), tmp_path / "described" / ITEM_TABLE)
    for use in (Dataset.check, lambda dataset: dataset.item_table.titles):
        opened = Dataset.load(tmp_path / "described")  # nothing is read yet
        with pytest.raises(InputError, match="is not the file that was saved"):
            use(opened)
    (tmp_path / "described" / ITEM_TABLE).unlink()
    with pytest.raises(InputError, match="is missing"):
        Dataset.load(tmp_path / "described")
    plain.save(tmp_path / "described")  # one without a table leaves none behind
    assert not (tmp_path / "described" / ITEM_TABLE).exists()


def test_no_warning_where_all_fits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset().with_items(pl.DataFrame({"item_id": list("abcd"), "title": list("ABCD")}))
