"""Ensemble: models whose scores are averaged, of one kind with different first weights or of several kinds."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.draws import Draws
from seqrec.data.features import Features
from seqrec.data.split import Histories
from seqrec.errors import InputError
from seqrec.models.base import Model

#: The kinds of model that take turns in a mixed ensemble, beginning with the one that was asked for.
MIXED = ("sasrec", "ssept", "gru4rec")
#: Models that the later ones of these, and then the kinds above, follow in a mixed ensemble if they are asked for.
BEFORE_MIXED = ("hstu", "lrurec")
#: Sizes that are the same in all members of a mixed ensemble, where they have them.
SHARED = ("max_length", "embedding_dim", "num_blocks", "num_heads", "dropout", "norm", "features", "id_dropout",
          "user_features", "num_codes", "num_values", "num_user_codes", "num_user_values")  # fmt: skip


def kinds_of(model: str, count: int, kinds: str) -> list[str]:
    """The kinds of the members of an ensemble.

    Raises:
        InputError: the model is none of those that can be mixed.
    """
    if kinds == "same" or count == 1:
        return [model] * count
    able = (*MIXED, *BEFORE_MIXED)
    if model not in able:
        raise InputError(f"ensemble_kinds is mixed, which is for {', '.join(able)}; {model} takes same")
    turns = MIXED if model in MIXED else (*BEFORE_MIXED[BEFORE_MIXED.index(model) :], *MIXED)
    first = turns.index(model)
    return [turns[(first + number) % len(turns)] for number in range(count)]


def in_turn(kinds: Sequence[str]) -> str:
    """The different kinds of a mixed ensemble as text."""
    return f"{', '.join(dict.fromkeys(kinds))} in turn"


def sizes_beside(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Config of another kind of model for an ensemble with one of the config ``values``; what they share is the same.

    Args:
        kind: config class of the other model.
        values: config of the model that was asked for.
    """
    own = {field.name for field in fields(kind)}
    found = {name: values[name] for name in SHARED if name in own and name in values}
    dropout = values.get("dropout", values.get("hidden_dropout"))
    more = {"dropout": dropout, "hidden_dropout": dropout, "user_dim": values["embedding_dim"]}
    return found | {name: value for name, value in more.items() if name in own}


class Ensemble(Model):
    """Several factored models side by side; the score of an item is the mean of theirs.

    Models that differ in their first weights and their dropout make different errors, so their mean ranks better than
    each of them (Hansen & Salamon 1990; Lakshminarayanan et al. 2017). Models of different kinds differ more. They are
    trained on the same batches and negatives, each with its own loss. Hidden states and item vectors are those of all
    members one after another, so the mean is again a dot product, and everything that ranks a factored model ranks an
    ensemble.

    Args:
        members: models of the same items, users and ``max_length``, with fresh weights.

    Raises:
        InputError: a model is not factored, or counts and has no weights to differ in; or models of different kinds
            can't predict the same targets.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        first = self.parts[0]
        for part in self.parts:
            if part.COUNTED or not part.FACTORED:
                raise InputError(f"models of the kind {type(part).__name__} can't be averaged; leave out ensemble")
        several = len({type(part) for part in self.parts}) > 1
        if several and any(not part.CAUSAL or getattr(part.config, "sse_target", 0) for part in self.parts):
            raise InputError("models of several kinds have the same targets; leave out sse_target, or mix no kinds")
        self.config, self.num_items, self.num_users = first.config, first.num_items, first.num_users
        self.random_start = first.random_start
        self.LOSS, self.CAUSAL = first.LOSS, first.CAUSAL  # type: ignore[misc]
        self.USES_TIMES = any(part.USES_TIMES for part in self.parts)  # type: ignore[misc]
        self.READS = frozenset().union(*(part.READS for part in self.parts))  # type: ignore[misc]

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

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """The mean of the attention weights of the members that have attention, ``[T]``."""
        found = [weights for part in self.parts if (weights := part.attention_of_last(batch)) is not None]
        return torch.stack(found).mean(dim=0) if found else None

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

    def set_features(self, features: Features) -> None:
        """Set the features of all items in all members."""
        for part in self.parts:
            part.set_features(features)

    def set_user_features(self, features: Features) -> None:
        """Set the features of all users in all members."""
        for part in self.parts:
            part.set_user_features(features)

    def prepare_training(self, histories: Histories) -> None:
        """Prepare all members."""
        for part in self.parts:
            part.prepare_training(histories)

    def corrupt(self, batch: Batch, draws: Draws) -> Batch:
        """The batch that the first member sees."""
        return self.parts[0].corrupt(batch, draws)

    def shown(self, batch: Batch, draws: Draws) -> list[Batch]:
        """The batch that each member sees; members of one kind see the same one."""
        by_kind: dict[type, Batch] = {}
        for part in self.parts:
            if type(part) not in by_kind:
                by_kind[type(part)] = part.corrupt(batch, draws)
        return [by_kind[type(part)] for part in self.parts]

    def training_targets(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The predictions that all members are trained on."""
        return self.parts[0].training_targets(batch)

    def check_weights(self) -> None:
        """Check the weights of all members."""
        for part in self.parts:
            part.check_weights()
