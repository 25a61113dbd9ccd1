"""The item table: one row per item of the catalogue, with its id and whatever is known of it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.checked import MOST_EXPANSION, MOST_UNPACKED, read_parquet, size_of
from seqrec.data.formats.item_columns import MOST_COLUMNS, MOST_VECTOR, ItemSummary
from seqrec.data.formats.items import kind_of, read_items_with_summary
from seqrec.data.id_table import IdTable
from seqrec.errors import InputError, one_line

ITEM_TABLE = "item_table.parquet"
_CATEGORIES = pl.List(pl.String)


class ItemTable:
    """What is known of the items of a catalogue, in the order of their ids.

    Args:
        frame: ``item_id``; ``title`` (String) and ``categories`` (List(String)), where known; and any numbers
            (Float64), vectors (Array(Float32)) and texts (String). Row ``i - 1`` is the item with index ``i``. What
            is not known is null, an empty list of categories, or a vector of NaN.
            Or what reads the frame, for a table in a file, which is read at its first use.
        summary: what was understood of the descriptions; None for a table that was read back.
    """

    def __init__(self, frame: pl.DataFrame | Callable[[], pl.DataFrame], summary: ItemSummary | None = None) -> None:
        self._frame, self.summary = frame, summary

    @cached_property
    def frame(self) -> pl.DataFrame:
        """A row per item of the catalogue."""
        return self._frame if isinstance(self._frame, pl.DataFrame) else self._frame()

    def read(self) -> "ItemTable":
        """Read and check the table now where it is in a file: a forked process could not."""
        assert self.frame is not None
        return self

    def __len__(self) -> int:
        return self.frame.height

    @property
    def titles(self) -> pl.Series | None:
        """The title of each item, null where unknown; None where no titles are known."""
        return self.frame["title"] if "title" in self.frame.columns else None

    @property
    def categories(self) -> pl.Series | None:
        """The categories of each item, as lists; None where no categories are known."""
        return self.frame["categories"] if "categories" in self.frame.columns else None

    @property
    def kinds(self) -> dict[str, str]:
        """The other columns by name: ``number``, ``vector`` or ``text``."""
        known = ("item_id", "title", "categories")
        return {name: kind_of(kind) for name, kind in self.frame.schema.items() if name not in known}

    def vectors(self, name: str) -> np.ndarray:
        """The vectors in a column, ``float32[I, D]``; a row of NaN where an item has none."""
        if self.kinds.get(name) != "vector":
            raise InputError(f"the item table has no vectors {name!r}; it has {self.kinds or 'no other columns'}")
        return self.frame[name].to_numpy()

    @cached_property
    def _by_category(self) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """Sorted names of categories, and the items of each: ``int32[M]`` between ``int64[C + 1]`` offsets."""
        if self.categories is None:
            return pl.Series([], dtype=pl.String), np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64)
        lengths = self.categories.list.len().to_numpy()
        flat = self.categories.explode().drop_nulls()
        names = flat.unique().sort()
        codes = IdTable(names).find(flat) if len(names) else np.zeros(0, dtype=np.int64)
        order = np.argsort(codes, kind="stable")
        items = np.repeat(np.arange(1, len(self) + 1, dtype=np.int32), lengths)[order]
        offsets = np.searchsorted(codes[order], np.arange(len(names) + 1))
        return names, items, offsets.astype(np.int64)

    @property
    def category_names(self) -> list[str]:
        """The names of all categories, sorted."""
        return self._by_category[0].to_list()

    def items_of(self, category: str) -> np.ndarray:
        """The indices (from 1) of the items of a category, rising, ``int64[M]``.

        Raises:
            InputError: there is no such category.
        """
        names, items, offsets = self._by_category
        place = int(names.search_sorted(category)) if len(names) else 0
        if place == len(names) or names[place] != category:
            some = ", ".join(names.head(5).to_list()) or "none"
            raise InputError(f"no item has the category {category!r}; there are {len(names):,}, such as {some}")
        return items[offsets[place] : offsets[place + 1]].astype(np.int64)

    def first_categories(self, most: int | None = None) -> tuple[np.ndarray, list[str]]:
        """One category per item, for models that take one: the first in its list.

        Categories that every item with any category has, such as the root of a tree, say nothing and are passed over.

        Args:
            most: the largest number of categories; the most frequent count, and items of others have none.

        Returns:
            ``int64[I + 1]``, 0 where no category is known; and the names of categories 1, 2, …, most frequent first.
        """
        names, _, offsets = self._by_category
        codes = np.zeros(len(self) + 1, dtype=np.int64)
        if self.categories is None or len(names) == 0:
            return codes, []
        lengths = self.categories.list.len().to_numpy()
        flat = IdTable(names).find(self.categories.explode().drop_nulls())
        rows = np.repeat(np.arange(1, len(self) + 1), lengths)
        telling = np.diff(offsets) < np.count_nonzero(lengths)
        rows, flat = rows[telling[flat]], flat[telling[flat]]
        owners, first = np.unique(rows, return_index=True)  # the first place of each item
        counts = np.bincount(flat[first], minlength=len(names))
        order = np.lexsort((np.arange(len(names)), -counts))[: np.count_nonzero(counts)][:most]
        number = np.zeros(len(names), dtype=np.int64)
        number[order] = np.arange(1, len(order) + 1)
        codes[owners] = number[flat[first]]
        return codes, names.gather(order).to_list()


def describe(items: Any, item_ids: pl.Series, log: ItemTable | None = None, *, item: str | None = None) -> ItemTable:
    """The item table of a catalogue, from descriptions of items.

    Args:
        items: what :func:`read_items` takes.
        item_ids: the ids of the catalogue, sorted.
        log: what the log itself says of its items, which counts where ``items`` says nothing.
        item: the column of the ids in ``items``.

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
    """Descriptions in the order of the catalogue; what does not fit is said."""
    ids = frame["item_id"]
    places = IdTable(item_ids).find(ids)
    known = places >= 0
    if not known.any():
        raise InputError(
            f"{summary.name}: describes no item of the catalogue: its column {summary.columns['item']!r} holds ids "
            f"such as {ids[0]!r}, the log such as {item_ids[0]!r}; give descriptions with the ids of the log"
        )
    found, first = np.unique(places[known], return_index=True)
    rows = np.flatnonzero(known)[first]
    summary.described, summary.catalogue = len(found), len(item_ids)
    summary.unknown = int((~known).sum())
    summary.repeated = int(known.sum()) - len(found)
    said = []
    if missing := len(item_ids) - len(found):
        there = np.zeros(len(item_ids), dtype=bool)
        there[found] = True
        some = some_ids(item_ids.filter(~pl.Series(there)))
        said.append(f"items without a description: {missing:,} of {len(item_ids):,} ({some})")
    if summary.unknown:
        some = some_ids(ids.filter(pl.Series(~known)))
        what = "descriptions of items that are not in the log, or that its filters drop"
        said.append(f"{what}: {summary.unknown:,} ({some}), ignored")
    if summary.repeated:
        again = np.ones(len(ids), dtype=bool)
        again[rows] = False
        some = some_ids(ids.filter(pl.Series(again & known)))
        said.append(f"rows that describe an item again: {summary.repeated:,} ({some}), ignored")
    if said:
        summary.warn("; ".join(said))
    at_row = np.full(len(item_ids), -1, dtype=np.int64)
    at_row[found] = rows
    index = pl.Series(at_row).set(pl.Series(at_row < 0), None)
    columns = {name: frame[name].gather(index) for name in frame.columns if name != "item_id"}
    for name, values in columns.items():
        if values.dtype == _CATEGORIES:
            columns[name] = values.fill_null([])
        elif isinstance(values.dtype, pl.Array):
            rows_of = frame[name].to_numpy()[at_row]
            rows_of[at_row < 0] = np.nan
            columns[name] = pl.Series(name, rows_of, dtype=values.dtype)
    return ItemTable(pl.DataFrame({"item_id": item_ids, **columns}), summary)


