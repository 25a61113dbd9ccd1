"""Checks the content of a dataset opened from files before it is used: all of it, or the data of a few users.

The files may come from anybody. After these checks, items are safe as indices of arrays with ``num_items + 1`` rows,
offsets are safe as indices of the items, and histories are in time order.
"""

import numpy as np

from seqrec.data.saved import Saved, fingerprint_of
from seqrec.data.statistics import PART_ROWS

LATEST = 2**62  # so that differences of times fit into 64 bits
_DISORDER = "a history is not in time order"
_BEYOND_TIME = "a timestamp is out of range"
_MET_MISFIT = "the interactions that the filters dropped do not match the dataset"


def check_everything(saved: Saved) -> None:
    """Read all files of a dataset; raises if one is damaged, has values out of range, or belongs to another dataset."""
    for array in saved.arrays.values():
        array.check()
    if wrong := _fault_of(saved) or (None if _met_fits(saved) else _MET_MISFIT):
        raise saved.damaged(wrong)
    saved.users.check()
    saved.catalogue.check()
    if fingerprint_of(saved.fields()) != saved.facts["fingerprint"]:
        raise saved.damaged("its files were not saved together")


def check_items(saved: Saved) -> None:
    """Like :func:`check_everything`, but only for the array of items."""
    saved.arrays["items"].check()
    items = saved.arrays["items"].array
    for start in range(0, len(items), PART_ROWS):
        if wrong := _beyond(saved, items[start : start + PART_ROWS]):
            raise saved.damaged(wrong)


def check_histories(saved: Saved, users: np.ndarray) -> None:
    """Like :func:`check_everything`, but only for the histories and dropped interactions of some users."""
    items, timestamps = saved.arrays["items"], saved.arrays["timestamps"]
    starts, ends = _ranges(saved, "offsets", users)
    items.check(starts, ends)
    timestamps.check(starts, ends)
    for rows, places in _in_groups(starts, ends):
        times = timestamps.array[places]
        wrong = _beyond(saved, items.array[places]) or _beyond_time(times)
        if wrong is None and ((rows[1:] == rows[:-1]) & (times[1:] < times[:-1])).any():
            wrong = _DISORDER
        if wrong:
            raise saved.damaged(wrong)
    if "met_items" in saved.arrays:
        starts, ends = _ranges(saved, "met_offsets", users)
        saved.arrays["met_items"].check(starts, ends)
        for _, places in _in_groups(starts, ends):
            if _beyond(saved, saved.arrays["met_items"].array[places]):
                raise saved.damaged(_MET_MISFIT)


def _ranges(saved: Saved, name: str, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the interactions of each user."""
    offsets = saved.arrays[name]
    offsets.check(users, users + 2)
    return offsets.array[users], offsets.array[users + 1]


def _fault_of(saved: Saved) -> str | None:
    """Describe a fault of the interactions in a short phrase; None if there is none."""
    offsets, items, timestamps = (saved.arrays[name].array for name in ("offsets", "items", "timestamps"))
    if offsets[0] != 0 or offsets[-1] != len(items) or (offsets[1:] < offsets[:-1]).any():
        return "the histories do not follow each other"
    for start in range(0, len(items), PART_ROWS):
        times = timestamps[start : start + PART_ROWS + 1]  # with the one after, for comparison
        if wrong := _beyond(saved, items[start : start + PART_ROWS]) or _beyond_time(times):
            return wrong
        falls = np.flatnonzero(times[1:] < times[:-1]) + start + 1
        if len(falls) and not (offsets[np.searchsorted(offsets, falls).clip(max=len(offsets) - 1)] == falls).all():
            return _DISORDER
    return None


def _met_fits(saved: Saved) -> bool:
    """Whether the dropped interactions, if any, match the dataset."""
    if "met_items" not in saved.arrays:
        return True
    items, offsets = saved.arrays["met_items"].array, saved.arrays["met_offsets"].array
    follow = offsets[0] == 0 and offsets[-1] == len(items) and (offsets[1:] >= offsets[:-1]).all()
    return bool(follow) and _beyond(saved, items) is None


def _beyond(saved: Saved, items: np.ndarray) -> str | None:
    most = saved.facts["items"]
    if len(items) and (items.min() < 1 or items.max() > most):
        return f"an item is not one of the {most} in the catalogue"
    return None


def _beyond_time(times: np.ndarray) -> str | None:
    return _BEYOND_TIME if len(times) and (times.min() <= -LATEST or times.max() >= LATEST) else None


def _in_groups(starts: np.ndarray, ends: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row and position of every element of some ranges, in groups of about :data:`PART_ROWS` elements."""
    lengths = ends - starts
    found = []
    groups = np.cumsum(lengths) // PART_ROWS
    for group in np.unique(groups).tolist():
        chosen = np.flatnonzero(groups == group)
        rows = np.repeat(chosen, lengths[chosen])
        first = np.cumsum(lengths[chosen]) - lengths[chosen]
        found.append((rows, np.arange(len(rows)) - np.repeat(first, lengths[chosen]) + starts[rows]))
    return found
