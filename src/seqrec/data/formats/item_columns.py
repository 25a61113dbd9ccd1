"""Finds the columns of an item file and converts them: title, categories, numbers, vectors, texts."""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import polars as pl

from seqrec.data.formats.summary import some_names
from seqrec.data.formats.text import USUAL_NAMES, plain_name
from seqrec.data.formats.values import EXACT, floats_of
from seqrec.errors import LogWarning, warn

#: Single nouns such as ``movie`` name ids in a log, but may name titles in a file with a better id column.
_NOUNS = [name for name in USUAL_NAMES["item_id"].split() if re.fullmatch("[a-z]+", name) and name != "iid"]
_OF_ITEMS = [name for name in _NOUNS if name not in ("asin", "isbn", "sku", "items")]
ID_NAMES = [name for name in USUAL_NAMES["item_id"].split() if name not in _OF_ITEMS] + [
    "id", "item_key", "product_key", "ean", "gtin", "upc", "index", *_OF_ITEMS,
]  # fmt: skip
TITLE_NAMES = [
    "title", "item_title", "item_name", "name", "full_title", "display_name", "prod_name", "headline",
    *(f"{noun}_{ending}" for noun in _OF_ITEMS for ending in ("title", "name")),
    "original_title", "label",
]  # fmt: skip
CATEGORY_NAMES = [
    "categories", "category", "genres", "genre", "class", "classes", "item_categories", "item_category",
    "category_name", "category_names", "product_category", "product_categories", "movie_genres", "category_path",
    "cats", "cat", "cate", "cate_id", "cat_id", "category_id", "category_code", "main_category", "main_cat",
    "master_category", "product_type_name", "product_group_name", "product_type", "department_name", "department",
    "section", "topic", "topics", "tags",
]  # fmt: skip
#: The genres of MovieLens 100K, in the order of the last columns of ``u.item``.
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_NOTHING = ["", "(no genres listed)", "none", "null", "nan", "n/a", "na", "[]"]
MOST_VECTOR = 2**16  # largest length of a vector
MOST_COLUMNS = 10_000  # largest number of columns in an item table
_NUMERIC = 0.9  # share of numbers from which a text column is numeric and its other values are unknown


@dataclass
class ItemSummary:
    """Summary of how descriptions of items, or of users, were understood.

    Args:
        name: path, or another name for messages.
        columns: column of each role: ``item``, ``title``, ``categories``; or ``user``.
        kept: kind of each other column that is kept: ``number``, ``vector``, ``list`` or ``text``.
        ignored: columns that are not kept, each with the reason.
        described: number of catalogue items with a description; None before they are matched with a catalogue.
        catalogue: number of items in the catalogue.
        untitled: columns of texts that differ from item to item, where none has a usual name for titles.
        unknown: number of descriptions of items that are not in the catalogue.
        repeated: number of descriptions of items that an earlier row already describes.
        notes: guesses and remarks; each was also a :class:`LogWarning`.
    """

    #: What is described.
    WHAT: ClassVar[str] = "item"

    name: str
    columns: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    untitled: list[str] = field(default_factory=list)
    described: int | None = None
    catalogue: int | None = None
    unknown: int = 0
    repeated: int = 0
    notes: list[str] = field(default_factory=list)

    def warn(self, note: str) -> None:
        """Add a note, and show it as a warning at the line that called the package."""
        self.notes.append(note)
        warn(f"{self.name}: {note}", LogWarning)

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        used = ", ".join(role if role == name else f"{role} = {name}" for role, name in self.columns.items())
        lines = [f"{self.name}: columns used: {used}"]
        for kind in ("number", "vector", "list", "text"):
            if names := [name for name, found in self.kept.items() if found == kind]:
                lines.append(f"{kind}s kept: {some_names(names)}")
        if not self.kept and set(self.columns) <= {"item", "user"}:
            lines.append(f"nothing is said of the {self.WHAT}s but their ids")
        if self.untitled:
            told = "no column is named like a title; to show one of these, rename it to title"
            lines.append(f"{told}: {some_names(self.untitled)}")
        if self.ignored:
            lines.append(f"columns ignored: {some_names(f'{name} ({why})' for name, why in self.ignored.items())}")
        if self.described is not None and self.catalogue is not None:
            lines.append(f"{self.WHAT}s described: {self.described:,} of {self.catalogue:,}")
        return lines


