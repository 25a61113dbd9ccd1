"""The event store in an SQLite file, for one machine; several processes may use the file at once."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from seqrec.errors import InputError, one_line
from seqrec.files import looked_at, sync_folder
from seqrec.serve.event import Event, StoreError, check_events, check_most, check_texts

APPLICATION = 0x73716576  # "sqev", in the header of the file
VERSION = 1
_PATIENCE = 5.0  # seconds to wait for a lock
# The primary key is the order of arrival: SQLite gives each new row the largest key + 1, and no row is ever deleted.
_SCHEMA = f"""
CREATE TABLE events (arrival INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, user TEXT NOT NULL, item TEXT NOT NULL,
                     time INTEGER NOT NULL);
CREATE INDEX events_by_user ON events (user, time, arrival);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""
_ADD = "INSERT INTO events (id, user, item, time) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
_READ = "SELECT id, user, item, time FROM events WHERE user = ? ORDER BY time DESC, arrival DESC LIMIT ?"
_FIND = "SELECT id, user, item, time FROM events WHERE id = ?"
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


class SQLiteStore:
    """An :class:`~seqrec.serve.event.EventStore` in one file with a write-ahead log.

    Events are flushed to the disk (``synchronous=FULL``) before ``add`` returns. Calls borrow a connection from a
    pool, so reads do not wait for a write that is being flushed. SQLite has one writer at a time: the threads of a
    process queue on a lock, and processes wait for each other up to 5 seconds.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it; its folder must exist."""
        with looked_at(path):
            self._path = path.absolute()  # so that a name such as ":memory:" is a file, too
            if path.is_dir():
                raise InputError(f"{path}: is a folder; name a file in it, such as {path / 'events.db'}")
            if not self._path.parent.is_dir():
                raise InputError(f"{path}: its folder does not exist; create it first")
        self._idle: list[sqlite3.Connection] = []
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._process = os.getpid()
        try:
            with looked_at(path):
                connection = self._connect()
        except sqlite3.Error as error:
            if _code(error) in _LOCKED | {sqlite3.SQLITE_FULL}:
                raise self._explained(error) from error
            raise InputError(str(self._explained(error))) from error
        self._idle.append(connection)
        self._file = self._identity()
        sync_folder(self._path.parent)

    def add(self, events: Sequence[Event]) -> list[bool]:
        """Store events in one transaction; see :meth:`seqrec.serve.event.EventStore.add`."""
        check_events(events)
        if not events:
            return []
        with self._writer() as connection:
            return [
                connection.execute(_ADD, (event.id, event.user, event.item, event.time)).rowcount == 1
                for event in events
            ]

    def read(self, users: Sequence[str], most: int = 1000) -> list[list[Event]]:
        """The newest events of each user; see :meth:`seqrec.serve.event.EventStore.read`."""
        check_texts(users, "user")
        check_most(most)
        with self._borrowed() as connection, _snapshot(connection, len(users)):
            newest = [connection.execute(_READ, (user, most)).fetchall() for user in users]
        return [[Event(*row) for row in reversed(rows)] for rows in newest]

    def find(self, ids: Sequence[str]) -> list[Event | None]:
        """The events with these ids; see :meth:`seqrec.serve.event.EventStore.find`."""
        check_texts(ids, "event id")
        with self._borrowed() as connection, _snapshot(connection, len(ids)):
            rows = [connection.execute(_FIND, (name,)).fetchone() for name in ids]
        return [None if row is None else Event(*row) for row in rows]

    def check(self) -> None:
        """Commit a write that changes nothing, and read."""
        with self._writer() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise StoreError(f"{self._path}: another version of seqrec changed it; restart the server")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        self.find(["-"])

    def close(self) -> None:
        """Close the connections; those in use are closed when their call ends."""
        self._closed.set()
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile. After an error it is closed, which rolls back."""
        if self._closed.is_set():
            raise StoreError(f"{self._path}: the event store is closed")
        if os.getpid() != self._process:  # SQLite's locks do not survive a fork
            raise StoreError(f"{self._path}: opened by another process; open the event store after the fork")
        connection = None
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._reconnect()
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error) and _code(error):
                raise self._explained(error) from error
            raise
        self._idle.append(connection)
        if self._closed.is_set():
            self.close()

    @contextmanager
    def _writer(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction that writes, committed at the end of the block."""
        # Between threads a lock, because SQLite waits for another writer by sleeping for up to 0.1 seconds.
        if not self._writing.acquire(timeout=2 * _PATIENCE):
            raise StoreError(f"{self._path}: too many writes are waiting; try again")
        try:
            with self._borrowed() as connection:
                connection.execute("BEGIN IMMEDIATE")
                self._check_place()
                yield connection
                connection.execute("COMMIT")
        finally:
            self._writing.release()

    def _reconnect(self) -> sqlite3.Connection:
        self._check_place()  # SQLite would create a file that is gone
        try:
            return self._connect()
        except InputError as error:
            raise StoreError(str(error)) from error

    def _check_place(self) -> None:
        if self._identity() != self._file:
            raise StoreError(f"{self._path}: the file was removed or replaced; restart the server")

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode of the file, or ``None`` if it is gone: what is written to it then is lost."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        """A new connection to the file, whose tables are created if it is empty."""
        connection = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")  # the file may come from somebody else
            self._check_kind(connection)
            self._use_log(connection)
            connection.execute("PRAGMA synchronous = FULL")
            if not _pragma(connection, "user_version"):
                self._create(connection)
            connection.execute("SELECT arrival, id, user, item, time FROM events LIMIT 1").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_kind(self, connection: sqlite3.Connection) -> None:
        """Raise unless the file is empty or an event store of this version."""
        connection.execute("BEGIN")  # the three are of the same moment
        kind, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("COMMIT")
        if (kind, version, tables) == (0, 0, 0):
            return
        if kind != APPLICATION:
            raise InputError(f"{self._path}: is a database of another application; name a new file")
        if version > VERSION:
            raise InputError(f"{self._path}: is of format {version}, from a newer seqrec; update seqrec")

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Switch to a write-ahead log. SQLite does not wait for locks here, so this does."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if _code(error) not in _LOCKED or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
        if mode != "wal":
            raise InputError(f"{self._path}: SQLite cannot keep a write-ahead log here; name a file on a local disk")

    def _create(self, connection: sqlite3.Connection) -> None:
        """Create the tables, unless another process did so meanwhile."""
        connection.execute("BEGIN IMMEDIATE")
        if not _pragma(connection, "user_version"):
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
        connection.execute("COMMIT")

    def _explained(self, error: sqlite3.Error) -> StoreError:
        """The error of one line for an error of SQLite."""
        code = _code(error)
        if code in _LOCKED:
            return StoreError(f"{self._path}: locked by another process for {_PATIENCE:g} seconds; try again")
        if code == sqlite3.SQLITE_FULL:
            return StoreError(f"{self._path}: no space left on the disk; free some")
        if code in _DAMAGED:
            return StoreError(f"{self._path}: is not an SQLite file, or damaged ({one_line(error)}); restore a copy")
        if code == sqlite3.SQLITE_ERROR:  # no such table
            return StoreError(f"{self._path}: not as seqrec writes it ({one_line(error)}); restore a copy")
        return StoreError(f"{self._path}: cannot be read or written ({one_line(error)}); check disk and permissions")


@contextmanager
def _snapshot(connection: sqlite3.Connection, queries: int) -> Iterator[None]:
    """Several queries in one transaction, so that they see the same moment and lock the file only once."""
    if queries > 1:
        connection.execute("BEGIN")
    yield
    if queries > 1:
        connection.execute("COMMIT")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, or 0 if the error is not SQLite's but a mistake in calling it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
