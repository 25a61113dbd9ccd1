"""A small run with titles and categories, and a client of its server."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_run import fit
from starlette.testclient import TestClient

from seqrec.serve.app import create_app
from seqrec.serve.config import ServeConfig, Tokens
from seqrec.serve.live import Runs
from seqrec.serve.measures import Measures
from seqrec.serve.server import Server
from seqrec.serve.store import open_store


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, not to be changed."""
    return fit(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return fit(tmp_path_factory.mktemp("serve") / "other", seed=2)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of the test's own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


Serving = Callable[..., TestClient]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """A function that starts a server for run folders and returns its client."""
    clients: list[TestClient] = []

    def start(*folders: Path, tokens: tuple[str, ...] = (), **options: Any) -> TestClient:
        config = ServeConfig(**{"watch_seconds": 0.0} | options)
        store = open_store(str(tmp_path / f"events{len(clients)}.db"))
        runs = Runs(list(folders), config.engine, new_items=config.new_items)
        server = Server(runs, store, config, Measures())
        client = TestClient(create_app(server, Tokens(list(tokens))), base_url="http://localhost:8000")
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serving: Serving, trained: Path) -> TestClient:
    """A client of a server with one run."""
    return serving(trained)
