"""The event store: the same tests on SQLite and on Redis, and what each of them does when its storage fails."""

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import kill_store
import pytest
from disk import disk_that_ends_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_server import MISSING, REDIS, RedisServer

from seqrec.errors import InputError
from seqrec.serve.redis_store import RedisStore
from seqrec.serve.sqlite_store import SQLiteStore
from seqrec.serve.store import Event, EventStore, StoreError, StoreWarning, open_store

needs_redis = pytest.mark.skipif(REDIS is None, reason=MISSING)
NUMBERS = itertools.count()
LIMITS = (-(2**63), -1, 0, 2**53, 2**53 + 1, 2**63 - 1)


@pytest.fixture(scope="module")
def redis_server(quick: Path) -> Iterator[RedisServer]:
    server = RedisServer(quick, databases="2048", appendfsync="no")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, if the system has such a place: here each of thousands of writes would wait for the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        memory = tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def new_url(request: pytest.FixtureRequest, quick: Path) -> Callable[[], str]:
    """A function that returns the URL of a new store."""
    if request.param == "sqlite":
        return lambda: f"sqlite://{quick}/{next(NUMBERS)}.db"
    server = request.getfixturevalue("redis_server")
    return lambda: server.url(database=next(NUMBERS) % 2048)


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    return new_url()


def opened(url: str) -> EventStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)  # the tests' server does not wait for the disk
        return open_store(url)


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    store = opened(url)
    yield store
    store.close()


def event(name: str, user: str = "u", item: str = "i", time: int = 0) -> Event:
    return Event(name, user, item, time)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0)``, ``work(1)`` … at once, and raise what one of them raises."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_reads_by_time_then_arrival(store: EventStore) -> None:
    store.add([event("late", time=9), event("early", time=1), event("b", time=5)])
    store.add([event("a", time=5), event("other", "v", time=7)])
    everything = store.read(["u", "nobody", "v", "u"])
    assert [[found.id for found in events] for events in everything] == [
        ["early", "b", "a", "late"], [], ["other"], ["early", "b", "a", "late"],
    ]  # fmt: skip
    assert [found.id for found in store.read(["u"], 2)[0]] == ["a", "late"]
    assert store.read(["u", "v"], 0) == [[], []]
    assert store.read(["v"]) == [[Event("other", "v", "i", 7)]]


def test_an_id_is_stored_once_and_stays_as_it_was(store: EventStore) -> None:
    assert store.add([event("a"), event("b"), event("a", "v", "j", 3)]) == [True, True, False]
    assert store.add([event("b", "w"), event("c", "w"), event("a")]) == [False, True, False]
    assert store.find(["a", "b", "c", "d"]) == [event("a"), event("b"), event("c", "w"), None]
    assert store.read(["u", "v", "w"]) == [[event("a"), event("b")], [], [event("c", "w")]]


def test_empty_calls(store: EventStore) -> None:
    assert (store.add([]), store.read([]), store.find([])) == ([], [], [])


