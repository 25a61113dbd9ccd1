"""File names in a run folder. Files of the run may be removed; files of others may not."""

import os
import re
from pathlib import Path
from typing import Any

from seqrec.data.saved import FACTS, FILES, FORMER_FILES

CONFIG = "config.json"
#: Options of training that may differ when a run is resumed. They do not change the result, except that another device
#: or number of threads rounds differently, and that the last epoch is always validated.
RESUMABLE = ("epochs", "device", "threads", "checkpoint_minutes")
WEIGHTS = "weights.safetensors"
TRAIN_WEIGHTS = "weights-train.safetensors"
#: Transition counts that are added to the scores of the model.
TRANSITIONS = "transitions.safetensors"
DATA = "data"
METRICS = "metrics.json"
EPOCHS = "epochs.csv"
STATE = "state/training.safetensors"
#: The facts of a checkpoint of a divided table, whose tensors are in a folder.
SHARDED = "state/sharded.json"
#: The weights of another run that training starts from.
START = "state/start.safetensors"
#: ``mean-…`` are running means, which earlier versions wrote to files of their own.
_STATE = re.compile(r"start\.safetensors|(refit-(all|valid)-\d+-)?((training|mean-\d+)\.safetensors|sharded\.json)")
_CHECKPOINT = re.compile(r"state/(refit-(all|valid)-\d+-)?sharded-\d+-\d+")
_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
#: Names of a run's files, by folder. Runs of format 1, with users and items in Parquet files, may be replaced too.
_OWN: dict[str, frozenset[str] | re.Pattern[str]] = {
    "": FORMER_FILES
    | {CONFIG, WEIGHTS, TRAIN_WEIGHTS, TRANSITIONS, METRICS, EPOCHS, "training.png", "recommendations.png"},
    DATA: FILES,
    "state": _STATE,
}
#: Files of a run and patterns of their names, by folder, for :func:`seqrec.data.checked.check_files`.
KNOWN: dict[str, Any] = {
    **dict.fromkeys((CONFIG, WEIGHTS, TRAIN_WEIGHTS, TRANSITIONS, METRICS, EPOCHS)),
    DATA: dict.fromkeys(FILES),
    "state": dict.fromkeys(
        ("training.safetensors", "start.safetensors", "mean-*.safetensors", "refit-*.safetensors", "sharded.json")
    ),
}
FOLDERS = tuple(folder for folder in _OWN if folder)


def is_own(name: str, folder: str = "") -> bool:
    """Whether this is the name of a file of a run, at its root or in one of its :data:`FOLDERS`."""
    known = _SHARD if _CHECKPOINT.fullmatch(folder) else _OWN[folder]
    return name in known if isinstance(known, frozenset) else known.fullmatch(name) is not None


def is_left_over(name: str, folder: str = "") -> bool:
    """Whether this is the name of a temporary file of seqrec or safetensors, left by a process that was killed."""
    half = re.fullmatch(r"\.(.+)\.\w+\.partial", name)
    return is_own(half[1], folder) if half else re.fullmatch(r"\.tmp\w{6}", name) is not None


def sorted_out(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """The relative paths of files in a run folder: the run's own, those that a killed process left, and others."""
    own, left, foreign = [], [], []
    todo = [""]
    for inside in todo:
        with os.scandir(folder / inside) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{inside}/{entry.name}" if inside else entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder and (name in FOLDERS or _CHECKPOINT.fullmatch(name)):
                    todo.append(name)
                elif is_folder:
                    foreign.append(name)
                elif is_own(entry.name, inside):
                    own.append(name)
                elif is_left_over(entry.name, inside):
                    left.append(name)
                else:
                    foreign.append(name)
    return own, left, foreign


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, finished or not."""
    return (folder / CONFIG).is_file()


def is_usable(folder: Path) -> bool:
    """Whether a folder is a run with weights. Runs of format 1 count too, so that they are never lost."""
    is_there = (folder / DATA / FACTS).is_file() or all((folder / name).is_file() for name in FORMER_FILES)
    return is_there and all((folder / name).is_file() for name in (CONFIG, WEIGHTS))


def is_begun(folder: Path) -> bool:
    """Whether a folder is a run with a checkpoint to resume from."""
    return is_run(folder) and any((folder / name).is_file() for name in (STATE, SHARDED))


def remove_left_over(folder: Path) -> None:
    """Remove the half-written files that a killed process left in a run folder."""
    for name in sorted_out(folder)[1]:
        (folder / name).unlink(missing_ok=True)


def remove_run(folder: Path) -> list[str]:
    """Remove a run's own files, and each folder that is then empty. Returns the names of other files, which stay.

    The configuration is removed first, because files without a configuration do not count as a run.
    """
    own, left, foreign = sorted_out(folder)
    own.sort(key=lambda name: name != CONFIG)
    for name in own + left:
        (folder / name).unlink(missing_ok=True)
    checkpoints = [place for place in folder.glob("state/*") if _CHECKPOINT.fullmatch(f"state/{place.name}")]
    for place in (*checkpoints, *(folder / name for name in FOLDERS), folder):
        if place.is_dir() and not place.is_symlink() and not any(place.iterdir()):
            place.rmdir()
    return foreign


def keep_modes(old: Path, new: Path) -> None:
    """Give the files and folders of a run the permissions that they had in the old run.

    Data files that the old run lacked may also hold ids and histories of users. They get the permissions of the old
    run's interactions.
    """
    modes = {name: _mode(old / name) for name in ["", *FOLDERS, *sorted_out(old)[0]] if _is_plain(old / name)}
    usual = next((modes[name] for name in (f"{DATA}/items.npy", "users.parquet") if name in modes), None)
    for name in ["", *FOLDERS, *sorted_out(new)[0]]:
        mode = modes.get(name, usual if name.startswith(f"{DATA}/") else None)
        if mode is not None and _is_plain(new / name):
            (new / name).chmod(mode)


def _is_plain(path: Path) -> bool:
    return path.exists() and not path.is_symlink()


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
