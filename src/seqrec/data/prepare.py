"""From a log frame to a :class:`Dataset`: filters, id tables, order, statistics, saving."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from rich.table import Table

from seqrec.errors import InputError, one_line
from seqrec.files import replacing_folder

FORMAT_VERSION = 1
_ARRAYS = {"items": np.int32, "timestamps": np.int64, "offsets": np.int64}
_PART_ROWS = 1 << 22  # rows at once, where numpy would make int64 of all of them
_FILES = {"dataset.json", "users.parquet", "items.parquet", *(f"{name}.npy" for name in _ARRAYS)}

Core = Literal["once", "repeat"]
Duplicates = Literal["keep", "drop-consecutive", "drop"]


@dataclass(frozen=True)
class PrepareConfig:
    """What of the log is kept. The steps run in the order of the fields.

    Args:
        min_rating: keep interactions rated at least this; needs a rating column.
        duplicates: what to do when a user meets an item again: ``keep`` every interaction,
            ``drop-consecutive`` repetitions in a row (the first of a run stays), or ``drop`` every
            repetition (the first interaction with the item stays).
        min_user_interactions: keep users with at least so many interactions (k-core).
        min_item_interactions: keep items with at least so many interactions (k-core).
        core: ``once`` counts users and items on the same log and filters in one pass, after which
            some counts may be below the minimum again; ``repeat`` filters until nothing changes.
    """

    min_rating: float | None = None
    duplicates: Duplicates = "keep"
    min_user_interactions: int = 1
    min_item_interactions: int = 1
    core: Core = "repeat"


@dataclass(frozen=True)
class Statistics:
    """Size and shape of a log; lengths are interactions a user."""

    users: int
    items: int
    interactions: int
    density: float
    median_length: float
    p90_length: float
    max_length: int
    tied_timestamps: float | None  # share of interactions that share user and time; None: no times


@dataclass(frozen=True, eq=False)
class Dataset:
    """The interactions as arrays, ordered by user and then time.

    ``items int32[N]`` (1 to ``num_items``; 0 is padding and never occurs), ``timestamps int64[N]``
    (unix seconds; the line number where the log has no times), ``offsets int64[U + 1]``: the history
    of user ``u`` is ``items[offsets[u]:offsets[u + 1]]``. ``user_ids[u]`` and ``item_ids[i - 1]`` are
    the ids of the log. The arrays may be memory-mapped.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    has_timestamps: bool
    before: Statistics | None = field(default=None, compare=False)  # the log before the filters

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """Number of real items I; an embedding table has I + 1 rows."""
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        """Number of interactions N."""
        return len(self.items)

    @cached_property
    def statistics(self) -> Statistics:
        """Size and shape of what is kept."""
        tied = None
        if self.has_timestamps:
            same = self.timestamps[1:] == self.timestamps[:-1]
            same[self.offsets[1:-1] - 1] = False  # the last of one user and the first of the next
            tied = _share_of_either(same)
        return _statistics(np.diff(self.offsets), self.num_items, tied)

    @cached_property
    def item_counts(self) -> np.ndarray:
        """Interactions of each item, ``int64[I + 1]``; entry 0 is 0."""
        return counts_of(self.items, self.num_items + 1)

    @cached_property
    def seen_keys(self) -> np.ndarray:
        """Sorted ``user * (I + 1) + item``, ``int64[N]``: answers 'has this user met this item'."""
        keys = np.repeat(np.arange(self.num_users, dtype=np.int64) * (self.num_items + 1), np.diff(self.offsets))
        keys += self.items
        keys.sort()
        return keys

    def user_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index of each id, -1 where it is unknown."""
        return _lookup(self.user_ids, ids, -1)

    def item_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index (from 1) of each id, 0 where it is unknown."""
        return _lookup(self.item_ids, ids, -1) + 1

    def save(self, folder: str | Path) -> None:
        """Write the arrays and id tables to ``folder``, whole or not at all.

        An older dataset there is replaced.

        Raises:
            InputError: the folder holds anything else, or cannot be written.
        """
        folder = Path(folder)
        foreign = sorted(set(os.listdir(folder)) - _FILES) if folder.is_dir() else []
        if foreign:
            raise InputError(f"{folder}: holds other files ({foreign[0]}), which would be lost; give a new folder")
        with replacing_folder(folder) as new:
            for name in _ARRAYS:
                np.save(new / f"{name}.npy", getattr(self, name))
            self.user_ids.to_frame().write_parquet(new / "users.parquet")
            self.item_ids.to_frame().write_parquet(new / "items.parquet")
            facts = {
                "format_version": FORMAT_VERSION,
                "has_timestamps": self.has_timestamps,
                "interactions": self.num_interactions,
                "before": vars(self.before) if self.before else None,
            }
            (new / "dataset.json").write_text(json.dumps(facts, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> "Dataset":
        """Open a saved dataset; the arrays stay on the disk and are memory-mapped."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / "dataset.json").read_text())
            if facts["format_version"] > FORMAT_VERSION:
                raise InputError(f"{folder}: dataset format {facts['format_version']} is newer; update seqrec")
            # open_memmap knows no pickles, which np.load would advise to trust.
            arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in _ARRAYS}
            user_ids = pl.read_parquet(folder / "users.parquet", glob=False).to_series()
            item_ids = pl.read_parquet(folder / "items.parquet", glob=False).to_series()
            before = Statistics(**facts["before"]) if facts["before"] else None
            dataset = cls(**arrays, user_ids=user_ids, item_ids=item_ids,
                          has_timestamps=facts["has_timestamps"], before=before)  # fmt: skip
            whole = _is_whole(dataset, facts["interactions"])
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{folder}: not a whole saved dataset ({one_line(error)}); prepare it again") from error
        if not whole:
            raise InputError(f"{folder}: the saved dataset is damaged (its parts differ); prepare it again")
        return dataset


def prepare(frame: pl.DataFrame, config: PrepareConfig | None = None) -> Dataset:
    """Make a :class:`Dataset` of a frame that ``read_log`` gave.

    Args:
        frame: columns ``user_id``, ``item_id`` and, where known, ``timestamp`` and ``rating``. Equal
            timestamps keep the order of the rows; without timestamps the rows are the order of time.
        config: the filters; nothing is dropped without one.

    Raises:
        InputError: no rating column for ``min_rating``, or nothing is left after the filters.
    """
    config = config or PrepareConfig()
    _check(config)
    if frame.height == 0:
        raise InputError("the log has no interactions; give one with at least two by one user")
    has_timestamps = "timestamp" in frame.columns
    if config.min_rating is not None and "rating" not in frame.columns:
        raise InputError("the log has no rating column, which the minimum rating needs; name it with --rating")
    # What is needed of the frame, which goes at once unless the caller keeps it.
    columns = {name: frame[name] for name in ("user_id", "item_id", "timestamp") if name in frame.columns}
    good = None if config.min_rating is None else frame["rating"].to_numpy() >= config.min_rating
    del frame
    users, user_ids = _index(columns.pop("user_id"))
    items, item_ids = _index(columns.pop("item_id"))
    timestamps = columns.pop("timestamp").to_numpy() if has_timestamps else None
    order = _time_order(users, timestamps)
    users = users[order]
    items = items[order]
    timestamps = order if timestamps is None else timestamps[order]
    before = _statistics(
        counts_of(users, len(user_ids)),
        len(item_ids),
        tied_share(users, timestamps) if has_timestamps else None,
    )
    keep = None if good is None else good[order]
    del order, good
    if keep is not None:
        users, items, timestamps = users[keep], items[keep], timestamps[keep]
    keep = _duplicates(users, items, config.duplicates)
    if keep is not None:
        users, items, timestamps = users[keep], items[keep], timestamps[keep]
    keep = _core(users, items, len(user_ids), len(item_ids), config)
    if keep is not None:
        users, items, timestamps = users[keep], items[keep], timestamps[keep]
    if len(users) == 0:
        raise InputError(
            f"nothing is left of {before.interactions:,} interactions after the filters ({_said(config)}); lower them"
        )
    users, user_ids = _compact(users, user_ids)
    items, item_ids = _compact(items, item_ids)
    offsets = np.zeros(len(user_ids) + 1, dtype=np.int64)
    np.cumsum(counts_of(users, len(user_ids)), out=offsets[1:])
    items += np.int32(1)
    return Dataset(
        items=items,
        timestamps=timestamps,
        offsets=offsets,
        user_ids=user_ids,
        item_ids=item_ids,
        has_timestamps=has_timestamps,
        before=before,
    )


def statistics_table(dataset: Dataset) -> Table:
    """Size and shape of the log as read and as kept, for people."""
    grid = Table(title="the log")
    for name in ("", "read", "kept"):
        grid.add_column(name, justify="left" if not name else "right")
    before = dataset.before or dataset.statistics

    def both(title: str, show: Any) -> None:
        grid.add_row(title, show(before), show(dataset.statistics))

    both("users", lambda s: f"{s.users:,}")
    both("items", lambda s: f"{s.items:,}")
    both("interactions", lambda s: f"{s.interactions:,}")
    both("density", lambda s: f"{s.density:.4%}")
    both("history, median", lambda s: f"{s.median_length:g}")
    both("history, p90", lambda s: f"{s.p90_length:g}")
    both("history, longest", lambda s: f"{s.max_length:,}")
    both("tied timestamps", _tied)
    return grid


def _tied(statistics: Statistics) -> str:
    return "no times" if statistics.tied_timestamps is None else f"{statistics.tied_timestamps:.1%}"


def tied_share(users: np.ndarray, timestamps: np.ndarray) -> float:
    """Share of interactions whose user has another one at the same time; input ordered by both."""
    return _share_of_either((users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1]))


def _share_of_either(same: np.ndarray) -> float:
    """Share of places that are like the one before or the one after; ``same`` compares neighbours."""
    tied = np.zeros(len(same) + 1, dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    return float(tied.mean())


def _check(config: PrepareConfig) -> None:
    for name in ("min_user_interactions", "min_item_interactions"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; give 1 or more")
    for name, known in (("core", get_args(Core)), ("duplicates", get_args(Duplicates))):
        if getattr(config, name) not in known:
            raise InputError(f"{name} is {getattr(config, name)!r}; give one of {', '.join(known)}")


def _said(config: PrepareConfig) -> str:
    return ", ".join(f"{name}={value}" for name, value in vars(config).items() if value is not None)


def _index(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Dense ``int32`` indices and the sorted ids that they point into."""
    name = ids.name
    if ids.dtype.is_integer():
        low, high = int(ids.min()), int(ids.max())  # type: ignore[arg-type]
        if high - low < 4 * len(ids) + 1024:
            # Ids are near enough together for a table, which needs no sorting.
            table = np.zeros(high - low + 1, dtype=bool)
            parts = range(0, len(ids), _PART_ROWS)
            for start in parts:
                table[ids.slice(start, _PART_ROWS).to_numpy() - low] = True
            known = np.flatnonzero(table)
            position = np.cumsum(table, dtype=np.int32)
            position -= np.int32(1)
            index = np.empty(len(ids), dtype=np.int32)
            for start in parts:
                index[start : start + _PART_ROWS] = position[ids.slice(start, _PART_ROWS).to_numpy() - low]
            return index, pl.Series(name, known + low)
    known_ids = ids.unique().sort()
    table_frame = pl.DataFrame({name: known_ids, "index": np.arange(len(known_ids), dtype=np.int32)})
    joined = ids.to_frame().join(table_frame, on=name, how="left", maintain_order="left")
    return joined["index"].to_numpy(), known_ids


def _time_order(users: np.ndarray, timestamps: np.ndarray | None) -> np.ndarray:
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
    return _order_by(users, timestamps)


def _order_by(users: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Stable order by user, then value."""
    order = _stable_order(values)
    return order[_stable_order(users[order])]


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """Stable argsort. Key and place in one word sort several times faster than with an index beside them."""
    low = int(keys.min())
    if int(keys.max()) - low < 2**31 and len(keys) < 2**32:
        words = keys.astype(np.int64)
        words -= low
        words <<= 32
        words |= np.arange(len(keys), dtype=np.uint32)
        words.sort()
        words &= 0xFFFFFFFF
        return words
    return np.argsort(keys, kind="stable")


def _duplicates(users: np.ndarray, items: np.ndarray, rule: Duplicates) -> np.ndarray | None:
    """Which interactions stay, or None for all; the input is ordered by user and time."""
    if rule == "keep" or len(users) == 0:
        return None
    keep = np.ones(len(users), dtype=bool)
    if rule == "drop-consecutive":
        keep[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        return keep
    order = _order_by(users, items)  # stable: the first interaction with an item comes first
    users, items = users[order], items[order]
    keep[order[1:]] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return keep


def _core(
    users: np.ndarray, items: np.ndarray, num_users: int, num_items: int, config: PrepareConfig
) -> np.ndarray | None:
    """Which interactions stay in the k-core, or None for all."""
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


def counts_of(values: np.ndarray, size: int) -> np.ndarray:
    """How often each of 0 to ``size - 1`` occurs, ``int64[size]``."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(values), max(_PART_ROWS, size)):
        counts += np.bincount(values[start : start + max(_PART_ROWS, size)], minlength=size)
    return counts


def _compact(indices: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Close the gaps that the filters left."""
    used = np.zeros(len(ids), dtype=bool)
    used[indices] = True
    if used.all():
        return indices, ids
    position = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return position[indices], ids.filter(pl.Series(used))


def _statistics(lengths: np.ndarray, num_items: int, tied: float | None) -> Statistics:
    total = int(lengths.sum())
    return Statistics(
        users=len(lengths),
        items=num_items,
        interactions=total,
        density=total / (len(lengths) * num_items) if total else 0.0,
        median_length=float(np.median(lengths)),
        p90_length=float(np.percentile(lengths, 90)),
        max_length=int(lengths.max()),
        tied_timestamps=tied,
    )


def _is_whole(dataset: Dataset, interactions: int) -> bool:
    """Whether the parts fit each other, without going through the interactions."""
    offsets = dataset.offsets
    return (
        all(getattr(dataset, name).dtype == dtype for name, dtype in _ARRAYS.items())
        and dataset.items.shape == dataset.timestamps.shape == (interactions,)
        and offsets.shape == (len(dataset.user_ids) + 1,)
        and bool(offsets[0] == 0 and offsets[-1] == interactions and (offsets[1:] >= offsets[:-1]).all())
    )


def _lookup(table: pl.Series, ids: Iterable[Any] | pl.Series, missing: int) -> np.ndarray:
    if isinstance(ids, str | bytes):
        raise InputError(f"give a list of ids, not the single {ids!r}")
    asked = ids if isinstance(ids, pl.Series) else pl.Series(list(ids), strict=False)
    if len(asked) == 0:
        return np.empty(0, dtype=np.int64)
    if asked.dtype.is_float():
        # A column of ids with gaps comes as floats; 7.0 is the id 7, and 7.5 is none.
        whole = asked.cast(pl.Int64, strict=False)
        asked = whole.set(whole.cast(asked.dtype) != asked, None)
    # '7' from a command line and 7 from a program name the same id, whichever the log holds; '007' is another.
    try:
        text, asked = asked, asked.cast(table.dtype, strict=False).alias("id")
        if text.dtype == pl.String and asked.dtype.is_integer():
            asked = asked.set(asked.cast(pl.String) != text, None)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"ids are integers or strings; these are {asked.dtype}") from error
    frame = pl.DataFrame({"id": table, "index": np.arange(len(table), dtype=np.int64)})
    found = asked.to_frame().join(frame, on="id", how="left", maintain_order="left")["index"]
    return found.fill_null(missing).to_numpy()
