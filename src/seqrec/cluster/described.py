"""Makes an item table from columns of a log, as one machine does, from counts of its blocks."""

from typing import Any

import polars as pl

from seqrec.cluster.coded import Columns, coded_ids
from seqrec.cluster.parts import Block, Parts
from seqrec.cluster.pool import Pool
from seqrec.cluster.times import TimeRule, raw_times
from seqrec.data.formats.columns import ROLES
from seqrec.data.formats.item_columns import CATEGORY_NAMES, TITLE_NAMES, as_texts
from seqrec.data.formats.summary import LogSummary
from seqrec.data.formats.text import Origin, usual_columns
from seqrec.data.log_items import CountedTexts, LogItems, chosen_texts, counted_texts, may_describe

_SHARD_BLOCKS = 8  # blocks per shard of items, which one task counts


def find_texts(
    pool: Pool,
    parts: Parts,
    shared: Any,
    columns: Columns,
    summary: LogSummary,
    kind: pl.DataType,
    fine: TimeRule | None,
) -> LogItems:
    """Find the most frequent title and category of each item; see :func:`seqrec.data.log_items.find_items`.

    Args:
        pool: the cluster.
        parts: the parts of the log.
        shared: reference to them.
        columns: columns of the roles.
        summary: how the log was understood; its ignored columns are searched.
        kind: type of the ids of items.
        fine: what the times mean, if they are finer than seconds and so decide the order of the rows.
    """
    found = LogItems({}, {})
    original = {f"{name}_other" if name in ROLES else name: name for name in summary.ignored}
    for role, names in (("title", TITLE_NAMES), ("categories", CATEGORY_NAMES)):
        for name in usual_columns(original, names):
            empty = pl.Series(name, [], dtype=parts.types[original[name]])
            is_text = role == "categories" or empty.dtype == pl.String
            if name in found.columns.values() or not is_text or as_texts(empty) is None:
                continue
            if role == "categories" and not may_describe(empty, role):
                continue
            best = _chosen(pool, parts, shared, columns, (original[name], name, role), kind, fine)
            if best is not None:
                found.texts[role], found.columns[role] = best, name
                break
    return found


def _chosen(
    pool: Pool,
    parts: Parts,
    shared: Any,
    columns: Columns,
    column: tuple[str, str, str],
    kind: pl.DataType,
    fine: TimeRule | None,
) -> pl.DataFrame | None:
    """The text of each item in a column, given by its name in the log, its name in the frame, and its role."""
    shards = -(-len(parts.blocks) // _SHARD_BLOCKS)
    item = columns.choice.roles["item_id"]
    calls = ((shared, block, item, column[0], column[2], kind, fine, shards) for block in parts.blocks)
    counted = pool.run(count_texts, calls, returns=shards + 1)
    if not any(block[-1] for block in counted):
        return None
    by_shard = ([block[shard] for block in counted] for shard in range(shards))
    return chosen_texts([merged for (merged,) in pool.run(merge_texts, map(tuple, by_shard))], column[1], column[2])


def count_texts(
    parts: Parts,
    block: Block,
    item: str,
    column: str,
    role: str,
    kind: pl.DataType,
    fine: TimeRule | None,
    shards: int,
) -> list[Any]:
    """Count the texts beside each item of a block, by shard of items; and whether the column may describe items."""
    log = Origin(parts.name, first_row=block.first_row)
    frame = parts.read(block, list(dict.fromkeys([item, column, *([] if fine is None else [fine.name])])))
    texts = as_texts(frame[column])
    assert texts is not None
    codes, known = coded_ids(log, frame[item], "item", None)
    ids = known.cast(kind).gather(codes)
    rows = pl.int_range(block.first_row, block.first_row + frame.height, eager=True)
    counted = pl.DataFrame({"item_id": ids, "value": texts, "stamp": rows, "row": rows})
    if fine is not None:
        stamps = fine.stamps(raw_times(log, frame[fine.name], False)[0])
        counted = counted.with_columns(pl.Series("stamp", stamps)).sort("stamp", maintain_order=True)
    counts = counted.drop_nulls().group_by("item_id", "value", maintain_order=True)
    counted = counts.agg(pl.len().alias("rows"), pl.col("stamp", "row").first())
    shard = counted["item_id"].hash(0) % shards
    return [*(counted.filter(shard == number) for number in range(shards)), may_describe(frame[column], role)]


def merge_texts(*counted: pl.DataFrame) -> CountedTexts:
    """The texts of the items of a shard, from the counts of all blocks."""
    rows = pl.concat(counted).sort("stamp", "row")
    return counted_texts(rows.group_by("item_id", "value", maintain_order=True).agg(pl.col("rows").sum()))
