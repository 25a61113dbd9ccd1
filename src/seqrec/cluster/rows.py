"""The interactions of some users: divided from blocks, ordered, filtered, and written into the files of a dataset."""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqrec.cluster.coded import Coded, Ids, places_of
from seqrec.cluster.times import TimeRule
from seqrec.data.mapped import write_rows
from seqrec.data.prepare import PrepareConfig, kept_of_duplicates, met_of, time_order
from seqrec.data.statistics import Ties, counts_of, tied_to_next, ties_of


class Piece(NamedTuple):
    """Interactions of the users of one part of the dataset, in the order of the log."""

    users: np.ndarray  # int32[N], place among the users of the log
    items: np.ndarray  # int32[N], place among the items of the log
    stamps: np.ndarray  # int64[N] or float64[N]; rows of the log if it has no times
    good: np.ndarray | None


class Ordered(NamedTuple):
    """Interactions ordered by user and time, after the filters that look at one user alone."""

    users: np.ndarray  # int32[N], from 0 for the first user of the part
    items: np.ndarray  # int32[N], place among the items of the log
    timestamps: np.ndarray  # int64[N]
    dropped: tuple[np.ndarray, np.ndarray] | None  # users and items of what the rating filter dropped


class Part(NamedTuple):
    """What the whole dataset needs to know of the interactions of some users."""

    rows: int
    ties: Ties | None  # before the filters
    is_fine: bool  # whether times were rounded


class Written(NamedTuple):
    """What was written of the interactions of some users."""

    lengths: np.ndarray  # int64, interactions of each user that has any
    used: np.ndarray  # bool, whether each user has any
    checksums: dict[str, dict[int, int]]  # by file and block
    met_lengths: np.ndarray  # int64, met_items of each user that has any interactions


class Round(NamedTuple):
    """Result of applying the least numbers of interactions once."""

    changed: bool
    rows: int


def split_block(
    coded: Coded,
    block_users: Ids,
    block_items: Ids,
    users: Ids,
    items: Ids,
    bounds: np.ndarray,
    rule: TimeRule | None,
    first: int,
) -> list[Any]:
    """Divide the interactions of a block by their users.

    Args:
        coded: the interactions.
        block_users: users of the block.
        block_items: items of the block.
        users: users of the log.
        items: items of the log.
        bounds: users at which the parts of the dataset begin, and their number, ``int64[P + 1]``.
        rule: what the times mean; None if the log has none.
        first: row of the log that the block begins with.

    Returns:
        A :class:`Piece` for each part, and None.
    """
    user_places, item_places = places_of(block_users, users), places_of(block_items, items)
    parts = len(bounds) - 1
    kind = np.uint8 if parts <= 2**8 else np.uint16 if parts <= 2**16 else np.int64
    part_of = (np.searchsorted(bounds, user_places, side="right") - 1).astype(kind)[coded.users]
    if rule is None:
        stamps = np.arange(first, first + len(coded.users), dtype=np.int64)
    else:
        assert coded.times is not None
        stamps = rule.stamps(coded.times)
    order = np.argsort(part_of, kind="stable")
    of_users, of_items, stamps = user_places[coded.users[order]], item_places[coded.items[order]], stamps[order]
    good = None if coded.good is None else coded.good[order]
    cuts = np.concatenate([[0], np.cumsum(np.bincount(part_of, minlength=parts))]).tolist()
    pieces = [
        Piece(of_users[a:b], of_items[a:b], stamps[a:b], None if good is None else good[a:b]) for a, b in pairwise(cuts)
    ]
    return [*pieces, None]


