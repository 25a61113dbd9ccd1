"""Kill trials of the event store: is an acknowledged event ever lost, or any event there twice?

``python tests/serve/kill_store.py --trials 50 --store sqlite`` (or ``redis``, or ``redis-server``) prints what was
found; a test runs a short form. In each trial a child process adds batches of events and prints the ids that the store
acknowledged. After a random time it is killed by SIGKILL; with ``redis-server`` the server is killed before that and
started again, while the child repeats what failed. Then the store, opened anew, must hold each acknowledged event
exactly once, and whole batches only; and once all events have been sent again, each event exactly once.
"""

import argparse
import itertools
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from redis_server import RedisServer

from seqrec.serve.store import Event, EventStore, StoreError, open_store

STORES = ("sqlite", "redis", "redis-server")
USERS = 7


def batches_of(trial: int) -> Iterator[list[Event]]:
    """Random batches without end, some of which contain an earlier event again."""
    draw = random.Random(trial)
    earlier: list[Event] = []
    for number in itertools.count():
        batch = [
            Event(f"{trial}-{number}-{n}", f"user {draw.randrange(USERS)}", f"item {n}", draw.randrange(10**15))
            for n in range(draw.choice([1, 1, 3, 16, 64]))
        ]
        again = [draw.choice(earlier)] if earlier and draw.random() < 0.1 else []
        earlier += batch
        yield batch + again


def write(url: str, trial: int, output: int) -> None:
    """The child: add batches until killed, and print each acknowledged id. A batch that fails is added again."""
    store = open_store(url)
    for batch in batches_of(trial):
        while True:
            try:
                store.add(batch)
                break
            except StoreError:
                time.sleep(0.01)
        os.write(output, "".join(f"{event.id}\n" for event in batch).encode())


def start(url: str, trial: int) -> tuple[int, int]:
    """Fork a child, which needs no imports. Returns its process id and the end of the pipe into which it prints."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            write(url, trial, sender)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(1)
    os.close(sender)
    return child, receiver


def stored(store: EventStore) -> list[Event]:
    return [event for events in store.read([f"user {user}" for user in range(USERS)], 10**9) for event in events]


def acknowledged_by(url: str, trial: int, server: RedisServer | None, draw: random.Random) -> set[str]:
    """Run the child, kill it or the server, and return the ids that the child printed."""
    child, receiver = start(url, trial)
    printed = b""

    def listen(seconds: float) -> bool:
        """Read what the child prints in the next seconds; returns whether that was anything."""
        nonlocal printed
        before, deadline = len(printed), time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([receiver], [], [], left)[0]:
                read = os.read(receiver, 1 << 20)
                assert read, "the child ended"
                printed += read
        return len(printed) > before

    try:
        while not listen(0.01):
            pass
        listen(draw.random() * 0.3)
        if server:
            server.stop(signal.SIGKILL)
            listen(draw.random() * 0.1)
            server.start()
            listen(0.01)
            while not listen(0.01):  # the child goes on
                pass
            listen(draw.random() * 0.1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(receiver, "rb") as rest:
            printed += rest.read()
    return {line.decode() for line in printed.split(b"\n")[:-1]}


def attempt(url: str, trial: int, server: RedisServer | None, draw: random.Random) -> tuple[Counter[str], str]:
    """One trial: what was counted, and what is wrong, or an empty text."""
    acknowledged = acknowledged_by(url, trial, server, draw)
    store = open_store(url)
    mine = [event for event in stored(store) if event.id.startswith(f"{trial}-")]
    counts = Counter(event.id for event in mine)
    last = max(int(name.split("-")[1]) for name in counts)
    batches = list(itertools.islice(batches_of(trial), last + 3))
    sent = {event.id: event for batch in batches for event in batch}
    own = [{event.id for event in batch if event.id.startswith(f"{trial}-{n}-")} for n, batch in enumerate(batches)]
    for batch in batches:
        store.add(batch)
    after = Counter(event.id for event in stored(store) if event.id.startswith(f"{trial}-"))
    wrong = {
        "acknowledged and lost": len(acknowledged - set(counts)),
        "stored twice": sum(count > 1 for count in counts.values()),
        "stored with another content": sum(sent[event.id] != event for event in mine),
        "half a batch": sum(0 < len(ids & set(counts)) < len(ids) for ids in own),
        "not exactly once after sending all again": sum(after[name] != 1 for name in sent),
        "found by id and not as sent": sum(
            found != sent[name] for name, found in zip(counts, store.find(list(counts)), strict=True)
        ),
    }
    store.close()
    done = Counter({"acknowledged": len(acknowledged), "stored, not acknowledged": len(set(counts) - acknowledged)})
    return done, ", ".join(f"{count} {what}" for what, count in wrong.items() if count)


def run(trials: int, kind: str, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """All trials, on one store. Returns what was counted over all of them and the failures."""
    draw = random.Random(seed)
    server = None if kind == "sqlite" else RedisServer(folder)
    url = server.url() if server else str(folder / "events.db")
    total, failures = Counter[str](), []
    try:
        for trial in range(trials):
            done, wrong = attempt(url, trial, server if kind == "redis-server" else None, draw)
            total += done
            failures += [f"trial {trial} (seed {seed}): {wrong}"] * bool(wrong)
    finally:
        if server:
            server.stop()
    return total, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the store is put; by default a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        total, failures = run(given.trials, given.store, given.seed, Path(folder))
    print(f"{given.store}: {given.trials} trials, {dict(total)}, {len(failures)} failures")
    print(*failures, sep="\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
