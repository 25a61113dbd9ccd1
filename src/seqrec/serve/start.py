"""Starts the server: checks its options, opens what it needs, and runs it in one process or several."""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqrec.errors import InputError
from seqrec.serve.config import ServeConfig, read_tokens
from seqrec.serve.live import Live, Runs
from seqrec.serve.snapshots import Snapshots
from seqrec.serve.store import EventStore, StoreError, open_store

WORKER = "SEQREC_SERVE"  # environment variable with the options of a worker process
BACKLOG = 2048  # connections that wait to be accepted
_PATHS = ("token_file", "new_items")  # options that are files
DRAIN_SECONDS = 30  # for requests in progress when the server is told to stop
_SWITCH_SECONDS = 0.0005  # how long a thread keeps the interpreter while another wants it; Python's 5 ms add to answers


def serve(folders: Sequence[Path], config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve run folders until SIGTERM or Ctrl-C. Requests in progress are finished first.

    Args:
        folders: run folders; the first is the default.
        config: options.
        say: shows a line to the person who started the server.

    Raises:
        InputError: an option is wrong, a run can't be served, or the address is in use.
    """
    read_tokens(config)
    place = config.store or str(Path(os.path.abspath(folders[0])).parent / "events.db")
    listening = _listen(config)
    options = asdict(config) | {"store": place}
    options |= {name: options[name] and str(options[name]) for name in _PATHS}
    given = {"folders": [str(folder) for folder in folders], "config": options}
    if threading.current_thread() is threading.main_thread():
        # uvicorn sends itself the signal again once it has stopped; the folder below must be removed before the end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="seqrec-serve-") as copies:  # of the runs
        os.environ[WORKER] = json.dumps(given | {"copies": copies})
        _run(config, listening, place, say)


def _run(config: ServeConfig, listening: socket.socket, place: str, say: Callable[[str], None]) -> None:
    """Serve in this process, or in several that share the socket."""
    import uvicorn

    address = _address(config, listening)
    # uvicorn's own lines would repeat each request, with its query.
    settings: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
        "timeout_keep_alive": 30,
        "ws": "none",
        "http": "seqrec.serve.connection:Connection",
        "backlog": BACKLOG,
    }
    if config.workers == 1:
        app = _app()
        say(
            f"listening on {address}, with the page; the API is described at {address}/openapi.json; events in "
            f"{_shown(place)}"
        )
        uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[listening])
        return
    from uvicorn.supervisors import Multiprocess

    from seqrec.serve.measures import forget_shared, share_between_workers

    _runs(json.loads(os.environ[WORKER]))  # a run that can't be served is one line here, not one per worker
    _opened(place).close()
    shared = share_between_workers()
    try:
        say(f"listening on {address} with {config.workers} workers; events in {_shown(place)}")
        settings |= {"workers": config.workers, "factory": True}
        worker = uvicorn.Config("seqrec.serve.start:_app", **settings)
        Multiprocess(worker, [listening]).run()
    finally:
        forget_shared(shared)


def _app() -> Any:
    """The application of this process, with the options that :func:`serve` left in the environment."""
    import torch

    from seqrec.serve.app import create_app
    from seqrec.serve.measures import Measures
    from seqrec.serve.server import Server

    options = json.loads(os.environ[WORKER])
    config = _config(options)
    _log_as_json()
    sys.setswitchinterval(_SWITCH_SECONDS)
    torch.set_num_threads(config.threads)
    measures = Measures()
    log = logging.getLogger("seqrec.serve")

    def report(name: str, result: str | Exception) -> None:
        refused = isinstance(result, Exception)
        measures.reloads.labels(name, "refused" if refused else "replaced").inc()
        if refused:
            log.error(json.dumps({"event": "run refused, the one in use stays", "run": name, "reason": str(result)}))
        else:
            measures.model.labels(name, result).set_to_current_time()
            log.info(json.dumps({"event": "run replaced", "run": name, "version": result}))
            _say_new_items(runs.get(name))

    runs = _runs(options, report)
    for live in runs.all():
        measures.model.labels(live.name, live.version).set_to_current_time()
        _say_new_items(live)
    store = _opened(str(config.store))
    server = Server(runs, store, config, measures)
    return create_app(server, read_tokens(config))


def _runs(options: dict[str, Any], report: Callable[[str, str | Exception], None] | None = None) -> Runs:
    """The runs that :func:`serve` was given."""
    folders, copies = [Path(folder) for folder in options["folders"]], Snapshots(Path(options["copies"]))
    config = _config(options)
    return Runs(folders, config.engine, report, copies, config.new_items)


def _say_new_items(live: Live) -> None:
    """Log how many new items a run ranks, or why it does not."""
    if live.new_items is not None:
        facts = {"run": live.name, "added": live.new_items.added, "note": live.new_items.note}
        logging.getLogger("seqrec.serve").info(json.dumps({"event": "new items"} | facts))


def _opened(place: str) -> EventStore:
    """The event store. One that is away is an error for the person who starts the server."""
    try:
        return open_store(place)
    except StoreError as error:
        raise InputError(f"{error}; start it, or give another --store") from error


def _config(options: dict[str, Any]) -> ServeConfig:
    """The options of the server that :func:`serve` was given."""
    given = options["config"]
    return ServeConfig(**given | {name: None if given[name] is None else Path(given[name]) for name in _PATHS})


def _listen(config: ServeConfig) -> socket.socket:
    """A socket on the address."""
    try:
        kinds = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = kinds[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise InputError(
            f"can't listen on {config.host} port {config.port} ({error.strerror}); give another --port or --host"
        ) from error
    listening.set_inheritable(True)
    return listening


def _address(config: ServeConfig, listening: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listening.getsockname()[1]}"


def _shown(place: str) -> str:
    """Where events are stored, without a password."""
    scheme, separator, rest = place.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else place


def _log_as_json() -> None:
    """Send the server's log to standard error, one JSON object per line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    for name in ("seqrec.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "seqrec.serve" else logging.WARNING)


class _JsonLines(logging.Formatter):
    """A log line as JSON: the time, the level, and the fields of the message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        text = record.getMessage()
        fields = json.loads(text) if text.startswith("{") else {"event": text}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps({"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname} | fields)
