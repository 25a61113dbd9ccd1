"""The command line: every command, every output format, and one line for every bad input."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import seqrec
from seqrec import Recommender, synthetic_log
from seqrec.cli.app import main
from seqrec.cli.parser import make_app
from seqrec.models import MODELS
from seqrec.tools.demo import run_demo

pytestmark = pytest.mark.usefixtures("few_constants")

SMALL = ["--embedding-dim=8", "--num-blocks=1", "--max-length=5", "--batch-size=16", "--epochs=3", "--evaluate-every=1"]
COMMANDS = ["inspect", "fetch", "fit", "tune", "evaluate", "recommend", "similar", "report", "compare", "demo", "bench"]


def ring(numbers: bool = False) -> pl.DataFrame:
    rows = [(u, (u + step) % 12, 1000 + step) for u in range(30) for step in range(5 + u % 3)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    if numbers:
        return frame
    ids = pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id")
    return frame.with_columns(*ids)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``log.csv``, and the runs ``run`` and ``counted`` of it."""
    folder = tmp_path_factory.mktemp("cli")
    ring().write_csv(folder / "log.csv")
    Recommender("sasrec", embedding_dim=8, num_blocks=1, max_length=5, epochs=3, item_init="random").fit(
        ring(), folder / "run"
    )
    Recommender("markov").fit(ring(), folder / "counted")
    return folder


