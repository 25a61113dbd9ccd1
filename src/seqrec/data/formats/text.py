"""Detects the format of a text file: separator, header, usual names of columns; finds the line of a row."""

import json
import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import polars as pl

from seqrec.data.formats.blocks import Source, read_lines, read_pieces, read_sample, split_records
from seqrec.errors import InputError

EXTENSIONS = {name: name for name in ("csv", "inter", "jsonl", "parquet", "tsv")}
EXTENSIONS |= {"json": "jsonl", "ndjson": "jsonl", "pq": "parquet"}
# Usual names, best first. Only letters and digits count, in any case: "userId", "USER ID" and "user_id" are the same.
USUAL_NAMES = {
    "user_id": "user_id user users uid customer_id customer reviewer_id reviewer visitor_id visitor member_id"
    " account_id client_id buyer_id shopper_id consumer_id person_id profile_id player_id listener_id"
    " reader_id viewer_id user_key user_hash user_uuid user_name session_id session session_key",
    "item_id": "item_id item items iid movie_id movie parent_asin asin product_id product sku article_id"
    " article track_id track song_id song artist_id book_id book isbn game_id app_id video_id news_id"
    " business_id recipe_id anime_id course_id poi_id venue_id hotel_id listing_id content_id show_id post_id",
    "timestamp": "timestamp time ts unix_review_time unix_time unix_timestamp epoch event_time datetime date_time"
    " event_timestamp timestamp_ms date created_at watched_at played_at event_date purchase_date order_date",
    "rating": "rating ratings overall score stars star_rating user_rating",
}


class Origin(NamedTuple):
    """Where a frame came from, with what is needed to find the line of a row."""

    name: str  # path, or another name for messages
    header: bool = True  # False: the columns are called "1", "2", …
    separator: str | None = None  # None: not a text file; "\n": JSON lines
    quoted: bool = False
    source: Source | None = None  # set for text files
    first_row: int = 0  # number of the first row, for a block of a log

    def check(self, good: pl.Series, message: Callable[[int], str]) -> None:
        """Raise an error for the first row that is not good, with its line number in a text file."""
        if good.all():
            return
        row = int((~good).arg_max() or 0)
        where = f"row {self.first_row + row + 1}"
        if self.source is not None and self.separator is not None:
            above = int(self.header and self.separator != "\n")
            found = split_records(read_lines(self.source, self.quoted), self.separator, self.quoted)
            line = next(islice(found, row + above, None), None)
            where = f"line {line[0]}" if line else where
        raise InputError(f"{self.name}, {where}: {message(row)}")


def is_parquet(source: Source, format: str | None) -> bool:
    """Whether a file is Parquet by the given format, its extension or its first bytes."""
    named = EXTENSIONS.get(source.path.name.lower().removesuffix(".gz").rpartition(".")[2]) == "parquet"
    if format is None and next(read_pieces(source, 4), b"") == b"PAR1":
        return True
    if format == "parquet" or (format is None and named):
        read_sample(source)  # raises for an empty file
        return True
    return False


def detect(extension: str | None, lines: list[str], given: dict[str, str]) -> str:
    """Detect the format by extension, else by content; "blanks" means either whitespace or sequences."""
    first = lines[0]
    if is_object(first):
        return "jsonl"
    if extension in ("inter", "tsv", "jsonl") or (extension == "csv" and re.search(r"[,;|\t]", first)):
        return str(extension)
    if first.lstrip().startswith(("{", "[{")) or first.strip() == "[":
        return "jsonl"
    if re.search(r"^[^\t]*:(token|float)(_seq)?(\t|$)", first):
        return "inter"
    if first.count("::") > 1 or ("::" in first and not re.search(r"[\s,;|]", first)):
        return "movielens"
    for separator in "\t,;|":
        count = first.count(separator)
        alike = all(line.count(separator) == count for line in lines)
        blanks = any(re.search(r"\s", line.replace(separator, "")) for line in lines)
        # In blank-separated text, commas and the like vary in number; a single tab may separate a user from its items.
        certain = alike and (count > 1 or not blanks) if separator == "\t" else alike or not blanks
        if count and (certain or is_header(first.split(separator), given)):
            return "tsv" if separator == "\t" else "csv"
    return "blanks"


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    if not line.lstrip().startswith('{"'):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def is_header(fields: list[str], given: dict[str, str]) -> bool:
    """Whether a line holds a usual name of a user or item column, or a name that the caller gave."""
    usual = {plain_name(name) for role in ("user_id", "item_id") for name in USUAL_NAMES[role].split()}
    wanted = {name.strip().lower() for name in given.values() if not name.strip().isdigit()}
    fields = [re.sub(r":\w+$", "", field.strip(' \t"')) for field in fields]
    return any(plain_name(field) in usual or field.lower() in wanted for field in fields)


def separator_of(lines: list[str], given: dict[str, str]) -> str:
    """Choose comma, semicolon, bar or tab: the one that makes a header, else the one with the most (equal) columns."""
    rows = {mark: [line.split(mark) for line in lines] for mark in ",;|\t" if mark in lines[0]}
    alike = {mark: len({len(row) for row in split}) == 1 for mark, split in rows.items()}
    order = {mark: (is_header(rows[mark][0], given), alike[mark], len(rows[mark][0])) for mark in rows}
    return max(order, key=lambda mark: order[mark], default=",")


def plain_name(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def usual_columns(names: Iterable[str], usual: Iterable[str], exact: str | None = None) -> list[str]:
    """Columns whose names are among the usual ones, best first.

    Args:
        names: names of columns.
        usual: usual names, best first.
        exact: name that comes before others with the same letters and digits.
    """
    ranks: dict[str, int] = {}
    for rank, name in enumerate(usual):
        ranks.setdefault(plain_name(name), rank)
    found = [name for name in names if plain_name(name) in ranks]
    return sorted(found, key=lambda name: (ranks[plain_name(name)], name != exact))