def test_all_text_and_times_survive(store: EventStore, url: str) -> None:
    texts = ["", "128", " a ", "ünïcodé", "日本", "😀", "\0", "a\0b", "%_'\"", "\r\n", "x" * 5000, "e\u0301", "é"]
    every = [(user, item, time) for user in texts for item in texts for time in LIMITS]
    events = [Event(f"{user[:100]}{number}", user, item, time) for number, (user, item, time) in enumerate(every)]
    events += [Event("😀" * 200, "u", "i", 1), Event("y" * 200, "u", "i", 2)]
    random.Random(0).shuffle(events)
    assert store.add(events) == [True] * len(events)
    again = opened(url)
    assert again.find([one.id for one in events]) == events
    for user in [*texts, "u"]:
        mine = [one for one in events if one.user == user]
        assert again.read([user]) == [sorted(mine, key=lambda one: one.time)]
    again.close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (event(""), "event 1: the id has 0 characters; give 1 to 200"),
        (event("x" * 201), "event 1: the id has 201 characters"),
        (event("a\ud800"), "half a character"),
        (event("a", "\ud800"), "half a character"),
        (event("a", "u", "\ud800"), "half a character"),
        (event("a", 128), "event 1: 128 is not text"),  # type: ignore[arg-type]
        (event("a", time=2**63), "the time is 9223372036854775808; give microseconds"),
        (event("a", time=-(2**63) - 1), "64 bits"),
        (event("a", time=1.5), "64 bits"),  # type: ignore[arg-type]
        (event("a", time=True), "64 bits"),
    ],
)
def test_an_event_that_cannot_be_stored_stores_nothing(store: EventStore, bad: Event, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.add([event("good"), bad])
    assert store.find(["good"]) == [None]


def test_bad_questions(store: EventStore) -> None:
    for wrong in (lambda: store.read(["\ud800"]), lambda: store.find(["\ud800"]), lambda: store.read(["u"], -1),
                  lambda: store.read(["u"], 2**63), lambda: store.read(["u"], 1.5)):  # type: ignore[arg-type] # fmt: skip
        with pytest.raises(InputError):
            wrong()


def test_threads_share_a_store(store: EventStore) -> None:
    new: list[str] = []

    def work(number: int) -> None:
        for step in range(20):
            shared, own = event(f"shared {step}", "both", time=step), event(f"{number} {step}", str(number), time=step)
            first, second = store.add([shared, own])
            assert second
            assert store.read([str(number)])[0][-1] == own
            assert store.find([shared.id]) == [shared]
            new.extend([shared.id] * first)

    in_threads(8, work)
    assert sorted(new) == sorted(f"shared {step}" for step in range(20))
    assert [len(events) for events in store.read(["both", "0", "7"])] == [20, 20, 20]


WRITER = """
import random, sys, warnings
from seqrec.serve.store import Event, open_store
warnings.simplefilter("ignore")
store, seed = open_store(sys.argv[1]), int(sys.argv[2])
names = [str(number) for number in range(300)]
random.Random(seed).shuffle(names)
for first in range(0, 300, 10):
    events = [Event(name, str(int(name) % 7), name, int(name)) for name in names[first : first + 10]]
    print(*[one.id for one, new in zip(events, store.add(events)) if new])
"""


@pytest.mark.slow_but_one
def test_processes_that_write_the_same_ids_store_each_once(url: str) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, str(seed)], stdout=subprocess.PIPE, text=True)
               for seed in range(4)]  # fmt: skip
    outputs = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert sorted(map(int, " ".join(outputs).split())) == list(range(300))
    store = opened(url)
    found = [int(one.id) for events in store.read([str(user) for user in range(7)]) for one in events]
    assert sorted(found) == list(range(300))
    store.close()


def test_a_closed_store_and_one_from_before_a_fork_say_so(store: EventStore, url: str, in_a_fork: Callable) -> None:
    store.add([event("a")])

    def child() -> str:
        try:
            return str(store.find(["a"])[0].id)
        except StoreError as error:
            return str(error)

    answer = in_a_fork(child)
    assert answer == "a" if url.startswith("redis") else "after the fork" in answer
    assert store.find(["a"]) == [event("a")]
    store.close()
    store.close()
    for use in (store.check, lambda: store.add([event("b")]), lambda: store.read(["u"]), lambda: store.find(["a"])):
        with pytest.raises(StoreError, match="is closed"):
            use()


