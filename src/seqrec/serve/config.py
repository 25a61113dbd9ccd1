"""The options of ``seqrec serve``."""

import hashlib
import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from seqrec.data.fields import Count, Options, Range
from seqrec.errors import InputError

TOKENS = "SEQREC_TOKENS"  # environment variable with bearer tokens, separated by spaces
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServeConfig(Options):
    """How the server listens, what it stores and how much it takes on.

    Args:
        host: Address to listen on. Any other than this machine's own needs tokens.
        port: Port to listen on; 0 takes a free one.
        workers: Number of processes. They share the run folder and the event store.
        threads: Threads per process that compute.
        store: Where events are recorded: a file for SQLite, or redis://HOST:PORT/DB. By default events.db beside the
            first run.
        token_file: File of bearer tokens, one per line. By default the tokens are in the environment variable
            SEQREC_TOKENS.
        public_without_token: Listen on a public address without tokens.
        queue: Number of requests that may wait to be scored; more are answered with 503.
        watch_seconds: Seconds between looks at the run folder for a new run; 0 turns this off.
        engine: What computes the model: torch or onnx.
        new_items: File that describes items which training never saw; runs that learned features rank them too. When it
            changes, the server reads it again.
        log: Requests to log: all, or those with an error.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 8000
    workers: Annotated[int, Range(1, 256)] = 1
    threads: Count = 1
    store: str | None = None
    token_file: Path | None = None
    public_without_token: bool = False
    queue: Annotated[int, Range(1, 10**6)] = 512
    watch_seconds: Annotated[float, Range(0, 86400)] = 2.0
    engine: Literal["torch", "onnx"] = "torch"
    new_items: Path | None = None
    log: Literal["all", "errors"] = "errors"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Tokens:
    """Bearer tokens. They are compared in constant time, and only their digests are kept.

    Args:
        tokens: the tokens; none accepts every request.
    """

    def __init__(self, tokens: list[str]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, header: bytes | None) -> bool:
        """Whether an Authorization header has one of the tokens. Every token is compared."""
        kind, _, token = (header or b"").partition(b" ")
        given = _digest(token.strip())
        same = [hmac.compare_digest(given, known) for known in self._digests]
        return kind.lower() == b"bearer" and any(same)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_tokens(config: ServeConfig) -> Tokens:
    """The tokens of a server, from its file or the environment.

    Raises:
        InputError: the file can't be read, a token is too short, or a public address has no token.
    """
    if config.token_file is not None:
        try:
            text, place = config.token_file.read_text(), str(config.token_file)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InputError(
                f"{config.token_file}: can't be read ({reason}); give a file of one token per line"
            ) from error
        found = [line.strip() for line in text.splitlines() if line.strip()]
        if not found:
            raise InputError(f"{place}: has no token; write one per line")
    else:
        found, place = os.environ.get(TOKENS, "").split(), TOKENS
    for number, token in enumerate(found, 1):
        if len(token) < SHORTEST_TOKEN or not token.isascii() or " " in token:
            raise InputError(
                f"{place}: token {number} has fewer than {SHORTEST_TOKEN} characters, spaces, or others than ASCII; "
                "make one with python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
    if not found and not config.is_local and not config.public_without_token:
        raise InputError(
            f"host {config.host} can be reached from other machines; give --token-file or {TOKENS}, or "
            "--public-without-token if something in front of the server checks requests"
        )
    return Tokens(found)
