"""The place of a run: who may write there, how a new run replaces an old one, and what killed processes left beside it.

A run that replaces another is made in a hidden folder beside it, ``.NAME.xxxxxxxx.new``. Once it has weights, the old
one is renamed to ``.NAME.xxxxxxxx.old``, the new one to ``NAME``, and when the work has ended the old one is removed.
So ``NAME`` is a complete run at any moment except between the two renames, and after a kill the folders beside it tell
how far the work was.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from seqrec.errors import InputError, RunWarning, warn
from seqrec.files import all_beside, beside, exchange, explain_os_error, explained, looked_at, sync_folder, sync_tree
from seqrec.run.layout import is_begun, is_run, is_usable, keep_modes, remove_run, sorted_out
from seqrec.run.lock import InUseError, Lock

Result = TypeVar("Result")


class Place:
    """A run folder that only this process may write to, inside a ``with`` block.

    Args:
        folder: the run folder, which need not exist.

    Raises:
        InputError: on entering, if another process is working there, or the folder cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.shown = Path(folder)
        self.folder = Path(os.path.realpath(self.shown))
        self.current = self.folder  # where the run that is being written stands
        self.made: bool | None = None  # whether it was made here, rather than gone on with; None before either
        self._lock = Lock(self.folder, self.shown)
        self._held: list[tuple[Path, _Held]] = []
        self._parents: list[Path] = []

    def __enter__(self) -> "Place":
        if not self.folder.name:
            raise InputError(f"{self.shown}: is no run folder; name a folder below it")
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
        """Put right what a killed process left; return whether there is a run to go on with.

        Raises:
            InputError: the place holds something that may not be overwritten.
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
        """Give a folder to write a new run's first files to. It appears completely or not at all.

        If the place holds a run, the new one stays beside it until :meth:`take_over`.
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
        """The runs that killed processes were going to put here, the latest first."""
        return all_beside(self.folder, "new")

    def go_on(self, run: Path) -> None:
        """Go on with a run that is there: the one of the place, or one that is to replace it."""
        for new in self.unfinished():
            if new != run and not is_begun(new):
                _remove(new)
        if run != self.folder:
            self._hold(self.folder)
        self.current = run
        self.made = False
        self._hold(run)

    def check(self) -> None:
        """Refuse to write if somebody removed or replaced the run, or the one that it is going to replace."""
        for path, held in self._held:
            if not held.is_still(path) or not is_run(path):
                raise InputError(
                    f"{self.shown}: was removed or replaced while the run was being written; nothing more is written "
                    "there, train again"
                )

    def take_over(self, unfinished: bool = False) -> None:
        """Replace the old run by the new one, once that has weights. Does nothing if it is in its place already."""
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
        """Keep what can be used after an error; return the words that say what that is."""
        if not self._held:
            return f"{self.shown} is the run that it was before" if self.made and is_run(self.folder) else ""
        again = isinstance(error, InputError) and not isinstance(error.__cause__, OSError)
        is_there = self._held[-1][1].is_still(self.folder)  # on the disk: an interrupt may come between two renames
        if self.current != self.folder and not is_there:
            before = f"{self.shown} is the run that it was before" if is_run(self.folder) else f"{self.shown} is gone"
            if is_begun(self.current) and not again:
                return f"{before}, --resume goes on with the new one (kept in {self.current.name})"
            _remove(self.current)
            return f"{before}, nothing is kept of the new one"
        if not is_there:
            return ""
        replaced = bool(all_beside(self.folder, "old"))
        self._clear_old()
        if replaced:
            return f"{self.shown} holds the new run with its best weights so far, the one before it is removed"
        if is_begun(self.folder) or not self.made or (is_usable(self.folder) and not again):
            return "" if isinstance(error, InputError) else f"{self.shown} holds what was learnt, --resume goes on"
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
                parent.rmdir()  # made for a run that never came
            except OSError:
                return