few = st.sampled_from
events = st.builds(Event, few("abcdefgh"), few(["u", "v", "U"]), few("ij"), few(LIMITS) | st.integers(-3, 3))
batches = st.lists(st.lists(events, max_size=5), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=batches, most=st.integers(0, 6))
def test_equals_a_dictionary(new_url: Callable[[], str], batches: list[list[Event]], most: int) -> None:
    store = opened(new_url())
    model: dict[str, Event] = {}
    for batch in batches:
        expected = [one.id not in model and model.setdefault(one.id, one) is one for one in batch]
        assert store.add(batch) == expected
    users = ["u", "v", "U", "w"]
    by_time = sorted(model.values(), key=lambda one: one.time)
    histories = [[one for one in by_time if one.user == user] for user in users]
    assert store.read(users) == histories
    assert store.read(users, most) == [history[max(len(history) - most, 0) :] for history in histories]
    assert store.find([*"abcdefghx"]) == [model.get(name) for name in "abcdefghx"]
    store.check()
    store.close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "names no file"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://host/events.db", "names no file"),
        ("sqlite:///events.db?mode=ro", "names no file"),
        ("mysql://host/db", "mysql://…: is not an event store"),
        ("/missing/folder/events.db", "its folder does not exist"),
        ("sqlite:///missing/folder/events.db", "its folder does not exist"),
        ("/tmp", "is a folder"),
        ("/tmp/a\0b", "cannot be opened"),
        ("/tmp/" + "x" * 300, "name too long"),
        ("/proc/events.db", "unable to open database file"),  # a folder that nobody can write to, root included
        ("redis://", "names no host"),
        ("redis://:secret@host:port/0", "port"),
        ("redis://:secret@host:70000/0", "port"),
        ("redis://:secret@host/zero", "is not a number"),
        ("redis://:secret@host/0/1", "is not a number"),
        ("redis://:se#cret@host/0", "percent-encoded"),
        ("redis://:secret@host/0?socket_timeout=1", "only rediss:// takes options"),
        ("rediss://:secret@host/0?decode_responses=yes", "only rediss:// takes options"),
        ("rediss://:secret@host/0?ssl_nonsense=yes", "wrong option in the URL"),
    ],
)
def test_bad_urls_give_one_line_without_the_password(bad: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_store(bad)
    assert "cret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_redis_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InputError, match=r"pip install 'seqrec\[serve\]'"):
        open_store("redis://127.0.0.1:1/0")


# SQLite


def test_a_path_and_the_url_of_the_path_are_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = open_store("a b.db"), open_store(f"sqlite://{tmp_path}/a%20b.db")
    first.add([event("a")])
    assert second.find(["a"]) == [event("a")]
    memory = open_store(":memory:")
    assert (tmp_path / ":memory:").stat().st_size > 0
    for store in (first, second, memory):
        store.close()


def test_threads_and_processes_may_create_the_same_file(tmp_path: Path) -> None:
    def work(number: int) -> None:
        store = open_store(str(tmp_path / "events.db"))
        store.add([event(str(number))])
        store.close()

    in_threads(12, work)
    assert len(open_store(str(tmp_path / "events.db")).read(["u"])[0]) == 12


def make_foreign(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"user,item,time\n" * 1000), "not an SQLite file, or damaged"),
        (lambda path: make_foreign(path, "CREATE TABLE events (id)"), "of another application"),
        (lambda path: make_foreign(path, "PRAGMA user_version = 1"), "of another application"),
        (lambda path: make_foreign(path, "PRAGMA application_id = 7"), "of another application"),
        (lambda path: (open_store(str(path)).close(), make_foreign(path, "PRAGMA user_version = 2")), "is of format 2"),
        (lambda path: (open_store(str(path)).close(), make_foreign(path, "DROP TABLE events")), "no such table"),
        (lambda path: (open_store(str(path)).close(), os.truncate(path, 5000)), "damaged"),
    ],
)  # fmt: skip
def test_other_files_are_refused_and_stay_as_they_are(tmp_path: Path, make: Callable, message: str) -> None:
    path = tmp_path / "events.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message) as caught:
        open_store(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == before


def test_a_page_damaged_later_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = open_store(str(path))
    store.add([event(f"{number:0200}") for number in range(2000)])
    store.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (path.stat().st_size - 8192))
    with pytest.raises((StoreError, InputError), match="damaged") as caught:
        open_store(str(path)).read(["u"])
    assert len(str(caught.value).splitlines()) == 1


def test_a_removed_file_is_noticed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "events.db"))
    store.add([event("a")])
    (tmp_path / "events.db").unlink()
    for use in (store.check, lambda: store.add([event("b")]), lambda: store.read(["u"])):
        with pytest.raises(StoreError, match="removed or replaced"):
            use()


def test_a_lock_that_lasts_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.serve.sqlite_store._PATIENCE", 0.1)
    store = open_store(str(tmp_path / "events.db"))
    other = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for use in (store.check, lambda: store.add([event("a")])):
        with pytest.raises(StoreError, match="locked by another process"):
            use()
    assert store.read(["u"]) == [[]]  # reads need no lock
    other.execute("ROLLBACK")
    assert store.add([event("a")]) == [True]


@pytest.mark.parametrize("how", ["quota", "limit"])
def test_a_full_disk_stores_all_or_nothing(tmp_path: Path, in_a_fork: Callable, how: str) -> None:
    def child() -> list:
        store = open_store(str(tmp_path / "events.db"))
        store.add([event("before")])
        if how == "quota":
            store._idle[0].execute("PRAGMA max_page_count = 30")
        messages = []
        with disk_that_ends_at(200_000) if how == "limit" else nullcontext():
            for number in range(100):
                try:
                    store.add([event(f"{number} {n}", item="x" * 500) for n in range(20)])
                except StoreError as error:
                    messages.append(str(error))
                    break
        again = store.add([event(f"{number} {n}", item="x" * 500) for n in range(20)])
        return [messages, again, number, len(store.read(["u"], 10_000)[0])]

    (message,), again, number, stored = in_a_fork(child)
    assert ("no space left" if how == "quota" else "cannot be read or written") in message
    assert again == [True] * 20
    assert stored == 1 + (number + 1) * 20