@pytest.fixture
def place(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the folder, as the working directory."""
    shutil.copytree(shared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The standard output of a command that succeeds without a message on standard error."""
    capsys.readouterr()
    assert main(arguments) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    return out


def one_error(errors: str) -> str:
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert "Traceback" not in errors
    return lines[0]


def fails(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one-line error of a command that must fail and leave the folder unchanged."""
    before = tree(folder)
    capsys.readouterr()
    assert main(arguments) == 2
    line = one_error(capsys.readouterr().err)
    assert tree(folder) == before
    return line


def process(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "seqrec.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


SALES = """reviewerID,asin,price,Order Date,overall
u0,i0,5,2020-09-13T12:26:40Z,5
u1,i0,7,2020-09-14 12:26:40,
u1,i0,7,2020-09-14 12:26:40,
u0,i1,1,2020-09-15 00:00:00,tbd
"""


@pytest.mark.parametrize(
    "command", ["inspect sales.csv", "fit sales.csv --out new --model popularity", "compare sales.csv --models markov"]
)
def test_what_was_understood_of_a_log_is_shown(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    rows = "".join(f"u{n % 4},i{n % 9},1,2020-10-{n % 30 + 1:02},3\n" for n in range(60))
    (place / "sales.csv").write_text(SALES + rows)
    assert main(command.split()) == 0
    out, errors = capsys.readouterr()
    assert "sales.csv: columns used: user = reviewerID, item = asin, timestamp = Order Date\n" in out
    assert "columns ignored: price, overall\n" in out
    assert "times: dates\n" in out
    assert re.search(r"first time, UTC *│ 2020-09-13 12:26:40", out)
    assert re.search(r"last time, UTC *│ 2020-10-30 00:00:00", out)
    assert re.search(r"copies of rows *│ *1 │", out)
    assert "--duplicates drop-copies" in " ".join(out.split())
    assert len(errors.splitlines()) == 1
    assert errors.startswith("warning: sales.csv: column 'overall' holds 'tbd', so it is not used as a rating")


def items_file(place: Path) -> str:
    rows = "".join(f"i{n},Title {n}\x1b[2J,{'odd' if n % 2 else 'even'}|all,{n}.5,\n" for n in range(11))
    (place / "items.csv").write_text("item_id,title,genres,price,empty\n" + rows + "x9,Nobody's,odd,1,\n")
    return "items.csv"


@pytest.mark.parametrize("command", ["inspect log.csv", "fit log.csv --out new --model popularity"])
def test_what_was_understood_of_the_items_is_shown(
    place: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([*command.split(), "--items", items_file(place), "--json", "facts.json"]) == 0
    out, errors = capsys.readouterr()
    assert "items.csv: columns used: item = item_id, title, categories = genres\nnumbers kept: price\n" in out
    assert "columns ignored: empty (empty)\nitems described: 11 of 12\n" in out
    assert errors == (
        "warning: items.csv: items without a description: 1 of 12 (i11); "
        "ignored descriptions of items that are not in the log or were filtered out: 1 (x9)\n"
    )
    facts = strict_json((place / "facts.json").read_text())["log"]["items"]
    assert facts["columns"] == {"item": "item_id", "title": "title", "categories": "genres"}
    assert (facts["described"], facts["catalogue"], facts["unknown"]) == (11, 12, 1)


def test_titles_stand_beside_ids(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["fit", "log.csv", "--out", "new", "--items", items_file(place), *SMALL]
    assert main(options) == 0
    out = run(capsys, "recommend", "new", "--users", "u1", "-k", "12", "--keep-seen")
    assert re.search(r"│ u1 +│ i3 +│ Title 3\\x1b\[2J +│ +-?[\d.]+ │ +\d+ │", out)
    assert re.search(r"│ u1 +│ i11 +│ +│", out)  # it has no title
    assert "\x1b" not in out
    out = run(capsys, "recommend", "new", "--users", "u1", "-k", "12", "--keep-seen", "--format", "csv")
    assert out.startswith("user_id,item_id,title,score,rank\n")
    assert ",i11,,0" in out or ",i11,,-" in out
    rows = strict_json(run(capsys, "recommend", "new", "--users", "u1", "-k", "12", "--keep-seen", "--json", "-"))
    assert {row["title"] for row in rows} == {None, *(f"Title {n}\x1b[2J" for n in range(11))}
    found = strict_json(run(capsys, "similar", "new", "i3", "-k", "1", "--json", "-"))
    assert list(found[0]) == ["item_id", "title", "similar_item_id", "similar_title", "score", "rank"]


def test_a_title_column_of_the_log_is_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring().with_columns(title=pl.format("T {}", "item_id"), page=pl.lit("x")).write_csv(place / "titled.csv")
    out = run(capsys, "inspect", "titled.csv")
    assert "titled.csv: columns used: user = user_id, item = item_id, timestamp, title\ncolumns ignored: page\n" in out
    run(capsys, "fit", "titled.csv", "--out", "new", "--model", "popularity")
    assert "│ T i" in run(capsys, "recommend", "new", "--users", "u1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "items.csv: No such file"),
        ("", "items.csv: is empty"),
        ("item_id,title\nx,Title\n", "describes no item of the catalogue: its column 'item_id' holds ids like 'x'"),
    ],
)
def test_items_that_are_no_use(
    place: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (place / "items.csv").write_text(content)
    assert message in fails(capsys, place, "fit", "log.csv", "--out", "new", "--items", "items.csv")


@pytest.mark.parametrize("command", ["inspect", "fit --out new --model popularity"])
def test_what_was_understood_of_a_log_as_json(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (place / "sales.csv").write_text(SALES.replace("Order Date", "sold_on"))
    name, *rest = command.split()
    assert main([name, "sales.csv", *rest, "--duplicates", "drop-copies", "--json", "-"]) == 0
    facts = strict_json(capsys.readouterr().out)
    assert facts["log"] == {
        "name": "sales.csv",
        "columns": {"user": "reviewerID", "item": "asin", "timestamp": "sold_on"},
        "ignored": ["price", "overall"],
        "frame_columns": ["user_id", "item_id", "timestamp", "price", "overall"],
        "time_unit": "dates",
        "notes": facts["log"]["notes"],
        "first_time": "2020-09-13 12:26:40",
        "last_time": "2020-09-15 00:00:00",
    }
    assert ["sold_on" in note or "overall" in note for note in facts["log"]["notes"]] == [True, True]
    if name == "inspect":
        assert (facts["before"]["copies"], facts["after"]["copies"], facts["after"]["interactions"]) == (1, 0, 3)


def test_a_minimum_rating_needs_ratings(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "sales.csv").write_text(SALES)
    line = fails(capsys, place, "fit", "sales.csv", "--out", "new", "--min-rating", "3")
    assert "sales.csv, line 3: rating (empty) is not a number" in line


def test_inspect(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "inspect", "log.csv", "--json", "facts.json", "--min-user-interactions", "6")
    assert "interactions" in out
    assert "180" in out
    facts = strict_json((place / "facts.json").read_text())
    assert facts["columns"] == ["user_id", "item_id", "timestamp"]
    assert (facts["before"]["users"], facts["after"]["users"]) == (30, 20)
    assert facts["after"]["tied_timestamps"] == 0.0


def test_fit_writes_a_run_and_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "fit", "log.csv", "--out", "new", *SMALL, "--json", "fit.json", "--feedforward-dims", "6", "4")
    assert "epoch   1  loss" in out
    assert "run written to new" in out
    why = "(because its times only number the interactions of each user)"
    assert out.index(f"split: last-two, for comparison with papers {why}; training has") < out.index("epoch   1")
    assert out.count("split checked: no target is in its own history or in training; ") == 1
    assert "each user's last item, for comparison with papers" in " ".join(out.split())
    assert "history 1-4" in out
    facts = strict_json((place / "fit.json").read_text())
    assert (facts["run"], facts["interrupted"], facts["epochs"]) == ("new", False, 3)
    assert set(facts["test"]) == {"full", "sampled"}
    written = strict_json((place / "new/metrics.json").read_text())
    assert (written["test"], written["split"]) == (facts["test"], facts["split"])
    assert facts["split"]["split"] == "last-two"
    for group in facts["test"]["full"]["baselines"]["markov"]["groups"]["popularity"]:
        assert {"least", "most", "users", "metrics", "intervals"} == group.keys()
    frame = pl.read_csv(place / "new/epochs.csv")
    assert frame.columns == ["epoch", "loss", "seconds", "total_seconds", "tokens_per_second", "ndcg@10", "hr@10"]
    assert frame["epoch"].to_list() == [1, 2, 3]
    assert frame.null_count().sum_horizontal().item() == 0
    assert Recommender.load("new").model_config.feedforward_dims == (6, 4)
    before = (place / "new/weights.safetensors").read_bytes()
    run(capsys, "fit", "log.csv", "--out", "new", *SMALL, "--feedforward-dims", "6", "4", "--resume")
    assert (place / "new/weights.safetensors").read_bytes() == before
    run(capsys, "fit", "log.csv", "--out", "new", "--overwrite", "--model", "markov", "--alpha", "2")
    assert Recommender.load("new").model_config.alpha == 2.0


def test_options_that_a_counted_model_does_not_use_are_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "log.csv", "--out", "new", "--model", "markov", "--windows", "all", "--epochs", "3"]) == 0
    wanted = "warning: markov is counted in one pass and does not use --epochs, --windows\n"
    assert capsys.readouterr().err == wanted
    run(capsys, "fit", "log.csv", "--out", "new", "--overwrite", "--model", "markov", "--seed", "1", "--threads", "1")


@pytest.mark.slow_but_one
@pytest.mark.parametrize("model", [name for name in MODELS if MODELS[name].COUNTED])
def test_counted_models_through_all_commands(place: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    run(capsys, "fit", "log.csv", "--out", "new", "--model", model)
    assert pl.read_csv(place / "new/epochs.csv").columns == [
        "epoch",
        "loss",
        "seconds",
        "total_seconds",
        "tokens_per_second",
    ]
    run(capsys, "evaluate", "new")
    assert "u3" in run(capsys, "recommend", "new", "--users", "u3")
    assert "no item embeddings" in fails(capsys, place, "similar", "new", "i1")


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_evaluate(place: Path, capsys: pytest.CaptureFixture[str], protocol: str) -> None:
    sampled = ["--negatives", "4"] if protocol == "sampled" else []
    arguments = ["evaluate", "run", "--protocol", protocol, *sampled, "--split", "valid"]
    out = run(capsys, *arguments, "--json", "found.json")
    assert "valid: 30 users" in out
    found = strict_json((place / "found.json").read_text())
    assert {"protocol", "split", "users", "metrics", "intervals", "baselines", "seconds"} <= set(found)
    assert (found["protocol"], found["split"], found["users"]) == (protocol, "valid", 30)
    assert {"ndcg@10", "hr@10"} <= set(found["metrics"])
    assert set(found["intervals"]) == set(found["metrics"])
    assert all(low <= found["metrics"][name] <= high for name, (low, high) in found["intervals"].items())
    assert set(found["baselines"]) == {"sasrec", "popularity", "recent-popularity", "markov", "transitions"}
    assert set(found["differences"]) == set(found["baselines"])
    assert "sasrec + transitions" in out or "sasrec +  " in out  # the name may be on two lines
    again = strict_json(json_of(capsys, *arguments))
    assert again | {"seconds": 0} == found | {"seconds": 0}


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The standard output with ``--json -``; text goes to standard error."""
    capsys.readouterr()
    assert main([*arguments, "--json", "-"]) == 0
    out = capsys.readouterr().out
    strict_json(out)
    return out


def test_json_on_standard_output_is_json_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(strict_json(json_of(capsys, "inspect", "log.csv"))) == {"columns", "log", "before", "after"}
    assert strict_json(json_of(capsys, "fit", "log.csv", "--out", "new", *SMALL))["epochs"] == 3
    rows = strict_json(json_of(capsys, "recommend", "run", "--users", "u1", "u2", "-k", "2"))
    assert [row["user_id"] for row in rows] == ["u1", "u1", "u2", "u2"]
    assert set(rows[0]) == {"user_id", "item_id", "score", "rank"}
    rows = strict_json(json_of(capsys, "similar", "run", "i1", "-k", "2"))
    assert [row["rank"] for row in rows] == [1, 2]
    json_of(capsys, "recommend", "run", "--users", "u1", "-k", "2", "--format", "csv", "--out", "both.csv")
    assert (place / "both.csv").read_text().startswith("user_id,item_id,score,rank\n")
    run(capsys, "recommend", "run", "--users", "u1", "--json=file.json")
    assert len(strict_json((place / "file.json").read_text())) > 2
    assert "give a file" in fails(capsys, place, "recommend", "run", "--json", "--users", "u1")


READERS: dict[str, Callable[[Any], pl.DataFrame]] = {
    "csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet
}  # fmt: skip


@pytest.mark.parametrize("format", ["table", "csv", "jsonl", "parquet"])
def test_recommend_in_all_formats(place: Path, capfdbinary: pytest.CaptureFixture[bytes], format: str) -> None:
    wanted = Recommender.load("run").recommend(k=3)
    assert main(["recommend", "run", "-k", "3", "--format", format, "--out", f"deep/out.{format}"]) == 0
    assert capfdbinary.readouterr().out == b""
    assert main(["recommend", "run", "-k", "3", "--format", format]) == 0
    out = capfdbinary.readouterr().out
    if format == "table":
        assert out.decode().count("u29") == 3
        assert (place / "deep/out.table").read_text().count("u29") == 3
        return
    for source in (out, (place / f"deep/out.{format}").read_bytes()):
        found = READERS[format](io.BytesIO(source))
        assert found.columns == wanted.columns
        assert found["item_id"].equals(wanted["item_id"])
        assert np.allclose(found["score"], wanted["score"])
    assert [path.name for path in (place / "deep").iterdir()] == [f"out.{format}"]


def test_the_ending_of_the_file_says_the_format(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("recommend run", "similar run i1 i2"):
        for name in ("a.csv", "a.jsonl", "a.parquet", "a.txt"):
            run(capsys, *command.split(), "-k", "3", "--out", name)
        wanted = pl.read_parquet(place / "a.parquet")
        assert (place / "a.csv").read_text() == wanted.write_csv()
        assert (place / "a.jsonl").read_text() == wanted.write_ndjson()
        assert "│ i1" in (place / "a.txt").read_text()
        run(capsys, *command.split(), "-k", "3", "--out", "b.csv", "--format", "parquet")
        assert pl.read_parquet(place / "b.csv").equals(wanted)
        assert main([*command.split(), "-k", "3", "--out", "a.xlsx"]) == 2
        assert "end the name in .parquet, .csv, .jsonl, or give --format" in one_error(capsys.readouterr().err)
        assert not (place / "a.xlsx").exists()


@pytest.mark.parametrize("kind", ["table", "csv", "jsonl", "parquet"])
def test_blocks_of_people_change_no_output(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sizes: list[int] = []
    made = Recommender.recommend_batches

    def blocks(self: Recommender, **options: Any) -> Any:
        for frame in made(self, **options, batch_size=size):
            sizes.append(frame["user_id"].n_unique())
            yield frame

    monkeypatch.setattr(Recommender, "recommend_batches", blocks)
    found = {}
    for size in (30, 8):
        command = ["recommend", "counted", "-k", "8", "--keep-seen", "--format", kind]
        assert main(command) == 0
        assert main([*command, "--out", "out"]) == 0
        out, errors = capfdbinary.readouterr()
        found[size] = [out, (place / "out").read_bytes()]
        assert errors == b""
    assert sizes == 2 * [30] + 2 * [8, 8, 8, 6]
    if kind == "parquet":  # the row groups differ
        assert len({str(pl.read_parquet(content).to_dicts()) for content in [*found[30], *found[8]]}) == 1
    else:
        assert found[30] == found[8]
    if kind == "table":
        assert b"the first 200 of" in found[8][0]


def test_nothing_left_is_said_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "some.txt").write_text("i1\n")
    assert main(["recommend", "run", "--allow", "some.txt", "--out", "out.parquet", "-k", "2"]) == 0
    out, errors = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"warning: no items are left to recommend to \d+ of 30; .*--keep-seen.*\n", errors)
    assert pl.read_parquet(place / "out.parquet")["item_id"].unique().to_list() == ["i1"]


def test_recommend_to_whom(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "users.txt").write_text("\ufeffu4\r\n\n  u2  \n")
    asked = strict_json(json_of(capsys, "recommend", "run", "--users-file", "users.txt", "-k", "1"))
    assert [row["user_id"] for row in asked] == ["u4", "u2"]
    mine = strict_json(json_of(capsys, "recommend", "run", "--history", "i4", "i5", "-k", "2"))
    wanted = Recommender.load("run").recommend(histories=[["i4", "i5"]], k=2)
    assert [row["item_id"] for row in mine] == wanted["item_id"].to_list()
    seen = strict_json(json_of(capsys, "recommend", "run", "--history", "i4", "-k", "12", "--keep-seen"))
    assert len(seen) == 12
    (place / "some.txt").write_text("i1\ni2\ni3\n")
    allowed = json_of(capsys, "recommend", "run", "--history", "i4", "-k", "9", "--allow", "some.txt")
    assert {row["item_id"] for row in strict_json(allowed)} == {"i1", "i2", "i3"}
    denied = json_of(capsys, "recommend", "run", "--history", "i4", "-k", "12", "--deny", "some.txt")
    assert len(strict_json(denied)) == 8
    assert len(strict_json(json_of(capsys, "recommend", "run"))) == sum(min(10, 12 - 5 - u % 3) for u in range(30))


def test_users_have_the_type_of_the_log(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Recommender("popularity").fit(ring(numbers=True), "numbers")
    rows = strict_json(json_of(capsys, "recommend", "numbers", "--users", "3", "-k", "1"))
    assert (rows[0]["user_id"], type(rows[0]["item_id"])) == (3, int)
    capsys.readouterr()
    assert main(["recommend", "numbers", "--users", "3", "anna", "-k", "1", "--json", "-"]) == 0
    out, errors = capsys.readouterr()
    assert [row["user_id"] for row in strict_json(out)] == ["3", "anna"]
    assert errors == "warning: unknown users (not in the log, or filtered out) get the most popular items: anna\n"


def test_unknown_ids_warn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "zz.txt").write_text("zz\ni1\n")
    for arguments in (["--users", "u1", "zz"], ["--history", "i1", "zz"], ["--allow", "zz.txt"], ["--deny", "zz.txt"]):
        assert main(["recommend", "run", "-k", "1", *arguments]) == 0
        errors = capsys.readouterr().err
        assert re.match(r"warning: unknown .*zz\n", errors), errors
        assert "zz" in fails(capsys, place, "recommend", "run", "-k", "1", *arguments, "--strict")


def test_similar(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "similar", "run", "i1", "i2", "-k", "3").count("│ i1 ") == 3
    run(capsys, "similar", "run", "i1", "-k", "3", "--format", "csv", "--out", "near.csv")
    assert pl.read_csv(place / "near.csv").columns == ["item_id", "similar_item_id", "score", "rank"]
    assert "zz" in fails(capsys, place, "similar", "run", "i1", "zz")
    assert "no item given" in fails(capsys, place, "similar", "run")


@pytest.mark.slow
def test_tune(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tune", "log.csv", "--out", "deep/tuned", *SMALL, "--trials", "2", "--json", "tuned.json"]
    out = run(capsys, *arguments)
    assert "the recipe" in out
    assert "run written to deep/tuned" in out
    found = strict_json((place / "tuned.json").read_text())
    assert [trial["trial"] for trial in found["trials"]] == [0, 1]
    assert found["study"] == "deep/tuned.tune/study.db"
    assert found["test"]["full"]["metrics"]["ndcg@10"] >= 0
    assert all("embedding_dim" not in trial["options"] for trial in found["trials"])  # given, so not searched
    assert "going on with deep/tuned.tune/study.db: 2 trials" in run(capsys, *arguments)


def test_compare(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = [flag for flag in SMALL if "blocks" not in flag]
    arguments = ["compare", "log.csv", "--models", "sasrec,markov", "popularity", *shared, "--test-negatives", "4"]
    out = run(capsys, *arguments, "--out", "deep/compared")
    assert all(name in out for name in ("sasrec", "markov", "popularity", "±", "Holm"))
    assert out.count("split checked: no target is in its own history or in training; ") == 1
    assert "last item, for comparison with papers; trained without validation and test items; seed 0" in (
        " ".join(out.split())
    )
    assert {path.name for path in (place / "deep/compared").iterdir()} == {
        *(f"compare.{e}" for e in ("csv", "json", "png")),
        "trainings",
    }
    found = strict_json(json_of(capsys, *arguments))
    assert [entry["model"] for entry in found["models"]] == ["sasrec", "markov", "popularity"]
    assert (found["split"]["split"], found["held_out"][:16]) == ("last-two", "each user's last")
    assert (found["test_negatives"], found["models"][0]["config"]["embedding_dim"]) == (4, 8)
    written = strict_json((place / "deep/compared/compare.json").read_text())
    assert [entry["results"] for entry in written["models"]] == [entry["results"] for entry in found["models"]]


def test_compare_seeds_and_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = [flag for flag in SMALL if "blocks" not in flag]
    out = run(capsys, "compare", "log.csv", "--models", "sasrec", *shared, "--seeds", "2", "--shuffled", "--seed", "5")
    for part in ("sasrec, seed 6, shuffled:", "seeds 5 to 6", "history", "target", "what order is worth", "lost"):
        assert part in out


@pytest.mark.slow
def test_demo(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = synthetic_log(120, genres=2, items_per_genre=10, mean_length=6)
    monkeypatch.setattr("seqrec.tools.demo.synthetic_log", lambda: small)
    words = io.StringIO()
    options = {"epochs": 2, "embedding_dim": 8, "num_blocks": 1, "max_length": 10}
    result = run_demo(place / "demo", Console(file=words, width=120), progress=False, options=options)
    out = words.getvalue()
    for part in ("best possible", "popularity", "markov", "recommended next", "seqrec recommend"):
        assert part in out
    assert "split: last-two, for comparison with papers; training has" in out
    assert 0 < result["share_of_best"] <= 1.5
    assert result["metrics"]["ndcg@10"] == pytest.approx(result["share_of_best"] * result["best"]["ndcg@10"])
    assert json.loads(json.dumps(result)) == result
    for name in ("training.png", "recommendations.png"):
        assert (place / "demo" / name).read_bytes().startswith(b"\x89PNG")
    assert "<h1>demo</h1>" in Path(result["report"]).read_text(encoding="utf-8")
    assert Recommender.load(place / "demo").dataset.num_users == 120


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version").strip() == seqrec.__version__
    for arguments in ([], ["--help"], ["-h"]):
        out = run(capsys, *arguments)
        assert all(command in out for command in COMMANDS)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("command", [*COMMANDS, *(f"fit --model {name}" for name in MODELS)])
def test_help_explains_every_flag(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = run(capsys, *command.split(), "--help")
    name, _, model = command.partition(" --model ")
    arguments = [a for a in make_app(model or "sasrec")[name].assemble_argument_collection() if a.show]
    assert arguments
    for argument in arguments:
        flag = next((name for name in argument.names if name.startswith("-")), argument.names[0])
        assert re.search(rf"{flag}\b.*  +[A-Za-z]", out), f"{flag} is not explained"  # a column of text after it
    if name == "fit":
        options = fields(MODELS[model or "sasrec"].Config)
        settled = {option.name for option in options if option.metadata.get("settled")}  # the data decide
        assert {option.name for option in options if "--" + option.name.replace("_", "-") not in out} == settled


BAD_LOGS: dict[str, tuple[str | bytes, str]] = {
    "empty.csv": ("", "empty.csv: is empty"),
    "blank.csv": ("\n\n", "blank.csv: is empty"),
    "header.csv": ("user,item,time\n", "header.csv: has no rows"),
    "few.csv": ("user,item,time\na,b,1\na,b\n", "few.csv, line 3: .*few"),
    "no_user.csv": ("user,item,time\na,b,1\n,c,2\n", "no_user.csv, line 3: .*empty"),
    "no_item.csv": ("user,item,time\na,,1\na,c,2\n", "no_item.csv, line 2: .*empty"),
    "word.csv": ("user,item,time\na,b,1\na,c,soon\n", "word.csv, line 3: .*soon"),
    "nan.csv": ("user,item,time\na,b,1\na,c,NaN\n", "nan.csv, line 3: .*NaN"),
    "nanid.csv": ("user,item,time\n1,5,1\nnan,6,2\n", "nanid.csv, line 3: .*missing"),
    "csv.parquet": ("user,item\na,b\n", "csv.parquet: is not Parquet"),
    "csv.csv.gz": ("user,item\na,b\n", "csv.csv.gz: .*not gzipped"),
    "cut.csv.gz": (b"\x1f\x8b\x08\x00abc", "cut.csv.gz: .*gzip"),
    "lines.jsonl": ('{"user": 1, "item": 2}\nuser item\n', "lines.jsonl, line 2: not a JSON object"),
    "latin.csv": ("user,item\na,é\n".encode("latin-1"), "latin.csv, line 2: .*UTF-8"),
    "zeros.csv": (b"user,item\0\n", "zeros.csv: is binary"),
    "columns.csv": ("who,what,when\nann,tea,1\nann,rum,2\n", "columns.csv: .*--(user|item)"),
    "one.csv": ("user,item,time\na,b,1\nc,b,2\nd,b,3\n", "no user has two interactions"),
    "missing.csv": (b"", "missing.csv: No such file"),
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", BAD_LOGS)
def test_bad_logs(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, wanted = BAD_LOGS[name]
    if name != "missing.csv":
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = fails(capsys, place, "fit", name, "--out", "new", *SMALL)
    assert re.search(wanted, line), line
    assert re.search(";|advice|--", line)
    if name != "one.csv":
        assert re.search(wanted, fails(capsys, place, "inspect", name))


BAD_ARGUMENTS = {
    "fit log.csv --out new --min-item-interactions 1000": "nothing is left of 180 interactions",
    "fit log.csv --out new --min-rating 3": "needs a rating column.*--rating",
    "fit log.csv --out new --user nobody": "no column 'nobody'.*--user",
    "fit log.csv --out new --format jsonl": "log.csv, line 1: not a JSON object",
    "fit log.csv --out run": "run: already holds a run.*--resume.*--overwrite",
    "fit log.csv --out run --resume --overwrite": "exclude each other",
    "fit log.csv --out log.csv": "log.csv: is a file",
    "fit log.csv --out .": "holds something that is not a run",
    "fit log.csv --out . --overwrite": "holds something that is not a run",
    "fit log.csv --out run --resume --epochs 9 --embedding-dim 16": "started with",
    "fit log.csv": "--out",
    "fit": "fit needs LOG",
    "fit log.csv --out new --dropout 1": "dropout is 1.0",
    "fit log.csv --out new --dropout much": '"much"',
    "fit log.csv --out new --model gru": '"gru".*sasrec',
    "fit log.csv --out new --model markov --dropout 0.1": "--dropout",
    "fit log.csv --out new --loss bce --negatives 1000000000000": "negatives is 1000000000000, too many for the memory",
    "fit log.csv --out new --device meta": "device 'meta'",
    "fit log.csv --out new --device tpu9": "device 'tpu9'",
    "fit log.csv --out new --split last-two --valid-from 5": "split by time",
    "fit log.csv --out new --valid-from 5": "there is no interaction before valid_from = 5",
    "fit log.csv --out new --split time --valid-from 9 --test-from 5": "the first before the second",
    "fit log.csv --out new --init-from nowhere": "nowhere: no such run folder",
    "evaluate nowhere": "nowhere: no such run folder",
    "evaluate .": "not a run folder",
    "evaluate log.csv": "log.csv: no such run folder",
    "evaluate run --protocol half": '"half"',
    "evaluate run --negatives 50": "negatives is given, but protocol is full",
    "evaluate run --protocol sampled --negatives 0": "negatives is 0",
    "recommend run -k 13": "k is 13, but there are only 12 items to choose from",
    "recommend run -k 0": "k is 0; give 1 or more",
    "recommend run -k x": '"x"',
    "recommend run --users": "no id given",
    "recommend run --history": "no id given",
    "recommend run --users u1 --history i1": "give one of",
    "recommend run --users-file nowhere.txt": "nowhere.txt: No such file",
    "recommend run --allow run": "run: cannot be read",
    "recommend run --deny empty.txt": "empty.txt: is empty",
    "recommend run --users zz --strict": "unknown users: zz",
    "recommend run --out log.csv/x --format csv": "log.csv/x: cannot be written",
    "recommend run --out run --format parquet": "run: cannot be written .Is a directory",
    "recommend run --json log.csv/x": "log.csv/x: cannot be written",
    "similar run zz": "zz",
    "similar run i1 -k 12": "give at most 11",
    "similar counted i1": "no item embeddings",
    "fetch nothing": "nothing.*ml-100k",
    "compare log.csv": "--models",
    "compare log.csv --models": "no model given",
    "compare log.csv --models sasrec,gru": "unknown model 'gru'; choose one of sasrec",
    "compare log.csv --models markov --minutes 0": "minutes is 0.0",
    "compare log.csv --models sasrec --seeds 0": "seeds is 0; give 1 or more",
    "compare log.csv --models sasrec --seeds 1,1": "1,1",
    "compare log.csv --models markov,popularity --shuffled": "shuffled needs a model that is trained",
    "compare log.csv --models markov --out log.csv": "log.csv: is a file",
    "compare log.csv --models markov --embedding-dim 8": "none of markov has an option 'embedding_dim'",
    "tune log.csv": "--out",
    "tune log.csv --out run": "run: already holds a run",
    "tune log.csv --out new --model markov": "markov is counted",
    "tune log.csv --out new --evaluate-every 0": "tuning needs validations",
    "tune log.csv --out new --trials 0": "trials is 0",
    "tune log.csv --out new --minutes 0": "minutes is 0.0",
    "tune log.csv --out new --workers 2": "workers has no effect with engine local",
    "tune log.csv --out new --json log.csv": "log.csv",
    "demo --out run": "already holds a run",
    "dance": "dance",
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("command", BAD_ARGUMENTS)
def test_bad_arguments(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (place / "empty.txt").write_text(" \n")
    line = fails(capsys, place, *command.split())
    assert re.search(BAD_ARGUMENTS[command], line), line


def damage_shape(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    save_file(weights | {"item_embedding.weight": torch.zeros(4, 8)}, folder / "weights.safetensors")


def damage_version(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 99'))


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


BAD_RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    f"{name} is missing": (lambda folder, name=name: (folder / name).unlink(), f"{name}.*is missing")
    for name in ("config.json", "weights.safetensors", "data/items.npy", "data/user_ids.npy")
} | {
    f"{name} is cut": (cut(name), f"run/{name}: is damaged")
    for name in ("config.json", "weights.safetensors", "data/items.npy", "data/user_ids.npy", "metrics.json")
}  # fmt: skip
BAD_RUNS["newer"] = damage_version, "run/config.json: format 99 is newer.*update seqrec"
BAD_RUNS["shape"] = damage_shape, r"run/weights.safetensors: weight item_embedding.weight is .*\[4, 8\].*\[13, 8\]"


@pytest.mark.parametrize("damage", BAD_RUNS)
def test_bad_runs(place: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    action, wanted = BAD_RUNS[damage]
    action(place / "run")
    for command in (["evaluate", "run"], ["recommend", "run", "--users", "u1"], ["similar", "run", "i1", "-k", "2"]):
        assert re.search(wanted, fails(capsys, place, *command))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(place: Path) -> None:
    before = tree(place)
    options = " ".join(SMALL)
    commands = {
        f"fit log.csv --out new {options}": 1,
        f"fit log.csv --out new {options.replace('dim=8', 'dim=64')}": 8,
        "recommend run -k 12 --keep-seen --out new.csv": 1,
        "recommend run -k 12 --keep-seen --out new.parquet": 1,
    }
    for command, blocks in commands.items():
        script = f"ulimit -f {blocks}; exec '{sys.executable}' -B -m seqrec.cli {command}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 2, done.stderr
        assert "no space left on the disk" in one_error(done.stderr)
        assert tree(place) == before


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_is_full(place: Path, unbuffered: str) -> None:
    command = f"'{sys.executable}' -B -m seqrec.cli recommend run -k 12 --keep-seen --format csv"
    script = f"export PYTHONUNBUFFERED={unbuffered}; ulimit -f 1; exec {command} > out.csv"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "standard output: no space left" in one_error(done.stderr)


def test_devices_are_written_to_and_not_replaced(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(place / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    run(capsys, "recommend", "run", "--users", "u1", "-k", "1", "--out", os.devnull, "--json", "pipe")
    assert strict_json(reader.communicate(timeout=60)[0])[0]["user_id"] == "u1"
    assert (place / "pipe").is_fifo()
    assert Path(os.devnull).is_char_device()
    (place / "link").symlink_to("target")
    run(capsys, "recommend", "run", "--users", "u1", "-k", "1", "--json", "link", "--out", os.devnull)
    assert (place / "link").is_symlink()
    assert (place / "target").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["csv", "table"])
def test_a_reader_that_leaves_early(place: Path, format: str) -> None:
    arguments = f"recommend run -k 12 --keep-seen --format {format}"
    script = f"'{sys.executable}' -m seqrec.cli {arguments} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr == ""
    assert done.stdout == "0\n"


@pytest.mark.slow
def test_as_a_process(place: Path) -> None:
    good = process("recommend", "run", "--users", "u1", "-k", "2", "--format", "csv", cwd=place)
    assert (good.returncode, good.stderr) == (0, "")
    assert len(good.stdout.splitlines()) == 3
    bad = process("inspect", "nowhere.csv", cwd=place)  # which needs no torch
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "nowhere.csv: No such file" in one_error(bad.stderr)
