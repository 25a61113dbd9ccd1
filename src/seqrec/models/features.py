"""Item vectors made of features: the item encoder that models share, for their input and their output."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.data.features import Features, vocabulary_of
from seqrec.data.fields import Dropped, Options
from seqrec.data.items import ItemTable
from seqrec.device import not_compiled
from seqrec.errors import InputError
from seqrec.models.blocks import Dropout

_COMMON = 2**31  # number of the draws that id dropout uses, apart from those of other purposes
_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # SplitMix64's constants as int64


@dataclass(frozen=True)
class FeatureOptions(Options):
    """Features of items, from the item table.

    Args:
        features: Columns of the item table (--items FILE) that item vectors are made of, besides a vector of the item's
            own: names separated by commas, or ``all`` for those that there is something to learn of. By default none.
        id_dropout: Probability that training replaces an item's own vector by zeros, so that an item without a history
            is ranked better by its features (Volkovs et al. 2017). Other items are ranked worse.
        num_codes: Number of values that the features have, settled by the item table.
        num_values: Number of numbers in the vectors among the features, settled by the item table.
    """

    features: str | None = None
    id_dropout: Dropped = 0.0
    num_codes: int | None = field(default=None, metadata={"settled": True})
    num_values: int | None = field(default=None, metadata={"settled": True})

    def check(self) -> None:
        """Raise an InputError if an option is given that needs features."""
        if self.id_dropout and not self.features:
            raise InputError(
                f"id_dropout is {self.id_dropout}, but there are no features; give features, or leave it out"
            )

    def resolved(self) -> Self:
        """A copy in which the sizes are settled too where there are no features."""
        sizes = {"num_codes": self.num_codes or 0, "num_values": self.num_values or 0}
        return replace(super().resolved(), features=self.features or "", **sizes)


class IdDropout(Dropout):
    """Which items lose their own vector: the same ones in every lookup of a step, and in every process."""

    @not_compiled
    def keeps(self, items: Tensor) -> Tensor:
        """Whether each item keeps its vector in this step, ``bool`` in the shape of ``items``."""
        if self.random is None:
            return torch.rand(items.shape, device=items.device) >= self.probability
        key = int(self.random.child(_COMMON).common().integers(2**62))
        # SplitMix64 (Steele, Lea & Flood 2014): a function of the item and the step, so that nothing is drawn per item
        x = (items + key) * _MIX[0]
        for shift, factor in ((30, _MIX[1]), (27, _MIX[2])):
            x = (x ^ _shifted(x, shift)) * factor
        return _shifted(x ^ _shifted(x, 31), 32) >= int(self.probability * 2**32)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The logical shift to the right of ``int64``."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class ItemEncoder(nn.Module):
    """The part of item vectors that follows from the features: ``mean of the codes' vectors + values W``.

    Args:
        num_items: number of items I.
        dim: width D of the vectors.
        num_codes: number of codes C.
        num_values: number of numbers V.
    """

    offsets: Tensor
    codes: Tensor
    values: Tensor

    def __init__(self, num_items: int, dim: int, num_codes: int, num_values: int) -> None:
        super().__init__()
        self.num_codes, self.num_values = num_codes, num_values
        self.code_vectors = nn.Parameter(torch.empty(num_codes, dim)) if num_codes else None
        self.value_vectors = nn.Parameter(torch.empty(num_values, dim)) if num_values else None
        # They are in the item table of a run, not in its weights.
        self.register_buffer("offsets", torch.zeros(num_items + 2, dtype=torch.int64), persistent=False)
        self.register_buffer("codes", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("values", torch.zeros(num_items + 1, num_values), persistent=False)

    def reset(self, std: float) -> None:
        """Initialise the vectors of codes and values, so that vectors of items have about this standard deviation."""
        if self.code_vectors is not None:
            nn.init.normal_(self.code_vectors, std=std)
        if self.value_vectors is not None:
            nn.init.normal_(self.value_vectors, std=std / self.num_values**0.5)

    def set(self, features: Features) -> None:
        """Set the features of all items.

        Raises:
            ValueError: they are those of another number of items, or do not fit the vectors.
        """
        count = len(self.offsets) - 1
        if len(features.offsets) != count + 1 or features.values.shape != (count, self.num_values):
            raise ValueError(f"features are those of {len(features.values) - 1} items, not of {count - 1}")
        if len(features.codes) and int(features.codes.max()) >= self.num_codes:
            raise ValueError(f"a feature has the code {int(features.codes.max())} of {self.num_codes}")
        device = next(self.parameters()).device
        for name, array in features._asdict().items():
            setattr(self, name, torch.from_numpy(array).to(device))

    def forward(self, items: Tensor | None) -> Tensor:
        """Vectors ``[..., D]`` of some items, ``int64[...]``, or ``[I + 1, D]`` of all."""
        parts = []
        if self.code_vectors is not None:
            codes, starts = (self.codes, self.offsets[:-1]) if items is None else self._codes_of(items.reshape(-1))
            parts.append(F.embedding_bag(codes, self.code_vectors, starts, mode="mean"))
        if self.value_vectors is not None:
            values = self.values if items is None else self.values[items.reshape(-1)]
            parts.append(values @ self.value_vectors)
        found = sum(parts[1:], parts[0])
        return found if items is None else found.view(*items.shape, found.shape[1])

    def _codes_of(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of some items ``int64[N]``, and where those of each begin ``int64[N]``."""
        first = self.offsets[items]
        counts = self.offsets[items + 1] - first
        starts = counts.cumsum(0) - counts
        within = torch.arange(int(counts.sum()), device=items.device) - starts.repeat_interleave(counts)
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
        self.encoder = ItemEncoder(num_items, dim, *sizes) if any(sizes) else None
        self.id_dropout = IdDropout(options.id_dropout) if any(sizes) else None

    def reset_rest(self, std: float) -> None:
        """Initialise what the table does not hold: features' vectors get this standard deviation; the padding is 0."""
        with torch.no_grad():
            self.weight[0] = 0
        if self.encoder is not None:
            self.encoder.reset(std)

    def set_features(self, features: Features) -> None:
        """Set the features of all items; see :meth:`ItemEncoder.set`."""
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


def give_features(model: Any, table: ItemTable | None) -> None:
    """Give a model the features that its config names, from the item table of its dataset. Others stay as they are.

    Raises:
        InputError: the table is missing, or does not fit the model.
    """
    config = model.parts[0].config
    asked = getattr(config, "features", None)
    if not asked:
        return
    if table is None:
        raise InputError(f"the model reads {asked} of the items, but there is no item table; give items (--items FILE)")
    vocabulary, _ = vocabulary_of(table, asked)
    if (vocabulary.num_codes, vocabulary.num_values) != (config.num_codes, config.num_values):
        raise InputError(f"the item table does not fit the model, which reads {asked}; give the one of its training")
    model.set_features(vocabulary.encode(table))
