"""The compiled loops against the same in torch, against float64, and without them."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.kernels import loader
from seqrec.models.blocks import Attention, Dropout, FeedForward, add_positions, dropouts_of, group, seed_dropout
from seqrec.models.sasrec import SASRecBlock, SASRecConfig
from seqrec.optim import RowAdam

ROOT = Path(__file__).parents[1]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64)


def batch_of(lengths: list[int]) -> Batch:
    offsets = offsets_of(lengths)
    zeros = torch.zeros(int(offsets[-1]), dtype=torch.int64)
    return Batch(zeros + 1, zeros, zeros, offsets, torch.arange(len(lengths)), zeros)


def naive(query: Tensor, key_value: Tensor, lengths: list[int], heads: int, causal: bool,
          words: Tensor | None, dropout: float) -> Tensor:  # fmt: skip
    """Pair by pair, as the docstring says it."""
    width = query.shape[1]
    dim = width // heads
    out, place, start = torch.zeros_like(query), 0, 0
    keys, values = key_value.split(width, dim=1)
    dropped = round(dropout * 65536)
    rows: list[Tensor] = [query.new_zeros(0)] * (sum(lengths) * heads)
    for head in range(heads):
        columns = slice(head * dim, (head + 1) * dim)
        start = 0
        for length in lengths:
            for i in range(length):
                count = i + 1 if causal else length
                scores = torch.stack(
                    [(query[start + i, columns] * keys[start + j, columns]).sum() for j in range(count)]
                )
                weights = (scores / dim**0.5).softmax(0)
                if words is not None:
                    kept = (words[place : place + count].int() >= dropped - 32768).to(query.dtype)
                    weights = weights * kept * 65536 / (65536 - dropped)
                    place += count
                rows[(start + i) * heads + head] = weights @ values[start : start + count, columns]
            start += length
    return torch.stack(rows).view(-1, width) if rows else out


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
    # The bits of a part are those of the whole.
    part = kernels.product(a[rows // 3 :], b[:, : columns // 2 + 1])
    assert torch.equal(part, kernels.product(a, b)[rows // 3 :, : columns // 2 + 1])


def test_they_are_built_here():
    # So that the other tests, and users with a compiler, meet them.
    assert kernels.library() is not None


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    heads=st.sampled_from([1, 2, 3]),
    dim=st.sampled_from([1, 3, 8, 17]),
    causal=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 100),
)
def test_attention_is_the_naive_one(lengths, heads, dim, causal, dropout, seed):
    torch.manual_seed(seed)
    tokens, width = sum(lengths), heads * dim
    query = (3 * torch.randn(tokens, width)).requires_grad_()
    key_value = torch.randn(tokens, 2 * width, requires_grad=True)
    pairs = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    words = torch.randint(-32768, 32768, (heads * pairs,), dtype=torch.int16) if dropout else None
    out = kernels.attention(query, key_value, offsets_of(lengths), heads, causal, words, dropout)
    exact = [x.detach().double().requires_grad_() for x in (query, key_value)]
    expected = naive(*exact, lengths, heads, causal, words, dropout)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    if tokens:
        by_out = torch.randn(tokens, width)
        out.backward(by_out)
        expected.backward(by_out.double())
        for mine, its in zip((query, key_value), exact, strict=True):
            torch.testing.assert_close(mine.grad.double(), its.grad, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():  # where nothing is kept for the way back
        again = kernels.attention(query, key_value, offsets_of(lengths), heads, causal, words, dropout)
    assert torch.equal(again, out)


def test_attention_of_scores_far_apart_and_of_no_numbers():
    query = torch.tensor([[300.0], [300.0], [1.0]])
    key_value = torch.tensor([[300.0, 1.0], [-300.0, 5.0], [float("nan"), 2.0]])
    out = kernels.attention(query, key_value, torch.tensor([0, 2, 3]), 1, True)
    assert out[:2, 0].tolist() == [1.0, 1.0]
    assert out[2].isnan().all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_layer_does_the_same_without_them(causal, heads, dropout, monkeypatch):
    torch.manual_seed(0)
    lengths = [1, 7, 70, 3, 0, 12]
    layer = Attention(12, 24, heads, dropout)
    x = torch.randn(sum(lengths), 12)
    found = []
    for there in (True, False):
        if not there:
            monkeypatch.setattr(loader, "library", lambda: None)
        seed_dropout(dropouts_of(layer), [1])
        layer.zero_grad()
        states = x.clone().requires_grad_()
        out = layer(states, states, group(batch_of(lengths), causal=causal))
        out.square().sum().backward()
        found.append([out, states.grad, *(parameter.grad for parameter in layer.parameters())])
        # Both have drawn as many random numbers.
        found[-1].append(torch.from_numpy(layer.dropout.random.random(3)))
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("there", [True, False])
def test_the_last_tokens_alone_are_those_of_all(heads, there, monkeypatch):
    if not there:
        monkeypatch.setattr(loader, "library", lambda: None)
    torch.manual_seed(0)
    lengths = [1, 7, 70, 3, 12]
    layer = Attention(12, 24, heads, 0.5).eval()
    x = torch.randn(sum(lengths), 12)
    batch = batch_of(lengths)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            some = layer(x[batch.last], x, group(batch), batch.last)
            torch.testing.assert_close(some, layer(x, x, group(batch))[batch.last])
            assert some.requires_grad == enabled


def block_of(norm: str, heads: int, dropout: float, hidden: int, dim: int = 12) -> SASRecBlock:
    torch.manual_seed(0)
    config = SASRecConfig(embedding_dim=dim, num_heads=heads, dropout=dropout, feedforward_dims=(hidden,), norm=norm)
    block = SASRecBlock(config)
    for parameter in block.parameters():  # norms and biases too, which begin at 1 and 0
        nn.init.normal_(parameter, mean=0.1, std=0.4)
    return block


@pytest.mark.parametrize("norm", ["paper", "pre", "post"])
@pytest.mark.parametrize(("heads", "hidden", "dim"), [(1, 12, 12), (3, 5, 12), (2, 40, 34)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_whole_block_is_that_of_torch_in_float64(norm, heads, hidden, dim, dropout, threads):
    lengths = [1, 7, 150, 3, 0, 12, *[5] * 40]  # one that is longer than what is taken at once, and several that fit
    block = block_of(norm, heads, dropout, hidden, dim)
    x = torch.randn(sum(lengths), dim)
    upstream = torch.randn(sum(lengths), dim)
    found = []
    before = torch.get_num_threads()
    for kind in (torch.float32, torch.float64):
        torch.set_num_threads(threads)
        block = block.to(kind)
        block.zero_grad()
        seed_dropout(dropouts_of(block), [1])
        states = x.to(kind, copy=True).requires_grad_()
        out = block(states, group(batch_of(lengths)))
        assert (out.grad_fn.name() == "_FunctionBackward") == (kind == torch.float32)
        out.backward(upstream.to(kind))
        found.append([out, states.grad, *(parameter.grad.clone() for parameter in block.parameters())])
        # Both have drawn as many random numbers.
        found[-1].append(torch.from_numpy(block.feedforward.dropout.random.random(3)))
    torch.set_num_threads(before)
    for compiled, plain in zip(*found, strict=True):
        error = (compiled.double() - plain).abs().max() / plain.abs().max().clamp_min(1e-3)
        assert error < 2e-5


@pytest.mark.parametrize("norm", ["paper", "pre", "post"])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_block_of_the_last_tokens_alone_is_that_of_all(norm, heads):
    lengths = [1, 7, 150, 3, 12, *[2] * 70]
    block, batch = block_of(norm, heads, 0.5, 7).eval(), batch_of(lengths)
    x = torch.randn(sum(lengths), 12)
    with torch.no_grad():
        everything = block(x, group(batch))
        torch.testing.assert_close(block(x, group(batch), batch.last), everything[batch.last], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block(x, group(batch)), everything)  # saving for the way back changes nothing
    with_gradients = block(x, group(batch), batch.last)
    assert with_gradients.requires_grad
    torch.testing.assert_close(with_gradients, everything[batch.last], rtol=1e-4, atol=1e-4)


def test_a_block_that_somebody_changed_goes_to_torch():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    lengths = [3, 4]
    block = block_of("paper", 1, 0.0, 12)
    x = torch.randn(7, 12)
    plain = block(x, group(batch_of(lengths)))
    query = Doubled(12, 12)
    query.load_state_dict(block.attention.query.state_dict())
    block.attention.query = query
    assert not torch.allclose(block(x, group(batch_of(lengths))), plain)


def test_a_block_of_shapes_that_do_not_fit_is_refused():
    block = block_of("paper", 1, 0.0, 12)
    layers = [block.attention_norm, block.attention.query, block.attention.key_value, block.feedforward_norm]
    parameters = [part for layer in (*layers, *block.feedforward.layers) for part in (layer.weight, layer.bias)]
    x, offsets = torch.zeros(4, 12), offsets_of([4])
    kernels.block(x, offsets, parameters, 1, "paper", 1e-8)
    short = [torch.zeros(3, dtype=torch.int16)] * 3
    for wrong in ((x[:3], offsets, parameters, 1), (x, offsets, parameters[:-1], 1), (x, offsets, parameters, 5),
                  (x[:, :6].contiguous(), offsets, parameters, 1)):  # fmt: skip
        with pytest.raises(ValueError, match="fit"):
            kernels.block(*wrong, "paper", 1e-8)
    with pytest.raises(ValueError, match="random words"):
        kernels.block(x, offsets, parameters, 1, "paper", 1e-8, short, 0.1)
    with pytest.raises(ValueError, match="no gradients"):
        kernels.block(x, offsets, parameters, 1, "paper", 1e-8, last_only=True)


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


@pytest.mark.parametrize("shape", [(7, 1, 5), (30, 101, 64), (5, 2, 1)])
def test_binary_loss_is_that_of_torch_in_float64(shape):
    torch.manual_seed(0)
    hidden, vectors = 3 * torch.randn(shape[0], shape[2]), 3 * torch.randn(shape)  # some far out
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
    with pytest.raises(ValueError, match="don't fit"):
        kernels.binary_loss(hidden[1:], vectors)


@pytest.mark.parametrize("hidden_dims", [(5,), (7, 3)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_network_does_the_same_without_them(hidden_dims, dropout, monkeypatch):
    torch.manual_seed(0)
    layer = FeedForward(6, hidden_dims, dropout)
    x, residual = torch.randn(700, 6), torch.randn(700, 6)
    found = []
    for there in (True, False):
        if not there:
            monkeypatch.setattr(loader, "library", lambda: None)
        seed_dropout(dropouts_of(layer), [1])
        layer.zero_grad()
        mine = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        out = layer(*mine)
        out.square().sum().backward()
        found.append([out, *(tensor.grad for tensor in mine), *(parameter.grad for parameter in layer.parameters())])
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("lengths", [[1], [3, 1, 0, 5], [5, 5], [0]])
@pytest.mark.parametrize(("scale", "dropout"), [(8.0, 0.4), (1.0, 0.0), (0.5, 0.9)])
def test_positions_do_the_same_without_them(lengths, scale, dropout, monkeypatch):
    batch, table, layer = batch_of(lengths), nn.Embedding(5, 7), Dropout(dropout)
    batch = replace(batch, positions=torch.cat([torch.arange(n) for n in lengths]))
    x = torch.randn(sum(lengths), 7, requires_grad=True)
    upstream = torch.randn(sum(lengths), 7)
    results = []
    for with_them in (True, False):
        if not with_them:
            monkeypatch.setattr(kernels, "usable", lambda *tensors: False)
        seed_dropout([layer], [3])
        out = add_positions(x, batch, table, layer, scale)
        results.append((out, *torch.autograd.grad(out, (x, table.weight), upstream)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    # The last token of each user, whatever its history's length, stands at the last position.
    last = batch.offsets[1:][batch.lengths > 0] - 1
    kept = results[0][0][last] != 0
    expected = (scale * x[last] + table.weight[-1]) / (1 - round(dropout * 65536) / 65536)
    torch.testing.assert_close(results[0][0][last][kept], expected[kept])


def test_positions_beyond_the_window_are_refused():
    with pytest.raises(ValueError, match="don't fit"):
        kernels.positions(torch.zeros(4, 2), torch.zeros(3, 2), offsets_of([4]), 1.0)


def test_dropout_does_the_same_without_them(monkeypatch):
    layer = Dropout(0.3)
    x = torch.randn(50, 101)
    found = []
    for there in (True, False):
        if not there:
            monkeypatch.setattr(loader, "library", lambda: None)
        seed_dropout([layer], [1])
        mine = x.clone().requires_grad_()
        out = layer(mine)
        out.square().sum().backward()
        found.append([out, mine.grad])
    assert all(torch.equal(compiled, plain) for compiled, plain in zip(*found, strict=True))


def test_exponentials_are_exact_to_the_last_places():
    logits = torch.linspace(-80, 0, 4001)[:, None].clone()
    nothing = torch.zeros(0, dtype=torch.int64)
    # With such a target the gradients are the softmax.
    found = kernels.softmax_loss(torch.ones(1, 1), logits, torch.tensor([-1e30]), (nothing, nothing))
    error = (found[2].double() / logits.double().softmax(dim=0) - 1).abs()
    assert error.max() < 6 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (127, 241, 17), (300, 500, 33), (129, 40_000, 4)])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_softmax_loss_is_that_of_torch_in_float64(shape, corrected, threads):
    """Ragged blocks and tiles, and so many items that exponentials are computed twice."""
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
    some = torch.isfinite(logits).any(dim=1)  # the way back through an empty sum is no number in torch
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
def test_rank_is_a_full_sort(shape, threads):
    """Whole numbers, so that many scores tie and none is rounded."""
    count, items, dim = shape
    torch.manual_seed(0)
    states, vectors = torch.randint(-2, 3, (count, dim)).float(), torch.randint(-2, 3, (items, dim)).float()
    rows = torch.randint(0, count, (3 * count,)).sort().values
    left_out = rows, torch.randint(0, items, (len(rows),))
    skipped = torch.rand(items) < 0.1
    targets = torch.randint(0, items, (count,))
    skipped[targets] = False
    scores = states @ vectors.T
    own = scores.gather(1, targets[:, None])
    scores[:, skipped] = -torch.inf
    scores[left_out] = -torch.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for k in {0, 1, min(10, items), items}:
        found = kernels.rank(states, vectors, k, left_out, skipped, targets)
        assert found.numbers
        assert torch.equal(found.greater, (scores > own).sum(dim=1))
        assert torch.equal(found.ties, (scores == own).sum(dim=1))
        values, columns = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(found.scores, values[:, :k])
        there = values[:, :k] > -torch.inf
        assert torch.equal(found.columns, torch.where(there, columns[:, :k], -1))
    torch.set_num_threads(before)
    assert kernels.rank(states, vectors, 1).columns[:, 0].tolist() == (states @ vectors.T).argmax(dim=1).tolist()


def test_a_target_ties_with_itself_alone():
    """Its score has the bits of the tile's, whatever the width and the place in the tile."""
    torch.manual_seed(0)
    for dim in (1, 7, 31, 64, 100):
        states, vectors = torch.randn(200, dim), torch.randn(700, dim)
        targets = torch.randint(0, 700, (200,))
        assert (kernels.rank(states, vectors, targets=targets).ties == 1).all()


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
                  (states, vectors, 1, None, None, torch.tensor([0, 0, 3]))):  # fmt: skip
        with pytest.raises(ValueError, match=r"don't fit|reach"):
            kernels.rank(*wrong)


