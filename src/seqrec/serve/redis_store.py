"""The event store in Redis, which several machines can share.

An acknowledged event survives a crash of the Redis server only with these settings of the server (``redis.conf``)::

    appendonly yes
    appendfsync always
    maxmemory-policy noeviction

With ``appendfsync everysec``, Redis's default, up to a second of acknowledged events is lost in a crash of its machine;
without ``appendonly``, all since the last snapshot. A failover to a replica can lose what the replica had not received
yet, whatever the settings. Redis Cluster is not supported.

The keys, for format 1:

``seqrec:events:version``
    The format, 1.
``seqrec:events:1:ids``
    A hash from each event's id to its time, user and item.
``seqrec:events:1:user:USER``
    A sorted set of the user's events, all with score 0, so that Redis orders them by their bytes: time, order of
    arrival, id, item. A score holds whole numbers only up to 2^53; bytes hold every time.
``seqrec:events:1:checked``
    What :meth:`RedisStore.check` writes.
"""

import re
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from seqrec.errors import InputError, missing_extra, one_line, warn
from seqrec.serve.event import Event, StoreError, StoreWarning, check_events, check_most, check_texts

VERSION = 1
_VERSION_KEY = "seqrec:events:version"
_IDS = f"seqrec:events:{VERSION}:ids"
_USER = f"seqrec:events:{VERSION}:user:"
_CHECKED = f"seqrec:events:{VERSION}:checked"
_PATIENCE = 5.0  # seconds to wait for an answer
_PAUSE = 0.1  # seconds before the one repetition of a call whose connection broke
_LEAST_TIME = -(2**63)
# Redis runs a script alone and logs its writes as one transaction, so of an event neither half can be stored or lost.
# KEYS: the ids, then the users' sets. ARGV per event: id, number of the user's key, time as 8 bytes, user, item.
_ADD = """
local new = {}
for first = 1, #ARGV, 5 do
    local id, key, time, user, item = ARGV[first], KEYS[tonumber(ARGV[first + 1])], unpack(ARGV, first + 2, first + 4)
    local added = redis.call('HSETNX', KEYS[1], id, time .. struct.pack('>I4', #user) .. user .. item)
    if added == 1 then
        local arrival = struct.pack('>I4', redis.call('ZCARD', key))
        redis.call('ZADD', key, 0, time .. arrival .. struct.pack('>I2', #id) .. id .. item)
    end
    new[#new + 1] = added
end
return new
"""
_Answer = TypeVar("_Answer")


