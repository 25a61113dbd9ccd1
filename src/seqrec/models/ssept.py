"""SSE-PT: sequential recommendation via personalized transformer (Wu, Li, Hsieh & Sharpnack, RecSys 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.draws import Draws, Unit
from seqrec.data.fields import Count, Dropped, Length, Range, Share, Weight
from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout, UserEmbedding, add_positions, mean_squared_norm, reset_layers
from seqrec.models.features import OWNERS, FeatureOptions, ItemEmbedding, UserEncoder, reads_users
from seqrec.models.sasrec import SASRecBlock, SASRecConfig, attention_through_blocks, through_blocks


@dataclass(frozen=True)
class SSEPTConfig(FeatureOptions):
    """Sizes and regularisation of SSE-PT; hidden states are ``embedding_dim + user_dim`` wide.

    Args:
        max_length: Number of most recent items of a history that the model sees (T in the paper). By default
            chosen from the log: 50, 100 or 200.
        embedding_dim: Width of the item embeddings (d_i in the paper).
        user_dim: Width of the user embeddings (d_u in the paper).
        num_blocks: Number of self-attention blocks (B in the paper).
        num_heads: Number of attention heads. They split ``attention_dim`` evenly.
        dropout: Dropout on the embedded input, the attention weights and the point-wise network. By default chosen from
            the log: 0.5 for short histories, 0.2 for long ones.
        sse_user: Probability that training shows a history as another user's (p_u in the paper). With a low value the
            model memorises users with few items.
        sse_item: Probability that training replaces an item of the history by another (p_i in the paper).
        sse_target: Probability that training replaces a target by another item (p_y in the paper).
        random_start: Probability that training shows a random window of a history longer than ``max_length`` instead
            of its end (p_s in the paper). Above 0 the model is the paper's SSE-PT++.
        attention_dim: Width of queries, keys and values. By default the width of the hidden states.
        feedforward_dims: Hidden widths of the point-wise network. By default one layer as wide as the hidden states.
        norm: Place of the layer norm: paper, pre or post, as in SASRec.
        l2: Weight of the squared norm of the embeddings that a batch looks up, averaged over tokens for items and over
            histories for users.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"max_length": 50, "dropout": 0.5}

    max_length: Length | None = None
    embedding_dim: Count = 64
    user_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    num_heads: Count = 1
    dropout: Dropped | None = None
    sse_user: Share = 0.95
    sse_item: Share = 0.05
    sse_target: Share = 0.0
    random_start: Share = 0.0
    attention_dim: Count | None = None
    feedforward_dims: Annotated[tuple[int, ...], Range(1)] | None = None
    norm: Literal["paper", "pre", "post"] = "paper"
    l2: Weight = 0.0

    def check(self) -> None:
        """Raise an InputError if ``num_heads`` does not divide ``attention_dim``."""
        super().check()
        self.blocks()

    def resolved(self) -> "SSEPTConfig":
        """A copy in which ``PLAIN`` and the widths that follow from the two embeddings are filled in."""
        blocks = self.blocks().resolved()
        return replace(super().resolved(), attention_dim=blocks.attention_dim, feedforward_dims=blocks.feedforward_dims)

    def blocks(self) -> SASRecConfig:
        """The configuration of the self-attention blocks."""
        return SASRecConfig(
            max_length=self.max_length,
            embedding_dim=self.embedding_dim + self.user_dim,
            attention_dim=self.attention_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            feedforward_dims=self.feedforward_dims,
            dropout=self.dropout,
            l2=self.l2,
            norm=self.norm,
        )


