"""The Dataset: interactions as arrays, with tables of ids."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.checks import check_everything, check_histories, check_items
from seqrec.data.id_table import IdTable
from seqrec.data.ids import ids_of
from seqrec.data.items import ItemTable, describe
from seqrec.data.saved import Saved, check_replaced, fingerprint_of, write_files
from seqrec.data.statistics import Statistics, counts_of, statistics_of
from seqrec.data.users import UserTable, describe_users
from seqrec.errors import InputError
from seqrec.files import replacing_folder

__all__ = ["Dataset", "Statistics", "fingerprint"]

_CHECK_ALL = 8  # if more than one user in 8 is needed, the whole dataset is checked instead


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions as arrays, ordered by user and then by time.

    ``items int32[N]`` (1 to ``num_items``; 0 is padding and never occurs), ``timestamps int64[N]``
    (Unix seconds; row numbers if the log has no times), ``offsets int64[U + 1]``: the history
    of user ``u`` is ``items[offsets[u]:offsets[u + 1]]``. ``users`` and ``catalogue`` are the tables of
    ids, sorted: ``user_ids[u]`` is the id of user ``u`` in the log, ``item_ids[i - 1]`` the id of item ``i``.

    ``met_items int32[M]`` and ``met_offsets int64[U + 1]`` hold the interactions that the rating filter dropped: user
    ``u`` met ``met_items[met_offsets[u]:met_offsets[u + 1]]``. They are not part of any history and are not used in
    training or evaluation; the items are only excluded from recommendations. Both are None if there are none.

    ``saved`` is set if the dataset was opened from files. The arrays and tables are then memory-mapped, and
    :meth:`check_users` or :meth:`check` must be called before their first use.

    ``item_table`` holds titles, categories and other facts about the items, ``user_table`` facts about the users; or
    they are None. They are not part of the fingerprint.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    users: IdTable
    catalogue: IdTable
    has_timestamps: bool
    before: Statistics | None = field(default=None, compare=False)  # the log before the filters
    filters: dict[str, Any] | None = field(default=None, compare=False)  # fields of PrepareConfig; None: unknown
    met_items: np.ndarray | None = None
    met_offsets: np.ndarray | None = None
    item_table: ItemTable | None = field(default=None, compare=False)
    user_table: UserTable | None = field(default=None, compare=False)
    saved: Saved | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.saved is not None and not self.saved.holds(vars(self)):  # dataclasses.replace changed an array
            object.__setattr__(self, "saved", None)

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """Number of real items I; an embedding table has I + 1 rows."""
        return len(self.catalogue)

    @property
    def num_interactions(self) -> int:
        """Number of interactions N."""
        return len(self.items)

    @property
    def user_ids(self) -> pl.Series:
        """Ids of all users, by index. For a dataset opened from files, the first use reads them all."""
        return self.users.series

    @property
    def item_ids(self) -> pl.Series:
        """Ids of all items; the id of item ``i`` is at ``i - 1``. Read at the first use, like ``user_ids``."""
        return self.catalogue.series

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the interactions, after the filters."""
        self.check()
        same = None
        if self.has_timestamps:
            same = self.timestamps[1:] == self.timestamps[:-1]
            same[self.offsets[1:-1] - 1] = False  # last of one user, first of the next
        return statistics_of(np.diff(self.offsets), self.num_items, self.items, self.timestamps, same)

    @cached_property
    def item_counts(self) -> np.ndarray:
        """Number of interactions of each item, ``int64[I + 1]``; entry 0 is 0."""
        if self.saved is not None and not self.saved.checked:
            check_items(self.saved)
        return counts_of(self.items, self.num_items + 1)

    @cached_property
    def seen_keys(self) -> np.ndarray:
        """Sorted keys ``user * (I + 1) + item``, ``int64[N]``, to look up whether a user has met an item."""
        self.check()
        keys = np.repeat(np.arange(self.num_users, dtype=np.int64) * (self.num_items + 1), np.diff(self.offsets))
        keys += self.items
        keys.sort()
        return keys

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the interactions and ids, which identifies the dataset. Costs one pass over the data."""
        return fingerprint_of(vars(self))

    def user_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """Index of each id, ``int64``; -1 if it is unknown. 128, "128" and 128.0 are the same id."""
        return self.users.find(_listed(ids))

    def item_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """Index (from 1) of each id, ``int64``; 0 if it is unknown. 128, "128" and 128.0 are the same id."""
        return self.catalogue.find(_listed(ids)) + 1

    def with_items(self, items: Any) -> "Dataset":
        """The same interactions with an item table made from ``items``, in any form that :func:`read_items` takes."""
        return replace(self, item_table=describe(items, self.item_ids, self.item_table))

    def with_users(self, users: Any) -> "Dataset":
        """The same interactions with a user table made from ``users``; see :func:`describe_users`."""
        return replace(self, user_table=describe_users(users, self.user_ids))

    def check(self) -> "Dataset":
        """Read and check the files that the dataset was opened from. Does nothing the second time, or without files.

        Splitting, training, evaluation and statistics call this themselves, because they use all interactions.

        Raises:
            InputError: a file is damaged, holds a value out of range, or belongs to another dataset.
        """
        if self.saved is not None and not self.saved.checked:
            check_everything(self.saved)
            self.read_tables()
            self.saved.checked = True
        return self

    def read_tables(self) -> None:
        """Read and check the tables of items and users now; see :meth:`seqrec.data.table.Table.read`."""
        for table in (self.item_table, self.user_table):
            if table is not None:
                table.read()

    def check_users(self, users: np.ndarray) -> None:
        """Like :meth:`check`, but only for the histories of some users, by index; -1 is skipped."""
        if self.saved is None or self.saved.checked:
            return
        users = users[users >= 0]
        if len(users) * _CHECK_ALL > self.num_users:
            self.check()
        elif len(users):
            check_histories(self.saved, users)

    def save(self, folder: str | Path) -> None:
        """Write the dataset to ``folder``, completely or not at all, replacing an older dataset there.

        Raises:
            InputError: the folder holds other files, or cannot be written.
        """
        folder = Path(folder)
        check_replaced(folder)
        with replacing_folder(folder) as new:
            self.write_to(new)

    def write_to(self, folder: Path) -> None:
        """Write the files to a new, empty folder, such as :func:`replacing_folder` provides."""
        self.check()
        write_files(folder, vars(self), self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path, advice: str = "prepare it again") -> "Dataset":
        """Open a saved dataset; its arrays and ids are memory-mapped.

        Opening takes milliseconds whatever the size. The content is read, and checked against checksums and ranges,
        when it is used; ``Dataset.load(folder).check()`` reads and checks everything at once.

        Args:
            folder: folder that :meth:`save` wrote.
            advice: advice in the error about a damaged file.

        Raises:
            InputError: a file is missing, cut off, a symbolic link, or has another format.
        """
        return cls(**Saved(Path(folder), advice).fields())


def fingerprint(dataset: Dataset) -> str:
    """Digest of a dataset's interactions and ids, which identifies it."""
    return dataset.fingerprint


def _listed(ids: Iterable[Any] | pl.Series) -> pl.Series:
    if isinstance(ids, str | bytes):
        raise InputError(f"give a list of ids, not the single {ids!r}")
    return ids_of(ids)
