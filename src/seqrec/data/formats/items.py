"""Reads descriptions of items in any format into a frame with one row per description."""

import codecs
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import (
    SAMPLE_BYTES,
    Source,
    expanded,
    open_source,
    read_pieces,
    read_sample,
    read_whole,
)
from seqrec.data.formats.delimited import read_delimited
from seqrec.data.formats.frames import from_frame, read_in_blocks, read_text
from seqrec.data.formats.item_columns import (
    CATEGORY_NAMES,
    ID_NAMES,
    MOST_COLUMNS,
    TITLE_NAMES,
    ItemSummary,
    as_categories,
    as_kept,
    as_texts,
    genres_of,
    kind_of,
    title_names,
)
from seqrec.data.formats.objects import read_objects
from seqrec.data.formats.panics import handles_panics
from seqrec.data.formats.parquet import read_parquet
from seqrec.data.formats.parts import read_folder
from seqrec.data.formats.prelude import skip_prelude
from seqrec.data.formats.summary import some_names
from seqrec.data.formats.text import Origin, detect, is_header, is_parquet, usual_columns
from seqrec.data.formats.values import ids_of
from seqrec.errors import InputError, LogWarning, warn

_OTHERS = ("price", "brand", "description", "author", "authors", "artist", "publisher", "year", "release_year",
           "release_date", "color", "url", "image_url", "language", "popularity", "code")  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What the rows of a file describe.

    Args:
        name: ``item`` or ``user``.
        ids: usual names of the id column, best first.
        names: usual names of all columns. Any of them makes the first line a header.
    """

    name: str
    ids: Sequence[str]
    names: Sequence[str]

    @property
    def advice(self) -> str:
        """What to give instead of a file that cannot be read."""
        return f"give a file that describes {self.name}s"

    @property
    def header(self) -> Mapping[str, str]:
        """The usual names, however their words are separated."""
        return {f"{name} {mark}": name.replace("_", mark) for name in self.names for mark in ("_", " ", "")}


_ITEMS = Subject("item", ID_NAMES, (*ID_NAMES, *TITLE_NAMES, *CATEGORY_NAMES, *_OTHERS))


@dataclass(frozen=True)
class Raw:
    """A file or frame of descriptions as it was read.

    Args:
        columns: raw columns by name, or by place if there is no header.
        declared: types that RecBole's header declares.
        origin: where they come from.
    """

    columns: dict[str, pl.Series]
    declared: dict[str, str]
    origin: Origin


def read_items(source: Any, *, item: str | None = None) -> pl.DataFrame:
    """Read descriptions of items into a polars frame.

    `source` is a path, a polars DataFrame or LazyFrame, a pandas DataFrame or a pyarrow Table; `item` names the id
    column. Supported formats:

    - CSV and TSV (also `;` and `|`), Parquet (a file or a folder of parts), JSON lines, a JSON array of objects, and a
      JSON object with an entry per id (an object, or a list of categories). Text and JSON may be gzipped.
    - MovieLens' `u.item`, `movies.dat` and `movies.csv`, RecBole's `.item`, and Amazon's metadata, whose lines may also
      be Python literals.

    **Result.** `item_id` (Int64 or String), `title` (String) and `categories` (List(String)) if they are found, and
    the other columns as numbers (Float64), vectors of one length (Array(Float32)) or texts (String). Unknown values
    are null, or an empty list of categories.

    Columns are found by their usual names. Without a header, the first column is the id. Text that is not UTF-8 is read
    as Windows-1252 (Latin-1), with a warning.

    Raises:
        InputError: the file cannot be read, or has no ids.
    """
    return read_items_with_summary(source, item=item)[0]


@handles_panics
def read_items_with_summary(source: Any, *, item: str | None = None) -> tuple[pl.DataFrame, ItemSummary]:
    """Like :func:`read_items`, and also return a summary of how the descriptions were understood."""
    raw = read_raw(source, _ITEMS, item)
    origin, summary = raw.origin, ItemSummary(raw.origin.name)
    columns, declared = _named(raw, summary)
    found: dict[str, pl.Series] = {}
    id_column = id_column_of(list(columns), _ITEMS, item, origin, summary)
    found["item_id"] = ids_of(origin, columns.pop(id_column), "item").alias("item_id")
    summary.columns["item"] = id_column
    for role, names in (("title", title_names(id_column)), ("categories", CATEGORY_NAMES)):
        for name in usual_columns(columns, names):
            values = _of_role(role, columns[name], declared.get(name), summary)
            if values is not None:
                found[role] = values.alias(role)
                summary.columns[role] = name
                columns.pop(name)
                break
    for name, values in columns.items():
        keep(found, name, as_kept(values, declared.get(name), summary), summary)
    if "title" not in found:
        texts = [name for name, kind in summary.kept.items() if kind == "text"]
        summary.untitled = [name for name in texts if 2 * found[name].n_unique() > len(found[name])]
    return pl.DataFrame(list(found.values())), summary


def read_raw(source: Any, subject: Subject, name: str | None = None) -> Raw:
    """Read descriptions without interpreting them; ``name`` is that of the id column, if the caller gave it.

    Raises:
        InputError: the source cannot be read, is empty, or has too many columns.
    """
    is_path = isinstance(source, str | os.PathLike)
    if is_path and not os.fspath(source):
        raise InputError(f"the path of the {subject.name} file is empty; give a file")
    declared: dict[str, str] = {}
    if is_path:
        frame, origin, declared = _read_path(Path(os.fsdecode(source)), subject, name)
    else:
        frame, origin = from_frame(source)
    if frame.height == 0 or frame.width == 0:
        raise InputError(f"{origin.name}: describes no {subject.name} below the header; {subject.advice}")
    if frame.width > MOST_COLUMNS:
        reason = f"has {frame.width:,} columns, more than {MOST_COLUMNS:,}"
        raise InputError(f"{origin.name}: {reason}; write numbers as one column of lists")
    return Raw({column.name: column for column in frame.iter_columns()}, declared, origin)


def keep(found: dict[str, pl.Series], name: str, values: pl.Series | str, summary: ItemSummary) -> None:
    """Add a column to those that are found, or record the reason why it is ignored."""
    if isinstance(values, str):
        summary.ignored[name] = values
        return
    plain = f"{name}_other" if name in found else name
    found[plain] = values.alias(plain)
    summary.kept[plain] = kind_of(values.dtype)


def _of_role(role: str, values: pl.Series, declared: str | None, summary: ItemSummary) -> pl.Series | None:
    """A column as titles or categories; None if it holds neither."""
    if role == "categories":
        lists = as_categories(values, declared, summary)
        return lists if lists is not None and (lists.list.len() > 0).any() else None
    texts = None if isinstance(values.dtype, pl.List | pl.Array) else as_texts(values)
    return texts if texts is not None and texts.null_count() < len(texts) else None


def id_column_of(names: list[str], subject: Subject, asked: str | None, origin: Origin, summary: ItemSummary) -> str:
    """Name of the id column: the one that the caller named, else the best usual name, else the first column."""
    if asked is not None:
        same = [name for name in names if name.strip().lower() == asked.strip().lower()]
        if not same:
            raise InputError(f"{origin.name}: has no column {asked!r}; choose from {some_names(names)}")
        return sorted(same, key=lambda name: name != asked)[0]
    if found := usual_columns(names, subject.ids):
        return found[0]
    if origin.header:
        summary.warn(f"no column has a usual name for {subject.name} ids; the first one, {names[0]!r}, is used")
    return names[0]


def _named(raw: Raw, summary: ItemSummary) -> tuple[dict[str, pl.Series], dict[str, str]]:
    """Name the columns of a file without a header; other columns are returned as they are."""
    columns, declared, origin = raw.columns, raw.declared, raw.origin
    if origin.header or origin.separator in (None, "\n"):
        return columns, declared
    frame = pl.DataFrame(columns)
    if (genres := genres_of(frame)) is not None:  # MovieLens' u.item
        names = ("item_id", "title", "release_date", "video_release_date", "imdb_url")
        first = {name: columns[str(number)] for number, name in enumerate(names, 1)}
        return {**first, "categories": genres}, {}
    # Most titles occur once, whereas many items share a category.
    names_by_place = {"1": "item_id"}
    texts = [name for name in frame.columns[1:] if frame[name].dtype == pl.String]
    own = [name for name in texts if 2 * frame[name].n_unique() > frame.height]
    if own or texts:
        names_by_place[(own or texts)[0]] = "title"
    left = [name for name in texts if name not in names_by_place]
    lists = [name for name in left if frame[name].str.contains("|", literal=True).any()]
    shared = lists or [name for name in left if name not in own]
    if shared:
        names_by_place[shared[0]] = "categories"
    if not (origin.separator == "::" and frame.width == 3):  # MovieLens' movies.dat
        guess = ", ".join(f"{name} = column {place}" for place, name in names_by_place.items())
        summary.warn(f"has no header; a guess: {guess}")
    return {names_by_place.get(name, name): column for name, column in columns.items()}, declared


def _read_path(path: Path, subject: Subject, name: str | None) -> tuple[pl.DataFrame, Origin, dict[str, str]]:
    """Raw columns of a file or a folder of Parquet parts, and the types that RecBole's header declares."""
    path, is_folder = expanded(path)
    if is_folder:
        return read_folder(path), Origin(str(path)), {}
    source = open_source(path, array=True)
    if not next(read_pieces(source, SAMPLE_BYTES), b"").strip():
        raise InputError(f"{path}: is empty; {subject.advice}")
    if is_parquet(source, None):
        return read_parquet(source), Origin(str(path)), {}
    source = _in_utf8(source)
    names = dict(subject.header) | ({subject.name: name} if name else {})
    source, lines, separator = skip_prelude(source, read_sample(source), names)
    if re.match(r"\s*(\{|\[\s*([\[{]|$))", lines[0]):
        return *read_objects(source), {}
    frame, origin = _read_columns(source, lines, separator, names)
    header = [field.strip().rpartition(":") for field in lines[0].split(origin.separator or "\t")]
    declared = {name: kind for name, _, kind in header if kind in ("token", "token_seq", "float", "float_seq")}
    return frame, origin, declared


