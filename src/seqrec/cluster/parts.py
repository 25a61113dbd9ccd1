"""A log of Parquet parts, in a folder or behind a URL, as blocks of rows that processes read one by one."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
from pyarrow import fs
from pyarrow.parquet import ParquetFile

from seqrec.cluster.storage import is_url, without_keys
from seqrec.data.formats.blocks import SAMPLE_ROWS, expanded, open_source, short
from seqrec.data.formats.parquet import frame_of, read_parquet
from seqrec.data.formats.parts import (
    PARQUET,
    TABLES,
    Part,
    check_columns,
    check_key,
    checked_parts,
    different_types,
    exactly,
    keys_of,
    parts_of,
    targets_of,
)
from seqrec.data.formats.text import EXTENSIONS
from seqrec.errors import InputError, one_line

BLOCK_ROWS = 1 << 20  # rows per block; a row group of a part is never divided
READING_ERRORS = (
    pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError,
)  # fmt: skip
_FOOTERS = 16  # footers read at once, which takes waiting rather than computing
LOCALLY = "prepare it with --engine local"


class Piece(NamedTuple):
    """Row groups of one part."""

    part: int
    groups: tuple[int, ...]


class Block(NamedTuple):
    """Consecutive rows of the log."""

    pieces: tuple[Piece, ...]
    first_row: int
    rows: int


@dataclass(frozen=True)
class Parts:
    """The parts of a log.

    Args:
        name: the log in messages.
        paths: path of each part, as its file system takes it.
        filesystem: file system of pyarrow.
        types: type of each column; values of parts with another type are converted to it.
        columns: names of the columns in the files.
        keys: value of each part in the columns from ``key=value`` folders.
        blocks: the rows of the log, in order.
        mixed: types of each column that has several, before :func:`settled` chose one.
    """

    name: str
    paths: list[str]
    filesystem: Any
    types: dict[str, pl.DataType]
    columns: list[str]
    keys: dict[str, pl.Series]
    blocks: list[Block] = field(repr=False)
    mixed: dict[str, set[pl.DataType]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows of the log."""
        return sum(block.rows for block in self.blocks)

    def read(self, block: Block, names: Sequence[str]) -> pl.DataFrame:
        """Some columns of a block, each in the type that it has in the whole log.

        Raises:
            InputError: a part is damaged, or contradicts the name of its folder.
        """
        pieces = [self._piece(piece, names) for piece in block.pieces]
        columns = []
        for name in names:
            parts = [piece[name] for piece in pieces]
            if name not in self.mixed:
                parts = [self._cast(part) for part in parts]
            columns.append(pl.concat(parts) if len(parts) > 1 else parts[0])
        return pl.DataFrame(columns)

    def fits(self, block: Block) -> dict[str, list[bool]]:
        """Whether each column of several types can have each of the types that may hold them all, in this block."""
        names = list(self.mixed)
        pieces = [self._piece(piece, names) for piece in block.pieces]
        return {
            name: [
                all(exactly(_plain(piece[name]), kind) is not None for piece in pieces)
                for kind in targets_of(self.mixed[name])
            ]
            for name in names
        }

    def head(self, rows: int = SAMPLE_ROWS) -> pl.DataFrame:
        """All columns of the first rows of the log."""
        names = [*self.columns, *(key for key in self.keys if key not in self.columns)]
        frames: list[pl.DataFrame] = []
        for piece in (piece for block in self.blocks for piece in block.pieces):
            left = rows - sum(frame.height for frame in frames)
            if left <= 0:
                break
            frames.append(self._piece(piece, names, left))
        columns = [pl.concat([self._cast(frame[name]) for frame in frames]) for name in names]
        return pl.DataFrame(columns)

    def _cast(self, column: pl.Series) -> pl.Series:
        converted = exactly(_plain(column), self.types[column.name])
        assert converted is not None  # the type holds all values
        return converted

    def _piece(self, piece: Piece, names: Sequence[str], most: int | None = None) -> pl.DataFrame:
        """Columns of a piece, or of its first rows, in the types of its part."""
        there = [name for name in names if name in self.columns]
        path = self.paths[piece.part]
        try:
            with opened(self.filesystem, path) as file:
                groups = list(piece.groups)
                rows = sum(file.metadata.row_group(group).num_rows for group in groups)
                if most is None or not there:
                    table = file.read_row_groups(groups, columns=there, use_threads=False)
                else:
                    batches = file.iter_batches(most, groups, there, use_threads=False)
                    table = pa.Table.from_batches([next(batches)])
            rows = rows if most is None else min(most, rows)
            frame = frame_of(table)[:rows].select(there)
        except READING_ERRORS as error:
            raise damaged(path, error) from error
        for name in (name for name in names if name in self.keys):
            values = self.keys[name].gather([piece.part]).new_from_index(0, rows)
            if name in frame.columns:
                check_key(Path(self.name), frame[name], values)
            else:
                frame = frame.with_columns(values)
        return frame


