"""The event, the interface of the stores, and their errors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from seqrec.errors import InputError, check_whole, printable

LONGEST_ID = 200  # characters of an event's id
_BITS = 63  # times are signed 64-bit integers


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction that the server recorded.

    Attributes:
        id: chosen by the client and unique over all users, at most 200 characters. The same id is never stored twice.
        user: the user's id as text.
        item: the item's id as text.
        time: microseconds since 1970.
    """

    id: str
    user: str
    item: str
    time: int


class StoreError(Exception):
    """The storage is away, full, locked or damaged: one line. Nothing is half written; the call may be repeated."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class StoreWarning(UserWarning):
    """The store works, but its settings allow that acknowledged events are lost."""


class EventStore(Protocol):
    """Keeps events durably. Threads may share one store, and processes may open the same one at once.

    Nothing is ever deleted; ``most`` bounds what a read costs, by an index, however long a history grows.
    Every method raises :class:`StoreError` if the storage fails.
    """

    def add(self, events: Sequence[Event]) -> list[bool]:
        """Store events in one transaction: all or none of them.

        Adding is idempotent by id, so a call that failed, or whose answer was lost, can be repeated.

        Returns:
            For each event ``True`` if it is new, and durable now, or ``False`` if an event with this id was there
            before, in this call too. What was there is not changed; :meth:`find` tells whether it is the same event.

        Raises:
            InputError: an id is empty or too long, or a value is of the wrong type or cannot be stored.
        """
        ...

    def read(self, users: Sequence[str], most: int = 1000) -> list[list[Event]]:
        """The newest ``most`` events of each user, ordered by time, and by arrival where times are equal."""
        ...

    def find(self, ids: Sequence[str]) -> list[Event | None]:
        """The events with these ids, or ``None`` where there is no such event."""
        ...

    def check(self) -> None:
        """Write and read something small, and raise :class:`StoreError` if that fails."""
        ...

    def close(self) -> None:
        """Free the connections. Later calls raise :class:`StoreError`; closing again does nothing."""
        ...


def check_events(events: Iterable[Event]) -> None:
    """Raise ``InputError`` for the first event that cannot be stored."""
    for number, event in enumerate(events):
        check_texts((event.id, event.user, event.item), f"event {number}")
        if not 0 < len(event.id) <= LONGEST_ID:
            raise InputError(
                f"event {number}: the id has {len(event.id)} characters; give 1 to {LONGEST_ID}, such as a UUID"
            )
        time = event.time
        if type(time) is not int or not -(2**_BITS) <= time < 2**_BITS:
            raise InputError(
                f"event {number}: the time is {time!r:.50}; give microseconds since 1970, an integer of 64 bits"
            )


def check_texts(texts: Iterable[str], place: str) -> None:
    """Raise ``InputError`` unless all values are text that UTF-8 can encode, which excludes lone surrogates."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{place}: {text!r:.50} is not text; ids are strings")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: {text!r:.50} contains half a character (a lone surrogate); remove it") from None


def check_most(most: int) -> None:
    """Raise ``InputError`` unless ``most`` is an integer from 0 to the largest of 64 bits."""
    check_whole("most", most, 0)
    if most >= 2**_BITS:
        raise InputError(f"most is {most}; give less than 2^{_BITS}")
