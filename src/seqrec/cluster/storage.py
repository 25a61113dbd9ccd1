"""Folders that several machines read and write: on a file system that they share, or at a URL, through pyarrow."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import TYPE_CHECKING, NamedTuple

from seqrec.errors import InputError, one_line
from seqrec.files import replacing, replacing_folder
from seqrec.run.lock import Lock

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_OBJECTS = {"s3", "gcs", "abfs"}  # stores that show an object once it is complete
_PATIENCE = 3600.0  # seconds to wait for another process of this machine that copies the same folder


class FileFacts(NamedTuple):
    """Size in bytes and time of the last change in nanoseconds since 1970."""

    size: int
    changed: int


@dataclass(frozen=True)
class Folder:
    """A folder on a file system or in an object store, which need not exist. It can be sent to other processes.

    Args:
        shown: the folder as it was given, for messages.
        system: its file system.
        path: its path there.
    """

    shown: str
    system: "FileSystem"
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is on a file system of this machine."""
        return bool(self.system.type_name == "local")

    def files(self) -> dict[str, FileFacts]:
        """All files in the folder and below it, by their names relative to it; empty if there is no folder."""
        from pyarrow.fs import FileSelector, FileType

        with self._explained():
            found = self.system.get_file_info(FileSelector(self.path, recursive=True, allow_not_found=True))
        base = self.path.rstrip("/") + "/"
        files = (one for one in found if one.type != FileType.Directory)
        return {one.path.removeprefix(base): FileFacts(one.size or 0, one.mtime_ns or 0) for one in files}

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self._explained(), self.system.open_input_file(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, completely or not at all: other processes see the old one or the new one."""
        path = f"{self.path}/{name}"
        if self.is_local:
            with replacing(path) as new:
                new.write_bytes(content)
            return
        with self._explained():
            if self.system.type_name in _OBJECTS:
                self._put(path, content)
                return
            partial = f"{self.path}/.{name}.{os.urandom(4).hex()}.partial"
            self.system.create_dir(self.path)
            self._put(partial, content)
            if self.system.get_file_info(path).is_file:
                self.system.delete_file(path)  # HDFS does not rename over a file
            self.system.move(partial, path)

    def _put(self, path: str, content: bytes) -> None:
        file = self.system.open_output_stream(path)
        file.write(content)  # if this fails, the file is not closed, which would complete the object
        file.close()

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._explained():
            self.system.delete_file(f"{self.path}/{name}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.shown}: cannot be used ({one_line(error)}); check the name and the access"
            ) from error


def is_url(location: str | Path) -> bool:
    """Whether a location is a URL, such as ``s3://bucket/folder``, and not a path."""
    return _URL.match(str(location)) is not None


def without_keys(location: str | Path) -> str:
    """A location for messages: a URL without the keys and options that it may hold."""
    return re.sub("//[^/@]*@", "//", str(location)).partition("?")[0] if is_url(location) else str(location)


def absolute(location: str | Path) -> str:
    """A location as every process finds it, whatever its working directory."""
    return str(location) if is_url(location) else os.path.abspath(location)


def filesystem_at(location: str | Path) -> tuple["FileSystem", str]:
    """The file system of a path or URL (``s3://``, ``gs://``, ``hdfs://``, ``file://``), and the path in it.

    Raises:
        InputError: the URL is not one that pyarrow can open.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not is_url(location):
        return LocalFileSystem(), os.path.abspath(location)
    try:
        system, path = FileSystem.from_uri(str(location))
    except (ArrowException, OSError, ValueError, ImportError) as error:
        shown = without_keys(location)
        reason = one_line(error).replace(str(location), shown)
        raise InputError(
            f"{shown}: cannot be opened ({reason}); give a folder, or a URL such as s3://BUCKET/FOLDER"
        ) from error
    return system, path.rstrip("/")


def folder_at(location: str | Path) -> Folder:
    """The folder at a path or URL, as :func:`filesystem_at` takes it.

    Raises:
        InputError: the URL is not one that pyarrow can open, or names no folder.
    """
    system, path = filesystem_at(location)
    if not is_url(location):
        return Folder(str(location), system, path)
    shown = without_keys(location)
    if path in ("", "."):
        raise InputError(f"{shown}: names no folder; give a URL such as s3://BUCKET/FOLDER")
    return Folder(shown, system, path)


def local_copy(location: str | Path) -> Path:
    """A folder on this machine: the given one, or a copy of the folder at a URL, for memory-mapping.

    All processes of a machine share one copy, in the folder for temporary files, and the first of them makes it. If the
    files at the URL change, the next call copies them again and removes the former copy.

    Raises:
        InputError: there is no such folder, or it cannot be read or copied.
    """
    if not is_url(location):
        return Path(os.path.abspath(location))
    source = folder_at(location)
    files = source.files()
    if not files:
        raise InputError(f"{source.shown}: no such folder, or it is empty; check the URL")
    if wrong := next((name for name in files if ".." in PurePosixPath(name).parts or "\\" in name), None):
        raise InputError(f"{source.shown}: holds {wrong}, which cannot be copied; remove it")
    name, state = (
        hashlib.sha256(repr(value).encode()).hexdigest()[:16] for value in (str(location), sorted(files.items()))
    )
    home = _own_folder()
    copy = home / f"{name}-{state}"
    lock = Lock(home / name, copy)
    lock.take(_PATIENCE)
    try:
        if not copy.is_dir():
            _download(source, copy)
            for former in home.glob(f"{name}-*"):
                if former != copy:
                    rmtree(former, ignore_errors=True)
    finally:
        lock.release()
    return copy


def _download(source: Folder, copy: Path) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    with source._explained(), replacing_folder(copy) as new:
        copy_files(source.path, str(new), source_filesystem=source.system, destination_filesystem=LocalFileSystem())


def _own_folder() -> Path:
    """A folder for temporary files that only this user can write to."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"seqrec-{user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if folder.is_symlink() or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
        raise InputError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    return folder
