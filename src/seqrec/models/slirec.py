"""SLi-Rec: adaptive user modelling with long and short-term preferences (Yu et al., IJCAI 2019)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Options, Range
from seqrec.data.negatives import Loss
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout
from seqrec.models.grouping import Grouping, group

_CELLS = 2**20  # numbers in the widest layer of a block of scores: what stays in the cache
_DAY = 86_400


@dataclass(frozen=True)
class SLiRecConfig(Options):
    """Sizes and regularisation of SLi-Rec.

    Args:
        max_length: Number of most recent items of a history that the model sees.
        embedding_dim: Width of the item embeddings (with the category's), of the short-term states and of both
            preferences.
        attention_dim: Width of the long-term attention.
        attention_length: Number of most recent short-term states that a candidate attends to, at most ``max_length``.
            The cost of scoring grows with it.
        attention_hidden_dims: Hidden widths of the candidate's attention and of the fusion.
        hidden_dims: Hidden widths of the network that predicts.
        num_categories: Number of item categories to learn, the most frequent first. By default all that the item table
            has (from --items, or a category column of the log); 0 turns them off.
        category_dim: Part of ``embedding_dim`` that belongs to the category, where items have one.
        dropout: Dropout on the embedded history and the hidden layers of the network that predicts.
    """

    max_length: Length = 50
    embedding_dim: Count = 64
    attention_dim: Count = 64
    attention_length: Annotated[int, Range(1, 1024)] = 20
    attention_hidden_dims: Annotated[tuple[int, ...], Range(1)] = (80, 40)
    hidden_dims: Annotated[tuple[int, ...], Range(1)] = (100, 64)
    num_categories: Annotated[int, Range(0)] | None = None
    category_dim: Count = 16
    dropout: Dropped = 0.2

    def check(self) -> None:
        """Refuse categories that leave the item no width."""
        if self.num_categories and self.category_dim >= self.embedding_dim:
            advice = f"give less than embedding_dim {self.embedding_dim}, or num_categories 0"
            raise InputError(f"category_dim is {self.category_dim}; {advice}")


def log_interval(seconds: Tensor) -> Tensor:
    """Time on a logarithmic scale: 0 for none, 1 for a day, 1.5 for a year."""
    return seconds.abs().to(torch.float32).log1p() / math.log1p(_DAY)


class TimeLSTM(nn.Module):
    """The short-term network with its time-aware controller; of the authors' code, ``Time4LSTMCell``.

        delta_k = tanh(w_d d_k + b_d),   s_k = tanh(w_s e_k + b_s)
        T_delta = sigmoid(W_xd x_k + W_d delta_k + b),   T_s = sigmoid(W_xs x_k + W_s s_k + b)
        i, f = sigmoid(W [x_k, h_k-1] + b),   j = tanh(W [x_k, h_k-1] + b)
        o = sigmoid(W [x_k, h_k-1] + V_d delta_k + V_s s_k + b)
        c_k = f T_delta c_k-1 + i T_s j,   h_k = o tanh(c_k)

    d_k is the interval since the last action, e_k the time since the first one of the window.

    All that depends on the input alone is computed at once. The loop over time computes the users who are still
    there, the longest histories first.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 6 * dim)  # i, f, o, j, T_delta, T_s
        self.recurrent = nn.Linear(dim, 4 * dim, bias=False)  # i, f, o, j
        self.since_last = nn.Linear(1, dim)
        self.since_first = nn.Linear(1, dim)
        self.last_gates = nn.Linear(dim, 2 * dim, bias=False)  # o, T_delta
        self.first_gates = nn.Linear(dim, 2 * dim, bias=False)  # o, T_s

    @torch.compiler.disable  # as many steps as the longest history has
    def forward(self, x: Tensor, since_last: Tensor, since_first: Tensor, batch: Batch) -> Tensor:
        """States ``[T, D]`` of packed inputs ``[T, D]`` and intervals ``[T]``."""
        dim = x.shape[1]
        to_output, to_forget = self.last_gates(torch.tanh(self.since_last(since_last[:, None]))).split(dim, dim=1)
        to_output_too, to_input = self.first_gates(torch.tanh(self.since_first(since_first[:, None]))).split(dim, 1)
        gates, cell, forget, write = self.input(x).split([3 * dim, dim, dim, dim], dim=1)
        still = torch.cat([torch.zeros_like(gates[:, : 2 * dim]), to_output + to_output_too], dim=1)
        forget, write = torch.sigmoid(forget + to_forget), torch.sigmoid(write + to_input)

        lengths = batch.lengths
        users = torch.argsort(lengths, descending=True, stable=True)
        rank = torch.empty_like(users)
        rank[users] = torch.arange(len(users), device=users.device)
        present = torch.bincount(batch.positions)  # users at each step
        places = (present.cumsum(0) - present)[batch.positions] + rank[batch.rows]
        by_time = torch.empty_like(places)
        by_time[places] = torch.arange(len(places), device=places.device)

        # In the order of time, so that a step is a slice.
        together = torch.cat([gates + still, cell, forget, write], dim=1).index_select(0, by_time)
        counts = present.tolist()
        weight = self.recurrent.weight.T
        memory = hidden = together.new_zeros(counts[0] if counts else 0, dim)
        states = []
        for step in together.split(counts):
            count = len(step)
            moved, forget, write = step.split([4 * dim, dim, dim], dim=1)
            moved = torch.addmm(moved, hidden[:count], weight)
            put, kept, output = torch.sigmoid(moved[:, : 3 * dim]).chunk(3, dim=1)
            memory = kept * forget * memory[:count] + put * write * torch.tanh(moved[:, 3 * dim :])
            hidden = output * torch.tanh(memory)
            states.append(hidden)
        return torch.cat(states).index_select(0, places) if states else x


