"""A lock, so that one process at a time writes to a run folder. The system releases it if the process is killed."""

import errno
import os
import socket
import time
from pathlib import Path

from seqrec.errors import InputError, RunWarning, warn
from seqrec.files import explain_os_error

_MARK = "seqrec"
_LOCKED_BYTE = 2**30  # on Windows nobody can read locked bytes, so a byte beyond the content is locked
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


class InUseError(InputError):
    """Another process holds the lock."""


class Lock:
    """A lock on a run folder: a file beside it, which exists while the lock is held.

    Args:
        folder: run folder, without symbolic links. It need not exist, but its parent must.
        shown: name of the folder in messages.
    """

    def __init__(self, folder: Path, shown: Path) -> None:
        self.folder, self.shown = folder, shown
        self.path = folder.with_name(f".{folder.name}.lock")
        self._file: int | None = None

    def take(self, patience: float = 0.5) -> None:
        """Take the lock. This waits for up to ``patience`` seconds, because readers hold the lock for a moment.

        Raises:
            InUseError: another process, or another thread of this process, has the lock.
            InputError: the lock file cannot be created.
        """
        end = time.monotonic() + patience
        while self._file is None:
            try:
                self._try()
            except InUseError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.02)
            except OSError as error:
                raise explain_os_error(error, self.shown) from error

    def _try(self) -> None:
        file, is_file = self._open()
        try:
            content = _read(file) if is_file else b""
            if content and not content.startswith(_MARK.encode()):
                raise InputError(f"{self.path}: is not a lock of seqrec; move it away, or choose another run folder")
            try:
                _lock(file)
            except OSError as error:
                if error.errno in _BUSY:
                    content = _read(file) if is_file else b""
                    raise InUseError(
                        f"{self.shown}: is in use by {_holder(content)}; wait for that to end, or choose another folder"
                    ) from error
                text = f"{self.shown}: this file system has no locks ({error.strerror}); make sure nobody else writes"
                warn(text, RunWarning)
            if is_file and not self._is_there(file):
                return  # its former holder removed it; the next attempt creates it again
            if is_file:
                _note(file)
            self._file, file = file, -1
        finally:
            if file >= 0:
                os.close(file)

    def _open(self) -> tuple[int, bool]:
        """Open the lock file; if it cannot be created or written, open the run folder itself instead."""
        flags = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            return os.open(self.path, os.O_RDWR | flags, 0o666), True
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            try:
                return os.open(self.path if self.path.exists() else self.folder, os.O_RDONLY), self.path.exists()
            except OSError:
                raise error from None

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            if self._is_there(file):
                self.path.unlink(missing_ok=True)
        except OSError:
            pass  # on Windows, or if the folder became read-only, the file stays; it blocks nobody
        try:
            _unlock(file)  # closing is not enough: a forked child has the file open too
        except OSError:
            pass
        finally:
            os.close(file)

    def holder(self) -> str | None:
        """The holder of the lock, for messages, or None."""
        if not self.path.exists():
            return None
        try:
            content = self.path.read_bytes()[:500]
            self.take(0)
        except InUseError:
            return _holder(content)
        except (InputError, OSError):
            return None
        self.release()
        return None


def _read(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, 500)


def _note(file: int) -> None:
    """Write the holder into the lock file. The lock also works if a full disk does not take the holder."""
    try:
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        os.write(file, f"{_MARK}\n{os.getpid()}\n{socket.gethostname()}\n{since}\n".encode())
    except OSError:
        pass


def _holder(content: bytes) -> str:
    lines = content.decode(errors="replace").splitlines()
    if len(lines) < 4:
        return "another process"
    _, number, host, since = (line if line.isprintable() else ascii(line) for line in lines[:4])
    same = number == str(os.getpid()) and host == socket.gethostname()
    return f"{'this process' if same else f'process {number}'} on {host} since {since}"


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(file: int) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_UN)
