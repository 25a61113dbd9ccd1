"""Caser: personalized top-N recommendation by convolutional sequence embedding (Tang & Wang, WSDM 2018)."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.fields import Count, Dropped, Length, Options, Range, Weight
from seqrec.data.negatives import Loss
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import Dropout, UserEmbedding, mean_squared_norm


@dataclass(frozen=True)
class CaserConfig(Options):
    """Sizes and regularisation of Caser.

    Args:
        max_length: Number of most recent items of a history that training and prediction read.
        window: Number of items before a position that the convolutions see (L in the paper); at most ``max_length``.
        num_targets: Number of items after a position that the model learns to predict (T in the paper).
        embedding_dim: Width of the item embeddings and of the sequence's vector (d in the paper).
        user_dim: Width of the user embeddings. By default ``embedding_dim``; 0 turns them off.
        horizontal_filters: Number of horizontal filters for each height from 1 to ``window`` (n in the paper).
        vertical_filters: Number of vertical filters, each as high as the window (n with a tilde in the paper).
        dropout: Dropout on the output of the convolutions.
        l2: Weight of the squared norm of the embeddings that a batch looks up, averaged over tokens, and of the squared
            weights of the filters and the fully connected layer.
    """

    max_length: Length = 50
    window: Count = 5
    num_targets: Count = 3
    embedding_dim: Count = 64
    user_dim: Annotated[int, Range(0)] | None = None
    horizontal_filters: Annotated[int, Range(0)] = 16
    vertical_filters: Annotated[int, Range(0)] = 4
    dropout: Dropped = 0.5
    l2: Weight = 0.0

    def check(self) -> None:
        """Raise an InputError if there are no filters, or the window is longer than ``max_length``."""
        if self.horizontal_filters + self.vertical_filters == 0:
            raise InputError("there are no filters; give horizontal_filters or vertical_filters above 0")
        if self.window > self.max_length:
            raise InputError(f"window is {self.window}, more than max_length {self.max_length}; give at most that")

    def resolved(self) -> "CaserConfig":
        """A copy in which the width of the user embeddings is filled in."""
        return replace(self, user_dim=self.embedding_dim if self.user_dim is None else self.user_dim)


class Caser(Model):
    """The model of the paper, computed for all positions of a history at once.

    - Embedding (section 3.1): the last ``window`` items up to each position; zeros before the start of the history.
    - Horizontal convolutions (section 3.2): ReLU of each filter at each place in the window, then the maximum over the
      places. The value of a filter at a place is the same in all windows that contain it, so it is computed once.
    - Vertical convolutions (section 3.2): weighted sums of the window's embeddings, without activation.
    - Fully connected layer (section 3.3): ``z = ReLU(W [o, o~] + b)``, the sequence's vector, with dropout before it.
    - Output (section 3.3): ``y = W' [z, P_user] + b'``. W' and b' are the columns of one table.
    - Training (section 3.4): the sum of the binary cross-entropies of the next ``num_targets`` items and of their
      negatives. The paper draws 3 per target (``negatives=3``).

    The paper and the authors' code differ:

    - The paper does not say which activations it uses. The code uses ReLU, and so do we.
    - The code adds a bias to all filters. We add it to the horizontal ones, where a filter needs a threshold to detect
      that two items came together, but not to the vertical ones, where the bias of z already has the same effect.
    - The code's loss is the mean over targets plus the mean over negatives. We sum over a target's negatives, as in
      the paper.
    - Both train only on positions with ``window`` items before them and ``num_targets`` after them; the code adds one
      padded position for a shorter history. We train on every position, with the targets that it has, since logs of
      short histories would otherwise leave almost nothing to train on.
    - The code's weight decay changes all parameters at every step. ``l2`` applies to those that a batch reads.

    Users without anything to train on get the mean of the trained user embeddings, and so do users who are not in the
    dataset.
    """

    Config = CaserConfig
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset({"item_embedding", "user_embedding", "output"})
    BIAS_COLUMN = True
    LOSS: ClassVar[Loss] = "bce"
    config: CaserConfig

    def __init__(self, config: CaserConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.num_users = num_users
        dim, window = config.embedding_dim, config.window
        self.user_dim = dim if config.user_dim is None else config.user_dim
        self.item_embedding = nn.Embedding(num_items + 1, dim)
        self.user_embedding = UserEmbedding(num_users, self.user_dim) if self.user_dim else None
        # W', with b' in the last column.
        self.output = nn.Embedding(num_items + 1, dim + self.user_dim + 1)
        # By j: the filter rows for the item j places before a filter's end, n for each height from j + 1 to window.
        filters = config.horizontal_filters
        self.horizontal = nn.ParameterList(
            torch.empty((window - j) * filters, dim) for j in range(window if filters else 0)
        )
        self.horizontal_bias = nn.Parameter(torch.empty(window * filters)) if filters else None
        # A column per item of the window, the oldest first.
        self.vertical = nn.Parameter(torch.empty(config.vertical_filters, window)) if config.vertical_filters else None
        self.dropout = Dropout(config.dropout)
        self.fully_connected = nn.Linear(config.vertical_filters * dim + window * filters, dim)
        self.reset()

    def reset(self) -> None:
        """Initialise the weights: Glorot's rule for matrices and filters, small values for the tables."""
        window, filters, dim = self.config.window, self.config.horizontal_filters, self.config.embedding_dim
        nn.init.xavier_uniform_(self.fully_connected.weight)
        nn.init.zeros_(self.fully_connected.bias)
        with torch.no_grad():
            for j, taps in enumerate(self.horizontal):
                for height in range(j + 1, window + 1):
                    bound = (6 / (height * dim + filters)) ** 0.5
                    taps[(height - j - 1) * filters : (height - j) * filters].uniform_(-bound, bound)
        if self.vertical is not None:
            nn.init.xavier_uniform_(self.vertical)
        if self.horizontal_bias is not None:
            nn.init.zeros_(self.horizontal_bias)
        for table in (self.item_embedding, self.user_embedding, self.output):
            if table is not None:
                nn.init.normal_(table.weight, std=0.01)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0
            self.output.weight[:, -1] = 0
            self.output.weight[0] = 0

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, embedding_dim + user_dim + 1]``: z, the user's embedding and 1."""
        x = self.item_embedding(batch.items)
        parts = []
        if self.vertical is not None:
            parts.append(self._vertical(x, batch.positions))
        if self.horizontal_bias is not None:
            parts.append(self._horizontal(x, batch.positions))
        state = F.relu(self.fully_connected(self.dropout(torch.cat(parts, dim=1))))
        outputs = [state, state.new_ones(len(state), 1)]
        if self.user_embedding is not None:
            outputs.insert(1, self.user_embedding(batch.users)[batch.rows])
        return torch.cat(outputs, dim=1)

    def _vertical(self, x: Tensor, positions: Tensor) -> Tensor:
        """Weighted sums over the window, ``[T, D]`` to ``[T, filters * D]``."""
        assert self.vertical is not None
        window = torch.stack([_earlier(x, j, positions) for j in reversed(range(self.config.window))])
        mixed = self.vertical @ window.flatten(1)
        return mixed.view(len(mixed), *x.shape).transpose(0, 1).flatten(1)

    def _horizontal(self, x: Tensor, positions: Tensor) -> Tensor:
        """Highest value of each filter in the window, ``[T, D]`` to ``[T, window * filters]``, ordered by height."""
        assert self.horizontal_bias is not None
        window, filters = self.config.window, self.config.horizontal_filters
        # The value of each filter with its end at each token. Items before the start of the history are zeros.
        ends = F.linear(x, self.horizontal[0])
        for j in range(1, window):
            ends = ends + F.pad(_earlier(F.linear(x, self.horizontal[j]), j, positions), (j * filters, 0))
        # A filter of height h fits into the window if it ends at most window - h tokens before the last one. Before
        # the start of the history its value is 0. The bias and ReLU are monotonic, so they can follow the maximum.
        places = []
        for j in range(window):
            room = (window - j) * filters
            place = _earlier(ends[:, :room], j, positions)
            places.append(F.pad(place, (0, window * filters - room), value=-torch.inf))
        return F.relu(torch.stack(places).amax(dim=0) + self.horizontal_bias)

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, embedding_dim + user_dim + 1]``; the last column is the bias."""
        return self.output.weight

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors and biases ``[..., embedding_dim + user_dim + 1]`` of some items."""
        return self.output(items)

    def prepare_training(self, histories: Histories) -> None:
        """Zero the embeddings of users who have nothing to train on."""
        if self.user_embedding is not None:
            self.user_embedding.clear_untrained(histories.lengths)

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Pairs of a token and one of the next ``num_targets`` items of its history."""
        count = self.config.num_targets
        if count == 1:
            return None, batch.targets
        steps = torch.arange(count)
        left = batch.lengths[batch.rows] - batch.positions
        token, step = torch.nonzero(steps < left[:, None], as_tuple=True)
        return token, batch.targets[token + step]

    def penalty(self, batch: Batch) -> Tensor | None:
        """``l2`` times the mean squared norms of the batch's embeddings plus the squared weights of the filters."""
        if self.config.l2 == 0.0:
            return None
        squares = mean_squared_norm(self.item_embedding(batch.items))
        squares = squares + mean_squared_norm(self.output(batch.targets))
        if self.user_embedding is not None:
            squares = squares + mean_squared_norm(self.user_embedding(batch.users))
        dense = [*self.horizontal, self.fully_connected.weight]
        if self.vertical is not None:
            dense.append(self.vertical)
        return self.config.l2 * (squares + torch.stack([weight.square().sum() for weight in dense]).sum())


def _earlier(x: Tensor, steps: int, positions: Tensor) -> Tensor:
    """The row ``steps`` tokens earlier in the same history, for each token, ``[T, D]``; 0 before its start."""
    if steps == 0:
        return x
    shifted = F.pad(x, (0, 0, steps, 0))[: len(x)]
    return shifted * (positions >= steps)[:, None]
