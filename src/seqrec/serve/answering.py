"""Answers to requests for recommendations: a batch of them is ranked together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrec.errors import InputError
from seqrec.models.features import reads_users
from seqrec.serve.explaining import reasons_of
from seqrec.serve.histories import Lookup, Person, joined, people_of
from seqrec.serve.live import Live, Lives, Runs
from seqrec.serve.schemas import Recommend
from seqrec.serve.store import EventStore


@dataclass(frozen=True, slots=True)
class _Filters:
    """What requests must share to be ranked together. Indices are kept as bytes, so that they can be compared."""

    keep_seen: bool | None
    allow: bytes | None
    deny: bytes | None


def recommend(runs: Lives | Runs, store: EventStore, requests: Sequence[Recommend]) -> list[dict[str, Any] | Exception]:
    """The answer to each request as :class:`seqrec.serve.schemas.Recommendation`, or its InputError.

    Raises:
        StoreError: the events can't be read.
    """
    by_run: dict[str | None, list[int]] = {}
    for row, request in enumerate(requests):
        by_run.setdefault(request.run, []).append(row)
    answers: list[dict[str, Any] | Exception] = [{}] * len(requests)
    for name, rows in by_run.items():
        try:
            live = runs.get(name)  # once, so that no answer is of two models
            found = _of_run(live, store, [requests[row] for row in rows])
        except InputError as error:
            found = [error] * len(rows)
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
    return answers


def _of_run(live: Live, store: EventStore, requests: list[Recommend]) -> list[dict[str, Any] | Exception]:
    dataset = live.predictor.dataset
    lookup = Lookup(dataset)
    for request in requests:
        lookup.add(request.allow or ())
        lookup.add(request.deny or ())
    people = people_of(dataset, store, requests, lookup, live.model.USES_TIMES)
    answers: list[dict[str, Any] | Exception] = [{}] * len(requests)
    groups: dict[_Filters, list[int]] = {}
    for row, (request, person) in enumerate(zip(requests, people, strict=True)):
        try:
            if isinstance(person, Exception):
                raise person
            groups.setdefault(_filters_of(live, request, person, lookup), []).append(row)
        except InputError as error:
            answers[row] = error
    for filters, rows in groups.items():
        own = [people[row] for row in rows]
        for row, answer in zip(rows, _ranked(live, filters, [requests[row] for row in rows], own), strict=True):  # type: ignore[arg-type]
            answers[row] = answer
    return answers


def _filters_of(live: Live, request: Recommend, person: Person, lookup: Lookup) -> _Filters:
    """The filters of a request by index. Unknown ids in them are added to the person's unknown items."""
    allow = deny = None
    for ids in (request.allow, request.deny):
        if ids:
            person.unknown += [one for one, index in zip(ids, lookup.of(ids), strict=True) if index == 0]
    if request.allow is not None:
        allow = np.unique(lookup.of(request.allow))
        allow = allow[allow > 0]
    if request.deny:
        deny = np.unique(lookup.of(request.deny))
    if request.category is not None:
        table = live.predictor.dataset.item_table
        if table is None or table.categories is None:
            raise InputError("category: the items of this run have no categories; leave it out")
        inside = table.items_of(request.category)
        allow = inside if allow is None else np.intersect1d(inside, allow)
    return _Filters(
        request.keep_seen,
        None if allow is None else allow.astype(np.int64).tobytes(),
        None if deny is None else deny.astype(np.int64).tobytes(),
    )


def _ranked(
    live: Live, filters: _Filters, requests: Sequence[Recommend], people: Sequence[Person]
) -> list[dict[str, Any]]:
    predictor = live.predictor
    dataset = predictor.dataset
    histories = joined(dataset, people)
    most = min(max(request.k for request in requests), dataset.num_items)
    allow, deny = (
        None if part is None else np.frombuffer(part, dtype=np.int64) for part in (filters.allow, filters.deny)
    )
    ((items, scores),) = predictor.rank(histories, most, keep_seen=filters.keep_seen, allow=allow, deny=deny)
    wanted = np.array([request.k for request in requests])
    inside = (items > 0) & (np.arange(most) < wanted[:, None])
    shown = described(live, items[inside], scores[inside])
    answers, start = [], 0
    for row, (request, person) in enumerate(zip(requests, people, strict=True)):
        end = start + int(inside[row].sum())
        found = shown[start:end]
        start = end
        if request.explain and len(person.items):
            for item, why in zip(found, reasons_of(live, histories, row, items[row][inside[row]]), strict=True):
                item["why"] = why
        answers.append(_answer(live, request, person, found))
    return answers


def described(live: Live, items: np.ndarray, scores: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Items by index as :class:`seqrec.serve.schemas.Item`, or with scores as ``Recommended``."""
    dataset = live.predictor.dataset
    ids = dataset.catalogue.values(items - 1)
    titles = live.titles
    names = [None] * len(ids) if titles is None else titles[items - 1].to_list()
    if scores is None:
        return [{"id": one, "title": title} for one, title in zip(ids, names, strict=True)]
    return [
        {"id": one, "score": score, "title": title}
        for one, score, title in zip(ids, scores.tolist(), names, strict=True)
    ]


def _answer(live: Live, request: Recommend, person: Person, items: list[dict[str, Any]]) -> dict[str, Any]:
    notes = list(person.notes)
    if not len(person.items):
        whose = "the request has no history"
        if person.unknown and (request.history or person.events):
            whose = "no item of the history is in the catalogue"
        elif request.user is not None:
            whose = (
                "the user is not in the log and has no recorded events" if person.user < 0 else "the user has no items"
            )
        notes.append(f"{whose}, so these are the most popular items, and scores are numbers of interactions")
    elif person.user < 0 and reads_users(live.model):
        who = "the request names no user" if request.user is None else "the user is not in the log"
        notes.append(f"{who}, so features of users count as unknown")
    if len(items) < request.k:
        notes.append(f"only {len(items)} items are left after the filters")
    return {
        "items": items,
        "run": live.name,
        "model_version": live.version,
        "used": {
            "ranked_by": "model" if len(person.items) else "popularity",
            "log": person.log,
            "events": person.events,
            "sent": person.sent,
            "read": min(len(person.items), live.model.max_length),
            "unknown_items": list(dict.fromkeys(person.unknown)),
            "notes": notes,
        },
    }
