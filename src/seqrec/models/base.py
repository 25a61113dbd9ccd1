"""The contract that every model keeps."""

from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.negatives import Loss
from seqrec.data.split import Histories


class Model(nn.Module):
    """A next-item model: it encodes a packed batch (``encode``) and scores items against the result (``score``).

    A subclass takes ``(config, num_items, num_users)``, where ``config`` is an instance of its
    ``Config`` dataclass; item 0 is padding.

    A factored model scores by a dot product of the hidden states with ``item_vectors``, so that top-k and the full
    softmax can go through the catalogue in blocks. Any other model sets ``FACTORED = False`` and overrides ``score``.
    """

    Config: ClassVar[type]
    FACTORED: bool = True
    #: Whether the last column of ``item_vectors`` is a bias or a constant, which says nothing about similarity.
    BIAS_COLUMN: ClassVar[bool] = False
    #: The default loss.
    LOSS: ClassVar[Loss] = "sampled-softmax"
    #: Probability that training shows a window of a long history that starts anywhere, instead of its last one.
    random_start: float = 0.0
    #: Counted models learn in one pass (``count``) and need no optimizer.
    COUNTED: ClassVar[bool] = False
    #: Whether the hidden state of every token predicts the item after it. If not, only that of each user's last token
    #: does (in evaluation), and the others depend on later tokens too.
    CAUSAL: ClassVar[bool] = True

    #: Names of the weights whose length depends on the log. All other shapes follow from the configuration and the
    #: numbers of items and users.
    LENGTHS_OF_THE_LOG: ClassVar[frozenset[str]] = frozenset()
    #: Whether it reads the timestamps of a history, and not only its order.
    USES_TIMES: ClassVar[bool] = False
    #: Names of the embedding tables with a row per item or user, attributes that may be None. Their lookups get
    #: gradients by row in training, so that a step costs the rows that it touches.
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset()
    #: Names of extra columns that it reads: of a batch (``batch.of_tokens``, ``batch.of_users``), or, for what scoring
    #: needs of every item, of the items at ``prepare_training``.
    READS: ClassVar[frozenset[str]] = frozenset()

    #: Whether it learns the categories of items, which :meth:`set_categories` gives it before training.
    USES_CATEGORIES: ClassVar[bool] = False

    config: Any
    num_items: int
    num_users: int = 0

    @property
    def max_length(self) -> int:
        """How long a history it sees: the last items, so many at most."""
        length: int = self.config.max_length
        return length

    def sparse_tables(self) -> dict[str, nn.Embedding]:
        """The tables of ``SPARSE_TABLES`` that this model has, by name."""
        return {name: table for name in sorted(self.SPARSE_TABLES) if (table := getattr(self, name)) is not None}

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]``; each depends on its own token and the earlier ones of the same user only."""
        raise NotImplementedError

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D]`` of each user's last token; a model may override this to compute less."""
        return self.encode(batch)[batch.last]

    def count(self, histories: Histories) -> None:
        """Learn from the training histories in one pass (counted models only)."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D]`` of a factored model."""
        raise NotImplementedError

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D]`` of the given items, ``int64[...]``; the others are not read."""
        return self.item_vectors()[items]

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits of items given hidden states ``[R, D]``.

        Args:
            hidden: hidden states of R tokens.
            items: None scores the whole catalogue and gives ``[R, I + 1]`` (column 0 is padding); ``int64[C]`` scores
                the same candidates in every row and gives ``[R, C]``; ``int64[R, C]`` scores each row's own candidates
                and gives ``[R, C]``.
        """
        if items is None:
            return hidden @ self.item_vectors().T
        if items.dim() == 1:
            return hidden @ self.vectors_of(items).T
        vectors = self.vectors_of(items)
        if kernels.usable(hidden, vectors) and len(hidden) == len(vectors):
            return kernels.score(hidden, vectors)
        # A matrix product could round the same candidate differently depending on its place.
        return (hidden[:, None] * vectors).sum(dim=2)

    def set_categories(self, categories: Tensor) -> None:
        """Take the category of each item, ``int64[I + 1]`` from 1, 0 for none; for models with ``USES_CATEGORIES``."""
        raise NotImplementedError

    def prepare_training(self, histories: Histories) -> None:
        """Prepare for training on these histories (each user at its index); called before the first step."""
        del histories

    def corrupt(self, batch: Batch, random: np.random.Generator) -> Batch:
        """The batch that training shows in place of this one (both on the CPU), for example with masked items."""
        del random
        return batch

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The P predictions that training asks for, given a batch from ``corrupt``.

        Returns:
            ``int64[P]``, the tokens whose hidden states predict, in rising order, or None for every token once; and
            ``int64[P]``, the items to predict, none of them padding.
        """
        return None, batch.targets

    def check_weights(self) -> None:
        """Check weights that came from a file. Their shapes are right, but they may contradict each other.

        Raises:
            ValueError: the weights cannot be used; the message says why.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Embedding) or module.weight.numel() == 0:
                continue
            if not (module.weight[:100].any() or module.weight.any()):  # a few rows tell, as a rule
                raise ValueError(f"{name} is zero everywhere")

    def penalty(self, batch: Batch) -> Tensor | None:
        """A regularisation term that is added to the loss of a training batch, or None."""
        del batch
        return None
