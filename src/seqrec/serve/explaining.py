"""Why an item is recommended: which items of the history led to it."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from seqrec.data.batches import flat_histories_of, pack
from seqrec.data.split import Histories
from seqrec.models.attention import attention_of
from seqrec.ranking.scoring import last_states
from seqrec.serve.live import Live

MOST_READ = 50  # most recent items of a history that are looked at
MOST_REASONS = 5  # per recommended item


def reasons_of(live: Live, histories: Histories, row: int, items: np.ndarray) -> list[list[dict[str, Any]]]:
    """For each recommended item, the items of the history that matter most, as :class:`seqrec.serve.schemas.Reason`.

    ``attention`` is the item's weight in the last block's attention, for models that have attention. ``influence`` is
    by how much the model's score of the recommended item falls without the other one: it is computed by encoding the
    history once more for each of its items. ``transitions`` is exact: the share of the item in the weighted mean of the
    counts that is added to the score.

    Args:
        live: run.
        histories: histories of a batch.
        row: row of the history.
        items: recommended items ``int64[K]``.
    """
    one = histories.take(slice(row, row + 1)).newest(min(live.model.max_length, MOST_READ))
    history = np.asarray(one.dataset.items[int(one.starts[0]) : int(one.ends[0])], dtype=np.int64)
    with torch.inference_mode():
        weights = attention_of(live.model, pack(one, len(history)))
    attention = None if weights is None else weights[0]
    influence = _influence(live, one, history, items)
    counted = _transitions(live, history, items)
    total = influence if counted is None else influence + counted
    found = []
    for column in range(len(items)):
        best = np.argsort(-total[:, column], kind="stable")[:MOST_REASONS]
        found.append([_reason(live, int(place), history, column, influence, counted, attention) for place in best])
    return found


def _reason(
    live: Live,
    place: int,
    history: np.ndarray,
    column: int,
    influence: np.ndarray,
    counted: np.ndarray | None,
    attention: np.ndarray | None,
) -> dict[str, Any]:
    item = history[place : place + 1] - 1
    titles = live.titles
    return {
        "id": live.predictor.dataset.catalogue.values(item)[0],
        "title": None if titles is None else titles[int(item[0])],
        "attention": None if attention is None else float(attention[place]),
        "influence": float(influence[place, column]),
        "transitions": None if counted is None else float(counted[place, column]),
    }


def _influence(live: Live, one: Histories, history: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The fall of each item's score without each item of the history, ``float64[L, K]``; all of it for one item."""
    length = len(history)
    model = live.model
    if length == 1 or model.COUNTED:
        return np.zeros((length, len(items)))
    seconds = np.asarray(one.dataset.timestamps[int(one.starts[0]) : int(one.ends[0])])
    kept = ~np.eye(length, dtype=bool)
    rows = np.tile(np.arange(length), (length, 1))[kept]
    without = flat_histories_of(
        live.predictor.dataset, history[rows], np.full(length, length - 1), np.ascontiguousarray(seconds[rows])
    )
    # Models that know the user know the same one without the item.
    without = replace(without, users=np.full(length, one.users[0], dtype=np.int64))
    with torch.inference_mode():
        candidates = torch.from_numpy(items)
        full = model.score(last_states(model, one), candidates)
        less = model.score(last_states(model, without), candidates)
    return (full - less).double().numpy()


def _transitions(live: Live, history: np.ndarray, items: np.ndarray) -> np.ndarray | None:
    """The part of each item's score that is counted after each item of the history, ``float64[L, K]``."""
    addition = live.model.addition
    if addition is None or addition.weight == 0:
        return None
    counts = addition.transitions
    newest = history[::-1][: counts.reach]
    weights = counts.config.decay ** np.arange(len(newest))
    weights /= weights.sum()
    parts = np.zeros((len(history), len(items)))
    for age, item in enumerate(newest.tolist()):
        start, end = int(counts.offsets[item]), int(counts.offsets[item + 1])
        columns = counts.columns[start:end].numpy()
        place = np.searchsorted(columns, items)
        there = place < len(columns)
        there[there] = columns[place[there]] == items[there]
        values = (
            np.where(there, counts.values[start:end].numpy()[np.minimum(place, max(end - start - 1, 0))], 0.0)
            if end > start
            else 0.0
        )
        parts[len(history) - 1 - age] = addition.weight * weights[age] * values
    return parts
