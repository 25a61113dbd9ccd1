"""What the routes of the HTTP API share: bodies, answers, errors and their documentation."""

import asyncio
import json
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from seqrec.errors import InputError, one_line
from seqrec.serve import schemas
from seqrec.serve.batching import FullError
from seqrec.serve.guard import BODY_SECONDS, BUG, MOST_BODY, log
from seqrec.serve.store import StoreError

VERSION = version("seqrec")
Body = TypeVar("Body", bound=BaseModel)


class Problem(Exception):
    """An error that the client gets: a status, and one line."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


_WORDS = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "The server answers only to localhost.",
    404: "The run, user or item is unknown.",
    408: "The body took too long to arrive.",
    409: "The id of an event was used for another event.",
    413: "The body is too large.",
    414: "The query is too long.",
    431: "The headers are too large.",
    415: "The body is not application/json.",
    422: "A value is missing, unknown or out of range.",
    503: "Too many requests wait, or the events can't be stored; try again after Retry-After seconds.",
    504: "No answer in time.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for OpenAPI."""
    return {status: {"model": schemas.Problem, "description": _WORDS[status]} for status in statuses}


#: The errors of a route without a body, and of one with a body.
PROBLEMS = problems(401, 403, 404, 414, 422, 431, 503, 504)
POSTED = problems(400, 401, 403, 404, 408, 413, 414, 415, 422, 431, 503, 504)


def json_answer(content: Any, status: int = 200, **headers: str) -> Response:
    """An answer as JSON."""
    return Response(to_json(content), status, headers, "application/json")


async def body_of(request: Request, kind: type[Body]) -> Body:
    """The body of a request, read with a limit on its size and its time, and checked.

    Raises:
        Problem: it is too large, too slow, not JSON, or not valid.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Problem(415, "the body must be JSON; send the header Content-Type: application/json")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BODY:
                    raise Problem(413, f"the body has more than {MOST_BODY:,} bytes; send several requests")
                parts.append(part)
    except ClientDisconnect:
        raise Problem(400, "the client left before its body was complete") from None
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    try:
        return kind.model_validate_json(b"".join(parts))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise Problem(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}") from error
        raise Problem(422, _in_words(error.errors(include_url=False))) from error


def _in_words(errors: Any) -> str:
    """What is wrong with a body or a query, in one line: the first error, and how many more there are."""
    first = errors[0]
    same = [error for error in errors if error["loc"][:-1] == first["loc"][:-1]]
    if len(same) > 1 and first["type"] == "int_type":  # the branches of an id: what is wrong with the text says more
        first = next((error for error in same if not error["type"].endswith("_type")), first)
    # The branches of a union, such as int and str for an id, are named in brackets or by their types.
    place = ".".join(
        str(part)
        for part in first["loc"]
        if part not in ("query", "int", "float") and "[" not in str(part) and "constrained" not in str(part)
    )
    text = f"{place or 'body'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    more = len({error["loc"][0] if error["loc"] else "" for error in errors}) - 1
    return one_line(ValueError(text + (f"; and {more} more fields" if more > 0 else "")))


def known_query(request: Request) -> None:
    """Refuse a query with a field that the route does not have, or with one twice: it would be ignored."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    given = [name for name, _ in request.query_params.multi_items()]
    for number, name in enumerate(given):
        if name not in known:
            raise Problem(422, f"{name[:80]!r} is unknown; choose from {', '.join(sorted(known)) or 'no fields'}")
        if name in given[:number]:
            raise Problem(422, f"{name}: is given twice")


def add_errors(app: FastAPI) -> None:
    """Answer every error with its status and one line."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return json_answer({"detail": error.detail}, error.status, **error.headers)

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> Response:
        return json_answer({"detail": str(error)}, 422)

    @app.exception_handler(FullError)
    async def full(_: Request, error: FullError) -> Response:
        return json_answer({"detail": "too many requests wait; try again later"}, 503, **{"Retry-After": "1"})

    @app.exception_handler(StoreError)
    async def away(_: Request, error: StoreError) -> Response:
        log.error(json.dumps({"event": "the event store fails", "reason": str(error)}))  # it may name a path
        detail = "the events can't be stored or read now; try again later, the server's log has the reason"
        return json_answer({"detail": detail}, 503, **{"Retry-After": "2"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return json_answer({"detail": _in_words(error.errors())}, 422)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        return json_answer({"detail": BUG}, 500)  # the guard logs the error, which is raised again

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        words = {404: "there is nothing at this path; see /openapi.json", 405: "this path takes another method"}
        detail = words.get(error.status_code, str(error.detail))
        return json_answer({"detail": detail}, error.status_code, **dict(error.headers or {}))


def takes(*kinds: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body of one of these kinds, as :func:`body_of` reads it.

    FastAPI's own reading of a body takes twice as long.
    """
    parts = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in kinds]
    schema = parts[0] if len(parts) == 1 else {"anyOf": parts}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def openapi_of(app: FastAPI, has_tokens: bool) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that :func:`body_of` reads."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    known = document["components"]["schemas"]
    for kind in (schemas.Recommend, schemas.RecommendBatch, schemas.NewEvent, schemas.NewEvents):
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        known |= schema.pop("$defs", {})
        known[kind.__name__] = schema
    if has_tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    app.openapi_schema = json.loads(json.dumps(document))
    return app.openapi_schema
