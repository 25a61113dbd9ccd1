"""TiSASRec: time interval aware self-attention (Li, Wang & McAuley, WSDM 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Range, Weight
from seqrec.errors import InputError
from seqrec.models.attention import weights_of_queries
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout, FeedForward, attend, join_heads, mean_squared_norm, reset_layers, split_heads
from seqrec.models.features import FeatureOptions, ItemEmbedding, UserEncoder
from seqrec.models.grouping import Grouping, group, pairs_within

# Longer than any interval in seconds, and small enough that millions of multiples of it fit into 64 bits.
_NO_INTERVAL = 2**42


@dataclass(frozen=True)
class TiSASRecConfig(FeatureOptions):
    """Sizes and regularisation of TiSASRec.

    Args:
        max_length: Number of most recent items of a history that the model sees (n in the paper). By default
            chosen from the log: 50, 100 or 200.
        embedding_dim: Width of the item embeddings and hidden states (d in the paper).
        num_blocks: Number of self-attention blocks.
        num_heads: Number of attention heads. They split ``embedding_dim`` evenly.
        time_span: Longest time interval, in multiples of the user's shortest one; longer intervals count as this long
            (k in the paper).
        dropout: Dropout on the embedded input, the tables of positions and intervals, the attention weights and the
            point-wise network.
        l2: Weight of the squared norm of the embeddings that a batch looks up, averaged over tokens.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50}

    max_length: Length | None = None
    embedding_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    num_heads: Count = 1
    time_span: Count = 256
    dropout: Dropped = 0.2
    l2: Weight = 0.0

    def check(self) -> None:
        """Raise an InputError if ``num_heads`` does not divide ``embedding_dim``."""
        super().check()
        if self.embedding_dim % self.num_heads:
            raise InputError(
                f"embedding_dim {self.embedding_dim} is not a multiple of num_heads {self.num_heads}; give one that is"
            )


def scaled_intervals(batch: Batch, queries: Tensor, keys: Tensor, time_span: int) -> Tensor:
    """Intervals ``r_ij int64[P]`` between pairs of tokens (section 3.2 of the paper), from 0 to ``time_span``.

        r_ij = min(time_span, floor(|t_i - t_j| / r_min)),    r_min: the user's shortest interval that is not 0

    r_min is taken only over the tokens up to the query i. If they have no interval above 0, r_ij is 0.

    Args:
        batch: batch with timestamps.
        queries: tokens i, ``int64[P]``.
        keys: tokens j of the same users, ``int64[P]``.
        time_span: longest interval; longer ones count as this long.
    """
    times = batch.timestamps
    gaps = torch.zeros_like(times)
    gaps[1:] = (times[1:] - times[:-1]).abs()
    gaps = torch.where((batch.positions > 0) & (gaps > 0), gaps, _NO_INTERVAL).clamp_(max=_NO_INTERVAL)
    # A running minimum that restarts with each user: an offset per user keeps the users' values apart.
    floor = batch.rows * (_NO_INTERVAL + 1)
    shortest = floor - (floor - gaps).cummax(dim=0).values
    intervals = (times[queries] - times[keys]).abs_()
    return intervals.div_(shortest[queries], rounding_mode="floor").clamp_(max=time_span)


@dataclass(frozen=True)
class Pairs:
    """The P pairs of a query and a key that attention uses, for all H heads.

    ``cells int64[H * P]`` are the flat indices of the pairs in the scores ``[H * G, C, C]``, and ``buckets
    int64[H * P]`` the flat indices of their (query, interval) in ``[H, T, R]``. ``mask float32[H * G, C, C]`` is
    that of the grouping, repeated for each head.
    """

    grouping: Grouping
    mask: Tensor
    cells: Tensor
    buckets: Tensor


