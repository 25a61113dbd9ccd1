"""Locks a run folder for writing, replaces an old run by a new one, and recovers from killed processes.

A run that replaces another is written to a hidden folder next to it, ``.NAME.xxxxxxxx.new``. Once it has weights, the
old run is renamed to ``.NAME.xxxxxxxx.old`` and the new one to ``NAME``. The old run is removed when the work has
ended. So ``NAME`` is a complete run at any moment except between the two renames, and after a kill the hidden folders
show how far the work had come.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from seqrec.errors import InputError, RunWarning, warn
from seqrec.files import all_beside, beside, exchange, explain_os_error, explained, looked_at, sync_folder, sync_tree
from seqrec.run.layout import is_begun, is_run, is_usable, keep_modes, remove_run, sorted_out
from seqrec.run.lock import InUseError, Lock

Result = TypeVar("Result")


class Place:
    """A run folder that only this process may write to, inside a ``with`` block.

    Args:
        folder: run folder, which need not exist.

    Raises:
        InputError: on entering the block, if another process is writing there, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.shown = Path(folder)
        self.folder = Path(os.path.realpath(self.shown))
        self.current = self.folder  # folder of the run that is being written
        self.made: bool | None = None  # True for a new run, False for a resumed one, None before either
        self._lock = Lock(self.folder, self.shown)
        self._held: list[tuple[Path, _Held]] = []
        self._parents: list[Path] = []

    def __enter__(self) -> "Place":
        if not self.folder.name:
            raise InputError(f"{self.shown}: cannot be a run folder; name a folder below it")
        try:
            self._parents = [parent for parent in self.folder.parents if not parent.exists()]
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, self.shown) from error
        try:
            self._lock.take()
        except BaseException:
            self._forget_parents()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        del kind, trace
        try:
            if error is None:
                self._clear_old()
                return
            current, fate = self.current, self._give_up(error)
            if isinstance(error, InputError):
                text = str(error).replace(str(current), str(self.shown)).replace(str(self.folder), str(self.shown))
                error.args = ("; ".join(filter(None, [text, fate])),)
            elif fate:
                error.add_note(fate)
        finally:
            for _, held in self._held:
                held.close()
            self._lock.release()
            self._forget_parents()

    def settle(self, resume: bool, overwrite: bool) -> bool:
        """Clean up after a killed process. Returns whether there is a run to resume.

        Raises:
            InputError: the folder holds something that may not be overwritten.
        """
        recover(self.folder, self.shown, resume=resume, overwrite=overwrite)
        if resume and is_run(self.folder):
            return True
        check_free(self.shown, overwrite)
        if self.folder.exists() and Path(os.path.realpath(os.curdir)).is_relative_to(self.folder):
            raise InputError(f"{self.shown}: cannot be written (it is the working directory); run this from elsewhere")
        return False

    @contextmanager
    def making(self) -> Iterator[Path]:
        """Yield a temporary folder for the first files of a new run. The run appears completely or not at all.

        If the place already holds a run, the new one stays in a hidden folder until :meth:`take_over`.
        """
        partial = beside(self.folder, "partial")
        self.made = True
        try:
            with explained(self.shown):
                replaces = self.folder.is_dir() and any(self.folder.iterdir())
                partial.mkdir()
                yield partial
                if self.folder.is_dir():
                    keep_modes(self.folder, partial)
                sync_tree(partial)
                if replaces:
                    self._hold(self.folder)
                    self.current = beside(self.folder, "new")
                elif self.folder.is_dir():
                    self.folder.rmdir()
                partial.rename(self.current)
                sync_folder(self.current.parent)
                self._hold(self.current)
        finally:
            _remove(partial)

    def unfinished(self) -> list[Path]:
        """The new runs that killed processes left, the latest first."""
        return all_beside(self.folder, "new")

    def go_on(self, run: Path) -> None:
        """Resume a run: the one in the place, or a new one that will replace it."""
        for new in self.unfinished():
            if new != run and not is_begun(new):
                _remove(new)
        if run != self.folder:
            self._hold(self.folder)
        self.current = run
        self.made = False
        self._hold(run)

    def check(self) -> None:
        """Raise an InputError if somebody removed or replaced the run, or the old run that it will replace."""
        for path, held in self._held:
            if not held.is_still(path) or not is_run(path):
                raise InputError(
                    f"{self.shown}: was removed or replaced while the run was being written; nothing more was written, "
                    "train again"
                )

    def take_over(self, unfinished: bool = False) -> None:
        """Replace the old run by the new one, if that has weights and is not in its place yet."""
        if self.current == self.folder or not (unfinished or is_usable(self.current)):
            return
        self.check()
        with explained(self.shown):
            keep_modes(self.folder, self.current)
            exchange(self.folder, self.current, beside(self.folder, "old"))
        (_, before), (_, now) = self._held
        before.close()
        self._held = [(self.folder, now)]
        self.current = self.folder

    def _give_up(self, error: BaseException) -> str:
        """Keep what can be used after an error. Returns a text that describes it."""
        if not self._held:
            return f"{self.shown} is unchanged" if self.made and is_run(self.folder) else ""
        again = isinstance(error, InputError) and not isinstance(error.__cause__, OSError)
        is_there = self._held[-1][1].is_still(self.folder)  # asks the disk: an interrupt may come between two renames
        if self.current != self.folder and not is_there:
            before = f"{self.shown} is unchanged" if is_run(self.folder) else f"{self.shown} is gone"
            if is_begun(self.current) and not again:
                return f"{before}, --resume continues the new run (kept in {self.current.name})"
            _remove(self.current)
            return f"{before}, nothing of the new run is kept"
        if not is_there:
            return ""
        replaced = bool(all_beside(self.folder, "old"))
        self._clear_old()
        if replaced:
            return f"{self.shown} holds the new run with its best saved weights, the old run was removed"
        if is_begun(self.folder) or not self.made or (is_usable(self.folder) and not again):
            return (
                "" if isinstance(error, InputError) else f"{self.shown} holds the progress so far, --resume continues"
            )
        _remove(self.folder)
        return "" if isinstance(error, InputError) else f"nothing is kept in {self.shown}"

    def _clear_old(self) -> None:
        if is_usable(self.folder):
            for old in all_beside(self.folder, "old"):
                _remove(old)

    def _hold(self, path: Path) -> None:
        self._held.append((path, _Held(path)))

    def _forget_parents(self) -> None:
        for parent in self._parents:
            try:
                parent.rmdir()  # created for a run that was not written
            except OSError:
                return


