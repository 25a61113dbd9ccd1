"""Writing files so that a crash or a full disk leaves the old content, never half of the new."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from seqrec.errors import InputError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def explain_os_error(error: OSError, path: Path) -> InputError:
    """The one line for a file that can't be written."""
    # numpy reports a short write without an errno: "20000 requested and 218 written".
    if error.errno in _NO_ROOM or "No space left" in str(error) or " requested and " in str(error):
        return InputError(f"{path}: no space left on the disk; free some or choose another folder")
    reason = error.strerror or str(error)
    return InputError(f"{path}: cannot be written ({reason}); check the path and its permissions")


def _of_the_disk(error: OSError | pl.exceptions.ComputeError) -> OSError:
    """The error of the disk, which polars and safetensors wrap: '... No space ... (os error 28)'."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, OSError):
        return error
    if "transport error" in str(error):  # polars forgets the number while it writes the end of a Parquet file
        return OSError(errno.EIO, "the disk may be full")
    raise error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success flush it to disk and rename it to ``path``.

    On any failure the temporary file is removed and ``path`` is as it was. ``OSError`` becomes an
    ``InputError`` of one line.
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_relative_to("/dev") or (path.exists() and not (path.is_file() or path.is_dir())):
            yield path  # a device or a pipe, which a file renamed over it would destroy
            return
        if path.is_dir():  # known before the work, not after it
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.is_symlink():
            path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's 0600 would hide the file from colleagues
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, pl.exceptions.ComputeError) as error:
        raise explain_os_error(_of_the_disk(error), path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Like :func:`replacing`, for a folder that is written whole; all that ``path`` held goes."""
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
        with kept_aside(path):
            temporary.replace(path)
        sync(path.parent)
    except (OSError, pl.exceptions.ComputeError) as error:
        raise explain_os_error(_of_the_disk(error), path) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def kept_aside(path: str | Path) -> Iterator[None]:
    """Move a folder aside while another is made in its place; put it back where that fails and leaves nothing."""
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if not path.exists():
        yield
        return
    try:
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        try:
            path.replace(old)
        except BaseException:
            old.rmdir()
            raise
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        yield
    finally:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(path)


def is_left_over(name: str) -> bool:
    """Whether a file of this name was being written when a process was killed: by us, or by safetensors beside it."""
    return re.fullmatch(r"\..*\.partial|\.tmp\w{6}", name) is not None


def remove_left_over(folder: Path) -> None:
    """Remove files that a killed process left half written in a folder."""
    for path in folder.rglob(".*"):
        if is_left_over(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def remove_beside(folder: Path) -> None:
    """Remove what a killed process left of a folder's replacement: what it was to replace, or half of the new."""
    folder = folder.resolve()
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.????????.*"):
        if path.suffix in (".old", ".partial") and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def make_folder(folder: Path) -> bool:
    """Make the folder, before hours of training rather than after them; whether it was not there."""
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
    """Flush a file or folder to the disk, so that a power cut after the rename finds the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
