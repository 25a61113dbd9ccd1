"""Turns a log frame into a :class:`Dataset`: filters, id tables, order, statistics."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from seqrec.data.dataset import Dataset
from seqrec.data.fields import Count, Options, check_fields
from seqrec.data.formats.read import read_log_with_summary
from seqrec.data.id_table import IdTable
from seqrec.data.log_items import find_items, table_of_log
from seqrec.data.numbering import indexed, pieces, taken
from seqrec.data.statistics import copies_of, counts_of, statistics_of, tied_to_next
from seqrec.errors import InputError

Core = Literal["once", "repeat"]
Duplicates = Literal["keep", "drop-copies", "drop-consecutive", "drop"]


@dataclass(frozen=True)
class PrepareConfig(Options):
    """Filters of the log, applied in the order of the fields.

    Args:
        min_rating: Keep interactions with at least this rating; the log must have ratings. The model does not learn
            from the others, but their items count as seen: they are not recommended to that user again.
        duplicates: What to do when a user meets an item again. keep: keep every interaction; drop-copies: drop rows
            with the same user, item and time; drop-consecutive: of repetitions in a row, keep the first; drop: keep the
            first interaction with each item.
        min_user_interactions: Keep users with at least this many interactions (k-core).
        min_item_interactions: Keep items with at least this many interactions (k-core).
        core: How often to apply the two minimums. once: in one pass, which can leave some counts below them; repeat:
            until nothing changes.
    """

    min_rating: float | None = None
    duplicates: Duplicates = "keep"
    min_user_interactions: Count = 1
    min_item_interactions: Count = 1
    core: Core = "repeat"


def prepare(frame: pl.DataFrame, config: PrepareConfig | None = None) -> Dataset:
    """Make a :class:`Dataset` from a frame that ``read_log`` returned.

    Args:
        frame: columns ``user_id``, ``item_id`` and, if known, ``timestamp`` and ``rating``. Rows with equal
            timestamps keep their order; without timestamps the rows are taken to be in time order. Columns with the
            titles or categories of items become the item table.
        config: filters; by default nothing is dropped.

    Raises:
        InputError: a filter needs a column that the frame lacks, or the filters leave no interaction.
    """
    config = config or PrepareConfig()
    check_columns(config, frame.columns, frame.height)
    # Keep only the needed columns, so that the frame can be freed (unless the caller holds on to it).
    names = [name for name in ("user_id", "item_id", "timestamp") if name in frame.columns]
    columns: dict[str, pl.Series] = {name: frame[name] for name in names}
    good = None if config.min_rating is None else well_rated(frame["rating"], config.min_rating)
    described = find_items(frame)
    del frame
    has_timestamps = "timestamp" in columns
    rows, user_ids, item_ids, good = _in_order(columns, good)
    same = tied_to_next(rows.users, rows.timestamps) if has_timestamps else None
    before = statistics_of(counts_of(rows.users, len(user_ids)), len(item_ids), rows.items, rows.timestamps, same)
    del same
    dropped = None if good is None else (rows.users[~good], rows.items[~good])
    rows.keep(good)
    del good
    rows.keep(kept_of_duplicates(rows.users, rows.items, rows.timestamps, config.duplicates))
    rows.keep(_core(rows.users, rows.items, len(user_ids), len(item_ids), config))
    if len(rows.users) == 0:
        raise nothing_left(before.interactions, config)
    met_items = met_offsets = None
    if dropped is not None:
        met_items, met_offsets = met_of(*dropped, np.unique(rows.users), np.unique(rows.items), len(item_ids))
    rows.users, user_ids = _compact(rows.users, user_ids)
    rows.items, item_ids = _compact(rows.items, item_ids)
    offsets = np.zeros(len(user_ids) + 1, dtype=np.int64)
    np.cumsum(counts_of(rows.users, len(user_ids)), out=offsets[1:])
    rows.items += np.int32(1)
    return Dataset(
        items=rows.items,
        timestamps=rows.timestamps,
        offsets=offsets,
        users=IdTable(user_ids),
        catalogue=IdTable(item_ids),
        has_timestamps=has_timestamps,
        before=before,
        filters=dict(vars(config)),
        met_items=met_items,
        met_offsets=met_offsets,
        item_table=table_of_log(described, item_ids),
    )


def read_and_prepared(given: list[Any], config: PrepareConfig, items: Any, users: Any) -> Dataset:
    """The dataset of a log, with its tables of items and users.

    Args:
        given: the log in any form that :func:`read_log` accepts, or a :class:`Dataset`, as the only entry of a list. It
            is taken out, so that the memory of a frame can be freed before training.
        config: filters, for a log that is not prepared yet.
        items: descriptions of the items, in any form that :func:`read_items` accepts, or None.
        users: descriptions of the users, in any form that :func:`seqrec.data.users.describe_users` accepts, or None.
    """
    log = given.pop()
    if not isinstance(log, Dataset):
        log = prepare(read_log_with_summary(log, needs_rating=config.min_rating is not None)[0], config)
    return with_tables(log, items, users)


def with_tables(dataset: Dataset, items: Any, users: Any) -> Dataset:
    """The dataset with tables made from descriptions of items and of users, where they are given."""
    dataset = dataset if items is None else dataset.with_items(items)
    return dataset if users is None else dataset.with_users(users)


@dataclass
class _Rows:
    """Interactions ordered by user and time; users and items are indices from 0."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray

    def keep(self, chosen: np.ndarray | None) -> None:
        """Drop the rows that are not chosen; None keeps all."""
        if chosen is not None:
            self.users, self.items = self.users[chosen], self.items[chosen]
            self.timestamps = self.timestamps[chosen]


