"""Features of items and users: what a table says of them, in the form that models learn from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from seqrec.data.id_table import IdTable
from seqrec.data.table import Table
from seqrec.errors import InputError

ALL = "all"
BINS = 20  # quantiles that the values of a number are divided by
LEAST, MOST = 2, 100_000  # rows that share a value, and values of a column, for it to be learned
_TELLING = 0.5  # largest share of distinct values in a column of texts that are values, not free text


class Features(NamedTuple):
    """The features of all items, or users, of a table: those of its row ``i - 1`` are at ``i``; row 0 has none.

    The codes of row ``i``, from 0, are ``codes int64[M]`` from ``offsets[i]`` to ``offsets[i + 1]``; ``offsets`` is
    ``int64[I + 2]``. Its numbers are ``values float32[I + 1, V]``.
    """

    offsets: np.ndarray
    codes: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Coded:
    """A column whose values have a code each: categories, texts that recur, or bins of numbers.

    Args:
        name: name of the column.
        values: sorted values that are learned; None for numbers.
        edges: ascending inner bounds of the bins of a number, ``float64[B - 1]``; None for other columns.
    """

    name: str
    values: IdTable | None = None
    edges: np.ndarray | None = None

    def __len__(self) -> int:
        if self.edges is not None:
            return len(self.edges) + 1
        assert self.values is not None
        return len(self.values)

    def places_in(self, earlier: "Coded", column: pl.Series) -> np.ndarray:
        """The code of an earlier column of this name that means the same as each code, ``int64[len(self)]``, or -1.

        A bin of numbers means the earlier bin that most of its numbers in ``column`` are in: bins are quantiles, so
        other numbers have other bins.
        """
        if self.values is not None:
            return places_by_name(self.values.series, [] if earlier.values is None else earlier.values.series)
        if earlier.edges is None:
            return np.full(len(self), -1)
        counts = np.zeros((len(self), len(earlier)), dtype=np.int64)
        np.add.at(counts, (self.encode(column)[1], earlier.encode(column)[1]), 1)
        return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)

    def encode(self, column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Rows and codes of the values that are learned, each pair once, ordered by row: ``int64[M]`` each."""
        rows, values = _entries(column)
        if self.edges is not None:
            codes = np.searchsorted(self.edges, values.to_numpy(), side="right").astype(np.int64)
        else:
            assert self.values is not None
            codes = self.values.find(values)
        known = codes >= 0
        if not isinstance(column.dtype, pl.List):
            return rows[known], codes[known]
        pairs = np.sort(rows[known] * len(self) + codes[known])  # np.unique hashes, which takes many times as long
        return np.divmod(pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]], len(self))

    def unseen(self, column: pl.Series, learned: pl.Series) -> pl.Series:
        """Values of ``column`` that the column which this was learned of does not have, each once."""
        if self.values is None:
            return pl.Series([])
        values = _entries(column)[1].unique(maintain_order=True)
        values = values.filter(pl.Series(self.values.find(values) < 0))
        return values if values.is_empty() else values.filter(~values.is_in(_entries(learned)[1].unique().implode()))


