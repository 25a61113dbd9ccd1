"""SSE-PT: sequential recommendation via personalized transformer (Wu, Li, Hsieh & Sharpnack, RecSys 2020)."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Options, Range, Share, Weight
from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout, UserEmbedding, add_positions, reset_layers
from seqrec.models.sasrec import SASRecBlock, SASRecConfig, through_blocks


@dataclass(frozen=True)
class SSEPTConfig(Options):
    """Sizes and regularisation of SSE-PT; hidden states are ``embedding_dim + user_dim`` wide.

    Args:
        max_length: Number of most recent items of a history that the model sees (T in the paper).
        embedding_dim: Width of the item embeddings (d_i in the paper).
        user_dim: Width of the user embeddings (d_u in the paper).
        num_blocks: Number of self-attention blocks (B in the paper).
        num_heads: Number of attention heads; they divide the attention's width among them.
        dropout: Dropout on the embedded input, the attention weights and the point-wise network.
        sse_user: Probability that training shows a history as another user's (p_u in the paper). With a low value the
            model learns users of few items by heart.
        sse_item: Probability that training replaces an item of the history by another (p_i in the paper).
        sse_target: Probability that training replaces a target by another item (p_y in the paper).
        random_start: Probability that training shows a random window of a history longer than ``max_length`` instead
            of its end (p_s in the paper). Above 0 the model is the paper's SSE-PT++.
        attention_dim: Width of queries, keys and values. By default that of the hidden states.
        feedforward_dims: Hidden widths of the point-wise network. By default one layer as wide as the hidden states.
        norm: Place of the layer norm: paper, pre or post, as in SASRec.
        l2: Weight of the squared norm of the embeddings that a batch looks up, averaged over tokens for items and over
            histories for users.
    """

    max_length: Length = 50
    embedding_dim: Count = 64
    user_dim: Count = 64
    num_blocks: Annotated[int, Range(0)] = 2
    num_heads: Count = 1
    dropout: Dropped = 0.5
    sse_user: Share = 0.95
    sse_item: Share = 0.05
    sse_target: Share = 0.0
    random_start: Share = 0.0
    attention_dim: Count | None = None
    feedforward_dims: Annotated[tuple[int, ...], Range(1)] | None = None
    norm: Literal["paper", "pre", "post"] = "paper"
    l2: Weight = 0.0

    def check(self) -> None:
        """Refuse heads that do not divide the attention's width."""
        self.blocks()

    def resolved(self) -> "SSEPTConfig":
        """With the widths that follow from the two embeddings."""
        blocks = self.blocks().resolved()
        return replace(self, attention_dim=blocks.attention_dim, feedforward_dims=blocks.feedforward_dims)

    def blocks(self) -> SASRecConfig:
        """What the self-attention blocks are made of."""
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
    """SASRec with the user's embedding u_i joined to that of every item v_j, at both ends.

    Numbers of equations and sections are those of the RecSys paper.

    - Input (eq. 2): ``[v_j; u_i] + p`` at every position, with position embeddings of the joint width. The
      authors' code scales both tables by the root of their width, as SASRec does, and so do we.
    - Blocks: SASRec's, at the joint width, with a final layer norm as in the authors' code.
    - Score (eq. 3, 4): ``r = F_t . [v_l; u_i]``. The user's part is the same for all items l, so the hidden
      state that ``encode`` gives is ``[F_t's item part; F_t's user part . u_i]`` and an item's vector ``[v_l; 1]``,
      which is the same score by a plain dot product. u_i is scaled here as in the input, v_l is not: so the
      authors' code; the paper has no scales.
    - Loss: binary cross-entropy (eq. 5), with one uniform negative in the authors' code, which ``--loss bce``
      gives. As for SASRec the default is sampled softmax, which needs far fewer epochs to tell the users apart. The
      user's part sets the level of a user's scores: it matters to binary cross-entropy (and where BPR-max and TOP1-max
      keep scores near 0), and cancels in the ranking and in softmax losses, so with those the user speaks
      through the input alone.
    - Stochastic shared embeddings (section 3.2): in training the user gives way to another, at input and
      output together, with the probability ``sse_user``; each input item with ``sse_item``; each target with
      ``sse_target``; all others are as likely (SSE: Wu et al., NeurIPS 2019). We follow the paper: three
      independent draws, and never what was there. The authors' code (sampler.py) has one probability
      for items, at which both the input item and its target become random; the random input is then also
      the target of the item before. So with its ``threshold_item`` of 0.9 an input changes with
      probability 0.1 and a target with 0.19. It draws among all, so nothing may change. Its thresholds are the
      probabilities of keeping, so the 0.08 that its page runs it with exchanges nine users in ten; so does the
      default here (what lower ones do is in benchmarks/RESULTS.md). A target that was exchanged is not
      its own negative, as no item of the history is.
    - SSE-PT++ (section 3.3): ``random_start``.

    Positions count from the end of the window, as in SASRec.

    Somebody who was not there in training (-1 in ``batch.users``) gets the mean of all user embeddings. With
    ``sse_user`` above 0 training shows histories as any user's, so all users of the log train; with 0, those of fewer
    than two items don't, and get the mean of the others.
    """

    Config = SSEPTConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding", "user_embedding"})
    BIAS_COLUMN = True
    config: SSEPTConfig

    def __init__(self, config: SSEPTConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.num_users = num_users
        self.random_start = config.random_start
        blocks = config.blocks()
        self.item_embedding = nn.Embedding(num_items + 1, config.embedding_dim)
        self.user_embedding = UserEmbedding(num_users, config.user_dim)
        self.position_embedding = nn.Embedding(config.max_length, blocks.embedding_dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(blocks) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(blocks.embedding_dim, eps=1e-8)
        self.reset()

    def reset(self) -> None:
        """Draw the weights anew: Glorot for matrices, narrow for the tables (see SASRec)."""
        reset_layers(self)
        for table in (self.item_embedding, self.user_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.01)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0
            self.user_embedding.weight[self.num_users] = 0

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, embedding_dim + 1]`` of the tokens; the last column is the user's part of the score."""
        users = self._scaled_users(batch)
        return self._states(batch, users, last_only=False, of_states=users.index_select(0, batch.rows))

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, embedding_dim + 1]`` of each user's last token."""
        users = self._scaled_users(batch)
        return self._states(batch, users, last_only=True, of_states=users)

    def _scaled_users(self, batch: Batch) -> Tensor:
        scaled: Tensor = self.user_embedding(batch.users) * self.config.user_dim**0.5
        return scaled

    def _states(self, batch: Batch, users: Tensor, last_only: bool, of_states: Tensor) -> Tensor:
        """From users' vectors ``[B, user_dim]``, and those of the users whose states are wanted, one a state."""
        config = self.config
        items = self.item_embedding(batch.items) * config.embedding_dim**0.5
        joined = torch.cat([items, users.index_select(0, batch.rows)], dim=1)
        x = add_positions(joined, batch, self.position_embedding, self.dropout)
        x = self.final_norm(through_blocks(self.blocks, x, batch, last_only))
        item_part, user_part = x.split([config.embedding_dim, config.user_dim], dim=1)
        return torch.cat([item_part, (user_part * of_states).sum(dim=1, keepdim=True)], dim=1)

    def item_vectors(self) -> Tensor:
        """The item embeddings and a column of ones, ``[I + 1, embedding_dim + 1]``."""
        return F.pad(self.item_embedding.weight, (0, 1), value=1.0)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., embedding_dim + 1]`` of some items."""
        return F.pad(self.item_embedding(items), (0, 1), value=1.0)

    def prepare_training(self, histories: Histories) -> None:
        """Without exchanged users, clear the embeddings of those who have nothing to train on."""
        if self.config.sse_user == 0:
            self.user_embedding.clear_untrained(histories.lengths)

    def corrupt(self, batch: Batch, random: np.random.Generator) -> Batch:
        """The batch with users, items and targets exchanged for others (stochastic shared embeddings)."""
        config = self.config
        return replace(
            batch,
            users=_exchanged(batch.users, config.sse_user, 0, self.num_users, random),
            items=_exchanged(batch.items, config.sse_item, 1, self.num_items, random),
            targets=_exchanged(batch.targets, config.sse_target, 1, self.num_items, random),
        )

    def penalty(self, batch: Batch) -> Tensor | None:
        """``l2`` times the mean squared norms of the embeddings of the batch's items and targets, and its users."""
        if self.config.l2 == 0.0:
            return None
        items = self.item_embedding(torch.cat([batch.items, batch.targets]))
        users = self.user_embedding(batch.users)
        return self.config.l2 * (items.square().sum(dim=1).mean() + users.square().sum(dim=1).mean())


def _exchanged(values: Tensor, probability: float, first: int, count: int, random: np.random.Generator) -> Tensor:
    """Each of ``first .. first + count - 1``, with the probability, for another of them; all others as they are."""
    if probability == 0 or count < 2:
        return values
    old = values.numpy()
    places = np.flatnonzero((random.random(len(old)) < probability) & (old >= first))
    new = old.copy()
    new[places] = first + (old[places] - first + random.integers(1, count, len(places))) % count
    return torch.from_numpy(new)
