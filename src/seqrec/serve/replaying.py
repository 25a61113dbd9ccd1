"""What would have been recommended to a user of the log, beside what came next."""

from dataclasses import replace
from typing import Any

import numpy as np

from seqrec.data.batches import flat_histories_of
from seqrec.serve.answering import described
from seqrec.serve.histories import log_history
from seqrec.serve.live import Live

SHOWN = 20  # most recent items of a history


def replayed(live: Live, user: int, k: int, steps: int) -> dict[str, Any]:
    """The last interactions of a user, each predicted from those before it, newest first.

    Only the model ranks, because the transition counts in use are of the whole log, so also of these interactions.

    Args:
        live: run.
        user: index of the user.
        k: number of items to recommend.
        steps: number of interactions to predict.

    Returns:
        The content of :class:`seqrec.serve.schemas.Replay`.
    """
    predictor = live.without_counts
    dataset = predictor.dataset
    log = log_history(dataset, user)
    items = np.array([item for item, _ in log], dtype=np.int64)
    seconds = np.arange(len(items)) if not dataset.has_timestamps else np.array([time for _, time in log])
    ends = np.arange(len(items) - 1, max(len(items) - 1 - steps, 0), -1)
    source = np.concatenate([np.arange(end) for end in ends] or [np.empty(0, dtype=np.int64)]).astype(np.int64)
    histories = replace(
        flat_histories_of(dataset, items[source], ends, seconds[source]), users=np.full(len(ends), user, dtype=np.int64)
    )
    most = min(k, dataset.num_items)
    # What a person saw before may come again, unless the run was validated without such items.
    ((found, scores),) = predictor.rank(histories, most)
    shown = []
    for row, end in enumerate(ends.tolist()):
        there = found[row] > 0
        hit = np.flatnonzero(found[row] == items[end])
        history = described(live, items[max(0, end - SHOWN) : end])
        shown.append(
            {
                "history": history,
                "next": described(live, items[end : end + 1])[0],
                "rank": int(hit[0]) + 1 if len(hit) else None,
                "items": described(live, found[row][there], scores[row][there]),
            }
        )
    return {
        "user": dataset.users.values(np.array([user]))[0],
        "steps": shown,
        "run": live.name,
        "model_version": live.version,
        "notes": _notes(live, len(ends)),
    }


def _notes(live: Live, steps: int) -> list[str]:
    notes = []
    trained_on = live.metrics.get("trained_on")
    if trained_on not in (None, "train"):
        notes.append("the weights were trained on these interactions too, so hits are more frequent than for new ones")
    elif steps > 2:
        notes.append("only a user's last interactions were held out of training; earlier ones were learned from")
    if live.model.addition is not None and live.model.addition.weight:
        notes.append("ranked without transition counts, which are of the whole log and know what came next")
    return notes
