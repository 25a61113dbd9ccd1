"""Items that training never saw in a server: ranked, found, taken in histories, and kept when a run is replaced."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small_run import ITEMS, fit, make_items
from test_live import replace
from test_process import ask, refused, served

from seqrec import InputError, Predictor, Recommender
from seqrec.serve.live import Runs

HISTORY = ["i3", "new2", "i6"]
FEATURES = {"features": "categories", "epochs": 1, "ensemble": 1}


def new_items(count: int = 4) -> pl.DataFrame:
    ids = [f"new{number}" for number in reversed(range(count))]
    return pl.DataFrame({"item_id": ids, "title": [f"Fresh {one}" for one in ids], "categories": [["odd"]] * count})


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned features, not to be changed."""
    return fit(tmp_path_factory.mktemp("features") / "run", **FEATURES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new.parquet"
    new_items().write_parquet(path)
    return path


def expected(run: Path, items: Any) -> dict[str, float]:
    """The scores of all items, by the recommender."""
    recommender = Recommender.load(run).add_items(items)
    frame = recommender.recommend(histories=[HISTORY], k=recommender.dataset.num_items, keep_seen=True)
    return dict(zip(frame["item_id"].to_list(), frame["score"].to_list(), strict=True))


def test_recommender_predictor_and_server_score_new_items_alike(serving: Any, learned: Path, file: Path) -> None:
    scores = expected(learned, file)
    assert len(scores) == ITEMS + 4
    asked: dict[str, Any] = {"k": ITEMS + 4, "keep_seen": True}
    for mapped in (False, True):
        predictor = Predictor.load(learned, mapped=mapped, new_items=new_items())
        assert dict(predictor.recommend(HISTORY, **asked)) == pytest.approx(scores, abs=1e-5)
    for engine in ("torch", "onnx"):
        client = serving(learned, new_items=file, engine=engine)
        answer = client.post("/v1/recommend", json={"history": HISTORY, **asked}).json()
        assert answer["used"]["unknown_items"] == []
        assert {item["id"]: item["score"] for item in answer["items"]} == pytest.approx(scores, abs=1e-4)
        titles = {item["id"]: item["title"] for item in answer["items"]}
        assert titles["new1"] == "Fresh new1"
        assert titles["i2"] == "The Third Man"


def test_new_items_are_found_compared_and_recorded(serving: Any, learned: Path, file: Path) -> None:
    client = serving(learned, new_items=file)
    found = client.get("/v1/items", params={"q": "fresh new3"}).json()["items"]
    assert found == [{"id": "new3", "title": "Fresh new3", "categories": ["odd"], "interactions": 0}]
    assert client.get("/v1/items", params={"q": "new0"}).json()["items"][0]["title"] == "Fresh new0"
    near = client.get("/v1/similar", params={"item": "new0", "k": 3}).json()["items"]
    assert {item["id"] for item in near} == {"new1", "new2", "new3"}  # they have the same features and nothing else
    assert near == [
        {"id": one, "score": pytest.approx(score, abs=1e-6), "title": f"Fresh {one}"}
        for one, score in Predictor.load(learned, new_items=file).similar("new0", 3)
    ]
    assert client.post("/v1/events", json={"user": "new", "item": "new2"}).json()["unknown_items"] == []
    shown = client.get("/v1/history", params={"user": "new"}).json()["items"]
    assert [(one["id"], one["title"], one["known"]) for one in shown] == [("new2", "Fresh new2", True)]
    used = client.post("/v1/recommend", json={"user": "new", "explain": True, "category": "odd"}).json()["used"]
    assert (used["events"], used["ranked_by"]) == (1, "model")
    (card,) = client.get("/v1/runs").json()["runs"]
    assert card["new_items"] == {"file": str(file), "added": 4, "note": None}
    assert card["items"] == ITEMS + 4


def test_new_items_are_kept_when_the_run_or_the_file_changes(
    serving: Any, learned: Path, trained: Path, file: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    client = serving(run, new_items=file)

    def reloaded() -> tuple[int, dict[str, Any], str]:
        status = client.post("/v1/reload").status_code
        (card,) = client.get("/v1/runs").json()["runs"]
        return status, card["new_items"], card["model_version"]

    versions = [reloaded()[2]]
    new_items(5).write_parquet(file)
    assert reloaded()[:2] == (200, {"file": str(file), "added": 5, "note": None})
    versions.append(reloaded()[2])
    file.write_bytes(b"PAR1")  # the one in use stays
    assert reloaded() == (409, {"file": str(file), "added": 5, "note": None}, versions[1])
    new_items(5).write_parquet(file)
    replace(run, trained)  # a run without features
    status, facts, version = reloaded()
    assert (status, facts["added"]) == (200, 0)
    assert "learned no features of items, so it can't rank items that training never saw" in facts["note"]
    assert Runs([trained]).get().version == version
    replace(run, learned)
    assert reloaded()[:2] == (200, {"file": str(file), "added": 5, "note": None})
    make_items().head(3).write_parquet(file)
    status, facts, version = reloaded()
    assert (status, facts["added"]) == (200, 0)
    assert facts["note"] == f"{file}: the run knows all of its 3 items; give items that are new"
    assert len({*versions, version, Runs([learned]).get().version}) == 3


def test_items_that_no_run_can_rank_are_refused_at_the_start(learned: Path, trained: Path, file: Path) -> None:
    with pytest.raises(InputError, match=r"new\.parquet: sasrec learned no features of items"):
        Runs([trained], new_items=file)
    assert [live.new_items.added for live in Runs([trained, learned_as(learned, file)], new_items=file).all()] == [0, 4]  # type: ignore[union-attr]
    new_items().drop("categories").write_parquet(file)
    with pytest.raises(InputError, match=r"new\.parquet: has no categories, which the model reads") as raised:
        Runs([learned], new_items=file)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"none\.csv"):
        Runs([learned], new_items=file.with_name("none.csv"))


def learned_as(learned: Path, file: Path) -> Path:
    """The run under another name."""
    return Path(shutil.copytree(learned, file.parent / "learned"))


@pytest.mark.slow
def test_the_command_serves_new_items(learned: Path, file: Path, tmp_path: Path) -> None:
    scores = expected(learned, file)
    options = (str(learned), "--new-items", str(file), "--store", str(tmp_path / "events.db"))
    with served(*options, "--watch-seconds", "0") as (port, process):
        body = {"history": HISTORY, "k": ITEMS + 4, "keep_seen": True}
        status, answer = ask(port, "POST", "/v1/recommend", body)
        assert status == 200
        assert {item["id"]: item["score"] for item in answer["items"]} == pytest.approx(scores, abs=1e-5)
        process.terminate()
        assert '"event": "new items", "run": "run", "added": 4, "note": null' in process.communicate(timeout=60)[1]
    assert "bad.csv" in refused(str(learned), "--new-items", str(tmp_path / "bad.csv"))
