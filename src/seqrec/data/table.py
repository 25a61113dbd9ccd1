"""Tables of known facts: one row per item of the catalogue or per user of the log, and their form on disk."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import polars as pl

from seqrec.data.checked import MOST_EXPANSION, MOST_UNPACKED, read_parquet, size_of
from seqrec.data.formats.item_columns import MOST_COLUMNS, MOST_VECTOR, ItemSummary, kind_of
from seqrec.data.formats.summary import some_of
from seqrec.data.id_table import IdTable
from seqrec.errors import InputError, one_line

LISTS = pl.List(pl.String)


class Table:
    """Known facts, in the order of ids. Unknown values are null, an empty list, or a vector of NaN.

    Args:
        frame: frame with a column of ids, and any lists of texts (List(String)), numbers (Float64), vectors
            (Array(Float32)) and texts (String). May also be a function that reads this frame from a file; it is called
            at the first use.
        summary: summary of how the descriptions were understood; None for a table that was loaded.

    Attributes:
        learned: what :func:`seqrec.data.features.vocabulary_of` found in it, by what was asked for.
    """

    #: What a row describes, and where in a log it is.
    WHAT: ClassVar[str]
    WHOLE: ClassVar[str]
    #: Name of the option that names the columns which models learn.
    OPTION: ClassVar[str]
    #: Types of columns that always have the same, by name.
    FIXED: ClassVar[Mapping[str, Any]] = {}
    #: Whether other columns may be lists of texts.
    MAY_LIST: ClassVar[bool] = False

    def __init__(self, frame: pl.DataFrame | Callable[[], pl.DataFrame], summary: ItemSummary | None = None) -> None:
        self._frame, self.summary = frame, summary
        self.learned: dict[str, Any] = {}

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The table, with a row per item or user."""
        return self._frame if isinstance(self._frame, pl.DataFrame) else self._frame()

    def read(self) -> Self:
        """Read and check the table now if it is in a file, because a forked process cannot do it later."""
        assert self.frame is not None
        return self

    def __len__(self) -> int:
        return self.frame.height

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each column that may hold anything: ``number``, ``vector``, ``list`` or ``text``."""
        known = (f"{self.WHAT}_id", *self.FIXED)
        return {name: kind_of(kind) for name, kind in self.frame.schema.items() if name not in known}


AnyTable = TypeVar("AnyTable", bound=Table)


def aligned(kind: type[AnyTable], frame: pl.DataFrame, ids: pl.Series, summary: ItemSummary) -> AnyTable:
    """Descriptions in the order of ids; warns about ids or descriptions that do not match.

    Raises:
        InputError: no id is described.
    """
    what, key = kind.WHAT, f"{kind.WHAT}_id"
    given = frame[key]
    places = IdTable(ids).find(given)
    known = places >= 0
    if not known.any():
        raise InputError(
            f"{summary.name}: describes no {what} of the {kind.WHOLE}: its column {summary.columns[what]!r} holds ids "
            f"like {given[0]!r}, the log ids like {ids[0]!r}; give descriptions with the ids of the log"
        )
    found, first = np.unique(places[known], return_index=True)
    rows = np.flatnonzero(known)[first]
    summary.described, summary.catalogue = len(found), len(ids)
    summary.unknown = int((~known).sum())
    summary.repeated = int(known.sum()) - len(found)
    notes = []
    if missing := len(ids) - len(found):
        there = np.zeros(len(ids), dtype=bool)
        there[found] = True
        some = some_of(ids.filter(~pl.Series(there)), 3)
        notes.append(f"{what}s without a description: {missing:,} of {len(ids):,} ({some})")
    if summary.unknown:
        some = some_of(given.filter(pl.Series(~known)), 3)
        missed = f"ignored descriptions of {what}s that are not in the log or were filtered out"
        notes.append(f"{missed}: {summary.unknown:,} ({some})")
    if summary.repeated:
        again = np.ones(len(given), dtype=bool)
        again[rows] = False
        some = some_of(given.filter(pl.Series(again & known)), 3)
        notes.append(f"ignored rows that describe {_article(what)} again: {summary.repeated:,} ({some})")
    if notes:
        summary.warn("; ".join(notes))
    row_of = np.full(len(ids), -1, dtype=np.int64)
    row_of[found] = rows
    index = pl.Series(row_of).set(pl.Series(row_of < 0), None)
    columns = {name: frame[name].gather(index) for name in frame.columns if name != key}
    for name, values in columns.items():
        if values.dtype == LISTS:
            columns[name] = values.fill_null([])
        elif isinstance(values.dtype, pl.Array):
            vectors = frame[name].to_numpy()[row_of]
            vectors[row_of < 0] = np.nan
            columns[name] = pl.Series(name, vectors, dtype=values.dtype)
    return kind(pl.DataFrame({key: ids, **columns}), summary)


def _article(what: str) -> str:
    return f"an {what}" if what == "item" else f"a {what}"


def save_table(table: Table, path: Path) -> str:
    """Write a table as Parquet, and return the digest of the file.

    The file has no nulls: unknown values are empty texts, empty lists or NaN.
    """
    texts, numbers = pl.col(pl.String).fill_null(""), pl.col(pl.Float64).fill_null(float("nan"))
    frame = table.frame
    frame.with_columns(texts).with_columns(numbers).write_parquet(path)
    return _digest_of(path)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_table(
    kind: type[AnyTable],
    path: Path,
    ids: pl.Series,
    digest: str | None = None,
    advice: str = "copy it back or train again",
) -> AnyTable:
    """Read a table that :func:`save_table` wrote. The file is checked, as it may come from anybody.

    Args:
        kind: kind of table.
        path: file to read.
        ids: ids of the catalogue or the log; the table must have the same.
        digest: digest that :func:`save_table` returned; None skips this check.
        advice: advice in the error about a damaged file.

    Raises:
        InputError: the file is damaged, belongs to another catalogue or log, or is not such a table.
    """
    key = f"{kind.WHAT}_id"
    kinds: Mapping[str, Any] = {name: None if name == key else one for name, one in _schema(kind, path, advice).items()}
    frame = read_parquet(path, kinds, len(ids), advice)
    if digest is not None and _digest_of(path) != digest:
        raise InputError(f"{path}: is not the file that was saved; {advice}")
    if frame[key].dtype != ids.dtype or not (frame[key] == ids).all():
        raise InputError(f"{path}: belongs to another {kind.WHOLE}; {advice}")
    most = max(MOST_UNPACKED, MOST_EXPANSION * size_of(path, advice))
    columns = []
    for values in frame.iter_columns():
        # A Parquet file names a long text once for many rows.
        flat = values.explode().drop_nulls() if values.dtype == LISTS else values
        gaps = values.dtype == LISTS and len(flat) != values.list.len().sum()
        if gaps or (flat.dtype == pl.String and int(flat.str.len_bytes().sum()) > most):
            raise InputError(f"{path}: is damaged (column {values.name} has gaps or long texts); {advice}")
        if values.name == key:
            values = ids.alias(key)
        elif values.dtype == pl.Float64:
            if values.is_infinite().any():
                raise InputError(f"{path}: is damaged (column {values.name} is not finite); {advice}")
            values = values.fill_nan(None)
        elif values.dtype == pl.String:
            values = values.set(values == "", None)
        columns.append(values)
    return kind(pl.DataFrame(columns))


def _schema(kind: type[Table], path: Path, advice: str) -> dict[str, pl.DataType]:
    """Columns and types of a table; raises if the file holds anything that such a table does not have."""
    from pyarrow import ArrowException  # slow to import, and few commands need it
    from pyarrow.parquet import read_metadata

    size_of(path, advice)
    try:
        footer = read_metadata(path)  # unlike polars, pyarrow limits the nesting of a schema
        if footer.num_columns > MOST_COLUMNS:
            raise ValueError(f"it has {footer.num_columns:,} columns")
        schema = dict(pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema())
        if wrong := _odd_column(kind, schema):
            raise ValueError(wrong)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); {advice}") from error
    return schema


def _odd_column(table: type[Table], schema: Mapping[str, pl.DataType]) -> str | None:
    """Describe a column that no such table has, or a missing one; None if all columns are as expected."""
    key = f"{table.WHAT}_id"
    if key not in schema:
        return f"column {key} is missing"
    plain = (pl.String, pl.Float64, LISTS) if table.MAY_LIST else (pl.String, pl.Float64)
    for name, kind in schema.items():
        vector = isinstance(kind, pl.Array) and kind.inner == pl.Float32 and kind.size <= MOST_VECTOR
        expected = {key: kind, **table.FIXED}.get(name)
        if not (kind == expected if expected is not None else vector or kind in plain):
            return f"column {name} is {kind}"
    return None