class _Held:
    """The folder that a path leads to now, to recognise it later: while it is open, no other gets its number."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        self._about = path.stat()
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError:
            return  # Windows opens no folders; its numbers come but once
        self._about = os.fstat(self._file)

    def is_still(self, path: Path) -> bool:
        """Whether the path still leads there."""
        try:
            return os.path.samestat(self._about, path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Let the folder go."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


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
        # A damaged run may be overwritten, so its content is not read: only what else would be lost counts.
        foreign = sorted_out(folder)[2] if is_run(folder) else []
    except OSError as error:
        raise explain_os_error(error, folder) from error
    if not is_run(folder):
        raise InputError(f"{folder}: holds something that is not a run; choose another folder")
    if overwrite and foreign:
        raise InputError(f"{folder}: holds other files too ({foreign[0]}), which would be lost; choose another folder")
    if not overwrite:
        raise InputError(f"{folder}: already holds a run; go on with --resume, replace it with --overwrite")


def recover(folder: Path, shown: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Restore or sweep what a killed process left beside a run folder, and say so. The lock must be held.

    Args:
        folder: the run folder, without symbolic links.
        shown: what messages call it.
        resume: a run that was to replace this one is left for the caller to go on with.
        overwrite: it is removed.
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
            _say(f"{shown}: a process that was to replace this run was killed; the run before it is back in its place")
            is_empty = False
        news = all_beside(folder, "new")
        new = next((new for new in news if is_begun(new) or is_usable(new)), None)
        if is_empty and new is not None:
            if folder.exists():
                folder.rmdir()
            new.rename(folder)
            _say(f"{shown}: is the run that a killed process was writing to replace the one before it, which is gone")
        for new in all_beside(folder, "new"):
            if overwrite or not (resume or is_begun(new)):
                _remove(new)
                _say(f"{shown}: is the run that it was; what a killed process left of one to replace it is removed")
            elif not resume:
                _say(
                    f"{shown}: is the run that it was; one to replace it was cut off and is kept in {new.name}: "
                    "--resume goes on with it, --overwrite begins anew"
                )
        if is_usable(folder):
            for old in all_beside(folder, "old"):
                if not _remove(old):
                    _say(f"{shown}: replaced another run before its process was killed; that one is removed")
        else:
            for old in all_beside(folder, "old"):
                if is_usable(old):
                    _say(f"{shown}: a run that was to be replaced is in {old}; move it to another name")
                else:
                    _remove(old)


def reading(folder: str | Path, read: Callable[[], Result]) -> Result:
    """Read a run folder that another process may be writing to or replacing, so that all of it is of one run.

    Args:
        folder: the run folder.
        read: reads all that is wanted.
    """
    shown = Path(folder)
    with looked_at(shown):
        real = Path(os.path.realpath(shown))
        holder = _before_reading(real, shown)
    error: InputError | None = None
    for _ in range(10):
        held = _Held(real) if real.is_dir() else None
        try:
            result = read()
            if held is not None and held.is_still(real):
                if holder:
                    _say(f"{shown}: {holder} writes there; this is what it holds now")
                return result
        except InputError as caught:
            error = caught
            if held is not None and held.is_still(real):
                break
            holder = holder or _before_reading(real, shown)
            if held is None and not holder and not real.is_dir():
                break
            time.sleep(0.05)  # between the two renames there is none
        finally:
            if held is not None:
                held.close()
    if error is None:
        raise InputError(f"{shown}: is replaced again and again by {holder or 'another process'}; try again later")
    if holder:
        raise InputError(f"{error}; {holder} writes there, try again later") from error
    raise error


def _before_reading(folder: Path, shown: Path) -> str | None:
    """Put right what a killed process left; return who is working there, if anybody."""
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
            _say(f"{shown}: a killed process left {left[0]}, which cannot be put right from here")
        return None
    try:
        recover(folder, shown)
    except InputError as error:
        _say(str(error))
    finally:
        lock.release()
    return None


def _remove(folder: Path) -> list[str]:
    """Remove a run, except files of others; say where they are and return their names."""
    if not folder.is_dir():
        return []
    try:
        if not sorted_out(folder)[2] and not folder.name.startswith("."):
            gone = beside(folder, "partial")  # killed midway, it is known for what it is
            folder.rename(gone)
            folder = gone
        foreign = remove_run(folder)
    except OSError as error:
        _say(f"{folder}: cannot be removed ({error.strerror}); it may hold the histories of people")
        return [folder.name]
    if foreign:
        _say(f"{folder}: is kept, as it holds a file that is not of a run ({foreign[0]}); move that away")
    return foreign


def _say(text: str) -> None:
    warn(text, RunWarning)
