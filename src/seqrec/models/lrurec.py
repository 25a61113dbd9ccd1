"""LRURec: linear recurrent units for sequential recommendation (Yue et al., WSDM 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import pi
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Range
from seqrec.device import not_compiled
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout
from seqrec.models.features import FeatureOptions, ItemEmbedding, UserEncoder

#: Absolute values that the factors of the recurrence start between: the ring of the authors' code.
RING = 0.8, 0.99


@dataclass(frozen=True)
class LRURecConfig(FeatureOptions):
    """Sizes and regularisation of LRURec.

    Args:
        max_length: Number of most recent items of a history that the model sees. By default chosen from the log:
            50, 100 or 200.
        embedding_dim: Width of the item embeddings and hidden states.
        num_blocks: Number of blocks, each a linear recurrence and a point-wise network.
        state_dim: Number of complex states in a recurrence. By default twice ``embedding_dim``.
        feedforward_dim: Hidden width of the point-wise network. By default four times ``embedding_dim``.
        dropout: Dropout on the embedded input, the output of the recurrence and the point-wise network. By default
            chosen from the log: 0.2, as in the authors' code, or 0.3 for histories of medium length.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50, "dropout": 0.2}

    max_length: Length | None = None
    embedding_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    state_dim: Count | None = None
    feedforward_dim: Count | None = None
    dropout: Dropped | None = None

    def resolved(self) -> "LRURecConfig":
        """A copy in which ``PLAIN`` and the widths that follow from ``embedding_dim`` are filled in."""
        states, width = self.state_dim or 2 * self.embedding_dim, self.feedforward_dim or 4 * self.embedding_dim
        return replace(super().resolved(), state_dim=states, feedforward_dim=width)


