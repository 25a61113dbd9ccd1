"""Vectors made of features: of items, for the input and the output of models; and of users, for the input."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.batches import Batch
from seqrec.data.dataset import Dataset
from seqrec.data.features import Features, vocabulary_of
from seqrec.data.fields import Dropped, Options
from seqrec.data.table import Table
from seqrec.device import not_compiled
from seqrec.errors import InputError
from seqrec.models.blocks import Dropout

#: Options that name columns, each with those for the numbers of codes and values that follow.
SIZES = {"features": ("num_codes", "num_values"), "user_features": ("num_user_codes", "num_user_values")}
#: The values of these options without features, which is how runs of earlier versions were trained that lack them.
WITHOUT = dict.fromkeys(SIZES, "") | {size: 0 for sizes in SIZES.values() for size in sizes}
#: Name of the column of ``batch.of_users`` whose users' features count, instead of those of ``batch.users``, where a
#: model shows a history as another user's.
OWNERS = "owners"
#: Share of the users who are shown as unknown in a step of training, so that models learn to do without features.
UNKNOWN = 0.1
_ITEMS, _USERS = 2**31, 2**31 + 1  # numbers of the draws that dropout of ids uses, apart from those of other purposes
_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # SplitMix64's constants as int64


@dataclass(frozen=True)
class FeatureOptions(Options):
    """Features of items and users, from their tables.

    Args:
        features: Columns of the item table (--items FILE) that item vectors are made of, besides a vector of the item's
            own: names separated by commas, or ``all`` for those that there is something to learn of. By default none.
        id_dropout: Probability that training replaces an item's own vector by zeros, so that an item without a history
            is ranked better by its features (Volkovs et al. 2017). Other items are ranked worse.
        user_features: Columns of the user table (--users FILE) that are added to the input at every item of a history:
            names separated by commas, or ``all`` for those that there is something to learn of. By default none.
        num_codes: Number of values that the features have, settled by the item table.
        num_values: Number of numbers in the vectors among the features, settled by the item table.
        num_user_codes: The same of the users' features, settled by the user table.
        num_user_values: The same of the users' features, settled by the user table.
    """

    features: str | None = None
    id_dropout: Dropped = 0.0
    user_features: str | None = None
    num_codes: int | None = field(default=None, metadata={"settled": True})
    num_values: int | None = field(default=None, metadata={"settled": True})
    num_user_codes: int | None = field(default=None, metadata={"settled": True})
    num_user_values: int | None = field(default=None, metadata={"settled": True})

    def check(self) -> None:
        """Raise an InputError if an option is given that needs features of items."""
        if self.id_dropout and not self.features:
            raise InputError(
                f"id_dropout is {self.id_dropout}, but there are no features; give features, or leave it out"
            )

    def resolved(self) -> Self:
        """A copy in which the sizes are settled too where there are no features."""
        plain: dict[str, Any] = {name: getattr(self, name) or off for name, off in WITHOUT.items()}
        return replace(super().resolved(), **plain)


class IdDropout(Dropout):
    """Which items or users lose a vector: the same ones in every lookup of a step, and in every process.

    Args:
        probability: share of them.
        purpose: number of its draws.
    """

    def __init__(self, probability: float, purpose: int = _ITEMS) -> None:
        super().__init__(probability)
        self.purpose = purpose

    @not_compiled
    def keeps(self, items: Tensor) -> Tensor:
        """Whether each item or user keeps its vector in this step, ``bool`` in the shape of ``items``."""
        if self.random is None:
            return torch.rand(items.shape, device=items.device) >= self.probability
        key = int(self.random.child(self.purpose).common().integers(2**62))
        # SplitMix64 (Steele, Lea & Flood 2014): a function of the index and the step, so that nothing is drawn per item
        x = (items + key) * _MIX[0]
        for shift, factor in ((30, _MIX[1]), (27, _MIX[2])):
            x = (x ^ _shifted(x, shift)) * factor
        return _shifted(x ^ _shifted(x, 31), 32) >= int(self.probability * 2**32)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The logical shift to the right of ``int64``."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class FeatureEncoder(nn.Module):
    """The part of vectors that follows from the features: ``mean of the codes' vectors + values W``.

    Args:
        what: what the rows are, for error messages: ``items`` or ``users``.
        count: number of rows N, of items or users. Row 0 has no features.
        dim: width D of the vectors.
        num_codes: number of codes C.
        num_values: number of numbers V.
    """

    offsets: Tensor
    codes: Tensor
    values: Tensor

    def __init__(self, what: str, count: int, dim: int, num_codes: int, num_values: int) -> None:
        super().__init__()
        self.what, self.is_set = what, False
        self.num_codes, self.num_values = num_codes, num_values
        self.code_vectors = nn.Parameter(torch.empty(num_codes, dim)) if num_codes else None
        self.value_vectors = nn.Parameter(torch.empty(num_values, dim)) if num_values else None
        # They are in the tables of a run, not in its weights.
        self.register_buffer("offsets", torch.zeros(count + 2, dtype=torch.int64), persistent=False)
        self.register_buffer("codes", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("values", torch.zeros(count + 1, num_values), persistent=False)

    def reset(self, std: float) -> None:
        """Initialise the vectors of codes and values, so that the sum has about this standard deviation."""
        if self.code_vectors is not None:
            nn.init.normal_(self.code_vectors, std=std)
        if self.value_vectors is not None:
            nn.init.normal_(self.value_vectors, std=std / self.num_values**0.5)

    def set(self, features: Features) -> None:
        """Set the features of all rows.

        Raises:
            ValueError: they are those of another number of rows, or do not fit the vectors.
        """
        count = len(self.offsets) - 1
        if len(features.offsets) != count + 1 or features.values.shape != (count, self.num_values):
            raise ValueError(f"features are those of {len(features.values) - 1} {self.what}, not of {count - 1}")
        if len(features.codes) and int(features.codes.max()) >= self.num_codes:
            raise ValueError(f"a feature has the code {int(features.codes.max())} of {self.num_codes}")
        device = next(self.parameters()).device
        for name, array in features._asdict().items():
            setattr(self, name, torch.from_numpy(array).to(device))
        self.is_set = True

    def forward(self, rows: Tensor | None) -> Tensor:
        """Vectors ``[..., D]`` of some rows, ``int64[...]``, or ``[N + 1, D]`` of all.

        Raises:
            ValueError: the features were not set, and would be ignored silently.
        """
        if not self.is_set:
            raise ValueError(f"the features of the {self.what} are not set; call give_features first")
        parts = []
        if self.code_vectors is not None:
            codes, starts = (self.codes, self.offsets[:-1]) if rows is None else self._codes_of(rows.reshape(-1))
            parts.append(F.embedding_bag(codes, self.code_vectors, starts, mode="mean"))
        if self.value_vectors is not None:
            values = self.values if rows is None else self.values[rows.reshape(-1)]
            parts.append(values @ self.value_vectors)
        found = sum(parts[1:], parts[0])
        return found if rows is None else found.view(*rows.shape, found.shape[1])

    def _codes_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of some rows ``int64[R]``, and where those of each begin ``int64[R]``."""
        first = self.offsets[rows]
        counts = self.offsets[rows + 1] - first
        starts = counts.cumsum(0) - counts
        within = torch.arange(int(counts.sum()), device=rows.device) - starts.repeat_interleave(counts)
        return self.codes[first.repeat_interleave(counts) + within], starts


