"""Ranked items as frames for people: what recommend and similar show, here and nowhere else."""

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
    """The frame of each block of people, made when it is asked for.

    Args:
        model: which the blocks come from; in evaluation mode while one is made.
        dataset: which names the items.
        asked: ids of all people.
        blocks: items and scores of ``size`` people each, as :func:`recommended_table` takes them.
        size: people per block.
        progress: whether to show a bar, on a terminal.
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
        del frame  # or it would stay while the next one is made
    if left := len(asked) - served:
        warn(
            f"nothing is left to recommend to {left:,} of {len(asked):,}; keep_seen (--keep-seen) leaves more",
            UnknownIdWarning,
        )


def recommended_table(dataset: Dataset, asked: pl.Series, items: np.ndarray, scores: np.ndarray) -> pl.DataFrame:
    """Recommendations as a frame ``user_id``, ``item_id``, ``score``, ``rank`` (from 1), by person and rank.

    Where titles are known, ``title`` stands beside the ids.

    Args:
        dataset: which names the items.
        asked: ids of M people.
        items: indices ``int64[M, k]``, best first; 0 where nothing is left.
        scores: ``float32[M, k]``.
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
    """Neighbours as a frame ``item_id``, ``similar_item_id``, ``score``, ``rank`` (from 1).

    Where titles are known, ``title`` and ``similar_title`` stand beside the ids.

    Args:
        dataset: which names the items.
        indices: ``int64[M]``.
        found: indices ``int64[M, k]`` of their neighbours, nearest first.
        cosines: ``float32[M, k]``.
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
