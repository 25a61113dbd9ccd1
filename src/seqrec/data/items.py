"""The item table: one row per item of the catalogue, with its id, title, categories and other known facts."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import polars as pl

from seqrec.data.formats.items import read_items_with_summary
from seqrec.data.formats.summary import some_of
from seqrec.data.id_table import IdTable
from seqrec.data.table import LISTS, Table, aligned
from seqrec.errors import InputError

ITEM_TABLE = "item_table.parquet"


class ItemTable(Table):
    """Known facts about the items of a catalogue, in the order of their ids.

    Args:
        frame: frame with ``item_id``; ``title`` (String) and ``categories`` (List(String)), if known; and any numbers
            (Float64), vectors (Array(Float32)) and texts (String). Row ``i - 1`` is the item with index ``i``. Unknown
            values are null, an empty list of categories, or a vector of NaN. May also be a function that reads this
            frame from a file; it is called at the first use.
        summary: summary of how the descriptions were understood; None for a table that was loaded.
    """

    WHAT = "item"
    WHOLE = "catalogue"
    OPTION = "features"
    FIXED: ClassVar[Mapping[str, Any]] = {"title": pl.String, "categories": LISTS}

    @property
    def titles(self) -> pl.Series | None:
        """Title of each item, null if unknown; None if no titles are known."""
        return self.frame["title"] if "title" in self.frame.columns else None

    @property
    def categories(self) -> pl.Series | None:
        """Categories of each item, as lists; None if no categories are known."""
        return self.frame["categories"] if "categories" in self.frame.columns else None

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
    table = aligned(ItemTable, frame, item_ids, summary)
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


def titles_of(table: ItemTable | None, items: np.ndarray, name: str = "title") -> dict[str, pl.Series]:
    """Titles of items, by index, as a column for a frame; empty if no titles are known."""
    titles = table.titles if table is not None else None
    return {} if titles is None else {name: titles.gather(items - 1).alias(name)}
