"""Finds items by the words of their titles, and users by the beginning of their ids."""

from functools import cached_property

import numpy as np
import polars as pl

from seqrec.data.dataset import Dataset
from seqrec.errors import InputError
from seqrec.ranking.topk import by_popularity

_MARKS = r"\p{M}"  # combining marks, such as the accent of an é that was taken apart


class Finder:
    """Searches a catalogue.

    Args:
        dataset: dataset with the item table.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @cached_property
    def _texts(self) -> pl.Series:
        """The text of each item that words are searched in, most popular first: id and title without accents."""
        table = self.dataset.item_table
        titles = None if table is None else table.titles
        ids = self.dataset.item_ids.cast(pl.String)
        texts = _joined(ids, titles)
        return _folded(texts).gather(self._order - 1)

    @cached_property
    def _order(self) -> np.ndarray:
        """All items by popularity, ``int64[I]``."""
        return by_popularity(self.dataset.item_counts)

    @cached_property
    def categories(self) -> list[tuple[str, int]]:
        """The categories and their numbers of items, largest first."""
        table = self.dataset.item_table
        if table is None:
            return []
        found = [(name, len(table.items_of(name))) for name in table.category_names]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))

    def search(self, query: str, k: int, category: str | None = None) -> np.ndarray:
        """Indices of at most k items whose id or title has every word of the query, ``int64[M]``, most popular first.

        Raises:
            InputError: no item has the category.
        """
        words = _folded(pl.Series([query]))[0].split()
        exact = self.dataset.item_indices([query.strip()]) if query.strip() else np.zeros(1, dtype=np.int64)
        keep = np.ones(len(self._order), dtype=bool)
        if category is not None:
            table = self.dataset.item_table
            if table is None or table.categories is None:
                raise InputError("category: the items of this run have no categories; leave it out")
            keep = np.isin(self._order, table.items_of(category))
        for word in words:
            keep &= self._texts.str.contains(word, literal=True).to_numpy()
        found = self._order[keep]
        first = exact[(exact > 0) & np.isin(exact, found)] if category is not None else exact[exact > 0]
        return np.concatenate([first, found[~np.isin(found, first)]])[:k]

    def users(self, beginning: str, k: int) -> list[tuple[int | str, int]]:
        """At most k users whose id begins so, with their numbers of interactions; some of the log for an empty text."""
        ids = self.dataset.user_ids
        if beginning:
            places = ids.cast(pl.String).str.starts_with(beginning).arg_true().head(k).to_numpy().astype(np.int64)
        else:
            places = np.unique(np.linspace(0, len(ids) - 1, min(k, len(ids))).astype(np.int64))
        counts = self.dataset.offsets[places + 1] - self.dataset.offsets[places]
        return list(zip(ids.gather(places).to_list(), counts.tolist(), strict=True))


def _joined(ids: pl.Series, titles: pl.Series | None) -> pl.Series:
    if titles is None:
        return ids
    return pl.select(pl.concat_str([ids, titles], separator="\n", ignore_nulls=True)).to_series()


def _folded(texts: pl.Series) -> pl.Series:
    """Lower case, without accents."""
    return texts.str.normalize("NFKD").str.replace_all(_MARKS, "").str.to_lowercase()
