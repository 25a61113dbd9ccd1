"""What the tables of an earlier run and of a new one have in common, for a warm start."""

import numpy as np
import polars as pl
import torch

from seqrec.data.dataset import Dataset
from seqrec.data.features import places_by_name, vocabulary_of
from seqrec.data.items import ItemTable
from seqrec.models.features import SIZES, tables_of
from seqrec.run.config import RunConfig

TOLERANCE = 1e-3  # a vector is another one if a number differs by more than this share of its largest
OTHERS = 0.1  # share of other vectors in a column from which it is told
MOST = 10_000  # number of vectors that are compared


def matched(
    kind: str, earlier: Dataset, dataset: Dataset, before: RunConfig, now: RunConfig
) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, int]]:
    """The places of common ids in the tables of the new and of the earlier run, and how many are kept, new and gone.

    Tables of items and categories begin with a row for none, that of users ends with one, and that of features has
    none.

    Args:
        kind: ``items``, ``users``, ``categories``, or an option of features.
        earlier: dataset of the earlier run.
        dataset: that of the new run.
        before: configuration of the earlier run.
        now: that of the new run.
    """
    if kind == "users":
        there, size = earlier.user_indices(dataset.user_ids), earlier.num_users
    elif kind == "items":
        there, size = earlier.item_indices(dataset.item_ids) - 1, earlier.num_items
    elif kind == "categories":
        old, new = (_categories(*pair) for pair in ((earlier, before), (dataset, now)))
        there, size = places_by_name(new, old), len(old)
    else:
        there, size = _features(kind, earlier, dataset, before, now)
    found = np.flatnonzero(there >= 0)
    facts = {"kept": len(found), "new": len(there) - len(found), "gone": size - len(np.unique(there[found]))}
    if kind == "users":
        rows = np.append(found, len(there)), np.append(there[found], size)
    elif kind in SIZES:
        rows = found, there[found]
    else:
        rows = np.append(0, found + 1), np.append(0, there[found] + 1)
    return (torch.from_numpy(rows[0]), torch.from_numpy(rows[1])), facts


def changed_vectors(earlier: Dataset, dataset: Dataset, config: RunConfig) -> str:
    """The columns of vectors that are others for the items or users of both runs, in words; empty if none is."""
    found = []
    for (option, what, table), (_, _, old) in zip(tables_of(dataset), tables_of(earlier), strict=True):
        asked = config.model_config.get(option)
        if not asked or table is None or old is None:
            continue
        items = what == "item"
        ids = dataset.item_ids if items else dataset.user_ids
        places = earlier.item_indices(ids) - 1 if items else earlier.user_indices(ids)
        for name in (one.name for one in vocabulary_of(table, asked)[0].scaled):
            if old.frame.schema.get(name) != table.frame.schema[name]:
                continue
            share = _share_of_others(table.frame[name], old.frame[name], places)
            if share > OTHERS:
                found.append(f"{name} of {share:.0%} of the {what}s")
    return ", ".join(found)


def _share_of_others(now: pl.Series, before: pl.Series, places: np.ndarray) -> float:
    """The share of the vectors known in both columns that differ, given the places of the new rows in the old one.

    Of many rows, some are compared, as the vectors may take more memory than there is for copies.
    """
    there = np.flatnonzero(places >= 0)
    there = there[:: 1 + len(there) // MOST]
    new, old = now.gather(there).to_numpy(), before.gather(places[there]).to_numpy()
    known = ~(np.isnan(new).any(axis=1) | np.isnan(old).any(axis=1))
    new, old = new[known], old[known]
    other = np.abs(new - old) > TOLERANCE * np.abs(old).max(axis=1, initial=0, keepdims=True)
    return float(other.any(axis=1).mean()) if len(new) else 0.0


def _features(
    option: str, earlier: Dataset, dataset: Dataset, before: RunConfig, now: RunConfig
) -> tuple[np.ndarray, int]:
    """The earlier place of each code of the features, or -1, and the number of earlier codes."""
    table, old = ({name: one for name, _, one in tables_of(some)}[option] for some in (dataset, earlier))
    assert table is not None  # training from features needs their table, now as before
    assert old is not None
    vocabulary = vocabulary_of(old, before.model_config[option])[0]
    found = vocabulary_of(table, now.model_config[option])[0].places_in(vocabulary, table)
    return found, vocabulary.num_codes


def _categories(dataset: Dataset, config: RunConfig) -> list[str]:
    """The names of the categories that a model learns, in the order of the rows of their table."""
    table = dataset.item_table
    return table.first_categories(config.model_config["num_categories"])[1] if isinstance(table, ItemTable) else []
