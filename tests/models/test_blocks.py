import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.draws import Draws
from seqrec.models.blocks import Attention, Dropout, FeedForward, dropouts_of, seed_dropout
from seqrec.models.grouping import group


def batch_of(lengths: list[int]) -> Batch:
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64)
    total = int(offsets[-1])
    positions = torch.cat([torch.arange(length) for length in [*lengths, 0]])
    zeros = torch.zeros(total, dtype=torch.int64)
    return Batch(
        items=zeros + 1,
        targets=zeros,
        positions=positions,
        offsets=offsets,
        users=torch.arange(len(lengths)),
        timestamps=zeros,
    )


def users_of(batch: Batch, x: Tensor) -> list[Tensor]:
    return [x[batch.offsets[row] : batch.offsets[row + 1]] for row in range(len(batch))]


# ---------------------------------------------------------------- dropout


def dropout_of(probability: float, seed: int = 0) -> Dropout:
    layer = Dropout(probability)
    seed_dropout(dropouts_of(layer), Draws([seed]))
    return layer


@pytest.mark.parametrize("probability", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_dropout_keeps_rate_expectation_and_variance(probability):
    count = 400_000
    x = torch.full((count // 4, 4), 3.0)
    dropped = dropout_of(probability)(x)
    assert dropped.dtype == x.dtype
    assert dropped.shape == x.shape
    kept = dropped != 0
    assert (dropped[kept] - 3 / (1 - probability)).abs().max() < 1e-2 * 3 / (1 - probability)
    spread = math.sqrt(probability * (1 - probability) / count)
    assert abs(kept.double().mean() - (1 - probability)) < 5 * spread + 1 / 65536
    scale = 3 / (1 - probability)
    assert abs(dropped.double().mean() - 3) < 5 * spread * scale
    variance = probability * (1 - probability) * scale**2
    assert dropped.double().var() == pytest.approx(variance, rel=0.1)
    # Neighbours that come from the same random word are independent, at each of its four places.
    flat = kept.double().flatten()
    for shift in (1, 2, 3, 4):
        pairs = (flat[shift:] - flat.mean()) * (flat[:-shift] - flat.mean())
        assert abs(pairs.mean()) < 5 * probability * (1 - probability) / math.sqrt(count)
    for place in range(4):
        assert abs(kept[:, place].double().mean() - (1 - probability)) < 10 * spread + 1 / 65536


class EveryWord:
    """Draws that return each 16-bit word once."""

    def words(self, *unit) -> np.ndarray:
        return np.arange(65536, dtype=np.uint16).view(np.int16)


@pytest.mark.parametrize("probability", [1e-5, 1 / 65536, 0.2, 0.5, 0.999, 0.9999999])
def test_dropout_drops_exactly_its_share_of_all_words(probability):
    layer = Dropout(probability)
    layer.random = EveryWord()
    mask = layer.kept(layer.words("rows", 65536))
    assert (mask == 0).sum() == min(round(probability * 65536), 65535)
    assert mask.double().mean().item() == pytest.approx(1, rel=1e-6)
    assert len(mask.unique()) == 2


def test_dropout_is_the_identity_in_eval_and_at_zero():
    x = torch.randn(100, 7)
    layer = dropout_of(0.5)
    assert (layer(x) != x).any()
    assert layer.eval()(x) is x
    assert dropout_of(0.0)(x) is x
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_dropout_without_a_seed_still_drops():
    torch.manual_seed(0)
    kept = (Dropout(0.25)(torch.ones(100_000)) != 0).double().mean()
    assert abs(kept - 0.75) < 0.01


def test_dropout_of_the_same_seed_and_of_another():
    x = torch.ones(1000)
    layer = dropout_of(0.5)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    seed_dropout(dropouts_of(layer), Draws([0]))
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    seed_dropout(dropouts_of(layer), Draws([0, 1]))
    assert not torch.equal(layer(x), first)
    together = nn.Sequential(Dropout(0.5), Dropout(0.5))
    seed_dropout(dropouts_of(together), Draws([0]))
    assert not torch.equal(together[0](x), together[1](x))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 4097])
def test_dropout_of_any_size(count):
    dropped = dropout_of(0.5)(torch.ones(count))
    assert dropped.shape == (count,)
    assert set(dropped.tolist()) <= {0.0, 2.0}


def test_dropout_passes_gradients_of_what_it_keeps():
    x = torch.randn(50, 4, requires_grad=True)
    dropped = dropout_of(0.5)(x)
    dropped.sum().backward()
    assert torch.equal(x.grad, (dropped != 0) * 2.0)


# ---------------------------------------------------------------- grouping


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 4), st.integers(0, 90)), max_size=20),
    width=st.sampled_from([1, 4, 64]),
    causal=st.booleans(),
)
def test_grouping(lengths, width, causal):
    batch = batch_of(lengths)
    grouping = group(batch, width, causal)
    total, places = sum(lengths), grouping.rows * grouping.width
    assert grouping.width >= max([1, *lengths])
    assert grouping.width <= max([width, *lengths])
    assert grouping.tokens.shape == (total,)
    assert grouping.places.shape == (places,)
    assert grouping.mask.shape == (grouping.rows, grouping.width, grouping.width)
    assert len(set(grouping.tokens.tolist())) == total
    assert torch.equal(grouping.places[grouping.tokens], torch.arange(total))
    # Next-fit: no two consecutive rows would fit into one, so at most about half of the places are empty.
    assert places <= 2 * total + 2 * grouping.width
    x = torch.arange(1.0, total + 1)[:, None] * torch.tensor([1.0, -1.0])
    spread = grouping.spread(x)
    assert spread.shape == (grouping.rows, grouping.width, 2)
    assert torch.equal(grouping.collect(spread), x)

    # Which places see which, computed by loops.
    users = batch.rows.tolist()
    token_at = dict(zip(grouping.tokens.tolist(), range(total), strict=True))
    for query_token in range(0, total, 7):
        place = int(grouping.tokens[query_token])
        row, query = divmod(place, grouping.width)
        seen = set()
        for key, value in enumerate(grouping.mask[row, query].tolist()):
            assert value in (0.0, -math.inf)
            if value == 0:
                seen.add(token_at[row * grouping.width + key])  # KeyError: an empty place was seen
        same = [t for t in range(total) if users[t] == users[query_token]]
        assert seen == {t for t in same if not causal or t <= query_token}
    assert (grouping.mask == 0).any(dim=2).all()  # no row of only -inf, whose softmax would be NaN


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), width=st.sampled_from([1, 8, 64]))
def test_gradients_of_spread_and_collect(lengths, width):
    batch = batch_of(lengths)
    grouping = group(batch, width)
    x = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(sum(lengths), 3, dtype=torch.float64)
    result = grouping.collect(grouping.spread(x).sin() * 2)
    (result * weights).sum().backward()
    torch.testing.assert_close(result, 2 * x.sin())
    torch.testing.assert_close(x.grad, weights * 2 * x.cos())


