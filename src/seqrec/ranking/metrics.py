"""Ranks to metrics: one value a user, so that means, intervals and paired tests all start from the same.

A user has one target. Its rank is given by two numbers, so that ties neither help nor hurt:

- ``greater int64[U]``: candidates scored strictly above the target; -1 where the target can not be ranked
  at all, which is a miss in every metric;
- ``ties int64[U]``: other candidates scored equal to it.

The target then stands at each of the ranks ``greater + 1 … greater + ties + 1`` with the same probability,
and a metric is its exact expectation over that: a model that scores everything alike gets what chance
gives (McSherry & Najork 2008, "Computing information retrieval performance measures efficiently in the
presence of tied scores").

Metrics of recommended lists take ``lists int[U, k]``, item indices from 1, best first, 0 at empty places.
"""

import numpy as np


def hit_rate(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """HR@k, ``float64[U]``: the probability that the target is among the first k."""
    _check(k)
    return _expected(np.ones(k), greater, ties)


def recall(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """Recall@k, ``float64[U]``: the share of the user's targets among the first k.

    With the one target that a user has here it equals the hit rate. Some papers cap the denominator at
    min(k, targets), which changes nothing for one target.
    """
    return hit_rate(greater, ties, k)


def ndcg(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k, ``float64[U]``: ``1 / log2(rank + 1)`` where the rank is at most k, 0 below.

    Järvelin & Kekäläinen 2002; with one target of gain 1 the ideal DCG is 1.
    """
    _check(k)
    return _expected(1.0 / np.log2(np.arange(2, k + 2)), greater, ties)


def mrr(greater: np.ndarray, ties: np.ndarray, k: int | None = None) -> np.ndarray:
    """MRR or MRR@k, ``float64[U]``: ``1 / rank``, and with k 0 below rank k. Voorhees 1999."""
    if k is None:
        k = max(int(np.max(greater + ties, initial=0)) + 1, 1)
    _check(k)
    return _expected(1.0 / np.arange(1, k + 1), greater, ties)


#: Metrics of a ranking by name; ``named`` takes these with the length of the list.
FUNCTIONS = {"hr": hit_rate, "recall": recall, "ndcg": ndcg, "mrr": mrr}
#: What validation looks at and tables for people show.
MAIN = ("ndcg@10", "hr@10")


def named(name: str, greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """A metric by its name, such as ``ndcg@10``, or ``mrr`` over the whole ranking: ``float64[U]``."""
    metric, _, k = name.partition("@")
    return FUNCTIONS[metric](greater, ties, int(k)) if k else mrr(greater, ties)


def coverage(lists: np.ndarray, num_items: int) -> float:
    """Catalogue coverage: the share of the items that are recommended to anybody (Ge et al. 2010)."""
    present = np.zeros(num_items + 1, dtype=bool)
    present[lists] = True
    return float(np.count_nonzero(present[1:]) / num_items)


def popularity(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How popular the recommended items are, ``float64[U]`` between 0 and 1.

    The mean over the list of ``count(item) / highest count of any item``, counts being interactions in
    training: average recommendation popularity (Abdollahpouri et al. 2019), normalised. 1: only the most
    popular item; an empty list gives NaN.

    Args:
        lists: ``int[U, k]``.
        counts: ``int64[I + 1]``, interactions of each item in training.
    """
    return _mean_over_list(counts / max(int(counts[1:].max(initial=0)), 1), lists)


def novelty(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean self-information of the recommended items in bits, ``float64[U]``.

    The mean over the list of ``-log2 p(item)``, where p is the item's share of the interactions in
    training (Vargas & Castells 2011, popularity-based novelty; Zhou et al. 2010). Every item gets one
    interaction more than it has, so that one never seen in training has a finite value and p still sums
    to one: ``p(i) = (count(i) + 1) / (N + I)``. An empty list gives NaN.
    """
    num_items = len(counts) - 1
    share = (counts + 1.0) / (counts[1:].sum() + num_items)
    return _mean_over_list(-np.log2(share), lists)


def _expected(gain: np.ndarray, greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Mean of ``gain`` (that of rank 1, 2, …; 0 after its end) over the ranks of the tie group."""
    cumulative = np.concatenate([[0.0], np.cumsum(gain)])
    first = np.clip(greater, 0, len(gain))
    last = np.clip(greater + ties + 1, 0, len(gain))
    expected: np.ndarray = (cumulative[last] - cumulative[first]) / (ties + 1)
    return np.where(greater < 0, 0.0, expected)


def _mean_over_list(value_of_item: np.ndarray, lists: np.ndarray) -> np.ndarray:
    filled = lists > 0
    total = np.where(filled, value_of_item[lists], 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = total / filled.sum(axis=1)
    return means


def _check(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; give 1 or more")
