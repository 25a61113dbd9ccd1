"""The application: routes for recommendations, events and operation."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from seqrec.data.moments import moments_of
from seqrec.errors import InputError, one_line
from seqrec.serve import page, schemas
from seqrec.serve.config import Tokens
from seqrec.serve.guard import Guard
from seqrec.serve.http import (
    POSTED,
    PROBLEMS,
    VERSION,
    Problem,
    add_errors,
    body_of,
    json_answer,
    openapi_of,
    problems,
    takes,
)
from seqrec.serve.looking import add_looking
from seqrec.serve.server import Server
from seqrec.serve.store import Event, EventStore

Handler = TypeVar("Handler", bound=Callable[..., Any])


def create_app(server: Server, tokens: Tokens) -> Guard:
    """The ASGI application of a server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(server.watch())
        yield
        server.draining = True
        watching.cancel()
        await asyncio.to_thread(server.close)

    app = FastAPI(
        title="seqrec",
        version=VERSION,
        summary="Next-item recommendations from a trained run",
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.server = server
    add_errors(app)
    _add_recommending(app, server)
    _add_events(app, server)
    _add_health(app, server)
    add_looking(app, server)
    public = page.add_page(app)
    app.openapi = lambda: openapi_of(app, bool(tokens))  # type: ignore[method-assign]
    return Guard(app, server.config, tokens, server.measures, public)


def _post(
    app: FastAPI, path: str, tag: str, answer: type[BaseModel], *bodies: type[BaseModel], errors: Any = POSTED
) -> Callable[[Handler], Handler]:
    """A route that reads its body with :func:`body_of`."""
    return app.post(path, response_model=answer, responses=errors, openapi_extra=takes(*bodies), tags=[tag])


def _add_recommending(app: FastAPI, server: Server) -> None:
    @_post(app, "/v1/recommend", "recommend", schemas.Recommendation, schemas.Recommend)
    async def recommend_one(request: Request) -> Response:
        """Recommend items to a known user, after a history, or after both."""
        asked = await body_of(request, schemas.Recommend)
        if asked.explain and asked.k > schemas.MOST_EXPLAINED:
            raise Problem(422, f"k: with explain at most {schemas.MOST_EXPLAINED}")
        (answer,) = await server.recommend([asked])
        if isinstance(answer, Exception):
            raise answer
        return json_answer(answer)

    @_post(app, "/v1/recommend/batch", "recommend", schemas.Recommendations, schemas.RecommendBatch)
    async def recommend_batch(request: Request) -> Response:
        """Recommend for several requests at once, ranked together by one version of the model."""
        batch = await body_of(request, schemas.RecommendBatch)
        for number, one in enumerate(batch.requests):
            if one.explain:
                raise Problem(422, f"requests.{number}.explain: is for single requests, as it takes much longer")
        if sum(one.k for one in batch.requests) > schemas.MOST_TOGETHER:
            raise Problem(422, f"requests: more than {schemas.MOST_TOGETHER:,} items in all; lower k or send fewer")
        answers = await server.recommend(batch.requests) if batch.requests else []
        for number, answer in enumerate(answers):
            if isinstance(answer, InputError):
                raise Problem(422, f"requests.{number}: {answer}")
            if isinstance(answer, Exception):
                raise answer
        found: list[Any] = answers
        version = found[0]["model_version"] if found else server.runs.get().version
        # A large answer takes a while to write, and other requests should not wait for it.
        return await asyncio.to_thread(json_answer, {"results": found, "model_version": version})


def _add_events(app: FastAPI, server: Server) -> None:
    @_post(
        app,
        "/v1/events",
        "events",
        schemas.Recorded,
        schemas.NewEvent,
        schemas.NewEvents,
        errors=POSTED | problems(409),
    )
    async def record(request: Request) -> Response:
        """Record that users interacted with items. The answer comes when the events are durable."""
        given = await body_of(request, schemas.NewEvents)
        events = [_event(one, number) for number, one in enumerate(given.events)]
        (added,) = await server.recording.ask([events]) if events else ([],)
        if isinstance(added, Exception):
            raise added
        pairs = list(zip(events, given.events, added, strict=True))
        repeated = [(event, one.time is not None) for event, one, new in pairs if not new]
        if repeated:
            await asyncio.to_thread(_check_repeated, server.store, repeated)
        server.measures.events.labels("recorded").inc(len(events) - len(repeated))
        server.measures.events.labels("repeated").inc(len(repeated))
        known: Any = (
            server.runs.get().predictor.dataset.item_indices([event.item for event in events]) if events else ()
        )
        unknown = [one.item for one, index in zip(given.events, known, strict=True) if index == 0]
        return json_answer(
            {
                "recorded": len(events) - len(repeated),
                "repeated": len(repeated),
                "event_ids": [event.id for event in events],
                "unknown_items": list(dict.fromkeys(unknown)),
            }
        )


def _event(one: schemas.NewEvent, number: int) -> Event:
    if one.time is None:
        moment = time.time_ns() // 1000
    else:
        try:
            moment = int(moments_of([[one.time]], [1])[0])
        except (InputError, OverflowError) as error:
            raise Problem(422, f"events.{number}.time: {one_line(error)}") from error
    return Event(one.event_id or uuid.uuid4().hex, str(one.user), str(one.item), moment)


def _check_repeated(store: EventStore, events: list[tuple[Event, bool]]) -> None:
    """Raise if the id of an event was used for another user, item or, if it was given, another time before."""
    for (event, timed), before in zip(events, store.find([event.id for event, _ in events]), strict=True):
        if before is None:
            continue
        same = (before.user, before.item) == (event.user, event.item) and (not timed or before.time == event.time)
        if not same:
            raise Problem(
                409,
                f"the event_id {event.id!r} was used for another event; the events of this request with new ids are "
                "recorded, this one is not",
            )


def _add_health(app: FastAPI, server: Server) -> None:
    @app.get("/healthz", response_model=schemas.Health, responses=problems(403), tags=["operation"])
    async def alive() -> Response:
        """Whether the process answers."""
        return json_answer({"status": "ok", "version": VERSION})

    @app.get("/readyz", response_model=schemas.Health, responses=problems(403, 503), tags=["operation"])
    async def ready() -> Response:
        """Whether the server can recommend and record: a model is loaded, and the event store works."""
        if server.draining:
            raise Problem(503, "the server is stopping", **{"Retry-After": "1"})
        await asyncio.to_thread(server.store.check)
        return json_answer({"status": "ok", "version": VERSION})

    @app.get(
        "/metrics",
        response_class=Response,
        responses=problems(401, 403) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["operation"],
    )
    async def metrics() -> Response:
        """The server's numbers for Prometheus."""
        return Response(await asyncio.to_thread(server.measures.text), media_type="text/plain; version=0.0.4")

    @app.post("/v1/reload", response_model=schemas.Reloaded, responses=PROBLEMS | problems(409), tags=["operation"])
    async def reload() -> Response:
        """Open the run folders again, if they have changed. A broken run is refused, and the one in use stays."""
        errors = await asyncio.to_thread(server.runs.reload)
        if errors:
            raise Problem(409, "; ".join(f"{name}: {error}" for name, error in errors.items()))
        return json_answer({"versions": {live.name: live.version for live in server.runs.all()}})
