"""The item table: one row per item of the catalogue, with its id, title, categories and other known facts."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.checked import MOST_EXPANSION, MOST_UNPACKED, read_parquet, size_of
from seqrec.data.formats.item_columns import MOST_COLUMNS, MOST_VECTOR, ItemSummary
from seqrec.data.formats.items import kind_of, read_items_with_summary
from seqrec.data.formats.summary import some_of
from seqrec.data.id_table import IdTable
from seqrec.errors import InputError, one_line

ITEM_TABLE = "item_table.parquet"
_CATEGORIES = pl.List(pl.String)


class ItemTable:
    """Known facts about the items of a catalogue, in the order of their ids.

    Args:
        frame: frame with ``item_id``; ``title`` (String) and ``categories`` (List(String)), if known; and any numbers
            (Float64), vectors (Array(Float32)) and texts (String). Row ``i - 1`` is the item with index ``i``. Unknown
            values are null, an empty list of categories, or a vector of NaN. May also be a function that reads this
            frame from a file; it is called at the first use.
        summary: summary of how the descriptions were understood; None for a table that was loaded.

    Attributes:
        learned: what :func:`seqrec.data.features.vocabulary_of` found in it, by what was asked for.
    """

    def __init__(self, frame: pl.DataFrame | Callable[[], pl.DataFrame], summary: ItemSummary | None = None) -> None:
        self._frame, self.summary = frame, summary
        self.learned: dict[str, Any] = {}

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The table, with a row per item of the catalogue."""
        return self._frame if isinstance(self._frame, pl.DataFrame) else self._frame()

    def read(self) -> "ItemTable":
        """Read and check the table now if it is in a file, because a forked process cannot do it later."""
        assert self.frame is not None
        return self

    def __len__(self) -> int:
        return self.frame.height

    @property
    def titles(self) -> pl.Series | None:
        """Title of each item, null if unknown; None if no titles are known."""
        return self.frame["title"] if "title" in self.frame.columns else None

    @property
    def categories(self) -> pl.Series | None:
        """Categories of each item, as lists; None if no categories are known."""
        return self.frame["categories"] if "categories" in self.frame.columns else None

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each other column: ``number``, ``vector`` or ``text``."""
        known = ("item_id", "title", "categories")
        return {name: kind_of(kind) for name, kind in self.frame.schema.items() if name not in known}

    def vectors(self, name: str) -> np.ndarray:
        """Vectors in a column, ``float32[I, D]``; a row of NaN for an item without one.

        Raises:
            InputError: there is no such column of vectors.
        """
        if self.kinds.get(name) != "vector":
            there = ", ".join(f"{name} ({kind})" for name, kind in self.kinds.items()) or "no other columns"
            raise InputError(f"the item table has no column of vectors {name!r}; it has {there}")
        return self.frame[name].to_numpy()

    @cached_property
    def _coded(self) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """Sorted category names; and for each entry of the lists, its item ``int64[M]`` and its category from 0."""
        if self.categories is None:
            return pl.Series([], dtype=pl.String), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        entries = self.categories.explode().drop_nulls()
        names = entries.unique().sort()
        items = np.repeat(np.arange(1, len(self) + 1), self.categories.list.len().to_numpy())
        return names, items, IdTable(names).find(entries)

    @cached_property
    def _by_category(self) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """Sorted category names, item indices by category ``int64[M]``, and the offsets of each ``int64[C + 1]``."""
        names, items, codes = self._coded
        order = np.argsort(codes, kind="stable")
        return names, items[order], np.searchsorted(codes[order], np.arange(len(names) + 1)).astype(np.int64)

    @property
    def category_names(self) -> list[str]:
        """Names of all categories, sorted."""
        return self._by_category[0].to_list()

    def items_of(self, category: str) -> np.ndarray:
        """Indices (from 1) of the items in a category, ascending, ``int64[M]``.

        Raises:
            InputError: there is no such category.
        """
        names, items, offsets = self._by_category
        place = int(names.search_sorted(category)) if len(names) else 0
        if place == len(names) or names[place] != category:
            there = (
                f"there are {len(names):,} categories: {some_of(names)}" if len(names) else "there are no categories"
            )
            raise InputError(f"no item has the category {category!r}; {there}")
        return items[offsets[place] : offsets[place + 1]]

    def first_categories(self, most: int | None = None) -> tuple[np.ndarray, list[str]]:
        """One category per item, the first in its list, for models that take only one.

        Categories that all items have, such as the root of a tree, carry no information and are skipped.

        Args:
            most: maximum number of categories. The most frequent ones are kept; items of others get no category.

        Returns:
            Category of each item, ``int64[I + 1]``, 0 if unknown; and the names of categories 1, 2, …, most frequent
            first.
        """
        names, rows, entries = self._coded
        codes = np.zeros(len(self) + 1, dtype=np.int64)
        if len(names) == 0:
            return codes, []
        telling = np.bincount(entries) < len(np.unique(rows))
        rows, entries = rows[telling[entries]], entries[telling[entries]]
        owners, first = np.unique(rows, return_index=True)  # the first place of each item
        counts = np.bincount(entries[first], minlength=len(names))
        order = np.lexsort((np.arange(len(names)), -counts))[: np.count_nonzero(counts)][:most]
        number = np.zeros(len(names), dtype=np.int64)
        number[order] = np.arange(1, len(order) + 1)
        codes[owners] = number[entries[first]]
        return codes, names.gather(order).to_list()


def describe(items: Any, item_ids: pl.Series, log: ItemTable | None = None, *, item: str | None = None) -> ItemTable:
    """Make the item table of a catalogue from descriptions of items.

    Args:
        items: descriptions in any form that :func:`read_items` takes.
        item_ids: ids of the catalogue, sorted.
        log: item table made from columns of the log; it fills the gaps of ``items``.
        item: name of the id column in ``items``.

    Raises:
        InputError: ``items`` cannot be read, or describes no item of the catalogue.
    """
    frame, summary = read_items_with_summary(items, item=item)
    table = _aligned(frame, item_ids, summary)
    if log is None:
        return table
    joined = dict(zip(table.frame.columns, table.frame.iter_columns(), strict=True))
    if log.titles is not None:
        joined["title"] = log.titles if table.titles is None else table.titles.zip_with(
            table.titles.is_not_null(), log.titles
        )  # fmt: skip
    if log.categories is not None:
        mine = table.categories
        joined["categories"] = log.categories if mine is None else mine.zip_with(mine.list.len() > 0, log.categories)
    return ItemTable(pl.DataFrame(joined), summary)


def _aligned(frame: pl.DataFrame, item_ids: pl.Series, summary: ItemSummary) -> ItemTable:
    """Descriptions in the order of the catalogue; warns about items or descriptions that do not match."""
    ids = frame["item_id"]
    places = IdTable(item_ids).find(ids)
    known = places >= 0
    if not known.any():
        raise InputError(
            f"{summary.name}: describes no item of the catalogue: its column {summary.columns['item']!r} holds ids "
            f"like {ids[0]!r}, the log ids like {item_ids[0]!r}; give descriptions with the ids of the log"
        )
    found, first = np.unique(places[known], return_index=True)
    rows = np.flatnonzero(known)[first]
    summary.described, summary.catalogue = len(found), len(item_ids)
    summary.unknown = int((~known).sum())
    summary.repeated = int(known.sum()) - len(found)
    notes = []
    if missing := len(item_ids) - len(found):
        there = np.zeros(len(item_ids), dtype=bool)
        there[found] = True
        some = some_of(item_ids.filter(~pl.Series(there)), 3)
        notes.append(f"items without a description: {missing:,} of {len(item_ids):,} ({some})")
    if summary.unknown:
        some = some_of(ids.filter(pl.Series(~known)), 3)
        what = "ignored descriptions of items that are not in the log or were filtered out"
        notes.append(f"{what}: {summary.unknown:,} ({some})")
    if summary.repeated:
        again = np.ones(len(ids), dtype=bool)
        again[rows] = False
        some = some_of(ids.filter(pl.Series(again & known)), 3)
        notes.append(f"ignored rows that describe an item again: {summary.repeated:,} ({some})")
    if notes:
        summary.warn("; ".join(notes))
    row_of = np.full(len(item_ids), -1, dtype=np.int64)
    row_of[found] = rows
    index = pl.Series(row_of).set(pl.Series(row_of < 0), None)
    columns = {name: frame[name].gather(index) for name in frame.columns if name != "item_id"}
    for name, values in columns.items():
        if values.dtype == _CATEGORIES:
            columns[name] = values.fill_null([])
        elif isinstance(values.dtype, pl.Array):
            vectors = frame[name].to_numpy()[row_of]
            vectors[row_of < 0] = np.nan
            columns[name] = pl.Series(name, vectors, dtype=values.dtype)
    return ItemTable(pl.DataFrame({"item_id": item_ids, **columns}), summary)


def titles_of(table: ItemTable | None, items: np.ndarray, name: str = "title") -> dict[str, pl.Series]:
    """Titles of items, by index, as a column for a frame; empty if no titles are known."""
    titles = table.titles if table is not None else None
    return {} if titles is None else {name: titles.gather(items - 1).alias(name)}


def save_items(table: ItemTable, path: Path) -> str:
    """Write an item table as Parquet, and return the digest of the file.

    The file has no nulls: unknown values are empty texts, empty lists or NaN.
    """
    texts, numbers = pl.col(pl.String).fill_null(""), pl.col(pl.Float64).fill_null(float("nan"))
    frame = table.frame
    frame.with_columns(texts).with_columns(numbers).write_parquet(path)
    return _digest_of(path)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_items(
    path: Path, item_ids: pl.Series, digest: str | None = None, advice: str = "copy it back or train again"
) -> ItemTable:
    """Read an item table that :func:`save_items` wrote. The file is checked, as it may come from anybody.

    Args:
        path: file to read.
        item_ids: ids of the catalogue; the table must have the same.
        digest: digest that :func:`save_items` returned; None skips this check.
        advice: advice in the error about a damaged file.

    Raises:
        InputError: the file is damaged, belongs to another catalogue, or is not an item table.
    """
    kinds: Mapping[str, Any] = {
        name: None if name == "item_id" else kind for name, kind in _schema(path, advice).items()
    }
    frame = read_parquet(path, kinds, len(item_ids), advice)
    if digest is not None and _digest_of(path) != digest:
        raise InputError(f"{path}: is not the file that was saved; {advice}")
    if frame["item_id"].dtype != item_ids.dtype or not (frame["item_id"] == item_ids).all():
        raise InputError(f"{path}: belongs to another catalogue; {advice}")
    most = max(MOST_UNPACKED, MOST_EXPANSION * size_of(path, advice))
    columns = []
    for values in frame.iter_columns():
        # A Parquet file names a long text once for many rows.
        flat = values.explode().drop_nulls() if values.dtype == _CATEGORIES else values
        gaps = values.dtype == _CATEGORIES and len(flat) != values.list.len().sum()
        if gaps or (flat.dtype == pl.String and int(flat.str.len_bytes().sum()) > most):
            raise InputError(f"{path}: is damaged (column {values.name} has gaps or long texts); {advice}")
        if values.name == "item_id":
            values = item_ids.alias("item_id")
        elif values.dtype == pl.Float64:
            if values.is_infinite().any():
                raise InputError(f"{path}: is damaged (column {values.name} is not finite); {advice}")
            values = values.fill_nan(None)
        elif values.dtype == pl.String:
            values = values.set(values == "", None)
        columns.append(values)
    return ItemTable(pl.DataFrame(columns))


def _schema(path: Path, advice: str) -> dict[str, pl.DataType]:
    """Columns and types of an item table; raises if the file holds anything that an item table does not have."""
    from pyarrow import ArrowException  # slow to import, and few commands need it
    from pyarrow.parquet import read_metadata

    size_of(path, advice)
    try:
        footer = read_metadata(path)  # unlike polars, pyarrow limits the nesting of a schema
        if footer.num_columns > MOST_COLUMNS:
            raise ValueError(f"it has {footer.num_columns:,} columns")
        schema = dict(pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema())
        if wrong := _odd_column(schema):
            raise ValueError(wrong)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); {advice}") from error
    return schema


def _odd_column(schema: Mapping[str, pl.DataType]) -> str | None:
    """Describe a column that no item table has, or a missing one; None if all columns are as expected."""
    if "item_id" not in schema:
        return "column item_id is missing"
    for name, kind in schema.items():
        vector = isinstance(kind, pl.Array) and kind.inner == pl.Float32 and kind.size <= MOST_VECTOR
        expected = {"item_id": kind, "title": pl.String, "categories": _CATEGORIES}.get(name)
        if not (kind == expected if expected is not None else vector or kind in (pl.String, pl.Float64)):
            return f"column {name} is {kind}"
    return None
