"""The inputs of a graph: padded histories, with times and users where the model reads them."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from seqrec.export.graph import Graph, Value
from seqrec.models.base import Model
from seqrec.models.caser import Caser
from seqrec.models.features import UserEncoder, reads_users
from seqrec.models.ssept import SSEPT


def uses_users(model: Model) -> bool:
    """Whether the model has embeddings of users, or reads features of them."""
    own = any(isinstance(part, SSEPT) or (isinstance(part, Caser) and part.user_dim > 0) for part in model.parts)
    return own or reads_users(model)


@dataclass(frozen=True, eq=False)
class Padded:
    """Histories of B people in L columns, the newest item in the last one and zeros before the first.

    ``items int64[B, L]``, ``times int64[B, L]`` (None if the model reads none) and ``users int64[B]`` (None likewise).
    """

    graph: Graph
    items: Value
    times: Value | None
    users: Value | None

    @cached_property
    def there(self) -> Value:
        """Where an item is, ``bool[B, L]``."""
        return self.items > 0

    @cached_property
    def rows(self) -> Value:
        """B, without dimensions."""
        return self.items.size(0)

    @cached_property
    def length(self) -> Value:
        """L, without dimensions."""
        return self.items.size(1)

    @cached_property
    def lengths(self) -> Value:
        """Number of items of each history, ``int64[B]``."""
        return self.there.cast("int64").reduce("Sum", 1)

    @cached_property
    def empty(self) -> Value:
        """Which histories have no item, ``bool[B]``."""
        return self.lengths.equals(0)

    @cached_property
    def hidden_keys(self) -> Value:
        """-1e30 where there is no item, else 0, ``float32[B, 1, 1, L]``, to add to the logits of attention.

        Not -inf, of which a row of nothing else would be NaN.
        """
        return self.there.where(0.0, self.graph.number(-1e30, "float32")).unsqueeze(1, 2)

    @cached_property
    def causal(self) -> Value:
        """As :attr:`hidden_keys`, also for keys after the query, ``float32[B, 1, L, L]``."""
        place = self.graph.arange(self.length)
        later = place.unsqueeze(0) > place.unsqueeze(1)
        return self.hidden_keys + later.where(-1e30, self.graph.number(0.0, "float32"))

    def newest(self, most: int) -> "Padded":
        """The newest items of each history."""
        times = None if self.times is None else self.times.slice(1, -most)
        return replace(self, items=self.items.slice(1, -most), times=times)


def embedded(table: nn.Embedding, encoder: UserEncoder, padded: Padded, items: Value | None = None) -> Value:
    """The input ``[B, L, D]`` before its scale: vectors of the items, and of the features of the users if it has any.

    ``items int64[B, L]`` are by default those of ``padded``.
    """
    x = padded.graph.constant(table.weight).rows(padded.items if items is None else items)
    if encoder.encoder is None:
        return x
    assert padded.users is not None
    known = (padded.users >= 0) & (padded.users < encoder.num_users)
    every = padded.graph.constant(encoder.vectors(torch.arange(-1, encoder.num_users)))  # row 0: somebody unknown
    return x + every.rows(known.where(padded.users + 1, 0)).unsqueeze(1)


def given(graph: Graph, model: Model) -> Padded:
    """The inputs as they come: ``items``, and ``timestamps`` and ``users`` if the model reads them."""
    sizes = ["batch", "length"]
    return Padded(
        graph,
        graph.input("items", "int64", sizes),
        graph.input("timestamps", "int64", sizes) if model.USES_TIMES else None,
        graph.input("users", "int64", ["batch"]) if uses_users(model) else None,
    )


def compact(padded: Padded, num_items: int) -> Padded:
    """Histories from inputs that may have padding and unknown items anywhere: the known items, moved to the end.

    There is at least one column, even if the input has none.
    """
    graph = padded.graph
    items = _after_zero(padded, padded.items)
    known = (items > 0) & (items <= num_items)
    from_end = known.cast("int64").cumsum(1, reverse=True)  # 1 for the newest
    length = items.size(1)
    # What is not known goes into one more column, which is cut off.
    places = known.where(length - from_end, length)
    nowhere = graph.zeros("int64", padded.rows, length + 1)

    def moved(values: Value) -> Value:
        return nowhere.put(places, values, axis=1).slice(1, 0, length)

    times = None if padded.times is None else moved(_after_zero(padded, padded.times))
    return replace(padded, items=moved(items), times=times)


def _after_zero(padded: Padded, values: Value) -> Value:
    """``int64[B, L]`` with a column of zeros before it."""
    return padded.graph.concat([padded.graph.zeros("int64", padded.rows, 1), values], 1)
