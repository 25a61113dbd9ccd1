"""HSTU: hierarchical sequential transduction units (Zhai et al., ICML 2024)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Range, Share, Weight
from seqrec.device import copied
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import (
    Dropout,
    add_positions,
    attend,
    join_heads,
    mean_squared_norm,
    reset_layers,
    split_heads,
)
from seqrec.models.features import FeatureOptions, ItemEmbedding, UserEncoder
from seqrec.models.grouping import Grouping, group, pairs_within

_EPSILON = 1e-6
_HIDDEN = -1e30  # SiLU of it is 0, with a gradient of 0; of -inf it would be NaN


@dataclass(frozen=True)
class HSTUConfig(FeatureOptions):
    """Sizes and regularisation of HSTU.

    Args:
        max_length: Number of most recent items of a history that the model sees (n in the paper). By default
            chosen from the log: 50, 100 or 200.
        embedding_dim: Width of the item embeddings and hidden states, and of u, v, queries and keys.
        num_blocks: Number of layers.
        num_heads: Number of attention heads. They split ``embedding_dim`` evenly.
        dropout: Dropout on the embedded input and on the gated attention. By default chosen from the log: 0.5 for
            short histories, 0.2 for long ones.
        time_buckets: Number of buckets above 0 seconds, each 1.35 times as long as the one before, that have a bias
            for the time between two items; 0 leaves the times out. By default 128 if the log has times, else 0.
        similarity: How hidden states are compared with items. cosine: as in the authors' code; dot: the dot product
            with a layer norm before it, as in SASRec.
        temperature: Divisor of the cosine. With a large one (1), no item can stand out and nothing is learnt.
        random_start: Probability that training shows a random window of a history longer than ``max_length`` instead
            of its end.
        l2: Weight of the squared norm of the embeddings that a batch looks up, averaged over tokens.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50, "dropout": 0.5, "time_buckets": 128}

    max_length: Length | None = None
    embedding_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    num_heads: Count = 1
    dropout: Dropped | None = None
    time_buckets: Annotated[int, Range(0, 144)] | None = None  # the last edges are near the largest time, 2**63
    similarity: Literal["cosine", "dot"] = "cosine"
    temperature: Annotated[float, Range(1e-3, 1e3)] = 0.05
    random_start: Share = 0.0
    l2: Weight = 0.0

    def check(self) -> None:
        """Raise an InputError if ``num_heads`` does not divide ``embedding_dim``."""
        super().check()
        if self.embedding_dim % self.num_heads:
            raise InputError(
                f"embedding_dim {self.embedding_dim} is not a multiple of num_heads {self.num_heads}; give one that is"
            )


@cache
def time_edges(count: int) -> Tensor:
    """The first second of each bucket of times above bucket 0, ``int64[count]``.

    The bucket of t seconds is floor(log(t) / 0.301), and 0 for t < 1, as in the authors' code: the number of edges up
    to t. (0.301 is the decimal logarithm of 2, but the code takes the natural one.)
    """
    return torch.tensor([math.ceil(math.exp(0.301 * number)) for number in range(1, count + 1)], dtype=torch.int64)


@dataclass(frozen=True)
class Around:
    """What the attention of all layers shares: which tokens see each other, and how far they are apart.

    Args:
        grouping: the histories of the batch.
        distances: ``int64[P]``, positions between a query and a key, for the P pairs in the order of
            ``grouping.cells``. None if the compiled loops compute the attention.
        buckets: bucket of the time between a query and a key, for the same pairs, or as
            :func:`seqrec.kernels.time_buckets` for the compiled loops. None without a time bias.
    """

    grouping: Grouping
    distances: Tensor | None
    buckets: Tensor | None


def around(batch: Batch, time_buckets: int, compiled: bool) -> Around:
    """What the attention needs to know of a batch; see :class:`Around`."""
    grouping = group(batch)
    edges = time_edges(time_buckets) if time_buckets else None
    if compiled:
        buckets = None if edges is None else kernels.time_buckets(batch.timestamps, batch.offsets, edges)
        return Around(grouping, None, buckets)
    queries, keys = pairs_within(batch, grouping)
    buckets = None
    if edges is not None:
        apart = (batch.timestamps[queries] - batch.timestamps[keys]).abs_()
        buckets = torch.bucketize(apart, copied(edges, apart.device), right=True)
    return Around(grouping, queries - keys, buckets)


