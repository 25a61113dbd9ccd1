"""Search, similar items, users, replay, the model card and the page."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_run import ITEMS, fit, make_log
from starlette.testclient import TestClient

from seqrec import Predictor, Recommender
from seqrec.run.folder import Run


def get(client: TestClient, path: str, **query: Any) -> dict[str, Any]:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("amelie", ["i0"]),
        ("AMÉLIE 2001", ["i0"]),
        ("third man", ["i2", "i3"]),
        ("man the", ["i2"]),
        ("<b>", ["i1"]),
        ("i7", ["i7"]),
        ("film 39", ["i39"]),
        ("nothing at all", []),
        (".*", []),
        ("%", []),
    ],
)
def test_search(client: TestClient, query: str, ids: list[str]) -> None:
    found = get(client, "/v1/items", q=query)["items"]
    assert sorted(item["id"] for item in found) == ids


def test_an_empty_search_shows_popular_items(client: TestClient) -> None:
    found = get(client, "/v1/items", k=5)["items"]
    counts = make_log()["item_id"].value_counts(sort=True)["count"].to_list()
    assert [item["interactions"] for item in found] == counts[:5]
    odd = get(client, "/v1/items", q="film", category="odd", k=100)["items"]
    assert {item["id"] for item in odd} == {f"i{item}" for item in range(5, ITEMS, 2)}
    assert all(item["categories"] == ["odd"] for item in odd)
    assert client.get("/v1/items", params={"category": "third"}).status_code == 422


def test_categories(client: TestClient) -> None:
    assert get(client, "/v1/categories")["categories"] == [{"name": "even", "items": 20}, {"name": "odd", "items": 20}]


def test_similar_items_are_those_of_the_predictor(client: TestClient, trained: Path) -> None:
    found = get(client, "/v1/similar", item="i3", k=4)
    expected = Predictor.load(trained).similar("i3", 4)
    assert [(item["id"], pytest.approx(item["score"])) for item in found["items"]] == expected
    assert len(get(client, "/v1/similar", item="i3", k=1000)["items"]) == ITEMS - 1
    missing = client.get("/v1/similar", params={"item": "x"})
    assert missing.status_code == 404
    assert "'x'" in missing.json()["detail"]


def test_users(client: TestClient) -> None:
    found = get(client, "/v1/users", q="u1", k=100)["users"]
    assert {user["id"] for user in found} == {"u1", *(f"u{number}" for number in range(10, 20))}
    assert {user["id"]: user["interactions"] for user in found}["u12"] == 7
    assert len(get(client, "/v1/users", k=5)["users"]) == 5
    assert client.get("/v1/history", params={"user": "nobody"}).json() == {
        "user": "nobody", "known": False, "items": [], "total": 0,
    }  # fmt: skip


def test_replay_predicts_each_item_from_those_before_it(client: TestClient, trained: Path) -> None:
    found = get(client, "/v1/replay", user="u8", k=40, steps=3)
    own = make_log().filter(user_id="u8")["item_id"].to_list()
    predictor = Predictor.load(trained)
    predictor.model.addition = None  # counts are of the whole log
    for back, step in enumerate(found["steps"], 1):
        before = own[:-back]
        assert [item["id"] for item in step["history"]] == before
        assert step["next"]["id"] == own[-back]
        ranked = [item for item, _ in predictor.recommend(before, 40)]
        assert [item["id"] for item in step["items"]] == ranked
        assert step["rank"] == (ranked.index(own[-back]) + 1 if own[-back] in ranked else None)
    assert client.get("/v1/replay", params={"user": "nobody"}).status_code == 404


def test_the_model_card(client: TestClient, trained: Path) -> None:
    (card,) = get(client, "/v1/runs")["runs"]
    assert (card["run"], card["model"], card["items"], card["users"]) == ("run", "sasrec", ITEMS, 60)
    assert (card["categories"], card["has_titles"], card["has_times"]) == (2, True, True)
    assert card["interactions"] == len(make_log())
    assert card["metrics"] == Run(trained).metrics()
    assert card["refused"] is None


def test_the_training_curve(serving: Any, trained: Path, tmp_path: Path) -> None:
    validated = fit(tmp_path / "validated", evaluate_every=2, epochs=3)
    Recommender("popularity").fit(make_log()).save(tmp_path / "counted")
    client = serving(trained, validated, tmp_path / "counted")
    for name, folder in (("run", trained), ("validated", validated)):
        curve = get(client, "/v1/runs/curve", run=name)
        rows = Run(folder).epochs()
        assert (curve["run"], curve["metric"]) == (name, "ndcg@10")
        assert [one["epoch"] for one in curve["epochs"]] == rows["epoch"].to_list()
        assert [one["loss"] for one in curve["epochs"]] == rows["loss"].to_list()
        values = rows["ndcg@10"].to_list() if "ndcg@10" in rows.columns else [None] * rows.height
        assert [one["value"] for one in curve["epochs"]] == values
    assert {one["loss"] for one in get(client, "/v1/runs/curve", run="counted")["epochs"]} <= {None}
    assert client.get("/v1/runs/curve", params={"run": "other"}).status_code == 404


def test_numbered_ids_stay_numbers(serving: Any, tmp_path: Path) -> None:
    """128 and "128" are the same id, as everywhere."""
    draw = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"user_id": np.repeat(np.arange(20), 5), "item_id": draw.integers(0, 12, 100), "timestamp": np.arange(100)}
    )
    Recommender("popularity").fit(frame).save(tmp_path / "numbers")
    client = serving(tmp_path / "numbers")
    for history in ([3, 4], ["3", "4"], ["3", 4]):
        answer = client.post("/v1/recommend", json={"history": history}).json()
        assert answer["used"]["sent"] == 2
        assert {type(item["id"]) for item in answer["items"]} == {int}
    missing = client.get("/v1/similar", params={"item": "3"})
    assert missing.status_code == 422
    assert "no item embeddings" in missing.json()["detail"]
    assert "no categories" in client.post("/v1/recommend", json={"category": "x"}).json()["detail"]


def test_the_page_and_its_policy(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "'unsafe" not in page.headers["content-security-policy"]
    for path in ("/static/../config.json", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/app.py", "/docs"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["detail"].startswith("there is nothing at this path")
