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
from seqrec.models.blocks import Dropout, UserEmbedding


@dataclass(frozen=True)
class CaserConfig(Options):
    """Sizes and regularisation of Caser.

    Args:
        max_length: Number of most recent items of a history that training and prediction go through.
        window: Number of items before a position that the convolutions see (L in the paper); at most ``max_length``.
        num_targets: Number of items after a position that the model learns to predict (T in the paper).
        embedding_dim: Width of the item embeddings and of the sequence's vector (d in the paper).
        user_dim: Width of the user embeddings; 0 for none. By default ``embedding_dim``.
        horizontal_filters: Number of filters of each height from 1 to ``window`` (n in the paper).
        vertical_filters: Number of filters over the window of each dimension (n with a tilde in the paper).
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
        """Refuse convolutions of nothing, or of more than there is."""
        if self.horizontal_filters + self.vertical_filters == 0:
            raise InputError("there are no filters; give horizontal_filters or vertical_filters")
        if self.window > self.max_length:
            raise InputError(f"window is {self.window}, more than max_length {self.max_length}; give at most that")

    def resolved(self) -> "CaserConfig":
        """With the width of the user embeddings."""
        return replace(self, user_dim=self.embedding_dim if self.user_dim is None else self.user_dim)


class Caser(Model):
    """The model of the paper, for every position of a history at once.

    - Embedding (section 3.1): the last ``window`` items of a position, zeros before the start of the history.
    - Horizontal convolutions (section 3.2): ReLU of each filter at each place of the window, then the maximum
      over the places. A filter's value does not depend on the window that it lies in, so it is computed once
      for every position of the history.
    - Vertical convolutions (section 3.2): weighted sums of the window's embeddings, without activation.
    - Fully connected layer (section 3.3): ``z = ReLU(W [o, o~] + b)``, the sequence's vector, with dropout before it.
    - Output (section 3.3): ``y = W' [z, P_user] + b'``. Output vectors and biases are the columns of one table.
    - Training (section 3.4): binary cross-entropy of each of the ``num_targets`` next items and its negatives
      (3 of each target in the paper: ``negatives=3``), summed.

    Where paper and authors' code differ: the paper leaves the activations open, the code takes ReLU, and so do
    we; the code adds a bias to the filters, which we follow for the horizontal ones (a filter needs a threshold
    to see that two items came together) but not for the vertical ones (it would add a second bias to z's);
    the code's loss is the mean over targets plus the mean over negatives, we sum the negatives of a target as
    the paper. Both train on positions that have ``window`` items before and ``num_targets`` after them, the
    code also on one padded position of a shorter history; here every position counts, with as many targets as
    there are, since logs of short histories would leave next to nothing otherwise. The code's weight decay
    moves all parameters at every step; ``l2`` is on those that a batch reads.

    Somebody without a step to train on, whether a stranger or a user of the log, has the mean of the embeddings of
    those who trained.
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
        self.item_embedding = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.user_embedding = UserEmbedding(num_users, self.user_dim) if self.user_dim else None
        # W' and, in the last column, b'.
        self.output = nn.Embedding(num_items + 1, dim + self.user_dim + 1, padding_idx=0)
        # Rows of filters that the item j before a filter's end meets: n of each height from j + 1 to the window's.
        filters = config.horizontal_filters
        self.horizontal = nn.ParameterList(
            torch.empty((window - j) * filters, dim) for j in range(window if filters else 0)
        )
        self.horizontal_bias = nn.Parameter(torch.empty(window * filters)) if filters else None
        # Columns from the oldest item of the window to the last.
        self.vertical = nn.Parameter(torch.empty(config.vertical_filters, window)) if config.vertical_filters else None
        self.dropout = Dropout(config.dropout)
        self.fully_connected = nn.Linear(config.vertical_filters * dim + window * filters, dim)
        self.reset()

    def reset(self) -> None:
        """Draw the weights anew: Glorot's rule for matrices and filters, narrow for the tables."""
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
        """``[z, user, 1]``, ``[T, embedding_dim + user_dim + 1]``."""
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
        """Weighted sums of the window, ``[T, D]`` to ``[T, filters * D]``."""
        assert self.vertical is not None
        window = torch.stack([_earlier(x, j, positions) for j in reversed(range(self.config.window))])
        mixed = self.vertical @ window.flatten(1)
        return mixed.view(len(mixed), *x.shape).transpose(0, 1).flatten(1)

    def _horizontal(self, x: Tensor, positions: Tensor) -> Tensor:
        """The highest value of each filter in the window, ``[T, D]`` to ``[T, window * filters]``, by height."""
        assert self.horizontal_bias is not None
        window, filters = self.config.window, self.config.horizontal_filters
        # What each filter gives where its end lies on a token; its items before the start are zeros.
        ends = F.linear(x, self.horizontal[0])
        for j in range(1, window):
            ends = ends + F.pad(_earlier(F.linear(x, self.horizontal[j]), j, positions), (j * filters, 0))
        # The window has room for a filter of height h to end up to window - h tokens before its last. Before
        # the start of the history a filter gives 0, like its items. ReLU and the bias keep the order.
        places = []
        for j in range(window):
            room = (window - j) * filters
            place = _earlier(ends[:, :room], j, positions)
            places.append(F.pad(place, (0, window * filters - room), value=-torch.inf))
        return F.relu(torch.stack(places).amax(dim=0) + self.horizontal_bias)

    def item_vectors(self) -> Tensor:
        """The output vectors with the bias as last column, ``[I + 1, embedding_dim + user_dim + 1]``."""
        return self.output.weight

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors and biases ``[..., embedding_dim + user_dim + 1]`` of some items."""
        return self.output(items)

    def prepare_training(self, histories: Histories) -> None:
        """Clear the embeddings of users who have nothing to train on."""
        if self.user_embedding is not None:
            self.user_embedding.clear_untrained(histories.lengths)

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Each token with each of the ``num_targets`` items after it that its history has."""
        count = self.config.num_targets
        if count == 1:
            return None, batch.targets
        steps = torch.arange(count)
        left = batch.lengths[batch.rows] - batch.positions
        token, step = torch.nonzero(steps < left[:, None], as_tuple=True)
        return token, batch.targets[token + step]

    def penalty(self, batch: Batch) -> Tensor | None:
        """``l2`` times the mean squared norm of the embeddings of items, targets and users, and that of the filters."""
        if self.config.l2 == 0.0:
            return None
        squares = self.item_embedding(batch.items).square().sum(dim=1).mean()
        squares = squares + self.output(batch.targets).square().sum(dim=1).mean()
        if self.user_embedding is not None:
            squares = squares + self.user_embedding(batch.users).square().sum(dim=1).mean()
        dense = [*self.horizontal, self.fully_connected.weight]
        if self.vertical is not None:
            dense.append(self.vertical)
        return self.config.l2 * (squares + torch.stack([weight.square().sum() for weight in dense]).sum())


def _earlier(x: Tensor, steps: int, positions: Tensor) -> Tensor:
    """What stood ``steps`` tokens before each in the same history, ``[T, D]``; 0 before its start."""
    if steps == 0:
        return x
    shifted = F.pad(x, (0, 0, steps, 0))[: len(x)]
    return shifted * (positions >= steps)[:, None]
