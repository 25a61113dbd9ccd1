"""What a Dataset holds is checked before it is used: all of it, or what is known of a few users.

A dataset that was opened from files may come from anybody. After these checks its items may index arrays of
``num_items + 1`` and its offsets its items, and its histories are in the order of time.
"""

from typing import TYPE_CHECKING

import numpy as np

from seqrec.data.statistics import PART_ROWS

if TYPE_CHECKING:
    from seqrec.data.dataset import Dataset

LATEST = 2**62  # so that differences of times have 64 bits
_DISORDER = "a history is not in the order of time"
_BEYOND_TIME = "a timestamp is out of range"
_MET_MISFIT = "what the filters dropped does not fit"


def check_everything(dataset: "Dataset") -> None:
    """Read all files of a dataset that was opened from some, and refuse what is damaged or out of range."""
    saved = dataset.saved
    assert saved is not None
    for array in saved.arrays.values():
        array.check()
    if wrong := fault_of(dataset) or (None if met_fits(dataset) else _MET_MISFIT):
        raise saved.damaged(wrong)
    dataset.users.check()
    dataset.catalogue.check()
    if dataset.fingerprint != saved.facts["fingerprint"]:
        raise saved.damaged("its files are not those that were saved together")


def check_items(dataset: "Dataset") -> None:
    """Like :func:`check_everything`, for all items alone."""
    saved = dataset.saved
    assert saved is not None
    saved.arrays["items"].check()
    for start in range(0, dataset.num_interactions, PART_ROWS):
        if wrong := _beyond(dataset, dataset.items[start : start + PART_ROWS]):
            raise saved.damaged(wrong)


def check_histories(dataset: "Dataset", users: np.ndarray) -> None:
    """Like :func:`check_everything`, for the histories of some users, and what the filters dropped of them."""
    saved = dataset.saved
    assert saved is not None
    saved.arrays["offsets"].check(users, users + 2)
    starts, ends = dataset.offsets[users], dataset.offsets[users + 1]
    for name in ("items", "timestamps"):
        saved.arrays[name].check(starts, ends)
    for rows, places in _in_groups(starts, ends):
        times = dataset.timestamps[places]
        wrong = _beyond(dataset, dataset.items[places]) or _beyond_time(times)
        if wrong is None and ((rows[1:] == rows[:-1]) & (times[1:] < times[:-1])).any():
            wrong = _DISORDER
        if wrong:
            raise saved.damaged(wrong)
    if dataset.met_items is None or dataset.met_offsets is None:
        return
    saved.arrays["met_offsets"].check(users, users + 2)
    starts, ends = dataset.met_offsets[users], dataset.met_offsets[users + 1]
    saved.arrays["met_items"].check(starts, ends)
    for _, places in _in_groups(starts, ends):
        if _beyond(dataset, dataset.met_items[places]):
            raise saved.damaged(_MET_MISFIT)


def fault_of(dataset: "Dataset") -> str | None:
    """What is wrong with the values of a dataset: a short phrase, or None."""
    offsets, items, timestamps = dataset.offsets, dataset.items, dataset.timestamps
    if offsets[0] != 0 or offsets[-1] != len(items) or (offsets[1:] < offsets[:-1]).any():
        return "the histories do not follow each other"
    for start in range(0, len(items), PART_ROWS):
        times = timestamps[start : start + PART_ROWS + 1]  # and the one after, to compare with
        if wrong := _beyond(dataset, items[start : start + PART_ROWS]) or _beyond_time(times):
            return wrong
        falls = np.flatnonzero(times[1:] < times[:-1]) + start + 1
        if len(falls) and not (offsets[np.searchsorted(offsets, falls).clip(max=len(offsets) - 1)] == falls).all():
            return _DISORDER
    return None


def met_fits(dataset: "Dataset") -> bool:
    """Whether ``met_items`` and ``met_offsets`` fit the dataset, or are both left out."""
    items, offsets = dataset.met_items, dataset.met_offsets
    if items is None or offsets is None:
        return items is None and offsets is None
    return (
        bool(offsets[0] == 0 and offsets[-1] == len(items) and (offsets[1:] >= offsets[:-1]).all())
        and _beyond(dataset, items) is None
    )


def _beyond(dataset: "Dataset", items: np.ndarray) -> str | None:
    if len(items) and (items.min() < 1 or items.max() > dataset.num_items):
        return f"an item is not one of the {dataset.num_items} in the catalogue"
    return None


def _beyond_time(times: np.ndarray) -> str | None:
    return _BEYOND_TIME if len(times) and (times.min() <= -LATEST or times.max() >= LATEST) else None


def _in_groups(starts: np.ndarray, ends: np.ndarray) -> "list[tuple[np.ndarray, np.ndarray]]":
    """The rows of some ranges and their places, in groups of about :data:`PART_ROWS` places."""
    lengths = ends - starts
    found = []
    groups = np.cumsum(lengths) // PART_ROWS
    for group in np.unique(groups).tolist():
        chosen = np.flatnonzero(groups == group)
        rows = np.repeat(chosen, lengths[chosen])
        first = np.cumsum(lengths[chosen]) - lengths[chosen]
        found.append((rows, np.arange(len(rows)) - np.repeat(first, lengths[chosen]) + starts[rows]))
    return found
