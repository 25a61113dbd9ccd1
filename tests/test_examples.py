"""The notebook: it equals its script, runs on a small log, and its recorded results can be read.

``python tests/test_examples.py`` runs it anew on the embedded log, after a change of the script, and keeps the outputs.
"""

import gzip
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import polars as pl
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import seqrec
from seqrec import InputError, Recommender, synthetic_log
from seqrec.data.fetch import SOURCES

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPT, NOTEBOOK = FOLDER / "sasrec_amazon.py", FOLDER / "sasrec_amazon.ipynb"
SCRAP = "application/scrapbook.scrap.json+json"
SMALL = {"epochs": 3, "evaluate_every": 2, "embedding_dim": 8, "num_blocks": 1, "max_length": 12, "batch_size": 64}


START = 1_600_000_000  # current times: other magnitudes would be refused


def log_of_strangers() -> pl.DataFrame:
    """A log with users and items that are too rare for the filters."""
    rare = pl.DataFrame(
        {"user_id": ["rare"] * 3, "item_id": ["a", "b", "c"], "timestamp": [START, START + 1, START + 2]}
    )
    log = synthetic_log(200, genres=2, items_per_genre=15, mean_length=12).frame
    return pl.concat([log.select("user_id", "item_id", "timestamp"), rare])


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code(notebook) for output in cell.outputs]


def scraps(notebook: NotebookNode) -> dict[str, Any]:
    """The results that the notebook recorded, as scrapbook reads them."""
    found = {}
    for output in outputs(notebook):
        if output.output_type == "display_data" and SCRAP in output.data:
            scrap = output.data[SCRAP]
            assert set(scrap) == {"name", "data", "encoder", "version"}
            assert (scrap["encoder"], scrap["version"]) == ("json", 1)
            assert output.metadata["scrapbook"] == {"name": scrap["name"], "data": True, "display": False}
            assert set(output.data) == {SCRAP}, "it would show"
            found[scrap["name"]] = scrap["data"]
    return found