# Redis


@needs_redis
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"appendonly": "no"}, "appendonly is off"),
        ({"appendfsync": "everysec"}, "appendfsync is everysec"),
        ({"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}, "full memory deletes events"),
        ({"rename-command": "CONFIG "}, "CONFIG GET is forbidden"),
        ({}, None),
    ],
)
def test_settings_that_lose_events_give_a_warning(tmp_path: Path, given: dict, message: str | None) -> None:
    server = RedisServer(tmp_path, **given)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_store(server.url()).close()
        assert [one.category for one in caught] == ([StoreWarning] if message else [])
        assert all(message in str(one.message) for one in caught)
    finally:
        server.stop()


@needs_redis
def test_a_wrong_password_and_a_wrong_database(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, requirepass="right")
    try:
        for url, message in [
            (server.url("wrong"), "refuses the user or the password"),
            (server.url(), "refuses the user or the password"),
            (server.url("right", 99), "DB index is out of range"),
        ]:
            with pytest.raises(InputError, match=message) as caught:
                open_store(url)
            assert "wrong@" not in str(caught.value)
        store = open_store(server.url("right"))
        assert store.add([event("a")]) == [True]
        store.close()
    finally:
        server.stop()


@needs_redis
def test_redis_goes_away_and_comes_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    store = open_store(server.url())
    try:
        store.add([event("a")])
        server.stop(signal.SIGKILL)
        for use in (store.check, lambda: store.add([event("b")]), lambda: store.read(["u"]), lambda: store.find(["a"])):
            with pytest.raises(StoreError, match="is not reachable"):
                use()
        with pytest.raises(StoreError, match="is not reachable"):
            open_store(server.url())
        server.start()
        store.check()
        assert store.add([event("a"), event("b")]) == [False, True]
        server.stop()
        server.start()  # the connection is broken, but the server is there: no error
        assert store.read(["u"]) == [[event("a"), event("b")]]
    finally:
        store.close()
        server.stop()


@needs_redis
def test_a_server_that_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.serve.redis_store._PATIENCE", 0.3)
    server = RedisServer(tmp_path)
    store = open_store(server.url())
    try:
        server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreError, match=r"no answer within 0\.3 seconds"):
            store.read(["u"])
    finally:
        server.process.send_signal(signal.SIGCONT)
        store.close()
        server.stop()


@needs_redis
def test_full_memory_stores_nothing_of_a_call(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, maxmemory="3mb")
    store = open_store(server.url())
    try:
        stored = 0
        refused = None
        while refused is None:
            try:
                stored += sum(store.add([event(f"{stored + n}", item="x" * 500) for n in range(20)]))
            except StoreError as error:
                refused = str(error)
        assert "its memory is full" in refused
        assert stored > 0
        assert len(store.read(["u"], 100_000)[0]) == stored
        assert store.find([f"{stored}"]) == [None]
    finally:
        store.close()
        server.stop()


@needs_redis
def test_data_of_another_format_is_refused(redis_server: RedisServer) -> None:
    import redis

    url = redis_server.url(database=next(NUMBERS))
    redis.Redis.from_url(url).set("seqrec:events:version", 2)
    with pytest.raises(InputError, match="seqrec:events:version is '2', not 1; update seqrec"):
        opened(url)


def test_the_kinds() -> None:
    public = {name for name in dir(EventStore) if not name.startswith("_")}
    assert public == {"add", "read", "find", "check", "close"} <= set(dir(SQLiteStore)) & set(dir(RedisStore))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["sqlite", *(pytest.param(kind, marks=needs_redis) for kind in ("redis", "redis-server"))]
)
def test_no_acknowledged_event_is_lost_or_there_twice(tmp_path: Path, kind: str) -> None:
    counted, failures = kill_store.run(3, kind, 0, tmp_path)
    assert failures == []
    assert counted["acknowledged"] > 0
