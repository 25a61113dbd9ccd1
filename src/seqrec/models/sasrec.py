"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Range, Share, Weight
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Attention, Dropout, FeedForward, add_positions, mean_squared_norm, reset_layers
from seqrec.models.features import FeatureOptions, ItemEmbedding, UserEncoder
from seqrec.models.grouping import Grouping, group


@dataclass(frozen=True)
class SASRecConfig(FeatureOptions):
    """Sizes and regularisation of SASRec.

    Args:
        max_length: Number of most recent items of a history that the model sees (n in the paper). By default
            chosen from the log: 50, 100 or 200.
        embedding_dim: Width of the item embeddings and hidden states (d in the paper).
        num_blocks: Number of self-attention blocks (b in the paper).
        num_heads: Number of attention heads. They split ``attention_dim`` evenly.
        dropout: Dropout on the embedded input, the attention weights and the point-wise network. By default chosen from
            the log: 0.5, as in the paper, for short histories, 0.2 for long ones.
        attention_dim: Width of queries, keys and values. By default ``embedding_dim``.
        feedforward_dims: Hidden widths of the point-wise network. By default one layer of ``embedding_dim``.
        norm: Place of the layer norm. paper: on the queries and on the input of the point-wise network, as in the
            authors' code; pre: before attention and before the network, inside the residual connection; post: after
            each residual connection.
        random_start: Probability that training shows a random window of a history longer than ``max_length`` instead
            of its end, so that the model also learns from older items (as SSE-PT++ does, Wu et al. 2020).
        l2: Weight of the squared norm of the embeddings that a batch looks up, averaged over tokens.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50, "dropout": 0.5}

    max_length: Length | None = None
    embedding_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    num_heads: Count = 1
    dropout: Dropped | None = None
    attention_dim: Count | None = None
    feedforward_dims: Annotated[tuple[int, ...], Range(1)] | None = None
    norm: Literal["paper", "pre", "post"] = "paper"
    random_start: Share = 0.0
    l2: Weight = 0.0

    def check(self) -> None:
        """Raise an InputError if ``num_heads`` does not divide ``attention_dim``."""
        super().check()
        width = self.attention_dim or self.embedding_dim
        if width % self.num_heads:
            raise InputError(f"attention_dim {width} is not a multiple of num_heads {self.num_heads}; give one that is")

    def resolved(self) -> "SASRecConfig":
        """A copy in which ``PLAIN`` and the widths that follow from ``embedding_dim`` are filled in."""
        dim = self.embedding_dim
        widths = {
            "attention_dim": self.attention_dim or dim,
            "feedforward_dims": self.feedforward_dims or (dim,),
        }
        return replace(super().resolved(), **widths)  # type: ignore[arg-type]


class SASRecBlock(nn.Module):
    """Causal self-attention and a point-wise feed-forward network, each with residual and norm."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        assert config.dropout is not None  # a resolved config has one
        dim = config.embedding_dim
        self.norm = config.norm
        self.attention_norm = nn.LayerNorm(dim, eps=1e-8)
        self.attention = Attention(dim, config.attention_dim or dim, config.num_heads, config.dropout)
        self.feedforward_norm = nn.LayerNorm(dim, eps=1e-8)
        self.feedforward = FeedForward(dim, config.feedforward_dims or (dim,), config.dropout)

    def forward(self, x: Tensor, grouping: Grouping, last: Tensor | None = None) -> Tensor:
        """Packed ``[T, D]`` to ``[T, D]``; with ``last int64[B]``, to ``[B, D]`` for the users' last tokens only."""
        parameters = self._kernel_parameters(x, last)
        if parameters is not None:
            return self._run_kernel(x, grouping, parameters, last is not None)
        if self.norm == "paper":
            queries = self.attention_norm(select_tokens(x, last))
            x = self.feedforward_norm(queries + self.attention(queries, x, grouping, last))
            return self.feedforward(x, x)
        if self.norm == "pre":
            normed = self.attention_norm(x)
            x = select_tokens(x, last) + self.attention(select_tokens(normed, last), normed, grouping, last)
            return self.feedforward(self.feedforward_norm(x), x)
        queries = select_tokens(x, last)
        x = self.attention_norm(queries + self.attention(queries, x, grouping, last))
        return self.feedforward_norm(self.feedforward(x, x))

    def weights_of_last(self, x: Tensor, batch: Batch) -> Tensor:
        """Attention weights ``[T]`` of each user's last token, given the packed input ``[T, D]`` of this block."""
        keys = self.attention_norm(x) if self.norm == "pre" else x
        queries = select_tokens(keys, batch.last)
        if self.norm == "paper":
            queries = self.attention_norm(queries)
        return self.attention.weights_of_last(queries, keys, batch.rows)

    def _kernel_parameters(self, x: Tensor, last: Tensor | None) -> list[Tensor] | None:
        """The parameters that ``kernels.attention_block`` takes, or None if it cannot compute this block.

        It computes blocks of the default shape, in which no layer has been replaced.
        """
        attention, network = self.attention, self.feedforward
        layers = (attention.query, attention.key_value, *network.layers)
        norms = (self.attention_norm, self.feedforward_norm)
        active = network.dropout.active
        if (
            {*map(type, layers)} != {nn.Linear}
            or {*map(type, norms)} != {nn.LayerNorm}
            or attention.output is not None
            or len(layers) != 4
            or active != attention.dropout.active
            or (active and (last is not None or None in (network.dropout.random, attention.dropout.random)))
            or (last is not None and torch.is_grad_enabled())
        ):
            return None
        parts = (norms[0], *layers[:2], norms[1], *layers[2:])
        # `parameters(recurse=False)` takes ten times as long.
        parameters = [parameter for part in parts for parameter in part._parameters.values() if parameter is not None]
        return parameters if kernels.usable(x, *parameters) else None

    def _run_kernel(self, x: Tensor, grouping: Grouping, parameters: list[Tensor], last_only: bool) -> Tensor:
        """The same as ``forward``, with the same random numbers, in one compiled pass."""
        attention, dropout = self.attention, self.feedforward.dropout
        words = None
        if dropout.active:
            tokens, counts = len(x), (parameters[9].numel(), parameters[11].numel())  # sizes of the network's biases
            words = [attention.dropout.words(*grouping.unit_pairs, times=attention.num_heads)]
            words += [dropout.words("tokens", tokens, count) for count in counts]
        return kernels.attention_block(
            x,
            grouping.offsets,
            parameters,
            attention.num_heads,
            self.norm,
            self.attention_norm.eps,
            words,
            dropout.probability,
            last_only,
        )


