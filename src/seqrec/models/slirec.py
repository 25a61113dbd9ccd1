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
from seqrec.device import not_compiled
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout
from seqrec.models.grouping import Grouping, Steps, group

_CELLS = 2**20  # numbers in the widest layer of a block of scores, so that it fits into the cache
_DAY = 86_400


@dataclass(frozen=True)
class SLiRecConfig(Options):
    """Sizes and regularisation of SLi-Rec.

    Args:
        max_length: Number of most recent items of a history that the model sees.
        embedding_dim: Width of the item embeddings (including the category's), of the short-term states and of both
            preferences.
        attention_dim: Width of the long-term attention.
        attention_length: Number of most recent short-term states that a candidate attends to, at most ``max_length``.
            The cost of scoring grows with it.
        attention_hidden_dims: Hidden widths of the candidate's attention network and of the fusion network.
        hidden_dims: Hidden widths of the prediction network.
        num_categories: Number of item categories to learn, the most frequent first. By default all in the item table
            (from --items, or a category column of the log); 0 turns them off.
        category_dim: Part of ``embedding_dim`` that is the category's embedding, if items have categories.
        dropout: Dropout on the embedded history and on the hidden layers of the prediction network.
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
        """Raise an InputError if the category's embedding leaves no width for the item's."""
        if self.num_categories and self.category_dim >= self.embedding_dim:
            advice = f"give less than embedding_dim {self.embedding_dim}, or num_categories 0"
            raise InputError(f"category_dim is {self.category_dim}; {advice}")


def log_interval(seconds: Tensor) -> Tensor:
    """Time on a logarithmic scale: 0 for 0 s, 1 for a day, 1.5 for a year."""
    return seconds.abs().to(torch.float32).log1p() / math.log1p(_DAY)


class TimeLSTM(nn.Module):
    """The short-term network with its time-aware controller (``Time4LSTMCell`` in the authors' code).

        delta_k = tanh(w_d d_k + b_d),   s_k = tanh(w_s e_k + b_s)
        T_delta = sigmoid(W_xd x_k + W_d delta_k + b),   T_s = sigmoid(W_xs x_k + W_s s_k + b)
        i, f = sigmoid(W [x_k, h_k-1] + b),   j = tanh(W [x_k, h_k-1] + b)
        o = sigmoid(W [x_k, h_k-1] + V_d delta_k + V_s s_k + b)
        c_k = f T_delta c_k-1 + i T_s j,   h_k = o tanh(c_k)

    d_k is the interval since the last action, e_k the time since the first one of the window.

    Everything that depends only on the input is computed in one go. The loop over time processes the users whose
    histories have not ended, longest first.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 6 * dim)  # i, f, o, j, T_delta, T_s
        self.recurrent = nn.Linear(dim, 4 * dim, bias=False)  # i, f, o, j
        self.since_last = nn.Linear(1, dim)
        self.since_first = nn.Linear(1, dim)
        self.last_gates = nn.Linear(dim, 2 * dim, bias=False)  # o, T_delta
        self.first_gates = nn.Linear(dim, 2 * dim, bias=False)  # o, T_s

    @not_compiled  # the number of steps changes with every batch
    def forward(self, x: Tensor, since_last: Tensor, since_first: Tensor, batch: Batch) -> Tensor:
        """States ``[T, D]`` of packed inputs ``[T, D]`` and intervals ``[T]``."""
        dim = x.shape[1]
        to_output, to_forget = self.last_gates(torch.tanh(self.since_last(since_last[:, None]))).split(dim, dim=1)
        to_output_too, to_input = self.first_gates(torch.tanh(self.since_first(since_first[:, None]))).split(dim, 1)
        gates, cell, forget, write = self.input(x).split([3 * dim, dim, dim, dim], dim=1)
        still = torch.cat([torch.zeros_like(gates[:, : 2 * dim]), to_output + to_output_too], dim=1)
        forget, write = torch.sigmoid(forget + to_forget), torch.sigmoid(write + to_input)

        # Ordered by time, so that a step is a slice.
        order = Steps(batch)
        together = torch.cat([gates + still, cell, forget, write], dim=1).index_select(0, order.tokens)
        counts = order.sizes
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
        return torch.cat(states).index_select(0, order.places) if states else x