def fits_block(parts: Parts, block: Block) -> dict[str, list[bool]]:
    """What :meth:`Parts.fits` tells of a block."""
    return parts.fits(block)


def opened(filesystem: Any, path: str) -> Any:
    """A Parquet file, opened to read single row groups."""
    return ParquetFile(filesystem.open_input_file(path), pre_buffer=True)


def damaged(path: str, error: BaseException) -> InputError:
    """The error for a part that cannot be read."""
    return InputError(f"{path}: is not Parquet, or is damaged ({one_line(error)}); write it again")


def can_be_blocks(log: str | Path) -> bool:
    """Whether a log is a URL, a folder, or a Parquet file, which alone are read in blocks."""
    if is_url(log):
        return True
    path, is_folder = expanded(Path(log))
    return is_folder or EXTENSIONS.get(path.name.lower().rpartition(".")[2]) == "parquet"


def open_parts(log: str | Path) -> Parts:
    """Find the parts of a log and read their footers.

    Raises:
        InputError: there is no log, or its parts do not belong together.
    """
    if is_url(log):
        filesystem, base = filesystem_of(str(log))
        name = without_keys(log)
        parts = _remote_parts(filesystem, base, name)
        paths = [part.path.as_posix() for part in parts]
    else:
        path, is_folder = expanded(Path(log))
        filesystem, name = fs.LocalFileSystem(), str(path)
        parts = parts_of(path) if is_folder else [Part(path, {})]
        paths = [os.path.abspath(part.path) for part in parts]
    with ThreadPoolExecutor(_FOOTERS) as pool:
        footers = list(pool.map(lambda path: _footer(filesystem, path), paths))
    return _together(name, filesystem, parts, paths, footers)


def _together(name: str, filesystem: Any, parts: list[Part], paths: list[str], footers: list["_Footer"]) -> Parts:
    """The parts as one log; raises if they differ in their columns, or in types that can't be joined."""
    columns = list(footers[0].types)
    for part, footer in zip(parts, footers, strict=True):
        check_columns(part.path, list(footer.types), columns)
    types, mixed = {}, {}
    for column in columns:
        kinds = {footer.types[column] for footer in footers} - {pl.Null()}
        targets = targets_of(kinds)
        if not targets:
            raise different_types(Path(name), column, kinds)
        types[column] = targets[0]
        if len(kinds) > 1:
            mixed[column] = kinds
    keys = keys_of(parts)
    for key, values in keys.items():
        types.setdefault(key, values.dtype)
    return Parts(name, paths, filesystem, types, columns, keys, _blocks([footer.rows for footer in footers]), mixed)


def settled(parts: Parts, fits: Sequence[dict[str, list[bool]]]) -> Parts:
    """The parts with one type per column, after :meth:`Parts.fits` told which types each block can have.

    Raises:
        InputError: no type holds all values of a column.
    """
    types = dict(parts.types)
    for name, kinds in parts.mixed.items():
        good = [kind for number, kind in enumerate(targets_of(kinds)) if all(fit[name][number] for fit in fits)]
        if not good:
            raise different_types(Path(parts.name), name, kinds)
        types[name] = good[0]
    return Parts(parts.name, parts.paths, parts.filesystem, types, parts.columns, parts.keys, parts.blocks)


class _Footer(NamedTuple):
    rows: list[int]  # per row group
    types: dict[str, pl.DataType]


