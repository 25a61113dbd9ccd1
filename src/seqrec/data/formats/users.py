"""Reads descriptions of users in any format into a frame with one row per description."""

import re
from typing import Any

import polars as pl

from seqrec.data.formats.item_columns import ItemSummary, UserSummary, as_categories, as_kept
from seqrec.data.formats.items import Raw, Subject, id_column_of, keep, read_raw
from seqrec.data.formats.panics import handles_panics
from seqrec.data.formats.text import USUAL_NAMES
from seqrec.data.formats.values import ids_of

#: Single nouns such as ``user``, and names of sessions, may be something else beside a better id column.
_USUAL = USUAL_NAMES["user_id"].split()
_LAST = [name for name in _USUAL if re.fullmatch("[a-z]+", name) and name != "uid"] + ["user_name", "session_id"]
_IDS = [name for name in _USUAL if name not in _LAST] + ["id", "index", *_LAST]
_OTHERS = ("age", "age_group", "birth_year", "birthdate", "gender", "sex", "occupation", "job", "zip_code", "zip",
           "postal_code", "country", "city", "region", "state", "location", "language", "signup_date", "interests",
           "segment", "income", "education", "device")  # fmt: skip
_USERS = Subject("user", _IDS, (*_IDS, *_OTHERS))
#: Columns of MovieLens' ``u.user`` and ``users.dat``, which have no header.
_MOVIELENS = {
    "3": ("user_id", "age", "gender", "occupation", "zip_code"),
    "2": ("user_id", "gender", "age", "occupation", "zip_code"),
}


@handles_panics
def read_users_with_summary(source: Any) -> tuple[pl.DataFrame, UserSummary]:
    """Read descriptions of users into a polars frame, and summarise how they were understood.

    ``source`` is anything that :func:`seqrec.read_items` takes, or MovieLens' ``u.user`` and ``users.dat``.

    Returns:
        ``user_id`` (Int64 or String), and the other columns as numbers (Float64), vectors of one length
        (Array(Float32)), lists of texts (List(String)) or texts (String). Unknown values are null or an empty list.

    Raises:
        InputError: the file cannot be read, or has no ids.
    """
    raw = read_raw(source, _USERS)
    summary = UserSummary(raw.origin.name)
    columns, declared = _named(raw, summary)
    id_column = id_column_of(list(columns), _USERS, None, raw.origin, summary)
    found = {"user_id": ids_of(raw.origin, columns.pop(id_column), "user").alias("user_id")}
    summary.columns["user"] = id_column
    for name, values in columns.items():
        keep(found, name, _kept(values, declared.get(name), summary), summary)
    return pl.DataFrame(list(found.values())), summary


def _kept(values: pl.Series, declared: str | None, summary: ItemSummary) -> pl.Series | str:
    """A column as lists of texts where it has several values per user, else as for items."""
    is_list = isinstance(values.dtype, pl.List | pl.Array) and not values.dtype.inner.is_numeric()
    has_bars = values.dtype == pl.String and values.str.contains("|", literal=True).any()
    if is_list or has_bars or declared == "token_seq":
        lists = as_categories(values, declared, summary)
        if lists is not None:
            return lists if (lists.list.len() > 0).any() else "empty"
    return as_kept(values, declared, summary)


def _named(raw: Raw, summary: ItemSummary) -> tuple[dict[str, pl.Series], dict[str, str]]:
    """Name the columns of a file without a header; other columns are returned as they are."""
    columns, origin = dict(raw.columns), raw.origin
    if origin.header or origin.separator in (None, "\n"):
        return columns, raw.declared
    for place, names in _MOVIELENS.items():
        if len(columns) == len(names) and columns[place].cast(pl.String).is_in(["M", "F"]).all():
            named = dict(zip(names, columns.values(), strict=True))
            return named, {"occupation": "token", "zip_code": "token"}  # numbers that name something
    first, *others = columns
    if others:
        summary.warn(f"has no header; the ids are in column {first}, the others are called {', '.join(others)}")
    return columns, raw.declared
