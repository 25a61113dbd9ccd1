"""The server as a process: it starts, answers, swaps runs under load, drains at SIGTERM, and says what is wrong."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TOKEN = "correct-horse-battery"


@contextmanager
def served(*options: str, **environment: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """A server on a free port. Yields the port and the process, which is stopped at the end."""
    command = [sys.executable, "-m", "seqrec.cli", "serve", *options, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[^ ]*:(\d+)", line)
        assert found, line + process.communicate(timeout=30)[1]
        port = int(found[1])
        while ask(port, "GET", "/readyz")[0] != 200:
            time.sleep(0.02)
        yield port, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def ask(port: int, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        link.request(method, path, None if body is None else json.dumps(body), headers)
        answer = link.getresponse()
        content = answer.read()
        kind = answer.getheader("content-type") or ""
        return answer.status, json.loads(content) if kind.startswith("application/json") else content.decode()
    except ConnectionRefusedError:
        return 0, None
    finally:
        link.close()


def wait(until: Callable[[], bool]) -> None:
    """Wait until something has happened, at most 30 seconds."""
    for _ in range(600):
        if until():
            return
        time.sleep(0.05)


@pytest.mark.slow
def test_several_workers_share_events_and_numbers(trained: Path, tmp_path: Path) -> None:
    with served(str(trained), "--workers", "2", "--store", str(tmp_path / "events.db")) as (port, _):
        for number in range(20):  # each on a connection of its own, so that both workers answer
            status, answer = ask(port, "POST", "/v1/events", {"user": "a", "item": "i1", "event_id": str(number)})
            assert (status, answer["recorded"]) == (200, 1)
            assert ask(port, "GET", "/v1/history?user=a")[1]["total"] == number + 1
        status, text = ask(port, "GET", "/metrics")
        found = re.search(r'seqrec_events_total\{result="recorded"\} (\d+)', text)
        assert found
        assert int(found[1]) == 20
        assert ask(port, "POST", "/v1/recommend", {"user": "a"})[1]["used"]["events"] == 20


@pytest.mark.slow
def test_runs_are_swapped_under_load(run: Path, trained: Path, other: Path, tmp_path: Path) -> None:
    """The watcher takes each new run; no request fails meanwhile, and both versions answer in the end."""
    options = ("--store", str(tmp_path / "events.db"), "--watch-seconds", "0.1")
    seen: set[str] = set()
    failed: list[Any] = []
    stop = threading.Event()
    with served(str(run), *options) as (port, _):

        def load() -> None:
            while not stop.is_set():
                status, answer = ask(port, "POST", "/v1/recommend", {"history": ["i3", "i4"]})
                if status == 200:
                    seen.add(answer["model_version"])
                else:
                    failed.append((status, answer))

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait(lambda: len(seen) == 1)
        for number in range(4):
            copy, old = run.with_name("copy"), run.with_name("old")
            shutil.copytree((other, trained)[number % 2], copy)
            run.rename(old)
            copy.rename(run)
            shutil.rmtree(old)
            wait(lambda: len(seen) == 2)
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert len(seen) == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_stopped_server_finishes_what_it_began(how: int, trained: Path, tmp_path: Path) -> None:
    """A request whose body is still arriving at the signal gets its answer; new connections are refused."""
    copies = tmp_path / "copies"
    copies.mkdir()
    with served(str(trained), "--store", str(tmp_path / "events.db"), TMPDIR=str(copies)) as (port, process):
        assert len(list(copies.iterdir())) == 1
        body = json.dumps({"history": ["i3", "i4"]}).encode()
        link = socket.create_connection(("127.0.0.1", port))
        head = "POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        time.sleep(0.3)
        process.send_signal(how)
        time.sleep(0.3)
        link.sendall(body[5:])
        answer = b""
        while part := link.recv(65536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 200"), answer
        process.wait(30)
        assert process.returncode in (0, 130, -signal.SIGINT, -signal.SIGTERM)
        assert ask(port, "GET", "/healthz")[0] == 0
        assert list(copies.iterdir()) == []


@pytest.mark.slow
def test_tokens_from_the_environment(trained: Path, tmp_path: Path) -> None:
    options = (str(trained), "--store", str(tmp_path / "events.db"))
    with served(*options, "--host", "0.0.0.0", SEQREC_TOKENS=TOKEN) as (port, process):
        assert ask(port, "GET", "/v1/runs")[0] == 401
        assert ask(port, "GET", "/v1/runs", token=TOKEN)[0] == 200
        process.terminate()
        assert TOKEN not in process.communicate(timeout=30)[1]


@pytest.mark.slow
def test_events_lie_beside_the_run_by_default(run: Path) -> None:
    with served(str(run)) as (port, _):
        assert ask(port, "POST", "/v1/events", {"user": "a", "item": "i1"})[0] == 200
    assert (run.parent / "events.db").exists()


def refused(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "seqrec.cli", "serve", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip()
    assert "\n" not in line, line
    return line


@pytest.mark.slow
def test_what_is_wrong_at_the_start_is_one_line(trained: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "give another --port" in refused(str(trained), "--port", port)
    assert "can be reached from other machines" in refused(str(trained), "--host", "0.0.0.0")
    assert "nothing.txt: can't be read" in refused(str(trained), "--token-file", str(tmp_path / "nothing.txt"))
    assert "mysql" in refused(str(trained), "--store", "mysql://x")
    assert str(tmp_path / "none") in refused(str(tmp_path / "none"))
    assert "port" in refused(str(trained), "--port", "65536")


@pytest.mark.slow
def test_the_examples_run(trained: Path, tmp_path: Path) -> None:
    examples = Path(__file__).parents[2] / "examples"
    with served(str(trained), "--store", str(tmp_path / "events.db"), SEQREC_TOKENS=TOKEN) as (port, _):
        commands = [[sys.executable, str(examples / "serve_client.py")]]
        if shutil.which("curl"):
            commands.append(["sh", str(examples / "serve_client.sh")])
        for command in commands:
            url, environment = f"http://127.0.0.1:{port}", os.environ | {"SEQREC_TOKEN": TOKEN}
            done = subprocess.run([*command, url], capture_output=True, text=True, env=environment, check=False)
            assert done.returncode == 0, done.stderr
            assert "'events': 1" in done.stdout or '"events":' in done.stdout