class _Held:
    """The folder that a path leads to now, to recognise it later. While it is open, its inode is not reused."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        self._about = path.stat()
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError:
            return  # Windows cannot open folders, and does not reuse their numbers
        self._about = os.fstat(self._file)

    def is_still(self, path: Path) -> bool:
        """Whether the path still leads there."""
        try:
            return os.path.samestat(self._about, path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Close the folder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def check_ways(out: Any, resume: bool, overwrite: bool) -> None:
    """Refuse ways to write a run that contradict each other."""
    if (resume or overwrite) and out is None:
        raise InputError("resume and overwrite need a run folder; give out")
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other; give one")


def check_free(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse an output folder that holds something, unless it is a run that may be overwritten."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder that does not exist yet")
    try:
        if not any(folder.iterdir()):
            return
        # A damaged run may be overwritten too, so only the names of files matter, not their content.
        foreign = sorted_out(folder)[2] if is_run(folder) else []
    except OSError as error:
        raise explain_os_error(error, folder) from error
    if not is_run(folder):
        raise InputError(f"{folder}: holds something that is not a run; choose another folder")
    if overwrite and foreign:
        raise InputError(f"{folder}: holds other files too ({foreign[0]}), which would be lost; choose another folder")
    if not overwrite:
        raise InputError(f"{folder}: already holds a run; continue it with --resume, replace it with --overwrite")


def recover(folder: Path, shown: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Restore or remove what a killed process left next to a run folder, and warn. The caller must hold the lock.

    Args:
        folder: run folder, without symbolic links.
        shown: name of the folder in messages.
        resume: keep an unfinished new run, which the caller resumes.
        overwrite: remove unfinished new runs.
    """
    with explained(shown):
        for partial in all_beside(folder, "partial"):
            _remove(partial)
        is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        has_no_weights = is_run(folder) and not is_usable(folder)
        olds = all_beside(folder, "old")
        old = next((old for old in olds if is_usable(old) or (is_empty and is_run(old))), None)
        if old is not None and (is_empty or has_no_weights):
            if is_empty and folder.exists():
                folder.rmdir()
            elif not is_empty:
                folder.rename(beside(folder, "new"))
            old.rename(folder)
            _say(f"{shown}: a process that was replacing this run was killed; the old run is back in its place")
            is_empty = False
        news = all_beside(folder, "new")
        new = next((new for new in news if is_begun(new) or is_usable(new)), None)
        if is_empty and new is not None:
            if folder.exists():
                folder.rmdir()
            new.rename(folder)
            _say(f"{shown}: is the new run that a killed process was writing; the old run is gone")
        for new in all_beside(folder, "new"):
            if overwrite or not (resume or is_begun(new)):
                _remove(new)
                _say(f"{shown}: is unchanged; an unfinished new run of a killed process was removed")
            elif not resume:
                _say(
                    f"{shown}: is unchanged; a process that was replacing it was killed, and its new run is kept in "
                    f"{new.name}: --resume continues it, --overwrite starts again"
                )
        if is_usable(folder):
            for old in all_beside(folder, "old"):
                if not _remove(old):
                    _say(f"{shown}: replaced an old run before its process was killed; the old run was removed")
        else:
            for old in all_beside(folder, "old"):
                if is_usable(old):
                    _say(f"{shown}: an old run that was being replaced is in {old}; move it to another name")
                else:
                    _remove(old)