class SSEPT(Model):
    """SASRec with the user's embedding u_i concatenated to each item embedding v_j, at the input and at the output.

    Equation and section numbers refer to the RecSys paper.

    - Input (eq. 2): ``[v_j; u_i] + p`` at every position, with position embeddings of the joint width. Both tables are
      multiplied by the square root of their width, as in the authors' code and in SASRec.
    - Blocks: SASRec's, at the joint width, with a final layer norm as in the authors' code.
    - Score (eq. 3, 4): ``r = F_t . [v_l; u_i]``. The user's part is the same for all items l. So ``encode`` returns
      ``[F_t's item part; F_t's user part . u_i]``, and an item's vector is ``[v_l; 1]``; their dot product is the same
      score. As in the authors' code, u_i is scaled here as in the input and v_l is not; the paper scales neither.
    - Loss: binary cross-entropy (eq. 5), with one uniform negative in the authors' code; ``--loss bce`` selects it. The
      default is sampled softmax, as for SASRec, which needs far fewer epochs to tell users apart. The user's part
      shifts all scores of a user equally. It matters to binary cross-entropy, and to BPR-max and TOP1-max, which keep
      scores near 0. It cancels in the ranking and in softmax losses, with which the user has an effect only through
      the input.
    - Stochastic shared embeddings (section 3.2): in training, a user is replaced, at the input and the output alike,
      with the probability ``sse_user``, each input item with ``sse_item``, and each target with ``sse_target``. All
      replacements are equally likely (SSE: Wu et al., NeurIPS 2019). We follow the paper: the three draws are
      independent, and the replacement always differs from the original.

      The authors' code (sampler.py) has one probability for items, with which both an input item and its target
      become random; the random input is then also the target of the item before. So with its ``threshold_item`` of 0.9
      an input changes with probability 0.1 and a target with 0.19. It may also draw the original again. Its thresholds
      are the probabilities of keeping, so the 0.08 in its README replaces nine users in ten, and so does the default
      here (benchmarks/RESULTS.md compares lower values). A replaced target is never its own negative, nor is any item
      of the history.
    - SSE-PT++ (section 3.3): ``random_start``.

    Positions count from the end of the window, as in SASRec.

    A user who is not in the dataset (-1 in ``batch.users``) gets the mean of all user embeddings. With ``sse_user``
    above 0, training shows histories as any user's, so the embeddings of all users are trained. With 0, users with
    fewer than two items are not trained, and get the mean of the others.
    """

    Config = SSEPTConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding", "user_embedding"})
    VECTORS_OF_ITEMS = True
    BIAS_COLUMN = True
    config: SSEPTConfig

    def __init__(self, config: SSEPTConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.num_items = num_items
        self.num_users = num_users
        self.random_start = config.random_start
        assert config.dropout is not None
        blocks = config.blocks()
        self.item_embedding = ItemEmbedding(num_items, config.embedding_dim, config)
        self.user_encoder = UserEncoder(num_users, config.embedding_dim, config)
        self.user_embedding = UserEmbedding(num_users, config.user_dim)
        self.position_embedding = nn.Embedding(self.max_length, blocks.embedding_dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(blocks) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(blocks.embedding_dim, eps=1e-8)
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: Glorot for matrices, small values for the tables (see :meth:`SASRec.reset`)."""
        reset_layers(self)
        for table in (self.item_embedding, self.user_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.01)
        self.item_embedding.reset_rest(0.01)
        self.user_encoder.reset(0.01)
        with torch.no_grad():
            self.user_embedding.weight[self.num_users] = 0

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, embedding_dim + 1]`` of the tokens; the last column is the user's part of the score."""
        users = self._scaled_users(batch)
        return self._states(batch, users, last_only=False, users_of_states=users.index_select(0, batch.rows))

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, embedding_dim + 1]`` of the users' last tokens."""
        users = self._scaled_users(batch)
        return self._states(batch, users, last_only=True, users_of_states=users)

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Attention weights ``[T]`` of the users' last tokens in the last block."""
        return attention_through_blocks(self.blocks, self._embedded(batch, self._scaled_users(batch)), batch)

    def _scaled_users(self, batch: Batch) -> Tensor:
        scaled: Tensor = self.user_embedding(batch.users) * self.config.user_dim**0.5
        return scaled

    def _embedded(self, batch: Batch, users: Tensor) -> Tensor:
        """The input of the first block, ``[T, embedding_dim + user_dim]``, given the users' vectors."""
        items = self.user_encoder(self.item_embedding(batch.items), batch) * self.config.embedding_dim**0.5
        joined = torch.cat([items, users.index_select(0, batch.rows)], dim=1)
        return add_positions(joined, batch, self.position_embedding, self.dropout)

    def _states(self, batch: Batch, users: Tensor, last_only: bool, users_of_states: Tensor) -> Tensor:
        """Hidden states, given the users' vectors per history ``[B, user_dim]`` and per resulting state."""
        config = self.config
        x = self.final_norm(through_blocks(self.blocks, self._embedded(batch, users), batch, last_only))
        item_part, user_part = x.split([config.embedding_dim, config.user_dim], dim=1)
        return torch.cat([item_part, (user_part * users_of_states).sum(dim=1, keepdim=True)], dim=1)

    def item_vectors(self) -> Tensor:
        """Item embeddings ``[I + 1, embedding_dim + 1]``; the last column is 1."""
        return F.pad(self.item_embedding.all(), (0, 1), value=1.0)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., embedding_dim + 1]`` of some items."""
        return F.pad(self.item_embedding(items), (0, 1), value=1.0)

    def prepare_training(self, histories: Histories) -> None:
        """If ``sse_user`` is 0, zero the embeddings of users who have nothing to train on."""
        if self.config.sse_user == 0:
            self.user_embedding.clear_untrained(histories.lengths)

    def corrupt(self, batch: Batch, draws: Draws) -> Batch:
        """The batch with some users, items and targets replaced (stochastic shared embeddings).

        A replaced user has another's embedding, but keeps the own features: they say what is common to many users.
        """
        config = self.config
        return replace(
            batch,
            users=_replaced(batch.users, config.sse_user, 0, self.num_users, draws, "rows"),
            items=_replaced(batch.items, config.sse_item, 1, self.num_items, draws, "tokens"),
            targets=_replaced(batch.targets, config.sse_target, 1, self.num_items, draws, "tokens"),
            of_users={**batch.of_users, OWNERS: batch.users} if reads_users(self) else batch.of_users,
        )

    def penalty(self, batch: Batch) -> Tensor | None:
        """``l2`` times the mean squared norm of the batch's items and targets, plus that of its users."""
        if self.config.l2 == 0.0:
            return None
        items = self.item_embedding(torch.cat([batch.items, batch.targets]))
        users = self.user_embedding(batch.users)
        return self.config.l2 * (mean_squared_norm(items) + mean_squared_norm(users))


def _replaced(values: Tensor, probability: float, first: int, count: int, draws: Draws, unit: Unit) -> Tensor:
    """Replace each value, with the probability, by another from ``first`` to ``first + count - 1``.

    Values below ``first`` (padding, unknown users) stay as they are.
    """
    if probability == 0 or count < 2:
        return values
    old = values.numpy()
    chance, other = draws.uniform(unit, len(old), 2).reshape(-1, 2).T
    places = np.flatnonzero((chance < probability) & (old >= first))
    new = old.copy()
    steps = 1 + np.minimum((other[places] * (count - 1)).astype(np.int64), count - 2)
    new[places] = first + (old[places] - first + steps) % count
    return torch.from_numpy(new)
