"""The contract that every model keeps."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.split import Histories


class Model(nn.Module):
    """A next-item model: ``encode`` a packed batch, then ``score`` items against the result.

    A subclass takes ``(config, num_items, num_users)``, where ``config`` is an instance of its
    ``Config`` dataclass; item 0 is padding.

    A factored model scores by a dot product of ``encode``'s output with ``item_vectors``, which top-k
    and full softmax use to go through the catalogue in blocks. Another one sets ``FACTORED = False``
    and overrides ``score``.
    """

    Config: ClassVar[type]
    FACTORED: ClassVar[bool] = True
    #: Counted models learn from ``count`` in one pass and have nothing for an optimizer.
    COUNTED: ClassVar[bool] = False

    config: Any
    num_items: int

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]``; that of a token depends only on tokens of its user up to it."""
        raise NotImplementedError

    def count(self, histories: Histories) -> None:
        """Learn from the training histories in one pass; of counted models only."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D]`` of a factored model."""
        raise NotImplementedError

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D]`` of some items, ``int64[...]``, without touching the others."""
        return self.item_vectors()[items]

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits of items given hidden states ``[R, D]``.

        Args:
            hidden: states of R tokens.
            items: None for the whole catalogue, giving ``[R, I + 1]`` (column 0 is padding);
                ``int64[C]`` for the same candidates in every row, ``[R, C]``; ``int64[R, C]`` for
                candidates of each row, ``[R, C]``.
        """
        if items is None:
            return hidden @ self.item_vectors().T
        if items.dim() == 1:
            return hidden @ self.vectors_of(items).T
        return torch.einsum("rd,rcd->rc", hidden, self.vectors_of(items))

    def penalty(self, batch: Batch) -> Tensor | None:
        """What the model adds to the loss of a training batch (regularisation), or None."""
        del batch
        return None
