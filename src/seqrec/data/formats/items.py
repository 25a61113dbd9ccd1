"""Reads descriptions of items in any format into a frame with one row per description."""

import codecs
import os
import re
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
#: Any of these names makes the first line a header, however its words are separated.
_HEADER = {f"{name} {mark}": name.replace("_", mark) for name in (*ID_NAMES, *TITLE_NAMES, *CATEGORY_NAMES, *_OTHERS)
           for mark in ("_", " ", "")}  # fmt: skip
_ADVICE = "give a file that describes items"


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
    is_path = isinstance(source, str | os.PathLike)
    if is_path and not os.fspath(source):
        raise InputError("the path of the item file is empty; give a file")
    declared: dict[str, str] = {}
    if is_path:
        frame, origin, declared = _read_path(Path(os.fsdecode(source)), item)
    else:
        frame, origin = from_frame(source)
    if frame.height == 0 or frame.width == 0:
        raise InputError(f"{origin.name}: describes no item below the header; {_ADVICE}")
    if frame.width > MOST_COLUMNS:
        reason = f"has {frame.width:,} columns, more than {MOST_COLUMNS:,}"
        raise InputError(f"{origin.name}: {reason}; write numbers as one column of lists")
    summary = ItemSummary(origin.name)
    columns = {column.name: column for column in frame.iter_columns()}
    columns, declared = _named(frame, columns, declared, origin, summary)
    found: dict[str, pl.Series] = {}
    id_column = _id_column(list(columns), item, origin, summary)
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
        kept = as_kept(values, declared.get(name), summary)
        if isinstance(kept, str):
            summary.ignored[name] = kept
            continue
        plain = f"{name}_other" if name in found else name
        found[plain] = kept.alias(plain)
        summary.kept[plain] = kind_of(kept.dtype)
    return pl.DataFrame(list(found.values())), summary


def kind_of(dtype: pl.DataType) -> str:
    """Kind of a column of an item table: ``number``, ``vector`` or ``text``."""
    return "number" if dtype == pl.Float64 else "vector" if isinstance(dtype, pl.Array) else "text"


def _of_role(role: str, values: pl.Series, declared: str | None, summary: ItemSummary) -> pl.Series | None:
    """A column as titles or categories; None if it holds neither."""
    if role == "categories":
        lists = as_categories(values, declared, summary)
        return lists if lists is not None and (lists.list.len() > 0).any() else None
    texts = None if isinstance(values.dtype, pl.List | pl.Array) else as_texts(values)
    return texts if texts is not None and texts.null_count() < len(texts) else None


def _id_column(names: list[str], item: str | None, origin: Origin, summary: ItemSummary) -> str:
    """Name of the id column: the one that the caller named, else the best usual name, else the first column."""
    if item is not None:
        same = [name for name in names if name.strip().lower() == item.strip().lower()]
        if not same:
            raise InputError(f"{origin.name}: has no column {item!r}; choose from {some_names(names)}")
        return sorted(same, key=lambda name: name != item)[0]
    if found := usual_columns(names, ID_NAMES):
        return found[0]
    if origin.header:
        summary.warn(f"no column has a usual name for item ids; the first one, {names[0]!r}, is used")
    return names[0]


def _named(
    frame: pl.DataFrame, columns: dict[str, pl.Series], declared: dict[str, str], origin: Origin, summary: ItemSummary
) -> tuple[dict[str, pl.Series], dict[str, str]]:
    """Name the columns of a file without a header; other columns are returned as they are."""
    if origin.header or origin.separator in (None, "\n"):
        return columns, declared
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


def _read_path(path: Path, item: str | None) -> tuple[pl.DataFrame, Origin, dict[str, str]]:
    """Raw columns of a file or a folder of Parquet parts, and the types that RecBole's header declares."""
    path, is_folder = expanded(path)
    if is_folder:
        return read_folder(path), Origin(str(path)), {}
    source = open_source(path, array=True)
    if not next(read_pieces(source, SAMPLE_BYTES), b"").strip():
        raise InputError(f"{path}: is empty; {_ADVICE}")
    if is_parquet(source, None):
        return read_parquet(source), Origin(str(path)), {}
    source = _in_utf8(source)
    names = _HEADER | ({"item": item} if item else {})
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
