"""Routes to look around: items, similar items, users, their histories, and the runs themselves."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import polars as pl
from fastapi import Depends, FastAPI, Query
from starlette.responses import Response

from seqrec.errors import InputError
from seqrec.serve import schemas
from seqrec.serve.answering import described
from seqrec.serve.histories import MOST_EVENTS, log_history
from seqrec.serve.http import PROBLEMS, Problem, json_answer, known_query
from seqrec.serve.live import Live
from seqrec.serve.replaying import replayed
from seqrec.serve.server import Server

Identifier = Annotated[str, Query(min_length=1, max_length=schemas.LONGEST_ID)]
RunName = Annotated[str | None, Query(max_length=schemas.LONGEST_ID, description="By default the first run.")]
MOST_SHOWN = 100
KNOWN = [Depends(known_query)]
CURVE = "ndcg@10"  # the metric of the validation that the curve shows


def add_looking(app: FastAPI, server: Server) -> None:
    """Add the routes to an application."""
    _add_items(app, server)
    _add_users(app, server)

    @app.get("/v1/runs", response_model=schemas.Cards, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def cards() -> Response:
        """The model card of each run: what it is, what it was trained on, and how well it ranks."""
        return json_answer({"runs": [_card(server, live) for live in server.runs.all()]})

    @app.get("/v1/runs/curve", response_model=schemas.Curve, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def curve(run: RunName = None) -> Response:
        """How a run was trained, epoch by epoch."""
        return json_answer(await asyncio.to_thread(_curve, _live_of(server, run)))


def _add_items(app: FastAPI, server: Server) -> None:
    @app.get("/v1/items", response_model=schemas.Search, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def items(
        q: Annotated[
            str, Query(max_length=200, description="Words of the title, or an id; empty for popular items.")
        ] = "",
        k: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = 20,
        category: Annotated[str | None, Query(max_length=schemas.LONGEST_ID)] = None,
        run: RunName = None,
    ) -> Response:
        """Search items by title or id, most popular first."""
        live = _live_of(server, run)
        found = await asyncio.to_thread(lambda: _shown(live, live.finder.search(q, k, category)))
        return json_answer({"items": found})

    @app.get("/v1/categories", response_model=schemas.Categories, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def categories(run: RunName = None) -> Response:
        """All categories of the item table, largest first."""
        finder = _live_of(server, run).finder
        found = await asyncio.to_thread(lambda: finder.categories)
        return json_answer({"categories": [{"name": name, "items": count} for name, count in found]})

    @app.get("/v1/similar", response_model=schemas.Similar, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def similar(
        item: Identifier, k: Annotated[int, Query(ge=1, le=schemas.MOST_ITEMS)] = 10, run: RunName = None
    ) -> Response:
        """The items nearest to an item."""
        live = _live_of(server, run)
        index = _index_of(live, item)
        places, cosines = await asyncio.to_thread(
            live.predictor.neighbours, np.array([index]), min(k, live.predictor.dataset.num_items - 1)
        )
        there = places[0] > 0
        return json_answer(
            {
                "item": live.predictor.dataset.catalogue.values(np.array([index - 1]))[0],
                "items": described(live, places[0][there], cosines[0][there]),
                "run": live.name,
                "model_version": live.version,
            }
        )


def _add_users(app: FastAPI, server: Server) -> None:
    @app.get("/v1/users", response_model=schemas.Users, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def users(
        q: Annotated[str, Query(max_length=200, description="Beginning of the id; empty for a few users.")] = "",
        k: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = 20,
        run: RunName = None,
    ) -> Response:
        """Some users of the log."""
        finder = _live_of(server, run).finder
        found = await asyncio.to_thread(finder.users, q, k)
        return json_answer({"users": [{"id": one, "interactions": count} for one, count in found]})

    @app.get("/v1/history", response_model=schemas.History, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def history(
        user: Identifier, k: Annotated[int, Query(ge=1, le=schemas.MOST_ITEMS)] = 100, run: RunName = None
    ) -> Response:
        """The newest interactions of a user: those of the log, and the recorded events."""
        return json_answer(await asyncio.to_thread(_history, server, _live_of(server, run), user, k))

    @app.get("/v1/replay", response_model=schemas.Replay, responses=PROBLEMS, tags=["look"], dependencies=KNOWN)
    async def replay(
        user: Identifier,
        k: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = 10,
        steps: Annotated[int, Query(ge=1, le=20)] = 3,
        run: RunName = None,
    ) -> Response:
        """Predict a user's last interactions, each from those before it, and compare with what came next."""
        live = _live_of(server, run)
        index = int(live.predictor.dataset.user_indices([user])[0])
        if index < 0:
            raise Problem(404, f"the user {user!r} is not in the log of run {live.name}; GET /v1/users lists some")
        return json_answer(await asyncio.to_thread(replayed, live, index, k, steps))


