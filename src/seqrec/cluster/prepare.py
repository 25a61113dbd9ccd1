"""Prepares a log of Parquet parts on a Ray cluster: the same files as on one machine, byte for byte.

1. Each block of rows is read into codes of its own ids, which stay in the cluster's store (it spills to disk).
2. The ids of the blocks are merged; the users are divided into spans with about equally many rows.
3. The rows are divided by span, and each span is ordered and filtered. The k-core takes a pass per round.
4. Each span is written into its part of the dataset's files.

The process that calls this holds the ids and one number per user, but no interactions.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.described import find_texts
from seqrec.cluster.engine import connected
from seqrec.cluster.output import finish
from seqrec.cluster.parts import Parts, fits_block, open_parts, settled
from seqrec.cluster.pool import Pool
from seqrec.cluster.reading import Log, read_blocks
from seqrec.cluster.rows import (
    Part,
    Written,
    core_round,
    filters_nothing,
    order_and_write,
    order_part,
    split_block,
    write_part,
)
from seqrec.cluster.times import TimeRule
from seqrec.data.dataset import Dataset
from seqrec.data.formats.summary import LogSummary
from seqrec.data.id_table import IdTable
from seqrec.data.log_items import table_of_log
from seqrec.data.mapped import make_array
from seqrec.data.prepare import PrepareConfig, check_columns, nothing_left
from seqrec.data.saved import check_replaced
from seqrec.data.statistics import Ties, summed_up
from seqrec.errors import InputError
from seqrec.files import replacing_folder

PART_ROWS = 1 << 21  # interactions that one task orders


def prepare_on_cluster(
    log: str | Path,
    out: str | Path,
    config: PrepareConfig | None = None,
    columns: dict[str, str | None] | None = None,
    cluster: ClusterConfig | None = None,
) -> Dataset:
    """Prepare a log of Parquet parts on a Ray cluster, and save it.

    Args:
        log: folder of Parquet parts, one Parquet file, or the URL of such (s3://, gs://, hdfs://, or any that fsspec
            knows). The workers read it themselves.
        out: folder for the dataset, on a file system that all machines of the cluster share.
        config: filters; by default nothing is dropped.
        columns: names of the columns ``user``, ``item``, ``timestamp`` and ``rating``, where they are not to be found
            by their usual names.
        cluster: the cluster, and the number of workers.

    Returns:
        The saved dataset, memory-mapped. Its files are those of ``prepare(read_log(log), config).save(out)``.

    Raises:
        InputError: as ``read_log`` and ``prepare`` do; or only all rows at once could tell what the log means.
    """
    return prepare_with_summary(log, out, config, columns, cluster)[0]


def prepare_with_summary(
    log: str | Path,
    out: str | Path,
    config: PrepareConfig | None = None,
    columns: dict[str, str | None] | None = None,
    cluster: ClusterConfig | None = None,
) -> tuple[Dataset, LogSummary]:
    """Like :func:`prepare_on_cluster`, and also return a summary of how the log was understood."""
    config, cluster = config or PrepareConfig(), cluster or ClusterConfig(engine="ray")
    given = {
        name if name in ("timestamp", "rating") else f"{name}_id": column
        for name, column in (columns or {}).items()
        if column is not None
    }
    check_replaced(Path(out))
    parts = open_parts(log)
    if parts.rows == 0:
        raise InputError(f"{parts.name}: has no rows below the header; give a log with interactions")
    with connected(cluster) as ray, replacing_folder(out) as new:
        summary = _prepared(Pool(ray, cluster), parts, Path(os.path.abspath(new)), config, given)
    return Dataset.load(out), summary


def _prepared(pool: Pool, parts: Parts, folder: Path, config: PrepareConfig, given: dict[str, str]) -> LogSummary:
    """Write the files of the dataset to a folder."""
    summary = LogSummary(parts.name)
    if parts.mixed:
        shared = pool.put(parts)
        parts = settled(parts, [fit for (fit,) in pool.run(fits_block, ((shared, block) for block in parts.blocks))])
    shared = pool.put(parts)
    log, columns = read_blocks(pool, parts, shared, config, given, summary)
    check_columns(config, [name for name in ("timestamp", "rating") if name in summary.columns], parts.rows)
    lengths, num_items, rule = log.users.counts, len(log.items.ids), log.rule
    user_ids, item_ids = log.users.series.alias("user_id"), log.items.series.alias("item_id")
    spans = _Spans(pool, folder, _bounds(lengths, pool.workers), num_items, rule)
    pieces = _divided(pool, parts, log, spans.bounds)
    del log
    if filters_nothing(config):
        found, written, met = spans.write_all(pieces, lengths)
    else:
        rows, item_counts, found = spans.order(pieces, config)
        keeps, item_counts, kept = spans.core(rows, item_counts, [part.rows for part in found], config)
        if sum(kept) == 0:
            raise nothing_left(parts.rows, config)
        written, met = spans.write_some(rows, keeps, kept, item_counts > 0)
        item_ids = item_ids.filter(pl.Series(item_counts > 0))
        user_ids = user_ids.filter(pl.Series(np.concatenate([one.used for one in written])))
    ties = [part.ties for part in found if part.ties is not None]
    before = summed_up(lengths, num_items, _summed(ties) if ties else None)
    is_fine = any(part.is_fine for part in found)
    texts = find_texts(pool, parts, shared, columns, summary, item_ids.dtype, rule if is_fine else None)
    summary.use(texts.columns)
    fields = {
        "users": IdTable(user_ids),
        "catalogue": IdTable(item_ids),
        "has_timestamps": rule is not None,
        "before": before,
        "filters": dict(vars(config)),
        "item_table": table_of_log(texts, item_ids),
        "user_table": None,
    }
    finish(pool, folder, fields, written, met)
    return summary


@dataclass(frozen=True)
class _Spans:
    """The parts of the users, each of which one task orders, filters and writes.

    Args:
        pool: the cluster.
        folder: folder of the dataset.
        bounds: users at which the spans begin, and the number of users, ``int64[P + 1]``.
        num_items: number of items of the log.
        rule: what the times mean.
    """

    pool: Pool
    folder: Path
    bounds: np.ndarray
    num_items: int
    rule: TimeRule | None

    @property
    def spans(self) -> list[tuple[int, int]]:
        return list(pairwise(self.bounds.tolist()))

    def write_all(self, pieces: list[list[Any]], lengths: np.ndarray) -> tuple[list[Part], list[Written], list[Any]]:
        """Order and write all interactions in one go."""
        ends = np.concatenate([[0], np.cumsum(lengths)])
        self._make_files(int(ends[-1]))
        calls = (
            (self.folder, int(ends[span[0]]), span, self.num_items, self.rule, *_taken(pieces, number))
            for number, span in enumerate(self.spans)
        )
        results = self.pool.run(order_and_write, calls, returns=2)
        parts, written = ([result[place] for _, result in results] for place in (0, 1))
        return parts, written, [met for met, _ in results]

    def order(self, pieces: list[list[Any]], config: PrepareConfig) -> tuple[list[Any], np.ndarray, list[Part]]:
        """Order the interactions, and apply the filters that look at one user alone."""
        calls = (
            (span, self.num_items, self.rule, config, *_taken(pieces, number)) for number, span in enumerate(self.spans)
        )
        results = self.pool.run(order_part, calls, returns=3)
        return (
            [rows for rows, _, _ in results],
            self._sum(counts for _, counts, _ in results),
            [part for _, _, part in results],
        )

    def core(
        self, rows: list[Any], item_counts: np.ndarray, kept: list[int], config: PrepareConfig
    ) -> tuple[list[Any], np.ndarray, list[int]]:
        """Apply the least numbers of interactions: the masks of the spans, the items' counts, and the rows kept."""
        keeps: list[Any] = [None] * len(rows)
        while config.min_user_interactions > 1 or config.min_item_interactions > 1:
            enough = self.pool.put(item_counts >= config.min_item_interactions)
            calls = (
                (span_rows, keep, span[1] - span[0], config.min_user_interactions, enough)
                for span_rows, keep, span in zip(rows, keeps, self.spans, strict=True)
            )
            results = self.pool.run(core_round, calls, returns=3)
            if not any(result.changed for _, _, result in results):
                break
            keeps, kept = [keep for keep, _, _ in results], [result.rows for _, _, result in results]
            item_counts = self._sum(counts for _, counts, _ in results)
            if config.core == "once":
                break
        return keeps, item_counts, kept

    def write_some(
        self, rows: list[Any], keeps: list[Any], kept: list[int], used_items: np.ndarray
    ) -> tuple[list[Written], list[Any]]:
        """Write the interactions that are kept."""
        self._make_files(sum(kept))
        used, firsts = self.pool.put(used_items), accumulate(kept, initial=0)
        calls = (
            (self.folder, first, span[1] - span[0], span_rows, keep, used)
            for first, span, span_rows, keep in zip(firsts, self.spans, rows, keeps, strict=False)
        )
        results = self.pool.run(write_part, calls, returns=2)
        return [written for _, written in results], [met for met, _ in results]

    def _make_files(self, rows: int) -> None:
        make_array(self.folder / "items.npy", np.int32, rows)
        make_array(self.folder / "timestamps.npy", np.int64, rows)

    def _sum(self, references: Iterable[Any]) -> np.ndarray:
        """The sum of arrays, of which this process holds one at a time."""
        total = np.zeros(self.num_items, dtype=np.int64)
        for reference in references:
            total += self.pool.get(reference)
        return total