def order_part(
    span: tuple[int, int], num_items: int, rule: TimeRule | None, config: PrepareConfig, *pieces: Piece
) -> tuple[Ordered, np.ndarray | None, Part]:
    """Order the interactions of the users in a span, and apply the filters that look at one user alone.

    Returns:
        The interactions; how many of them each item has, ``int64[I]``, if anything is filtered; and what is known.
    """
    users = np.concatenate([piece.users for piece in pieces]) - np.int32(span[0])
    items = np.concatenate([piece.items for piece in pieces])
    stamps = np.concatenate([piece.stamps for piece in pieces])
    order = time_order(users, stamps)
    users, items, stamps = users[order], items[order], stamps[order]
    good = None if pieces[0].good is None else np.concatenate([piece.good for piece in pieces])[order]
    del order
    timestamps = stamps if rule is None else rule.seconds(stamps)
    is_fine = rule is not None and timestamps is not stamps and bool((timestamps * rule.per_second != stamps).any())
    ties = None if rule is None else ties_of(items, timestamps, tied_to_next(users, timestamps))
    dropped = None
    if good is not None:
        dropped = users[~good], items[~good]
        users, items, timestamps = users[good], items[good], timestamps[good]
    keep = kept_of_duplicates(users, items, timestamps, config.duplicates)
    if keep is not None:
        users, items, timestamps = users[keep], items[keep], timestamps[keep]
    item_counts = None if filters_nothing(config) else counts_of(items, num_items)
    return Ordered(users, items, timestamps, dropped), item_counts, Part(len(users), ties, is_fine)


def filters_nothing(config: PrepareConfig) -> bool:
    """Whether all interactions are kept."""
    return (
        config.min_rating is None
        and config.duplicates == "keep"
        and config.min_user_interactions <= 1
        and config.min_item_interactions <= 1
    )


def core_round(
    rows: Ordered, keep: np.ndarray | None, num_users: int, least: int, enough_items: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Round]:
    """Drop users with less than ``least`` interactions, and the items that have not enough, once and together.

    Returns:
        The mask of the interactions that are kept, how many of them each item has, and the result.
    """
    kept = np.ones(len(rows.users), dtype=bool) if keep is None else keep.copy()
    users, items = rows.users[kept], rows.items[kept]
    good = (counts_of(users, num_users) >= least)[users] & enough_items[items]
    kept[kept] = good
    return kept, counts_of(items[good], len(enough_items)), Round(not good.all(), int(good.sum()))


def write_part(
    folder: Path, first: int, num_users: int, rows: Ordered, keep: np.ndarray | None, used_items: np.ndarray | None
) -> tuple[np.ndarray, Written]:
    """Write the interactions of some users into the files of a dataset.

    Args:
        folder: folder with the files, of their final length.
        first: row to begin at.
        num_users: number of users in this part.
        rows: the interactions.
        keep: mask of those to write; None for all.
        used_items: mask of the items that the dataset has; None for all.

    Returns:
        The ``met_items`` of these users, and what was written.
    """
    users, items, timestamps = rows.users, rows.items, rows.timestamps
    if keep is not None:
        users, items, timestamps = users[keep], items[keep], timestamps[keep]
    lengths = counts_of(users, num_users)
    used = lengths > 0
    met_items, met_lengths = np.zeros(0, dtype=np.int32), np.zeros(int(used.sum()), dtype=np.int64)
    if used_items is None:
        items = items + np.int32(1)
    else:
        if rows.dropped is not None:
            known = np.flatnonzero(used_items)
            found, offsets = met_of(*rows.dropped, np.flatnonzero(used), known, len(used_items))
            if found is not None and offsets is not None:
                met_items, met_lengths = found, np.diff(offsets)
        items = np.cumsum(used_items, dtype=np.int32)[items]
    sums = {
        name: write_rows(folder / f"{name}.npy", first, array)
        for name, array in (("items", items), ("timestamps", timestamps))
    }
    return met_items, Written(lengths[used], used, sums, met_lengths)


def order_and_write(
    folder: Path, first: int, span: tuple[int, int], num_items: int, rule: TimeRule | None, *pieces: Piece
) -> tuple[np.ndarray, tuple[Part, Written]]:
    """Order the interactions of the users in a span, and write them; for a log of which nothing is filtered."""
    rows, _, part = order_part(span, num_items, rule, PrepareConfig(), *pieces)
    met_items, written = write_part(folder, first, span[1] - span[0], rows, None, None)
    return met_items, (part, written)
