"""Recommendation and evaluation in blocks, as on a cluster but in this process: what is written and what is refused."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import Recommender
from seqrec.cli.app import main
from seqrec.cluster import evaluate, recommend, storage
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.evaluate import evaluate_on_cluster
from seqrec.cluster.recommend import MANIFEST, recommend_on_cluster
from seqrec.cluster.runs import identity, open_run
from seqrec.cluster.storage import folder_at, local_copy
from seqrec.errors import InputError, UnknownIdWarning
from seqrec.run.folder import Run

pytestmark = pytest.mark.usefixtures("few_constants")

ITEMS, USERS, GROUP = 40, 60, 8  # users are ranked in groups of 8 here
RAY = ClusterConfig(engine="ray")
OPTIONS: dict[str, Any] = {
    "max_length": 8, "epochs": 1, "batch_size": 16, "threads": 1, "evaluate_every": 0, "split": "last-two", "seed": 1,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {"embedding_dim": 16, "ensemble": 1},
    "sasrec of two": {"embedding_dim": 8, "ensemble": 2, "ensemble_kinds": "same"},
    "sasrec refitted": {"embedding_dim": 8, "ensemble": 1, "refit": "all"},
    "ssept": {"embedding_dim": 8, "user_dim": 4, "ensemble": 1},
    "tisasrec": {"embedding_dim": 8, "ensemble": 1},
    "hstu": {"embedding_dim": 8, "ensemble": 1},
    "markov": {},
    "transitions": {},
}


def make_log() -> pl.DataFrame:
    """Users who walk through the catalogue. The ids of users are texts; their order is not that of their numbers."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        item = int(random.integers(ITEMS))
        for step in range(4 + user % 9):
            rows.append((f"u{user}", 1000 + item, 1_600_000_000 + 60 * step + user))
            item = (item + int(random.integers(1, 4))) % ITEMS
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of a model, fitted at the first use."""
    place = tmp_path_factory.mktemp("runs")

    def fitted(name: str) -> Path:
        folder = place / name.replace(" ", "-")
        if not folder.exists():
            model = name.partition(" ")[0]
            counted = model in ("markov", "transitions")
            options = {"split": "last-two"} if counted else OPTIONS | MODELS[name]
            titles = pl.DataFrame({"item_id": range(1000, 1000 + ITEMS), "title": [f"T{i}" for i in range(ITEMS)]})
            Recommender(model, **options).fit(make_log(), folder, items=None if counted else titles)
        return folder

    return fitted


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Answer in this process, in groups of 8 users and in an order that is not that of the blocks."""
    made: list[int] = []

    def answers(ray: Any, config: Any, numbers: Any, worker: Any, *arguments: Any) -> Iterator[Any]:
        objects = [worker(*arguments), worker(*arguments)]
        for place, number in enumerate(reversed(list(numbers))):
            made.append(number)
            yield objects[place % 2](number)

    for module in (recommend, evaluate):
        monkeypatch.setattr(module, "answers", answers)
        monkeypatch.setattr(module, "connected", nullcontext)
    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", GROUP)
    monkeypatch.setattr(recommend, "USERS_AT_ONCE", GROUP)
    return made


def read(folder: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(part) for part in sorted(folder.glob("part-*.parquet")))


def local(run: Path, **options: Any) -> pl.DataFrame:
    return pl.concat(Recommender.load(run).recommend_batches(batch_size=GROUP, **options))


CHOICES: dict[str, dict[str, Any]] = {
    "all": {},
    "short": {"k": 3, "keep_seen": True},
    "allowed": {"k": 5, "allow": [1003, "1001", 1030, 1004, 1009, 1011, 1002]},
    "denied": {"deny": list(range(1000, 1012))},
    "listed": {"users": ["u9", "u3", "u50", "u9", *(f"u{user}" for user in range(20, 40))], "k": 4},
}


#: Everybody by every model, and every choice by a network, by one with a table of users and by one that counts.
ASKED = [(model, choice) for model in MODELS for choice in CHOICES
         if choice == "all" or model in ("sasrec", "ssept", "transitions")]  # fmt: skip