def reading(folder: str | Path, read: Callable[[], Result]) -> Result:
    """Read a run folder that another process may be replacing, so that the result comes from a single run.

    Args:
        folder: run folder.
        read: function that reads the folder. It is called again if the run was replaced meanwhile.
    """
    shown = Path(folder)
    with looked_at(shown):
        real = Path(os.path.realpath(shown))
        holder = _before_reading(real, shown)
    error: InputError | None = None
    replaced = True  # what was wrong may be a mixture of two runs
    for _ in range(10):
        held = _Held(real) if real.is_dir() else None
        try:
            result = read()
            if held is not None and held.is_still(real):
                if holder:
                    _say(f"{shown}: {holder} writes there; this is its current content")
                return result
        except InputError as caught:
            error = caught
            if held is not None and held.is_still(real):
                replaced = False
                break
            holder = holder or _before_reading(real, shown)
            if held is None and not holder and not real.is_dir():
                break
            time.sleep(0.05)  # there is no run between the two renames
        finally:
            if held is not None:
                held.close()
    if error is None or (replaced and real.is_dir()):
        raise InputError(f"{shown}: {holder or 'another process'} keeps replacing it; try again later")
    if holder:
        raise InputError(f"{error}; {holder} writes there, try again later") from error
    raise error


def _before_reading(folder: Path, shown: Path) -> str | None:
    """Clean up after a killed process. Returns the process that is writing there, if any."""
    lock = Lock(folder, shown)
    if not lock.path.exists() and not any(all_beside(folder, kind) for kind in ("old", "new", "partial")):
        return None
    holder = lock.holder()
    if holder is not None:
        return holder
    try:
        lock.take()
    except InUseError:
        return "another process"
    except InputError:
        left = [*all_beside(folder, "old"), *all_beside(folder, "new")]
        if left:
            _say(f"{shown}: a killed process left {left[0]}, which cannot be cleaned up without write access")
        return None
    try:
        recover(folder, shown)
    except InputError as error:
        _say(str(error))
    finally:
        lock.release()
    return None


def _remove(folder: Path) -> list[str]:
    """Remove a run, except files that are not its own. Warns about those, and returns their names."""
    if not folder.is_dir():
        return []
    try:
        if not sorted_out(folder)[2] and not folder.name.startswith("."):
            gone = beside(folder, "partial")  # if this is killed midway, the next process removes the rest
            folder.rename(gone)
            folder = gone
        foreign = remove_run(folder)
    except OSError as error:
        _say(f"{folder}: cannot be removed ({error.strerror}); it may hold histories of users")
        return [folder.name]
    if foreign:
        _say(f"{folder}: is kept, because it holds a file that is not part of a run ({foreign[0]}); move that away")
    return foreign


def _say(text: str) -> None:
    warn(text, RunWarning)
