"""Headers that never end, or are too large, are refused; others are served on the same connection again and again."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from seqrec.serve import connection

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that answers everything, on a thread."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.6)  # the machine may be busy

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(answer, http=connection.Connection, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


def everything(link: socket.socket) -> bytes:
    """What arrives until the other side closes."""
    link.settimeout(20)
    found = b""
    try:
        while part := link.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def answered(link: socket.socket) -> None:
    link.settimeout(20)
    found = b""
    while not found.endswith(b"ok"):
        part = link.recv(65536)
        assert part, found
        found += part


@pytest.mark.slow
def test_requests_on_one_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as link:
        for _ in range(3):
            link.sendall(REQUEST)
            answered(link)
            time.sleep(0.7)  # longer than headers may take: this is the time between two requests


@pytest.mark.slow_but_one
@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: lo"])
def test_headers_that_do_not_end(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(sent)
        assert everything(link).startswith(b"HTTP/1.1 408 ")


def test_a_second_request_that_does_not_end(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(REQUEST)
        answered(link)
        link.sendall(b"GET / HTTP/1.1\r\nHo")
        assert everything(link).startswith(b"HTTP/1.1 408 ")


def test_headers_that_are_too_large(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(70)))
        assert everything(link).startswith(b"HTTP/1.1 431 ")
