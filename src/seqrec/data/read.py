"""Reads an interaction log, whatever its format, into one polars frame with canonical columns."""

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from seqrec.errors import InputError

FORMATS = ("csv", "inter", "jsonl", "movielens", "parquet", "sequences", "tsv", "whitespace")
EXTENSIONS = {name: name for name in ("csv", "inter", "jsonl", "parquet", "tsv")}
EXTENSIONS |= {"json": "jsonl", "ndjson": "jsonl", "pq": "parquet"}

# The usual names, best first: of two candidates the one further left is taken. Only letters and digits count,
# in any case: "userId", "USER ID" and "user_id" are the same name.
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
CLOCKS = ("", " %H:%M:%S", " %H:%M:%S%.f", " %H:%M:%S%.f%#z", " %H:%M", " %H:%M%#z")
DATE_FORMATS = [day + clock for day in ("%Y-%m-%d", "%Y/%m/%d") for clock in CLOCKS]
SAMPLE_BYTES, SAMPLE_ROWS = 1 << 16, 1000


class _Log(NamedTuple):
    """A frame as it was read, and what finds the line of a row again."""

    frame: pl.DataFrame
    name: str  # the path, or what else messages call it
    header: bool = True  # False: the columns are called "1", "2", …
    separator: str | None = None  # None: no text file; "\n": JSON lines
    quoted: bool = False

    def check(self, good: pl.Series, message: Callable[[int], str]) -> None:
        """Raise the error for the first row that is not good, with its line in a text file."""
        if good.all():
            return
        row = int((~good).arg_max() or 0)
        where = f"row {row + 1}"
        if self.separator is not None:
            above = int(self.header and self.separator != "\n")
            records = _records(_bytes(Path(self.name)), self.separator, self.quoted)
            where = f"line {next(islice(records, row + above, None))[0]}"
        raise InputError(f"{self.name}, {where}: {message(row)}")


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
    `item_id`, `asin`, `timestamp`, `rating`, …) or named by the parameters. The first line of a text file is a
    header where it holds such a name, or no number but a word above a column of numbers. Else columns are
    called "1", "2", …: user, item; or user, item, timestamp (a rating instead, if all are in 0 to 10 and a user
    has one twice); or user, item, rating, timestamp (exchanged where only the third can be a time).
    **Pairs or sequences?** Asked only of blank-separated lines without a header. A line of one field is an
    error. All lines with 2 fields: pairs. All with the same larger number: columns where a first field comes
    twice (a user has one line in sequences) or the last looks like a time, else sequences. Mixed numbers:
    sequences; but where a first field comes twice and most lines have the same 2 to 4 fields, the first line
    with other fields is an error. `format` settles it.
    **Ids** are integers or strings. In text, a column becomes Int64 where every value is written as an
    integer is (no leading zero, no `+`) and fits; user and item are decided separately. Floats must be whole.
    **Timestamps** are numbers since 1970, whose median tells the unit (below 1e11 seconds, 1e14 milli-, 1e17
    microseconds, else nanoseconds), or ISO dates and times; without a zone they are UTC.

    Raises `InputError`, one line with path, line (or row) and advice, for anything else.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    asked = {"user_id": user, "item_id": item, "timestamp": timestamp, "rating": rating}
    given = {role: name for role, name in asked.items() if name is not None}
    is_path = isinstance(source, (str, os.PathLike))
    log = _read_path(Path(source).expanduser(), format, given) if is_path else _from_frame(source)
    if log.frame.height == 0:
        raise InputError(f"{log.name}: has no rows (nothing below a header?); give a log with interactions")
    return _canonical(log, _choose_columns(log, given))


