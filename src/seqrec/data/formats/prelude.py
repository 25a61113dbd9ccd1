"""Handles lines above the header of a text file: Excel's separator line, comments, a title."""

import re
from collections.abc import Sequence

from seqrec.data.formats.blocks import Source, read_lines, short, split_records
from seqrec.data.formats.text import USUAL_NAMES, is_header, plain_name
from seqrec.errors import InputError, LogWarning, warn

_EXCEL = re.compile(r'"?sep=(.)"?[,;\t ]*', re.IGNORECASE)
_COMMENT = ("#", "%")
_SEPARATORS = ("\t", ",", ";", "|", "::")


def skip_prelude(source: Source, lines: list[str], given: dict[str, str]) -> tuple[Source, list[str], str | None]:
    """Skip the lines above the log: the source and the sample without them, and the separator that Excel wrote."""
    separator = None
    excel = _EXCEL.fullmatch(lines[0])
    above = 1 if excel and len(lines) > 1 else 0
    if excel and above:
        separator = excel[1]
    comments = next((n for n, line in enumerate(lines[above:]) if not line.lstrip().startswith(_COMMENT)), 0)
    if comments and _are_comments(source, lines[above : above + comments], lines[above + comments], given):
        mark = lines[above].lstrip()[0]
        warn(f"{source.path}: the lines above the log that begin with {mark} are skipped", LogWarning)
        above += comments
    if not above:
        return source, lines, None
    return source._replace(skipped=_number_of(source, above)), lines[above:], separator


def _are_comments(source: Source, comments: list[str], first: str, given: dict[str, str]) -> bool:
    """Whether lines that begin like comments are not rows of the log; raises if they may be its header."""
    last = comments[-1].lstrip(" #%\t")
    split = [(mark, last.split(mark), first.split(mark)) for mark in (*_SEPARATORS, None)]
    below = any(is_header(fields, given) for _, _, fields in split)
    for _, fields, others in split:
        if not below and len(fields) == len(others) > 1 and is_header(fields, given):
            line = _number_of(source, len(comments))
            mark = comments[-1].lstrip()[0]
            advice = f"remove the {mark}, or the line if it is a comment"
            raise InputError(f"{source.path}, line {line}: looks like a header after {mark}; {advice}")
    # Ids may begin with the same mark: such rows have no blank after it, and as many fields as the others.
    blank = all(re.match(r"\s*[#%]+(\s|$)", line) for line in comments)
    return below or blank or all(len(fields) != len(others) for _, fields, others in split if len(others) > 1)


def check_title(source: Source, lines: Sequence[str], separator: str | None, given: dict[str, str]) -> None:
    """Raise if the first line has another number of fields than the lines below, which all have the same.

    Args:
        source: file, for the message.
        lines: sample of the file, without blank lines.
        separator: separator, if known; with None, only a clear title is an error.
        given: column names that the caller gave.
    """
    counted = _counted_by(lines, [separator] if separator else _SEPARATORS)
    if separator is None:
        alike = any(len(set(widths)) == 1 and widths[0] > 1 for widths in counted.values())
        if alike or any(is_header(lines[0].split(mark), given) for mark in (*_SEPARATORS, None)):
            return
    for mark, widths in counted.items():
        if len(widths) < 3 or len(set(widths[1:])) > 1 or widths[0] == widths[1]:
            continue
        header = is_header(lines[1].split(mark), given)
        lonely = widths[0] == 1 and not any(re.search(r"\s", line.replace(mark, "")) for line in lines[1:])
        if separator or (widths[1] > 1 and (header or lonely)):
            few = f"has {widths[0]} field{'s' * (widths[0] > 1)} and the lines below have {widths[1]}"
            what = f"{short(lines[0][:60])} {few}, separated by {mark!r}"
            advice = "remove the line, or complete the header"
            for other, (first, *rest) in _counted_by(lines).items():
                if other != mark and (1 < first == widths[1] or (widths[0] > 1 and {widths[0]} == {*rest})):
                    advice = f"use one separator for all lines, where some have {other!r}"
            raise InputError(f"{source.path}, line {_number_of(source, 1)}: {what}; {advice}")


def check_header(source: Source, lines: Sequence[str], separator: str) -> None:
    """Raise for columns with a sequence of items in each row, and for a line of hyphens below the header."""
    items = {plain_name(name) for name in USUAL_NAMES["item_id"].split()} | {"history"}
    for field in lines[0].split(separator):
        name, _, kind = field.strip().rpartition(":")
        # RecBole's files of sessions, cut into histories and targets: item_id_list:token_seq, item_id:token.
        if kind in ("token_seq", "float_seq") and re.sub("(list|sequence|seq|s)$", "", plain_name(name)) in items:
            what = f"column {name!r} holds a sequence of items per row, which is not supported"
            advice = "give a log with one interaction per row, such as the one the sequences were made from"
            raise InputError(f"{source.path}, line {_number_of(source, 1)}: {what}; {advice}")
    below = [field.strip() for field in lines[1].split(separator) if field.strip()] if len(lines) > 1 else []
    if below and all(re.fullmatch(":?-{2,}:?", field) for field in below):
        raise InputError(f"{source.path}, line {_number_of(source, 2)}: is a line of hyphens, not a row; remove it")


def _counted_by(lines: Sequence[str], marks: Sequence[str] = _SEPARATORS) -> dict[str, list[int]]:
    """Number of fields of each record by separator."""
    return {mark: _widths(lines, mark) for mark in marks}


def _widths(lines: Sequence[str], separator: str) -> list[int]:
    """Number of fields of each record in a sample; the last record may be cut off."""
    quoted = len(separator) == 1 and any('"' in line for line in lines)
    found = [len(fields) for _, fields in split_records([line + "\n" for line in lines], separator, quoted)]
    return found[:-1] if len(lines) > 100 else found


def _number_of(source: Source, above: int) -> int:
    """Line number of the n-th line that is not blank."""
    filled = (number for number, line in enumerate(read_lines(source, False), 1) if line.strip())
    return next(number for number in filled if (above := above - 1) == 0)