def test_gradcheck_of_spread_and_collect():
    grouping = group(batch_of([3, 0, 1, 2]), 4)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: grouping.collect(grouping.spread(x) ** 2), x)


# ---------------------------------------------------------------- attention


def naive_attention(layer: Attention, queries: Tensor, keys: Tensor, batch: Batch, causal: bool) -> Tensor:
    """Attention per user, per head and per query, in float64."""
    weight_k, weight_v = layer.key_value.weight.double().chunk(2)
    bias_k, bias_v = layer.key_value.bias.double().chunk(2)
    rows = []
    for q_in, k_in in zip(users_of(batch, queries.double()), users_of(batch, keys.double()), strict=True):
        q = q_in @ layer.query.weight.double().T + layer.query.bias.double()
        k = k_in @ weight_k.T + bias_k
        v = k_in @ weight_v.T + bias_v
        dim = q.shape[1] // layer.num_heads
        for t in range(len(q)):
            heads = []
            for head in range(layer.num_heads):
                part = slice(head * dim, (head + 1) * dim)
                last = t + 1 if causal else len(q)
                scores = k[:last, part] @ q[t, part] / math.sqrt(dim)
                weights = scores.exp() / scores.exp().sum()
                heads.append(weights @ v[:last, part])
            mixed = torch.cat(heads)
            if layer.output is not None:
                mixed = layer.output.weight.double() @ mixed + layer.output.bias.double()
            rows.append(mixed)
    return torch.stack(rows)