def _choose_columns(log: _Log, given: dict[str, str]) -> dict[str, str]:
    """Role to column name, in the canonical order."""
    names = log.frame.columns
    seen = ", ".join(names[:40]) + ("" if log.header else " (by number, as there is no header)")
    guesses = {} if log.header else _guess_by_position(log.frame, given)
    chosen: dict[str, str] = {}
    for role, usual in USUAL_NAMES.items():
        ranks = {_plain(name): rank for rank, name in enumerate(usual.split())}
        parameter = role.removesuffix("_id")
        if role in given:
            same = [name for name in names if name.strip().lower() == given[role].strip().lower()]
            found = sorted(same, key=lambda name: name != given[role])
        elif log.header:
            found = [name for name in names if _plain(name) in ranks and name not in given.values()]
            found.sort(key=lambda name: (ranks[_plain(name)], name != role))
        else:
            found = [guesses[role]] if role in guesses else []
        if found and found[0] in chosen.values():
            raise InputError(f"{log.name}: column {found[0]!r} has two roles; give {parameter}= another")
        if found:
            chosen[role] = found[0]
        elif role in given or role.endswith("_id"):
            what = f"column {given[role]!r}" if role in given else f"{parameter} column found"
            raise InputError(f"{log.name}: no {what}; name it with {parameter}= (--{parameter}); columns: {seen}")
    return chosen


def _guess_by_position(frame: pl.DataFrame, given: dict[str, str]) -> dict[str, str]:
    """What the columns of a file without a header are; nothing beyond four, where any guess is a risk."""
    if not 2 <= frame.width <= 4 or "user_id" in given or "item_id" in given:
        return {}
    guesses = {"user_id": "1", "item_id": "2"}
    if "timestamp" in given or "rating" in given or frame.width == 2:
        return guesses
    numbers = pl.all().str.strip_chars().cast(pl.Float64, strict=False).fill_nan(None)
    small = frame[:, 2:].select(numbers.is_between(0, 10).fill_null(False).all()).row(0)
    if frame.width == 3:
        # Times of 0 to 10 exist only in tiny logs, where a user hardly does two things at once.
        is_rating = small[0] and bool(frame.select(pl.struct("1", "3").is_duplicated().any()).item())
        return guesses | {"rating" if is_rating else "timestamp": "3"}
    swapped = small[1] and not small[0]
    return guesses | {"timestamp": "3" if swapped else "4", "rating": "4" if swapped else "3"}


def _canonical(log: _Log, chosen: dict[str, str]) -> pl.DataFrame:
    columns, fine = {}, None
    for role, name in chosen.items():
        if role == "timestamp":
            columns[role], fine = _seconds(log, log.frame[name])
        elif role == "rating":
            columns[role] = _numbers(log, log.frame[name], role)
        else:
            columns[role] = _ids(log, log.frame[name], role.removesuffix("_id"))
    # The caller may have chosen another column than the one that bears a canonical name.
    extra = [name for name in log.frame.columns if name not in chosen.values()]
    columns |= {f"{name}_other" if name in chosen else name: log.frame[name] for name in extra}
    frame = pl.DataFrame(columns)
    if fine is not None and not fine.is_sorted():
        # Rounding makes ties of stamps that differed, and ties keep the log's order: make that the fine one.
        frame = frame.with_columns(fine.alias("\0fine")).sort("\0fine", maintain_order=True).drop("\0fine")
    return frame


