"""Compiled products, scores and losses against torch, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seqrec import kernels

pytestmark = pytest.mark.loops


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 40), st.integers(1, 70), st.integers(0, 40)),
    turned=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 100),
)
def test_product_is_that_of_torch(sizes, turned, seed):
    rows, columns, depth = sizes
    torch.manual_seed(seed)
    a = torch.randn(depth, rows).T if turned[0] else torch.randn(rows, depth)
    b = torch.randn(columns, depth).T if turned[1] else torch.randn(depth, columns)
    torch.testing.assert_close(kernels.product(a, b).double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    # A part of a product has the same bits as the complete product.
    part = kernels.product(a[rows // 3 :], b[:, : columns // 2 + 1])
    assert torch.equal(part, kernels.product(a, b)[rows // 3 :, : columns // 2 + 1])


@pytest.mark.parametrize("shape", [(0, 3, 4), (7, 1, 5), (30, 101, 64), (5, 6, 1)])
def test_score_is_the_product_with_each_rows_own(shape):
    torch.manual_seed(0)
    rows, _, dim = shape
    hidden = torch.randn(rows, dim, requires_grad=True)
    vectors = torch.randn(shape, requires_grad=True)
    out = kernels.score(hidden, vectors)
    exact = torch.einsum("rd,rcd->rc", hidden.double(), vectors.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    by_out = torch.randn(out.shape)
    expected = torch.autograd.grad(exact, (hidden, vectors), by_out.double())
    for mine, its in zip(torch.autograd.grad(out, (hidden, vectors), by_out), expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4), (7, 1, 5), (30, 101, 64), (5, 6, 1), (3, 0, 8)])
def test_score_items_has_the_bits_of_score(shape):
    torch.manual_seed(0)
    rows, count, dim = shape
    hidden, vectors, items = torch.randn(rows, dim), torch.randn(40, dim), torch.randint(0, 40, (rows, count))
    assert torch.equal(kernels.score_items(hidden, vectors, items), kernels.score(hidden, vectors[items]))
    if rows and count:
        items[-1, -1] = 40
        with pytest.raises(ValueError, match="items"):
            kernels.score_items(hidden, vectors, items)


@pytest.mark.parametrize("shape", [(7, 1, 5), (30, 101, 64), (5, 2, 1)])
def test_binary_loss_is_that_of_torch_in_float64(shape):
    torch.manual_seed(0)
    hidden, vectors = 3 * torch.randn(shape[0], shape[2]), 3 * torch.randn(shape)  # some values are large
    losses, *found = kernels.binary_loss(hidden, vectors)
    exact = [x.double().requires_grad_() for x in (hidden, vectors)]
    logits = torch.einsum("rd,rcd->rc", *exact)
    signs = torch.ones(shape[1], dtype=torch.float64)
    signs[0] = -1
    expected = nn.functional.softplus(signs * logits).sum(dim=1)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    for mine, its in zip(found, torch.autograd.grad(expected.mean(), exact), strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=1e-4, atol=1e-5)
    hidden[0, 0] = torch.nan
    losses, by_hidden, _ = kernels.binary_loss(hidden, vectors)
    assert losses.isnan().tolist() == [True, *[False] * (shape[0] - 1)]
    assert by_hidden.isnan().any(dim=1).tolist() == losses.isnan().tolist()
    with pytest.raises(ValueError, match="takes"):
        kernels.binary_loss(hidden[1:], vectors)


def test_exponentials_are_exact_to_the_last_places():
    logits = torch.linspace(-80, 0, 4001)[:, None].clone()
    nothing = torch.zeros(0, dtype=torch.int64)
    # With such a target, the gradients are softmax probabilities.
    found = kernels.softmax_loss(torch.ones(1, 1), logits, torch.tensor([-1e30]), (nothing, nothing))
    error = (found[2].double() / logits.double().softmax(dim=0) - 1).abs()
    assert error.max() < 6 * torch.finfo(torch.float32).eps


@pytest.mark.slow_but_one
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (127, 241, 17), (300, 500, 33), (129, 40_000, 4)])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_softmax_loss_is_that_of_torch_in_float64(shape, corrected, threads):
    """Incomplete blocks and tiles, and so many items that exponentials are computed twice."""
    tokens, items, dim = shape
    torch.manual_seed(0)
    hidden, vectors, targets = 2 * torch.randn(tokens, dim), torch.randn(items, dim), 3 * torch.randn(tokens)
    which = torch.randint(0, tokens, (2 * tokens,)).sort().values
    left_out = which, torch.randint(0, items, (len(which),))
    less = -torch.rand(items) if corrected else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = kernels.softmax_loss(hidden, vectors, targets, left_out, less)
    torch.set_num_threads(before)
    exact = [x.double().requires_grad_() for x in (hidden, vectors, targets)]
    logits = exact[0] @ exact[1].T - (0 if less is None else less.double())
    logits = logits.index_put(left_out, torch.tensor(-torch.inf, dtype=torch.float64))
    losses = nn.functional.softplus(logits.logsumexp(dim=1) - exact[2])
    torch.testing.assert_close(found[0], losses.detach(), rtol=1e-5, atol=1e-5)
    some = torch.isfinite(logits).any(dim=1)  # torch's gradient of an empty sum is NaN
    gradients = torch.autograd.grad((losses * some).sum() / tokens, exact) if some.all() else None
    for mine, its in zip(found[1:], gradients or (), strict=gradients is not None):
        torch.testing.assert_close(mine.double(), its, rtol=1e-4, atol=1e-6)
    assert (found[1][~some] == 0).all()


def test_softmax_loss_of_no_numbers_is_none():
    nothing = torch.zeros(0, dtype=torch.int64)
    hidden, vectors = torch.ones(3, 2), torch.ones(4, 2)
    hidden[1, 0] = torch.nan
    losses, by_hidden, _, by_targets = kernels.softmax_loss(hidden, vectors, torch.zeros(3), (nothing, nothing))
    for x in (losses, by_hidden[:, 0], by_targets):
        assert x.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (129, 500, 17), (3, 5000, 9)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("more", [0, 1, 40])
def test_rank_is_a_full_sort(shape, threads, more):
    """Scores are whole numbers, so that many tie and none is rounded. Some pairs are added to twice or ignored, too."""
    count, items, dim = shape
    torch.manual_seed(0)
    states, vectors = torch.randint(-2, 3, (count, dim)).float(), torch.randint(-2, 3, (items, dim)).float()
    pairs = torch.randint(0, count * items, (more * count,)).sort().values
    added = pairs // items, pairs % items, torch.randint(-3, 4, pairs.shape).float()
    rows = torch.randint(0, count, (3 * count,)).sort().values
    left_out = rows, torch.randint(0, items, (len(rows),))
    skipped = torch.rand(items) < 0.1
    targets = torch.randint(0, items, (count,))
    skipped[targets] = False
    scores = (states @ vectors.T).index_put(added[:2], added[2], accumulate=True)
    own = scores.gather(1, targets[:, None])
    scores[:, skipped] = -torch.inf
    scores[left_out] = -torch.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for k in {0, 1, min(10, items), items}:
        found = kernels.rank(states, vectors, k, left_out, skipped, targets, added if more else None)
        assert found.numbers
        assert torch.equal(found.greater, (scores > own).sum(dim=1))
        assert torch.equal(found.ties, (scores == own).sum(dim=1))
        values, columns = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(found.scores, values[:, :k])
        there = values[:, :k] > -torch.inf
        assert torch.equal(found.columns, torch.where(there, columns[:, :k], -1))
    torch.set_num_threads(before)
    assert kernels.rank(states, vectors, 1).columns[:, 0].tolist() == (states @ vectors.T).argmax(dim=1).tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_target_ties_with_itself_alone(threads):
    """Its score has the same bits as in the tile, whatever the width, its place in the tile and what is added."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    for dim in (1, 7, 31, 64, 100):
        states, vectors = torch.randn(200, dim), torch.randn(700, dim)
        targets = torch.randint(0, 700, (200,))
        assert (kernels.rank(states, vectors, targets=targets).ties == 1).all()
        rows, columns = torch.arange(200).repeat_interleave(3), targets.repeat_interleave(3)
        rows, columns = torch.cat([rows, rows]), torch.cat([columns, torch.randint(0, 700, (600,))])
        order = (rows * 700 + columns).argsort()
        added = rows[order], columns[order], torch.randn(1200) / 3
        found = kernels.rank(states, vectors, 700, targets=targets, added=added)
        assert (found.ties == 1).all()
        place = (found.columns == targets[:, None]).nonzero()[:, 1]
        assert torch.equal(place, found.greater)
        exact = (states.double() @ vectors.double().T).index_put(added[:2], added[2].double(), accumulate=True)
        torch.testing.assert_close(found.scores.double(), exact.gather(1, found.columns), rtol=1e-5, atol=1e-5)


def test_rank_of_no_numbers_and_of_minus_infinity():
    states, vectors = torch.ones(3, 2), torch.tensor([[1.0, 0.0], [-torch.inf, 0.0], [torch.nan, 1.0]])
    assert not kernels.rank(states, vectors, 1).numbers
    assert kernels.rank(states[:0], vectors, 1).numbers
    skipped = torch.tensor([False, False, True])
    found = kernels.rank(states[:, :1], vectors[:, :1], 3, None, skipped, torch.tensor([0, 1, 1]))
    assert found.numbers
    assert (found.greater.tolist(), found.ties.tolist()) == ([0, -1, -1], [1, 1, 1])
    assert found.columns.tolist() == [[0, -1, -1]] * 3
    for wrong in ((states, vectors[:, :1]), (states, vectors, 1, (torch.tensor([3]), torch.tensor([0]))),
                  (states, vectors, 1, None, None, torch.tensor([0, 0, 3])), (states, vectors, 1, None, skipped[:2]),
                  (states, vectors, 1, None, skipped.long())):  # fmt: skip
        with pytest.raises(ValueError, match="takes"):
            kernels.rank(*wrong)
