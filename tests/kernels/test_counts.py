"""Compiled weights of pairs, and sums of their rows, against loops over all pairs in float64."""

import math

import numpy as np
import pytest
import torch
from counted import histories_of, naive_pairs, naive_sums, rows_of, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec import kernels

pytestmark = pytest.mark.loops


def tensors_of(given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(part) for name, part in given.items()}


@settings(max_examples=25, deadline=None)
@given(
    num_items=st.sampled_from([0, 1, 3, 20, 70, 5000, 100_000]),
    shape=st.tuples(st.integers(0, 40), st.integers(0, 9)),
    distances=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    most=st.sampled_from([1, 2, 5, 1000]),
    chosen=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pairs_are_those_of_a_loop(num_items, shape, distances, most, chosen, seed):
    random = np.random.default_rng(seed)
    items, starts, ends = histories_of(random, num_items, *shape)
    weights = weights_of(random, num_items, *distances)
    wanted = {"wanted": random.random(num_items + 1) < 0.5} if chosen else {}
    expected = naive_pairs(items, starts, ends, **weights, most=most, **wanted)
    tensors = tensors_of({"items": items, "starts": starts, "ends": ends, **weights, **wanted})
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(kernels.weigh_pairs(**tensors, most=most))
        assert rows_of(*results[-1]) == pytest.approx(expected, rel=1e-6)
        assert len(results[-1].offsets) == num_items + 2
    assert all(torch.equal(one, other) for more in results[1:] for one, other in zip(results[0], more, strict=True))


def test_an_example_by_hand():
    """Of the history a b c, with pairs of neighbours and the pair of its ends."""
    given = {
        "items": torch.tensor([1, 2, 3], dtype=torch.int32), "starts": torch.tensor([0]), "ends": torch.tensor([3]),
        "gains": torch.tensor([0.0, 1.0, 2.0, 3.0]), "factors": torch.tensor([9.0, 1.0, 2.0, 4.0]), "most": 9,
    }  # fmt: skip
    after, beside, none = torch.tensor([1.0, 0.5]), torch.tensor([0.25]), torch.zeros(0)
    log = math.log1p
    forward = kernels.weigh_pairs(**given, after=after, beside=none)
    assert rows_of(*forward) == pytest.approx({(1, 2): log(2), (2, 3): log(3), (1, 3): log(1.5)})
    around = kernels.weigh_pairs(**given, after=none, beside=beside)
    assert rows_of(*around) == pytest.approx({(1, 2): 0.5, (2, 1): 0.5, (2, 3): 2.0, (3, 2): 2.0})
    both = {(1, 2): log(2) + 0.5, (2, 1): 0.5, (2, 3): log(3) + 2.0, (3, 2): 2.0, (1, 3): log(1.5)}
    assert rows_of(*kernels.weigh_pairs(**given, after=after, beside=beside)) == pytest.approx(both)
    wanted = torch.tensor([False, False, True, False])
    some = kernels.weigh_pairs(**given, after=after, beside=beside, wanted=wanted)
    assert rows_of(*some) == pytest.approx({pair: weight for pair, weight in both.items() if pair[0] == 2})
    highest = kernels.weigh_pairs(**given | {"most": 1}, after=after, beside=beside)
    assert rows_of(*highest) == pytest.approx({pair: both[pair] for pair in ((1, 2), (2, 3), (3, 2))})


@pytest.mark.parametrize("threads", [1, 2])
def test_many_pairs_are_counted_in_double_precision(threads):
    """So many that float32 would stop counting; and parts of the work of very different sizes."""
    torch.set_num_threads(threads)
    items = torch.tensor([1, 2] * 1000 + list(range(3, 604)), dtype=torch.int32)
    starts, ends = torch.tensor([0, 2000]), torch.tensor([2000, len(items)])
    weights, ones = torch.ones(5000), torch.ones(3001)
    weights[1::2] = 2.0**-25  # pairs of the two items have odd distances
    ways = {"gains": ones, "factors": ones, "most": 10_000}
    found = rows_of(*kernels.weigh_pairs(items, starts, ends, after=weights, beside=torch.zeros(0), **ways))
    assert math.expm1(found[1, 2]) == pytest.approx(500_500, rel=1e-5)
    assert found[3, 603] == 2.0**-25
    assert len(found) == 2 + 601 * 600 // 2
    assert rows_of(*kernels.weigh_pairs(items, starts, ends, after=torch.zeros(0), beside=weights, **ways))[1, 2] == 1e6


def test_pairs_of_a_history_that_does_not_fit_the_others_are_refused():
    ones = torch.ones(3)
    ways = {"after": ones, "beside": ones, "gains": ones, "factors": ones, "most": 2}
    items = torch.tensor([1, 2, 2, 1], dtype=torch.int32)
    one = kernels.weigh_pairs(items, torch.tensor([2, 0]), torch.tensor([4, 2]), **ways)
    assert rows_of(*one) == pytest.approx({(1, 2): math.log(2) + 2, (2, 1): math.log(2) + 2})
    with pytest.raises(ValueError, match="ranges"):
        kernels.weigh_pairs(items, torch.tensor([0, 1]), torch.tensor([2, 4]), **ways)
    with pytest.raises(ValueError, match="not int64"):
        kernels.weigh_pairs(items, torch.tensor([0]), torch.tensor([2, 4]), **ways)
    with pytest.raises(ValueError, match="most is 0"):
        kernels.weigh_pairs(items, torch.tensor([0]), torch.tensor([2]), **ways | {"most": 0})


@settings(max_examples=25, deadline=None)
@given(
    num_items=st.sampled_from([0, 1, 5, 70, 5000, 100_000]),
    longest=st.integers(0, 30),
    rows=st.integers(0, 20),
    entries=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_sums_of_rows_are_those_of_a_loop(num_items, longest, rows, entries, seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest + 1, num_items + 1)
    table_offsets = np.concatenate([[0], np.cumsum(lengths)])
    columns = random.integers(0, num_items + 1, table_offsets[-1]).astype(np.int32)  # unsorted and repeated: no harm
    table = table_offsets, columns, random.standard_normal(len(columns)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(random.integers(0, entries + 1, rows))]).astype(np.int64)
    chosen = random.integers(0, num_items + 1, offsets[-1]).astype(np.int32)
    coefficients = random.standard_normal(len(chosen)).astype(np.float32)
    expected = naive_sums(table, offsets, chosen, coefficients)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        given = kernels.Rows(*map(torch.from_numpy, table)), *map(torch.from_numpy, (offsets, chosen, coefficients))
        results.append(kernels.sum_rows(*given))
        found = rows_of(*results[-1])
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
        asked = random.integers(0, num_items + 1, (rows, 7))
        for row, column in expected:
            asked[row, column % 7] = column
        at = kernels.sums_at(*given, torch.from_numpy(asked)).tolist()
        assert at == [[found.get((row, column), 0.0) for column in own] for row, own in enumerate(asked.tolist())]
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_a_table_that_is_out_of_range_is_harmless_where_it_is_not_read():
    """Every index is checked where it is used, so that a request does not read a large table."""
    table = kernels.Rows(torch.tensor([0, 1, 2, 99]), torch.tensor([1, 7], dtype=torch.int32), torch.ones(2))
    one = torch.tensor([0, 1])
    found = kernels.sum_rows(table, one, torch.tensor([0], dtype=torch.int32), torch.ones(1))
    assert rows_of(*found) == {(0, 1): 1.0}
    for row in (1, 2):
        with pytest.raises(ValueError, match="out of range"):
            kernels.sum_rows(table, one, torch.tensor([row], dtype=torch.int32), torch.ones(1))
        with pytest.raises(ValueError, match="out of range"):
            kernels.sums_at(table, one, torch.tensor([row], dtype=torch.int32), torch.ones(1), torch.tensor([[1]]))