def _ids(log: _Log, values: pl.Series, role: str) -> pl.Series:
    if isinstance(values.dtype, (pl.Categorical, pl.Enum, pl.Binary)):
        values = values.cast(pl.String, strict=False)
    is_text, is_float = values.dtype == pl.String, values.dtype.is_float()
    if is_text and log.separator and str(values[0]) != str(values[0]).strip():
        stripped = values.str.strip_chars()
        # Blanks around separators ('1, 2') are no part of an id, unless only some values have them.
        values = stripped if (stripped != values).all() else values
    missing = values.is_null() | (values.str.strip_chars() == "" if is_text else values.is_nan() if is_float else False)
    log.check(~missing, lambda row: f"the {role} id is empty; give the row an id, or remove it")
    numbers = values.cast(pl.Int64, strict=False) if is_text or values.dtype.is_numeric() else None
    if numbers is None:
        advice = f"store integers or strings, or name another column with {role}= (--{role})"
        raise InputError(f"{log.name}: {role} column {values.name!r} holds {values.dtype}, no ids; {advice}")
    if is_text and not log.separator:
        return values
    if is_text and 0 < numbers.null_count() < len(values):
        # Among integers, what other tools write for a missing value is one, and not a name.
        words = values.filter(numbers.is_null()).str.to_lowercase()
        if words.is_in(["nan", "na", "<na>", "null", "none"]).all():
            log.check(numbers.is_not_null(), lambda row: f"{role} id is missing ({values[row]}); remove the row")
    if is_text or values.dtype.is_integer():
        # '0000143561' and '+1' are other ids than 143561 and 1.
        same = numbers.null_count() == 0 and (not is_text or bool((numbers.cast(pl.String) == values).all()))
        return numbers if same else values.cast(pl.String)
    whole = (numbers.cast(values.dtype, strict=False) == values).fill_null(False)
    log.check(whole, lambda row: f"{role} id {values[row]} is not whole; store ids as integers or strings")
    return numbers


def _numbers(log: _Log, values: pl.Series, role: str, kind: str = "a number") -> pl.Series:
    """Finite Float64 values, or the error for the first that is none."""
    advice = f"correct or remove it, or name another column with {role}= (--{role})"
    if values.dtype not in (pl.String, pl.Null) and not values.dtype.is_numeric():
        raise InputError(f"{log.name}: {role} column {values.name!r} holds {values.dtype}; {advice}")
    text = values.str.strip_chars() if values.dtype == pl.String else values
    numbers = text.cast(pl.Float64, strict=False)
    good = (numbers.abs() < 9e18).fill_null(False)  # neither NaN nor infinite, and what Int64 can hold
    log.check(good, lambda row: f"{role} {_short(values[row])} is not {kind}; {advice}")
    return numbers


