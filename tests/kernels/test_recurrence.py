"""A block of LRURec in one compiled pass, against torch in float64."""

from dataclasses import replace

import pytest
import torch
from packed import batch_of, offsets_of
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.draws import Draws
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.lrurec import LRURecBlock, LRURecConfig

pytestmark = pytest.mark.loops


def block_of(dim: int, states: int, hidden: int, dropout: float = 0.0) -> LRURecBlock:
    torch.manual_seed(0)
    config = LRURecConfig(embedding_dim=dim, state_dim=states, feedforward_dim=hidden, dropout=dropout)
    block = LRURecBlock(config)
    block.reset()
    for name, parameter in block.named_parameters():  # including norms and biases, whose initial values are 1 and 0
        if name != "exponents":
            nn.init.normal_(parameter, mean=0.1, std=0.4)
    return block


def tokens_of(lengths: list[int]) -> Batch:
    return replace(batch_of(lengths), positions=torch.cat([torch.arange(length) for length in lengths]))


@pytest.mark.parametrize(("dim", "states", "hidden"), [(12, 24, 48), (5, 1, 1), (34, 5, 40), (16, 33, 7)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_block_is_that_of_torch_in_float64(dim, states, hidden, dropout, threads):
    lengths = [1, 7, 150, 3, 0, 12, *[5] * 40]  # one longer than a chunk, and several that share one
    block, batch = block_of(dim, states, hidden, dropout), tokens_of(lengths)
    x, upstream = torch.randn(sum(lengths), dim), torch.randn(sum(lengths), dim)
    found = []
    before = torch.get_num_threads()
    for kind in (torch.float32, torch.float64):
        torch.set_num_threads(threads)
        block = block.to(kind)
        block.zero_grad()
        seed_dropout(dropouts_of(block), Draws([1]))
        given = x.to(kind, copy=True).requires_grad_()
        out = block(given, batch)
        assert (out.grad_fn.name() == "_FunctionBackward") == (kind == torch.float32)
        out.backward(upstream.to(kind))
        found.append([out, given.grad, *(parameter.grad.clone() for parameter in block.parameters())])
        # Both have drawn the same number of random numbers.
        found[-1].append(torch.from_numpy(block.dropout.random.words("rows", 3)))
    torch.set_num_threads(before)
    for compiled, plain in zip(*found, strict=True):
        error = (compiled.double() - plain).abs().max() / plain.abs().max().clamp_min(1e-3)
        assert error < 5e-5


def test_a_block_of_the_last_tokens_alone_is_that_of_all():
    lengths = [1, 7, 150, 3, 12, *[2] * 70]
    block, batch = block_of(12, 9, 20, 0.5).eval(), tokens_of(lengths)
    x = torch.randn(sum(lengths), 12)
    with torch.no_grad():
        everything = block(x, batch)
        torch.testing.assert_close(block(x, batch, batch.last), everything[batch.last], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block(x, batch), everything)  # saving states for backward changes nothing
    with_gradients = block(x, batch, batch.last)
    assert with_gradients.requires_grad
    torch.testing.assert_close(with_gradients, everything[batch.last], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -3.0, -6.0, 9.0, -20.0, 1e4, -1e4])
def test_gelu_at_its_edges(value):
    """A network of one number and one state, whose recurrence adds nothing."""
    block = block_of(1, 1, 1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.inner.bias.fill_(value)
        block.outer.weight.fill_(1.0)
        block.feedforward_norm.bias.fill_(2.0)
    batch, found = tokens_of([1, 2]), []
    for kind in (torch.float32, torch.float64):
        block = block.to(kind)
        block.zero_grad()
        block(torch.zeros(3, 1, dtype=kind), batch).sum().backward()
        found.append([parameter.grad.double().clone() for parameter in block.parameters()])
    for compiled, plain in zip(*found, strict=True):
        assert compiled.isfinite().all()
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)


def test_a_block_that_somebody_changed_goes_to_torch():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    block, batch, x = block_of(6, 4, 5), tokens_of([3, 4]), torch.randn(7, 6)
    plain = block(x, batch)
    other = Doubled(8, 6)
    other.load_state_dict(block.output.state_dict())
    block.output = other
    assert not torch.allclose(block(x, batch), plain)


def test_the_last_tokens_alone_have_no_gradients():
    block, x = block_of(6, 4, 5), torch.zeros(5, 6, requires_grad=True)
    parts = block.output, block.recurrence_norm, block.inner, block.outer, block.feedforward_norm
    parameters = [block.factors(), *block.scaled_input(), *(one for part in parts for one in part.parameters())]
    with pytest.raises(ValueError, match="no gradients"):
        kernels.recurrent_block(x, offsets_of([2, 3]), parameters, 1e-5, last_only=True)
