"""EASE: a linear autoencoder over items, in closed form (Steck, WWW 2019)."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.data.fields import Length, Options, Range
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.counting import weigh_pairs

MOST_ITEMS = 20_000  # the weights are a square matrix, 1.6 GB for so many, and inverting it takes minutes
DOUBLE = 8_000  # up to so many items the matrix is inverted in double precision


@dataclass(frozen=True)
class EASEConfig(Options):
    """Regularisation of EASE.

    Args:
        l2: Weight of the squared norm of the weights (lambda in the paper). Larger values suit larger logs.
        max_length: Number of most recent items of a history that the model sees.
    """

    l2: Annotated[float, Range(above=0)] = 250.0
    max_length: Length = 200


class EASE(Model):
    """Scores an item by a weighted sum over the items of the history, whatever their order.

    With ``X`` the users' items (1 where a user has an item, else 0), the weights minimise ``|X - X B|^2 + l2 |B|^2``
    with a diagonal of 0, which has a solution in closed form (equations 7 and 8 of the paper):

        P = (X^T X + l2 I)^-1,    B_ij = -P_ij / P_jj for i != j

    The score of item j is the sum of B_ij over the different items i of the history. For up to 20,000 items.
    """

    Config = EASEConfig
    FACTORED = False
    COUNTED = True
    config: EASEConfig
    weights: Tensor

    def __init__(self, config: EASEConfig, num_items: int, num_users: int = 0) -> None:
        del num_users
        super().__init__()
        if num_items > MOST_ITEMS:
            raise InputError(
                f"ease takes catalogues of at most {MOST_ITEMS:,} items, not {num_items:,}; fit transitions"
            )
        self.config = config
        self.num_items = num_items
        self.register_buffer("weights", torch.zeros(num_items + 1, num_items + 1))  # row 0 and column 0 are padding

    def count(self, histories: Histories) -> None:
        """Learn from the training histories: count the pairs of items that users have, and invert the matrix."""
        rows, items = histories.flat()
        width = self.num_items + 1
        keys = np.unique(rows * width + items)  # each item once per user
        rows, items = keys // width, (keys % width).astype(np.int32)
        ends = np.cumsum(np.bincount(rows, minlength=len(histories)))
        longest = int(np.diff(ends, prepend=0).max()) if len(ends) else 0
        together = weigh_pairs(
            items, ends - np.diff(ends, prepend=0), ends, after=np.empty(0, np.float32),
            beside=np.ones(max(longest - 1, 0), np.float32), gains=np.zeros(width, np.float32),
            factors=np.ones(width, np.float32), most=width,
        )  # fmt: skip
        gram = torch.zeros(width, width, dtype=torch.float64 if width <= DOUBLE else torch.float32)
        owner = torch.from_numpy(together.owners)
        columns = torch.from_numpy(together.columns.astype(np.int64))
        gram[owner, columns] = torch.from_numpy(together.values).to(gram.dtype)
        gram.diagonal().copy_(torch.from_numpy(np.bincount(items, minlength=width)) + self.config.l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        weights = -inverse / inverse.diagonal()
        weights.fill_diagonal_(0.0)
        weights[0], weights[:, 0] = 0.0, 0.0
        self.weights.copy_(weights)

    def check_weights(self) -> None:
        """Raise a ValueError if the weights are impossible."""
        if self.weights[0].any() or self.weights[:, 0].any() or self.weights.diagonal().any():
            raise ValueError("weights of the padding or of an item for itself are not 0")

    def encode(self, batch: Batch) -> Tensor:
        """The different items of the history up to each token, and zeros: ``int64[T, max_length]``."""
        return self._different(batch, torch.arange(len(batch.items), device=batch.items.device))

    def encode_last(self, batch: Batch) -> Tensor:
        """As :meth:`encode`, for the users' last tokens: ``int64[B, max_length]``."""
        return self._different(batch, batch.last)

    def _different(self, batch: Batch, tokens: Tensor) -> Tensor:
        reach = min(self.max_length, int(batch.lengths.max()))
        ordered = batch.newest(tokens, reach).sort(dim=1).values  # an item that occurs several times counts once
        again = torch.zeros_like(ordered, dtype=torch.bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        return F.pad(ordered.masked_fill(again, 0), (0, self.max_length - reach))

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Scores in the shapes of :meth:`Model.score`; 0 for the padding."""
        scores = F.embedding_bag(hidden, self.weights, mode="sum")
        if items is None:
            return scores
        return scores[:, items] if items.dim() == 1 else scores.gather(1, items)
