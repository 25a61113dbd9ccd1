"""Replacing a run while it is served, and refusing a broken one."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from seqrec import InputError
from seqrec.run.lock import Lock
from seqrec.serve.answering import recommend
from seqrec.serve.live import Live, Runs, load
from seqrec.serve.schemas import Recommend
from seqrec.serve.snapshots import Snapshots
from seqrec.serve.store import open_store

HISTORY = ["i3", "i5", "i6"]


def replace(run: Path, new: Path) -> None:
    """Put a copy of another run into a run's place, as fit --overwrite does: two renames."""
    copy, old = run.with_name("copy"), run.with_name("old")
    shutil.copytree(new, copy)
    run.rename(old)
    copy.rename(run)
    shutil.rmtree(old)


def first(client: TestClient) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json={"history": HISTORY})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_reload_takes_the_new_run(serving: Any, run: Path, other: Path) -> None:
    client = serving(run)
    before = first(client)
    assert client.post("/v1/reload").json()["versions"] == {"run": before["model_version"]}
    replace(run, other)
    assert first(client) == before, "nothing changes without a reload"
    assert client.post("/v1/reload").status_code == 200
    after = first(client)
    assert after["model_version"] != before["model_version"]
    assert after["items"] != before["items"]
    assert after["model_version"] == load(other, "other").version


def test_a_broken_run_is_refused_and_the_old_one_stays(serving: Any, run: Path, other: Path) -> None:
    client = serving(run)
    before = first(client)
    good = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(good[: len(good) // 2])
    answer = client.post("/v1/reload")
    assert answer.status_code == 409
    assert "weights.safetensors" in answer.json()["detail"]
    assert first(client) == before
    (card,) = client.get("/v1/runs").json()["runs"]
    assert "weights.safetensors" in card["refused"]
    replace(run, other)
    assert client.post("/v1/reload").status_code == 200
    assert client.get("/v1/runs").json()["runs"][0]["refused"] is None
    assert first(client)["model_version"] != before["model_version"]


def test_files_that_are_overwritten_in_place_change_nothing(serving: Any, run: Path) -> None:
    """Everything is mapped from a private copy. A mapped file that shrinks would end the process."""
    client = serving(run)
    before = first(client)
    history = client.get("/v1/history", params={"user": "u7"}).json()
    for path in [run / "weights.safetensors", *(run / "data").iterdir()]:
        size = path.stat().st_size
        path.write_bytes(b"")
        path.write_bytes(b"\x7f" * size)
    assert first(client) == before
    assert client.get("/v1/history", params={"user": "u7"}).json() == history
    assert client.get("/v1/history", params={"user": "u9"}).json()["total"] == 4
    assert client.post("/v1/reload").status_code == 409
    assert first(client) == before


def test_copies_are_made_once_and_removed(run: Path, other: Path, tmp_path: Path) -> None:
    root = tmp_path / "copies"
    root.mkdir()
    runs = Runs([run], snapshots=Snapshots(root))
    twin = Runs([run], snapshots=Snapshots(root))  # another worker
    (copy,) = root.iterdir()
    replace(run, other)
    runs.reload()
    assert [path != copy for path in root.iterdir()] == [True]
    (answer,) = recommend(twin, open_store(str(tmp_path / "events.db")), [Recommend(history=HISTORY)])
    assert isinstance(answer, dict)
    assert answer["model_version"] == twin.get().version != runs.get().version
    (run / "config.json").write_text("{")
    assert str(run) in str(runs.reload()[run.name])
    assert len(list(root.iterdir())) == 1, "a copy that can't be used is removed"


def test_the_watcher_goes_on_after_an_error(
    serving: Any, run: Path, other: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serving(run, watch_seconds=0.01)
    before = first(client)["model_version"]
    server = client.app.app.state.server
    with monkeypatch.context() as broken:
        broken.setattr(server.runs, "reload", lambda settled: 1 / 0)
        wait(lambda: "ZeroDivisionError" in caplog.text)
    replace(run, other)
    wait(lambda: first(client)["model_version"] != before)
    assert first(client)["model_version"] != before


def wait(until: Callable[[], bool]) -> None:
    """Wait until something has happened, at most 20 seconds."""
    for _ in range(400):
        if until():
            return
        time.sleep(0.05)


def test_a_run_that_is_gone_is_refused(serving: Any, run: Path) -> None:
    client = serving(run)
    before = first(client)
    shutil.rmtree(run)
    assert client.post("/v1/reload").status_code == 409
    assert first(client) == before


def test_the_watcher_waits_until_the_folder_rests(run: Path, other: Path) -> None:
    results: list[str | Exception] = []
    runs = Runs([run], report=lambda name, result: results.append(result))
    before = runs.get().version
    runs.reload(settled=True)
    assert results == []
    replace(run, other)
    runs.reload(settled=True)
    assert runs.get().version == before, "it may still be written to"
    runs.reload(settled=True)
    assert runs.get().version != before
    assert results == [runs.get().version]


def test_the_watcher_waits_for_a_training(run: Path, other: Path) -> None:
    runs = Runs([run])
    before = runs.get().version
    replace(run, other)
    lock = Lock(Path(os.path.realpath(run)), run)
    lock.take()
    for _ in range(3):
        runs.reload(settled=True)
    assert runs.get().version == before
    lock.release()
    runs.reload(settled=True)
    assert runs.get().version != before


def test_the_watcher_reports_a_broken_run_once(run: Path) -> None:
    results: list[str | Exception] = []
    runs = Runs([run], report=lambda name, result: results.append(result))
    (run / "config.json").write_text("{")
    for _ in range(4):
        runs.reload(settled=True)
    assert len(results) == 1
    assert isinstance(results[0], InputError)


def test_no_answer_is_of_two_models(run: Path, other: Path, trained: Path, tmp_path: Path) -> None:
    """While runs are swapped, every answer is that of one of them, with its version."""
    store = open_store(str(tmp_path / "events.db"))
    expected = {}
    for folder in (trained, other):
        (answer,) = recommend(Runs([folder]), store, [Recommend(history=HISTORY)])
        assert isinstance(answer, dict)
        expected[answer["model_version"]] = answer["items"]
    assert len(expected) == 2
    runs = Runs([run])
    stop, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            for answer in recommend(runs, store, [Recommend(history=HISTORY)] * 3):
                assert isinstance(answer, dict)
                seen.add(answer["model_version"])
                items = [item | {"score": pytest.approx(item["score"], abs=1e-5)} for item in answer["items"]]
                if items != expected[answer["model_version"]]:
                    wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            replace(run, (other, trained)[number % 2])
            runs.reload()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert seen == set(expected)


def test_two_runs_of_one_name_are_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    twin = shutil.copytree(trained, tmp_path / "a" / trained.name)
    with pytest.raises(InputError, match="two runs have the name"):
        Runs([trained, Path(twin)])


def test_a_version_is_that_of_the_content(trained: Path, other: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "elsewhere")
    versions: list[Live] = [load(Path(folder), "x") for folder in (trained, copy, other)]
    assert versions[0].version == versions[1].version != versions[2].version