def _live_of(server: Server, run: str | None) -> Live:
    try:
        return server.runs.get(run)
    except InputError as error:
        raise Problem(404, str(error)) from error


def _index_of(live: Live, item: str) -> int:
    index = int(live.predictor.dataset.item_indices([item])[0])
    if index == 0:
        raise Problem(404, f"the item {item!r} is not in the catalogue of run {live.name}; GET /v1/items finds items")
    return index


def _shown(live: Live, items: np.ndarray) -> list[dict[str, Any]]:
    dataset = live.predictor.dataset
    categories = None if dataset.item_table is None else dataset.item_table.categories
    names = [[]] * len(items) if categories is None else categories.gather(items - 1).to_list()
    counts = dataset.item_counts[items].tolist()
    return [
        item | {"categories": own, "interactions": count}
        for item, own, count in zip(described(live, items), names, counts, strict=True)
    ]


def _history(server: Server, live: Live, user: str, most: int) -> dict[str, Any]:
    dataset = live.predictor.dataset
    index = int(dataset.user_indices([user])[0])
    (events,) = server.store.read([user], MOST_EVENTS)
    log = log_history(dataset, index, most) if index >= 0 else []
    total = len(events) + (int(dataset.offsets[index + 1] - dataset.offsets[index]) if index >= 0 else 0)
    shown = described(live, np.array([item for item, _ in log], dtype=np.int64))
    rows = [
        item | {"time": None if time is None else _iso(time), "source": "log", "known": True}
        for item, (_, time) in zip(shown, log, strict=True)
    ]
    found = dataset.item_indices(pl.Series([event.item for event in events], dtype=pl.String))
    names = iter(described(live, found[found > 0]))
    for event, place in zip(events, found.tolist(), strict=True):
        item = next(names) if place else {"id": event.item, "title": None}
        rows.append(item | {"time": _iso(event.time / 1e6), "source": "event", "known": place > 0})
    if dataset.has_timestamps:
        seconds = [time for _, time in log] + [event.time / 1e6 for event in events]
        rows = [rows[place] for place in np.argsort(seconds, kind="stable")]
    return {"user": user, "known": index >= 0, "items": rows[-most:], "total": total}


def _iso(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # a log may count from another year
        return None


def _curve(live: Live) -> dict[str, Any]:
    epochs = live.epochs
    if epochs is None:  # training has not ended an epoch
        return {"run": live.name, "metric": CURVE, "epochs": []}
    values = epochs[CURVE] if CURVE in epochs.columns else pl.Series([None] * epochs.height)
    rows = pl.DataFrame({"epoch": epochs["epoch"], "loss": epochs["loss"], "value": values})
    # JSON has no number for the loss of a training that diverged.
    numbers = rows.with_columns(pl.col("loss", "value").cast(pl.Float64).replace([np.nan, np.inf, -np.inf], None))
    return {"run": live.name, "metric": CURVE, "epochs": numbers.to_dicts()}


def _card(server: Server, live: Live) -> dict[str, Any]:
    dataset = live.predictor.dataset
    table = dataset.item_table
    return {
        "run": live.name,
        "model_version": live.version,
        "model": live.label,
        "loaded": live.loaded.isoformat(timespec="seconds"),
        "items": dataset.num_items,
        "users": dataset.num_users,
        "interactions": dataset.num_interactions,
        "max_length": live.model.max_length,
        "has_times": dataset.has_timestamps,
        "has_titles": live.titles is not None,
        "categories": 0 if table is None else len(table.category_names),
        "transitions_weight": live.transitions_weight,
        "first_pass": None if live.predictor.recall is None else live.predictor.recall._asdict(),
        "trained_on": str(live.metrics.get("trained_on", "unknown")),
        "new_items": None if live.new_items is None else live.new_items._asdict(),
        "refused": server.runs.refused.get(live.name),
        "config": live.config,
        "metrics": live.metrics,
    }
