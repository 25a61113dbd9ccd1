"""The OpenAPI document, tried out by schemathesis: every answer is as documented, and none is a server error."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from seqrec.serve.app import create_app
from seqrec.serve.config import ServeConfig, Tokens
from seqrec.serve.live import Runs
from seqrec.serve.measures import Measures
from seqrec.serve.server import Server
from seqrec.serve.store import open_store

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PATHS = [
    ("POST", "/v1/recommend"), ("POST", "/v1/recommend/batch"), ("POST", "/v1/events"), ("POST", "/v1/reload"),
    ("GET", "/v1/history"), ("GET", "/v1/items"), ("GET", "/v1/similar"), ("GET", "/v1/categories"),
    ("GET", "/v1/users"), ("GET", "/v1/replay"), ("GET", "/v1/runs"), ("GET", "/v1/runs/curve"), ("GET", "/healthz"),
    ("GET", "/readyz"), ("GET", "/metrics"),
]  # fmt: skip


@pytest.fixture(scope="module")
def url(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server, in a thread."""
    store = open_store(str(tmp_path_factory.mktemp("events") / "events.db"))
    server = Server(Runs([trained]), store, ServeConfig(watch_seconds=0), Measures())
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(create_app(server, Tokens([])), log_config=None))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    running.should_exit = True
    thread.join()


def try_out(url: str, method: str, path: str, cases: int) -> int:
    """Send valid and invalid requests to an operation and check the answers. Returns the number of requests."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operation = schema[path][method]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    sent = 0
    for mode in modes:
        strategy = operation.as_strategy(generation_mode=mode)

        @given(case=strategy)
        @settings(
            max_examples=cases, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def send(case: Any) -> None:
            nonlocal sent
            sent += 1
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # an operation without parameters has no invalid requests
            send()
    return sent


def get(url: str, path: str, body: bytes | None = None) -> Any:
    with urlopen(Request(url + path, body, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_every_answer_is_as_documented(url: str, method: str, path: str) -> None:
    assert try_out(url, method, path, 4) >= 1


@pytest.mark.slow
def test_a_thousand_requests(url: str) -> None:
    sent = {path: try_out(url, method, path, 100) for method, path in PATHS}
    assert sum(sent.values()) >= 1000, sent


def test_every_route_is_tried(url: str) -> None:
    document = get(url, "/openapi.json")
    found = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert found == set(PATHS)


def test_examples_are_valid(url: str) -> None:
    """Each example of a request body in the document gets an answer."""
    schemas = get(url, "/openapi.json")["components"]["schemas"]
    for name, path in (("Recommend", "recommend"), ("RecommendBatch", "recommend/batch"), ("NewEvents", "events")):
        assert schemas[name]["examples"]
        for example in schemas[name]["examples"]:
            assert get(url, f"/v1/{path}", json.dumps(example).encode())
