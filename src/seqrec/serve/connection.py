"""Connections with a limit on the time and the size of a request's headers, which uvicorn does not have."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from seqrec.serve.guard import MOST_HEADERS

HEADER_SECONDS = 10.0  # from the connection, or from the first byte of a request, to the end of its headers


class Connection(HttpToolsProtocol):
    """uvicorn's connection. One that sends no complete headers in time, or too large ones, is closed."""

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._received = 0
        self._headers_end = self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._headers_end.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._received = 0
        self._headers_end.cancel()
        self._headers_end = self._limit()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header."""
        self._received += len(name) + len(value)
        if self._received > MOST_HEADERS:
            self._refuse(b"431 Request Header Fields Too Large")
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers have arrived."""
        self._headers_end.cancel()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def _limit(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(HEADER_SECONDS, self._refuse, b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