class LRURecBlock(nn.Module):
    """A linear recurrence with complex states and a point-wise network, each with a residual, then a layer norm.

        h_t = lambda * h_(t-1) + exp(gamma) * (B x_t + b)      lambda = exp(-exp(nu) + i exp(theta))
        y_t = LayerNorm(x_t + Dropout(Re(C h_t) + c))
        z_t = LayerNorm(y_t + Dropout(W2 Dropout(GELU(W1 y_t + b1)) + b2))

    The absolute value of lambda is below 1 for every nu, so states stay bounded however long the history is.

    ``exponents`` holds nu, theta and gamma, one per state. A complex number is a pair of real ones: ``input`` has the
    rows of B and b that make the real parts, then those that make the imaginary parts, and ``output`` the columns of C
    in the same order (with the sign of the imaginary parts in its weights).
    """

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        assert config.state_dim is not None  # a resolved config has sizes
        assert config.feedforward_dim is not None
        assert config.dropout is not None
        dim = config.embedding_dim
        self.exponents = nn.Parameter(torch.empty(3, config.state_dim))
        self.input = nn.Linear(dim, 2 * config.state_dim)
        self.output = nn.Linear(2 * config.state_dim, dim)
        self.recurrence_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, config.feedforward_dim)
        self.outer = nn.Linear(config.feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def factors(self) -> Tensor:
        """``lambda float32[2 * N]``: the real parts, then the imaginary parts."""
        decay, angle = self.exponents[:2].exp()
        return (-decay).exp().repeat(2) * torch.cat([angle.cos(), angle.sin()])

    def scaled_input(self) -> tuple[Tensor, Tensor]:
        """``exp(gamma) B``, ``[2 * N, D]``, and ``exp(gamma) b``, ``[2 * N]``: cheaper than to scale every token."""
        scale = self.exponents[2].exp().repeat(2)
        return self.input.weight * scale[:, None], self.input.bias * scale

    def forward(self, x: Tensor, batch: Batch, last: Tensor | None = None) -> Tensor:
        """Packed ``[T, D]`` to ``[T, D]``; with ``last int64[B]``, to ``[B, D]`` for the users' last tokens only."""
        if self._has_kernel(x, last):
            return self._run_kernel(x, batch, last is not None)
        states = recurrence(F.linear(x, *self.scaled_input()), self.factors(), batch)
        if last is not None:
            states, x = states.index_select(0, last), x.index_select(0, last)
        x = self.recurrence_norm(x + self.dropout(self.output(states)))
        wide = self.dropout(F.gelu(self.inner(x)))
        out: Tensor = self.feedforward_norm(x + self.dropout(self.outer(wide)))
        return out

    def _has_kernel(self, x: Tensor, last: Tensor | None) -> bool:
        """Whether ``kernels.recurrent_block`` computes this block: unless a layer has been replaced."""
        layers = self.input, self.output, self.inner, self.outer
        norms = self.recurrence_norm, self.feedforward_norm
        plain = {*map(type, layers)} == {nn.Linear} and {*map(type, norms)} == {nn.LayerNorm}
        seeded = not self.dropout.active or (last is None and self.dropout.random is not None)
        gradients = last is not None and torch.is_grad_enabled()
        return plain and seeded and not gradients and kernels.usable(x, *self.parameters())

    def _run_kernel(self, x: Tensor, batch: Batch, last_only: bool) -> Tensor:
        """The same as ``forward``, with the same random numbers, in one compiled pass."""
        parts = self.output, self.recurrence_norm, self.inner, self.outer, self.feedforward_norm
        parameters = [self.factors(), *self.scaled_input(), *(one for part in parts for one in part.parameters())]
        dropout, words = self.dropout, None
        if dropout.active:
            widths = [part.out_features for part in (self.output, self.inner, self.outer)]
            words = [dropout.words("tokens", len(x), width) for width in widths]
        epsilon = self.recurrence_norm.eps
        return kernels.recurrent_block(x, batch.offsets, parameters, epsilon, words, dropout.probability, last_only)

    @torch.no_grad()
    def reset(self) -> None:
        """Initialise nu, theta and gamma: lambda uniform in the ring, and states that start with one variance."""
        low, high = RING[0] ** 2, RING[1] ** 2
        radius, turn = torch.empty_like(self.exponents[:2]).uniform_()
        squared = low + (high - low) * radius  # |lambda| ** 2
        # 1 - turn is never 0, whose logarithm is not finite.
        rows = (-0.5 * squared.log()).log(), (2 * pi * (1 - turn)).log(), 0.5 * (1 - squared).log()
        self.exponents.copy_(torch.stack(rows))


class LRURec(Model):
    """The model of the paper, with the details of the authors' code.

    - Embedding: ``LayerNorm(Dropout(e))``, without positions. The recurrence knows the order.
    - Blocks: see :class:`LRURecBlock`.
    - Output: dot product with the item embeddings, which input and output share, and a bias per item. The hidden state
      has a constant column of 1 for it.
    - Recursive parallelisation: :func:`doubled`, which a GPU uses, has as many steps, log2(L), but needs no histories
      that are padded to a power of two. On the CPU, a block is one compiled pass that goes from token to token.
    - Loss: the softmax over the full catalogue, which the recipe chooses if the log is small enough.

    Differences: the optimizer is Adam as for the other models, without the authors' weight decay (0.01 in their code,
    by AdamW). Their code draws biases, too, from the narrow normal distribution of the matrices; here they start at 0.
    """

    Config = LRURecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding", "item_bias"})
    VECTORS_OF_ITEMS = True
    BIAS_COLUMN = True
    config: LRURecConfig

    def __init__(self, config: LRURecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        assert config.dropout is not None
        dim = config.embedding_dim
        self.item_embedding = ItemEmbedding(num_items, dim, config)
        self.user_encoder = UserEncoder(num_users, dim, config)
        self.item_bias = nn.Embedding(num_items + 1, 1)
        self.dropout = Dropout(config.dropout)
        self.embedding_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(LRURecBlock(config) for _ in range(config.num_blocks))
        self.reset()

    def reset(self) -> None:
        """Initialise the weights. Matrices: normal, with standard deviation 0.02, truncated at 0.04.

        With Glorot's rule for the matrices of the blocks, NDCG@10 on validation items of games.txt is .050 after 6
        epochs of sampled softmax, and .057 like this.
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(module.bias)
            elif isinstance(module, LRURecBlock):
                module.reset()
        nn.init.trunc_normal_(self.item_embedding.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.item_bias.weight)
        self.item_embedding.reset_rest(0.02)
        self.user_encoder.reset(0.02)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D + 1]`` of the tokens; the last column is 1."""
        return self._states(batch, None)

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D + 1]`` of the users' last tokens; the last column is 1."""
        return self._states(batch, batch.last)

    def _states(self, batch: Batch, last: Tensor | None) -> Tensor:
        x = self.embedding_norm(self.dropout(self.user_encoder(self.item_embedding(batch.items), batch)))
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, batch, last if number == len(self.blocks) else None)
        x = x if last is None or len(self.blocks) else x.index_select(0, last)
        return F.pad(x, (0, 1), value=1.0)

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D + 1]``; the last column is the bias."""
        return torch.cat([self.item_embedding.all(), self.item_bias.weight], dim=1)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D + 1]`` of some items."""
        return torch.cat([self.item_embedding(items), self.item_bias(items)], dim=-1)


