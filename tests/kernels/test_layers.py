"""Compiled layers against naive loops and against their equivalents in torch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import batch_of, offsets_of
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.draws import Draws
from seqrec.kernels import loader
from seqrec.models.blocks import Attention, Dropout, FeedForward, add_positions, dropouts_of, seed_dropout
from seqrec.models.grouping import group

pytestmark = pytest.mark.loops


def naive(query: Tensor, key_value: Tensor, lengths: list[int], heads: int, causal: bool,
          words: Tensor | None, dropout: float) -> Tensor:  # fmt: skip
    """Attention pair by pair, as described in the docstring."""
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
    with torch.inference_mode():  # in which nothing is saved for backward
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
        seed_dropout(dropouts_of(layer), Draws([1]))
        layer.zero_grad()
        states = x.clone().requires_grad_()
        out = layer(states, states, group(batch_of(lengths), causal=causal))
        out.square().sum().backward()
        found.append([out, states.grad, *(parameter.grad for parameter in layer.parameters())])
        # Both have drawn the same number of random numbers.
        found[-1].append(torch.from_numpy(layer.dropout.random.words("rows", 3)))
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
        seed_dropout(dropouts_of(layer), Draws([1]))
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
        seed_dropout([layer], Draws([3]))
        out = add_positions(x, batch, table, layer, scale)
        results.append((out, *torch.autograd.grad(out, (x, table.weight), upstream)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    # The last token of each user has the last position, whatever the length of the history.
    last = batch.offsets[1:][batch.lengths > 0] - 1
    kept = results[0][0][last] != 0
    expected = (scale * x[last] + table.weight[-1]) / (1 - round(dropout * 65536) / 65536)
    torch.testing.assert_close(results[0][0][last][kept], expected[kept])


def test_positions_beyond_the_window_are_refused():
    with pytest.raises(ValueError, match="takes"):
        kernels.positions(torch.zeros(4, 2), torch.zeros(3, 2), offsets_of([4]), 1.0)


def test_dropout_does_the_same_without_them(monkeypatch):
    layer = Dropout(0.3)
    x = torch.randn(50, 101)
    found = []
    for there in (True, False):
        if not there:
            monkeypatch.setattr(loader, "library", lambda: None)
        seed_dropout([layer], Draws([1]))
        mine = x.clone().requires_grad_()
        out = layer(mine)
        out.square().sum().backward()
        found.append([out, mine.grad])
    assert all(torch.equal(compiled, plain) for compiled, plain in zip(*found, strict=True))


def test_they_are_what_runs():
    x = torch.randn(8, 4, requires_grad=True)
    batch = batch_of([3, 5])
    layer, network = Attention(4, 4, 1, 0.0), FeedForward(4, (4,), 0.0)
    assert layer(x, x, group(batch)).grad_fn.name() == "_AttentionBackward"
    assert network(x, x).grad_fn.name() == "_FeedForwardBackward"
    drop = Dropout(0.5)
    seed_dropout([drop], Draws([0]))
    assert drop(x).grad_fn.name() == "_DropoutBackward"


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
        with pytest.raises(ValueError, match="takes"):
            kernels.attention(*wrong, 1, True)
    with pytest.raises(ValueError, match="takes words"):
        kernels.attention(query, key_value, offsets, 1, True, torch.zeros(3, dtype=torch.int16), 0.1)
    with pytest.raises(ValueError, match="takes"):
        kernels.score(torch.zeros(1, 6), torch.zeros(4, 5, 6))


def test_the_number_of_threads_changes_no_byte_of_attention():
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


@pytest.mark.parametrize("heads", [0, 4])
def test_heads_that_do_not_divide_the_width_are_refused_by_the_layer(heads):
    with pytest.raises(ValueError, match="not a multiple"):
        Attention(6, 6, heads, 0.0)
