"""Opens the event store that a URL names: SQLite in a file, or Redis."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from seqrec.errors import InputError
from seqrec.serve.event import Event, EventStore, StoreError, StoreWarning

__all__ = ["Event", "EventStore", "StoreError", "StoreWarning", "open_store"]


def open_store(url: str) -> EventStore:
    """Open an event store, and create it if it is new.

    Args:
        url: the path of an SQLite file, also as ``sqlite:///folder/events.db`` (absolute: the path begins at the third
            slash), or ``redis://[[user]:password@]host[:port][/db]``, with TLS ``rediss://``. A Redis URL may end with
            options of TLS, such as ``?ssl_ca_certs=FILE``.

    Raises:
        InputError: the URL is wrong, its password is refused, or it names something that is not an event store.
        StoreError: the storage is away or fails. A server that starts before its Redis may try again.

    Warns:
        StoreWarning: the settings of the Redis server allow that acknowledged events are lost.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme.lower() in ("redis", "rediss"):
        from seqrec.serve.redis_store import RedisStore

        return RedisStore(f"{scheme.lower()}://{rest}")
    if separator and scheme.lower() != "sqlite":
        raise InputError(
            f"{scheme}://…: is not an event store; give the path of an SQLite file, or redis://host:port/db"
        )
    from seqrec.serve.sqlite_store import SQLiteStore

    return SQLiteStore(_path_of(url) if separator else Path(url).expanduser() if url else _no_path(url))


def _path_of(url: str) -> Path:
    """The file of an ``sqlite:`` URL."""
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
        _no_path(url)
    return Path("/" + unquote(parts.path).lstrip("/"))


def _no_path(url: str) -> Path:
    raise InputError(f"{url or 'the event store'}: names no file; give a path, or sqlite:///folder/events.db")