@not_compiled  # the number of steps changes with every batch
def recurrence(x: Tensor, factors: Tensor, batch: Batch) -> Tensor:
    """States of the recurrence ``h_t = factor * h_(t-1) + x_t`` within each user, ``[T, 2 * N]``.

    Args:
        x: inputs of the packed tokens, ``[T, 2 * N]``: real parts, then imaginary parts.
        factors: ``[2 * N]``, likewise.
        batch: the tokens.
    """
    lengths = np.diff(batch.host_offsets.numpy())
    states: Tensor = _Recurrence.apply(x, factors, batch.positions, int(lengths.max(initial=0)))
    return states


def doubled(x: Tensor, factors: Tensor, positions: Tensor, longest: int, backwards: bool = False) -> Tensor:
    """The recurrence in log2(L) steps, each over all tokens at once (Hillis & Steele 1986).

    After the step of size s, a state holds what the last 2 s tokens contribute: ``h_t + factor ** s * h_(t-s)``.

    Args:
        x: ``[T, 2 * N]``.
        factors: ``[2 * N]``.
        positions: ``int64[T]``, number of tokens before each one in its history.
        longest: length of the longest history, L.
        backwards: whether the recurrence goes from the last token of a history to its first.
    """
    real, imaginary = (part.clone() for part in x.chunk(2, dim=1))
    a, b = factors.chunk(2)
    size = 1
    while size < longest:
        earlier, later = slice(None, -size), slice(size, None)
        source, target = (later, earlier) if backwards else (earlier, later)
        same = (positions[later] >= size).to(x.dtype)[:, None]  # whether both tokens are of one user
        r, i = real[source] * same, imaginary[source] * same
        real[target] += a * r - b * i
        imaginary[target] += a * i + b * r
        a, b, size = a * a - b * b, 2 * a * b, 2 * size
    return torch.cat([real, imaginary], dim=1)


class _Recurrence(torch.autograd.Function):
    """:func:`doubled` with a hand-written gradient, the same recurrence backwards. Autograd would keep every step."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, factors: Tensor, positions: Tensor, longest: int) -> Tensor:
        states = doubled(x, factors, positions, longest)
        ctx.save_for_backward(states, factors, positions)
        ctx.longest = longest
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states, factors, positions = ctx.saved_tensors
        a, b = factors.chunk(2)
        by_x = doubled(gradients[0], torch.cat([a, -b]), positions, ctx.longest, backwards=True)
        same = (positions[1:] > 0).to(by_x.dtype)[:, None]
        (real, imaginary), (by_real, by_imaginary) = (states[:-1] * same).chunk(2, dim=1), by_x[1:].chunk(2, dim=1)
        by_a = (by_real * real + by_imaginary * imaginary).sum(dim=0)
        by_b = (by_imaginary * real - by_real * imaginary).sum(dim=0)
        return by_x, torch.cat([by_a, by_b]), None, None