def test_they_are_what_runs():
    x = torch.randn(8, 4, requires_grad=True)
    batch = batch_of([3, 5])
    layer, network = Attention(4, 4, 1, 0.0), FeedForward(4, (4,), 0.0)
    assert layer(x, x, group(batch)).grad_fn.name() == "_AttentionBackward"
    assert network(x, x).grad_fn.name() == "_FeedForwardBackward"
    drop = Dropout(0.5)
    seed_dropout([drop], [0])
    assert drop(x).grad_fn.name() == "_DropoutBackward"
    assert RowAdam(Tables(), 0.1).tables["table.weight"].compiled


def test_autocast_goes_to_torch():
    layer = FeedForward(8, (8,), 0.0)
    x = torch.randn(100, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.usable(x)
        assert (layer(x, x) - layer.float()(x, x)).abs().max() < 0.1


def test_gradients_survive_hooks_that_copy_what_is_saved():
    torch.manual_seed(0)
    layer = Attention(8, 8, 2, 0.0)
    x = torch.randn(30, 8, requires_grad=True)
    plain = torch.autograd.grad(layer(x, x, group(batch_of([10, 20]))).square().sum(), x)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.clone(), lambda saved: saved):
        out = layer(x, x, group(batch_of([10, 20]))).square().sum()
    assert torch.equal(torch.autograd.grad(out, x)[0], plain)