@pytest.mark.slow_but_one
@pytest.mark.filterwarnings("ignore::seqrec.errors.UnknownIdWarning")
@pytest.mark.parametrize(("model", "choice"), ASKED)
def test_parts_have_the_rows_values_and_order_of_the_local_table(
    runs: Callable[[str], Path], tmp_path: Path, model: str, choice: str
) -> None:
    options, run = CHOICES[choice], runs(model)
    found = recommend_on_cluster(run, tmp_path / "out", RAY, block=2 * GROUP, **options)
    table, wanted = read(tmp_path / "out"), local(run, **options)
    assert table.equals(wanted)
    assert table.schema == wanted.schema
    people = len(options.get("users", range(USERS)))
    assert found["users"] == people
    assert found["parts"] == -(-people // 16) == len(list((tmp_path / "out").glob("part-*")))
    assert found["complete"] == {"rows": wanted.height, "left_out": people - (wanted["rank"] == 1).sum()}
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == found


def test_unknown_users_get_the_most_popular_items_or_are_an_error(runs: Callable[[str], Path], tmp_path: Path) -> None:
    asked = {"users": ["u1", "nobody", "u2"], "k": 2}
    with pytest.warns(UnknownIdWarning, match="nobody"):
        recommend_on_cluster(runs("sasrec"), tmp_path / "out", RAY, block=GROUP, **asked)
    with pytest.warns(UnknownIdWarning, match="nobody"):
        assert read(tmp_path / "out").equals(local(runs("sasrec"), **asked))
    with pytest.raises(InputError, match="unknown users: nobody"):
        recommend_on_cluster(runs("sasrec"), tmp_path / "new", RAY, strict=True, **asked)
    assert not (tmp_path / "new").exists()


def test_who_gets_nothing_is_said(runs: Callable[[str], Path], tmp_path: Path) -> None:
    seen = make_log().filter(pl.col("user_id") == "u8")["item_id"].unique().to_list()
    with pytest.warns(UnknownIdWarning, match=r"no items are left to recommend to \d+ of 60"):
        found = recommend_on_cluster(runs("sasrec"), tmp_path / "out", RAY, block=GROUP, allow=seen[:2])
    assert found["complete"]["left_out"] >= 1
    with pytest.warns(UnknownIdWarning):
        assert read(tmp_path / "out").equals(local(runs("sasrec"), allow=seen[:2]))


def test_only_missing_parts_are_computed(runs: Callable[[str], Path], tmp_path: Path, calls: list[int]) -> None:
    run, out = runs("sasrec"), tmp_path / "deep" / "out"
    recommend_on_cluster(run, out, RAY, block=GROUP)
    assert sorted(calls) == list(range(8))
    whole = read(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    calls.clear()
    recommend_on_cluster(run, out, RAY, block=GROUP)
    assert calls == []
    for number in (2, 5):
        (out / f"part-{number:06d}.parquet").unlink()
    (out / ".part-000002.parquet.0123abcd.partial").write_bytes(b"half")  # of a process that was killed
    recommend_on_cluster(run, out, RAY, block=GROUP)
    assert sorted(calls) == [2, 5]
    assert read(out).equals(whole)
    again = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {name for name in again if again[name] != times.get(name)} == {"part-000002.parquet", "part-000005.parquet"}


def test_a_failure_leaves_whole_parts_and_the_next_call_goes_on(
    runs: Callable[[str], Path], tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(recommend.Writing):
        def _frames(self, number: int) -> Iterator[Any]:
            for place, found in enumerate(super()._frames(number)):
                if (number, place) == (1, 1):
                    raise InputError("the disk is full")
                yield found

    with monkeypatch.context() as changed:
        changed.setattr(recommend, "Writing", Failing)
        with pytest.raises(InputError, match="disk is full"):
            recommend_on_cluster(runs("sasrec"), tmp_path / "out", RAY, block=2 * GROUP)
    assert "complete" not in json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [
        "part-000002.parquet",
        "part-000003.parquet",
    ]
    calls.clear()
    recommend_on_cluster(runs("sasrec"), tmp_path / "out", RAY, block=2 * GROUP)
    assert sorted(calls) == [0, 1]
    assert read(tmp_path / "out").equals(local(runs("sasrec")))


def test_another_run_or_other_options_are_refused_and_replaced(
    runs: Callable[[str], Path], tmp_path: Path, calls: list[int]
) -> None:
    run, out = runs("sasrec"), tmp_path / "out"
    recommend_on_cluster(run, out, RAY, block=GROUP)
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    others: list[tuple[Path, dict[str, Any], str]] = [
        (run, {"k": 3}, "k"),
        (run, {"keep_seen": True}, "keep_seen"),
        (run, {"allow": [1001, 1002]}, "allow"),
        (run, {"deny": [1001]}, "deny"),
        (run, {"users": ["u1"]}, "listed"),
        (run, {"block": 2 * GROUP}, "block"),
        (runs("sasrec refitted"), {}, "run"),
    ]
    for other, options, name in others:
        with pytest.raises(InputError, match=rf"another run or with other options \({name} differs\); --overwrite"):
            recommend_on_cluster(other, out, RAY, **{"block": GROUP} | options)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == content
    calls.clear()
    recommend_on_cluster(run, out, RAY, block=GROUP, overwrite=True)  # nothing to replace
    assert calls == []
    recommend_on_cluster(run, out, RAY, block=2 * GROUP, k=3, overwrite=True)
    assert sorted(calls) == [0, 1, 2, 3]
    assert read(out).equals(local(run, k=3))


def test_a_run_that_changes_is_noticed(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("sasrec"), run)
    before = identity(Run(run))
    assert before == identity(Run(runs("sasrec")))  # wherever it lies
    job, listed = recommend._planned(run, None, 10, None, None, None, False, GROUP)
    assert job.identity == before
    writing = recommend.Writing(job, listed, folder_at(tmp_path / "out"))
    shutil.rmtree(run)
    with pytest.raises(InputError, match=r"no such run folder.*all machines of the cluster must share it"):
        writing(0)
    Recommender("sasrec", **OPTIONS | MODELS["sasrec"] | {"seed": 2}).fit(make_log(), run)
    with pytest.raises(InputError, match="was replaced by another run"):
        writing(0)
    assert not (tmp_path / "out").exists()


def damaged(part: Path) -> None:
    os.truncate(part, part.stat().st_size // 2)


def of_another_size(part: Path) -> None:
    shutil.copy(part.with_name("part-000007.parquet"), part)


def foreign(part: Path) -> None:
    pl.read_parquet(part).write_parquet(part)


@pytest.mark.parametrize("damage", [damaged, of_another_size, foreign])
def test_parts_that_are_not_whole_are_named(
    runs: Callable[[str], Path], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    recommend_on_cluster(runs("sasrec"), out, RAY, block=GROUP)
    damage(out / "part-000003.parquet")
    with pytest.raises(InputError, match=r"out: part-000003.parquet is damaged .*remove it and run the command again"):
        recommend_on_cluster(runs("sasrec"), out, RAY, block=GROUP)
    (out / "part-000003.parquet").unlink()
    recommend_on_cluster(runs("sasrec"), out, RAY, block=GROUP)
    assert read(out).equals(local(runs("sasrec")))


def test_parts_that_do_not_arrive_are_an_error(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.Folder.write

    def elsewhere(self: storage.Folder, name: str, content: bytes) -> None:
        write(folder_at(tmp_path / "elsewhere") if name == "part-000004.parquet" else self, name, content)

    monkeypatch.setattr(storage.Folder, "write", elsewhere)
    with pytest.raises(InputError, match=r"part-000004.parquet is missing; give a folder that all machines"):
        recommend_on_cluster(runs("sasrec"), tmp_path / "out", RAY, block=GROUP)


def test_other_contents_of_the_folder_stay(runs: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds other files \(mine.txt\)"):
            recommend_on_cluster(runs("sasrec"), out, RAY, overwrite=overwrite)
    (out / MANIFEST).write_text("[1]")
    with pytest.raises(InputError, match=r"_recommendations.json is damaged"):
        recommend_on_cluster(runs("sasrec"), out, RAY)
    assert sorted(os.listdir(out)) == [MANIFEST, "mine.txt"]


def test_one_command_at_a_time_writes_to_a_folder(runs: Callable[[str], Path], tmp_path: Path) -> None:
    lock = recommend.Lock(tmp_path / "out", tmp_path / "out")
    lock.take()
    with pytest.raises(InputError, match="out: is in use by this process"):
        recommend_on_cluster(runs("sasrec"), tmp_path / "out", RAY)
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": ITEMS + 1}, "k is 41, but there are only 40 items"),
        ({"block": 12}, "block is 12; give a multiple of 8"),
        ({"block": 0}, "block is 0"),
        ({"keep_seen": "no"}, "keep_seen is 'no'"),
        ({"allow": [5], "strict": True}, "allow"),
    ],
)
def test_bad_options(runs: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        recommend_on_cluster(runs("sasrec"), tmp_path / "out", RAY, **options)
    assert os.listdir(tmp_path) == []


BAD_COMMANDS = {
    "recommend RUN --engine ray": "give --out FOLDER",
    "recommend RUN --engine ray --out OUT --format csv": "no other --format",
    "recommend RUN --engine ray --out OUT --history 1001": "--history is answered in this process",
    "recommend RUN --engine ray --out RUN": "RUN: holds other files",
    "recommend RUN --engine ray --out RUN/data": "is a file of a run",
    "recommend RUN --engine ray --out RUN/config.json/x": "cannot be",
    "recommend RUN --engine ray --out ftp://host/x": "ftp://host/x: cannot be opened",
    "recommend RUN --engine ray --out OUT --storage x": "--storage has no effect",
    "recommend RUN --engine ray --out OUT --worker-threads 0": "worker_threads is 0",
    "recommend RUN --engine spark --out OUT": "spark",
    "recommend RUN --workers 2": "workers has no effect with engine local",
    "recommend RUN --overwrite": "--overwrite is for --engine ray",
    "recommend s3://bucket/run": "s3://bucket/run: is a URL; give a run folder, or --engine ray",
    "evaluate s3://bucket/run": "s3://bucket/run: is a URL",
    "evaluate RUN --address host:1": "address has no effect",
    "evaluate nowhere --engine ray": "nowhere: no such run folder",
    "recommend nowhere --engine ray --out OUT": "nowhere: no such run folder",
}


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_bad_commands_are_one_line(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run = runs("markov")
    before = sorted(os.listdir(run))
    assert main([part.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for part in command.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert BAD_COMMANDS[command].replace("RUN:", f"{run}:") in line
    assert sorted(os.listdir(run)) == before
    assert os.listdir(tmp_path) == []


def test_the_command_writes_and_says_what_it_wrote(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.txt").write_text("u3\nu1\n")
    (tmp_path / "deny.txt").write_text("1001\n1002\n")
    arguments = ["--users-file", str(tmp_path / "users.txt"), "--deny", str(tmp_path / "deny.txt"), "-k", "4"]
    out = tmp_path / "out"
    command = ["recommend", str(runs("markov")), "--engine", "ray", "--out", str(out), *arguments]
    assert main([*command, "--json", str(tmp_path / "facts.json")]) == 0
    assert "8 rows for 2 users are in" in capsys.readouterr().out
    assert json.loads((tmp_path / "facts.json").read_text())["complete"]["rows"] == 8
    assert read(out).equals(local(runs("markov"), users=["u3", "u1"], deny=[1001, 1002], k=4))


@pytest.mark.slow_but_one
@pytest.mark.filterwarnings("ignore::seqrec.errors.RunWarning")
@pytest.mark.parametrize("protocol", ["full", "sampled"])
@pytest.mark.parametrize("model", MODELS)
def test_the_evaluation_is_the_local_one(
    runs: Callable[[str], Path], model: str, protocol: Any, calls: list[int]
) -> None:
    options: dict[str, Any] = {"negatives": 7, "seed": 3, "split": "valid" if model == "ssept" else "test"}
    found, label = evaluate_on_cluster(runs(model), RAY, protocol, **options)
    recommender = Recommender.load(runs(model))
    wanted = recommender.evaluate(protocol, **options)
    values = [evaluation.to_dict() | {"seconds": 0} for evaluation in (found, wanted)]
    assert values[0] == values[1]
    assert label == recommender.label
    assert len(calls) == -(-found.users // GROUP)


def test_a_url_is_copied_once_until_it_changes(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []
    download = storage._download

    def counted(source: storage.Folder, copy: Path) -> None:
        downloads.append(copy.name)
        download(source, copy)

    monkeypatch.setattr(storage, "_download", counted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    shutil.copytree(runs("markov"), tmp_path / "run")
    url = f"file://{tmp_path}/run"
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(local_copy, [url] * 8))
    (copy,) = copies
    assert len(downloads) == 1
    assert identity(open_run(url)) == identity(Run(tmp_path / "run"))
    assert copy.parent.stat().st_mode & 0o077 == 0
    recommend_on_cluster(url, f"file://{tmp_path}/out", RAY, block=GROUP)
    assert read(tmp_path / "out").equals(local(runs("markov")))
    assert len(downloads) == 1
    (tmp_path / "run" / "metrics.json").write_text("{}")
    assert local_copy(url) != copy
    assert not copy.exists()
    assert len(downloads) == 2
    assert local_copy(str(tmp_path / "run")) == tmp_path / "run"


def test_messages_show_no_keys() -> None:
    with pytest.raises(InputError) as caught:
        folder_at("nothing://id:secret@bucket/folder?token=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///nowhere/at/all", "no such folder"),
        ("file:///", "names no folder"),
        ("nothing://x/y", "cannot be opened"),
    ],
)
def test_bad_urls(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        local_copy(url)


def test_a_folder_for_temporary_files_of_somebody_else_is_refused(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"seqrec-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match="belongs to another user"):
        local_copy(f"file://{runs('markov')}")
