"""Metrics of rankings, as one value per user, from which means, intervals and paired tests are computed.

Each user has one target. Two numbers give its rank, so that ties neither help nor hurt:

- ``greater int64[U]``: number of candidates that score above the target; -1 if the target cannot be ranked at all,
  which counts as a miss in every metric.
- ``ties int64[U]``: number of other candidates with the same score as the target.

The target has each of the ranks ``greater + 1 … greater + ties + 1`` with the same probability, and a metric is the
exact expectation over these ranks. So a model that gives all items the same score gets the result of a random order
(McSherry & Najork 2008, "Computing information retrieval performance measures efficiently in the presence of tied
scores").

Metrics of recommended lists take ``lists int[U, k]``: item indices from 1, best first, with 0 at empty places.
"""

from collections.abc import Sequence

import numpy as np


def hit_rate(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """HR@k, ``float64[U]``: the probability that the target has a rank of at most k."""
    _check(k)
    return _expected(np.ones(k), greater, ties)


def recall(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """Recall@k, ``float64[U]``: the share of the user's targets with a rank of at most k.

    With one target per user, as here, recall is equal to the hit rate. Some papers cap the denominator at
    min(k, targets), which makes no difference for one target.
    """
    return hit_rate(greater, ties, k)


def ndcg(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k, ``float64[U]``: ``1 / log2(rank + 1)`` for ranks up to k, otherwise 0.

    Järvelin & Kekäläinen 2002. With one target of gain 1, the ideal DCG is 1.
    """
    _check(k)
    return _expected(1.0 / np.log2(np.arange(2, k + 2)), greater, ties)


def mrr(greater: np.ndarray, ties: np.ndarray, k: int | None = None) -> np.ndarray:
    """MRR or MRR@k, ``float64[U]``: ``1 / rank``; with k, 0 for ranks above k. Voorhees 1999."""
    if k is None:
        k = max(int(np.max(greater + ties, initial=0)) + 1, 1)
    _check(k)
    return _expected(1.0 / np.arange(1, k + 1), greater, ties)


#: Metrics of a ranking by name. :func:`named` takes these names followed by @ and k.
FUNCTIONS = {"hr": hit_rate, "recall": recall, "ndcg": ndcg, "mrr": mrr}
#: The metrics of validation and of tables in the terminal.
MAIN = ("ndcg@10", "hr@10")


def named(name: str, greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """A metric by its name, such as ``ndcg@10``, or ``mrr`` over the complete ranking: ``float64[U]``."""
    metric, _, k = name.partition("@")
    return FUNCTIONS[metric](greater, ties, int(k)) if k else mrr(greater, ties)


def coverage(lists: np.ndarray, num_items: int) -> float:
    """Catalogue coverage: the share of items that are recommended to at least one user (Ge et al. 2010)."""
    return coverages(lists, [lists.shape[1]], num_items)[0]


def coverages(lists: np.ndarray, lengths: Sequence[int], num_items: int) -> list[float]:
    """The :func:`coverage` of the first items of each list, for each of the ascending ``lengths``."""
    present, found, before = np.zeros(num_items + 1, dtype=bool), [], 0
    for length in lengths:
        present[lists[:, before:length]] = True
        found.append(float(np.count_nonzero(present[1:]) / num_items))
        before = length
    return found


def popularity(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Popularity of the recommended items, ``float64[U]`` between 0 and 1; NaN for an empty list.

    The mean over the list of ``count(item) / highest count of any item``: average recommendation popularity
    (Abdollahpouri et al. 2019), normalised. 1 means that all items of the list are as popular as the most popular one.

    Args:
        lists: recommended items, ``int[U, k]``.
        counts: interactions of each item in training, ``int64[I + 1]``.
    """
    return _mean_over_list(counts / max(int(counts[1:].max(initial=0)), 1), lists)


def novelty(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean self-information of the recommended items in bits, ``float64[U]``; NaN for an empty list.

    The mean over the list of ``-log2 p(item)``, where p is the item's share of the interactions in training (Vargas &
    Castells 2011, popularity-based novelty; Zhou et al. 2010). One interaction is added to every item, so that items
    without interactions have a finite value and p still sums to one: ``p(i) = (count(i) + 1) / (N + I)``.

    Args:
        lists: recommended items, ``int[U, k]``.
        counts: interactions of each item in training, ``int64[I + 1]``.
    """
    num_items = len(counts) - 1
    share = (counts + 1.0) / (counts[1:].sum() + num_items)
    return _mean_over_list(-np.log2(share), lists)


def _expected(gain: np.ndarray, greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Mean of ``gain[rank - 1]`` over the possible ranks of the target; ranks beyond its end gain 0."""
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
