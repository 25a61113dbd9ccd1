"""Statistics of a comparison: means over users and trainings, with intervals, tests and groups of users."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seqrec.data.split import Split
from seqrec.ranking import metrics, statistics
from seqrec.ranking.groups import grouped
from seqrec.ranking.statistics import Spread
from seqrec.tools.comparison import METRICS, PROTOCOLS, TESTED, Comparison, Entry

#: The metrics of each user by protocol, ``float64[U, len(METRICS)]``, for each training of a model.
Values = Sequence[Mapping[str, np.ndarray]]
_COLUMN = slice(METRICS.index(TESTED), METRICS.index(TESTED) + 1)


def judge(
    found: Comparison, values: Mapping[str, Values], shuffled: Mapping[str, Values], sizes: Mapping[str, np.ndarray]
) -> None:
    """Fill in the results of all models so far. Each new training changes the means and the Holm correction.

    Args:
        found: comparison to fill in.
        values: metrics from the trainings of each model, by its name; the first model is the reference.
        shuffled: the same from trainings on shuffled histories.
        sizes: sizes of each user to group by, as for :func:`grouped`.
    """
    entries = [entry for entry in found.entries if values.get(entry.model)]
    found.reference = entries[0].model
    results: dict[str, dict[str, dict[str, Any]]] = {entry.model: {} for entry in entries}
    for protocol in PROTOCOLS:
        ours, our_spread = averaged(values[entries[0].model], protocol)
        for number, entry in enumerate(entries):
            theirs, spread = averaged(values[entry.model], protocol)
            result = _summary(theirs, spread)
            result["groups"] = _groups(values[entry.model], protocol, sizes)
            result |= dict.fromkeys(("difference", "difference_interval", "p", "p_holm"))
            if number:
                difference, both = (theirs - ours)[:, _COLUMN], (spread + our_spread)[_COLUMN]
                result["difference"] = statistics.mean(difference).tolist()[0]
                (result["difference_interval"],) = statistics.difference_intervals(difference, spread=both).tolist()
                result["p"] = float(statistics.paired_t_test(difference, both)[0])
            results[entry.model][protocol] = result
        others = [results[entry.model][protocol] for entry in entries[1:]]
        for result, p in zip(others, statistics.holm(np.array([one["p"] for one in others])).tolist(), strict=True):
            result["p_holm"] = p
    for entry in entries:
        entry.results = results[entry.model]
        if entry.shuffled is not None and shuffled.get(entry.model):
            _judge_order(entry, values[entry.model], shuffled[entry.model])


def sizes_of(split: Split) -> dict[str, np.ndarray]:
    """Length of the history and popularity of the target of each test user, ``int64[U]``, to group them by."""
    return {
        "history": split.test.histories.lengths,
        "popularity": split.train.item_counts()[split.test.items],
    }


def averaged(values: Values, protocol: str) -> tuple[np.ndarray, Spread]:
    """The mean over trainings for each user, ``float64[U, len(METRICS)]``, and how much its means over users vary."""
    blocks = [one[protocol] for one in values]
    return sum(blocks[1:], blocks[0]) / len(blocks), Spread.of(np.array([statistics.mean(block) for block in blocks]))


def _summary(values: np.ndarray, spread: Spread) -> dict[str, Any]:
    """Means and their intervals by metric."""
    ends = statistics.gain_intervals(values, spread=spread).tolist()
    return {
        "metrics": dict(zip(METRICS, statistics.mean(values).tolist(), strict=True)),
        "intervals": dict(zip(METRICS, ends, strict=True)),
    }


def _groups(values: Values, protocol: str, sizes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Main metrics of groups of users."""
    columns = {name: np.stack([one[protocol][:, METRICS.index(name)] for one in values]) for name in metrics.MAIN}
    return {by: grouped(by, size, columns) for by, size in sizes.items()}


def _judge_order(entry: Entry, values: Values, shuffled: Values) -> None:
    """Fill in the results on shuffled histories, and which share of the tested metric is lost."""
    assert entry.shuffled is not None
    entry.shuffled.results = {}
    for protocol in PROTOCOLS:
        (ordered, first), (other, second) = (averaged(one, protocol) for one in (values, shuffled))
        result = _summary(other, second)
        before, after = ordered[:, _COLUMN], other[:, _COLUMN]
        kept = statistics.ratio_interval(after[:, 0], before[:, 0], (second[_COLUMN], first[_COLUMN]))
        result["lost"] = 1 - float(after.mean() / before.mean()) if before.any() else None
        result["lost_interval"] = None if kept is None else [1 - kept[1], 1 - kept[0]]
        result["p"] = float(statistics.paired_t_test(before - after, (first + second)[_COLUMN])[0])
        entry.shuffled.results[protocol] = result