def _seconds(log: _Log, values: pl.Series) -> tuple[pl.Series, pl.Series | None]:
    """Unix seconds, and the finer stamps they were rounded from (None where nothing was lost)."""
    kind = "a number or an ISO date"
    stamps = _from_text(values) if values.dtype == pl.String else values
    if isinstance(stamps.dtype, (pl.Date, pl.Datetime)):
        bad = f"is not {kind}; correct or remove it, or name another column with timestamp= (--timestamp)"
        log.check(stamps.is_not_null(), lambda row: f"timestamp {_short(values[row])} {bad}")
        unit = stamps.dtype.time_unit if isinstance(stamps.dtype, pl.Datetime) else "ms"
        fine, per_second = stamps.dt.timestamp(unit), {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    else:
        floats = _numbers(log, stamps, "timestamp", kind)
        size = floats.abs().to_frame().select(pl.first().median()).item()
        per_second = 1 if size < 1e11 else 10**3 if size < 1e14 else 10**6 if size < 1e17 else 10**9
        same = (floats.abs() / per_second < 1e11).fill_null(False)
        log.check(same, lambda row: f"timestamp {_short(values[row])} is in another unit than most; use one for all")
        # Nanoseconds do not fit the 53 bits of a float, so integers stay integers.
        fine = stamps.cast(pl.Int64) if stamps.dtype.is_integer() else floats
    seconds = (fine // per_second).cast(pl.Int64)
    return seconds, None if (seconds * per_second == fine).all() else fine


def _from_text(text: pl.Series) -> pl.Series:
    """Int64 where all values are, UTC datetimes where some are (else null), or the text as it came."""
    plain = text.str.strip_chars()
    integers = plain.cast(pl.Int64, strict=False)
    if integers.null_count() == 0:
        return integers
    plain = plain.str.replace(r" ?UTC$", "Z").str.replace("T", " ", literal=True)
    first = plain.drop_nulls().head(1)
    if first.cast(pl.Float64, strict=False).null_count() == 0:
        return text
    parsed = pl.repeat(None, len(text), dtype=pl.Datetime("us", "UTC"), eager=True)
    # The first value's format is likely that of all; the others are tried where it leaves gaps.
    for pattern in sorted(DATE_FORMATS, key=lambda form: first.str.to_datetime(form, strict=False).null_count()):
        if parsed.null_count() > plain.null_count():
            dates = plain.str.to_datetime(pattern, time_unit="us", time_zone="UTC", strict=False)
            parsed = parsed.zip_with(parsed.is_not_null(), dates)
    return text if parsed.null_count() == len(parsed) else parsed


def _short(value: object) -> str:
    """A value or an error on one line of a message."""
    text = str(value) if isinstance(value, Exception) else "(empty)" if value is None else repr(value)
    return text.strip().partition("\n")[0][:120]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _from_frame(source: Any) -> _Log:
    kind = type(source).__name__
    # By name, so that a table's library is imported only by whoever made the table.
    libraries = {base.__module__.split(".")[0] for base in type(source).__mro__}
    try:
        if isinstance(source, pl.LazyFrame):
            source = source.collect()
        elif libraries & {"pandas", "pyarrow"}:
            source = pl.from_pandas(source) if "pandas" in libraries else pl.from_arrow(source)
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        raise InputError(f"the {kind} cannot be read ({_short(error)}); give columns one type and name") from None
    if not isinstance(source, pl.DataFrame):
        raise InputError(f"cannot read {kind}; give a path, a polars or pandas frame, or a pyarrow Table")
    return _Log(source, f"the {kind}")


def _read_path(path: Path, format: str | None, given: dict[str, str]) -> _Log:
    if path.is_dir():
        parts = sorted(part for part in path.glob("*.parquet") if part.is_file())
        if not parts or format not in (None, "parquet"):
            raise InputError(f"{path}: is a folder without .parquet files; give a file or a folder of parts")
        return _read_parquet(path, {part: part for part in parts})
    text = _bytes(path)
    extension = EXTENSIONS.get(path.name.lower().removesuffix(".gz").rpartition(".")[2])
    if format == "parquet" or (format is None and (extension == "parquet" or text[:4] == b"PAR1")):
        return _read_parquet(path, {path: io.BytesIO(text)})
    if b"\0" in text:
        raise InputError(f"{path}: is binary or UTF-16; give UTF-8 text or Parquet (gzipped, if you like)")
    head = text[: text.rfind(b"\n", 0, SAMPLE_BYTES) + 1 or None] if len(text) > SAMPLE_BYTES else text
    lines = [line for line in head.decode(errors="replace").splitlines() if line.strip()][:SAMPLE_ROWS]
    format = format or _detect(extension, lines, given)
    if format == "jsonl":
        return _read_jsonl(path, text)
    if format in ("whitespace", "sequences", "blanks"):
        return _read_blanks(path, text, format, given)
    separator = "::" if format == "movielens" else _separator(lines, given) if format == "csv" else "\t"
    return _read_delimited(path, text, separator, format in ("csv", "tsv"), given)


def _bytes(path: Path) -> bytes:
    """The whole file, unzipped and without a byte order mark."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        elif raw and path.name.lower().endswith(".gz"):
            raise InputError(f"{path}: is named .gz but is not gzipped; rename it, or write it again")
    except (EOFError, zlib.error, OSError) as error:
        reason = getattr(error, "strerror", None) or f"damaged or cut-off gzip file ({_short(error)})"
        raise InputError(f"{path}: {reason}; check the path and its permissions, or copy it again") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        raise InputError(f"{path}: is empty; give a log with interactions")
    return raw


def _read_parquet(path: Path, sources: dict[Path, Any]) -> _Log:
    """One file, or the parts of a folder one below the other."""
    frames: list[pl.DataFrame] = []
    for part, source in sources.items():
        try:
            frame = pl.read_parquet(source, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{part}: no Parquet, or damaged ({_short(error)}); write it again") from None
        differ = ", ".join(sorted(set(frame.columns) ^ set((frames or [frame])[0].columns)))
        if differ:
            raise InputError(f"{part}: has other columns than the first part ({differ}); make them alike")
        frames.append(frame.select((frames or [frame])[0].columns))
    try:
        return _Log(pl.concat(frames, how="vertical_relaxed"), str(path))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: the parts differ in types ({_short(error)}); make them alike") from None


def _detect(extension: str | None, lines: list[str], given: dict[str, str]) -> str:
    """The format by extension, else by content; "blanks" leaves whitespace or sequences open."""
    first = lines[0]
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
        # Marks inside blank-separated fields vary in number; one tab may divide a user from many items.
        certain = alike and (count > 1 or not blanks) if separator == "\t" else alike or not blanks
        if count and (certain or _is_header(first.split(separator), given)):
            return "tsv" if separator == "\t" else "csv"
    return "blanks"


def _is_header(fields: list[str], given: dict[str, str]) -> bool:
    """Whether a line holds a usual name of a user or an item, or one that the caller gave."""
    usual = {_plain(name) for role in ("user_id", "item_id") for name in USUAL_NAMES[role].split()}
    wanted = {name.strip().lower() for name in given.values() if not name.strip().isdigit()}
    fields = [re.sub(r":\w+$", "", field.strip(' \t"')) for field in fields]
    return any(_plain(field) in usual or field.lower() in wanted for field in fields)


def _separator(lines: list[str], given: dict[str, str]) -> str:
    """Of comma, semicolon, bar and tab the one that makes a header, else the most columns of one number."""
    rows = {mark: [line.split(mark) for line in lines] for mark in ",;|\t" if mark in lines[0]}
    alike = {mark: len({len(row) for row in split}) == 1 for mark, split in rows.items()}
    order = {mark: (_is_header(rows[mark][0], given), alike[mark], len(rows[mark][0])) for mark in rows}
    return max(order, key=lambda mark: order[mark], default=",")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # Python reads and writes NaN and Infinity


def _read_jsonl(path: Path, text: bytes) -> _Log:
    try:
        frame = pl.read_ndjson(io.BytesIO(text), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        for line, (content,) in _records(text, "\n", False):
            try:
                bad = not isinstance(json.loads(content, parse_constant=_no_number), dict) or "\ufffd" in content
            except ValueError:
                bad = True
            if bad:
                raise InputError(f"{path}, line {line}: not a JSON object; write one a line, in UTF-8") from None
        raise InputError(f"{path}: is not JSON lines ({_short(error)}); write one object a line") from None
    return _Log(frame, str(path), separator="\n")


def _read_blanks(path: Path, text: bytes, format: str, given: dict[str, str]) -> _Log:
    """Lines separated by blanks: columns or sequences, by the rules that `read_log` states."""
    text = text.replace(b"\r\n", b"\n").translate(bytes.maketrans(b"\t", b" "))
    for twice, once in ((b"  ", b" "), (b" \n", b"\n"), (b"\n ", b"\n"), (b"\n\n", b"\n")):
        while twice in text:
            text = text.replace(twice, once)
    lines = _parse(path, text.strip(), 1, "\x1f", False).to_series()
    counts = lines.str.count_matches(" ", literal=True) + 1
    log = _Log(lines.to_frame(), str(path), False, " ")
    log.check(counts > 1, lambda row: "has 1 field; at least a user and an item are needed")
    width = counts[0]
    if format == "blanks" and not _is_header(lines[0].split(" "), given):
        width = counts.mode().sort()[0]
        share = (counts == width).mean()
        repeated = lines.str.extract("^([^ ]+)").is_duplicated().any()
        times = lines.str.contains(r" ([0-9]{9,19}(\.[0-9]+)?|[0-9]{4}-[0-9]{2}-[0-9]{2}\S*)$")
        alike = width == 2 or repeated or (width <= 4 and times.all())
        columns = alike if share == 1 else repeated and share > 0.5 and width <= 4
        format = "whitespace" if columns else "sequences"
    if format == "sequences":
        users, items = lines.str.extract("^([^ ]+)"), lines.str.extract("^[^ ]+ (.*)").str.split(" ")
        return _Log(pl.DataFrame({"1": users, "2": items}).explode("2"), str(path), False, " ")
    advice = "correct it, or give format='sequences'"
    log.check(counts == width, lambda row: f"has {counts[row]} fields and not {width}; {advice}")
    return _read_delimited(path, text, " ", False, given)


def _read_delimited(path: Path, text: bytes, separator: str, quoted: bool, given: dict[str, str]) -> _Log:
    text = text.strip(b"\r\n ")
    quoted = quoted and b'"' in text
    gaps = b"\n\n" in text or b"\n\r\n" in text
    text = re.sub(rb"\n[\r\n]+", b"\n", text) if gaps and not quoted else text
    try:
        width = len(next(_records(text[:SAMPLE_BYTES], separator, quoted))[1])
        frame = _parse(path, text, width, separator, quoted)
    except InputError:
        if not quoted or separator != "\t":
            raise
        # Tab-separated files often hold quotation marks that quote nothing.
        return _read_delimited(path, text, separator, False, given)
    if quoted and gaps:
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    first = [re.sub(r":(token|float)(_seq)?$", "", value or "").strip() for value in frame.row(0)]
    # Also a header: not one number, but words above a column of numbers.
    numeric = frame.head(SAMPLE_ROWS).select(pl.all().str.strip_chars().cast(pl.Float64, strict=False))
    above = numeric.height > 1 and any(column.null_count() == 0 for column in numeric[1:].iter_columns())
    header = _is_header(first, given) or (above and not any(value is not None for value in numeric.row(0)))
    if header:
        names = [name if name not in ("", *first[:i]) else f"{name}_{i + 1}" for i, name in enumerate(first)]
        frame = frame.rename(dict(zip(frame.columns, names, strict=True)))[1:]
    return _Log(frame, str(path), header, separator, quoted)


def _parse(path: Path, text: bytes, width: int, separator: str, quoted: bool) -> pl.DataFrame:
    """Columns of text called "1", "2", …, or the error for the first record of another width."""
    byte = separator if len(separator) == 1 else "\x1f"  # polars needs one byte; this one is no text
    text = text if byte == separator else text.replace(separator.encode(), b"\x1f")
    frame, reason = None, ""
    try:
        schema = {str(number): pl.String for number in range(1, width + 1)}
        quote = '"' if quoted else None
        frame = pl.read_csv(text, has_header=False, schema=schema, separator=byte, quote_char=quote)
        if frame[:, -1].null_count() == 0:
            return frame
        # polars fills short rows with nulls; there are none where the number of separators is right.
        plain = re.sub(rb'"[^"]*"', b"", text) if quoted else text
        if plain.count(byte.encode()) == frame.height * (width - 1):
            return frame
    except pl.exceptions.PolarsError as error:
        reason = _short(error)
    whole = _bytes(path)
    try:
        whole.decode()
    except UnicodeDecodeError as error:
        line = whole.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: is not UTF-8 text; save the file as UTF-8") from None
    for line, fields in _records(whole, separator, quoted):
        if len(fields) != width:
            few = f"too {'few' if len(fields) < width else 'many'} fields ({len(fields)}, not {width})"
            raise InputError(f"{path}, line {line}: {few} separated by {separator!r}; correct it or its quotes")
    if frame is None:
        raise InputError(f"{path}: cannot be split into columns ({reason}); check its quotation marks")
    return frame


def _records(text: bytes, separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each record that is not blank: slow, for the first one and for errors."""
    decoded, line = text.decode(errors="replace"), 1
    if quoted:
        reader = csv.reader(io.StringIO(decoded, newline=""), delimiter=separator)
        try:
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error:  # no end of the field in sight: the quotation mark at its start is never closed
            yield line, []
        return
    for line, content in enumerate(decoded.split("\n"), 1):
        if content.strip(" \r" if separator == "\t" else None):
            yield line, content.split() if separator == " " else content.rstrip("\r").split(separator)
