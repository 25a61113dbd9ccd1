"""The interface that every model implements."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqrec import kernels
from seqrec.data.batches import Batch
from seqrec.data.draws import Draws
from seqrec.data.features import Features
from seqrec.data.negatives import Loss
from seqrec.data.split import Histories


class Model(nn.Module):
    """A next-item model: ``encode`` turns a packed batch into hidden states, and ``score`` scores items against them.

    A subclass is built from ``(config, num_items, num_users)``, where ``config`` is an instance of its ``Config``
    dataclass. Item 0 is padding.

    A factored model scores by a dot product of the hidden states with ``item_vectors``, so that top-k and the full
    softmax can process the catalogue in blocks. Any other model sets ``FACTORED = False`` and overrides ``score``.
    """

    Config: ClassVar[type]
    FACTORED: bool = True
    #: Whether the last column of ``item_vectors`` is a bias or a constant, to be ignored when items are compared.
    BIAS_COLUMN: ClassVar[bool] = False
    #: The default loss.
    LOSS: ClassVar[Loss] = "sampled-softmax"
    #: Probability that training shows a random window of a long history instead of its last one.
    random_start: float = 0.0
    #: Whether the model learns by counting, in one pass (``count``) without an optimizer.
    COUNTED: ClassVar[bool] = False
    #: Whether the hidden state of every token predicts the item after it. If False, states also depend on later
    #: tokens, and in evaluation only the state of each user's last token predicts.
    CAUSAL: ClassVar[bool] = True

    #: Names of the weights whose length depends on the log; loading a state resizes them. All other shapes follow from
    #: the configuration and the numbers of items and users.
    LENGTHS_OF_THE_LOG: ClassVar[frozenset[str]] = frozenset()
    #: Whether the model reads the timestamps of a history, not only the order of its items.
    USES_TIMES: ClassVar[bool] = False
    #: Names of the embedding tables with a row per item or user; the attribute may be None. In training, their
    #: lookups get gradients by row, so that the cost of a step depends only on the rows that it looks up.
    SPARSE_TABLES: ClassVar[frozenset[str]] = frozenset()
    #: Names of the extra columns that the model reads, from ``batch.of_tokens``, from ``batch.of_users`` or, if
    #: scoring needs them for every item, from the item table: ``category`` comes by :meth:`set_categories`.
    READS: ClassVar[frozenset[str]] = frozenset()

    #: Whether ``item_embedding`` is an :class:`seqrec.models.features.ItemEmbedding`. Training may start from vectors
    #: of the items, and vectors may be made of features. ``user_encoder`` is then a
    #: :class:`seqrec.models.features.UserEncoder`, which adds features of users to the input.
    VECTORS_OF_ITEMS: ClassVar[bool] = False

    #: Counts that are added to the scores when items are ranked, but not by :meth:`score`. They are no weights.
    #: A :class:`seqrec.models.transitions.Addition`, or None.
    addition: Any = None
    config: Any
    num_items: int
    num_users: int = 0

    @property
    def parts(self) -> "list[Model]":
        """The models that are trained side by side: the model itself, or the members of an ensemble."""
        return [self]

    @property
    def max_length(self) -> int:
        """Number of most recent items of a history that the model sees."""
        length: int = self.config.max_length
        return length

    def sparse_tables(self) -> dict[str, nn.Embedding]:
        """The embedding tables that ``SPARSE_TABLES`` names and this model has, by name."""
        return {name: table for name in sorted(self.SPARSE_TABLES) if (table := getattr(self, name)) is not None}

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]``. In a causal model, each depends only on its token and the user's earlier ones."""
        raise NotImplementedError

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D]`` of the users' last tokens. A model may override this to compute less."""
        return self.encode(batch)[batch.last]

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Attention weights ``[T]`` of each user's last token over the user's tokens, for models that have attention.

        See :func:`seqrec.models.attention.attention_of`.
        """
        del batch
        return None

    def count(self, histories: Histories) -> None:
        """Learn from the training histories in one pass, for models with ``COUNTED``."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D]`` of a factored model."""
        raise NotImplementedError

    def output_of(self, rows: Tensor) -> Tensor:
        """Output vectors ``[..., D]`` of rows of ``item_embedding``, for models that have no other item vectors."""
        return rows

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D]`` of some items, ``int64[...]``, without reading the others."""
        return self.item_vectors()[items]

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits of items given hidden states ``[R, D]``.

        Args:
            hidden: hidden states of R tokens.
            items: candidates: ``int64[C]`` for the same ones in every row, or ``int64[R, C]`` for each row's own. None
                scores all items.

        Returns:
            ``[R, C]``, or ``[R, I + 1]`` for all items, where column 0 is padding.
        """
        if items is None:
            return hidden @ self.item_vectors().T
        if items.dim() == 1:
            return hidden @ self.vectors_of(items).T
        vectors = self.vectors_of(items)
        if kernels.usable(hidden, vectors) and len(hidden) == len(vectors):
            return kernels.score(hidden, vectors)
        # A matrix product could round a candidate's score differently depending on its column.
        return (hidden[:, None] * vectors).sum(dim=2)

    def set_categories(self, categories: Tensor) -> None:
        """Set each item's category, ``int64[I + 1]`` from 1, or 0 for none, for models that read ``category``."""
        raise NotImplementedError

    def set_features(self, features: Features) -> None:
        """Set the features of all items, for models whose config names some."""
        self.item_embedding.set_features(features)  # type: ignore[operator, union-attr]

    def set_user_features(self, features: Features) -> None:
        """Set the features of all users, for models whose config names some."""
        self.user_encoder.set_features(features)  # type: ignore[operator, union-attr]

    def prepare_training(self, histories: Histories) -> None:
        """Prepare for training on ``histories``, one per user of the dataset. Called before the first step."""
        del histories

    def corrupt(self, batch: Batch, draws: Draws) -> Batch:
        """The batch that training uses instead of ``batch``, for example with masked items. Both are on the CPU."""
        del draws
        return batch

    def shown(self, batch: Batch, draws: Draws) -> list[Batch]:
        """The batches that the ``parts`` see in training instead of ``batch``: one each, from :meth:`corrupt`."""
        return [self.corrupt(batch, draws)]

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The P predictions that the loss is computed on, for a batch from ``corrupt``.

        Returns:
            ``int64[P]``, the tokens whose hidden states predict, in ascending order (None: every token, once), and
            ``int64[P]``, the items to predict, none of them padding.
        """
        return None, batch.targets

    def check_weights(self) -> None:
        """Check weights that were read from a file. Their shapes are right, but their values may be unusable.

        Raises:
            ValueError: the weights cannot be used; the message says why.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Embedding) or module.weight.numel() == 0:
                continue
            if not (module.weight[:100].any() or module.weight.any()):  # a few rows usually settle it
                raise ValueError(f"{name} is zero everywhere")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.LENGTHS_OF_THE_LOG:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def penalty(self, batch: Batch) -> Tensor | None:
        """A regularisation term to add to the loss of a training batch, or None."""
        del batch
        return None
