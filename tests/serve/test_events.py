"""Events over HTTP: recorded once, part of the next recommendation, read back with the log."""

import threading
from pathlib import Path
from typing import Any

import pytest
from small_run import make_log
from starlette.testclient import TestClient

from seqrec import Predictor
from seqrec.serve.store import Event, StoreError


def record(client: TestClient, *events: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/events", json={"events": list(events)})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def recommended(client: TestClient, **body: Any) -> list[str]:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_an_event_changes_the_next_recommendation(client: TestClient, trained: Path) -> None:
    predictor = Predictor.load(trained)
    history: list[str] = []
    for item in ("i3", "i17", "i5"):
        record(client, {"user": "guest", "item": item})
        history.append(item)
        assert recommended(client, user="guest") == [one for one, _ in predictor.recommend(history, 10)]


def test_events_follow_the_log_of_a_known_user(client: TestClient, trained: Path) -> None:
    own = make_log().filter(user_id="u9")["item_id"].to_list()
    record(client, {"user": "u9", "item": "i1", "time": 1_700_000_000})
    expected = Predictor.load(trained).recommend([*own, "i1"], 10)
    assert recommended(client, user="u9") == [one for one, _ in expected]
    history = client.get("/v1/history", params={"user": "u9"}).json()
    assert [item["id"] for item in history["items"]] == [*own, "i1"]
    assert [item["source"] for item in history["items"]] == ["log"] * len(own) + ["event"]
    assert history["items"][-1]["time"] == "2023-11-14T22:13:20+00:00"
    assert history["total"] == len(own) + 1
    assert history["known"]
    newest = client.get("/v1/history", params={"user": "u9", "k": 2}).json()["items"]
    assert [item["id"] for item in newest] == [own[-1], "i1"]


def test_an_earlier_event_takes_its_place(client: TestClient, trained: Path) -> None:
    own = make_log().filter(user_id="u9")["item_id"].to_list()
    record(client, {"user": "u9", "item": "i1", "time": 1_600_000_000 + 90})
    expected = Predictor.load(trained).recommend([*own[:2], "i1", *own[2:]], 10, keep_seen=True)
    assert recommended(client, user="u9", keep_seen=True) == [one for one, _ in expected]


def test_an_event_counts_once(client: TestClient) -> None:
    event = {"user": "a", "item": "i1", "event_id": "one"}
    first = client.post("/v1/events", json=event).json()  # a single event needs no list
    assert first == {"recorded": 1, "repeated": 0, "event_ids": ["one"], "unknown_items": []}
    assert record(client, event, event | {"event_id": "two"}, event) == {
        "recorded": 1, "repeated": 2, "event_ids": ["one", "two", "one"], "unknown_items": [],
    }  # fmt: skip
    history = client.get("/v1/history", params={"user": "a"}).json()
    assert history["total"] == 2


def test_an_event_id_for_another_event_is_an_error(client: TestClient) -> None:
    record(client, {"user": "a", "item": "i1", "event_id": "one"})
    answer = client.post("/v1/events", json={"user": "b", "item": "i1", "event_id": "one"})
    assert answer.status_code == 409
    assert "'one'" in answer.json()["detail"]
    assert client.get("/v1/history", params={"user": "b"}).json()["total"] == 0


def test_another_time_for_an_event_id_is_an_error(client: TestClient) -> None:
    event = {"user": "a", "item": "i1", "event_id": "one", "time": 1_700_000_000}
    record(client, event)
    assert record(client, event)["repeated"] == 1
    assert record(client, {"user": "a", "item": "i1", "event_id": "one"})["repeated"] == 1, "no time was sent"
    assert client.post("/v1/events", json=event | {"time": 1_700_000_001}).status_code == 409


def test_times_outside_of_the_calendar(client: TestClient) -> None:
    record(client, {"user": "a", "item": "i1"}, {"user": "a", "item": "i2", "time": -99_999_999_999})
    items = client.get("/v1/history", params={"user": "a"}).json()["items"]
    assert [(item["id"], item["time"] is None) for item in items] == [("i2", True), ("i1", False)]


def test_events_without_an_id_are_each_new(client: TestClient) -> None:
    found = record(client, {"user": "a", "item": "i1"}, {"user": "a", "item": "i1"})
    assert found["recorded"] == 2
    assert len(set(found["event_ids"])) == 2


def test_an_unknown_item_is_recorded_and_named(client: TestClient) -> None:
    assert record(client, {"user": "a", "item": "new"})["unknown_items"] == ["new"]
    (item,) = client.get("/v1/history", params={"user": "a"}).json()["items"]
    assert (item["id"], item["known"]) == ("new", False)
    answer = client.post("/v1/recommend", json={"user": "a"}).json()
    assert answer["used"]["ranked_by"] == "popularity"
    assert answer["used"]["unknown_items"] == ["new"]


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        ({"user": "a"}, 422, "item"),
        ({"item": "i1"}, 422, "user"),
        ({"user": "a", "item": "i1", "tiem": 1}, 422, "tiem"),
        ({"user": "a", "item": "i1", "time": "soon"}, 422, "soon"),
        ({"user": "a", "item": "i1", "time": True}, 422, "time"),
        ({"user": "a", "item": "i1", "event_id": ""}, 422, "event_id"),
        ({"user": "a", "item": "i1", "event_id": "x" * 201}, 422, "event_id"),
        ({"user": None, "item": "i1"}, 422, "user"),
        ({}, 422, "user"),
    ],
)
def test_bad_events_are_not_recorded(client: TestClient, event: dict[str, Any], status: int, words: str) -> None:
    """None of the events of a request is recorded if one is bad."""
    answer = client.post("/v1/events", json={"events": [{"user": "good", "item": "i1"}, event]})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert client.get("/v1/history", params={"user": "good"}).json()["total"] == 0


def test_events_of_many_clients_are_all_recorded(client: TestClient) -> None:
    def send(number: int) -> None:
        for turn in range(10):
            record(client, {"user": "shared", "item": f"i{turn}", "event_id": f"{number}-{turn}"})

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get("/v1/history", params={"user": "shared"}).json()["total"] == 80


def test_a_store_that_fails_is_503(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(events: list[list[Event]]) -> list[list[bool]]:
        raise StoreError("the disk is full; free some space")

    monkeypatch.setattr(client.app.app.state.server.recording, "work", fail)
    answer = client.post("/v1/events", json={"user": "a", "item": "i1"})
    assert answer.status_code == 503
    assert "the server's log has the reason" in answer.json()["detail"]
    assert "disk" in caplog.text
    assert "disk" not in answer.text
    assert answer.headers["retry-after"] == "2"
