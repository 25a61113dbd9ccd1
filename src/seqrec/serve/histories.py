"""Histories of requests: the log, the recorded events and the items sent along, joined in the order of time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.batches import flat_histories_of
from seqrec.data.dataset import Dataset
from seqrec.data.moments import MICROSECONDS, moments_of
from seqrec.data.split import Histories, histories_of_users
from seqrec.serve.schemas import Recommend
from seqrec.serve.store import Event, EventStore

MOST_EVENTS = 10_000  # recorded events of a user that count, the newest


@dataclass(slots=True)
class Person:
    """One history to rank after: ``items int64[L]`` by index and ``seconds int64[L]``, in order."""

    user: int
    items: np.ndarray
    seconds: np.ndarray
    log: int = 0
    events: int = 0
    sent: int = 0
    unknown: list[int | str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Lookup:
    """Indices of ids, found together for a whole batch of requests, because one search costs as much as many."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._items: dict[int | str, int] = {}

    def add(self, ids: Sequence[int | str]) -> None:
        """Ask for the indices of these items."""
        self._items.update(dict.fromkeys(ids, 0))

    def find(self) -> None:
        """Look all of them up. Unknown items get 0."""
        if self._items:
            ids = list(self._items)
            if {*map(type, ids)} == {int}:
                asked = pl.Series(ids, dtype=pl.Int64)
            else:  # 128 and "128" are the same id, and a series has one type
                asked = pl.Series([str(one) for one in ids], dtype=pl.String)
            self._items = dict(zip(ids, self.dataset.item_indices(asked).tolist(), strict=True))

    def of(self, ids: Sequence[int | str]) -> np.ndarray:
        """Index of each id, ``int64``."""
        return np.array([self._items[one] for one in ids], dtype=np.int64)


def people_of(
    dataset: Dataset, store: EventStore, requests: Sequence[Recommend], lookup: Lookup, knows_time: bool
) -> list[Person | Exception]:
    """The history of each request. An invalid request gets its InputError instead.

    Args:
        dataset: dataset of the run.
        store: recorded events.
        requests: requests of one batch.
        lookup: lookup that already has the filters of the requests; it is carried out here.
        knows_time: whether the model uses the time between items.

    Raises:
        StoreError: the events can't be read.
    """
    asked = list(dict.fromkeys(str(request.user) for request in requests if request.user is not None))
    events = dict(zip(asked, store.read(asked, MOST_EVENTS), strict=True)) if asked else {}
    users = dataset.user_indices(pl.Series(asked, dtype=pl.String)) if asked else np.empty(0, dtype=np.int64)
    logs = histories_of_users(dataset, users)
    rows = {name: row for row, name in enumerate(asked)}
    for name in asked:
        lookup.add([event.item for event in events[name]])
    for request in requests:
        lookup.add(request.history or ())
    lookup.find()
    found: list[Person | Exception] = []
    for request in requests:
        user = None if request.user is None else str(request.user)
        row = None if user is None else rows[user]
        try:
            found.append(_person(dataset, request, logs, row, events.get(user or "", []), lookup, knows_time))
        except ValueError as error:  # InputError: times that are no times
            found.append(error)
    return found


def _person(
    dataset: Dataset,
    request: Recommend,
    logs: Histories,
    row: int | None,
    events: list[Event],
    lookup: Lookup,
    knows_time: bool,
) -> Person:
    sent = request.history or []
    moments = None if request.times is None else moments_of([request.times], [len(sent)])
    person = Person(-1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    if row is not None:
        person.user = int(logs.users[row])
        own = slice(int(logs.starts[row]), int(logs.ends[row]))
        person.items = np.asarray(dataset.items[own], dtype=np.int64)
        person.seconds = np.asarray(dataset.timestamps[own], dtype=np.int64)
        person.log = len(person.items)
    if len(events) == MOST_EVENTS:
        person.notes.append(f"only the newest {MOST_EVENTS:,} recorded events count")
    if not events and not sent:
        return person
    ids: list[int | str] = [*(event.item for event in events), *sent]
    indices = lookup.of(ids)
    if row is None and not events and moments is None and indices.all() and not knows_time:  # most requests
        person.items, person.seconds, person.sent = indices, np.arange(len(ids), dtype=np.int64), len(ids)
        return person
    last = int(person.seconds[-1]) if len(person.seconds) else 0
    times = [event.time // MICROSECONDS for event in events]
    times += [0] * len(sent) if moments is None else (moments // MICROSECONDS).tolist()
    seconds = np.array(times, dtype=np.int64)
    timed = len(events) if moments is None else len(ids)  # items without a time come last, in their order
    order = np.concatenate([np.argsort(seconds[:timed], kind="stable"), np.arange(timed, len(ids))])
    if moments is None and sent:
        newest = max(last, int(seconds[:timed].max()) if timed else 0)
        seconds[timed:] = newest + 1 + np.arange(len(sent))
        if knows_time and dataset.has_timestamps and (len(sent) > 1 or len(person.items) or timed):
            person.notes.append("the history has no times, so its items count as one second apart; send times")
    if knows_time and not dataset.has_timestamps and moments is not None:
        person.notes.append("the model was trained without times, so times only set the order")
    known = order[indices[order] > 0]
    if len(known) < len(ids):
        person.unknown = list(dict.fromkeys(ids[place] for place in order.tolist() if indices[place] == 0))
    person.events, person.sent = int((known < len(events)).sum()), int((known >= len(events)).sum())
    person.items = np.concatenate([person.items, indices[known]])
    if not dataset.has_timestamps:  # the log's times are places, and only the order counts
        person.seconds = np.arange(len(person.items), dtype=np.int64)
        return person
    person.seconds = np.concatenate([person.seconds, seconds[known]])
    if person.log and len(known) and int(person.seconds[person.log]) < last:
        order = np.argsort(person.seconds, kind="stable")
        person.items, person.seconds = person.items[order], person.seconds[order]
    return person


def joined(dataset: Dataset, people: Sequence[Person]) -> Histories:
    """The histories of some people, with the user of each."""
    items = np.concatenate([person.items for person in people] or [np.empty(0, dtype=np.int64)])
    seconds = np.concatenate([person.seconds for person in people] or [np.empty(0, dtype=np.int64)])
    lengths = np.array([len(person.items) for person in people], dtype=np.int64)
    flat = flat_histories_of(dataset, items, lengths, seconds)
    return replace(flat, users=np.array([person.user for person in people], dtype=np.int64))


def log_history(dataset: Dataset, user: int, most: int | None = None) -> list[tuple[int, Any]]:
    """The newest interactions of a user of the log, or all: item index and Unix seconds (None without times)."""
    people = histories_of_users(dataset, np.array([user], dtype=np.int64)).newest(most)
    own = slice(int(people.starts[0]), int(people.ends[0]))
    times = dataset.timestamps[own].tolist() if dataset.has_timestamps else [None] * (own.stop - own.start)
    return list(zip(dataset.items[own].tolist(), times, strict=True))
