"""Recommendations over HTTP: they are those of the predictor, after the log, the events and the items sent along."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from small_run import OPTIONS, USERS, fit, make_log
from starlette.testclient import TestClient

from seqrec import Predictor, Recommender
from seqrec.data.batches import histories_of, pack

HISTORY = ["i3", "i5", "i6"]


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained)


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def pairs(answer: dict[str, Any]) -> list[tuple[Any, float]]:
    return [(item["id"], pytest.approx(item["score"], abs=1e-5)) for item in answer["items"]]


def test_a_history_gets_what_the_predictor_recommends(client: TestClient, predictor: Predictor) -> None:
    answer = ask(client, history=HISTORY, k=5)
    assert pairs(answer) == list(predictor.recommend(HISTORY, 5))
    assert answer["used"] == {
        "ranked_by": "model", "log": 0, "events": 0, "sent": 3, "read": 3, "unknown_items": [], "notes": [],
    }  # fmt: skip
    assert all(item["title"] for item in answer["items"])


def test_a_user_gets_what_the_predictor_recommends(client: TestClient, predictor: Predictor) -> None:
    answer = ask(client, user="u7")
    assert pairs(answer) == list(predictor.recommend_users("u7", 10))
    own = make_log().filter(user_id="u7")["item_id"].to_list()
    assert answer["used"]["log"] == len(own)
    assert not {item["id"] for item in answer["items"]} & set(own)


def test_items_sent_along_come_after_the_users_own(client: TestClient, predictor: Predictor) -> None:
    own = make_log().filter(user_id="u7")["item_id"].to_list()
    answer = ask(client, user="u7", history=HISTORY, keep_seen=True)
    assert pairs(answer) == list(predictor.recommend([*own, *HISTORY], 10, keep_seen=True))
    assert answer["used"]["sent"] == 3


def test_features_of_users_count_for_those_of_the_log_alone(serving: Any, tmp_path: Path) -> None:
    users = pl.DataFrame({"user_id": [f"u{user}" for user in range(USERS)], "group": ["a", "b", "b"] * (USERS // 3)})
    options = OPTIONS | {"user_features": "group", "epochs": 4, "learning_rate": 0.03, "transitions": "off"}
    Recommender("sasrec", **options).fit(make_log(), users=users).save(tmp_path / "users")
    client, predictor = serving(tmp_path / "users"), Predictor.load(tmp_path / "users")
    own = make_log().filter(user_id="u7")["item_id"].to_list()
    answer = ask(client, user="u7", keep_seen=True, explain=True)
    assert pairs(answer) == list(predictor.recommend_users("u7", 10, keep_seen=True))
    unknown = ask(client, user="nobody", history=own, keep_seen=True)
    assert pairs(unknown) == list(predictor.recommend(own, 10, keep_seen=True))
    assert unknown["used"]["notes"] == ["the user is not in the log, so features of users count as unknown"]
    nobody = ask(client, history=own, keep_seen=True)
    assert nobody["used"]["notes"] == ["the request names no user, so features of users count as unknown"]
    assert nobody["items"] == unknown["items"]
    assert answer["used"]["notes"] == []
    assert [item["score"] for item in unknown["items"]] != [item["score"] for item in answer["items"]]
    # What an item of the history is worth is measured with the same person without it.
    dataset, first = predictor.dataset, answer["items"][0]
    target, user = dataset.item_indices([first["id"]]), dataset.user_indices(["u7"])
    for why in first["why"]:
        left = dataset.item_indices([item for item in own[-8:] if item != why["id"]])
        if len(left) == 7:  # it is there once
            batch = pack(replace(histories_of(dataset, [left]), users=user), 8)
            with torch.no_grad():
                less = predictor.model.score(predictor.model.encode_last(batch), torch.from_numpy(target))
            assert why["influence"] == pytest.approx(first["score"] - float(less), abs=1e-4)


def test_times_set_the_order(client: TestClient, predictor: Predictor) -> None:
    answer = ask(client, history=HISTORY, times=[30, 10, 20])
    assert pairs(answer) == list(predictor.recommend(["i5", "i6", "i3"], 10))
    dates = ["2024-01-03", "2024-01-01", "2024-01-02T12:00:00Z"]
    assert ask(client, history=HISTORY, times=dates)["items"] == answer["items"]


def test_times_place_items_among_those_of_the_log(client: TestClient, predictor: Predictor) -> None:
    own = make_log().filter(user_id="u8")["item_id"].to_list()
    answer = ask(client, user="u8", history=["i1"], times=[1_600_000_000 + 90], keep_seen=True)
    assert pairs(answer) == list(predictor.recommend([*own[:2], "i1", *own[2:]], 10, keep_seen=True))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"user": "nobody"}, "not in the log"),
        ({"history": []}, "no history"),
        ({}, "no history"),
        ({"history": ["nothing"]}, "no item of the history is in the catalogue"),
    ],
)
def test_without_a_known_history_popularity_ranks_and_says_so(
    client: TestClient, body: dict[str, Any], words: str
) -> None:
    answer = ask(client, **body)
    counts = make_log()["item_id"].value_counts(sort=True)["count"].to_list()
    assert [item["score"] for item in answer["items"]] == counts[:10]
    assert answer["used"]["ranked_by"] == "popularity"
    assert words in answer["used"]["notes"][0]


def test_unknown_items_are_named(client: TestClient, predictor: Predictor) -> None:
    answer = ask(client, history=["x", "i3", 17], deny=["y"])
    assert answer["used"]["unknown_items"] == ["x", 17, "y"]
    assert pairs(answer) == list(predictor.recommend(["i3"], 10))


def test_filters(client: TestClient, predictor: Predictor) -> None:
    allowed = ["i1", "i2", "i9", "i20", "i21"]
    assert pairs(ask(client, history=HISTORY, allow=allowed, deny=["i2"])) == list(
        predictor.recommend(HISTORY, 10, allow=allowed, deny=["i2"])
    )
    even = ask(client, history=HISTORY, category="even", k=40)["items"]
    assert {item["id"] for item in even} == {f"i{item}" for item in range(0, 40, 2)} - {"i6"}
    both = ask(client, history=HISTORY, category="even", allow=allowed)["items"]
    assert {item["id"] for item in both} == {"i2", "i20"}
    none = ask(client, history=HISTORY, allow=[])
    assert none["items"] == []
    assert none["used"]["notes"] == ["only 0 items are left after the filters"]


def test_more_than_the_catalogue(client: TestClient) -> None:
    answer = ask(client, history=HISTORY, k=1000)
    assert len(answer["items"]) == 37
    assert "only 37 items" in answer["used"]["notes"][0]


def test_a_batch_is_answered_in_its_order(client: TestClient) -> None:
    """Requests with other filters and numbers of items are ranked in other groups."""
    draw = np.random.default_rng(3)
    requests: list[dict[str, Any]] = []
    for number in range(60):
        history = [f"i{item}" for item in draw.integers(0, 40, draw.integers(0, 12))]
        request: dict[str, Any] = {"history": history, "k": int(draw.integers(1, 20))}
        request |= [{}, {"deny": ["i1"]}, {"category": "odd"}, {"keep_seen": True}, {"user": f"u{number}"}][number % 5]
        requests.append(request)
    answer = client.post("/v1/recommend/batch", json={"requests": requests}).json()
    for request, found in zip(requests, answer["results"], strict=True):
        alone = ask(client, **request)
        assert [item["id"] for item in found["items"]] == [item["id"] for item in alone["items"]]
        assert pairs(found) == [(item["id"], item["score"]) for item in alone["items"]]
        assert found["used"] == alone["used"]


def test_reasons_are_what_the_score_loses(client: TestClient, predictor: Predictor) -> None:
    """Each item of the history is left out in turn, and the model asked again."""
    (item, *_) = ask(client, history=HISTORY, k=1, explain=True)["items"]
    assert sum(reason["attention"] for reason in item["why"]) == pytest.approx(1)
    for reason in item["why"]:
        without = [one for one in HISTORY if one != reason["id"]]
        less = dict(predictor.recommend(without, 40, keep_seen=True))[item["id"]]
        lost = item["score"] - less
        counted = (reason["transitions"] or 0) - _regained(predictor, HISTORY, reason["id"], item["id"])
        assert reason["influence"] + counted == pytest.approx(lost, abs=1e-3)


def _regained(predictor: Predictor, history: list[str], left_out: str, item: str) -> float:
    """What the counts after the other items of a history add when one is left out, less what they added before."""
    addition = predictor.model.addition
    if addition is None:
        return 0.0

    def parts(items: list[str]) -> dict[str, float]:
        table, decay = addition.transitions, addition.transitions.config.decay
        column = int(predictor.dataset.item_indices([item])[0])
        weights = [decay**age for age in range(len(items))]
        found = {}
        for age, one in enumerate(reversed(items)):
            index = int(predictor.dataset.item_indices([one])[0])
            own = slice(int(table.offsets[index]), int(table.offsets[index + 1]))
            values = dict(zip(table.columns[own].tolist(), table.values[own].tolist(), strict=True))
            found[one] = addition.weight * values.get(column, 0.0) * weights[age] / sum(weights)
        return found

    before, after = parts(history), parts([one for one in history if one != left_out])
    return sum(after[one] - before[one] for one in after)


def test_reasons_of_one_item(client: TestClient) -> None:
    (item,) = ask(client, history=["i4"], k=1, explain=True)["items"]
    assert [reason["id"] for reason in item["why"]] == ["i4"]
    assert "why" not in ask(client, history=["i4"], k=1)["items"][0]


def test_two_runs(serving: Any, trained: Path, other: Path) -> None:
    client = serving(trained, other)
    names = [card["run"] for card in client.get("/v1/runs").json()["runs"]]
    assert names == ["run", "other"]
    for folder in (trained, other):
        answer = ask(client, history=HISTORY, run=folder.name)
        assert answer["run"] == folder.name
        assert pairs(answer) == list(Predictor.load(folder).recommend(HISTORY, 10))
    assert "choose from run, other" in client.post("/v1/recommend", json={"run": "third"}).json()["detail"]


ANY = "the field is named in the error"
BAD: list[tuple[dict[str, Any] | list[Any], str]] = [
    ({"k": 0}, "k:"),
    ({"k": -1}, "k:"),
    ({"k": 1001}, "k:"),
    ({"k": 1.5}, "k:"),
    ({"k": True}, "k:"),
    ({"k": "10"}, "k:"),
    ({"user": None, "hisotry": []}, "hisotry"),
    ({"user": ""}, "user"),
    ({"user": True}, "user"),
    ({"user": 1.5}, "user"),
    ({"user": "x" * 201}, "at most 200 characters"),
    ({"user": 2**63}, "user"),
    ({"user": ["a"]}, "user"),
    ({"history": "i1"}, "history"),
    ({"history": [None]}, "history.0"),
    ({"history": [["i1"]]}, "history.0"),
    ({"history": ["i1"] * 1001}, "history"),
    ({"history": ["i1"], "times": []}, "times"),
    ({"history": ["i1"], "times": ["yesterday"]}, "yesterday"),
    ({"history": ["i1", "i2"], "times": [1, "2024-01-01"]}, "times"),
    ({"history": ["i1"], "times": [None]}, "times.0"),
    ({"history": ["i1"], "times": ["20240131"]}, "times.0"),
    ({"history": ["i1"], "category": "neither"}, "neither"),
    ({"explain": "yes"}, "explain"),
    ({"keep_seen": 1}, "keep_seen"),
    ({"allow": "i1"}, "allow"),
    ([], "body"),
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("body", "words"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_are_one_clear_line(client: TestClient, body: Any, words: str) -> None:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert words in detail
    assert "\n" not in detail
    assert len(detail) < 400


def test_one_bad_request_of_a_batch_is_named(client: TestClient) -> None:
    body = {"requests": [{"history": ["i1"]}, {"history": ["i1"], "category": "neither"}]}
    answer = client.post("/v1/recommend/batch", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("requests.1: ")
    assert client.post("/v1/recommend/batch", json={"requests": []}).json()["results"] == []
    many = {"requests": [{}] * 257}
    assert client.post("/v1/recommend/batch", json=many).status_code == 422


def test_costly_requests_are_limited(client: TestClient) -> None:
    """One request must not keep the others waiting for seconds."""
    explained = client.post("/v1/recommend/batch", json={"requests": [{}, {"history": ["i1"], "explain": True}]})
    assert explained.status_code == 422
    assert explained.json()["detail"].startswith("requests.1.explain: ")
    many = client.post("/v1/recommend/batch", json={"requests": [{"k": 1000}] * 21})
    assert many.status_code == 422
    assert "more than 20,000 items" in many.json()["detail"]
    assert client.post("/v1/recommend", json={"history": ["i1"], "explain": True, "k": 51}).status_code == 422


def test_only_the_newest_events_count_and_it_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.serve.histories.MOST_EVENTS", 3)
    events = [{"user": "many", "item": f"i{item}", "time": 1_700_000_000 + item} for item in range(5)]
    assert client.post("/v1/events", json={"events": events}).status_code == 200
    answer = ask(client, user="many")
    assert answer["used"]["events"] == 3
    assert answer["used"]["notes"] == ["only the newest 3 recorded events count"]


@pytest.mark.parametrize("model", ["tisasrec", "hstu"])
def test_real_times_reach_models_that_know_them(model: str, serving: Any, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", model, ensemble=1, transitions="off")
    client, predictor = serving(run), Predictor.load(run)
    times = [1_600_000_000, 1_600_000_600, 1_600_900_000]
    answer = ask(client, history=HISTORY, times=times)
    assert pairs(answer) == list(predictor.recommend(HISTORY, 10, times=times))
    assert answer["used"]["notes"] == []
    without = ask(client, history=HISTORY)
    assert without["items"] != answer["items"]
    assert "count as one second apart; send times" in without["used"]["notes"][0]
    # One item after those of the log has a time between it and them too.
    assert "send times" in ask(client, user="u7", history=["i1"])["used"]["notes"][0]