def _footer(filesystem: Any, path: str) -> _Footer:
    """The row groups of a part, and the types of its columns."""
    try:
        with opened(filesystem, path) as file:
            counts = file.metadata
            types = frame_of(file.schema_arrow.empty_table()).schema
            rows = [counts.row_group(group).num_rows for group in range(counts.num_row_groups)]
    except READING_ERRORS as error:
        if isinstance(filesystem, fs.LocalFileSystem):
            read_parquet(open_source(Path(path)))  # says more about a file that is missing or of another kind
            raise InputError(f"{path}: cannot be read in blocks ({short(error)}); {LOCALLY}") from error
        raise damaged(path, error) from error
    return _Footer(rows, {name: pl.String() if _is_coded(kind) else kind for name, kind in types.items()})


def _is_coded(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.Categorical | pl.Enum)


def _plain(column: pl.Series) -> pl.Series:
    """Categories as text, as those of different parts have different codes."""
    return column.cast(pl.String) if _is_coded(column.dtype) else column


def _blocks(rows: list[list[int]]) -> list[Block]:
    """Blocks of row groups, from the number of rows in each row group of each part."""
    blocks: list[Block] = []
    pieces: list[tuple[int, list[int]]] = []
    first = held = 0

    def finish() -> None:
        nonlocal first, held
        blocks.append(Block(tuple(Piece(part, tuple(groups)) for part, groups in pieces), first, held))
        first, held = first + held, 0
        pieces.clear()

    for part, groups in enumerate(rows):
        for group, count in enumerate(groups):
            if held and held + count > BLOCK_ROWS:
                finish()
            if not pieces or pieces[-1][0] != part:
                pieces.append((part, []))
            pieces[-1][1].append(group)
            held += count
    if held:
        finish()
    return blocks


def filesystem_of(url: str) -> tuple[Any, str]:
    """The file system of pyarrow or fsspec for a URL, and the path in it.

    Raises:
        InputError: neither knows the URL.
    """
    scheme = url.partition("://")[0]
    try:
        if scheme.lower() in ("s3", "gs", "gcs", "hdfs", "viewfs", "file"):
            filesystem, path = fs.FileSystem.from_uri(url)
            return filesystem, path
        import fsspec

        other, path = fsspec.core.url_to_fs(url)
        return fs.PyFileSystem(fs.FSSpecHandler(other)), path
    except Exception as error:  # each library has its own errors
        name = without_keys(url)
        reason = one_line(error).replace(url, name)
        raise InputError(f"{name}: cannot be opened ({reason}); check the URL and its parameters") from error


def _remote_parts(filesystem: Any, base: str, name: str) -> list[Part]:
    """The parts below a path, by the same conventions as those in a folder of this machine."""
    try:
        info = filesystem.get_file_info(base)
        if info.type == fs.FileType.File:
            return [Part(Path(base), {})]
        if info.type == fs.FileType.NotFound:
            raise InputError(f"{name}: there is no such file or folder; check the URL")
        files = [found for found in filesystem.get_file_info(fs.FileSelector(base, recursive=True)) if found.is_file]
    except OSError as error:
        raise InputError(f"{name}: cannot be listed ({one_line(error)}); check the URL and its permissions") from error
    parts, left_out = [], []
    for file in sorted((Path(found.path) for found in files), key=lambda path: path.parts):
        *folders, last = file.relative_to(base).parts
        for folder in folders:
            if folder in TABLES:
                raise InputError(f"{name}: is {TABLES[folder]}, whose parts may be outdated; export it as Parquet")
        if any(part.startswith((".", "_")) and not (part[0] == "_" and "=" in part) for part in (*folders, last)):
            continue
        plain = [folder for folder in folders if not re.match(".+=", folder)]
        if not PARQUET.search(last):
            left_out += [] if plain else [file]
        elif plain:
            advice = "give one folder, or name the folders key=value"
            raise InputError(f"{name}: has Parquet in a folder inside of it ({plain[0]}); {advice}")
        else:
            keys = (folder.partition("=") for folder in folders)
            parts.append(Part(file, {unquote(key): unquote(value) for key, _, value in keys}))
    return checked_parts(Path(base), parts, left_out)
