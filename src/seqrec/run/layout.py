"""What a run folder holds, by name: its own files, which may be removed, and those of others, which may not."""

import os
import re
from pathlib import Path

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
ITEMS = "items.parquet"
USERS = "users.parquet"
METRICS = "metrics.json"
EPOCHS = "epochs.csv"
STATE = "state/training.safetensors"
_OWN = {CONFIG, WEIGHTS, ITEMS, USERS, METRICS, EPOCHS, "training.png", "recommendations.png"}
_STATE = re.compile(r"training\.safetensors|mean-\d+\.safetensors")


def is_own(name: str, state: bool = False) -> bool:
    """Whether a run, or its ``state`` folder, has a file of this name."""
    return _STATE.fullmatch(name) is not None if state else name in _OWN


def is_left_over(name: str, state: bool = False) -> bool:
    """Whether a file of this name was being written when a process was killed: by us, or by safetensors beside it."""
    half = re.fullmatch(r"\.(.+)\.\w+\.partial", name)
    return is_own(half[1], state) if half else re.fullmatch(r"\.tmp\w{6}", name) is not None


def sorted_out(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """The names in a run folder, by path in it: its own files, what a killed process left, and what is of others."""
    own, left, foreign = [], [], []
    todo = [("", folder)]
    for prefix, place in todo:
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if name == "state" and is_folder:
                    todo.append(("state/", place / name))
                elif is_folder:
                    foreign.append(name)
                elif is_own(entry.name, bool(prefix)):
                    own.append(name)
                elif is_left_over(entry.name, bool(prefix)):
                    left.append(name)
                else:
                    foreign.append(name)
    return own, left, foreign


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, finished or not."""
    return (folder / CONFIG).is_file()


def is_usable(folder: Path) -> bool:
    """Whether a folder is a run that answers: it has weights."""
    return all((folder / name).is_file() for name in (CONFIG, ITEMS, USERS, WEIGHTS))


def is_begun(folder: Path) -> bool:
    """Whether a folder is a run with a checkpoint to go on from."""
    return is_run(folder) and (folder / STATE).is_file()


def remove_left_over(folder: Path) -> None:
    """Remove files that a killed process left half written in a run folder."""
    for name in sorted_out(folder)[1]:
        (folder / name).unlink(missing_ok=True)


def remove_run(folder: Path) -> list[str]:
    """Remove a run's own files, and the folder where that empties it; the names of others' files, which stay.

    The configuration goes first: without it nobody takes the rest for a run.
    """
    own, left, foreign = sorted_out(folder)
    own.sort(key=lambda name: name != CONFIG)
    for name in own + left:
        (folder / name).unlink(missing_ok=True)
    for place in (folder / "state", folder):
        if place.is_dir() and not place.is_symlink() and not any(place.iterdir()):
            place.rmdir()
    return foreign


def keep_modes(old: Path, new: Path) -> None:
    """Give the files of a run, and its folder, the permissions that those before them had."""
    for name in ["", *sorted_out(old)[0]]:
        if (new / name).exists() and not (old / name).is_symlink():
            (new / name).chmod((old / name).stat().st_mode & 0o777)
