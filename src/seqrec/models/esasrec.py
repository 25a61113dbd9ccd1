"""eSASRec: SASRec with LiGR layers and sampled softmax (Tikhonovich et al., RecSys 2025)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Range, Share
from seqrec.data.negatives import Loss
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Attention, Dropout, add_positions, reset_layers
from seqrec.models.features import FeatureOptions, ItemEmbedding, UserEncoder
from seqrec.models.grouping import Grouping
from seqrec.models.sasrec import attention_through_blocks, select_tokens, through_blocks


@dataclass(frozen=True)
class ESASRecConfig(FeatureOptions):
    """Sizes and regularisation of eSASRec.

    Args:
        max_length: Number of most recent items of a history that the model sees. By default chosen from the log: 50,
            100 or 200.
        embedding_dim: Width of the item embeddings and hidden states.
        num_blocks: Number of LiGR layers.
        num_heads: Number of attention heads. They split ``embedding_dim`` evenly.
        dropout: Dropout on the embedded input, the attention weights, the hidden layer of the point-wise network, and
            the outputs of attention and network.
        feedforward_dim: Hidden width of the point-wise network. By default four times ``embedding_dim``.
        random_start: Probability that training shows a random window of a history longer than ``max_length`` instead
            of its end.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50}

    max_length: Length | None = None
    embedding_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    num_heads: Count = 1
    dropout: Dropped = 0.2
    feedforward_dim: Count | None = None
    random_start: Share = 0.0

    def check(self) -> None:
        """Raise an InputError if ``num_heads`` does not divide ``embedding_dim``."""
        super().check()
        if self.embedding_dim % self.num_heads:
            raise InputError(
                f"embedding_dim {self.embedding_dim} is not a multiple of num_heads {self.num_heads}; give one that is"
            )

    def resolved(self) -> "ESASRecConfig":
        """A copy in which ``PLAIN`` and the width that follows from ``embedding_dim`` are filled in."""
        return replace(super().resolved(), feedforward_dim=self.feedforward_dim or 4 * self.embedding_dim)


class SwiGLU(nn.Module):
    """Point-wise network ``W_o dropout(silu(W_g x) * W_v x)`` without biases (Shazeer 2020, eq. 6)."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.gate_value = nn.Linear(dim, 2 * width, bias=False)  # W_g, then W_v, in one product
        self.output = nn.Linear(width, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, D]`` to ``[T, D]``."""
        gate, value = self.gate_value(x).chunk(2, dim=1)
        out: Tensor = self.output(self.dropout(F.silu(gate) * value))
        return out


class LiGRBlock(nn.Module):
    """Causal self-attention and a SwiGLU network, each with a norm before it and a gated residual connection."""

    def __init__(self, config: ESASRecConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, dim, config.num_heads, config.dropout, project=True)
        self.attention_gate = nn.Linear(dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.feedforward = SwiGLU(dim, config.feedforward_dim or 4 * dim, config.dropout)
        self.feedforward_gate = nn.Linear(dim, dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, grouping: Grouping, last: Tensor | None = None) -> Tensor:
        """Packed ``[T, D]`` to ``[T, D]``; with ``last int64[B]``, to ``[B, D]`` for the users' last tokens only."""
        normed = self.attention_norm(x)
        mixed = self.attention(select_tokens(normed, last), normed, grouping, last)
        x = self._gated(select_tokens(x, last), self.attention_gate, mixed)
        return self._gated(x, self.feedforward_gate, self.feedforward(self.feedforward_norm(x)))

    def _gated(self, x: Tensor, gate: nn.Linear, y: Tensor) -> Tensor:
        """``x + sigmoid(W x + b) * dropout(y)``."""
        return torch.addcmul(x, gate(x).sigmoid(), self.dropout(y))

    def weights_of_last(self, x: Tensor, batch: Batch) -> Tensor:
        """Attention weights ``[T]`` of each user's last token, given the packed input ``[T, D]`` of this block."""
        keys = self.attention_norm(x)
        return self.attention.weights_of_last(keys[batch.last], keys, batch.rows)


class ESASRec(Model):
    """SASRec's task (predict the next item at every position) with other layers and another loss.

    D. Tikhonovich et al., "eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion" (RecSys 2025).

    - Input: item embedding plus learned position, which counts from the end of the window; then dropout. There is no
      factor sqrt(d), as in the authors' code.
    - LiGR layers (eq. 1; Borisyuk et al. 2025, "From Features to Transformers: Redefining Ranking for Scalable
      Impact"): ``h = h + sigmoid(h W + b) * dropout(F(LayerNorm(h)))``, once with causal multi-head attention as F,
      then with a SwiGLU network without biases, by default four times as wide as h. As in the authors' code
      (RecTools), the gate reads h before the norm, attention has an output projection, and no norm follows the last
      layer.
    - Score: dot product with the item embeddings, which input and output share.
    - Loss: sampled softmax. The paper draws 256 uniform negatives for each position. Here a batch shares its
      negatives, and the default corrects the logits for how they were drawn (``logq_correction``), as for the other
      models. In the paper, negatives mixed of uniform and in-batch ones are an experiment beside the model, and rank
      better on one of three logs. What comes near to them is ``popularity``: the power of an item's count that it is
      drawn by, from 0 (uniform) to 1 (as often as in a batch).
    """

    Config = ESASRecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding"})
    VECTORS_OF_ITEMS = True
    LOSS: ClassVar[Loss] = "sampled-softmax"
    config: ESASRecConfig

    def __init__(self, config: ESASRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        self.random_start = config.random_start
        dim = config.embedding_dim
        self.item_embedding = ItemEmbedding(num_items, dim, config)
        self.user_encoder = UserEncoder(num_users, dim, config)
        self.position_embedding = nn.Embedding(self.max_length, dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(LiGRBlock(config) for _ in range(config.num_blocks))
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: Glorot for matrices, small values for the tables (see :meth:`SASRec.reset`)."""
        reset_layers(self)
        for table in (self.item_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.01)
        self.item_embedding.reset_rest(0.01)
        self.user_encoder.reset(0.01)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]`` of the tokens."""
        return through_blocks(self.blocks, self._embedded(batch), batch, last_only=False)

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D]`` of the users' last tokens."""
        return through_blocks(self.blocks, self._embedded(batch), batch, last_only=True)

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Attention weights ``[T]`` of the users' last tokens in the last layer."""
        return attention_through_blocks(self.blocks, self._embedded(batch), batch)

    def _embedded(self, batch: Batch) -> Tensor:
        x = self.user_encoder(self.item_embedding(batch.items), batch)
        return add_positions(x, batch, self.position_embedding, self.dropout)

    def item_vectors(self) -> Tensor:
        """The item embeddings ``[I + 1, D]``, shared by input and output."""
        return self.item_embedding.all()

    def vectors_of(self, items: Tensor) -> Tensor:
        """Embeddings ``[..., D]`` of some items, ``int64[...]``."""
        return self.item_embedding(items)