def _read_columns(
    source: Source, lines: list[str], separator: str | None, names: dict[str, str]
) -> tuple[pl.DataFrame, Origin]:
    """Read delimited text; ``separator`` is set if Excel wrote it. Between ``|``, quotation marks may quote nothing."""
    if separator is not None:
        return read_in_blocks(read_delimited, source, separator, True, names)
    extension = source.path.name.lower().removesuffix(".gz").rpartition(".")[2]
    format = detect(extension if extension in ("csv", "tsv") else None, lines, names)
    if format == "blanks":
        if not is_header([lines[0]], names):  # with a header it is one column of ids
            advice = "separate its columns by commas or tabs, or give Parquet or JSON lines"
            raise InputError(f"{source.path}: has no separated columns; {advice}")
        return read_in_blocks(read_delimited, source, ",", True, names)
    try:
        return read_text(source, format, names)
    except InputError:
        if "|" not in lines[0] or not any('"' in line for line in lines):
            raise
        return read_in_blocks(read_delimited, source, "|", False, names)


def _in_utf8(source: Source) -> Source:
    """The source as UTF-8 text; translated from Windows-1252, with a warning, if it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in read_pieces(source, SAMPLE_BYTES):
            if b"\0" in piece:
                raise InputError(f"{source.path}: is binary; give text, Parquet or JSON lines")
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raw = read_whole(source)
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        warn(f"{source.path}: is not UTF-8 and is read as Windows-1252 (Latin-1)", LogWarning)
        return Source(source.path, text.encode(), is_plain=True)
    return source
