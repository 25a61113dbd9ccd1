"""Gated attention in one compiled pass, against a loop over pairs and against torch, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from packed import batch_of, offsets_of
from torch import Tensor

from seqrec import kernels
from seqrec.data.draws import Draws
from seqrec.kernels import layers
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.hstu import HSTUBlock, HSTUConfig, around, time_edges

pytestmark = pytest.mark.loops


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def by_pairs(
    mixed: Tensor,
    lengths: list[int],
    positions: Tensor,
    heads: int,
    share: float,
    times: Tensor | None,
    seconds: Tensor,
) -> Tensor:
    """The definition, one pair at a time."""
    dim = mixed.shape[1] // 4
    rows, start = [], 0
    for length in lengths:
        u, v, q, k = silu(mixed[start : start + length]).split(dim, dim=1)
        for i in range(length):
            total = [torch.zeros(dim // heads, dtype=mixed.dtype)] * heads
            for j in range(i + 1):
                bias = positions[i - j]
                if times is not None:
                    apart = abs(int(seconds[start + i]) - int(seconds[start + j]))
                    bias = bias + times[0 if apart < 1 else min(len(times) - 1, int(np.log(apart) / 0.301))]
                for head in range(heads):
                    own = slice(head * dim // heads, (head + 1) * dim // heads)
                    weight = share * silu((q[i, own] * k[j, own]).sum() + bias)
                    total[head] = total[head] + weight * v[j, own]
            row = torch.cat(total)
            row = (row - row.mean()) / ((row - row.mean()).square().mean() + 1e-6).sqrt()
            rows.append(u[i] * row)
        start += length
    return torch.stack(rows) if rows else mixed.new_zeros(0, dim)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 6, 9, 11])  # of 1, 2 and 3 heads, and of windows of 3 to 26
def test_it_is_the_definition_for_random_shapes(seed):
    random = np.random.default_rng(seed)
    heads, window = int(random.choice([1, 2, 3])), int(random.integers(1, 30))
    dim = heads * int(random.integers(1, 20))
    lengths = [*random.integers(0, window + 1, 4).tolist(), window]
    total, share = sum(lengths), float(random.uniform(0.01, 2))
    torch.manual_seed(seed)
    seconds = torch.from_numpy(random.integers(0, 10 ** random.integers(1, 18), total))
    edges = time_edges(int(random.integers(1, 145)))
    mixed, positions, times = torch.randn(total, 4 * dim), torch.randn(window), torch.randn(len(edges) + 1)
    upstream, offsets = torch.randn(total, dim), offsets_of(lengths)
    for with_times in (True, False):
        ours = [x.clone().requires_grad_() for x in (mixed, positions, times)]
        wide = [x.double().requires_grad_() for x in (mixed, positions, times)]
        buckets = kernels.time_buckets(seconds, offsets, edges) if with_times else None
        found = kernels.gated_attention(
            ours[0], offsets, ours[1], heads, share, 1e-6, ours[2] if with_times else None, buckets
        )
        expected = by_pairs(wide[0], lengths, wide[1], heads, share, wide[2] if with_times else None, seconds)
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-4)
        found.backward(upstream)
        expected.backward(upstream.double())
        for one, other in zip(ours[: 3 if with_times else 2], wide, strict=False):
            error = (one.grad.double() - other.grad).abs().max() / other.grad.abs().max().clamp_min(1e-3)
            assert error < 2e-3


@pytest.mark.parametrize(
    ("heads", "dim", "dropout", "buckets", "threads"),
    [  # every two of them meet
        (1, 12, 0.0, 0, 1), (1, 12, 0.4, 128, 3), (3, 12, 0.0, 128, 1), (3, 12, 0.4, 0, 3), (2, 34, 0.0, 128, 3),
        (2, 34, 0.4, 0, 1), (2, 34, 0.4, 128, 1),
    ],
)  # fmt: skip
def test_a_layer_is_that_of_torch_in_float64(heads, dim, dropout, buckets, threads):
    lengths = [1, 7, 150, 3, 0, 12, *[5] * 40]
    torch.manual_seed(0)
    config = HSTUConfig(max_length=150, embedding_dim=dim, num_heads=heads, dropout=dropout, time_buckets=buckets)
    block = HSTUBlock(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.4)
    places = torch.cat([torch.arange(length) for length in lengths])
    batch = replace(batch_of(lengths), positions=places, timestamps=10**9 + 977 * places**3)
    x, upstream = torch.randn(sum(lengths), dim), torch.randn(sum(lengths), dim)
    found = []
    before = torch.get_num_threads()
    for kind in (torch.float32, torch.float64):
        torch.set_num_threads(threads)
        block = block.to(kind)
        block.zero_grad()
        seed_dropout(dropouts_of(block), Draws([1]))
        states = x.to(kind, copy=True).requires_grad_()
        out = block(states, around(batch, buckets, compiled=kind == torch.float32))
        out.backward(upstream.to(kind))
        found.append([out, states.grad, *(parameter.grad.clone() for parameter in block.parameters())])
        # Both have drawn the same number of random numbers.
        found[-1].append(torch.from_numpy(block.dropout.random.words("rows", 3)))
    torch.set_num_threads(before)
    for compiled, plain in zip(*found, strict=True):
        error = (compiled.double() - plain).abs().max() / plain.abs().max().clamp_min(1e-3)
        assert error < 1e-4


def test_the_bytes_are_the_same_again_on_several_threads():
    torch.manual_seed(0)
    lengths = [*range(30), 3, 4, 100]
    offsets, before = offsets_of(lengths), torch.get_num_threads()
    mixed, positions = torch.randn(sum(lengths), 32).requires_grad_(), torch.randn(100).requires_grad_()
    found: list[list[Tensor]] = []
    for threads in (3, 3, 3, 1):
        torch.set_num_threads(threads)
        out = kernels.gated_attention(mixed, offsets, positions, 2, 0.1, 1e-6)
        found.append([out, *torch.autograd.grad(out.square().sum(), [mixed, positions])])
    torch.set_num_threads(before)
    for other in found[1:3]:
        assert all(map(torch.equal, other, found[0]))
    assert all(map(torch.equal, found[3][:2], found[0][:2]))  # only sums over users depend on the number of threads
    torch.testing.assert_close(found[3][2], found[0][2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_buckets_of_times(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, 6)
    offsets = offsets_of(lengths.tolist())
    times = torch.from_numpy(random.integers(0, 10 ** random.integers(1, 19), lengths.sum()))
    edges = time_edges(int(random.integers(1, 145)))
    found, place, width = kernels.time_buckets(times, offsets, edges).numpy(), 0, 0
    for start, length in zip(offsets.tolist(), lengths.tolist(), strict=False):
        width = layers.weights_of(np.array([length])) // max(length, 1)
        for i in range(length):
            own = [int((edges <= abs(int(times[start + i] - times[start + j]))).sum()) for j in range(i + 1)]
            assert found[place : place + width].tolist() == own + [0] * (width - i - 1)
            place += width
    assert place == len(found)


def test_times_at_the_ends_of_their_type_do_no_harm():
    times = torch.tensor([2**63 - 1, -(2**63), 0, 2**62, 2**62])
    found = kernels.time_buckets(times, offsets_of([5]), time_edges(144))
    assert found.min() == 0
    assert found.max() <= 144
    assert kernels.time_buckets(times[:0], offsets_of([0, 0]), time_edges(3)).tolist() == []
