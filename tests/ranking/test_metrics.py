import itertools

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, Success, nDCG

from seqrec.ranking import metrics, statistics


def test_metrics_agree_with_ir_measures():
    random = np.random.default_rng(0)
    users, candidates = 60, 40
    scores = np.stack([random.permutation(candidates) for _ in range(users)])  # no ties
    target = random.integers(candidates, size=users)
    greater = (scores > scores[np.arange(users), target][:, None]).sum(axis=1)
    ties = np.zeros(users, dtype=np.int64)
    qrels = [ir_measures.Qrel(str(u), str(target[u]), 1) for u in range(users)]
    run = [ir_measures.ScoredDoc(str(u), str(j), float(scores[u, j])) for u in range(users) for j in range(candidates)]
    ours = {}
    for k in (1, 5, 10):
        ours[nDCG @ k] = metrics.ndcg(greater, ties, k)
        ours[R @ k] = metrics.recall(greater, ties, k)
        ours[Success @ k] = metrics.hit_rate(greater, ties, k)
    ours[RR] = metrics.mrr(greater, ties)
    theirs = {measure: np.full(users, np.nan) for measure in ours}
    for value in ir_measures.iter_calc(list(ours), qrels, run):
        theirs[value.measure][int(value.query_id)] = value.value
    for measure, values in ours.items():
        np.testing.assert_allclose(values, theirs[measure], atol=1e-12, err_msg=str(measure))
    # RR with a cutoff: ranks below it count as 0.
    np.testing.assert_allclose(metrics.mrr(greater, ties, 5), np.where(greater < 5, theirs[RR], 0), atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_a_tie_is_the_mean_over_all_orders(k):
    for above, tied in itertools.product(range(4), range(4)):
        found: dict[str, list[float]] = {"hit_rate": [], "ndcg": [], "mrr": []}
        for order in itertools.permutations(range(tied + 1)):
            rank = above + order.index(0) + 1
            found["hit_rate"].append(float(rank <= k))
            found["ndcg"].append(1 / np.log2(rank + 1) if rank <= k else 0.0)
            found["mrr"].append(1 / rank if rank <= k else 0.0)
        for name, values in found.items():
            ours = getattr(metrics, name)(np.array([above]), np.array([tied]), k)
            assert ours[0] == pytest.approx(np.mean(values), abs=1e-12), (name, above, tied)


def test_mrr_without_a_cutoff_counts_every_rank():
    values = metrics.mrr(np.array([0, 3, 999, 0]), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(values, [1, 1 / 4, 1 / 1000, 3 / 4])


def test_a_target_that_can_not_be_ranked_is_a_miss_everywhere():
    missing, none = np.array([-1]), np.array([0])
    for k in (1, 10):
        for metric in (metrics.hit_rate, metrics.recall, metrics.ndcg, metrics.mrr):
            assert metric(missing, none, k)[0] == 0
    assert metrics.mrr(missing, none)[0] == 0


def test_metrics_of_nobody_are_empty():
    nobody = np.empty(0, dtype=np.int64)
    assert metrics.mrr(nobody, nobody).shape == (0,)


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k is 0"):
        metrics.hit_rate(np.array([0]), np.array([0]), 0)


def test_coverage_popularity_and_novelty_by_hand():
    counts = np.array([0, 4, 2, 1, 0])
    lists = np.array([[1, 2], [1, 4], [3, 0]])
    assert metrics.coverage(lists, 4) == 1.0
    assert metrics.coverage(lists[:1], 4) == 0.5
    np.testing.assert_allclose(metrics.popularity(lists, counts), [0.75, 0.5, 0.25])
    bits = -np.log2(np.array([5, 3, 2, 1]) / 11)
    np.testing.assert_allclose(
        metrics.novelty(lists, counts), [(bits[0] + bits[1]) / 2, (bits[0] + bits[3]) / 2, bits[2]]
    )


def test_an_empty_list_has_no_value_and_leaves_the_mean_alone():
    counts = np.array([0, 4, 2])
    values = metrics.popularity(np.array([[1, 0], [0, 0]]), counts)
    assert values[0] == 1
    assert np.isnan(values[1])
    assert statistics.mean(values[:, None]) == [1.0]


def test_coverage_interval_lies_about_the_coverage():
    random = np.random.default_rng(5)
    lists = random.integers(1, 401, size=(200, 3))
    ((low, high),) = statistics.coverage_intervals(lists, [3], 400)
    covered = metrics.coverage(lists, 400)
    assert low < covered < high
    # As wide as the spread over new samples of the same number of users, which differ only by chance.
    fresh = [metrics.coverage(random.integers(1, 401, size=(200, 3)), 400) for _ in range(400)]
    spread = np.quantile(fresh, 0.975) - np.quantile(fresh, 0.025)
    assert 0.6 * spread < high - low < 1.8 * spread


def test_coverage_interval_of_one_list_for_all_is_a_point():
    lists = np.tile([3, 1, 2], (30, 1))
    assert statistics.coverage_intervals(lists, [1, 3], 10) == [pytest.approx((0.1, 0.1)), pytest.approx((0.3, 0.3))]
