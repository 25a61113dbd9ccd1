"""Kill trials of the whole server: is an event that it acknowledged ever lost, or there twice?

``python tests/serve/kill_server.py RUN --trials 50 --store sqlite`` (or ``redis``) prints what was found. In each trial
eight clients post events until the server is killed by SIGKILL at a random moment. The events that were acknowledged
must be in the store, opened anew, exactly once; and once all of them were posted to the next server, every one.
"""

import argparse
import http.client
import json
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from redis_server import RedisServer
from test_process import ask, served

from seqrec.serve.store import open_store

USERS = [f"user {number}" for number in range(8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--store", choices=["sqlite", "redis"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        if options.store == "redis":
            redis = RedisServer(Path(folder))
            try:
                found = trials(options.run, redis.url(), options.trials, draw)
            finally:
                redis.stop()
        else:
            found = trials(options.run, str(Path(folder) / "events.db"), options.trials, draw)
    print(dict(found))
    if found["lost"] or found["twice"] or found["missing after sending again"]:
        raise SystemExit("events were lost or doubled")


def trials(run: str, url: str, count: int, draw: random.Random) -> Counter[str]:
    found: Counter[str] = Counter()
    earlier: list[dict[str, str]] = []  # what the last trial sent; the next server gets all of it again
    for trial in range(count):
        acknowledged: list[str] = []
        with served(run, "--store", url) as (port, process):
            if earlier:
                again = [
                    ask(port, "POST", "/v1/events", {"events": earlier[at : at + 500]})[0]
                    for at in range(0, len(earlier), 500)
                ]
                assert set(again) == {200}, again
                found["missing after sending again"] += len(earlier) - sum(count_of(url, earlier).values())
            sent: list[dict[str, str]] = []
            threads = [
                threading.Thread(target=post, args=(port, trial, client, sent, acknowledged)) for client in range(8)
            ]
            for thread in threads:
                thread.start()
            time.sleep(draw.uniform(0.05, 0.6))
            process.kill()
            for thread in threads:
                thread.join()
        stored = count_of(url, sent)
        found["acknowledged"] += len(acknowledged)
        found["sent"] += len(sent)
        found["lost"] += sum(stored[one] == 0 for one in acknowledged)
        found["twice"] += sum(number > 1 for number in stored.values())
        found["trials"] += 1
        earlier = sent
    return found


def post(port: int, trial: int, client: int, sent: list[dict[str, str]], acknowledged: list[str]) -> None:
    """Post events one after another, until the server is gone."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(10**6):
        event = {"user": USERS[client], "item": "i1", "event_id": f"{trial}-{client}-{number}"}
        sent.append(event)
        try:
            link.request("POST", "/v1/events", json.dumps(event), {"Content-Type": "application/json"})
            answer = link.getresponse()
            if answer.status == 200 and json.loads(answer.read())["recorded"] == 1:
                acknowledged.append(event["event_id"])
        except (OSError, http.client.HTTPException):
            return


def count_of(url: str, events: list[dict[str, str]]) -> Counter[str]:
    """How often each of some events is in the histories of its user."""
    wanted = {event["event_id"] for event in events}
    store = open_store(url)
    found = Counter(event.id for history in store.read(USERS, 10**6) for event in history if event.id in wanted)
    store.close()
    return found


if __name__ == "__main__":
    main()