class ItemEmbedding(nn.Embedding):
    """Vectors of items: one of its own for each, and with features the sum of this and what they tell.

    Args:
        num_items: number of items I; row 0 of the table is padding.
        dim: width D.
        options: config of the model.
    """

    def __init__(self, num_items: int, dim: int, options: FeatureOptions) -> None:
        super().__init__(num_items + 1, dim)
        sizes = options.num_codes or 0, options.num_values or 0
        self.encoder = FeatureEncoder("items", num_items, dim, *sizes) if any(sizes) else None
        self.id_dropout = IdDropout(options.id_dropout) if any(sizes) else None

    def reset_rest(self, std: float) -> None:
        """Initialise what the table does not hold: features' vectors get this standard deviation; the padding is 0."""
        with torch.no_grad():
            self.weight[0] = 0
        if self.encoder is not None:
            self.encoder.reset(std)

    def set_features(self, features: Features) -> None:
        """Set the features of all items; see :meth:`FeatureEncoder.set`."""
        if self.encoder is None:
            raise ValueError("there are no features; build the model with their number")
        self.encoder.set(features)

    @torch.no_grad()
    def fold(self) -> None:
        """Make the features part of the table, which then has the vectors that :meth:`all` returns."""
        if self.encoder is not None:
            self.weight = nn.Parameter(self.all())  # the old one may be mapped from a file
            self.encoder = self.id_dropout = None

    def forward(self, items: Tensor) -> Tensor:
        """Vectors ``[..., D]`` of some items, ``int64[...]``."""
        own = super().forward(items)
        return own if self.encoder is None else self._kept(own, items) + self.encoder(items)

    def all(self) -> Tensor:
        """Vectors ``[I + 1, D]`` of all items."""
        if self.encoder is None:
            return self.weight
        return self._kept(self.weight, torch.arange(len(self.weight), device=self.weight.device)) + self.encoder(None)

    def _kept(self, own: Tensor, items: Tensor) -> Tensor:
        """The items' own vectors, in training without some of them."""
        assert self.id_dropout is not None
        return own * self.id_dropout.keeps(items).unsqueeze(-1) if self.id_dropout.active else own