def _in_order(
    columns: dict[str, pl.Series], good: np.ndarray | None
) -> tuple[_Rows, pl.Series, pl.Series, np.ndarray | None]:
    """Interactions ordered by user and time, the ids of users and items, and ``good`` in the order of the interactions.

    Removes the columns from ``columns``, so that each is freed as soon as it is not needed.
    """
    users, user_ids = indexed(columns.pop("user_id"))
    items, item_ids = indexed(columns.pop("item_id"))
    timestamps = columns.pop("timestamp").to_numpy() if "timestamp" in columns else None
    order = time_order(users, timestamps)
    has_times, rated = timestamps is not None, good is not None
    known = [column for column in (users, items, timestamps, good) if column is not None]
    del users, items, timestamps, good
    ordered = taken(known, order)
    rows = _Rows(ordered[0], ordered[1], ordered[2] if has_times else order)
    return rows, user_ids, item_ids, ordered[-1] if rated else None


def filters_of(dataset: Dataset, asked: PrepareConfig) -> PrepareConfig:
    """Filters that a dataset was prepared with; a dataset without a record of them counts as unfiltered.

    Raises:
        InputError: ``asked`` wants other filters than the dataset was prepared with.
    """
    plain, used = PrepareConfig(), dataset.filters or {}
    check_fields(PrepareConfig, used)
    for name, value in vars(asked).items():
        had = used.get(name, getattr(plain, name))
        if value not in (getattr(plain, name), had):
            raise InputError(
                f"{name} is {value}, but the Dataset was made with {name} = {had}, and fit does not filter a Dataset; "
                f"prepare the log with PrepareConfig({name}={value!r}), or give fit the log itself"
            )
    return PrepareConfig(**used)


def check_columns(config: PrepareConfig, columns: Collection[str], rows: int) -> None:
    """Raise if a filter needs a column that the log lacks, or if the log has no rows."""
    if rows == 0:
        raise InputError("the log has no interactions; give one in which some user has at least two")
    if config.min_rating is not None and "rating" not in columns:
        raise InputError("the minimum rating needs a rating column, and the log has none; name it with --rating")
    if config.duplicates == "drop-copies" and "timestamp" not in columns:
        raise InputError("duplicates='drop-copies' needs timestamps, and the log has none; give duplicates='drop'")


def nothing_left(interactions: int, config: PrepareConfig) -> InputError:
    """The error for filters that drop everything."""
    filters = ", ".join(f"{name}={value}" for name, value in vars(config).items() if value is not None)
    return InputError(f"nothing is left of {interactions:,} interactions after the filters ({filters}); relax them")


