"""Compiled counts of pairs, and sums of their rows, against loops over all pairs in float64."""

import numpy as np
import pytest
import torch
from counted import histories_of, naive_pairs, naive_sums, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec import kernels

pytestmark = pytest.mark.loops


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.sampled_from([0, 1, 3, 20, 70, 5000, 300_000]),
    shape=st.tuples(st.integers(0, 40), st.integers(0, 9)),
    distances=st.tuples(st.integers(0, 12), st.integers(0, 4)),
    most=st.sampled_from([1, 2, 5, 1000]),
    factors=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pairs_are_those_of_a_loop(num_items, shape, distances, most, factors, seed):
    random = np.random.default_rng(seed)
    items, starts, ends = histories_of(random, num_items, *shape)
    forward, backward = (random.integers(-1, 4, some).astype(np.float32) / 2 for some in distances)
    factor = random.integers(1, 4, num_items + 1).astype(np.float32) if factors else None
    expected = naive_pairs(items, starts, ends, forward, backward, most, factor)
    tensors = [torch.from_numpy(x) for x in (items, starts, ends, forward, backward)]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = kernels.count_pairs(*tensors, num_items, most, None if factor is None else torch.from_numpy(factor))
        assert rows_of(*found) == expected
        assert len(found.offsets) == num_items + 2


def test_backward_weights_are_optional():
    items, weights = torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([1.0, 0.5])
    starts, ends = torch.tensor([0]), torch.tensor([3])
    found = kernels.count_pairs(items, starts, ends, weights, None, 3, 9)
    assert rows_of(*found) == {(1, 2): 1.0, (2, 3): 1.0, (1, 3): 0.5}
    turned = kernels.count_pairs(items, starts, ends, torch.zeros(0), weights, 3, 9)
    assert rows_of(*turned) == {(2, 1): 1.0, (3, 2): 1.0, (3, 1): 0.5}


@pytest.mark.parametrize("threads", [1, 2])
def test_many_pairs_are_counted_in_double_precision(threads):
    """So many that float32 would stop counting; and parts of the work of very different sizes."""
    torch.set_num_threads(threads)
    items = torch.tensor([1, 2] * 1000 + list(range(3, 3000)), dtype=torch.int32)
    starts, ends = torch.tensor([0, 2000]), torch.tensor([2000, len(items)])
    weights = torch.ones(5000)
    weights[1::2] = 2.0**-25  # pairs of the two items have odd distances
    found = rows_of(*kernels.count_pairs(items, starts, ends, weights, None, 3000, 10_000))
    assert found[1, 2] == 500_500
    assert found[2, 1] == 499_500
    assert found[3, 2999] == 2.0**-25
    assert len(found) == 2 + 2997 * 2996 // 2


def test_factors_that_are_no_numbers_come_last():
    items, ones = torch.tensor([1, 2, 3, 4], dtype=torch.int32), torch.ones(3)
    factors = torch.tensor([1.0, 1.0, torch.nan, -torch.inf, 1.0])
    found = kernels.count_pairs(items, torch.tensor([0]), torch.tensor([4]), ones, ones, 4, 1, factors)
    assert rows_of(*found) == {(1, 4): 1.0, (2, 1): 1.0, (3, 1): 1.0, (4, 1): 1.0}


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.sampled_from([0, 1, 5, 70, 5000, 300_000]),
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
