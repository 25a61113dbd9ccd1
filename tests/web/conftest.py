"""A real server with two small runs, and pages of Chromium that fail on errors and on requests elsewhere."""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web_server import SECONDS, Served, Watched, tables

from seqrec.cli.app import main

ARGUMENTS = [
    f"--{name}"
    for name in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``neural`` and ``counted``, both evaluated."""
    folder = tmp_path_factory.mktemp("web")
    log, items = tables()
    log.write_csv(folder / "log.csv")
    items.write_csv(folder / "items.csv")
    small = ["--embedding-dim=8", "--num-blocks=1", "--max-length=10", "--batch-size=16", "--epochs=3"]
    models = {"neural": ["--model=sasrec", "--evaluate-every=1", *small], "counted": ["--model=markov"]}
    for name, options in models.items():
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            code = main(
                ["fit", f"{folder}/log.csv", "--items", f"{folder}/items.csv", "--out", f"{folder}/{name}", *options]
            )
        assert code == 0
    return folder


@pytest.fixture(scope="session")
def serving(runs: Path) -> Iterator[Callable[..., str]]:
    """The address of a server with some runs, started at the first use."""
    with contextlib.ExitStack() as stack:
        known: dict[Any, Served] = {}

        def start(*names: str, token: str | None = None) -> str:
            if (names, token) not in known:
                known[names, token] = Served(runs, *names, token=token)
                stack.callback(known[names, token].stop)
            return known[names, token].address

        yield start


@pytest.fixture(scope="session")
def both(serving: Callable[..., str]) -> str:
    """The address of a server with two runs."""
    return serving("neural", "counted")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=1000 * SECONDS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a fresh profile. At the end there must be no error, and no request to another place."""
    contexts, watched = [], []

    def opened(address: str, hash_: str = "", width: int = 1400, theme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        seen = Watched()
        watched.append(seen)
        page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("dialog", lambda dialog: (seen.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))

        def check(route: Any) -> None:
            inside = route.request.url.startswith((f"{address}/", "data:"))
            if inside:
                route.continue_()
            else:
                seen.outside.append(route.request.url)
                route.abort()

        context.route("**/*", check)
        page.watched = seen
        page.goto(f"{address}/{hash_}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [found for seen in watched for found in seen.unexpected()] == []
