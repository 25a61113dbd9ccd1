"""Layers that models share. All work on packed tokens ``[T, ...]``."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.draws import Draws, Unit
from seqrec.device import not_compiled
from seqrec.models.attention import weights_of_queries
from seqrec.models.grouping import Grouping
from seqrec.models.packed import attend_packed, can_attend_packed


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) with cheap random numbers on the CPU.

    On the CPU, ``torch.dropout`` draws its numbers serially and takes several times as long as the matrix product
    before it. A mask of raw 16-bit numbers is much cheaper. The probability is rounded to a multiple of 1/65536.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.random: Draws | None = None

    @not_compiled  # numpy's random numbers can't be traced
    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """In training, zero a share of ``x`` and scale the rest. Otherwise, return ``x``.

        ``order``, ``int64[T]``, is the token of each row of ``x`` if they are not in the order of the batch.
        """
        if not self.active:
            return x
        if self.random is None or x.device.type != "cpu":
            return F.dropout(x, self.probability)
        if kernels.usable(x):
            return kernels.dropout(x, self.words_for(x, order), self.probability)
        return x * self.kept(self.words_for(x, order)).view(x.shape)

    @property
    def active(self) -> bool:
        """Whether it drops anything: in training, with a probability above 0."""
        return self.training and self.probability > 0.0

    @not_compiled
    def words(self, unit: Unit, count: int, width: int = 1, times: int = 1) -> Tensor:
        """Random 16-bit words, ``int16[times * count * width]``: ``width`` for each of ``count`` units."""
        assert self.random is not None
        return torch.from_numpy(self.random.words(unit, count, width, times))

    @not_compiled
    def words_for(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """Random 16-bit words for the numbers of ``x``, ``int16[x.numel()]``. ``order`` is as for :meth:`forward`."""
        assert self.random is not None
        part = self.random.part
        if part is None or part.span("tokens", len(x)) is not None:
            words = self.words("tokens", len(x), x.numel() // max(len(x), 1))
            return words if order is None else words.view(len(x), -1)[order].view(-1)
        return torch.from_numpy(self.random.own_words(x.numel()))

    def kept(self, words: Tensor) -> Tensor:
        """The factor for each random word, ``float32``: 0 or 1 / (1 - p)."""
        dropped = kernels.dropped_words(self.probability)
        return (words >= dropped - 32768).to(torch.float32).mul_(65536 / (65536 - dropped))


def add_positions(x: Tensor, batch: Batch, table: nn.Embedding, dropout: Dropout, scale: float = 1.0) -> Tensor:
    """``dropout(scale * x + p)`` of packed tokens ``[T, D]``, where p is the embedding of each token's position.

    Positions count from the end of the window, so the most recent item always has the last one, as in the left-padded
    sequences of the SASRec authors' code.
    """
    active = dropout.active
    plain = type(table) is nn.Embedding and not table.sparse
    if plain and (not active or dropout.random is not None) and kernels.usable(x, table.weight):
        words = dropout.words_for(x) if active else None
        return kernels.positions(x, table.weight, batch.offsets, scale, words, dropout.probability)
    positions = batch.positions + (table.num_embeddings - batch.lengths)[batch.rows]
    return dropout(scale * x + table(positions))


def dropouts_of(model: nn.Module) -> list[Dropout]:
    """All dropout layers of a model."""
    return [module for module in model.modules() if isinstance(module, Dropout)]


def seed_dropout(dropouts: Iterable[Dropout], draws: Draws) -> None:
    """Give all dropout layers the same source of random numbers."""
    for dropout in dropouts:
        dropout.random = draws


def mean_squared_norm(vectors: Tensor) -> Tensor:
    """The mean squared Euclidean norm of vectors ``[R, D]``, for penalties on embeddings."""
    return vectors.square().sum(dim=1).mean()


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the keys of each query."""
    return scores.softmax(dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    dropout: Callable[[Tensor], Tensor],
    scale: float = 1.0,
    activation: Callable[[Tensor], Tensor] = softmax,
) -> tuple[Tensor, Tensor]:
    """The core of every attention layer: ``w = dropout(activation(scale * q k' + bias))`` and ``w v``.

    Args:
        query: ``[N, C, d]``, where N counts pairs of a row and a head.
        key: ``[N, C, d]``.
        value: ``[N, C, d]``.
        bias: ``[N, C, C]``, added to the scores; -inf where a query must not see a key.
        dropout: dropout on the weights.
        scale: factor of the products of queries and keys.
        activation: function that turns scores into weights.

    Returns:
        ``w v [N, C, d]`` and ``w [N, C, C]``.
    """
    # One fused call: the matrix product applies the scale and adds the bias.
    weights = dropout(activation(torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)))
    return torch.bmm(weights.to(value.dtype), value), weights


