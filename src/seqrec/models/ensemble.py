"""Ensemble: models of one kind with different first weights, whose scores are averaged."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models.base import Model


class Ensemble(Model):
    """Several factored models of one kind, side by side; the score of an item is the mean of theirs.

    Models that differ only in their first weights and their dropout make different errors, so their mean ranks better
    than each of them (Hansen & Salamon 1990; Lakshminarayanan et al. 2017). They are trained on the same batches, each
    with its own loss. Hidden states and item vectors are those of all members one after another, so the mean is again
    a dot product, and everything that ranks a factored model ranks an ensemble.

    Args:
        build: builds one member with fresh weights.
        count: number of members.

    Raises:
        InputError: the model is not factored, or counts and has no weights to differ in.
    """

    def __init__(self, build: Callable[[], Model], count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(build() for _ in range(count))
        first = self.parts[0]
        if first.COUNTED or not first.FACTORED:
            raise InputError(f"models of the kind {type(first).__name__} can't be averaged; leave out ensemble")
        self.config, self.num_items, self.num_users = first.config, first.num_items, first.num_users
        self.random_start = first.random_start
        like_first = {name: getattr(first, name) for name in ("LOSS", "CAUSAL", "USES_TIMES", "READS")}
        for name, value in like_first.items():
            setattr(self, name, value)

    @property
    def parts(self) -> list[Model]:
        """The members."""
        return list(self.members)  # type: ignore[arg-type]

    def sparse_tables(self) -> dict[str, nn.Embedding]:
        """The tables of all members, by name."""
        return {
            f"members.{number}.{name}": table
            for number, part in enumerate(self.parts)
            for name, table in part.sparse_tables().items()
        }

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states of all members, divided by their number: ``[T, N * D]``."""
        return torch.cat([part.encode(batch) for part in self.parts], dim=1) / len(self.members)

    def encode_last(self, batch: Batch) -> Tensor:
        """As :meth:`encode`, for the users' last tokens: ``[B, N * D]``."""
        return torch.cat([part.encode_last(batch) for part in self.parts], dim=1) / len(self.members)

    def item_vectors(self) -> Tensor:
        """Output vectors of all members, ``[I + 1, N * D]``."""
        return torch.cat([part.item_vectors() for part in self.parts], dim=1)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors of some items, ``[..., N * D]``."""
        return torch.cat([part.vectors_of(items) for part in self.parts], dim=-1)

    def set_categories(self, categories: Tensor) -> None:
        """Set each item's category in all members."""
        for part in self.parts:
            part.set_categories(categories)

    def prepare_training(self, histories: Histories) -> None:
        """Prepare all members."""
        for part in self.parts:
            part.prepare_training(histories)

    def corrupt(self, batch: Batch, random: np.random.Generator) -> Batch:
        """The batch that all members see."""
        return self.parts[0].corrupt(batch, random)

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The predictions that all members are trained on."""
        return self.parts[0].training_targets(batch)

    def check_weights(self) -> None:
        """Check the weights of all members."""
        for part in self.parts:
            part.check_weights()