LENGTHS = [[5], [1, 1, 1], [3, 0, 7, 2, 0, 1], [0, 4]]
LONG = [70, 3, 64, 1, 0, 20]
WIDTHS = [(8, 1), (8, 2), (8, 8), (12, 1), (12, 3), (2, 2)]


def attention_of(embedding_dim=8, attention_dim=8, num_heads=1, dropout=0.0) -> Attention:
    torch.manual_seed(0)
    layer = Attention(embedding_dim, attention_dim, num_heads, dropout)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.6)
    return layer


@pytest.mark.parametrize(
    ("lengths", "width"), [*itertools.product(LENGTHS, WIDTHS), (LONG, (8, 2)), (LONG, (12, 3))], ids=str
)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_naive_loop(lengths, width, causal):
    attention_dim, num_heads = width
    layer = attention_of(8, attention_dim, num_heads)
    assert (layer.output is None) == (attention_dim == 8)
    batch = batch_of(lengths)
    queries, keys = torch.randn(2, sum(lengths), 8)
    result = layer(queries, keys, group(batch, causal=causal))
    expected = naive_attention(layer, queries, keys, batch, causal)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_gradients_of_attention(num_heads):
    layer = attention_of(4, 6, num_heads).double()
    batch = batch_of([3, 1, 0, 2])
    queries, keys = torch.randn(2, 6, 4, dtype=torch.float64)
    queries, keys = queries.requires_grad_(), keys.clone().requires_grad_()
    weights = torch.randn(6, 4, dtype=torch.float64)
    inputs = [queries, keys, *layer.parameters()]
    ours = torch.autograd.grad((layer(queries, keys, group(batch, 4)) * weights).sum(), inputs)
    expected = (naive_attention(layer, queries, keys, batch, True) * weights).sum()
    for a, b in zip(ours, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda q, k: layer(q, k, group(batch, 4)), (queries, keys))


@pytest.mark.parametrize("num_heads", [1, 2])
def test_attention_of_nothing(num_heads):
    layer = attention_of(num_heads=num_heads)
    for lengths in ([], [0], [0, 0, 0]):
        assert layer(torch.randn(0, 8), torch.randn(0, 8), group(batch_of(lengths))).shape == (0, 8)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_empty_places_and_other_users_never_leak(size):
    # Token 0 is at every empty place; a change of it may only affect its own user.
    layer = attention_of()
    lengths = [2, 5, 1, 0, 63, 9]
    batch = batch_of(lengths)
    x = torch.randn(sum(lengths), 8)
    changed = x.clone()
    changed[0] = size * torch.randn(8)
    grouping = group(batch)
    before, after = layer(x, x, grouping), layer(changed, changed, grouping)
    assert torch.equal(before[2:], after[2:])
    assert not torch.equal(before[:2], after[:2])
    x.requires_grad_()
    layer(x, x, grouping)[2:].sum().backward()
    assert (x.grad[:2] == 0).all()
    assert torch.isfinite(x.grad).all()


def test_attention_stays_finite_with_large_scores():
    layer = attention_of()
    x = (100 * torch.randn(20, 8)).requires_grad_()
    result = layer(x, x, group(batch_of([7, 13])))
    assert torch.isfinite(result).all()
    result.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("hidden", [(5,), (16, 3), (7, 7, 7)])
def test_feed_forward(hidden):
    torch.manual_seed(0)
    layer = FeedForward(6, hidden, 0.0)
    x = torch.randn(9, 6)
    expected = x.double().detach()
    widths = []
    for number, linear in enumerate(layer.layers):
        expected = expected @ linear.weight.double().T + linear.bias.double()
        if number < len(hidden):
            expected = expected.clamp(min=0)
            widths.append(linear.out_features)
    assert tuple(widths) == hidden
    residual = torch.randn(len(x), 6)
    torch.testing.assert_close(layer(x, residual).double(), residual + expected, rtol=1e-4, atol=1e-5)