def titles_of(table: ItemTable | None, items: np.ndarray, name: str = "title") -> dict[str, pl.Series]:
    """The titles of item indices as a column of a frame; no column where no titles are known."""
    titles = table.titles if table is not None else None
    return {} if titles is None else {name: titles.gather(items - 1).alias(name)}


def save_items(table: ItemTable, path: Path) -> str:
    """Write an item table as Parquet without gaps, and return the digest of the file.

    What is not known is an empty text, an empty list or NaN in the file.
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
    """Read an item table that :func:`save_items` wrote; the file is checked as input.

    Args:
        path: the file.
        item_ids: the ids of the catalogue, which the table must have.
        digest: what :func:`save_items` returned, where it was kept.
        advice: what to do about a damaged file.

    Raises:
        InputError: the file is damaged, of another catalogue, or no item table.
    """
    kinds: Mapping[str, Any] = {
        name: None if name == "item_id" else kind for name, kind in _schema(path, advice).items()
    }
    frame = read_parquet(path, kinds, len(item_ids), advice)
    if digest is not None and _digest_of(path) != digest:
        raise InputError(f"{path}: is not the file that was saved; {advice}")
    if frame["item_id"].dtype != item_ids.dtype or not (frame["item_id"] == item_ids).all():
        raise InputError(f"{path}: is of another catalogue; {advice}")
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
    """The columns of an item table and their types, once it is known that there is nothing else in the file."""
    from pyarrow import ArrowException  # takes its time, and few commands need it
    from pyarrow.parquet import read_metadata

    size_of(path, advice)
    try:
        footer = read_metadata(path)  # unlike polars it bounds how deep a schema may be nested
        if footer.num_columns > MOST_COLUMNS:
            raise ValueError(f"it has {footer.num_columns:,} columns")
        schema = dict(pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema())
        if wrong := _odd_column(schema):
            raise ValueError(wrong)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); {advice}") from error
    return schema


def _odd_column(schema: Mapping[str, pl.DataType]) -> str | None:
    """What no item table holds, if anything."""
    if "item_id" not in schema:
        return "column item_id is missing"
    for name, kind in schema.items():
        vector = isinstance(kind, pl.Array) and kind.inner == pl.Float32 and kind.size <= MOST_VECTOR
        expected = {"item_id": kind, "title": pl.String, "categories": _CATEGORIES}.get(name)
        if not (kind == expected if expected is not None else vector or kind in (pl.String, pl.Float64)):
            return f"column {name} is {kind}"
    return None


def some_ids(ids: Iterable[Any], most: int = 3) -> str:
    """The first few ids, for a message."""
    shown = list(ids)
    return ", ".join(str(value) for value in shown[:most]) + (", …" if len(shown) > most else "")
