"""Writes files atomically: a crash or a full disk leaves the old content, never half of the new."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from seqrec.errors import InputError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def explain_os_error(error: OSError, path: Path) -> InputError:
    """The error for a file that cannot be written."""
    # numpy reports a short write without an errno: "20000 requested and 218 written".
    if error.errno in _NO_ROOM or "No space left" in str(error) or " requested and " in str(error):
        return InputError(f"{path}: no space left on the disk; free some or choose another folder")
    reason = error.strerror or str(error)
    return InputError(f"{path}: cannot be written ({reason}); check the path and its permissions")


def _unwrapped(error: OSError | pl.exceptions.ComputeError) -> OSError:
    """The operating system's error, which polars and safetensors wrap: '... No space ... (os error 28)'."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, OSError):
        return error
    if "transport error" in str(error):  # polars loses the number when it writes the end of a Parquet file
        return OSError(errno.EIO, "the disk may be full")
    raise error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of writing to disk into an ``InputError`` about ``path``."""
    try:
        yield
    except (OSError, pl.exceptions.ComputeError) as error:
        raise explain_os_error(_unwrapped(error), path) from error


@contextmanager
def looked_at(path: str | Path) -> Iterator[None]:
    """Turn an error of opening a path into an ``InputError``: a name is too long, a folder is not accessible."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be opened ({reason}); check the path and its permissions") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Provide a temporary file beside ``path``; on success it is flushed to disk and renamed to ``path``.

    On failure the temporary file is removed and ``path`` stays as it was. A replaced file keeps its permissions; a
    new one gets the permissions that the umask allows. ``OSError`` becomes an ``InputError`` of one line.
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_relative_to("/dev") or (path.exists() and not (path.is_file() or path.is_dir())):
            yield path  # a device or a pipe; renaming a file over it would destroy it
            return
        if path.is_dir():  # fail before the work, not after it
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.is_symlink():
            path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(path, "partial")
        # Not mkstemp: it creates files with mode 0600, which colleagues could not read.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        mode = (path if path.exists() else temporary).stat().st_mode & 0o777
        temporary.chmod(mode | 0o600)
        yield temporary
        sync(temporary)
        temporary.chmod(mode)  # other libraries may have replaced the file with a new one
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, pl.exceptions.ComputeError) as error:
        raise explain_os_error(_unwrapped(error), path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Like :func:`replacing`, for a folder: everything in ``path`` is replaced by the new folder."""
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    temporary = old = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(path, "partial")
        temporary.mkdir()
        yield temporary
        sync_tree(temporary)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
        old = beside(path, "old")
        exchange(path, temporary, old)
    except (OSError, pl.exceptions.ComputeError) as error:
        raise explain_os_error(_unwrapped(error), path) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if old is not None and path.exists():
            shutil.rmtree(old, ignore_errors=True)


def beside(path: Path, kind: str) -> Path:
    """An unused hidden name beside a path, ``.NAME.xxxxxxxx.KIND``, which :func:`all_beside` can find again."""
    while True:
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")
        if not os.path.lexists(name):
            return name


def all_beside(path: Path, kind: str) -> list[Path]:
    """Folders beside a path with names from :func:`beside`, latest first."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.{kind}")
    try:
        with os.scandir(path.parent) as entries:
            found = [entry for entry in entries if pattern.fullmatch(entry.name)]
            folders = [entry for entry in found if entry.is_dir(follow_symlinks=False)]
            folders.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns, reverse=True)
    except OSError:
        return []
    return [Path(entry.path) for entry in folders]


def exchange(path: Path, new: Path, old: Path) -> None:
    """Rename the folder ``path``, if it exists, to ``old``, and ``new`` to ``path``; a failure changes nothing."""
    try:
        if path.is_dir():
            path.replace(old)
        new.replace(path)
    except BaseException:
        if not path.exists() and old.exists():
            old.replace(path)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> bool:
    """Create a folder, and return whether it is new. Called before a long training, so that a bad path fails early."""
    if folder.is_dir():
        return False
    if folder.exists():
        raise InputError(f"{folder}: is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return True


def sync(path: Path) -> None:
    """Flush a file to disk, so that its content survives a power cut after the rename."""
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to disk, if the system supports it; Windows does not."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a new folder and the files in it to disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            sync(file)
    sync_folder(folder)