def select_tokens(x: Tensor, tokens: Tensor | None) -> Tensor:
    """The rows ``tokens`` of ``x``, or all of them."""
    return x if tokens is None else x.index_select(0, tokens)


def through_blocks(blocks: nn.ModuleList, x: Tensor, batch: Batch, last_only: bool) -> Tensor:
    """Packed ``[T, D]`` through all blocks; with ``last_only``, to ``[B, D]`` for the users' last tokens.

    Only the last block can skip the other tokens: the blocks before it need them as keys.
    """
    grouping = group(batch)
    last = batch.last if last_only else None
    for number, block in enumerate(blocks, start=1):
        x = block(x, grouping, last if number == len(blocks) else None)
    return x if len(blocks) else select_tokens(x, last)


def attention_through_blocks(blocks: nn.ModuleList, x: Tensor, batch: Batch) -> Tensor | None:
    """Attention weights ``[T]`` of each user's last token in the last block, given the input of the first, ``[T, D]``.

    None if there is no block.
    """
    if len(blocks) == 0:
        return None
    weights: Tensor = blocks[-1].weights_of_last(through_blocks(blocks[:-1], x, batch, last_only=False), batch)  # type: ignore[operator]
    return weights


class SASRec(Model):
    """The model of the paper: eq. 1 (embedding), 2 to 6 (blocks), 7 (dot product with the items).

    Positions count from the end of the window, so the most recent item always has the last one, as in the left-padded
    sequences of the authors' code.
    """

    Config = SASRecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding"})
    VECTORS_OF_ITEMS = True
    config: SASRecConfig

    def __init__(self, config: SASRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        self.random_start = config.random_start
        assert config.dropout is not None
        dim = config.embedding_dim
        # No padding_idx: packed batches have no padding, and torch would search every gradient for it.
        self.item_embedding = ItemEmbedding(num_items, dim, config)
        self.user_encoder = UserEncoder(num_users, dim, config)
        self.position_embedding = nn.Embedding(self.max_length, dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(dim, eps=1e-8)
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: Glorot's rule for matrices, as in the authors' code, and small values for the tables.

        Adam moves a weight by about the learning rate per step, so tables with large values hardly change for many
        epochs. On games.txt, 5 epochs reach a sampled NDCG@10 of 0.38 with a standard deviation of 0.01, which is what
        Glorot's rule gives for about twenty thousand items, and 0.28 with 1 / sqrt(d).
        """
        reset_layers(self)
        for table in (self.item_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.01)
        self.item_embedding.reset_rest(0.01)
        self.user_encoder.reset(0.01)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]`` of the tokens."""
        return self.final_norm(through_blocks(self.blocks, self._embedded(batch), batch, last_only=False))

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D]`` of the users' last tokens."""
        return self.final_norm(through_blocks(self.blocks, self._embedded(batch), batch, last_only=True))

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Attention weights ``[T]`` of the users' last tokens in the last block."""
        return attention_through_blocks(self.blocks, self._embedded(batch), batch)

    def _embedded(self, batch: Batch) -> Tensor:
        x = self.user_encoder(self.item_embedding(batch.items), batch)
        return add_positions(x, batch, self.position_embedding, self.dropout, self.config.embedding_dim**0.5)

    def compiled(self) -> kernels.Encoder | None:
        """What ``kernels.sasrec_gradients`` takes in training, or None if it cannot compute this model.

        It computes models of the default shape, in which no layer has been replaced. What may change between steps is
        for the caller to look at: the type of the weights, whether they are trained, and dropout.
        """
        table, places, norm = self.item_embedding, self.position_embedding, self.final_norm
        if (type(table), type(places), type(norm)) != (ItemEmbedding, nn.Embedding, nn.LayerNorm):
            return None  # a divided table has no weight that could be looked at
        if (
            self.config.l2
            or table.encoder is not None
            or self.user_encoder.encoder is not None
            or not table.sparse
            or places.sparse
        ):
            return None
        blocks = []
        for block in self.blocks:
            assert isinstance(block, SASRecBlock)
            parameters = block._kernel_parameters(table.weight, None)
            if parameters is None:
                return None
            blocks.append(parameters)
        encoder = kernels.Encoder(
            table.weight, places.weight, blocks, norm.weight, norm.bias, self.config.num_heads, self.config.norm,
            norm.eps, self.config.embedding_dim**0.5, self.dropout.probability,
        )  # fmt: skip
        return encoder if all(x.is_contiguous() for x in (table.weight, *encoder.dense)) else None

    def words(self, encoder: kernels.Encoder, batch: Batch) -> Tensor | None:
        """The random words that ``encode`` would draw, for ``kernels.sasrec_gradients``; None without dropout."""
        if not self.dropout.active:
            return None
        random, tokens = self.dropout.random, len(batch.items)
        assert random is not None
        counts = kernels.words_of_encoder(encoder, batch.offsets)
        if random.part is None:  # drawing all at once gives the same numbers
            return torch.from_numpy(random.words("tokens", sum(-(-count // 4) * 4 for count in counts)))
        grouping = group(batch)
        drawn = [self.dropout.words("tokens", tokens, counts[0] // tokens)]
        for _ in self.blocks:  # all layers share the same source of random numbers
            drawn += [self.dropout.words(*grouping.unit_pairs, times=encoder.num_heads)]
            drawn += [self.dropout.words("tokens", tokens, count // tokens) for count in counts[2:4]]
        return torch.cat([F.pad(part, (0, -len(part) % 4)) for part in drawn])

    def item_vectors(self) -> Tensor:
        """The item embeddings ``[I + 1, D]``, shared by input and output."""
        return self.item_embedding.all()

    def vectors_of(self, items: Tensor) -> Tensor:
        """Embeddings ``[..., D]`` of some items, ``int64[...]``."""
        return self.item_embedding(items)

    def penalty(self, batch: Batch) -> Tensor | None:
        """``l2`` times the mean squared norm of the embeddings of the batch's items and targets."""
        if self.config.l2 == 0.0:
            return None
        return self.config.l2 * mean_squared_norm(self.item_embedding(torch.cat([batch.items, batch.targets])))
