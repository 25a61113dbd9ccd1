"""BERT4Rec: sequential recommendation with bidirectional encoder representations (Sun et al., CIKM 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.draws import Draws
from seqrec.data.fields import Count, Dropped, Length, Options, Range, Share
from seqrec.data.negatives import Loss
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Attention, Dropout, reset_layers
from seqrec.models.grouping import Grouping, group


@dataclass(frozen=True)
class BERT4RecConfig(Options):
    """Sizes, masking and regularisation of BERT4Rec.

    Args:
        max_length: Number of most recent items of a history that the model sees (N - 1 in the paper, which counts the
            mask after them too). By default chosen from the log: 50, 100 or 200.
        embedding_dim: Width of the item embeddings and hidden states (d in the paper).
        num_blocks: Number of transformer layers (L in the paper).
        num_heads: Number of attention heads (h in the paper). They split ``embedding_dim`` evenly.
        dropout: Dropout on the embedded input, after each attention and after each point-wise network.
        mask_probability: Share of a history that training masks (rho in the paper), at least one item.
        last_probability: Probability that training masks only the last item instead.
        feedforward_dim: Hidden width of the point-wise network. By default four times ``embedding_dim``.
        attention_dropout: Dropout on the attention weights. By default the same as ``dropout``.
        random_start: Probability that training shows a random window of a history longer than ``max_length`` instead
            of its end.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50}

    max_length: Length | None = None
    embedding_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    num_heads: Count = 2
    dropout: Dropped = 0.2
    mask_probability: Annotated[float, Range(above=0, most=1)] = 0.2
    last_probability: Share = 0.1
    feedforward_dim: Count | None = None
    attention_dropout: Dropped | None = None
    random_start: Share = 0.0

    def check(self) -> None:
        """Raise an InputError if ``num_heads`` does not divide ``embedding_dim``."""
        if self.embedding_dim % self.num_heads:
            raise InputError(
                f"embedding_dim {self.embedding_dim} is not a multiple of num_heads {self.num_heads}; give one that is"
            )

    def resolved(self) -> "BERT4RecConfig":
        """A copy in which ``PLAIN``, and the width and the dropout that follow from other fields, are filled in."""
        dropout = self.dropout if self.attention_dropout is None else self.attention_dropout
        width = self.feedforward_dim or 4 * self.embedding_dim
        return replace(super().resolved(), feedforward_dim=width, attention_dropout=dropout)


class BERT4RecBlock(nn.Module):
    """Multi-head attention over all of a history and a point-wise network, each with a residual, then a layer norm."""

    def __init__(self, config: BERT4RecConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        width = config.feedforward_dim or 4 * dim
        probability = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.attention = Attention(dim, dim, config.num_heads, probability)
        self.attention_output = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.inner = nn.Linear(dim, width)
        self.outer = nn.Linear(width, dim)
        self.feedforward_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, grouping: Grouping) -> Tensor:
        """Packed ``[T, D]`` to ``[T, D]``."""
        mixed = self.attention_output(self.attention(x, x, grouping))
        x = self.attention_norm(x + self.dropout(mixed))
        wide = self.outer(F.gelu(self.inner(x)))
        out: Tensor = self.feedforward_norm(x + self.dropout(wide))
        return out


