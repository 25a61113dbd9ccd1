"""Reads the blocks of a log on a cluster, and decides what its columns mean."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from seqrec.cluster.coded import Coded, Columns, Facts, Ids, code_block, merge_ids
from seqrec.cluster.parts import LOCALLY, Parts
from seqrec.cluster.pool import Pool
from seqrec.cluster.times import Rounds, TimeFacts, TimeRule, choose_time, count_below, dates_in, rule_of
from seqrec.data.formats.columns import ROLES, choose_columns
from seqrec.data.formats.summary import LogSummary
from seqrec.data.formats.text import Origin
from seqrec.data.formats.values import MISSING, missing_words
from seqrec.data.prepare import PrepareConfig
from seqrec.errors import InputError

MERGED = 4  # lists of ids that one task merges


class Log(NamedTuple):
    """A log that was read: references to the coded blocks and their ids, and what they mean together."""

    blocks: list[list[Any]]
    users: Ids
    items: Ids
    rule: TimeRule | None


def read_blocks(
    pool: Pool, parts: Parts, shared: Any, config: PrepareConfig, given: dict[str, str], summary: LogSummary
) -> tuple[Log, Columns]:
    """Read all blocks, and decide what their columns mean."""
    origin, head = Origin(parts.name), parts.head()
    choice = choose_columns(head, origin, given, summary)
    time, settle_time = choose_time(head, origin, choice, summary)
    strict = config.min_rating is not None or "rating" in given
    columns = Columns(choice, time, bool(choice.times), config.min_rating, strict)
    calls = ((shared, block, columns) for block in parts.blocks)
    blocks = pool.run(code_block, calls, returns=4)
    facts: list[Facts] = [block[-1] for block in blocks]
    users, items = (_merged(pool, [block[place] for block in blocks]) for place in (1, 2))
    _check_ids(parts, columns, facts, (users, items), summary)
    notes = len(summary.notes)
    rule = None
    if time is not None:
        found = [fact.times for fact in facts if fact.times is not None]
        rounds = Rounds(
            lambda pivots: sum(count for (count,) in pool.run(below_of, ((block[0], pivots) for block in blocks))),
            lambda middle: [fact for (fact,) in pool.run(dates_of, ((block[0], middle) for block in blocks))],
        )
        rule = rule_of(time, origin, found, summary, choice, rounds)
    settle_time(rule is not None)
    if rule is None and len(summary.notes) == notes and _is_scattered(facts, len(users.ids)):
        summary.warn("no time column; the lines are taken to be in time order (--timestamp names a column)")
    _sum_up(parts, columns, facts, rule, summary)
    return Log(blocks, users, items, rule), columns


def below_of(coded: Coded, values: np.ndarray) -> np.ndarray:
    """How many times of a block lie below each of some values."""
    assert coded.times is not None
    return count_below(coded.times, values)


def dates_of(coded: Coded, middle: float) -> TimeFacts | None:
    """Facts about the dates that a block's times are, if they are written as whole numbers."""
    assert coded.times is not None
    return dates_in(coded.times, middle)


def _merged(pool: Pool, references: list[Any]) -> Ids:
    """The ids of all blocks, merged by tasks that take a few lists each."""
    while len(references) > 1:
        groups = [references[start : start + MERGED] for start in range(0, len(references), MERGED)]
        references = [reference for reference, _ in pool.run(merge_ids, map(tuple, groups), returns=2)]
    ids: Ids = pool.get(references[0])
    return ids


def _check_ids(parts: Parts, columns: Columns, facts: list[Facts], found: tuple[Ids, Ids], summary: LogSummary) -> None:
    """Raise if the ids of all blocks together are not ids, and warn about words for nothing among them."""
    for place, (role, ids) in enumerate(zip(("user", "item"), found, strict=True)):
        name = columns.choice.roles[f"{role}_id"]
        if len({fact.are_uuids[place] for fact in facts}) > 1:
            raise InputError(f"{parts.name}: column {name!r} has bytes that may be text or UUIDs; {LOCALLY}")
        summary.columns[role] = name
        if not isinstance(ids.ids, pl.Series):
            continue
        numbers = ids.ids.cast(pl.Int64, strict=False)
        words = missing_words(ids.ids, numbers) if parts.types[name] == pl.String and numbers.null_count() else False
        if isinstance(words, pl.Series) and words.any():
            count, word = int(ids.counts[words.to_numpy()].sum()), ids.ids.filter(words)[0]
            raise InputError(
                f"{parts.name}: the {role} id is missing ({word}), as in {count:,} of {parts.rows:,} rows; give the "
                "row an id, or remove it"
            )
        rows = pl.DataFrame({"id": ids.ids, "rows": ids.counts}).filter(pl.col("id").is_in(MISSING.split()))
        if rows.height:
            word = rows.sort("rows", "id", descending=[True, False])["id"][0]
            other = "".join(
                f"; {other!r} may be the {role} (--{role})" for other in columns.choice.instead[f"{role}_id"]
            )
            summary.warn(f"in {rows['rows'].sum():,} of {parts.rows:,} rows the {role} id is the word {word!r}{other}")


def _is_scattered(facts: list[Facts], users: int) -> bool:
    """Whether the rows of some user are not consecutive."""
    runs = 1 + sum(fact.runs for fact in facts)
    runs += sum(one.ends[1] != other.ends[0] for one, other in pairwise(facts))
    return runs > users


def _sum_up(parts: Parts, columns: Columns, facts: list[Facts], rule: TimeRule | None, summary: LogSummary) -> None:
    """Note which columns are used, as the reading of a log on one machine does."""
    used = [columns.choice.roles["user_id"], columns.choice.roles["item_id"]]
    frame = ["user_id", "item_id"]
    if rule is not None:
        used.append(rule.name)
        frame.append("timestamp")
        summary.columns["timestamp"] = rule.name
    rating = columns.choice.roles.get("rating")
    words = any(fact.rating is False for fact in facts) or (rating is not None and _cannot_rate(parts.types[rating]))
    if rating is not None and words:
        summary.warn(
            f"column {rating!r} holds values that are no numbers, so it is not used as a rating (--rating names "
            "another column)"
        )
    elif rating is not None:
        frame.append("rating")
        summary.columns["rating"] = rating
    names = [*parts.columns, *(key for key in parts.keys if key not in parts.columns)]
    summary.ignored = [name for name in names if name not in used and name != rating]
    summary.ignored += [rating] if rating is not None and words else []
    summary.frame_columns = [*frame, *(f"{name}_other" if name in ROLES else name for name in summary.ignored)]


def _cannot_rate(kind: pl.DataType) -> bool:
    return not kind.is_numeric() and kind != pl.String