def _taken(pieces: list[list[Any]], span: int) -> list[Any]:
    """The pieces of a span, to which no reference is left here, so that the store frees them after their use."""
    taken, pieces[span] = pieces[span], []
    return taken


def _bounds(counts: np.ndarray, workers: int) -> np.ndarray:
    """The users at which spans with about equally many interactions begin, and the number of users."""
    ends = np.cumsum(counts)
    parts = max(min(workers, int(ends[-1]) // 2**16), -(-int(ends[-1]) // PART_ROWS), 1)
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, parts) // parts) + 1
    return np.unique(np.concatenate([[0], cuts, [len(counts)]]))


def _divided(pool: Pool, parts: Parts, log: Log, bounds: np.ndarray) -> list[list[Any]]:
    """References to the pieces of each span, in the order of the blocks."""

    known = pool.put(log.users), pool.put(log.items)

    def calls() -> Iterable[tuple[Any, ...]]:
        for number, block in enumerate(parts.blocks):
            coded, users, items, _ = log.blocks[number]
            log.blocks[number] = []  # so that the store can free the block once it is divided
            yield coded, users, items, *known, bounds, log.rule, block.first_row

    by_block = pool.run(split_block, calls(), returns=len(bounds))
    return [[block[span] for block in by_block] for span in range(len(bounds) - 1)]


def _summed(ties: list[Ties]) -> Ties:
    return Ties(
        sum(one.tied for one in ties),
        sum(one.copies for one in ties),
        min(one.first_time for one in ties),
        max(one.last_time for one in ties),
    )
