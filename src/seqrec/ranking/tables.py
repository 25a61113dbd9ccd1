"""Recommendations and similar items as data frames, with titles."""

from collections.abc import Generator, Iterator

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import track

from seqrec.data.dataset import Dataset
from seqrec.data.items import titles_of
from seqrec.device import threads
from seqrec.errors import UnknownIdWarning, warn
from seqrec.models.base import Model
from seqrec.ranking.scoring import evaluation_mode


def recommended_tables(
    model: Model,
    dataset: Dataset,
    asked: pl.Series,
    blocks: Iterator[tuple[np.ndarray, np.ndarray]],
    size: int,
    progress: bool,
) -> Generator[pl.DataFrame, None, None]:
    """The frame of each block of people, computed on demand.

    Args:
        model: model that computes the blocks; it is in evaluation mode while it does.
        dataset: dataset with the ids and titles of the items.
        asked: ids of all people.
        blocks: items and scores of ``size`` people each, as for :func:`recommended_table`.
        size: number of people per block.
        progress: whether to show a progress bar, if this is a terminal.
    """
    served = 0
    starts = range(0, max(len(asked), 1), size)
    bar = Console(stderr=True)
    hidden = not (progress and bar.is_terminal)
    for start in track(starts, "recommending", console=bar, transient=True, disable=hidden):
        with threads(), evaluation_mode(model):
            frame = recommended_table(dataset, asked[start : start + size], *next(blocks))
        served += int((frame["rank"] == 1).sum())
        yield frame
        del frame  # free its memory before the next one is computed
    if left := len(asked) - served:
        warn(
            f"no items are left to recommend to {left:,} of {len(asked):,}; keep_seen (--keep-seen) allows more",
            UnknownIdWarning,
        )


def recommended_table(dataset: Dataset, asked: pl.Series, items: np.ndarray, scores: np.ndarray) -> pl.DataFrame:
    """Recommendations as a frame ``user_id``, ``item_id``, ``score``, ``rank`` (from 1), sorted by person and rank.

    If titles are known, ``title`` follows ``item_id``.

    Args:
        dataset: dataset with the ids and titles of the items.
        asked: ids of M people.
        items: item indices ``int64[M, k]``, best first; 0 if no item is left.
        scores: scores ``float32[M, k]``.
    """
    there = items > 0
    rows, places = np.nonzero(there)
    return pl.DataFrame(
        {
            "user_id": asked.gather(rows),
            "item_id": dataset.catalogue.take(items[there] - 1),
            **titles_of(dataset.item_table, items[there]),
            "score": scores[there],
            "rank": places + 1,
        }
    )


def similar_table(dataset: Dataset, indices: np.ndarray, found: np.ndarray, cosines: np.ndarray) -> pl.DataFrame:
    """Similar items as a frame ``item_id``, ``similar_item_id``, ``score``, ``rank`` (from 1).

    If titles are known, ``title`` and ``similar_title`` follow the ids.

    Args:
        dataset: dataset with the ids and titles of the items.
        indices: item indices ``int64[M]``.
        found: indices of their neighbours ``int64[M, k]``, nearest first.
        cosines: cosines ``float32[M, k]``.
    """
    k = found.shape[1]
    return pl.DataFrame(
        {
            "item_id": dataset.catalogue.take(np.repeat(indices - 1, k)),
            **titles_of(dataset.item_table, np.repeat(indices, k)),
            "similar_item_id": dataset.catalogue.take(found.ravel() - 1),
            **titles_of(dataset.item_table, found.ravel(), "similar_title"),
            "score": cosines.ravel(),
            "rank": np.tile(np.arange(1, k + 1), len(indices)),
        }
    )
