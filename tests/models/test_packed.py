"""Attention of packed tokens by torch's fused kernels, which run only on a GPU: here in their place is plain torch."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from seqrec.data.batches import Batch
from seqrec.models import packed
from seqrec.models.blocks import Attention
from seqrec.models.grouping import group
from seqrec.models.packed import attend_packed, can_attend_packed

LENGTHS = [[3, 1, 5], [1], [64, 2, 33, 7, 1, 1], [8] * 9]


def batch_of(lengths: list[int]) -> Batch:
    offsets = torch.from_numpy(np.cumsum([0, *lengths]))
    zeros = torch.zeros(int(offsets[-1]), dtype=torch.int64)
    return Batch(zeros, zeros, zeros, offsets, torch.arange(len(lengths)), zeros)


@pytest.fixture
def fused(monkeypatch):
    """An attention kernel for the CPU with the signature and the meaning of torch's for CUDA."""
    calls = []

    def forward(
        query, key, value, starts, key_starts, longest, key_longest, dropout, causal, debug, *, scale=None, **_
    ):
        calls.append((longest, dropout, causal))
        assert torch.equal(starts, key_starts)
        assert starts.dtype == torch.int32
        out = torch.empty_like(query)
        for start, end in pairwise(starts):
            assert end - start <= longest == key_longest
            q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
            scores = q @ k.transpose(1, 2) * scale
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
            out[start:end] = (scores.softmax(dim=2) @ v).transpose(0, 1)
        nothing = torch.zeros(())
        return out, nothing, nothing, nothing, nothing

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    monkeypatch.setattr("torch.nested._internal.sdpa.can_use_flash_attention", lambda *_: True)
    monkeypatch.setattr(packed, "_has_fused_kernels", lambda device: True)
    monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)
    yield calls
    library._destroy()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention_is_grouped_attention(lengths, heads, causal, fused, monkeypatch):
    torch.manual_seed(heads)
    attention = Attention(32, 32, heads, dropout=0.3).eval()
    grouping = group(batch_of(lengths), causal=causal)
    x = torch.randn(sum(lengths), 32)
    with torch.no_grad():
        found = attention(x, x, grouping)
        last = grouping.offsets[1:] - 1
        of_last = attention(x[last], x, grouping, last)
        assert len(fused) == 2
        assert fused[0] == (max(lengths), 0.0, causal)
        monkeypatch.setattr(packed, "_has_fused_kernels", lambda device: False)
        expected = attention(x, x, grouping)
    assert len(fused) == 2  # not used again
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of_last, expected[last])


def test_the_kernel_drops_weights_in_training(fused):
    attention = Attention(16, 16, 2, dropout=0.3).train()
    x = torch.randn(9, 16)
    with torch.no_grad():
        attention(x, x, group(batch_of([4, 5])))
    assert fused == [(5, 0.3, True)]


@pytest.mark.parametrize(
    ("width", "lengths", "dtype", "can"),
    [
        (32, [3, 1], torch.float32, True),
        (32, [3, 1], torch.bfloat16, True),
        (32, [3, 1], torch.float64, False),
        (20, [3, 1], torch.float32, False),  # heads of 10
        (1024, [3, 1], torch.float32, False),  # heads of 512
        (32, [3, 0], torch.float32, False),
        (32, [], torch.float32, False),
    ],
)
def test_what_the_kernels_cant_do_is_grouped(width, lengths, dtype, can, monkeypatch):
    monkeypatch.setattr(packed, "_has_fused_kernels", lambda device: True)
    query = torch.zeros(sum(lengths), width, dtype=dtype)
    assert can_attend_packed(query, group(batch_of(lengths)), 2) == can
    monkeypatch.undo()
    assert not can_attend_packed(query, group(batch_of(lengths)), 2)  # on the CPU


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_a_gpu_attends_packed_as_the_cpu_does_in_groups(dtype, causal):
    torch.manual_seed(0)
    lengths = LENGTHS[2]
    query, key_value = torch.randn(sum(lengths), 32), torch.randn(sum(lengths), 64)
    inputs, there = [query, key_value], [x.to("cuda", dtype).requires_grad_() for x in (query, key_value)]
    inputs = [x.to(dtype).float().requires_grad_() for x in inputs]
    batch = batch_of(lengths)
    grouping, grouping_there = group(batch, causal=causal), group(batch.to("cuda"), causal=causal)
    if not can_attend_packed(there[0], grouping_there, 2):
        pytest.skip("this GPU has no fused kernels")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = attend_packed(*there, grouping_there, 2, 0.0)
        gradients = torch.autograd.grad(found.square().sum(), there)
        attend_packed(*there, grouping_there, 2, 0.5).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = Attention(32, 32, 2, 0.0)._in_torch(*inputs, grouping, None)
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found.float().cpu(), expected, **close)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(mine.float().cpu(), theirs, **close)
