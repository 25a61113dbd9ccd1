"""Reads a log of any format into a frame with canonical columns."""

import os
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.columns import canonical, choose_columns
from seqrec.data.formats.frames import from_frame, read_path
from seqrec.data.formats.panics import handles_panics
from seqrec.data.formats.summary import LogSummary
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

    **Result.** `user_id` and `item_id` (each Int64 or String), then `timestamp` (Int64, Unix seconds) and `rating`
    (Float64) if the log has them, then the other columns (String if the file is text). Rows keep the order of the
    log. If timestamps are finer than seconds, they are rounded down, and the rows are sorted by the fine timestamps
    so that their order is not lost.

    **Formats** are detected from the extension and the content; `format` overrides this. Files may be gzipped. Text
    is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Lines end with LF or CRLF, or all with CR. A first line
    `sep=;` (Excel) sets the separator. Comment lines (`#`, `%`) above the log are skipped with a warning.

    - `csv`: separated by `,` (or `;`, `|`, tab); fields may be quoted. `tsv`: separated by tabs.
    - `whitespace`: separated by runs of blanks or tabs; every line has the same number of fields.
    - `sequences`: one line per user, `user item item item …`, oldest item first.
    - `movielens`: separated by `::`. `inter`: RecBole's tab-separated files with `name:type` headers.
    - `jsonl`: one JSON object per line. `parquet`: one file, or a folder of parts, sorted by name. Names that begin
      with `.` or `_` are skipped, `key=value` folders become a column, and Parquet in other folders is an error.

    **Columns** are found by their usual names in any case (`USUAL_NAMES`, best first: `user_id`, `reviewerID`,
    `item_id`, `asin`, `timestamp`, `rating`, …), or named by the parameters, by number if there is no header. A time
    column may have another name if the name mentions time (`InvoiceDate`, `t_dat`) and all values are times. A date
    column and a time-of-day column are joined. If several columns could be the time, none is used. A rating column
    found by name is read if it holds numbers (gaps become null), and left as it is if it holds words.

    The first line of a text file is a header if it holds a usual name, or if it holds no number and there is a word
    above a column of numbers. Without a header, columns are called "1", "2", …, and are taken to be: user, item; or
    user, item, timestamp (a rating instead, if all values are between 0 and 10 and some user has the same one twice);
    or user, item, rating, timestamp (the last two swapped if only the third can be a time). If one of the first two
    columns holds dates, the other columns are user and item. If one of them holds numbers that look like times or
    ratings, an error shows the parameters to give.

    Blank-separated lines without a header can be pairs, columns or sequences: docs/formats.md tells how this is
    decided.

    **Ids** are integers or strings. In text, a column becomes Int64 if every value fits into 64 bits and is written
    as an integer (no leading zero, no `+`) or as a whole float (`12.0`); users and items are decided separately.
    Floats must be whole numbers below 2^53, the limit of their exactness. UUIDs (also as 16 bytes) and integers beyond
    64 bits become strings.

    **Timestamps** are numbers since 1970 or ISO dates and times (UTC unless they name a zone). The median of the
    numbers tells their unit: seconds below 1e11, milliseconds below 1e14, microseconds below 1e17, else nanoseconds.
    Dates written as whole numbers (`20200913`, `20200913122640`) and Excel days (30000 to 60000) are recognised. A
    number in a different unit from most, or with a digit missing or added, is an error.

    Warns (`LogWarning`) about every guess, and about unused columns that look important.

    Raises `InputError`, one line with path, line (or row) and advice, if the log cannot be read.
    """
    return read_log_with_summary(source, user=user, item=item, timestamp=timestamp, rating=rating, format=format)[0]


@handles_panics
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
    """Like :func:`read_log`, and also return a summary of how the log was understood.

    With ``needs_rating``, a rating column that holds anything but numbers is an error even if no parameter names it.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    asked = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    given = {role: name for role, name in asked.items() if name is not None}
    is_path = isinstance(source, (str, os.PathLike))
    if is_path and not os.fspath(source):
        raise InputError("the path of the log is empty; give a file")
    frame, origin = read_path(Path(os.fsdecode(source)), format, given) if is_path else from_frame(source)
    if frame.height == 0:
        raise InputError(f"{origin.name}: has no rows below the header; give a log with interactions")
    summary = LogSummary(origin.name)
    choice = choose_columns(frame, origin, given, summary)
    columns = {column.name: column for column in frame.iter_columns()}
    del frame  # so that each column is freed once it has been converted
    return canonical(columns, origin, choice, needs_rating or rating is not None, summary), summary