def parameters(notebook: NotebookNode) -> dict[str, Any]:
    """The default values in the cell that papermill replaces."""
    (cell,) = (cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", []))
    names: dict[str, Any] = {}
    exec(cell.source, {}, names)
    return names


@pytest.fixture(scope="module")
def committed() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SEQREC_CACHE", str(tmp_path / "cache"))

    def run(**given: Any) -> NotebookNode:
        out = tmp_path / "out.ipynb"
        papermill.execute_notebook(
            NOTEBOOK, out, given, kernel_name="python3", cwd=tmp_path, progress_bar=False, log_output=False
        )
        return nbformat.read(out, as_version=4)

    return run


def test_notebook_and_script_are_in_step(committed: NotebookNode) -> None:
    script = jupytext.read(SCRIPT)
    told = "jupytext --sync examples/sasrec_amazon.py brings them into step"
    assert len(script.cells) == len(committed.cells), told
    for wanted, cell in zip(script.cells, committed.cells, strict=True):
        assert (wanted.cell_type, wanted.source) == (cell.cell_type, cell.source), told
        assert wanted.metadata.get("tags") == cell.metadata.get("tags"), told
    assert committed.metadata.jupytext.formats == "ipynb,py:percent"
    assert committed.metadata.kernelspec == script.metadata.kernelspec
    back = jupytext.writes(committed, fmt="py:percent").partition("# %%")[2]
    assert back == SCRIPT.read_text(encoding="utf-8").partition("# %%")[2], told


def test_committed_notebook_shows_a_run(committed: NotebookNode) -> None:
    nbformat.validate(committed)
    assert NOTEBOOK.stat().st_size < 300_000
    assert [cell.execution_count for cell in code(committed)] == [*range(1, len(code(committed)) + 1)]
    assert all(output.output_type in ("stream", "display_data", "execute_result") for output in outputs(committed))
    assert not [output for output in outputs(committed) if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs(committed)) == 2
    text = re.sub(r'"image/png": "[^"]*"', "", NOTEBOOK.read_text(encoding="utf-8"))
    assert not re.search(r"/(home|root|work|tmp|Users|usr)/", text), "a path of somebody's machine"
    found, given = scraps(committed), parameters(committed)
    assert (found["data"], found["model"], found["users"]) == ("embedded", given["model"], 4231)
    assert (given["epochs"], given["evaluate_every"], given["test_negatives"]) == (10, 6, 100)
    assert given["min_interactions"] == 10
    assert found["epochs"] == [6, 10]
    assert found["result"]["ndcg@10"] > max(found["baselines"].values())
    shown = next(output for output in outputs(committed) if "Hit@10" in output.get("data", {}).get("text/plain", ""))
    assert eval(shown.data["text/plain"]) == found["result"]


def test_it_runs_on_a_log_of_ones_own(execute: Any, tmp_path: Path) -> None:
    log_of_strangers().write_csv(tmp_path / "mine.csv")
    notebook = execute(log="mine.csv", run_folder="run", **SMALL)
    assert notebook.metadata.papermill.parameters == {"log": "mine.csv", "run_folder": "run"} | SMALL
    found = scraps(notebook)
    assert set(found["result"]) == {"ndcg@10", "Hit@10"}
    assert (found["data"], found["model"], found["epochs"]) == ("mine.csv", "sasrec", [2, 3])
    # The same steps by hand, with the public functions.
    counts = log_of_strangers().with_columns(pl.len().over("user_id").alias("u"), pl.len().over("item_id").alias("i"))
    kept = counts.filter(pl.col("u") >= 10, pl.col("i") >= 10)
    assert (found["users"], found["items"]) == (kept["user_id"].n_unique(), kept["item_id"].n_unique())
    options = {name: value for name, value in parameters(notebook).items() if name in ("num_heads", "dropout", "loss")}
    by_hand = Recommender("sasrec", **options, **SMALL, seed=100, patience=0).fit(kept.select(pl.nth(0, 1, 2)))
    evaluation = by_hand.evaluate("sampled", seed=100)
    assert found["result"]["ndcg@10"] == pytest.approx(evaluation.metrics["ndcg@10"])
    assert found["result"]["Hit@10"] == pytest.approx(evaluation.metrics["hr@10"])
    assert found["baselines"] == pytest.approx({n: s.metrics["ndcg@10"] for n, s in evaluation.baselines.items()})
    again = Recommender.load(tmp_path / "run")
    for user, items in found["recommendations"].items():
        assert again.recommend(users=[user], k=5)["item_id"].to_list() == items


def test_it_runs_on_fetched_reviews_with_sse_pt(execute: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    names = {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime"}
    lines = log_of_strangers().rename(names).with_columns(overall=pl.lit(5.0)).write_ndjson()
    (tmp_path / "cache" / "amazon-electronics.json.gz").write_bytes(gzip.compress(lines.encode()))
    found = scraps(execute(model="ssept", **SMALL | {"epochs": 1}))
    assert (found["data"], found["model"], found["epochs"]) == ("amazon-electronics", "ssept", [1])
    assert 0 < found["result"]["ndcg@10"] <= found["result"]["Hit@10"] <= 1


def test_without_a_network_the_embedded_log_takes_the_place(
    committed: NotebookNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(name: str, **more: Any) -> Path:
        assert name in SOURCES
        raise InputError(f"{name}: cannot be fetched")

    monkeypatch.setattr(seqrec, "fetch", unreachable)
    names: dict[str, Any] = {}
    cells = [cell.source for cell in code(committed)]
    last = next(number for number, source in enumerate(cells) if "synthetic_log()" in source)
    for source in cells[: last + 1]:
        exec(source, names)
    assert names["frame"].equals(synthetic_log().frame)
    assert names["data"] == "embedded"
    assert "amazon-electronics cannot be fetched" in capsys.readouterr().out


def run_anew() -> None:
    """Update the notebook from its script, and run it without a network."""
    notebook = jupytext.read(SCRIPT)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SEQREC_CACHE": folder, "https_proxy": "http://localhost:9", "OMP_NUM_THREADS": "1"}
        NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata.pop("language_info", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # random ids would differ at every run
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_anew()