def test_second_derivatives_are_refused():
    x = torch.randn(6, 4, requires_grad=True)
    network = FeedForward(4, (4,), 0.0)
    (first,) = torch.autograd.grad(network(x, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_shapes_that_do_not_fit_are_refused():
    query, key_value, offsets = torch.zeros(4, 6), torch.zeros(4, 12), torch.tensor([0, 4])
    kernels.attention(query, key_value, offsets.int(), 1, True)
    for wrong in ((query[:3], key_value, offsets), (query, key_value[:3], offsets), (query, key_value, offsets + 1)):
        with pytest.raises(ValueError, match="are not of"):
            kernels.attention(*wrong, 1, True)
    with pytest.raises(ValueError, match="random words"):
        kernels.attention(query, key_value, offsets, 1, True, torch.zeros(3, dtype=torch.int16), 0.1)
    with pytest.raises(ValueError, match="don't fit"):
        kernels.score(torch.zeros(1, 6), torch.zeros(4, 5, 6))


def test_rows_that_the_table_does_not_have_are_torchs_to_refuse():
    model = Tables().train()
    optimizer = RowAdam(model, 0.1)
    for rows in (torch.tensor([1, 2]), torch.tensor([2, 3], dtype=torch.int32)):
        optimizer.zero_grad()
        model.table(rows).sum().backward()
        optimizer.step()
    before = model.table.weight.detach().clone()
    for row in (40, 10**9, -1):
        with pytest.raises(IndexError):
            model.table(torch.tensor([row]))
    assert torch.equal(model.table.weight, before)


def test_a_table_that_is_part_of_another_is_moved_where_it_is():
    whole = torch.zeros(6, 8)
    model = nn.ModuleDict({"table": nn.Embedding.from_pretrained(whole[:, :4], freeze=False, sparse=True)}).train()
    optimizer = RowAdam(model, 0.1)
    model["table"](torch.tensor([3])).sum().backward()
    optimizer.step()
    assert (whole != 0).nonzero().tolist() == [[3, column] for column in range(4)]


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 5, sparse=True)


def trained(steps: int, threads: int = 1) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = Tables().train()
        optimizer = RowAdam(model, 0.1, betas=(0.9, 0.98))
        random = np.random.default_rng(0)
        for step in range(steps):
            # Few rows a step with repetitions, so that rows wait for long.
            rows = torch.from_numpy(random.integers(0, 40, size=1 + step % 7).repeat(2))
            target = torch.from_numpy(random.normal(size=(len(rows), 5)).astype(np.float32))
            optimizer.zero_grad()
            more = model.table(rows[:1]).square().sum()
            ((model.table(rows) - target).square().sum() + more).backward()
            optimizer.step()
        optimizer.catch_up()
        return [model.table.weight.detach(), *(optimizer.tables["table.weight"].__dict__[n] for n in
                ("first", "second", "last"))]  # fmt: skip
    finally:
        torch.set_num_threads(before)


def test_torch_knows_of_their_changes():
    model = Tables().train()
    optimizer = RowAdam(model, 0.1)
    versions = [model.table.weight._version]
    for work in (optimizer.step, optimizer.catch_up):
        optimizer.zero_grad()
        model.table(torch.tensor([1, 2])).sum().backward()
        work()
        versions.append(model.table.weight._version)
    assert versions[0] < versions[1] <= versions[2]  # nothing was behind for the second


def test_adam_by_rows_does_the_same_without_them(monkeypatch):
    compiled = trained(150)
    monkeypatch.setattr(loader, "library", lambda: None)
    for mine, plain in zip(compiled, trained(150), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_byte_of_theirs():
    for one, two in zip(trained(60, 1), trained(60, 2), strict=True):
        assert torch.equal(one, two)
    torch.manual_seed(0)
    lengths = [3, 50, 1, 20, 8] * 9
    query, key_value = torch.randn(sum(lengths), 16), torch.randn(sum(lengths), 32)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        mine = [query.clone().requires_grad_(), key_value.clone().requires_grad_()]
        out = kernels.attention(*mine, offsets_of(lengths), 2, True)
        out.square().sum().backward()
        found.append([out, mine[0].grad, mine[1].grad])
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_other_types_go_to_torch():
    assert kernels.usable(torch.zeros(1))
    assert not kernels.usable(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not kernels.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.usable(torch.zeros(1, device="meta"))


def test_the_environment_turns_them_off():
    script = "from seqrec import kernels; print(kernels.library())"
    for value, expected in (("0", True), ("1", False)):
        environment = os.environ | {"SEQREC_KERNELS": value}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert (done.stdout == "None\n") == expected


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    sources, target = ROOT / "src" / "seqrec" / "kernels", tmp_path / "made"
    target.mkdir()
    monkeypatch.setenv("CXX", "false")
    assert set(hook.compile_kernels(sources, target).values()) == {"false failed"}
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert all("no-such-compiler" in reason for reason in hook.compile_kernels(sources, target).values())
    monkeypatch.delenv("CXX")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken.cpp").write_text("int f( {")
    assert all("error" in reason for reason in hook.compile_kernels(broken, target).values())
    assert not list(target.iterdir())
    assert set(hook.compile_kernels(sources, target).values()) == {""}
    assert {path.name for path in target.iterdir()} == {f"kernels-{name}.so.1" for name in hook.PROCESSORS}
    monkeypatch.setenv("PATH", "")
    assert all(reason.startswith("there is no C++") for reason in hook.compile_kernels(sources, target).values())


@pytest.mark.parametrize("processor", ["default", "avx2"])
def test_older_processors_have_loops_of_their_own(processor):
    """The same tests, with what torch says of the processor held down."""
    if os.environ.get("ATEN_CPU_CAPABILITY"):
        return
    which = "product or attention or softmax or loss or score or positions or block or adam or rank or target"
    tests = [str(Path(__file__)), "-k", which]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests],
        env=os.environ | {"ATEN_CPU_CAPABILITY": processor},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
