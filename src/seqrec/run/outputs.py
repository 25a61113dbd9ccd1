"""Checks that results do not overwrite the log, another input file, or the files of a run."""

import os
from collections.abc import Iterable
from pathlib import Path

from seqrec.data.saved import FACTS, FORMER_FILES
from seqrec.errors import InputError
from seqrec.files import looked_at
from seqrec.run.layout import CONFIG, DATA, FOLDERS, WEIGHTS, is_own, sorted_out


def check_outputs(
    *outputs: str | Path | None, reads: Iterable[str | Path | None] = (), run: str | Path | None = None
) -> None:
    """Refuse outputs that would destroy an input or a run, before any work is done.

    Symbolic and hard links are followed, and case is ignored. Files with names that a run does not use may be written
    into a run folder.

    Args:
        outputs: files to write. None and ``-`` (standard output) are skipped.
        reads: files that are read, or folders of such files.
        run: run folder that is read or written, if any. It need not exist.

    Raises:
        InputError: an output would destroy something.
    """
    files = [Path(output) for output in outputs if output is not None and output != "-"]
    inputs = [Path(path) for path in reads if path is not None]
    for number, file in enumerate(files):
        with looked_at(file):
            real = Path(os.path.realpath(file))
            for path in inputs:
                if _is_of(real, path):
                    raise InputError(f"{file}: is the input {path}, or a part of it; write to another file")
            if any(real == Path(os.path.realpath(other)) or _same(real, other) for other in files[:number]):
                raise InputError(f"{file}: is given for two results; write each to its own file")
            folder = Path(os.path.realpath(run)) if run is not None else None
            if real.is_dir():
                raise InputError(f"{file}: cannot be written (Is a directory); name a file")
            if real == folder:
                raise InputError(f"{file}: is the run folder; write to a file")
            if _is_of_run(real, folder):
                raise InputError(f"{file}: is a file of a run, which would be destroyed; write to another file")


def check_log(log: str | Path, run: str | Path) -> None:
    """Refuse a log inside the run folder that has the name of one of the run's files."""
    with looked_at(run):
        is_inside = Path(log).is_file() and _is_of_run(Path(os.path.realpath(log)), Path(os.path.realpath(run)))
    if is_inside:
        raise InputError(f"{run}: the log ({log}) is in the way of a file of the run; choose another folder")


def _is_of(file: Path, path: Path) -> bool:
    """Whether a file is an input, or one of the parts in an input folder."""
    if not path.is_dir():
        return _same(file, path) or file == Path(os.path.realpath(path))
    inside = file.is_relative_to(os.path.realpath(path))
    if inside and (file.exists() or ".parquet" in file.name.lower() or file.suffix.lower() == ".pq"):
        return True
    return file.exists() and file.stat().st_nlink > 1 and any(_same(file, part) for part in path.rglob("*"))


def _is_of_run(file: Path, folder: Path | None) -> bool:
    """Whether a file has the name of a run's file, in this run folder or any other, or is a link to one."""
    name = file.name.casefold()
    parents = file.parent, file.parent.parent
    is_inside = parents[0].name.casefold() in FOLDERS and _is_one(parents[1], folder)
    if is_inside or (_is_one(parents[0], folder) and (is_own(name) or name in FOLDERS)):
        return True
    if folder is None or not folder.is_dir() or not file.exists():
        return False
    return any(_same(file, folder / own) for own in sorted_out(folder)[0])


def _is_one(place: Path, folder: Path | None) -> bool:
    """Whether a folder is the given run folder, or another run. A folder with only a config.json is not a run."""
    if folder is not None and (place == folder or _same(place, folder)):
        return True
    names = (WEIGHTS, f"{DATA}/{FACTS}", *FORMER_FILES)
    return (place / CONFIG).is_file() and any((place / name).is_file() for name in names)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
