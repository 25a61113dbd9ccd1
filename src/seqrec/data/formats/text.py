"""Reads a log that is text into a frame: finds the format, splits the lines, block by block."""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import polars as pl

from seqrec.data.formats.blocks import (
    BLOCK_BYTES,
    SAMPLE_BYTES,
    SAMPLE_ROWS,
    Source,
    Unsafe,
    check_block,
    has_gaps,
    read_blocks,
    read_checked,
    read_lines,
    read_pieces,
    read_sample,
    short,
    split_records,
)
from seqrec.errors import InputError

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


class Origin(NamedTuple):
    """Where a frame came from, and what finds the line of a row again."""

    name: str  # the path, or what else messages call it
    header: bool = True  # False: the columns are called "1", "2", …
    separator: str | None = None  # None: no text file; "\n": JSON lines
    quoted: bool = False
    source: Source | None = None  # of text files

    def check(self, good: pl.Series, message: Callable[[int], str]) -> None:
        """Raise the error for the first row that is not good, with its line in a text file."""
        if good.all():
            return
        row = int((~good).arg_max() or 0)
        where = f"row {row + 1}"
        if self.source is not None and self.separator is not None:
            above = int(self.header and self.separator != "\n")
            found = split_records(read_lines(self.source, self.quoted), self.separator, self.quoted)
            line = next(islice(found, row + above, None), None)
            where = f"line {line[0]}" if line else where
        raise InputError(f"{self.name}, {where}: {message(row)}")


class _Doubt(Exception):
    """What polars made of a text, if anything, where some record may have another width."""

    def __init__(self, frame: pl.DataFrame | None, reason: str):
        super().__init__(reason)
        self.frame, self.reason = frame, reason


def is_parquet(source: Source, format: str | None) -> bool:
    """Whether a file is Parquet: said so, named so, or begins so."""
    named = EXTENSIONS.get(source.path.name.lower().removesuffix(".gz").rpartition(".")[2]) == "parquet"
    if format is None and next(read_pieces(source, 4), b"") == b"PAR1":
        return True
    if format == "parquet" or (format is None and named):
        read_sample(source)  # raises for an empty file
        return True
    return False


def read_text(source: Source, format: str | None, given: dict[str, str]) -> tuple[pl.DataFrame, Origin]:
    """Read text in any format.

    Columns of delimited text are Int64 where every value is written exactly as an integer is (or missing), so
    that casting them to String gives what the file holds; else String.
    """
    lines = read_sample(source)
    extension = EXTENSIONS.get(source.path.name.lower().removesuffix(".gz").rpartition(".")[2])
    format = format or _detect(extension, lines, given)
    if format == "jsonl":
        return _read_jsonl(source)
    if format in ("whitespace", "sequences", "blanks"):
        return _in_blocks_or_whole(_read_blanks, source, format, given)
    separator = "::" if format == "movielens" else _separator(lines, given) if format == "csv" else "\t"
    if format == "tsv" or (format == "csv" and separator == "\t"):
        try:
            return _in_blocks_or_whole(_read_delimited, source, separator, True, given)
        except InputError:
            # Tab-separated files often hold quotation marks that quote nothing.
            return _in_blocks_or_whole(_read_delimited, source, separator, False, given)
    return _in_blocks_or_whole(_read_delimited, source, separator, format == "csv", given)


def _in_blocks_or_whole(
    read: Callable[..., tuple[pl.DataFrame, Origin]], source: Source, *rest: object
) -> tuple[pl.DataFrame, Origin]:
    try:
        return read(source, *rest, by_block=True)
    except Unsafe:
        return read(source, *rest, by_block=False)


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
        if count and (certain or is_header(first.split(separator), given)):
            return "tsv" if separator == "\t" else "csv"
    return "blanks"


