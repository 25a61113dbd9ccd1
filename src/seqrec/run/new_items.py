"""Items that training never saw, which a model with features can rank by what is known of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from seqrec.data.dataset import Dataset
from seqrec.data.features import Vocabulary, vocabulary_of
from seqrec.data.formats.item_columns import ItemSummary
from seqrec.data.formats.items import read_items_with_summary
from seqrec.data.formats.summary import some_of
from seqrec.data.ids import integers_of, texts_of
from seqrec.data.items import ItemTable
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.features import give_features
from seqrec.models.transitions import Addition, Transitions
from seqrec.run.config import RunConfig
from seqrec.run.start import row_kinds


class NothingToAdd(InputError):
    """No item can be added, whatever the descriptions hold: the model learned no features, or the log has them all."""


def with_new_items(config: RunConfig, dataset: Dataset, items: Any) -> Dataset:
    """A dataset with more items, after those that were there and sorted by id.

    Args:
        config: configuration of the run.
        dataset: its dataset, with the item table.
        items: descriptions of the new items, in any form that :func:`read_items_with_summary` takes.

    Raises:
        NothingToAdd: the model reads no features, or no item is new.
        InputError: the descriptions can't be read, or a column that the model reads is missing or of another kind.
    """
    asked, table = config.model_config.get("features"), dataset.item_table
    if not asked or table is None:
        raise NothingToAdd(
            f"{config.label} learned no features of items, so it can't rank items that training never saw; train with "
            "features (--items FILE --features all), or on a log with these items"
        )
    vocabulary, _ = vocabulary_of(table, asked)
    frame, summary = read_items_with_summary(items)
    fresh = _fresh(dataset, frame, summary).sort("item_id")
    for name in vocabulary.columns:
        reason = summary.ignored.get(name)
        if reason not in (None, "empty"):
            raise InputError(f"{summary.name}: its {name}, which the model reads, has {reason}; correct it")
        if reason is None and name not in fresh.columns:
            raise InputError(f"{summary.name}: has no {name}, which the model reads; give the columns {asked}")
    more = ItemTable(_like(table.frame, fresh, summary))
    _say_unknown(vocabulary, table, more, summary)
    described = ItemTable(pl.concat([table.frame, more.frame]))
    described.learned = table.learned  # what the model reads follows from the items of its training alone
    return replace(dataset, catalogue=dataset.catalogue.followed_by(fresh["item_id"]), item_table=described)


def with_more_items(config: RunConfig, model: Model, dataset: Dataset) -> tuple[RunConfig, Model]:
    """The configuration and model of a run with the items of a dataset from :func:`with_new_items`.

    A new item has no vector of its own, only that of its features, and no transition counts. Weights that are not of
    items are shared with the model that is given.

    Args:
        config: configuration of the run.
        model: its model, in evaluation mode.
        dataset: the larger dataset.
    """
    weights, larger = model.state_dict(), replace(config, num_items=dataset.num_items)
    grown = larger.outline(len(weights))
    grown.load_state_dict(_grown(weights, grown.state_dict(), row_kinds(config)), assign=True)
    give_features(grown, dataset)
    grown.addition = _added(model.addition, dataset.num_items)
    return larger, grown.eval()


def _fresh(dataset: Dataset, frame: pl.DataFrame, summary: ItemSummary) -> pl.DataFrame:
    """The descriptions of items that the catalogue does not have, each once, with ids of its type."""
    known = dataset.catalogue.find(frame["item_id"]) >= 0
    new = frame.filter(pl.Series(~known)).unique("item_id", keep="first", maintain_order=True)
    if new.is_empty():
        raise NothingToAdd(f"{summary.name}: the run knows all of its {len(frame):,} items; give items that are new")
    ids, kind = new["item_id"], dataset.catalogue.dtype
    if kind == pl.String:
        ids = pl.Series("item_id", texts_of(ids), dtype=pl.String)
    else:
        numbers, whole = integers_of(ids)
        if not whole.all():
            raise InputError(
                f"{summary.name}: has ids like {ids[int(np.argmin(whole))]!r}, but those of the log are whole numbers "
                f"like {dataset.item_ids[0]}; give ids of the same kind"
            )
        ids = pl.Series("item_id", numbers)
    ignored = [f"{int(known.sum()):,} are in the log, whose descriptions stay"] if known.any() else []
    if twice := len(frame) - int(known.sum()) - len(new):
        ignored.append(f"{twice:,} describe an item again")
    if ignored:
        summary.warn(f"ignored rows: {'; '.join(ignored)} ({len(new):,} items are new, such as {some_of(ids, 3)})")
    return new.with_columns(ids.cast(kind))


def _say_unknown(vocabulary: Vocabulary, table: ItemTable, more: ItemTable, summary: ItemSummary) -> None:
    """Warn about values that no item of the run has, and about items of which nothing is known that the model reads."""
    for column in vocabulary.coded:
        values = column.unseen(more.frame[column.name], table.frame[column.name])
        if len(values):
            count = f"{len(values):,} values" if len(values) > 1 else "a value"
            summary.warn(f"ignored in column {column.name}: {count} that no item of the run has ({some_of(values, 3)})")
    features = vocabulary.encode(more)
    nothing = (np.diff(features.offsets)[1:] == 0) & ~features.values[1:].any(axis=1)
    if nothing.any():
        blank = more.frame["item_id"].filter(pl.Series(nothing))
        summary.warn(
            f"nothing that the model knows is said of {len(blank):,} of {len(nothing):,} new items, such as "
            f"{some_of(blank, 3)}; they are ranked as if they had no features"
        )


def _like(frame: pl.DataFrame, new: pl.DataFrame, summary: ItemSummary) -> pl.DataFrame:
    """New rows with the columns of an item table; what is not known of them is unknown."""
    columns = []
    for name, kind in frame.schema.items():
        if name not in new.columns:
            empty: Any = np.full((len(new), kind.size), np.nan) if isinstance(kind, pl.Array) else [None] * len(new)
            columns.append(pl.Series(name, empty, dtype=kind))
            continue
        values = new[name]
        if name == "categories" and values.dtype == kind:
            values = values.fill_null([])
        elif values.dtype != kind and values.null_count() < len(values):
            raise InputError(
                f"{summary.name}: its {name} holds {_words(values.dtype)}, but that of the run's items "
                f"{_words(kind)}; give the same"
            )
        columns.append(values.cast(kind))
    return pl.DataFrame(columns)


def _words(kind: pl.DataType) -> str:
    if isinstance(kind, pl.Array):
        return f"vectors of {kind.size}"
    return {pl.Float64: "numbers", pl.String: "texts"}.get(type(kind), "lists of texts")


def _grown(old: Mapping[str, Tensor], new: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights for more items; the rows of the new ones are 0."""
    found = {}
    for name, weight in old.items():
        if kinds.get(name) == "items":
            more = new[name].shape[0] - weight.shape[0]
            weight = torch.cat([weight, weight.new_zeros(more, *weight.shape[1:])])
        found[name] = weight
    return found


def _added(addition: Addition | None, num_items: int) -> Addition | None:
    """The transition counts for more items, of which nothing was counted."""
    if addition is None:
        return None
    old = addition.transitions
    more = num_items - old.num_items
    grown = Transitions(old.config, num_items)
    for name in ("counts", "recent"):
        setattr(grown, name, torch.cat([getattr(old, name), getattr(old, name).new_zeros(more)]))
    grown.offsets = torch.cat([old.offsets, old.offsets[-1:].repeat(more)])
    grown.columns, grown.values = old.columns, old.values
    return Addition(grown.eval(), addition.weight)
