"""Safety: tokens, hosts, limits, and what is written to the log."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from seqrec import InputError
from seqrec.serve.config import ServeConfig, Tokens, read_tokens

TOKEN = "correct-horse-battery"
JSON = {"content-type": "application/json"}


@pytest.fixture
def closed(serving: Any, trained: Path) -> TestClient:
    client: TestClient = serving(trained, tokens=(TOKEN, "another-long-token-1"))
    return client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é",
     f"Bearer {TOKEN} another-long-token-1"],
)  # fmt: skip
def test_without_the_token_only_health_and_the_page_answer(closed: TestClient, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    for path in ("/v1/runs", "/v1/items", "/metrics", "/openapi.json", "/nowhere", "/v1/history?user=a"):
        answer = closed.get(path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in answer.json()["detail"]
    assert closed.post("/v1/recommend", json={}, headers=headers).status_code == 401
    assert closed.post("/v1/reload", headers=headers).status_code == 401
    for path in ("/healthz", "/readyz", "/", "/static/app.js"):
        assert closed.get(path, headers=headers).status_code == 200, path


def test_with_a_token_everything_answers(closed: TestClient) -> None:
    for token in (TOKEN, "another-long-token-1"):
        answer = closed.get("/v1/runs", headers={"authorization": f"bearer {token}"})
        assert answer.status_code == 200
    document = closed.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert document["security"] == [{"token": []}]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil:80"])
def test_another_host_name_is_refused_without_tokens(client: TestClient, host: str) -> None:
    """Otherwise a page on the web could read from the server by a name that resolves to this machine."""
    assert client.get("/v1/runs", headers={"host": host}).status_code == 403
    for own in ("localhost", "LOCALHOST:1234", "127.0.0.1:8000", "[::1]:8000"):
        assert client.get("/v1/runs", headers={"host": own}).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"{}", {}, 415, "application/json"),
        (b"{}", {"content-type": "text/plain"}, 415, "application/json"),
        (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        (b"", JSON, 400, "not JSON"),
        (b"{", JSON, 400, "not JSON"),
        (b"\xff\xfe", JSON, 400, "not JSON"),
        (b'{"k": NaN}', JSON, 422, "k:"),
        (b'{"k": 1e999}', JSON, 422, "k:"),
        (b'{"history": [1e400]}', JSON, 422, "history.0"),
        (b'{"user": "\\ud800"}', JSON, 400, "not JSON"),
        (b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, 400, "not JSON"),
        (b'{"user": "' + b"x" * 2**20 + b'"}', JSON, 413, "1,048,576 bytes"),
        (b'{"user": ' + b"9" * 5000 + b"}", JSON, 400, "not JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bodies_that_are_refused(
    client: TestClient, content: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = client.post("/v1/recommend", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert len(answer.text) < 500


def test_a_large_body_without_a_length_is_refused(client: TestClient) -> None:
    def parts() -> Any:
        for _ in range(40):
            yield b" " * 2**15

    answer = client.post("/v1/recommend", content=parts(), headers=JSON)
    assert answer.status_code == 413


def test_other_methods_and_long_queries(client: TestClient) -> None:
    answer = client.get("/v1/recommend")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert client.get("/v1/items", params={"q": "x" * 5000}).status_code == 414
    for query in ({"k": "0"}, {"k": "many"}, {"k": "1e9"}, {"q": "x" * 201}):
        answer = client.get("/v1/items", params=query)
        assert answer.status_code == 422
        assert next(iter(query)) in answer.json()["detail"]


def test_the_log_has_neither_tokens_nor_histories(
    serving: Any, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = serving(trained, tokens=(TOKEN,), log="all")
    with caplog.at_level(logging.INFO, "seqrec.serve"):
        headers = {"authorization": f"Bearer {TOKEN}"}
        client.post("/v1/recommend", json={"history": ["i11", "i12"], "user": "u17"}, headers=headers)
        client.get("/v1/history", params={"user": "u17"}, headers=headers)
        client.get("/v1/history", headers={"authorization": "Bearer wrong-but-secret-too"})
    assert len(caplog.records) == 3
    assert '"route": "/v1/recommend", "status": 200' in caplog.text
    for secret in (TOKEN, "wrong-but-secret", "i11", "u17"):
        assert secret not in caplog.text


def test_a_bug_is_one_line_for_the_client(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(requests: Any) -> Any:
        raise RuntimeError("secret state")

    monkeypatch.setattr(client.app.app.state.server.ranking, "work", broken)
    answer = client.post("/v1/recommend", json={})
    assert answer.status_code == 500
    assert "bug in seqrec" in answer.json()["detail"]
    assert "secret" not in answer.text
    assert "secret state" in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_a_public_address_needs_tokens(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SEQREC_TOKENS", raising=False)
    with pytest.raises(InputError, match="can be reached from other machines"):
        read_tokens(ServeConfig(host=host))
    assert not read_tokens(ServeConfig(host=host, public_without_token=True))
    (tmp_path / "tokens").write_text(f"{TOKEN}\n\n")
    assert read_tokens(ServeConfig(host=host, token_file=tmp_path / "tokens")).accept(f"Bearer {TOKEN}".encode())
    monkeypatch.setenv("SEQREC_TOKENS", TOKEN)
    assert read_tokens(ServeConfig(host=host)).accept(f"Bearer {TOKEN}".encode())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_this_machine_needs_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQREC_TOKENS", raising=False)
    assert not read_tokens(ServeConfig(host=host))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no token"),
        ("tiny", "token 1"),
        (f"{TOKEN}\nwith some spaces in it", "token 2"),
        (None, "can't be read"),
        (b"\xff\xfe\x00", "not text"),
    ],
)
def test_bad_token_files(text: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_tokens(ServeConfig(token_file=path))
    assert "tiny" not in str(caught.value).removeprefix(str(path))


def test_tokens_are_kept_as_digests() -> None:
    tokens = Tokens([TOKEN])
    assert TOKEN not in repr(vars(tokens))
    assert not Tokens([]).accept(b"Bearer ")


def test_a_full_queue_is_503(serving: Any, trained: Path) -> None:
    client = serving(trained, queue=2)
    server = client.app.app.state.server
    began, allowed, real = threading.Event(), threading.Event(), server.ranking.work

    def slow(requests: Any) -> Any:
        began.set()
        allowed.wait(20)
        return real(requests)

    server.ranking.work = slow
    with ThreadPoolExecutor(4) as threads:
        running = threads.submit(client.post, "/v1/recommend", json={})
        assert began.wait(20)
        waiting = [threads.submit(client.post, "/v1/recommend", json={}) for _ in range(2)]
        while server.ranking.waiting < 2:
            time.sleep(0.01)
        answer = client.post("/v1/recommend", json={})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        allowed.set()
        assert [one.result().status_code for one in [running, *waiting]] == [200] * 3
    assert client.post("/v1/recommend", json={}).status_code == 200


def test_large_headers_and_fields_that_a_query_does_not_have(client: TestClient) -> None:
    assert client.get("/v1/runs", headers={"x-large": "x" * 40_000}).status_code == 431
    for query, words in (("item=i1&K=3", "'K' is unknown"), ("item=i1&k=3&k=4", "k: is given twice")):
        answer = client.get(f"/v1/similar?{query}")
        assert answer.status_code == 422
        assert words in answer.json()["detail"]


def test_a_client_that_leaves_is_no_bug(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await client.app({"type": "http", "method": "POST", "path": "/v1/recommend", "raw_path": b"/v1/recommend",
                          "query_string": b"", "headers": headers, "http_version": "1.1", "root_path": "",
                          "scheme": "http", "asgi": {"version": "3.0"}}, receive, send)  # fmt: skip

    assert client.portal is not None
    with caplog.at_level(logging.INFO, "seqrec.serve"):
        client.portal.call(talk)
    assert "bug" not in caplog.text
    assert '"status": 400' in caplog.text


def test_a_slow_body_is_given_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.serve.http.BODY_SECONDS", 0.05)

    async def talk() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(10)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "raw_path": b"/v1/recommend",
                 "query_string": b"", "headers": headers, "http_version": "1.1", "root_path": "", "scheme": "http",
                 "asgi": {"version": "3.0"}}  # fmt: skip
        await client.app(scope, receive, send)
        return sent

    assert client.portal is not None
    sent = client.portal.call(talk)
    assert sent[0]["status"] == 408