def split_heads(x: Tensor, count: int) -> Tensor:
    """``[G, C, count * d]`` to ``[count * G, C, d]``."""
    rows, width, dim = x.shape
    return x if count == 1 else x.view(rows, width, count, dim // count).permute(2, 0, 1, 3).flatten(0, 1)


def join_heads(x: Tensor, num_heads: int, grouping: Grouping) -> Tensor:
    """``[heads * G, C, d]`` to ``[G, C, heads * d]``."""
    if num_heads == 1:
        return x
    return x.view(num_heads, grouping.rows, grouping.width, x.shape[-1]).permute(1, 2, 0, 3).flatten(2)


class Attention(nn.Module):
    """Scaled dot-product attention with one or more heads (Vaswani et al. 2017; SASRec eq. 2 and 5).

    Queries, keys and values are projected to ``attention_dim``. The output is projected back only if that differs from
    ``embedding_dim``, because the paper has no output projection.
    """

    def __init__(self, embedding_dim: int, attention_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if num_heads < 1 or attention_dim % num_heads:
            raise ValueError(f"attention_dim {attention_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(embedding_dim, attention_dim)
        self.key_value = nn.Linear(embedding_dim, 2 * attention_dim)
        self.output = nn.Linear(attention_dim, embedding_dim) if attention_dim != embedding_dim else None
        self.dropout = Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, grouping: Grouping, last: Tensor | None = None) -> Tensor:
        """Mix the values of the tokens that each query sees.

        Args:
            queries: packed ``[T, D]``; with ``last``, ``[B, D]`` for the last tokens only.
            keys: packed ``[T, D]``.
            grouping: layout of the tokens, with the mask of what each one sees.
            last: ``int64[B]``, the users' last tokens, to compute only these in evaluation.

        Returns:
            One row per query.
        """
        query, key_value = self.query(queries), self.key_value(keys)
        words = None
        if last is None and self.dropout.active and self.dropout.random is not None and query.device.type == "cpu":
            words = self.dropout.words(*grouping.unit_pairs, times=self.num_heads)
        seeded = words is not None or not self.dropout.active
        if seeded and (last is None or not torch.is_grad_enabled()) and kernels.usable(query, key_value):
            probability = self.dropout.probability
            mixed = kernels.attention(
                query,
                key_value,
                grouping.offsets,
                self.num_heads,
                grouping.causal,
                words,
                probability,
                last is not None,
            )
        elif last is None:
            mixed = self._in_torch(query, key_value, grouping, words)
        else:
            every = query.new_zeros(len(key_value), query.shape[1]).index_copy(0, last, query)
            mixed = self._in_torch(every, key_value, grouping, None).index_select(0, last)
        return mixed if self.output is None else self.output(mixed)

    def weights_of_last(self, queries: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """Weights ``[T]`` of one query per history, ``[B, D]``, over its keys ``[T, D]``, as the mean over the heads.

        ``rows int64[T]`` is the history of each key.
        """
        query = self.query(queries)
        key = self.key_value(keys)[:, : query.shape[1]]
        return weights_of_queries(query, key, rows, self.num_heads)

    def _in_torch(self, query: Tensor, key_value: Tensor, grouping: Grouping, words: Tensor | None) -> Tensor:
        """The same as ``kernels.attention``, in torch: without padding where a GPU can, else in groups."""
        if words is None and can_attend_packed(query, grouping, self.num_heads):
            dropout = self.dropout.probability if self.dropout.active else 0.0
            return attend_packed(query, key_value, grouping, self.num_heads, dropout)
        query = split_heads(grouping.spread(query), self.num_heads)
        key, value = split_heads(grouping.spread(key_value), 2 * self.num_heads).chunk(2, dim=0)
        mask = grouping.mask.to(query.dtype)
        if self.num_heads > 1:
            mask = mask.repeat(self.num_heads, 1, 1)

        def dropped(weights: Tensor) -> Tensor:
            if words is None:
                return self.dropout(weights)
            by_head = weights.new_zeros(self.num_heads, mask.numel() // self.num_heads)
            kept = self.dropout.kept(words).to(weights.dtype).view(self.num_heads, -1)
            return weights * by_head.index_copy_(1, grouping.cells, kept).view_as(weights)

        mixed, _ = attend(query, key, value, mask, dropped, scale=query.shape[-1] ** -0.5)
        return grouping.collect(join_heads(mixed, self.num_heads, grouping))


class UserEmbedding(nn.Embedding):
    """Embeddings of users, ``[U + 1, D]``; the last row belongs to no user.

    Outside training, users without an embedding of their own get the mean of the trained ones: those who are not in
    the dataset (-1), and those whose row is zero because they have nothing to train on (:meth:`clear_untrained`).
    Training itself never leaves a row of zeros.
    """

    def __init__(self, num_users: int, dim: int) -> None:
        super().__init__(num_users + 1, dim)
        self.num_users = num_users
        self._mean: tuple[tuple[int, int], Tensor] | None = None

    @torch.no_grad()
    def clear_untrained(self, lengths: np.ndarray) -> None:
        """Zero the rows of users whose histories are too short to train on.

        Args:
            lengths: ``int64[U]``, lengths of the training histories.
        """
        self.weight[: self.num_users][torch.from_numpy(lengths < 2).to(self.weight.device)] = 0

    def forward(self, users: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` of users ``int64[B]``. In training, -1 gets the last row instead of the mean."""
        known = (users >= 0) & (users < self.num_users)
        vectors = super().forward(torch.where(known, users, self.num_users))
        if self.training:
            return vectors
        known = known & (vectors != 0).any(dim=1)
        return torch.where(known[:, None], vectors, self.mean())

    @torch.no_grad()
    def mean(self) -> Tensor:
        """The mean embedding of the trained users, ``[D]``; zeros if there are none.

        It is cached until the table changes: with millions of users it costs more than the rest of a small batch.
        """
        if self.weight.is_inference():  # inference tensors have no version
            return self._mean_of_rows()
        state = self.weight.data_ptr(), self.weight._version  # the version too, as an address may be reused
        if self._mean is None or self._mean[0] != state:
            with torch.inference_mode(False):  # so that the cached mean can also be used outside inference mode
                self._mean = state, self._mean_of_rows()
        return self._mean[1]

    def _mean_of_rows(self) -> Tensor:
        rows = self.weight[: self.num_users]
        trained = (rows != 0).any(dim=1).sum()
        return rows.sum(dim=0) / trained.clamp(min=1)


def reset_layers(model: nn.Module) -> None:
    """Initialise all linear layers by Glorot's rule, with biases of 0, and reset the layer norms."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for module in model.modules():
        key_value = getattr(module, "key_value", None)
        if isinstance(key_value, nn.Linear):
            # Keys and values are two matrices in one layer. Glorot's rule applies to each of them.
            for part in key_value.weight.detach().chunk(2):
                nn.init.xavier_uniform_(part)


class FeedForward(nn.Module):
    """Point-wise feed-forward network with ReLU (SASRec eq. 6) and a residual connection."""

    def __init__(self, embedding_dim: int, hidden_dims: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        widths = (embedding_dim, *hidden_dims, embedding_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """``residual + network(x)``, ``[T, D]``."""
        active = self.dropout.active
        plain = all(type(layer) is nn.Linear for layer in self.layers)  # not a replacement, such as a quantised layer
        if plain and (not active or self.dropout.random is not None) and kernels.usable(x, residual):
            layers: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in self.layers]  # type: ignore[misc]
            words = [self.dropout.words("tokens", len(x), len(bias)) for _, bias in layers] if active else None
            return kernels.feedforward(x, residual, layers, words, self.dropout.probability)
        for layer in self.layers[:-1]:
            x = self.dropout(F.relu(layer(x)))
        return residual + self.dropout(self.layers[-1](x))