class BERT4Rec(Model):
    """The model of the paper.

    - Embedding (section 3.4): item and learned position, ``h_0 = v + p``; then layer norm and dropout, as in BERT and
      the authors' code. The code's segment embedding, which is the same vector for all tokens, is left out.
    - Transformer layers (section 3.3): multi-head attention without a causal mask, ``A = LN(H + Dropout(MH(H)))``;
      then ``LN(A + Dropout(FFN(A)))`` with ``FFN(x) = GELU(x W1 + b1) W2 + b2`` of width 4 d.
    - Output (section 3.5): ``softmax(GELU(h W_P + b_P) E' + b_O)`` with the item embeddings shared; layer norm after
      the GELU as in the code. The bias is the last column of the item table.
    - Training (section 3.6): a share rho of the items of each history is masked, and the model predicts them. As in
      the code, exactly ``max(1, round(n rho))`` items are masked, and each is replaced by the mask. The paper and the
      code add samples in which only the last item is masked (1 of 11 in the code). Here each history is shown that way
      with ``last_probability``, drawn again in every epoch. ``random_start`` takes the place of the code's sliding
      windows over long histories.
    - Prediction (section 3.6): a mask after the history.

    Differences:

    - Positions count from the end of the window (in the code, from its start), so the mask of a prediction always has
      the same position, whatever the length of the history.
    - The paper's loss is the softmax over the full catalogue (``loss="cross-entropy"``), whose cost grows with the
      catalogue. The default here is sampled softmax, which estimates it from negatives that a batch shares (with the
      default ``logq_correction="all"``; a user's own items are never negatives and so are missing from the estimate).
    - The optimizer is Adam as for the other models, without the code's warm-up, learning rate decay and weight decay.

    The mask has its own vector. In a batch, item 0 stands for the mask.
    """

    Config = BERT4RecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding"})
    BIAS_COLUMN = True
    LOSS: ClassVar[Loss] = "sampled-softmax"
    CAUSAL: ClassVar[bool] = False
    config: BERT4RecConfig

    def __init__(self, config: BERT4RecConfig, num_items: int, num_users: int = 0) -> None:
        del num_users  # the model knows users only by their history
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        self.random_start = config.random_start
        dim = config.embedding_dim
        # The last column is the bias of the output.
        self.item_embedding = nn.Embedding(num_items + 1, dim + 1)
        self.mask_embedding = nn.Parameter(torch.empty(dim))
        self.position_embedding = nn.Embedding(self.max_length + 1, dim)
        self.embedding_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(BERT4RecBlock(config) for _ in range(config.num_blocks))
        self.transform = nn.Linear(dim, dim)
        self.transform_norm = nn.LayerNorm(dim, eps=1e-12)
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: Glorot's rule for matrices, a narrow normal distribution for the tables.

        The authors' code draws the matrices, too, from a normal distribution with standard deviation 0.02, truncated at
        0.04. At BERT's width of 768 that is within a factor of two of Glorot's rule, but at widths of 32 or 64 training
        is slower with it.
        """
        reset_layers(self)
        for weight in (self.item_embedding.weight, self.position_embedding.weight, self.mask_embedding):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0
            self.item_embedding.weight[:, -1] = 0

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, embedding_dim + 1]``; the last column is 1.

        In training, these are the states of the tokens, and those of masked tokens (item 0) predict the hidden item.
        In evaluation, a mask is added after each history, and the user's last row is the state of that mask, which
        predicts the next item. The other rows are the states of their tokens, which predict nothing.
        """
        if self.training:
            return self._output(self._states(batch))
        rows = batch.rows
        is_last = batch.positions + 1 == batch.lengths[rows]
        states = self._states(_extended(batch, torch.zeros_like(batch.users)))
        return self._output(states[torch.arange(len(rows), device=rows.device) + rows + is_last])

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Attention weights ``[T]``, in the last block, of the mask after each history over the history's items."""
        if len(self.blocks) == 0:
            return None
        extended = _extended(batch, torch.zeros_like(batch.users))
        x = self._states(extended, self.blocks[:-1])
        own = torch.arange(len(batch.items), device=x.device) + batch.rows  # all tokens but the masks
        attention: Attention = self.blocks[-1].attention  # type: ignore[assignment]
        return attention.weights_of_last(x[extended.last], x[own], batch.rows)

    def _states(self, batch: Batch, blocks: nn.ModuleList | None = None) -> Tensor:
        """Hidden states of the last layer, or after some blocks, ``[T, D]``."""
        x = self.item_embedding(batch.items)[:, :-1]
        x = torch.where((batch.items == 0)[:, None], self.mask_embedding.to(x.dtype), x)
        left = batch.lengths[batch.rows] - batch.positions
        x = x + self.position_embedding(self.max_length + 1 - left)
        x = self.dropout(self.embedding_norm(x))
        grouping = group(batch, causal=False)
        for block in self.blocks if blocks is None else blocks:
            x = block(x, grouping)
        return x

    def _output(self, states: Tensor) -> Tensor:
        hidden = self.transform_norm(F.gelu(self.transform(states)))
        return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)

    def item_vectors(self) -> Tensor:
        """The item embeddings ``[I + 1, D + 1]``, shared by input and output; the last column is the bias."""
        return self.item_embedding.weight

    def vectors_of(self, items: Tensor) -> Tensor:
        """Embeddings and biases ``[..., D + 1]`` of some items."""
        return self.item_embedding(items)

    def corrupt(self, batch: Batch, draws: Draws) -> Batch:
        """Add the last target to each history, then mask some items.

        A masked token has item 0, and its target is the item that it hides. Other tokens have the target 0.
        """
        extended = _extended(batch, batch.targets[batch.last])  # no history in training is empty
        lengths = extended.lengths.numpy()
        rows = extended.rows.numpy()
        count = np.maximum(1, np.rint(lengths * self.config.mask_probability)).astype(np.int64)
        # Put the tokens of each history in random order and mask the first ones.
        order = np.lexsort((draws.uniform("tokens", len(rows)), rows))
        masked = np.empty(len(rows), dtype=bool)
        masked[order] = extended.positions.numpy() < count[rows]
        only_last = draws.uniform("rows", len(lengths)) < self.config.last_probability
        masked = np.where(only_last[rows], extended.positions.numpy() + 1 == lengths[rows], masked)
        hidden = torch.from_numpy(masked)
        items, targets = torch.where(hidden, 0, extended.items), torch.where(hidden, extended.items, 0)
        return replace(extended, items=items, targets=targets)

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The masked tokens and the items that they hide."""
        tokens = torch.nonzero((batch.items == 0) & (batch.targets > 0))[:, 0]
        return tokens, batch.targets[tokens]


def _extended(batch: Batch, items: Tensor) -> Batch:
    """The batch with one more token after each history: ``items int64[B]``, with target and timestamp 0."""
    lengths = batch.lengths
    device = lengths.device
    one = torch.arange(len(batch) + 1, device=device)
    new = batch.offsets[1:] + one[:-1]
    old = torch.arange(len(batch.items), device=device) + batch.rows
    zeros = torch.zeros_like(items)
    extra = {name: (values, values.new_zeros((len(items), *values.shape[1:])))
             for name, values in batch.of_tokens.items()}  # fmt: skip

    def joined(values: Tensor, added: Tensor) -> Tensor:
        result = values.new_empty((len(old) + len(new), *values.shape[1:]))
        result[old] = values
        result[new] = added
        return result

    return replace(
        batch,
        items=joined(batch.items, items),
        targets=joined(batch.targets, zeros),
        positions=joined(batch.positions, lengths),
        offsets=batch.offsets + one,
        timestamps=joined(batch.timestamps, zeros),
        of_tokens={name: joined(*parts) for name, parts in extra.items()},
    )
