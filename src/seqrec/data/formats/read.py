"""A log of any format → a frame with canonical columns."""

import os
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.columns import canonical, choose_columns
from seqrec.data.formats.frames import from_frame, read_path
from seqrec.data.formats.panics import explaining
from seqrec.data.formats.summary import LogSummary
from seqrec.device import check_polars, watch_forks
from seqrec.errors import InputError

FORMATS = ("csv", "inter", "jsonl", "movielens", "parquet", "sequences", "tsv", "whitespace")


def read_log(
    source: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    format: str | None = None,
) -> pl.DataFrame:
    """Read an interaction log into a polars frame with canonical columns.

    `source` is a path, a polars DataFrame or LazyFrame, a pandas DataFrame or a pyarrow Table.
    **Result.** `user_id`, `item_id` (each Int64 or String), then `timestamp` (Int64, Unix seconds) and `rating`
    (Float64) where the log has them, then the other columns (text, in text files). Rows keep the log's order,
    that of time where there are no timestamps; but stamps finer than seconds are rounded down, and the rows
    are then in the order of the fine stamps, which would be lost.

    **Formats**, found by extension and content; `format` overrides. Files may be gzipped.
    - `csv`: separated by `,` (or `;`, `|`, tab), fields may be quoted; `tsv`: separated by tabs.
    - `whitespace`: separated by runs of blanks or tabs; every line has as many fields as the first.
    - `sequences`: one line a user, `user item item item …`, in the order of time.
    - `movielens`: separated by `::`; `inter`: RecBole's tab-separated files with `name:type` headers.
    - `jsonl`: one JSON object a line; `parquet`: one file, or a folder of `*.parquet` parts, sorted by name.
    **Columns** are found by their usual names in any case (`USUAL_NAMES`, best first: `user_id`, `reviewerID`,
    `item_id`, `asin`, `timestamp`, `rating`, …) or named by the parameters, also by number where there is no
    header. The time may have another name, where the name speaks of time (`InvoiceDate`, `t_dat`) and all its
    values are times; a column of dates and one of times of the day are put together. Where several columns may be
    the time, none is taken. A rating column found by its name is read where it holds numbers, with null for gaps,
    and stays as it is where it holds words.
    The first line of a text file is a header where it holds a usual name, or no number but a word above a column
    of numbers. Else columns are called "1", "2", …: user, item; or user, item, timestamp (a rating instead, if all
    are in 0 to 10 and a user has one twice); or user, item, rating, timestamp (exchanged where only the third can
    be a time). Where one of the first two holds dates, the other columns are user and item; where it holds
    numbers that look like times, or ratings, that is an error that shows the parameters to give.
    **Pairs or sequences?** Asked only of blank-separated lines without a header. A line of one field is an
    error. All lines with 2 fields: pairs. All with the same larger number: columns where a first field comes
    twice (a user has one line in sequences) or the last looks like a time, else sequences. Mixed numbers:
    sequences; but where a first field comes twice and most lines have the same 2 to 4 fields, the first line
    with other fields is an error. `format` settles it.
    **Ids** are integers or strings. In text, a column becomes Int64 where every value is written as an
    integer is (no leading zero, no `+`) and fits, or as a whole float (`12.0`); user and item are decided
    separately. Floats must be whole, and below 2^53, from where they are no longer exact. UUIDs (also as 16 bytes)
    become their text, as do integers beyond 64 bits.
    **Timestamps** are numbers since 1970, whose median tells the unit (below 1e11 seconds, 1e14 milli-, 1e17
    microseconds, else nanoseconds), or ISO dates and times; without a zone they are UTC. Whole numbers that are
    dates (`20200913`, `20200913122640`) and days of Excel (30000 to 60000) are read as such. A number in another
    unit than most, or with a digit too few or too many, is an error.

    Warns (`LogWarning`) of what is guessed, and of columns left aside that look as if they mattered.

    Raises `InputError`, one line with path, line (or row) and advice, for anything else.
    """
    return read_log_with_summary(source, user=user, item=item, timestamp=timestamp, rating=rating, format=format)[0]


@explaining
def read_log_with_summary(
    source: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    format: str | None = None,
    needs_rating: bool = False,
) -> tuple[pl.DataFrame, LogSummary]:
    """What :func:`read_log` gives, and what was understood of the log.

    With ``needs_rating``, a rating column that is not all numbers is an error, as one that was named is.
    """
    watch_forks()
    check_polars("reading a log")
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    asked = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    given = {role: name for role, name in asked.items() if name is not None}
    is_path = isinstance(source, (str, os.PathLike))
    if is_path and not os.fspath(source):
        raise InputError("the path of the log is empty; give a file")
    frame, origin = read_path(Path(os.fsdecode(source)), format, given) if is_path else from_frame(source)
    if frame.height == 0:
        raise InputError(f"{origin.name}: has no rows (nothing below a header?); give a log with interactions")
    summary = LogSummary(origin.name)
    choice = choose_columns(frame, origin, given, summary)
    columns = {column.name: column for column in frame.iter_columns()}
    del frame  # so that a column goes when it has been converted
    return canonical(columns, origin, choice, needs_rating or rating is not None, summary), summary
