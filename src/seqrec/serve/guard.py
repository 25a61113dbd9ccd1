"""What every request passes: the token, the host, the size of its body, its time limit, its log line."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pydantic_core import to_json

from seqrec.serve.config import ServeConfig, Tokens
from seqrec.serve.measures import Measures

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY = 2**20  # bytes
MOST_QUERY = 4096  # bytes
MOST_HEADERS = 2**15  # bytes
BODY_SECONDS = 10.0  # to send a body
ANSWER_SECONDS = 30.0
BUG = "this is a bug in seqrec; the server's log has the details"
#: Paths that need no token: a balancer asks for the first two, and the page has no data of its own.
OPEN = frozenset({"/healthz", "/readyz"})
_LOOPBACK = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
#: The page may only load what the server has, and no other page may show it.
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
log = logging.getLogger("seqrec.serve")


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: application.
        config: options of the server.
        tokens: bearer tokens.
        measures: where requests are counted.
        public: paths that need no token besides those in ``OPEN``.
    """

    def __init__(
        self, app: Application, config: ServeConfig, tokens: Tokens, measures: Measures, public: frozenset[str]
    ) -> None:
        self.app, self.tokens, self.measures = app, tokens, measures
        self.public = OPEN | public
        self.log_all = config.log == "all"
        self.check_host = config.is_local and not tokens
        own = f"[{config.host}]" if ":" in config.host else config.host
        self.hosts = _LOOPBACK | {own.lower().encode()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # the lifespan; websockets are turned off
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        started = False

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refuse(answer, *refusal)
                return
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.app(scope, receive, answer)
        except TimeoutError:
            if not started:
                await _refuse(answer, 504, f"no answer within {ANSWER_SECONDS:.0f} seconds; try again later")
        except Exception:
            log.exception("a bug in seqrec")
            if not started:
                await _refuse(answer, 500, BUG)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"localhost").lower()
        if self.check_host and not {host, host.rpartition(b":")[0]} & self.hosts:
            return 403, "the server answers only to localhost, as it has no token; see seqrec serve --help"
        if self.tokens and scope["path"] not in self.public and not self.tokens.accept(headers.get(b"authorization")):
            return 401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
            return 431, f"the headers have more than {MOST_HEADERS:,} bytes"
        if len(scope.get("query_string", b"")) > MOST_QUERY:
            return 414, f"the query has more than {MOST_QUERY:,} bytes"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MOST_BODY:
            return 413, f"the body has more than {MOST_BODY:,} bytes; send several requests"
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.measures.requests.labels(route, str(status)).inc()
        self.measures.seconds.labels(route).observe(seconds)
        if status >= 400 or self.log_all:
            line = {"method": scope["method"], "route": route, "status": status, "ms": round(1000 * seconds, 2)}
            log.info(json.dumps(line))


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = to_json({"detail": detail})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