@dataclass(frozen=True, eq=False)
class Scaled:
    """A column of vectors, which are shifted and scaled: each is ``(x - mean) * scale``, or 0 if it is unknown.

    Args:
        name: name of the column.
        mean: ``float32[V]``.
        scale: factor by which the numbers get a variance of 1 in the mean.
    """

    name: str
    mean: np.ndarray
    scale: float

    def __len__(self) -> int:
        return len(self.mean)

    def encode(self, column: pl.Series) -> np.ndarray:
        """The vectors, ``float32[N, V]``."""
        return np.nan_to_num((column.to_numpy() - self.mean) * np.float32(self.scale), nan=0.0)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What models learn of the columns of a table; the same for all tables with these columns."""

    coded: Sequence[Coded]
    scaled: Sequence[Scaled]

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return [one.name for one in self.coded] + [one.name for one in self.scaled]

    @property
    def num_codes(self) -> int:
        """Number of codes C, over all columns."""
        return sum(map(len, self.coded))

    @property
    def num_values(self) -> int:
        """Number of numbers V in the vectors of a row, over all columns."""
        return sum(map(len, self.scaled))

    @property
    def names(self) -> list[str]:
        """A name for each code: its column, and the value or the number of the bin."""
        parts = [(one.name, range(len(one)) if one.values is None else one.values.series) for one in self.coded]
        return [f"{name}\t{value}" for name, values in parts for value in values]

    def places_in(self, earlier: "Vocabulary", table: Table) -> np.ndarray:
        """The code of an earlier vocabulary that means the same as each code in this one of a table: ``int64[C]``.

        It is -1 where there is none; see :meth:`Coded.places_in`.
        """
        firsts = np.cumsum([0, *map(len, earlier.coded)]).tolist()
        before = {one.name: (one, first) for one, first in zip(earlier.coded, firsts, strict=False)}
        parts = [np.zeros(0, np.int64)]
        for one in self.coded:
            old, first = before.get(one.name, (None, 0))
            found = np.full(len(one), -1) if old is None else one.places_in(old, _column(table, one.name))
            parts.append(np.where(found >= 0, found + first, -1))
        return np.concatenate(parts)

    def lines(self) -> list[str]:
        """What is learned of each column, in words."""
        coded = [f"{one.name} ({len(one):,} {'bins' if one.values is None else 'values'})" for one in self.coded]
        return coded + [f"{one.name} (vectors of {len(one):,})" for one in self.scaled]

    def encode(self, table: Table) -> Features:
        """The features of the rows of a table, which has the same columns."""
        rows, codes, first = [], [], 0
        for column in self.coded:
            found = column.encode(_column(table, column.name))
            rows.append(found[0])
            codes.append(found[1] + first)
            first += len(column)
        flat, joined = np.concatenate([np.zeros(0, np.int64), *rows]), np.concatenate([np.zeros(0, np.int64), *codes])
        order = np.argsort(flat, kind="stable")
        counts = np.bincount(flat + 1, minlength=len(table) + 1)
        values = np.zeros((len(table) + 1, self.num_values), dtype=np.float32)
        at = 0
        for one in self.scaled:
            values[1:, at : at + len(one)] = one.encode(_column(table, one.name))
            at += len(one)
        return Features(np.append(0, np.cumsum(counts)).astype(np.int64), joined[order], values)


def places_by_name(names: Iterable[Any], earlier: Iterable[Any]) -> np.ndarray:
    """The place of each name among earlier ones, which are all different, or -1: ``int64[N]``."""
    places = {str(name): place for place, name in enumerate(earlier)}
    return np.array([places.get(str(name), -1) for name in names], dtype=np.int64)


def vocabulary_of(table: Table, asked: str) -> tuple[Vocabulary, dict[str, str]]:
    """What a model learns of a table. It is found once, and then kept with the table.

    Args:
        table: table of items or users.
        asked: names of columns, separated by commas; or ``all`` for those that there is something to learn of.

    Returns:
        The vocabulary, and for each column that ``all`` leaves out the reason.

    Raises:
        InputError: there is no such column, or nothing to learn of it.
    """
    if asked not in table.learned:
        found, left_out = _vocabulary_of(table, asked)
        table.learned[asked] = found, left_out
        table.learned.setdefault(",".join(found.columns), (found, {}))  # what a run calls it
    return table.learned[asked]


def _vocabulary_of(table: Table, asked: str) -> tuple[Vocabulary, dict[str, str]]:
    option, what = table.OPTION, table.WHAT
    there = [name for name in table.frame.columns if name != f"{what}_id"]
    names = there if asked == ALL else [name.strip() for name in asked.split(",")]
    columns: list[Coded | Scaled] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name not in there:
            raise InputError(
                f"{option} name {name!r}, but the {what} table has {', '.join(there) or 'no columns'}; give some of "
                "these"
            )
        found = _learned(table, name)
        if isinstance(found, str):
            left_out[name] = found
        else:
            columns.append(found)
    if left_out and asked != ALL:
        name, reason = next(iter(left_out.items()))
        raise InputError(f"{option} name {name!r}, but {reason}; leave it out")
    if not columns:
        raise InputError(f"there is nothing to learn of the {what} table: {_listed(left_out)}; leave out {option}")
    coded = [one for one in columns if isinstance(one, Coded)]
    return Vocabulary(coded, [one for one in columns if isinstance(one, Scaled)]), left_out


def _listed(left_out: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it has only ids"


def _column(table: Table, name: str) -> pl.Series:
    if name not in table.frame.columns:
        what = f"{table.WHAT}s"
        raise InputError(
            f"the {what} have no {name!r}, which the model reads; give {what} with the columns of training"
        )
    return table.frame[name]


def _entries(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Rows, ``int64[M]``, and known values of a column of lists, texts or numbers."""
    if isinstance(column.dtype, pl.List):
        lengths = column.list.len().fill_null(0).to_numpy()
        values = column.filter(pl.Series(lengths > 0)).explode()
        rows = np.repeat(np.arange(1, len(column) + 1), lengths) - 1
    else:
        rows, values = np.arange(len(column)), column
    known = values.is_not_null().to_numpy()
    return rows[known], values.filter(pl.Series(known))


def _learned(table: Table, name: str) -> Coded | Scaled | str:
    """What is learned of a column, or the reason why nothing is."""
    column = table.frame[name]
    if isinstance(column.dtype, pl.Array):
        return _scaled(name, column.to_numpy())
    rows, values = _entries(column)
    if len(values) == 0:
        return "it is empty"
    if column.dtype == pl.Float64:
        numbers = values.to_numpy()
        edges = np.unique(np.quantile(numbers, np.arange(1, BINS) / BINS, method="higher"))
        edges = edges[edges > numbers.min()]
        return Coded(name, edges=edges) if len(edges) else "all its numbers are equal"
    if isinstance(column.dtype, pl.List):  # an item may have a value twice
        counts = pl.col("row").n_unique().alias("count")
        found = pl.DataFrame({"row": rows, "value": values}).group_by("value").agg(counts)
    else:
        found = values.alias("value").value_counts()
    if column.dtype == pl.String and len(found) > _TELLING * len(values):
        return f"its texts differ between most {table.WHAT}s (give vectors of them)"
    kept = found.filter((pl.col("count") >= LEAST) & (pl.col("count") < len(column)))
    if kept.is_empty():
        return f"no value is shared by some {table.WHAT}s and not by others"
    frequent = kept.sort("count", "value", descending=[True, False])["value"].head(MOST)
    return Coded(name, IdTable(frequent.sort()))


def _scaled(name: str, vectors: np.ndarray) -> Scaled | str:
    known = vectors[~np.isnan(vectors).any(axis=1)]
    if len(known) == 0:
        return "it is empty"
    mean = known.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(known.var(axis=0, dtype=np.float64).mean()))
    return Scaled(name, mean.astype(np.float32), 1 / spread) if spread > 0 else "all its vectors are equal"