class UserSummary(ItemSummary):
    """The same of users; "items" and "the catalogue" are then the users of the log."""

    WHAT = "user"


def kind_of(dtype: pl.DataType) -> str:
    """Kind of a column of a table: ``number``, ``vector``, ``list`` or ``text``."""
    if isinstance(dtype, pl.List):
        return "list"
    return "number" if dtype == pl.Float64 else "vector" if isinstance(dtype, pl.Array) else "text"


def title_names(id_column: str) -> list[str]:
    """Usual names of title columns in a file with this id column, best first.

    A single noun comes last, and only if the id column has the same noun or none: beside ``track_id``, ``track`` is a
    title and ``artist`` is not.
    """
    plain = plain_name(id_column)
    return TITLE_NAMES + [noun for noun in _OF_ITEMS if noun in plain or plain in ("id", "itemid", "item", "index")]


def as_texts(values: pl.Series) -> pl.Series | None:
    """A column as texts, null if empty; None if its values cannot be texts."""
    if isinstance(values.dtype, pl.List | pl.Array):
        if not _is_plain(values.dtype.inner):
            return None
        lists = values.cast(pl.List(pl.String))
        values = lists.list.eval(pl.element().drop_nulls()).list.join("\n")
    elif not _is_plain(values.dtype):
        return None
    text = values.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def as_categories(values: pl.Series, declared: str | None, summary: ItemSummary) -> pl.Series | None:
    """A column as lists of categories, empty if unknown; None if its values cannot be categories.

    Text is split at ``|``, at blanks if RecBole's header declares a sequence, and as a list if every value is in
    brackets. It is split at ``;`` or ``,`` only if there are then fewer different categories than there were texts:
    the parts recur, so they are not parts of one name such as ``Clothing, Shoes & Jewelry``.
    """
    if isinstance(values.dtype, pl.List | pl.Array):
        if not _is_plain(values.dtype.inner):
            return None
        lists = values.cast(pl.List(pl.String))
    elif not _is_plain(values.dtype):
        return None
    else:
        text = values.cast(pl.String).str.strip_chars()
        text = text.set(text.str.to_lowercase().is_in(_NOTHING).fill_null(False), None)
        mark = _mark_of(text, declared)
        if mark is None and (text.str.starts_with("[") & text.str.ends_with("]")).all() and text.is_not_null().any():
            lists = text.str.extract_all(r"""[^\[\]'",\s][^\[\]'",]*""")
        else:
            lists = text.str.split(mark or "\0")
            if mark in (";", ","):
                summary.warn(f"the categories in column {values.name!r} are split at {mark!r}, a guess")
    one = pl.element().str.strip_chars()
    lists = lists.fill_null([])
    return lists.list.eval(one.filter(one.str.len_bytes() > 0).unique(maintain_order=True))


def _mark_of(text: pl.Series, declared: str | None) -> str | None:
    """The separator of categories in a text column; None if there is none."""
    if declared == "token_seq":
        return " "
    if text.str.contains("|", literal=True).any():
        return "|"
    different = text.drop_nulls().unique()
    for mark in (";", ","):
        parts = different.str.split(mark).explode().str.strip_chars()
        if parts.n_unique() < len(different) and different.str.contains(mark, literal=True).any():
            return mark
    return None