class RedisStore:
    """An :class:`~seqrec.serve.event.EventStore` in a Redis server, version 5 or newer.

    A call whose connection breaks is repeated once, which is safe because adding is idempotent by id; but if only the
    answer was lost, the repetition reports the events as not new. A call that times out is not repeated.
    """

    def __init__(self, url: str) -> None:
        """Connect to the server, check the format of the data, and warn if its settings may lose events."""
        try:
            import redis
        except ImportError as error:
            raise missing_extra("redis://", "serve") from error
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._place = _check_url(url)
        self._errors = redis.exceptions
        self._closed = False
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=_PATIENCE,
                socket_connect_timeout=_PATIENCE,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            pool = self._client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # fails for a wrong option, and does not connect yet
        except (ValueError, TypeError, OSError) as error:
            raise InputError(f"{self._place}: wrong option in the URL ({one_line(error)})") from error
        self._script = self._client.register_script(_ADD)
        self._check_server()

    def add(self, events: Sequence[Event]) -> list[bool]:
        """Store events by one script, which is atomic; see :meth:`seqrec.serve.event.EventStore.add`."""
        check_events(events)
        if not events:
            return []
        keys = {_IDS: 1}
        values: list[str | bytes | int] = []
        for event in events:
            number = keys.setdefault(_USER + event.user, len(keys) + 1)
            values += (event.id, number, (event.time - _LEAST_TIME).to_bytes(8, "big"), event.user, event.item)
        return [new == 1 for new in self._asked(lambda: self._script(keys=list(keys), args=values))]

    def read(self, users: Sequence[str], most: int = 1000) -> list[list[Event]]:
        """The newest events of each user, in one round trip; see :meth:`seqrec.serve.event.EventStore.read`."""
        check_texts(users, "user")
        check_most(most)
        if not users or most == 0:
            return [[] for _ in users]
        with self._client.pipeline(transaction=False) as pipeline:

            def newest() -> list[list[bytes]]:
                pipeline.reset()
                for user in users:
                    pipeline.zrevrange(_USER + user, 0, most - 1)
                return pipeline.execute()

            found = self._asked(newest)
        return [
            [_event_of_member(member, user) for member in reversed(members)]
            for user, members in zip(users, found, strict=True)
        ]

    def find(self, ids: Sequence[str]) -> list[Event | None]:
        """The events with these ids; see :meth:`seqrec.serve.event.EventStore.find`."""
        check_texts(ids, "event id")
        if not ids:
            return []
        records: list[Any] = self._asked(lambda: self._client.hmget(_IDS, list(ids)))
        return [
            None if record is None else _event_of_record(record, name)
            for name, record in zip(ids, records, strict=True)
        ]

    def check(self) -> None:
        """Write a key, and read."""
        self._asked(lambda: self._client.set(_CHECKED, 1))
        self.find(["-"])

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._client.close()

    def _asked(self, question: Callable[[], _Answer]) -> _Answer:
        """The answer of the server; after a broken connection it is asked once more."""
        if self._closed:
            raise StoreError(f"{self._place}: the event store is closed")
        errors = self._errors
        try:
            try:
                return question()
            except (errors.AuthenticationError, errors.AuthorizationError, errors.BusyLoadingError):
                raise
            except errors.ConnectionError:
                time.sleep(_PAUSE)
                return question()
        except errors.RedisError as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> StoreError:
        """The error of one line for an error of Redis."""
        errors = self._errors
        reason = one_line(error)
        if isinstance(error, errors.TimeoutError):
            return StoreError(f"{self._place}: no answer within {_PATIENCE:g} seconds; try again")
        if isinstance(error, errors.AuthenticationError | errors.AuthorizationError):
            return StoreError(f"{self._place}: refuses the user or the password ({reason}); correct the URL")
        if isinstance(error, errors.BusyLoadingError):
            return StoreError(f"{self._place}: is still loading its data; try again")
        if isinstance(error, errors.ConnectionError):
            return StoreError(f"{self._place}: is not reachable ({reason}); start it, or correct the URL")
        if isinstance(error, errors.OutOfMemoryError):
            return StoreError(f"{self._place}: its memory is full; raise maxmemory")
        if isinstance(error, errors.ReadOnlyError):
            return StoreError(f"{self._place}: is a replica that only reads; name the primary server")
        return StoreError(f"{self._place}: refused the command ({reason})")

    def _check_server(self) -> None:
        """Raise for a wrong password, database or format, and warn about settings that may lose events."""
        errors = self._errors
        try:
            self._asked(lambda: self._client.set(_VERSION_KEY, VERSION, nx=True))
            version = self._asked(lambda: self._client.get(_VERSION_KEY))
        except StoreError as error:
            cause = error.__cause__
            passing = (errors.ConnectionError, errors.TimeoutError, errors.OutOfMemoryError)
            refused = isinstance(cause, errors.AuthenticationError | errors.AuthorizationError)
            if (isinstance(cause, passing) and not refused) or str(cause).startswith("MISCONF"):
                raise
            raise InputError(str(error)) from cause
        if version != b"%d" % VERSION:
            shown = repr(version)[1:50]
            raise InputError(
                f"{self._place}: {_VERSION_KEY} is {shown}, not {VERSION}; update seqrec, or name another database"
            )
        self._warn_of_settings()

    def _warn_of_settings(self) -> None:
        """Warn if acknowledged events may be lost, or if the server does not tell."""
        settings: dict[Any, Any] = {}
        try:
            for pattern in ("append*", "maxmemory*", "cluster-enabled"):
                settings |= self._client.config_get(pattern)
        except self._errors.ResponseError:
            warn(
                f"{self._place}: does not tell its settings (CONFIG GET is forbidden). Acknowledged events survive a "
                "crash only with appendonly yes, appendfsync always and maxmemory-policy noeviction",
                StoreWarning,
            )
            return
        except self._errors.RedisError as error:
            raise self._explained(error) from error
        if settings.get("cluster-enabled") == "yes":
            raise InputError(f"{self._place}: Redis Cluster is not supported; name a single server")
        if settings.get("appendonly") != "yes":
            self._warn("appendonly is off: a crash loses the events since the last snapshot; set appendonly yes")
        elif settings.get("appendfsync") != "always":
            value = settings.get("appendfsync", "unknown")
            self._warn(f"appendfsync is {value}: a crash loses the last events; set appendfsync always")
        policy = settings.get("maxmemory-policy", "")
        if settings.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
            self._warn(f"maxmemory-policy is {policy}: full memory deletes events; set maxmemory-policy noeviction")

    def _warn(self, message: str) -> None:
        warn(f"{self._place}: {message}", StoreWarning)


def _check_url(url: str) -> str:
    """The URL without user, password and options, to show in messages. Raises ``InputError`` if it is wrong."""
    form = "give redis://[[user]:password@]host[:port][/db], with special characters percent-encoded"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"redis URL: {one_line(error)}; {form}") from None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    place = f"{parts.scheme}://{host}:{port or 6379}{parts.path}"
    if not parts.hostname or parts.fragment:
        raise InputError(f"redis URL: names no host, or contains #; {form}")
    if not re.fullmatch(r"/?|/[0-9]{1,9}", parts.path):
        raise InputError(f"{place}: the database is not a number; {form}")
    unknown = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if not name.startswith("ssl_")]
    if unknown or (parts.query and parts.scheme == "redis"):
        raise InputError(f"{place}: only rediss:// takes options, those that begin with ssl_; remove the others")
    return place


def _event_of_member(member: bytes, user: str) -> Event:
    """The event of a member of a user's set: time, arrival (4 bytes), length of the id (2 bytes), id, item."""
    moment, _, length = struct.unpack_from(">QIH", member)
    return Event(member[14 : 14 + length].decode(), user, member[14 + length :].decode(), moment + _LEAST_TIME)


def _event_of_record(record: bytes, name: str) -> Event:
    """The event of a value of the hash: time, length of the user's id (4 bytes), user, item."""
    moment, length = struct.unpack_from(">QI", record)
    return Event(name, record[12 : 12 + length].decode(), record[12 + length :].decode(), moment + _LEAST_TIME)