def pairs_of(batch: Batch, num_heads: int, time_span: int) -> Pairs:
    """All pairs of a token (query) and a token of the same user up to it (key)."""
    grouping = group(batch)
    total, width = len(batch.items), grouping.width
    queries, keys = pairs_within(batch, grouping)
    cells = grouping.tokens[queries] * width + grouping.tokens[keys] % width
    buckets = queries * (time_span + 1) + scaled_intervals(batch, queries, keys, time_span)
    mask = grouping.mask
    if num_heads > 1:
        head = torch.arange(num_heads, device=queries.device)[:, None]
        cells = (head * mask.numel() + cells).flatten()
        buckets = (head * total * (time_span + 1) + buckets).flatten()
        mask = mask.repeat(num_heads, 1, 1)
    return Pairs(grouping, mask, cells, buckets)


class TimeAttention(nn.Module):
    """Time interval aware self-attention (section 3.4 of the paper).

        z_i = sum_j a_ij (x_j W_V + r^V_ij + p^V_j),    a_ij = softmax_j(e_ij),
        e_ij = x_i W_Q (x_j W_K + r^K_ij + p^K_j) / sqrt(d)

    Pairs never get vectors of their own, which would take too much memory: a query is multiplied with all R interval
    vectors, and each pair picks its product; the weights of a query are summed per interval, then multiplied with the
    values.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.dropout = Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, positions: Tensor, intervals: Tensor, pairs: Pairs) -> Tensor:
        """Mix the values of the tokens that each query sees.

        Args:
            queries: packed ``[T, D]``.
            keys: packed ``[T, D]``.
            positions: p^K and p^V of the tokens, ``[T, 2 * D]``.
            intervals: r^K and r^V of all intervals, ``[R, 2 * D]``.
            pairs: the pairs of a query and a key.

        Returns:
            ``[T, D]``.
        """
        heads, grouping = self.num_heads, pairs.grouping
        total, dim = queries.shape
        query = self.query(queries) * self.head_dim**-0.5
        key_value = self.key_value(keys) + positions
        of_interval = self._heads(intervals, 2)  # [2 * H, R, d]
        by_interval = torch.matmul(self._heads(query, 1), of_interval[:heads].transpose(1, 2))  # [H, T, R]
        biases = by_interval.view(-1).index_select(0, pairs.buckets)
        bias = pairs.mask.to(biases.dtype).view(-1).index_copy(0, pairs.cells, biases).view_as(pairs.mask)
        grouped = split_heads(grouping.spread(torch.cat([query, key_value.to(query.dtype)], dim=1)), 3 * heads)
        query_G, key_G, value_G = grouped.chunk(3, dim=0)
        mixed, weights = attend(query_G, key_G, value_G, bias, self.dropout)
        spent = weights.reshape(-1).index_select(0, pairs.cells)
        summed = spent.new_zeros(by_interval.numel()).index_add(0, pairs.buckets, spent).view_as(by_interval)
        timed = torch.matmul(summed, of_interval[heads:].to(summed.dtype))  # [H, T, d]
        return grouping.collect(join_heads(mixed, heads, grouping)) + timed.transpose(0, 1).reshape(total, dim)

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """``[T, parts * D]`` to ``[parts * H, T, d]``."""
        return x.view(len(x), parts * self.num_heads, self.head_dim).transpose(0, 1)


class TiSASRecBlock(nn.Module):
    """Attention and a point-wise network, with residuals and norms as in SASRec with ``norm="paper"``."""

    def __init__(self, config: TiSASRecConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.attention_norm = nn.LayerNorm(dim, eps=1e-8)
        self.attention = TimeAttention(dim, config.num_heads, config.dropout)
        self.feedforward_norm = nn.LayerNorm(dim, eps=1e-8)
        self.feedforward = FeedForward(dim, (dim,), config.dropout)

    def forward(self, x: Tensor, positions: Tensor, intervals: Tensor, pairs: Pairs) -> Tensor:
        """Packed ``[T, D]`` to ``[T, D]``."""
        queries = self.attention_norm(x)
        x = self.feedforward_norm(queries + self.attention(queries, x, positions, intervals, pairs))
        return self.feedforward(x, x)


class TiSASRec(Model):
    """SASRec with positions and time intervals in its attention, as vectors added to the keys and the values.

    Parts of the paper:

    - Personalised intervals (section 3.2): :func:`scaled_intervals`.
    - Embeddings of items, positions and intervals (section 3.3). Positions and intervals have one table for keys and
      one for values, shared by all blocks as in the authors' code. Positions count from the end of the window, as in
      left-padded sequences.
    - Attention and point-wise network (section 3.4).
    - Dot product with the items (section 3.5).

    The paper and the authors' code differ. As in the code, item embeddings are multiplied by sqrt(d), residual
    connections start after the norms as in SASRec's code, and r_min ignores intervals of 0. As in the paper, times are
    not rounded to multiples of r_min before they are subtracted.

    Differences from both:

    - r_min is the shortest interval up to the query, not of the complete sequence, so that later interactions do not
      affect earlier predictions.
    - Dropout on the interval vectors is drawn once per batch, not per pair, as pairs have no vectors of their own.

    If the log has no timestamps, line numbers take their place, and an interval is a number of lines.
    """

    Config = TiSASRecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding"})
    VECTORS_OF_ITEMS = True
    USES_TIMES = True
    config: TiSASRecConfig

    def __init__(self, config: TiSASRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        dim = config.embedding_dim
        self.item_embedding = ItemEmbedding(num_items, dim, config)
        self.user_encoder = UserEncoder(num_users, dim, config)
        # Vectors for keys and values side by side. All intervals are used at every step, so they need no look-up table.
        self.position_embedding = nn.Embedding(self.max_length, 2 * dim)
        self.interval_vectors = nn.Parameter(torch.empty(config.time_span + 1, 2 * dim))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(TiSASRecBlock(config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(dim, eps=1e-8)
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: Glorot for matrices, small values for the tables (see :meth:`SASRec.reset`)."""
        reset_layers(self)
        for table in (self.item_embedding.weight, self.position_embedding.weight, self.interval_vectors):
            nn.init.normal_(table, std=0.01)
        self.item_embedding.reset_rest(0.01)
        self.user_encoder.reset(0.01)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]`` of the tokens."""
        return self.final_norm(self._through(self.blocks, batch))

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Attention weights ``[T]`` of the users' last tokens in the last block."""
        if len(self.blocks) == 0:
            return None
        x, rows, last = self._through(self.blocks[:-1], batch), batch.rows, batch.last
        block: TiSASRecBlock = self.blocks[-1]  # type: ignore[assignment]
        attention, width = block.attention, self.config.embedding_dim
        intervals = scaled_intervals(
            batch, last[rows], torch.arange(len(rows), device=last.device), len(self.interval_vectors) - 1
        )
        keys = (
            attention.key_value(x)[:, :width]
            + self._positions(batch)[:, :width]
            + self.interval_vectors[intervals, :width]
        )
        return weights_of_queries(attention.query(block.attention_norm(x[last])), keys, rows, attention.num_heads)

    def _through(self, blocks: nn.ModuleList, batch: Batch) -> Tensor:
        """The embedded tokens through some blocks, ``[T, D]``."""
        config = self.config
        x = self.user_encoder(self.item_embedding(batch.items), batch)
        x = self.dropout(x * config.embedding_dim**0.5)
        if len(blocks):
            positions = self.dropout(self._positions(batch))
            intervals = self.dropout(self.interval_vectors)
            pairs = pairs_of(batch, config.num_heads, config.time_span)
            for block in blocks:
                x = block(x, positions, intervals, pairs)
        return x

    def _positions(self, batch: Batch) -> Tensor:
        """p^K and p^V of the tokens, ``[T, 2 * D]``."""
        vectors: Tensor = self.position_embedding(batch.positions + (self.max_length - batch.lengths)[batch.rows])
        return vectors

    def item_vectors(self) -> Tensor:
        """The item embeddings ``[I + 1, D]``, shared by input and output."""
        return self.item_embedding.all()

    def vectors_of(self, items: Tensor) -> Tensor:
        """Embeddings ``[..., D]`` of some items."""
        return self.item_embedding(items)

    def penalty(self, batch: Batch) -> Tensor | None:
        """``l2`` times the mean squared norm of the embeddings of the batch's items and targets."""
        if self.config.l2 == 0.0:
            return None
        return self.config.l2 * mean_squared_norm(self.item_embedding(torch.cat([batch.items, batch.targets])))