def time_order(users: np.ndarray, timestamps: np.ndarray | None) -> np.ndarray:
    """Stable order by user, then time."""
    if timestamps is None:
        if (users[1:] >= users[:-1]).all():
            return np.arange(len(users))
        return _stable_order(users)
    later = (users[1:] > users[:-1]) | ((users[1:] == users[:-1]) & (timestamps[1:] >= timestamps[:-1]))
    if later.all():
        return np.arange(len(users))
    if (timestamps[1:] >= timestamps[:-1]).all():
        return _stable_order(users)
    return order_by(users, timestamps)


def order_by(users: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Stable order by user, then value."""
    order = _stable_order(values)
    return order[_stable_order(users[order])]


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """Stable argsort. Sorting key and position in one 64-bit word is several times faster than an indirect sort."""
    low = 0 if keys.dtype.kind == "f" else int(keys.min())
    if keys.dtype.kind != "f" and int(keys.max()) - low < 2**31 and len(keys) < 2**32:
        words = keys.astype(np.int64)
        words -= low
        words <<= 32
        for rows in pieces(len(words)):
            words[rows] |= np.arange(rows.start, rows.stop, dtype=np.uint32)
        words.sort()
        words &= 0xFFFFFFFF
        return words
    return np.argsort(keys, kind="stable")


def well_rated(ratings: pl.Series, least: float) -> np.ndarray:
    """Mask of the interactions with at least this rating; raises if one has no rating."""
    missing = ratings.null_count() if ratings.dtype.is_numeric() else len(ratings)
    if missing:
        raise InputError(
            f"the minimum rating needs a number in every row, and {missing:,} of {len(ratings):,} interactions have "
            "none; correct or remove them, or name another column with --rating"
        )
    return ratings.to_numpy() >= least


def kept_of_duplicates(
    users: np.ndarray, items: np.ndarray, timestamps: np.ndarray, rule: Duplicates
) -> np.ndarray | None:
    """Mask of the interactions to keep; None keeps all. The input is ordered by user and time."""
    if rule == "keep" or len(users) == 0:
        return None
    keep = np.ones(len(users), dtype=bool)
    if rule == "drop-copies":
        keep[copies_of(items, tied_to_next(users, timestamps))] = False
        return keep
    if rule == "drop-consecutive":
        keep[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        return keep
    order = order_by(users, items)  # stable: the first interaction with an item comes first
    users, items = users[order], items[order]
    keep[order[1:]] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return keep


def _core(
    users: np.ndarray, items: np.ndarray, num_users: int, num_items: int, config: PrepareConfig
) -> np.ndarray | None:
    """Mask of the interactions in the k-core; None keeps all."""
    if config.min_user_interactions <= 1 and config.min_item_interactions <= 1:
        return None
    keep: np.ndarray | None = None
    while True:
        enough_users = counts_of(users, num_users) >= config.min_user_interactions
        enough_items = counts_of(items, num_items) >= config.min_item_interactions
        good = enough_users[users] & enough_items[items]
        if good.all():
            return keep
        if keep is None:
            keep = good
        else:
            keep[keep] = good
        if config.core == "once":
            return keep
        users, items = users[good], items[good]


def met_of(
    users: np.ndarray, items: np.ndarray, known_users: np.ndarray, known_items: np.ndarray, num_items: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """``met_items`` and ``met_offsets`` of :class:`Dataset`: pairs that the rating filter dropped.

    Only pairs of a user and an item that are both kept count. No other filter drops such pairs: the k-core drops all of
    a user or all of an item, and a dropped repetition leaves the item in the history.

    Args:
        users: user of each dropped interaction.
        items: item of each dropped interaction.
        known_users: users that are kept, sorted.
        known_items: items that are kept, sorted.
        num_items: number of items, kept or not.
    """
    stay = np.isin(users, known_users) & np.isin(items, known_items)
    keys = np.unique(users[stay].astype(np.int64) * num_items + items[stay])
    if len(keys) == 0:
        return None, None
    offsets = np.zeros(len(known_users) + 1, dtype=np.int64)
    np.cumsum(counts_of(np.searchsorted(known_users, keys // num_items), len(known_users)), out=offsets[1:])
    return (np.searchsorted(known_items, keys % num_items) + 1).astype(np.int32), offsets


def _compact(indices: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Renumber the indices so that every id is used, and drop the unused ids."""
    used = np.zeros(len(ids), dtype=bool)
    used[indices] = True
    if used.all():
        return indices, ids
    position = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return position[indices], ids.filter(pl.Series(used))