def fold_features(model: Any) -> None:
    """Make the features part of the item tables of a model, which can then rank faster, but not be trained."""
    for part in model.parts:
        if isinstance(table := getattr(part, "item_embedding", None), ItemEmbedding):
            table.fold()


class UserEncoder(nn.Module):
    """What features of users add to the input: at every token the same vector, which follows from the user's features.

    There is no vector of a user's own. Somebody unknown (-1 in ``batch.users``, or a user of whom the table says
    nothing) adds nothing; in each step of training, a share of the users (:data:`UNKNOWN`) count as unknown.

    Args:
        num_users: number of users U.
        dim: width D of the input.
        options: config of the model.
    """

    def __init__(self, num_users: int, dim: int, options: FeatureOptions) -> None:
        super().__init__()
        self.num_users = num_users
        sizes = options.num_user_codes or 0, options.num_user_values or 0
        self.encoder = FeatureEncoder("users", num_users, dim, *sizes) if any(sizes) else None
        self.dropout = IdDropout(UNKNOWN, _USERS) if any(sizes) else None

    def reset(self, std: float) -> None:
        """Initialise the vectors of the features; see :meth:`FeatureEncoder.reset`."""
        if self.encoder is not None:
            self.encoder.reset(std)

    def set_features(self, features: Features) -> None:
        """Set the features of all users; see :meth:`FeatureEncoder.set`."""
        if self.encoder is None:
            raise ValueError("there are no features of users; build the model with their number")
        self.encoder.set(features)

    def vectors(self, users: Tensor) -> Tensor:
        """Vectors ``[B, D]`` of users ``int64[B]``; zeros for somebody unknown."""
        assert self.encoder is not None
        assert self.dropout is not None
        known = (users >= 0) & (users < self.num_users)
        if self.dropout.active:
            known = known & self.dropout.keeps(users)
        vectors: Tensor = self.encoder(torch.where(known, users + 1, 0))
        return vectors

    def forward(self, x: Tensor, batch: Batch, tokens: Tensor | None = None) -> Tensor:
        """The input ``[T, D]`` with the vectors of the tokens' users added. Without features, the input as it is.

        ``tokens``, ``int64[T]``, is the token of each row of ``x`` if they are not in the order of the batch.
        """
        if self.encoder is None:
            return x
        rows = batch.rows if tokens is None else batch.rows.index_select(0, tokens)
        return x + self.vectors(batch.of_users.get(OWNERS, batch.users)).index_select(0, rows)


def reads_users(model: Any) -> bool:
    """Whether a model reads features of users."""
    return any(getattr(getattr(part, "user_encoder", None), "encoder", None) is not None for part in model.parts)


def tables_of(dataset: Dataset) -> list[tuple[str, str, Table | None]]:
    """Each option of :data:`SIZES`, what a row of its table describes, and the table of a dataset, if there is one."""
    return [("features", "item", dataset.item_table), ("user_features", "user", dataset.user_table)]


def give_features(model: Any, dataset: Dataset, options: Iterable[str] = tuple(SIZES)) -> None:
    """Give a model the features that its config names, from the tables of its dataset. Others stay as they are.

    Args:
        model: model.
        dataset: its dataset.
        options: options that count, by default all of :data:`SIZES`.

    Raises:
        InputError: a table is missing, or does not fit the model.
    """
    config = model.parts[0].config
    for option, what, table in tables_of(dataset):
        asked = getattr(config, option, None)
        if not asked or option not in options:
            continue
        if table is None:
            raise InputError(
                f"the model reads {asked} of the {what}s, but there is no {what} table; give {what}s (--{what}s FILE)"
            )
        vocabulary, _ = vocabulary_of(table, asked)
        if (vocabulary.num_codes, vocabulary.num_values) != tuple(getattr(config, size) for size in SIZES[option]):
            raise InputError(
                f"the {what} table does not fit the model, which reads {asked}; give the one of its training"
            )
        give = model.set_features if option == "features" else model.set_user_features
        give(vocabulary.encode(table))