class Network(nn.Module):
    """Layers to one output, whose first can meet the parts of its input one by one.

    The authors' output has a bias. ``bias`` leaves it out where only a softmax reads the output, which does not see it.
    """

    def __init__(self, width: int, hidden_dims: tuple[int, ...], activation: nn.Module, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden_dims[0])
        self.middle = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden_dims))
        self.last = nn.Linear(hidden_dims[-1], 1, bias=bias)
        self.activation = activation

    def parts(self, *widths: int) -> tuple[Tensor, ...]:
        """The first layer's matrix by parts of the input."""
        return self.first.weight.split(widths, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """From the first layer's output ``[..., H]``, before its activation, to ``[..., 1]``."""
        x = self.activation(x)
        for layer in self.middle:
            x = self.activation(layer(x))
        output: Tensor = self.last(x)
        return output


class SLiRec(Model):
    """Long and short-term preferences, weighed anew for each candidate.

    Parts of the paper: the long-term preference is attentive asymmetric SVD, a weighted mean of the embedded
    history; the short-term states come from an LSTM with a time-aware controller (:class:`TimeLSTM`); the
    content-aware controller is the attention of the candidate over these states; adaptive fusion weighs both
    preferences by ``alpha``, which sees the candidate, both preferences and the time; a network over the fused
    preference and the candidate predicts. The hidden widths (80, 40) and the candidate's attention are those of
    the authors' code (activations sigmoid, the candidate through a layer with PReLU); the network that predicts is
    that of Microsoft's Recommenders, where the authors published the model again.

    What a candidate meets depends on the candidate, so this model has no vector of an item to multiply with.
    ``encode`` gives what scoring needs, side by side: the long-term preference, the interval before the token, and
    the last ``attention_length`` states with their ages and number.

    Departures from the authors' code:

    - "Now" is the time of the token itself. The authors' is the time of the target, which is unknown when one
      recommends. They compute the states of each prefix of a history anew, with its own "now"; here one pass gives
      the states of all prefixes, so no state can know its distance to the prediction. Instead, the second gate
      reads the time since the window's first action (which Recommenders gives to the other gate), the age of each
      state enters the candidate's attention, and alpha sees the interval before the token.
    - Intervals are log(1 + seconds). The authors cut off below half a day, where most intervals of some
      logs lie.
    - A candidate looks at the last ``attention_length`` states, not all, to bound the cost.
    - The attention's input leaves out the difference of candidate and state, which its first layer
      makes of the two if it wants to. No batch normalisation, which mixes users.
    - Embeddings are multiplied by sqrt(d), so that narrow tables learn fast.

    Trained by the log loss of a target and one negative a position; that of the authors' code is one of sampled
    negatives, too.
    Losses that share negatives score each of them for each token here: give few.
    """

    Config = SLiRecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding"})
    READS: ClassVar[frozenset[str]] = frozenset({"category"})
    USES_TIMES = True
    USES_CATEGORIES = True
    FACTORED = False
    LOSS: ClassVar[Loss] = "bce"
    config: SLiRecConfig
    categories: Tensor

    def __init__(self, config: SLiRecConfig, num_items: int, num_users: int = 0) -> None:
        del num_users  # the model knows users by their history alone
        super().__init__()
        self.config = config
        self.num_items = num_items
        dim = config.embedding_dim
        of_item = dim - config.category_dim if config.num_categories else dim
        self.item_embedding = nn.Embedding(num_items + 1, of_item, padding_idx=0)
        if config.num_categories:
            self.category_embedding = nn.Embedding(config.num_categories + 1, config.category_dim)
            # Floats, which a running mean of the weights can average.
            self.register_buffer("categories", torch.zeros(num_items + 1))
        self.long_attention = Network(dim, (config.attention_dim,), nn.Tanh(), bias=False)
        self.short_term = TimeLSTM(dim)
        self.query = nn.Linear(dim, dim)
        self.query_activation = nn.PReLU(dim, init=0.1)
        # state, candidate, product; age
        self.attention = Network(3 * dim + 1, config.attention_hidden_dims, nn.Sigmoid(), bias=False)
        # candidate, long, short; interval
        self.fusion = Network(3 * dim + 1, config.attention_hidden_dims, nn.Sigmoid(), bias=True)
        # candidate, preference
        hidden = nn.Sequential(nn.ReLU(), Dropout(config.dropout))
        self.prediction = Network(2 * dim, config.hidden_dims, hidden, bias=True)
        self.dropout = Dropout(config.dropout)
        self.reset()

    def reset(self) -> None:
        """Draw the weights anew: Glorot for matrices, narrow for the tables (see :meth:`SASRec.reset`)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.01)
            elif isinstance(module, nn.PReLU):
                nn.init.constant_(module.weight, 0.1)
        dim = self.config.embedding_dim
        with torch.no_grad():
            for stacked in (self.short_term.input, self.short_term.recurrent, self.short_term.last_gates,
                            self.short_term.first_gates):  # fmt: skip
                for part in stacked.weight.split(dim):  # several matrices, multiplied at once
                    nn.init.xavier_uniform_(part)
            self.short_term.input.bias[dim : 2 * dim] = 1.0  # to remember at first
            self.item_embedding.weight[0] = 0

    def set_categories(self, categories: Tensor) -> None:
        """Set the category of each item: ``int64[I + 1]`` from 1 to ``num_categories``, 0 where none is known.

        The categories are saved with the weights.

        Raises:
            ValueError: the shape is another, or a category is out of range.
        """
        if not self.config.num_categories:
            raise ValueError("num_categories is 0; build the model with as many as there are")
        if categories.shape != (self.num_items + 1,):
            raise ValueError(f"categories has the shape {tuple(categories.shape)}; give ({self.num_items + 1},)")
        if int(categories.min()) < 0 or int(categories.max()) > self.config.num_categories:
            raise ValueError(f"categories go from {int(categories.min())} to {int(categories.max())}")
        self.categories.copy_(categories)

    def check_weights(self) -> None:
        """Refuse categories that are out of range."""
        super().check_weights()
        if self.config.num_categories:
            low, high = (float(value) for value in self.categories.aminmax())
            if low < 0 or high > self.config.num_categories or (self.categories != self.categories.floor()).any():
                raise ValueError("categories are out of range")

    def vectors(self, items: Tensor) -> Tensor:
        """Embeddings ``[..., D]`` of items, those of their categories behind."""
        vectors = self.item_embedding(items)
        if self.config.num_categories:
            vectors = torch.cat([vectors, self.category_embedding(self.categories[items].long())], dim=-1)
        return vectors * self.config.embedding_dim**0.5

    @property
    def slots(self) -> int:
        """How many short-term states a hidden state has place for (A)."""
        return min(self.config.attention_length, self.config.max_length)

    def encode(self, batch: Batch) -> Tensor:
        """What scoring needs, ``[T, D + 2 + A + A * D]``.

        The long-term preference, the interval before the token, the number of states, their ages, and the
        states themselves, the last one first.
        """
        x = self.dropout(self.vectors(batch.items))
        total = len(batch.items)
        token = torch.arange(total, device=x.device)
        times = batch.timestamps
        since_last = log_interval(times - times[(token - 1).clamp(min=0)]) * (batch.positions > 0)
        since_first = log_interval(times - times[token - batch.positions])
        since_last, since_first = since_last.to(x.dtype), since_first.to(x.dtype)
        states = self.short_term(x, since_last, since_first, batch)
        back = torch.arange(self.slots, device=x.device)
        there = back <= batch.positions[:, None]
        source = torch.where(there, token[:, None] - back, token[:, None])
        ages = log_interval(times[:, None] - times[source]).to(x.dtype)
        seen = states.index_select(0, source.flatten()).view(total, self.slots, x.shape[1]) * there[:, :, None]
        count = there.sum(dim=1, keepdim=True).to(x.dtype)
        long = self._long_term(x, group(batch))
        return torch.cat([long, since_last[:, None], count, ages, seen.flatten(1)], dim=1)

    def _long_term(self, x: Tensor, grouping: Grouping) -> Tensor:
        """``sum_k a_k x_k`` over the tokens up to each, ``a = softmax(u . tanh(W x_k + b))``: ``[T, D]``."""
        logits = self.long_attention(self.long_attention.first(x))
        logits_G = grouping.spread(logits).transpose(1, 2)
        return grouping.collect(torch.bmm((logits_G + grouping.mask.to(x.dtype)).softmax(dim=2), grouping.spread(x)))

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits of items, as :meth:`Model.score` has it; in blocks, since each pair needs many numbers."""
        if items is None:
            items = torch.arange(self.num_items + 1, device=hidden.device)
        candidates = self.vectors(items)
        rows, columns = len(hidden), items.shape[-1]
        widest = self.slots * max(self.config.attention_hidden_dims)
        width = max(1, min(columns, _CELLS // widest))
        height = max(1, _CELLS // (widest * width))
        parts = []
        for low in range(0, rows, height):
            block = hidden[low : low + height]
            mine = candidates if items.dim() == 1 else candidates[low : low + height]
            parts.append(torch.cat([self._score_block(block, part) for part in mine.split(width, dim=-2)], dim=1))
        return torch.cat(parts) if parts else hidden.new_zeros(rows, columns)

    def _score_block(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Logits ``[R, C]`` of candidates ``[C, D]`` for all rows or ``[R, C, D]`` for each."""
        dim, slots, rows = self.config.embedding_dim, self.slots, len(hidden)
        long, interval, count, ages, flat = hidden.split([dim, 1, 1, slots, slots * dim], dim=1)
        states = flat.view(rows, slots, dim)
        short = self._short_term(states, ages, count, candidates)

        of_candidate, of_long, of_short, of_interval = self.fusion.parts(dim, dim, dim, 1)
        alpha = F.linear(candidates, of_candidate, self.fusion.first.bias) + F.linear(short, of_short)
        alpha = alpha + (F.linear(long, of_long) + F.linear(interval, of_interval))[:, None]
        alpha = torch.sigmoid(self.fusion(alpha))
        preference = short + alpha * (long[:, None] - short)

        of_candidate, of_preference = self.prediction.parts(dim, dim)
        x = F.linear(candidates, of_candidate, self.prediction.first.bias) + F.linear(preference, of_preference)
        logits: Tensor = self.prediction(x)[..., 0]
        return logits

    def _short_term(self, states: Tensor, ages: Tensor, count: Tensor, candidates: Tensor) -> Tensor:
        """``sum_k a_k h_k``, of candidates' own weights ``a``: ``[R, C, D]``. Only real states are computed."""
        dim = self.config.embedding_dim
        row, slot = (torch.arange(self.slots, device=count.device) < count).nonzero(as_tuple=True)
        state, age = states[row, slot], ages[row, slot][:, None]
        query = self.query_activation(self.query(candidates).flatten(0, -2)).view(candidates.shape)
        of_state, of_query, of_product, of_age = self.attention.parts(dim, dim, dim, 1)
        x = (F.linear(state, of_state, self.attention.first.bias) + F.linear(age, of_age))[:, None]
        by_query = F.linear(query, of_query)
        if candidates.dim() == 2:
            # A matrix for each state, which all candidates meet.
            x = x + by_query + torch.matmul(query, state[:, :, None] * of_product.T)
        else:
            x = x + by_query[row] + F.linear(query[row] * state[:, None], of_product)
        logits = self.attention(x)[..., 0]
        columns = candidates.shape[-2]
        padded = logits.new_full((len(states), self.slots, columns), -torch.inf).index_put((row, slot), logits)
        return torch.bmm(padded.softmax(dim=1).transpose(1, 2).to(states.dtype), states)
