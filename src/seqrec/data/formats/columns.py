"""Which column is what: user, item, timestamp, rating."""

import polars as pl

from seqrec.data.formats.text import USUAL_NAMES, Origin, plain_name
from seqrec.data.formats.times import seconds_of
from seqrec.data.formats.values import PART_ROWS, floats_of, ids_of, is_text, numbers_of
from seqrec.errors import InputError


def choose_columns(frame: pl.DataFrame, log: Origin, given: dict[str, str]) -> dict[str, str]:
    """Role to column name, in the canonical order."""
    names = frame.columns
    seen = ", ".join(names[:40]) + ("" if log.header else " (by number, as there is no header)")
    guesses = {} if log.header else _guess_by_position(frame, given)
    chosen: dict[str, str] = {}
    for role, usual in USUAL_NAMES.items():
        ranks = {plain_name(name): rank for rank, name in enumerate(usual.split())}
        parameter = role.removesuffix("_id")
        if role in given:
            same = [name for name in names if name.strip().lower() == given[role].strip().lower()]
            found = sorted(same, key=lambda name: name != given[role])
        elif log.header:
            found = [name for name in names if plain_name(name) in ranks and name not in given.values()]
            found.sort(key=lambda name: (ranks[plain_name(name)], name != role))
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
    small = [bool(floats_of(frame[name]).is_between(0, 10).fill_null(False).all()) for name in frame.columns[2:]]
    if frame.width == 3:
        # Times of 0 to 10 exist only in tiny logs, where a user hardly does two things at once.
        # In a large log the first rows tell, which spares a table of all.
        twice = pl.struct("1", "3").is_duplicated().any()
        is_rating = small[0] and any(rows.select(twice).item() for rows in (frame[:PART_ROWS], frame))
        return guesses | {"rating" if is_rating else "timestamp": "3"}
    swapped = small[1] and not small[0]
    return guesses | {"timestamp": "3" if swapped else "4", "rating": "4" if swapped else "3"}


def canonical(read: dict[str, pl.Series], log: Origin, chosen: dict[str, str]) -> pl.DataFrame:
    """Columns under their canonical names and types."""
    columns, fine = {}, None
    for role, name in chosen.items():
        if role == "timestamp":
            columns[role], fine = seconds_of(log, read.pop(name))
        elif role == "rating":
            columns[role] = numbers_of(log, read.pop(name), role)
        else:
            columns[role] = ids_of(log, read.pop(name), role.removesuffix("_id"))
    for name in list(read):
        extra = read.pop(name)
        # The caller may have chosen another column than the one that bears a canonical name.
        columns[f"{name}_other" if name in chosen else name] = extra.cast(pl.String) if is_text(log) else extra
    frame = pl.DataFrame(columns)
    if fine is not None and not fine.is_sorted():
        # Rounding makes ties of stamps that differed, and ties keep the log's order: make that the fine one.
        frame = frame.with_columns(fine.alias("\0fine")).sort("\0fine", maintain_order=True).drop("\0fine")
    return frame