class Network(nn.Module):
    """A network with one output. Its first layer can be applied to parts of the input separately.

    The authors' output layer has a bias. It can be left out if only a softmax reads the output, as a constant does not
    change a softmax.
    """

    def __init__(self, width: int, hidden_dims: tuple[int, ...], activation: nn.Module, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden_dims[0])
        self.middle = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden_dims))
        self.last = nn.Linear(hidden_dims[-1], 1, bias=bias)
        self.activation = activation

    def parts(self, *widths: int) -> tuple[Tensor, ...]:
        """The first layer's matrix, split by parts of the input."""
        return self.first.weight.split(widths, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """From the first layer's output ``[..., H]``, before its activation, to ``[..., 1]``."""
        x = self.activation(x)
        for layer in self.middle:
            x = self.activation(layer(x))
        output: Tensor = self.last(x)
        return output


class SLiRec(Model):
    """Long-term and short-term preferences, weighted for each candidate.

    Parts of the paper:

    - Long-term preference: attentive asymmetric SVD, a weighted mean of the embedded history.
    - Short-term states: an LSTM with a time-aware controller (:class:`TimeLSTM`).
    - Content-aware controller: attention of the candidate over these states. As in the authors' code, hidden layers
      are (80, 40) wide with sigmoid activations, and the candidate passes through a layer with PReLU.
    - Adaptive fusion: weights both preferences by ``alpha``, which depends on the candidate, both preferences and the
      time.
    - Prediction: a network over the fused preference and the candidate, as in Microsoft Recommenders, where the authors
      published the model again.

    The preference depends on the candidate, so there is no item vector for a dot product. ``encode`` returns
    everything that scoring needs, side by side: the long-term preference, the interval before the token, and the last
    ``attention_length`` states with their number and ages.

    Differences from the authors' code:

    - "Now" is the time of the token itself. The authors use the time of the target, which is unknown when recommending.
      They compute the states of each prefix of a history separately, each with its own "now". Here one pass computes
      the states of all prefixes, so no state can depend on its distance to the prediction. Instead, the second gate
      reads the time since the window's first action (which Recommenders passes to the other gate), the age of each
      state enters the candidate's attention, and alpha depends on the interval before the token.
    - Intervals are log(1 + seconds). The authors treat intervals below half a day as equal, which in some logs are
      most of them.
    - A candidate attends to the last ``attention_length`` states, not to all, which bounds the cost.
    - The input of the attention omits the difference of candidate and state, which its first layer can compute itself.
    - There is no batch normalisation, which would mix users.
    - Embeddings are multiplied by sqrt(d), so that tables with small initial values learn fast.

    The default loss is the log loss of a target and one negative per position; the authors' code also uses sampled
    negatives. With losses that share negatives, each negative is scored for each token, so give few of them.
    """

    Config = SLiRecConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding"})
    READS: ClassVar[frozenset[str]] = frozenset({"category"})
    USES_TIMES = True
    FACTORED = False
    LOSS: ClassVar[Loss] = "bce"
    config: SLiRecConfig
    categories: Tensor

    def __init__(self, config: SLiRecConfig, num_items: int, num_users: int = 0) -> None:
        del num_users  # the model knows users only by their history
        super().__init__()
        self.config = config
        self.num_items = num_items
        dim = config.embedding_dim
        item_dim = dim - config.category_dim if config.num_categories else dim
        self.item_embedding = nn.Embedding(num_items + 1, item_dim)
        if config.num_categories:
            self.category_embedding = nn.Embedding(config.num_categories + 1, config.category_dim)
            # Floats, so that averaging of the weights works on this buffer too.
            self.register_buffer("categories", torch.zeros(num_items + 1))
        self.long_attention = Network(dim, (config.attention_dim,), nn.Tanh(), bias=False)
        self.short_term = TimeLSTM(dim)
        self.query = nn.Linear(dim, dim)
        self.query_activation = nn.PReLU(dim, init=0.1)
        # inputs: state, candidate, their product, age
        self.attention = Network(3 * dim + 1, config.attention_hidden_dims, nn.Sigmoid(), bias=False)
        # inputs: candidate, long-term and short-term preference, interval
        self.fusion = Network(3 * dim + 1, config.attention_hidden_dims, nn.Sigmoid(), bias=True)
        # inputs: candidate, preference
        hidden = nn.Sequential(nn.ReLU(), Dropout(config.dropout))
        self.prediction = Network(2 * dim, config.hidden_dims, hidden, bias=True)
        self.dropout = Dropout(config.dropout)
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: Glorot for matrices, small values for the tables (see :meth:`SASRec.reset`)."""
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
                for part in stacked.weight.split(dim):  # each part is a matrix of its own
                    nn.init.xavier_uniform_(part)
            self.short_term.input.bias[dim : 2 * dim] = 1.0  # so that the LSTM starts by remembering
            self.item_embedding.weight[0] = 0

    def set_categories(self, categories: Tensor) -> None:
        """Set the category of each item: ``int64[I + 1]`` from 1 to ``num_categories``, or 0 if it is unknown.

        The categories are saved with the weights.

        Raises:
            ValueError: the shape is wrong, or a category is out of range.
        """
        if not self.config.num_categories:
            raise ValueError("num_categories is 0; build the model with the number of categories")
        if categories.shape != (self.num_items + 1,):
            raise ValueError(f"categories has the shape {tuple(categories.shape)}; give ({self.num_items + 1},)")
        if int(categories.min()) < 0 or int(categories.max()) > self.config.num_categories:
            low, high = int(categories.min()), int(categories.max())
            raise ValueError(f"categories are from {low} to {high}; give 0 to {self.config.num_categories}")
        self.categories.copy_(categories)

    def check_weights(self) -> None:
        """Check the categories too.

        Raises:
            ValueError: a table is zero everywhere, or a category is out of range.
        """
        super().check_weights()
        if self.config.num_categories:
            low, high = (float(value) for value in self.categories.aminmax())
            if low < 0 or high > self.config.num_categories or (self.categories != self.categories.floor()).any():
                raise ValueError("categories are out of range")

    def vectors(self, items: Tensor) -> Tensor:
        """Embeddings ``[..., D]`` of items: the item's own, followed by its category's."""
        vectors = self.item_embedding(items)
        if self.config.num_categories:
            vectors = torch.cat([vectors, self.category_embedding(self.categories[items].long())], dim=-1)
        return vectors * self.config.embedding_dim**0.5

    @property
    def slots(self) -> int:
        """Number of short-term states that a hidden state can hold (A)."""
        return min(self.config.attention_length, self.config.max_length)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D + 2 + A + A * D]``.

        They hold the long-term preference, the interval before the token, the number of short-term states, the ages
        of these, and the states themselves, most recent first.
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
        """``sum_k a_k x_k`` over the tokens up to each token, ``a = softmax(u . tanh(W x_k + b))``: ``[T, D]``."""
        logits = self.long_attention(self.long_attention.first(x))
        logits_G = grouping.spread(logits).transpose(1, 2)
        return grouping.collect(torch.bmm((logits_G + grouping.mask.to(x.dtype)).softmax(dim=2), grouping.spread(x)))

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits in the shapes of :meth:`Model.score`, computed in blocks, since each logit needs many numbers."""
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
            own = candidates if items.dim() == 1 else candidates[low : low + height]
            parts.append(torch.cat([self._score_block(block, part) for part in own.split(width, dim=-2)], dim=1))
        return torch.cat(parts) if parts else hidden.new_zeros(rows, columns)

    def _score_block(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Logits ``[R, C]`` of candidates, ``[C, D]`` for all rows or ``[R, C, D]`` for each row."""
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
        """``sum_k a_k h_k`` with each candidate's weights ``a``: ``[R, C, D]``. Empty slots get no weight."""
        dim = self.config.embedding_dim
        there = torch.arange(self.slots, device=count.device) < count
        if there.device.type == "cpu":
            row, slot = there.nonzero(as_tuple=True)
        else:  # all slots: the host would have to wait for the number of those that are not empty
            row = torch.arange(len(there), device=there.device).repeat_interleave(self.slots)
            slot = torch.arange(self.slots, device=there.device).repeat(len(there))
        state, age = states[row, slot], ages[row, slot][:, None]
        query = self.query_activation(self.query(candidates).flatten(0, -2)).view(candidates.shape)
        of_state, of_query, of_product, of_age = self.attention.parts(dim, dim, dim, 1)
        x = (F.linear(state, of_state, self.attention.first.bias) + F.linear(age, of_age))[:, None]
        by_query = F.linear(query, of_query)
        if candidates.dim() == 2:
            # One matrix per state, multiplied with all candidates.
            x = x + by_query + torch.matmul(query, state[:, :, None] * of_product.T)
        else:
            x = x + by_query[row] + F.linear(query[row] * state[:, None], of_product)
        logits = self.attention(x)[..., 0]
        columns = candidates.shape[-2]
        padded = logits.new_full((len(states), self.slots, columns), -torch.inf).index_put((row, slot), logits)
        if there.device.type != "cpu":
            padded = padded.masked_fill(~there[:, :, None], -torch.inf)
        return torch.bmm(padded.softmax(dim=1).transpose(1, 2).to(states.dtype), states)
