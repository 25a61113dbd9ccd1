"""The Dataset: interactions as arrays, and tables of ids."""

import os
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
from seqrec.data.saved import FILES, FORMER_FILES, Saved, fingerprint_of, write_files
from seqrec.data.statistics import Statistics, counts_of, statistics_of
from seqrec.errors import InputError
from seqrec.files import replacing_folder

__all__ = ["Dataset", "Statistics", "fingerprint"]

_FEW = 8  # up to one user in so many is checked by itself, more of them with everything


@dataclass(frozen=True, eq=False)
class Dataset:
    """The interactions as arrays, ordered by user and then time.

    ``items int32[N]`` (1 to ``num_items``; 0 is padding and never occurs), ``timestamps int64[N]``
    (Unix seconds; the line number where the log has no times), ``offsets int64[U + 1]``: the history
    of user ``u`` is ``items[offsets[u]:offsets[u + 1]]``. ``users`` and ``catalogue`` are the tables of
    ids: ``user_ids[u]`` and ``item_ids[i - 1]`` are the ids of the log, sorted.

    User ``u`` also met ``met_items int32[M][met_offsets[u]:met_offsets[u + 1]]`` in interactions that the filters
    dropped; both are None where there are none. They are no part of any history: nothing is trained on them or ranked
    against them, they are only not recommended.

    ``saved`` is set where the dataset was opened from files: then the arrays and tables stay on the disk, mapped, and
    :meth:`check_users` or :meth:`check` comes before their first use.

    ``item_table`` holds titles, categories and whatever else is known of the items; None where nothing is. It is not
    part of the fingerprint.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    users: IdTable
    catalogue: IdTable
    has_timestamps: bool
    before: Statistics | None = field(default=None, compare=False)  # the log before the filters
    filters: dict[str, Any] | None = field(default=None, compare=False)  # those of ``PrepareConfig``; None: unknown
    met_items: np.ndarray | None = None
    met_offsets: np.ndarray | None = None
    item_table: ItemTable | None = field(default=None, compare=False)
    saved: Saved | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.saved is not None and not self.saved.holds(vars(self)):  # dataclasses.replace has exchanged an array
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
        """The ids of all users, by index. In a dataset that was opened from files, the first use reads them all."""
        return self.users.series

    @property
    def item_ids(self) -> pl.Series:
        """The ids of all items: that of item ``i`` is at ``i - 1``. Read at the first use, as ``user_ids`` are."""
        return self.catalogue.series

    @cached_property
    def statistics(self) -> Statistics:
        """Size and shape of what is kept."""
        self.check()
        same = None
        if self.has_timestamps:
            same = self.timestamps[1:] == self.timestamps[:-1]
            same[self.offsets[1:-1] - 1] = False  # the last of one user and the first of the next
        return statistics_of(np.diff(self.offsets), self.num_items, self.items, self.timestamps, same)

    @cached_property
    def item_counts(self) -> np.ndarray:
        """Interactions of each item, ``int64[I + 1]``; entry 0 is 0."""
        if self.saved is not None and not self.saved.checked:
            check_items(self.saved)
        return counts_of(self.items, self.num_items + 1)

    @cached_property
    def seen_keys(self) -> np.ndarray:
        """Sorted ``user * (I + 1) + item``, ``int64[N]``: answers 'has this user met this item'."""
        self.check()
        keys = np.repeat(np.arange(self.num_users, dtype=np.int64) * (self.num_items + 1), np.diff(self.offsets))
        keys += self.items
        keys.sort()
        return keys

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the interactions and ids, to tell whether it is the same; costs one pass over all of them."""
        return fingerprint_of(vars(self))

    def user_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index of each id, -1 where it is unknown; 128, "128" and 128.0 are one id."""
        return self.users.find(_listed(ids))

    def item_indices(self, ids: Iterable[Any] | pl.Series) -> np.ndarray:
        """``int64`` index (from 1) of each id, 0 where it is unknown; 128, "128" and 128.0 are one id."""
        return self.catalogue.find(_listed(ids)) + 1

    def with_items(self, items: Any) -> "Dataset":
        """The same interactions with an item table of what :func:`read_items` takes."""
        return replace(self, item_table=describe(items, self.item_ids, self.item_table))

    def check(self) -> "Dataset":
        """Check all that is in the files that the dataset was opened from, if any and once: it reads them whole.

        Whatever uses all interactions does this by itself: splitting, training, evaluating, statistics.

        Raises:
            InputError: a file is damaged, holds a value out of range, or is of another dataset.
        """
        if self.saved is not None and not self.saved.checked:
            check_everything(self.saved)
            if self.saved.item_table is not None:
                self.saved.item_table.read()
            self.saved.checked = True
        return self

    def check_users(self, users: np.ndarray) -> None:
        """Like :meth:`check`, for the histories of some users alone, by index; -1 is nobody."""
        if self.saved is None or self.saved.checked:
            return
        users = users[users >= 0]
        if len(users) * _FEW > self.num_users:
            self.check()
        elif len(users):
            check_histories(self.saved, users)

    def save(self, folder: str | Path) -> None:
        """Write the arrays and id tables to ``folder``, whole or not at all.

        An older dataset there is replaced.

        Raises:
            InputError: the folder holds anything else, or cannot be written.
        """
        folder = Path(folder)
        foreign = sorted(set(os.listdir(folder)) - FILES - FORMER_FILES) if folder.is_dir() else []
        if foreign:
            raise InputError(f"{folder}: holds other files ({foreign[0]}), which would be lost; give a new folder")
        with replacing_folder(folder) as new:
            self.write_to(new)

    def write_to(self, folder: Path) -> None:
        """Write the files to a folder that was just made, such as one that :func:`replacing_folder` gives."""
        self.check()
        write_files(folder, vars(self), self.fingerprint)

    @classmethod
    def load(cls, folder: str | Path, advice: str = "prepare it again") -> "Dataset":
        """Open a saved dataset; the arrays and ids stay on the disk and are memory-mapped.

        This costs milliseconds whatever the size: what the files hold is read, and compared with checksums and ranges,
        when it is used. ``Dataset.load(folder).check()`` reads and checks all of it at once.

        Args:
            folder: what :meth:`save` wrote.
            advice: what an error says is to be done about a damaged file.

        Raises:
            InputError: a file is missing, cut off, a link, or of another format.
        """
        return cls(**Saved(Path(folder), advice).fields())


def fingerprint(dataset: Dataset) -> str:
    """A digest of a dataset's interactions and ids, to tell whether it is the same."""
    return dataset.fingerprint


def _listed(ids: Iterable[Any] | pl.Series) -> pl.Series:
    if isinstance(ids, str | bytes):
        raise InputError(f"give a list of ids, not the single {ids!r}")
    return ids_of(ids)
