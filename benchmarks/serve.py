"""Measures `seqrec serve`: python benchmarks/serve.py RUN [--workers 1] [--seconds 10] [--length 20].

The load comes from this process over raw sockets, as an HTTP library in Python would take longer than the server. Every
answer is checked: status 200, and as many items as were asked for.
"""

import argparse
import json
import random
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqrec.data.dataset import Dataset

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--length", type=int, default=20, help="items per history")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="first, single, batch, pairs, one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="further options of seqrec serve")
    options = parser.parse_args()
    dataset = Dataset.load(options.run / "data")
    ids = dataset.item_ids.to_list()
    draw = random.Random(0)

    def history() -> list[Any]:
        return draw.sample(ids, min(options.length, len(ids)))

    def single() -> bytes:
        return post("/v1/recommend", {"history": history(), "k": K})

    def batch() -> bytes:
        return post("/v1/recommend/batch", {"requests": [{"history": history(), "k": K} for _ in range(64)]})

    pools = {"single": [single() for _ in range(2000)], "batch": [batch() for _ in range(100)]}
    found: dict[str, Any] = {}
    wanted = options.only or ["first", "single", "batch", "pairs", "one"]
    with tempfile.TemporaryDirectory() as folder, server(options, Path(folder)) as (port, began):
        found["first"] = {"seconds": time.perf_counter() - began}
        load(port, 1, 2.0, lambda _: draw.choice(pools["single"]), 1)  # warm
        if "single" in wanted:
            found["single"] = load(
                port, options.connections, options.seconds, lambda _: draw.choice(pools["single"]), 1
            )
        if "one" in wanted:
            found["one"] = load(port, 1, options.seconds / 2, lambda _: draw.choice(pools["single"]), 1)
        if "batch" in wanted:
            found["batch"] = load(port, 2, options.seconds, lambda _: draw.choice(pools["batch"]), 64)
        if "pairs" in wanted:
            found["pairs"] = pairs(port, options, ids, draw)
    for name, figures in found.items():
        print(name, {key: round(value, 3 if value < 100 else 1) for key, value in figures.items()})
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def pairs(port: int, options: argparse.Namespace, ids: list[Any], draw: random.Random) -> dict[str, float]:
    """An event, then a recommendation for its user, on each connection in turn."""
    state = [0] * options.connections

    def ask(connection: int) -> bytes:
        turn = state[connection]
        state[connection] += 1
        user = f"user-{connection}-{turn // 40}"
        if turn % 2 == 0:
            return post("/v1/events", {"user": user, "item": draw.choice(ids), "event_id": f"{connection}-{turn}"})
        return post("/v1/recommend", {"user": user, "k": K})

    found = load(port, options.connections, options.seconds, ask, 1)
    return {"pairs per second": found["requests per second"] / 2, **{k: v for k, v in found.items() if "ms" in k}}


def post(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return f"{head}\r\n\r\n".encode() + content


@contextmanager
def server(options: argparse.Namespace, folder: Path) -> Iterator[tuple[int, float]]:
    """A server of its own. Yields its port and when it was started; it has answered one recommendation then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "seqrec.cli", "serve", str(options.run), "--port", str(port)]
    command += ["--workers", str(options.workers), "--store", str(folder / "events.db"), *options.serve]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                load(port, 1, 0, lambda _: post("/v1/recommend", {"history": ["no item"]}), 1)
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.perf_counter() - began > 120:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.005)
        yield port, began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def load(
    port: int, connections: int, seconds: float, ask: Callable[[int], bytes], recommendations: int
) -> dict[str, float]:
    """Keep one request in flight on each connection. With 0 seconds, send one request on each."""
    watch = selectors.DefaultSelector()
    latencies: list[float] = []
    sent = [0.0] * connections
    pending = [b""] * connections
    sockets = []
    for number in range(connections):
        link = socket.create_connection(("127.0.0.1", port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets.append(link)
        watch.register(link, selectors.EVENT_READ, number)
        sent[number] = time.perf_counter()
        link.sendall(ask(number))
    began = time.perf_counter()
    end, open_ones = began + seconds, connections
    while open_ones:
        for key, _ in watch.select():
            number = key.data
            link = sockets[number]
            part = link.recv(1 << 18)
            if not part:
                raise SystemExit("the server closed a connection")
            pending[number] += part
            head, found, body = pending[number].partition(b"\r\n\r\n")
            if not found or len(body) < int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]):
                continue
            if b" 200 " not in head[:16]:
                raise SystemExit(f"{head.decode()}\n{body.decode()}")
            now = time.perf_counter()
            latencies.append(now - sent[number])
            pending[number] = b""
            if now >= end:
                watch.unregister(link)
                link.close()
                open_ones -= 1
                continue
            sent[number] = now
            link.sendall(ask(number))
    took = time.perf_counter() - began
    latencies.sort()
    milliseconds = [1000 * value for value in latencies]
    return {
        "requests per second": len(latencies) / took,
        "recommendations per second": len(latencies) * recommendations / took,
        "p50 ms": statistics.median(milliseconds),
        "p90 ms": milliseconds[int(0.9 * (len(milliseconds) - 1))],
        "p99 ms": milliseconds[int(0.99 * (len(milliseconds) - 1))],
    }


if __name__ == "__main__":
    main()