def as_kept(values: pl.Series, declared: str | None, summary: ItemSummary) -> pl.Series | str:
    """Convert a column that is neither id, title nor categories to numbers, vectors or texts; or say why not."""
    if isinstance(values.dtype, pl.Struct) or values.dtype in (pl.Object, pl.Binary):
        return "nested values" if values.dtype != pl.Binary else "bytes"
    if values.null_count() == len(values):
        return "empty"
    if isinstance(values.dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    if isinstance(values.dtype, pl.List | pl.Array) and values.dtype.inner.is_numeric():
        return _vectors(values.cast(pl.List(pl.Float64)))
    if values.dtype == pl.String and declared in (None, "float", "float_seq"):
        if (vectors := _written_vectors(values, declared)) is not None:
            return vectors
        numbers = None if declared == "float_seq" else _numbers(values, summary)
        if numbers is not None:
            return numbers
    if (values.dtype.is_numeric() or values.dtype == pl.Boolean) and declared != "token":
        numbers = values.cast(pl.Float64)
        if not values.dtype.is_integer() or int(numbers.abs().max() or 0) < EXACT:  # type: ignore[arg-type]
            return numbers.set(~numbers.is_finite(), None)
    texts = as_texts(values)
    if texts is None:
        return "nested values"
    return "empty" if texts.null_count() == len(texts) else texts


def _numbers(values: pl.Series, summary: ItemSummary) -> pl.Series | None:
    """Numbers for text such as ``12.5`` or ``$1,299.00``; None if too many values are not numbers."""
    text = values.str.strip_chars()
    known = ~text.str.to_lowercase().is_in(_NOTHING).fill_null(True)
    money = text.str.replace(r"^(?:[$€£]|USD |EUR )\s*", "").str.replace(r"\s*(?:[$€£]| USD| EUR)$", "")
    grouped = money.str.contains(r"^\d{1,3}(,\d{3})+(\.\d+)?$").fill_null(False)
    # As in 1.299,50: all values have that form, and the comma of some does not stand for thousands.
    commas = money.filter(known).str.contains(r"^[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?$").all()
    if commas and (money.str.contains(",") & ~grouped).any():
        summary.warn(f"the commas in column {values.name!r} are read as decimal points")
        money = money.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    else:
        money = money.str.replace_all(",", "").zip_with(grouped, money)
    coded = text.filter(known).str.contains(r"^[+-]?0\d").any()  # zip codes and other ids
    numbers = floats_of(money)
    numbers = numbers.set(~numbers.is_finite(), None)
    wrong = known & numbers.is_null()
    if coded or not known.any() or int(wrong.sum()) > (1 - _NUMERIC) * int(known.sum()):
        return None
    if wrong.any():
        shown = text.filter(wrong)[0]
        some = f"{int(wrong.sum()):,}, such as {shown!r}"
        summary.warn(f"column {values.name!r} has values that are not numbers ({some}); they count as unknown")
    return numbers


def _written_vectors(values: pl.Series, declared: str | None) -> pl.Series | str | None:
    """Vectors written as text: ``[0.1, 0.2]``, or blank-separated numbers if RecBole's header declares them."""
    text = values.str.strip_chars()
    if declared == "float_seq":
        parts = text.str.split(" ")
    elif text.str.contains(r"^\[[-+\d.eE,;\s]*\]$").all():
        parts = text.str.strip_chars("[] ").str.replace_all(r"[,;\s]+", " ").str.split(" ")
    else:
        return None
    return _vectors(parts.cast(pl.List(pl.Float64), strict=False))


def _vectors(lists: pl.Series) -> pl.Series | str:
    """Lists of numbers as vectors of one length; or the reason why they are not vectors."""
    known = lists.filter(lists.list.len() > 0)
    lengths = known.list.len().unique()
    if len(lengths) != 1:
        return "empty" if len(lengths) == 0 else "lists of several lengths"
    length = int(lengths[0])
    if length > MOST_VECTOR:
        return f"vectors of more than {MOST_VECTOR:,} numbers"
    flat = known.explode().cast(pl.Float32)
    if flat.has_nulls() or not flat.is_finite().all():
        return "vectors with values that are not numbers"
    there = np.flatnonzero((lists.list.len() > 0).fill_null(False).to_numpy())
    rows = np.full((len(lists), length), np.nan, dtype=np.float32)
    rows[there] = flat.to_numpy().reshape(-1, length)
    return pl.Series(lists.name, rows, dtype=pl.Array(pl.Float32, length))


def genres_of(frame: pl.DataFrame) -> pl.Series | None:
    """Genres from the last 19 columns of ``u.item``, each 0 or 1; None if the frame has another form."""
    if frame.width != len(GENRES) + 5:
        return None
    flags = frame[:, 5:]
    if not all(flags[name].dtype == pl.Int64 and flags[name].is_in([0, 1]).all() for name in flags.columns):
        return None
    rows, columns = np.nonzero(flags.to_numpy())
    cuts = np.searchsorted(rows, np.arange(frame.height + 1)).tolist()
    names = [GENRES[column] for column in columns.tolist()]
    return pl.Series("categories", [names[a:b] for a, b in pairwise(cuts)], dtype=pl.List(pl.String))


def _is_plain(dtype: Any) -> bool:
    """Whether values of a type can be written as plain text."""
    nested = isinstance(dtype, pl.List | pl.Array | pl.Struct) or dtype in (pl.Object, pl.Binary, pl.Null)
    return not nested
