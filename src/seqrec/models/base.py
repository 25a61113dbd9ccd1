"""The contract that every model keeps."""

from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.negatives import Loss
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
    FACTORED: bool = True
    #: Whether the last column of ``item_vectors`` is a bias or a constant, which says nothing of likeness.
    BIAS_COLUMN: ClassVar[bool] = False
    #: The loss it is trained with where none is named.
    LOSS: ClassVar[Loss] = "sampled-softmax"
    #: Probability that training shows another window than the last of a history longer than ``max_length``.
    random_start: float = 0.0
    #: Counted models learn from ``count`` in one pass and have nothing for an optimizer.
    COUNTED: ClassVar[bool] = False
    #: Whether every token's hidden state predicts what follows it. Without it, that of each user's last token alone
    #: does (in evaluation), and the others depend on later tokens too.
    CAUSAL: ClassVar[bool] = True

    #: Names of weights whose length is what the log gave; the others follow from the configuration and the numbers
    #: of items and users.
    LENGTHS_OF_THE_LOG: ClassVar[frozenset[str]] = frozenset()
    #: Whether it reads the times of a history, not its order alone.
    USES_TIMES: ClassVar[bool] = False

    config: Any
    num_items: int
    num_users: int = 0

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]``; that of a token depends only on tokens of its user up to it."""
        raise NotImplementedError

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D]`` of each user's last token, for which a model may have less to compute."""
        return self.encode(batch)[batch.last]

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
        vectors = self.vectors_of(items)
        if kernels.usable(hidden, vectors) and len(hidden) == len(vectors):
            return kernels.score(hidden, vectors)
        # Not a product of matrices, in which the same candidate may have other last bits in another place.
        return (hidden[:, None] * vectors).sum(dim=2)

    def prepare_training(self, histories: Histories) -> None:
        """Look at the training histories, each user at its index, before the first step with fresh weights."""
        del histories

    def corrupt(self, batch: Batch, random: np.random.Generator) -> Batch:
        """What training sees instead of a batch (on the CPU), such as one with items masked."""
        del random
        return batch

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """What a corrupted batch (on the CPU) is to predict, P predictions.

        Returns:
            ``int64[P]`` tokens in rising order whose hidden states predict, or None for every token once; and
            ``int64[P]`` the items to predict, all from 1.
        """
        return None, batch.targets

    def check_weights(self) -> None:
        """Refuse weights from a file that contradict each other, or that rank nothing; numbers of the right shapes.

        Raises:
            ValueError: says what is wrong in a few words.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) and module.weight.numel() and not module.weight.any():
                raise ValueError(f"{name} is zero everywhere")

    def penalty(self, batch: Batch) -> Tensor | None:
        """What the model adds to the loss of a training batch (regularisation), or None."""
        del batch
        return None