class HSTUBlock(nn.Module):
    """One layer: eq. 1 (pointwise projection), 2 (spatial aggregation) and 3 (pointwise transformation) of the paper.

        u, v, q, k = silu(norm(x) W_1),    a_ij = silu(q_i k_j + p_(i - j) + t_bucket(i, j)) / n    for j <= i,
        y = x + dropout(u * norm(a v)) W_2 + b_2

    n is ``max_length``. Where a softmax would lose it, the sum of the weights keeps how many items and how much of each
    there were. Heads share the biases p and t, and layers have their own. The norms have no weights.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        assert config.dropout is not None  # a resolved config has them
        assert config.max_length is not None
        dim = config.embedding_dim
        self.num_heads = config.num_heads
        self.max_length = config.max_length
        self.norm = nn.LayerNorm(dim, eps=_EPSILON, elementwise_affine=False)
        self.projection = nn.Linear(dim, 4 * dim, bias=False)
        self.position_bias = nn.Parameter(torch.empty(config.max_length))
        self.time_bias = nn.Parameter(torch.empty(config.time_buckets + 1)) if config.time_buckets else None
        self.attention_norm = nn.LayerNorm(dim, eps=_EPSILON, elementwise_affine=False)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(dim, dim)

    def reset(self) -> None:
        """Initialise the projection and the biases with small values, as the authors' code does.

        The sums of the attention are then so small that epsilon weighs more than they in the norm, and each layer
        starts as hardly more than its residual connection. That matters: on games.txt (sampled softmax, 9 epochs) it
        reaches an NDCG@10 of 0.066 on validation, and 0.026 with Glorot's rule for the projection.
        """
        nn.init.normal_(self.projection.weight, std=0.02)
        for bias in (self.position_bias, self.time_bias):
            if bias is not None:
                nn.init.normal_(bias, std=0.02)

    def forward(self, x: Tensor, near: Around) -> Tensor:
        """Packed ``[T, D]`` to ``[T, D]``."""
        mixed = self.projection(self.norm(x))
        if near.distances is not None:
            return x + self.output(self._in_torch(mixed, near))
        words = self.dropout.words("tokens", len(x), x.shape[1]) if self.dropout.active else None
        gated = kernels.gated_attention(
            mixed,
            near.grouping.offsets,
            self.position_bias,
            self.num_heads,
            1 / self.max_length,
            _EPSILON,
            self.time_bias,
            near.buckets,
            words,
            self.dropout.probability,
        )
        return x + self.output(gated)

    def _in_torch(self, mixed: Tensor, near: Around) -> Tensor:
        """The same as ``kernels.gated_attention``, in torch."""
        grouping, heads = near.grouping, self.num_heads
        gate, value_query_key = F.silu(mixed).split([mixed.shape[1] // 4, mixed.shape[1] // 4 * 3], dim=1)
        value, query, key = split_heads(grouping.spread(value_query_key), 3 * heads).chunk(3, dim=0)
        bias = self.position_bias[near.distances]
        if self.time_bias is not None:
            bias = bias + self.time_bias[near.buckets]
        square = grouping.rows, grouping.width, grouping.width
        hidden = bias.new_full((math.prod(square),), _HIDDEN)
        hidden = hidden.index_copy(0, grouping.cells, bias).view(square).repeat(heads, 1, 1)
        summed, _ = attend(query, key, value, hidden, lambda weights: weights, activation=self._weights)
        return self.dropout(gate * self.attention_norm(grouping.collect(join_heads(summed, heads, grouping))))

    def _weights(self, scores: Tensor) -> Tensor:
        """Weights from scores, without a sum of 1."""
        return F.silu(scores) / self.max_length

    def weights_of_last(self, x: Tensor, batch: Batch) -> Tensor:
        """Shares ``[T]`` of the tokens in the weights of each user's last token, without their signs."""
        rows, last, heads = batch.rows, batch.last, self.num_heads
        _, _, query, key = F.silu(self.projection(self.norm(x))).chunk(4, dim=1)
        scores = (query[last[rows]] * key).view(len(key), heads, key.shape[1] // heads).sum(dim=2)
        bias = self.position_bias[batch.positions[last][rows] - batch.positions]
        if self.time_bias is not None:
            apart = (batch.timestamps[last[rows]] - batch.timestamps).abs_()
            edges = copied(time_edges(len(self.time_bias) - 1), apart.device)
            bias = bias + self.time_bias[torch.bucketize(apart, edges, right=True)]
        sizes = F.silu(scores + bias[:, None]).abs()
        sizes = sizes + torch.finfo(sizes.dtype).tiny  # if all are 0, they are equal
        sums = sizes.new_zeros(len(last), heads).index_add(0, rows, sizes)
        return (sizes / sums[rows]).mean(dim=1)


class HSTU(Model):
    """HSTU for next items, as the authors compare it with SASRec (section 4.1.1): items alone, without actions.

    Parts of the authors' code that the paper leaves open: item embeddings are multiplied by sqrt(d) and learnt
    positions added; hidden states and items are compared by their cosine, divided by a temperature of 0.05. Without
    that division, logits stay between -1 and 1, and no loss over many items falls: RecTools' ``HSTUModel`` takes the
    cosine by default, but divides by 1, and was reported not to learn.

    Differences from the authors' code:

    - The time of an item that a query sees counts up to the query's own item. The code counts up to the next item,
      the one to predict, whose time is not known when a recommendation is asked for.
    - Positions count from the end of the window, as in :class:`seqrec.models.sasrec.SASRec`. Biases for later keys,
      which nothing sees, do not exist. Embeddings of positions start smaller; see :meth:`reset`.

    If the log has no times, the recipe leaves their bias out (``time_buckets`` 0).
    """

    Config = HSTUConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding"})
    VECTORS_OF_ITEMS = True
    USES_TIMES = True
    config: HSTUConfig

    def __init__(self, config: HSTUConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        self.random_start = config.random_start
        self.USES_TIMES = bool(config.time_buckets)  # type: ignore[misc]
        assert config.dropout is not None
        dim = config.embedding_dim
        self.item_embedding = ItemEmbedding(num_items, dim, config)
        self.user_encoder = UserEncoder(num_users, dim, config)
        self.position_embedding = nn.Embedding(self.max_length, dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(HSTUBlock(config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(dim, eps=1e-8) if config.similarity == "dot" else None
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: see :meth:`HSTUBlock.reset`; Glorot's rule for outputs, small values for the tables.

        With the positions of the authors' code, whose standard deviation is 1 / sqrt(d), 3 epochs on games.txt reach an
        NDCG@10 of 0.012 instead of 0.044 on validation, and 9 epochs the same.
        """
        reset_layers(self)
        for block in self.blocks:
            block.reset()  # type: ignore[operator]
        for table in (self.item_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)
        self.item_embedding.reset_rest(0.02)
        self.user_encoder.reset(0.02)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]`` of the tokens."""
        return self._ended(self._through(self.blocks, batch))

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D]`` of the users' last tokens."""
        return self._ended(self._through(self.blocks, batch)[batch.last])

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Shares ``[T]`` of the tokens in the attention of the users' last tokens in the last block."""
        if len(self.blocks) == 0:
            return None
        weights: Tensor = self.blocks[-1].weights_of_last(self._through(self.blocks[:-1], batch), batch)  # type: ignore[operator]
        return weights

    def _through(self, blocks: nn.ModuleList, batch: Batch) -> Tensor:
        """The embedded tokens through some blocks, ``[T, D]``."""
        x = self.user_encoder(self.item_embedding(batch.items), batch)
        x = add_positions(x, batch, self.position_embedding, self.dropout, self.config.embedding_dim**0.5)
        if len(blocks):
            seeded = not self.dropout.active or self.dropout.random is not None
            near = around(batch, self.config.time_buckets or 0, seeded and kernels.usable(x, *self.parameters()))
            for block in blocks:
                x = block(x, near)
        return x

    def _ended(self, x: Tensor) -> Tensor:
        """The states that items are compared with."""
        return F.normalize(x, dim=1) / self.config.temperature if self.final_norm is None else self.final_norm(x)

    def output_of(self, rows: Tensor) -> Tensor:
        """Output vectors of rows of the item table: of length 1 for the cosine."""
        return F.normalize(rows, dim=-1) if self.final_norm is None else rows

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D]`` of all items."""
        return self.output_of(self.item_embedding.all())

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D]`` of some items, ``int64[...]``."""
        return self.output_of(self.item_embedding(items))

    def penalty(self, batch: Batch) -> Tensor | None:
        """``l2`` times the mean squared norm of the embeddings of the batch's items and targets."""
        if self.config.l2 == 0.0:
            return None
        return self.config.l2 * mean_squared_norm(self.item_embedding(torch.cat([batch.items, batch.targets])))