def is_header(fields: list[str], given: dict[str, str]) -> bool:
    """Whether a line holds a usual name of a user or an item, or one that the caller gave."""
    usual = {plain_name(name) for role in ("user_id", "item_id") for name in USUAL_NAMES[role].split()}
    wanted = {name.strip().lower() for name in given.values() if not name.strip().isdigit()}
    fields = [re.sub(r":\w+$", "", field.strip(' \t"')) for field in fields]
    return any(plain_name(field) in usual or field.lower() in wanted for field in fields)


def _separator(lines: list[str], given: dict[str, str]) -> str:
    """Of comma, semicolon, bar and tab the one that makes a header, else the most columns of one number."""
    rows = {mark: [line.split(mark) for line in lines] for mark in ",;|\t" if mark in lines[0]}
    alike = {mark: len({len(row) for row in split}) == 1 for mark, split in rows.items()}
    order = {mark: (is_header(rows[mark][0], given), alike[mark], len(rows[mark][0])) for mark in rows}
    return max(order, key=lambda mark: order[mark], default=",")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # Python reads and writes NaN and Infinity


def _read_jsonl(source: Source) -> tuple[pl.DataFrame, Origin]:
    path = source.path
    try:
        text = io.BytesIO(b"".join(read_checked(source)))
        frame = pl.read_ndjson(text, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        for line, (content,) in split_records(read_lines(source, False), "\n", False):
            try:
                bad = not isinstance(json.loads(content, parse_constant=_no_number), dict) or "\ufffd" in content
            except ValueError:
                bad = True
            if bad:
                raise InputError(f"{path}, line {line}: not a JSON object; write one a line, in UTF-8") from None
        raise InputError(f"{path}: is not JSON lines ({short(error)}); write one object a line") from None
    return frame, Origin(str(path), separator="\n", source=source)


def _plain_blanks(block: bytes) -> bytes:
    """Fields separated by one blank, and no blank lines."""
    block = block.replace(b"\r\n", b"\n").translate(bytes.maketrans(b"\t", b" "))
    for twice, once in ((b"  ", b" "), (b" \n", b"\n"), (b"\n ", b"\n"), (b"\n\n", b"\n")):
        while twice in block:
            block = block.replace(twice, once)
    return block.strip(b"\r\n ")


def _blank_lines(source: Source, by_block: bool) -> Iterator[pl.Series]:
    """The lines of each block, their fields separated by one blank."""
    for block in read_blocks(source, False, by_block):
        if by_block:
            check_block(block, " ", False)
            if b"\x0b" in block or b"\x0c" in block:
                raise Unsafe("blanks that only at the ends of the text are none")
        text = _plain_blanks(block).strip()
        if not text:
            continue
        try:
            yield _split(text, 1, "\x1f", False).to_series()
        except _Doubt as doubt:
            yield _settle(doubt, source, 1, "\x1f", False, by_block).to_series()


def _read_blanks(source: Source, format: str, given: dict[str, str], by_block: bool) -> tuple[pl.DataFrame, Origin]:
    """Lines separated by blanks: columns or sequences, by the rules that `read_log` states."""
    origin = Origin(str(source.path), False, " ", source=source)
    if not _is_sequences(origin, source, format, given, by_block):
        return _read_delimited(source, " ", False, given, by_block)
    frames = []
    for lines in _blank_lines(source, by_block):
        users, items = lines.str.extract("^([^ ]+)"), lines.str.extract("^[^ ]+ (.*)").str.split(" ")
        frames.append(_shrunk(pl.DataFrame({"1": users, "2": items}).explode("2")))
    return _stacked(frames), origin


def _is_sequences(origin: Origin, source: Source, format: str, given: dict[str, str], by_block: bool) -> bool:
    """Whether each line is a user's sequence; raises for lines that fit neither."""
    counted: list[pl.Series] = []
    firsts: list[pl.Series] = []
    repeated, times = False, True
    for lines in _blank_lines(source, by_block):
        if not counted and format == "blanks" and is_header(lines[0].split(" "), given):
            format = "whitespace"
        counted.append(lines.str.count_matches(" ", literal=True) + 1)
        if format == "blanks":
            times = times and lines.str.contains(r" ([0-9]{9,19}(\.[0-9]+)?|[0-9]{4}-[0-9]{2}-[0-9]{2}\S*)$").all()
            # A user who comes twice mostly does so in the first block.
            firsts += [] if repeated else [lines.str.extract("^([^ ]+)")]
            repeated = repeated or bool(firsts[-1].is_duplicated().any())
    counts = pl.concat(counted)
    origin.check(counts > 1, lambda row: "has 1 field; at least a user and an item are needed")
    width = counts[0]
    if format == "blanks":
        width = counts.mode().sort()[0]
        share = (counts == width).mean()
        repeated = repeated or bool(pl.concat(firsts).is_duplicated().any())
        alike = width == 2 or repeated or (width <= 4 and times)
        columns = alike if share == 1 else repeated and share > 0.5 and width <= 4
        format = "whitespace" if columns else "sequences"
    if format == "whitespace":
        advice = "correct it, or give format='sequences'"
        origin.check(counts == width, lambda row: f"has {counts[row]} fields and not {width}; {advice}")
    return format == "sequences"


def _read_delimited(
    source: Source, separator: str, quoted: bool, given: dict[str, str], by_block: bool
) -> tuple[pl.DataFrame, Origin]:
    frames: list[pl.DataFrame] = []
    width, any_quotes, any_gaps, removed, settled = 0, False, False, False, False
    for block in read_blocks(source, quoted, by_block):
        block = _plain_blanks(block) if separator == " " else block
        if not block:
            continue
        quotes = quoted and b'"' in block
        gaps = has_gaps(block)
        if by_block:
            check_block(block, separator, quotes)
        any_quotes, any_gaps, removed = any_quotes or quotes, any_gaps or gaps, removed or (gaps and not quotes)
        block = re.sub(rb"\n[\r\n]+", b"\n", block) if gaps and not quotes else block
        if not frames:
            lines = io.StringIO(block[:SAMPLE_BYTES].decode(errors="replace"), newline="" if quotes else "\n")
            width = len(next(split_records(lines, separator, quotes))[1])
        try:
            frame = _split(block, width, separator, quotes)
        except _Doubt as doubt:
            if settled and doubt.frame is not None:
                frame = doubt.frame
            else:
                anywhere = quoted and any(b'"' in piece for piece in read_pieces(source, BLOCK_BYTES))
                frame, settled = _settle(doubt, source, width, separator, anywhere, by_block), True
        # The first row alone, as it may be a header: the others show what the columns hold.
        frames += [_shrunk(part) for part in ([frame] if frames else [frame[:1], frame[1:]])]
    if any_quotes and removed and not settled:
        _blame(source, width, separator, True)  # as where quotation marks and blank lines come in one block
    if any_quotes and any_gaps:
        frames = [frame.filter(~pl.all_horizontal(pl.all().is_null())) for frame in frames]
        frames = [frame for frame in frames if frame.height]
        frames[:1] = [frames[0][:1], frames[0][1:]]
    sample = _stacked([frame.head(SAMPLE_ROWS) for frame in frames[:SAMPLE_ROWS]]).cast(pl.String)
    first = [re.sub(r":(token|float)(_seq)?$", "", value or "").strip() for value in sample.row(0)]
    # Also a header: not one number, but words above a column of numbers.
    numeric = sample.head(SAMPLE_ROWS).select(pl.all().str.strip_chars().cast(pl.Float64, strict=False))
    above = numeric.height > 1 and any(column.null_count() == 0 for column in numeric[1:].iter_columns())
    header = is_header(first, given) or (above and not any(value is not None for value in numeric.row(0)))
    frame = _stacked(frames[1:] if header else frames)
    if header:
        names = [name if name not in ("", *first[:i]) else f"{name}_{i + 1}" for i, name in enumerate(first)]
        frame = frame.rename(dict(zip(frame.columns, names, strict=True)))
    return frame, Origin(str(source.path), header, separator, any_quotes, source)


def _split(text: bytes, width: int, separator: str, quoted: bool) -> pl.DataFrame:
    """Columns of text called "1", "2", …; raises `_Doubt` where a record may have another width."""
    byte = separator if len(separator) == 1 else "\x1f"  # polars needs one byte; this one is no text
    text = text if byte == separator else text.replace(separator.encode(), b"\x1f")
    schema = {str(number): pl.String for number in range(1, width + 1)}
    quote = '"' if quoted else None
    try:
        frame = pl.read_csv(text, has_header=False, schema=schema, separator=byte, quote_char=quote)
    except pl.exceptions.PolarsError as error:
        raise _Doubt(None, short(error)) from None
    if frame[:, -1].null_count() == 0:
        return frame
    # polars fills short rows with nulls; there are none where the number of separators is right.
    plain = re.sub(rb'"[^"]*"', b"", text) if quoted else text
    if plain.count(byte.encode()) == frame.height * (width - 1):
        return frame
    raise _Doubt(frame, "")


def _settle(doubt: _Doubt, source: Source, width: int, separator: str, quoted: bool, by_block: bool) -> pl.DataFrame:
    """The error for the first record of another width; where there is none, the frame in doubt."""
    _blame(source, width, separator, quoted)
    if doubt.frame is not None:
        return doubt.frame
    if by_block:
        raise Unsafe(doubt.reason)
    raise InputError(f"{source.path}: cannot be split into columns ({doubt.reason}); check its quotation marks")


def _blame(source: Source, width: int, separator: str, quoted: bool) -> None:
    """Raise the error for the first line that is no UTF-8, else for the first record of another width."""
    decoder, above, bad = codecs.getincrementaldecoder("utf-8")(), 0, None
    for piece in read_checked(source):
        try:
            decoder.decode(piece)
        except UnicodeDecodeError as error:
            bad = bad or above + error.object.count(b"\n", 0, error.start) + 1
        above += piece.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        bad = bad or above + 1
    if bad:
        raise InputError(f"{source.path}, line {bad}: is not UTF-8 text; save the file as UTF-8")
    for line, fields in split_records(read_lines(source, quoted), separator, quoted):
        if len(fields) != width:
            few = f"too {'few' if len(fields) < width else 'many'} fields ({len(fields)}, not {width})"
            raise InputError(f"{source.path}, line {line}: {few} separated by {separator!r}; correct it or its quotes")


def _shrunk(frame: pl.DataFrame) -> pl.DataFrame:
    """With Int64 for each column of text whose values, cast back to String, would be the same."""
    columns = []
    for text in frame.iter_columns():
        numbers = text.cast(pl.Int64, strict=False)
        same = numbers.null_count() == text.null_count()
        # '+5', '05' and '-0' are longer than what an integer is written as, and nothing is shorter.
        columns.append(numbers if same and text.str.len_bytes().sum() == _digits(numbers) else text)
    return pl.DataFrame(columns)


def _digits(numbers: pl.Series) -> int:
    """Bytes that it takes to write all these integers, with their signs."""
    low, high = int(numbers.min() or 0), int(numbers.max() or 0)  # type: ignore[arg-type]
    total = len(numbers) - numbers.null_count()
    total += int((numbers < 0).sum()) if low < 0 else 0
    for power in (10**digits for digits in range(1, 19)):
        total += int((numbers >= power).sum()) if high >= power else 0
        total += int((numbers <= -power).sum()) if low <= -power else 0
    return total


def _stacked(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Frames one below the other; a column that is text in one becomes text in all."""
    columns = []
    for name in frames[0].columns:
        parts = [frame[name] for frame in frames if frame.height] or [frames[0][name]]
        alike = len({part.dtype for part in parts}) == 1
        columns.append(pl.concat(parts if alike else [part.cast(pl.String) for part in parts]))
    return pl.DataFrame(columns)


def plain_name(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
