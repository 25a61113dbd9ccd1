"""Makes an item table from columns of the log: a title or a category beside each interaction."""

from typing import NamedTuple

import polars as pl

from seqrec.data.formats.item_columns import (
    CATEGORY_NAMES,
    TITLE_NAMES,
    ItemSummary,
    as_categories,
    as_texts,
)
from seqrec.data.formats.summary import some_of
from seqrec.data.formats.text import usual_columns
from seqrec.data.id_table import IdTable
from seqrec.data.items import ItemTable
from seqrec.errors import LogWarning, warn

_ROLES = ("user_id", "item_id", "timestamp", "rating")
_AGREEING = 0.8  # least share of rows with their item's most frequent value, for a column that describes items


class LogItems(NamedTuple):
    """Titles and categories found in a log, by role (``title``, ``categories``).

    ``texts`` has a frame with ``item_id`` and ``value`` per role, ``columns`` the column of the log it came from.
    """

    texts: dict[str, pl.DataFrame]
    columns: dict[str, str]


def find_items(frame: pl.DataFrame) -> LogItems:
    """Find the most frequent title and category of each item in the columns of a log.

    A column with a usual name is used only if its value is mostly the same in all rows of an item. A title that
    differs between these rows is more likely the title of a review, or the name of a user.
    """
    found = LogItems({}, {})
    others = [name for name in frame.columns if name not in _ROLES]
    for role, names in (("title", TITLE_NAMES), ("categories", CATEGORY_NAMES)):
        for name in usual_columns(others, names):
            if name in found.columns.values() or not may_describe(frame[name], role):
                continue
            texts = as_texts(frame[name])
            best = None if texts is None else _most_frequent(frame["item_id"], texts, role)
            if best is not None:
                found.texts[role], found.columns[role] = best, name
                break
    return found


def table_of_log(found: LogItems, item_ids: pl.Series) -> ItemTable | None:
    """Item table of a catalogue, from what :func:`find_items` found; None if it found nothing."""
    if not found.texts:
        return None
    summary = ItemSummary("the log", columns=dict(found.columns))
    columns: dict[str, pl.Series] = {"item_id": item_ids.alias("item_id")}
    for role, texts in found.texts.items():
        places = pl.Series(IdTable(texts["item_id"]).find(item_ids))
        values = texts["value"].gather(places.set(places < 0, None)).alias(found.columns[role])
        lists = as_categories(values, None, summary) if role == "categories" else None
        columns[role] = (values if lists is None else lists).alias(role)
    return ItemTable(pl.DataFrame(columns), summary)


def may_describe(values: pl.Series, role: str) -> bool:
    """Whether the values of a column could be categories or titles; numbers can be categories, but not titles."""
    if isinstance(values.dtype, pl.List | pl.Array | pl.Struct) or values.dtype in (pl.Object, pl.Binary, pl.Null):
        return False
    if role == "categories":
        return True
    text = isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum)
    words = values.drop_nulls().cast(pl.String).str.strip_chars() if text else values
    return text and words.cast(pl.Float64, strict=False).null_count() > 0


def _most_frequent(ids: pl.Series, texts: pl.Series, role: str) -> pl.DataFrame | None:
    """The most frequent text of each item (the first of equally frequent ones); None if the column is not of items."""
    frame = pl.DataFrame({"item_id": ids, "value": texts}).drop_nulls()
    counts = frame.group_by("item_id", "value", maintain_order=True).agg(pl.len().alias("rows"))
    return chosen_texts([counted_texts(counts)], texts.name, role)


class CountedTexts(NamedTuple):
    """The texts of some items, counted: the most frequent one of each, and how far their rows agree on it."""

    best: pl.DataFrame  # item_id, value, rows; the most frequent first
    several: pl.DataFrame  # the rows of best with other texts beside them
    own: int  # rows with their item's most frequent text, of items in several rows
    all: int  # rows of items in several rows


def counted_texts(counts: pl.DataFrame) -> CountedTexts:
    """Count the texts of items, of which ``counts`` has a row per item and text: item_id, value and rows.

    Of equally frequent texts the first in the frame counts.
    """
    counts = counts.sort("rows", descending=True, maintain_order=True)
    best = counts.unique("item_id", keep="first", maintain_order=True)
    totals = counts.group_by("item_id").agg(pl.col("rows").sum().alias("all")).filter(pl.col("all") > 1)
    own = totals.join(best, on="item_id")
    several = counts.filter(pl.col("item_id").is_duplicated()).unique("item_id", keep="first", maintain_order=True)
    return CountedTexts(best, several, int(own["rows"].sum()), int(own["all"].sum()))


def chosen_texts(shards: list[CountedTexts], name: str, role: str) -> pl.DataFrame | None:
    """The text of each item, from shards that hold different items; None if the column is not of items."""
    several = sum(shard.several.height for shard in shards)
    best = pl.concat([shard.best for shard in shards])
    if several:
        if sum(shard.own for shard in shards) < _AGREEING * sum(shard.all for shard in shards):
            note = f"differs between rows of the same item, so it is not the {_SINGULAR[role]} of items and is ignored"
            warn(f"the log's column {name!r} {note}", LogWarning)
            return None
        first = pl.concat([shard.several for shard in shards]).sort("rows", descending=True, maintain_order=True)
        some = f"{several:,} of {best.height:,} items ({some_of(first['item_id'], 3)})"
        note = f"has several values for {some}; the most frequent one is used"
        warn(f"the log's column {name!r} {note}", LogWarning)
    return best.select("item_id", "value").sort("item_id") if best.height else None


_SINGULAR = {"title": "title", "categories": "category"}
