"""A complete block in one compiled pass, against torch in float64."""

import pytest
import torch
from packed import batch_of, offsets_of
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.draws import Draws
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.models.grouping import group
from seqrec.models.sasrec import SASRecBlock, SASRecConfig

pytestmark = pytest.mark.loops


def block_of(norm: str, heads: int, dropout: float, hidden: int, dim: int = 12) -> SASRecBlock:
    torch.manual_seed(0)
    config = SASRecConfig(embedding_dim=dim, num_heads=heads, dropout=dropout, feedforward_dims=(hidden,), norm=norm)
    block = SASRecBlock(config)
    for parameter in block.parameters():  # including norms and biases, whose initial values are 1 and 0
        nn.init.normal_(parameter, mean=0.1, std=0.4)
    return block


@pytest.mark.parametrize("norm", ["paper", "pre", "post"])
@pytest.mark.parametrize(("heads", "hidden", "dim"), [(1, 12, 12), (3, 5, 12), (2, 40, 34)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_whole_block_is_that_of_torch_in_float64(norm, heads, hidden, dim, dropout, threads):
    lengths = [1, 7, 150, 3, 0, 12, *[5] * 40]  # one longer than a chunk, and several that share one
    block = block_of(norm, heads, dropout, hidden, dim)
    x = torch.randn(sum(lengths), dim)
    upstream = torch.randn(sum(lengths), dim)
    found = []
    before = torch.get_num_threads()
    for kind in (torch.float32, torch.float64):
        torch.set_num_threads(threads)
        block = block.to(kind)
        block.zero_grad()
        seed_dropout(dropouts_of(block), Draws([1]))
        states = x.to(kind, copy=True).requires_grad_()
        out = block(states, group(batch_of(lengths)))
        assert (out.grad_fn.name() == "_FunctionBackward") == (kind == torch.float32)
        out.backward(upstream.to(kind))
        found.append([out, states.grad, *(parameter.grad.clone() for parameter in block.parameters())])
        # Both have drawn the same number of random numbers.
        found[-1].append(torch.from_numpy(block.feedforward.dropout.random.words("rows", 3)))
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
    torch.testing.assert_close(block(x, group(batch)), everything)  # saving states for backward changes nothing
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
    kernels.attention_block(x, offsets, parameters, 1, "paper", 1e-8)
    short = [torch.zeros(3, dtype=torch.int16)] * 3
    for wrong in ((x[:3], offsets, parameters, 1), (x, offsets, parameters[:-1], 1), (x, offsets, parameters, 5),
                  (x[:, :6].contiguous(), offsets, parameters, 1)):  # fmt: skip
        with pytest.raises(ValueError, match=r"takes|parameters"):
            kernels.attention_block(*wrong, "paper", 1e-8)
    with pytest.raises(ValueError, match="takes words"):
        kernels.attention_block(x, offsets, parameters, 1, "paper", 1e-8, short, 0.1)
    with pytest.raises(ValueError, match="no gradients"):
        kernels.attention_block(x, offsets, parameters, 1, "paper", 1e-8, last_only=True)
