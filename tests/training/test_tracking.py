"""What MLflow and TensorBoard record of a training, read back with their own readers."""

import importlib
import io
import json
import os
import shutil
import signal
import sqlite3
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from seqrec import InputError, Recommender, Run, TrainConfig, TrainingWarning, prepare, synthetic_log, train
from seqrec.cli.app import main
from seqrec.data.dataset import Dataset
from seqrec.data.split import Split
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.tools.compare import CompareConfig, compare_models
from seqrec.tools.config import TuneConfig
from seqrec.tools.tune import tune_model
from seqrec.training.mlflow_tracker import _shown
from seqrec.training.tensorboard_tracker import TensorBoardTracker
from seqrec.training.tracking import Tracking

pytestmark = pytest.mark.usefixtures("few_constants")

LOG = synthetic_log(60, genres=2, items_per_genre=10, mean_length=6)
SMALL: dict[str, Any] = {
    "epochs": 2, "num_blocks": 1, "embedding_dim": 8, "max_length": 10, "evaluate_every": 1, "transitions": "off",
    "ensemble": 1, "item_init": "random", "split": "last-two",
}  # fmt: skip
MLFLOW = pytest.param("mlflow", marks=pytest.mark.slow)  # it takes seconds to import, and to make its tables
BOTH = pytest.mark.parametrize("kind", ["tensorboard", MLFLOW])


@dataclass
class Record:
    """What was recorded of one training."""

    name: str
    status: str | None
    options: dict[str, Any]
    texts: dict[str, str]
    values: dict[str, list[tuple[int, float]]]

    def steps(self, name: str) -> list[int]:
        return [step for step, _ in self.values[name]]


@pytest.fixture(scope="session")
def mlflow() -> Any:
    """The library, imported only where it is needed. No test uses the network."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_DISABLE_AGENT_HINT": "1"}
    return importlib.import_module("mlflow")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return prepare(LOG.frame)


@pytest.fixture(scope="session")
def tables(mlflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow without runs. To make one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def records(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[], list[Record]]:
    """A function that reads the records of a store that only this test has."""
    monkeypatch.chdir(tmp_path)
    for name in ("TENSORBOARD_LOGGING_DIR", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    if kind == "tensorboard":
        return lambda: [of_tensorboard(folder) for folder in sorted((tmp_path / "tensorboard").iterdir())]
    uri = f"sqlite:///{shutil.copy(request.getfixturevalue('tables'), tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return partial(of_mlflow, uri)


def of_mlflow(uri: str, experiment: str = "seqrec") -> list[Record]:
    client = importlib.import_module("mlflow").MlflowClient(uri)
    number = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([number], order_by=["attributes.start_time ASC"])
    return [
        Record(
            run.info.run_name, run.info.status, run.data.params, run.data.tags,
            {name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
             for name in run.data.metrics},
        )
        for run in runs
    ]  # fmt: skip


def of_tensorboard(folder: Path) -> Record:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    texts: dict[str, str] = {}
    options: dict[str, Any] = {}
    for tag in found.Tags()["tensors"]:
        about = found.SummaryMetadata(tag).plugin_data
        if about.plugin_name == "text":
            for event in found.Tensors(tag):
                text = event.tensor_proto.string_val[0].decode()
                table = [line.strip("| ").replace(r"\|", "|").split(" | ", 1) for line in text.splitlines()[2:]]
                texts |= dict(table) if text.startswith("|") else {tag: text}
        elif tag == metadata.SESSION_START_INFO_TAG:
            given = metadata.parse_session_start_info_plugin_data(about.content).hparams
            options = {name: getattr(value, value.WhichOneof("kind")) for name, value in given.items()}
        else:
            assert metadata.parse_session_end_info_plugin_data(about.content).status == api_pb2.STATUS_SUCCESS
    values = {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    return Record(folder.name, texts.get("status"), options, texts, values)


def at_step(number: int, act: Callable[[], object]) -> Callable[[], bool]:
    """A function to call after every step, which acts once."""
    count = iter(range(1, 10**6))

    def stop() -> bool:
        if next(count) == number:
            act()
        return False

    return stop


@BOTH
def test_everything_is_recorded(kind: str, records: Any, dataset: Dataset, tmp_path: Path) -> None:
    out, console = tmp_path / "first", Console(record=True, width=500, file=io.StringIO())
    recommender = Recommender(refit="valid", **SMALL).fit(dataset, out, track=kind, console=console)  # type: ignore[arg-type]
    (record,) = records()
    config, written = json.loads((out / "config.json").read_text()), json.loads((out / "metrics.json").read_text())
    assert (record.name, record.status) == ("first", "FINISHED")

    for name in ("model", "refit", "num_items", "num_users", "has_timestamps", "fingerprint"):
        assert_option(kind, record, name, config[name])
    for part in ("model_config", "training", "prepare", "split"):
        for name, value in config[part].items():
            assert_option(kind, record, name, value)
    reasons = {name.removeprefix("recipe."): text for name, text in record.texts.items() if name.startswith("recipe.")}
    assert reasons == config["recipe"] != {}

    for row in recommender.epochs:
        for name in ("loss", "seconds", "tokens_per_second"):
            assert dict(record.values[f"train/{name}"])[row["epoch"]] == pytest.approx(row[name], rel=1e-6)
        for name in ("ndcg@10", "hr@10"):
            written_name = f"valid/{name.replace('@', '_at_')}"
            assert dict(record.values[written_name])[row["epoch"]] == pytest.approx(row[name], rel=1e-6)
    for name in ("loss", "seconds", "total_seconds", "tokens_per_second", "learning_rate"):
        assert record.steps(f"train/{name}") == [1, 2]
        assert record.steps(f"refit/{name}") == [*range(1, written["best_epoch"] + 1)]
    rate = config["training"]["learning_rate"]
    assert [value for _, value in record.values["train/learning_rate"]] == pytest.approx([rate, rate])

    for title, tests in (("test", written["test"]), ("refit/test", written["refit"]["test"])):
        assert set(tests) == {"full", "sampled"}
        for protocol, test in tests.items():
            for name, value in test["metrics"].items():
                found = record.values[f"{title}/{protocol}/{name.replace('@', '_at_')}"]
                assert found == [(written["best_epoch"], pytest.approx(value, rel=1e-6))]
            text = record.texts[f"{title}/{protocol}"]
            against = "whole catalogue" if protocol == "full" else f"{test['negatives']} random items each, seed 0"
            seen = "without validation and test items" if title == "test" else "without test items"
            assert f"{test['users']} users, {test['held_out']}; ranked against" in text
            assert against in text
            assert text.endswith(f"trained {seen}")

    assert record.texts["run_folder"] == str(out.resolve())
    assert record.texts["run_id"] == Run(out).id
    assert record.texts["seqrec_version"] == "0.1.0"
    assert record.texts["trained_on"] == "train+valid"
    (line,) = [line for line in console.export_text().splitlines() if line.startswith(("MLflow: ", "TensorBoard: "))]
    assert "first" in line
    assert str(tmp_path) in line
    assert ("mlflow server --backend-store-uri sqlite" if kind == "mlflow" else "tensorboard --logdir") in line


def assert_option(kind: str, record: Record, name: str, value: Any) -> None:
    """An option as JSON has it is there, as each of the two shows it."""
    shown = json.dumps(value) if isinstance(value, list) else value
    if kind == "mlflow":
        assert record.options[name] == str(shown)
    elif value is None:
        assert name not in record.options
    else:
        assert record.options[name] == shown


@BOTH
def test_a_resumed_training_goes_on_with_its_record(kind: str, records: Any, dataset: Dataset, tmp_path: Path) -> None:
    small = SMALL | {"patience": 0}
    Recommender(**small).fit(dataset, tmp_path / "run", track=kind)  # type: ignore[arg-type]
    longer = Recommender(**small | {"epochs": 4}).fit(dataset, tmp_path / "run", resume=True, track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert record.status == "FINISHED"
    for name in record.values:
        steps = record.steps(name)
        assert steps == sorted(set(steps)), name  # none twice
        assert steps == [1, 2, 3, 4] or not name.startswith(("train/", "valid/")), name
    losses = [row["loss"] for row in longer.epochs]
    assert [value for _, value in record.values["train/loss"]] == pytest.approx(losses, rel=1e-6)
    assert longer.metrics["best_epoch"] in record.steps("test/full/ndcg_at_10")
    if kind == "mlflow":
        assert (record.options["epochs"], record.texts["resumed.epochs"]) == ("2", "4")


@BOTH
def test_a_record_begun_late_has_the_earlier_epochs(kind: str, records: Any, dataset: Dataset, tmp_path: Path) -> None:
    Recommender(**SMALL).fit(dataset, tmp_path / "run")
    Recommender(**SMALL | {"epochs": 3}).fit(dataset, tmp_path / "run", resume=True, track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert record.steps("train/loss") == record.steps("train/learning_rate") == [1, 2, 3]


@BOTH
def test_ctrl_c_leaves_a_record_that_is_gone_on_with(kind: str, records: Any, dataset: Dataset, tmp_path: Path) -> None:
    interrupt = at_step(steps_of(dataset) + 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    small = SMALL | {"epochs": 3}
    stopped = Recommender(**small).fit(dataset, tmp_path / "run", stop=interrupt, track=kind)  # type: ignore[arg-type]
    assert stopped.interrupted
    (record,) = records()
    assert (record.status, record.steps("train/loss")) == ("KILLED", [1])
    Recommender(**small).fit(dataset, tmp_path / "run", resume=True, track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert (record.status, record.steps("train/loss")) == ("FINISHED", [1, 2, 3])


def steps_of(dataset: Dataset) -> int:
    """Steps per epoch of a fit with ``SMALL``."""
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return False

    Recommender(**SMALL | {"epochs": 1}).fit(dataset, stop=stop)
    return count


@BOTH
@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("boom | bang"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_error_leaves_a_record(
    kind: str, error: BaseException, status: str, records: Any, dataset: Dataset, tmp_path: Path
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        Recommender(**SMALL).fit(dataset, tmp_path / "run", stop=at_step(steps_of(dataset) + 1, fail), track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert (record.status, record.steps("train/loss")) == (status, [1])
    assert record.texts["summary"].startswith(type(error).__name__)
    assert str(error) in record.texts["summary"]


@BOTH
def test_a_killed_process_loses_nothing_that_resuming_does_not_add(
    kind: str, records: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGKILL between the checkpoint of epoch 2 and its record: that and the end are missing."""

    def fail() -> None:
        raise RuntimeError

    real, stop = Tracking.epoch, at_step(2 * steps_of(dataset) + 1, fail)
    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "epoch", lambda self, row: None if row["epoch"] == 2 else real(self, row))
        patch.setattr(Tracking, "end", lambda *more: None)
        with pytest.raises(RuntimeError):
            Recommender(**SMALL | {"epochs": 3}).fit(dataset, tmp_path / "run", stop=stop, track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert record.status == ("RUNNING" if kind == "mlflow" else None)
    assert record.steps("train/loss") == [1]
    Recommender(**SMALL | {"epochs": 3}).fit(dataset, tmp_path / "run", resume=True, track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert (record.status, record.steps("train/loss")) == ("FINISHED", [1, 2, 3])


@BOTH
def test_a_store_that_breaks_does_not_end_the_training(
    kind: str, records: Any, dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_it() -> None:
        if kind == "mlflow":
            for path in tmp_path.glob("mlflow.db*"):
                path.write_bytes(b"this is no database" * 1000)
        else:
            shutil.rmtree(tmp_path / "tensorboard")

    small = SMALL | {"epochs": 3}
    plain = Recommender(**small).fit(dataset, tmp_path / "plain")
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stop = at_step(steps_of(dataset) + 1, break_it)
        tracked = Recommender(**small).fit(dataset, tmp_path / "run", stop=stop, track=kind)  # type: ignore[arg-type]
    told = [str(one.message) for one in caught if issubclass(one.category, TrainingWarning)]
    (line,) = [text for text in told if "can't be written" in text]
    assert line.startswith("MLflow " if kind == "mlflow" else "TensorBoard ")
    assert "\n" not in line
    assert capfd.readouterr().err == ""  # no traceback of a library
    assert len(tracked.epochs) == 3
    assert not tracked.interrupted
    assert tracked.metrics["test"]["full"]["metrics"] == plain.metrics["test"]["full"]["metrics"]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("plain", "run")]
    assert weights[0] == weights[1]  # nor does tracking change anything


def test_what_could_not_be_written_is_added_at_the_end(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    real, calls = TensorBoardTracker.write_values, []

    def write(self: TensorBoardTracker, values: Any, step: int, moment: float) -> None:
        calls.append(step)
        if calls.count(2) == 1 and step == 2:
            raise OSError("No space left on device")
        real(self, values, step, moment)

    monkeypatch.setattr(TensorBoardTracker, "write_values", write)
    with pytest.warns(TrainingWarning, match="TensorBoard can't be written .No space left on device"):
        Recommender(**SMALL | {"epochs": 4}).fit(dataset, tmp_path / "run", track="tensorboard")
    record = of_tensorboard(tmp_path / "tensorboard" / "run")
    assert calls[:4] == [1, 2, 2, 3]  # it is not tried again in epochs 3 and 4
    assert (record.status, record.steps("train/loss")) == ("FINISHED", [1, 2, 3, 4])


def test_half_an_event_hides_nothing_that_follows(dataset: Dataset, tmp_path: Path) -> None:
    """A full disk may leave half an event, after which a reader stops in that file."""
    Recommender(**SMALL).fit(dataset, tmp_path / "run", track="tensorboard")
    (file,) = (tmp_path / "tensorboard" / "run").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    Recommender(**SMALL | {"epochs": 3}).fit(dataset, tmp_path / "run", resume=True, track="tensorboard")
    assert of_tensorboard(file.parent).steps("train/loss") == [1, 2, 3]


@BOTH
def test_a_run_that_replaces_another_has_its_own_record(
    kind: str, records: Any, dataset: Dataset, tmp_path: Path
) -> None:
    for epochs in (1, 2):
        Recommender(**SMALL | {"epochs": epochs}).fit(dataset, tmp_path / "run", overwrite=epochs == 2, track=kind)  # type: ignore[arg-type]
    Recommender(**SMALL | {"epochs": 3}).fit(dataset, tmp_path / "run", resume=True, track=kind)  # type: ignore[arg-type]
    first, second = records()
    assert first.steps("train/loss") == [1]
    assert second.steps("train/loss") == [1, 2, 3]
    assert [first.name, second.name] == (["run", "run"] if kind == "mlflow" else ["run", "run-2"])


@BOTH
def test_a_start_from_another_run_is_told(kind: str, records: Any, dataset: Dataset, tmp_path: Path) -> None:
    Recommender(**SMALL).fit(dataset, tmp_path / "old")
    Recommender(**SMALL).fit(dataset, tmp_path / "new", init_from=tmp_path / "old", track=kind)  # type: ignore[arg-type]
    (record,) = records()
    facts = json.loads((tmp_path / "new" / "config.json").read_text())["init_from"]
    assert_option(kind, record, "init_from.run", facts["run"])
    assert_option(kind, record, "init_from.items.kept", facts["items"]["kept"])


@BOTH
def test_a_counted_model(kind: str, records: Any, dataset: Dataset, tmp_path: Path) -> None:
    counted = Recommender("popularity").fit(dataset, tmp_path / "run", track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert (record.status, record.steps("train/seconds")) == ("FINISHED", [1])
    assert "train/loss" not in record.values
    found = dict(record.values["test/full/ndcg_at_10"])
    assert found == {1: pytest.approx(counted.metrics["test"]["full"]["metrics"]["ndcg@10"], rel=1e-6)}


@BOTH
def test_a_fit_in_memory(kind: str, records: Any, dataset: Dataset) -> None:
    Recommender(**SMALL).fit(dataset, track=kind)  # type: ignore[arg-type]
    (record,) = records()
    assert record.name.startswith("sasrec-")
    assert (record.status, record.steps("train/loss")) == ("FINISHED", [1, 2])
    assert "run_folder" not in record.texts


def test_equal_runs_in_two_folders_have_their_own_records(dataset: Dataset, tmp_path: Path) -> None:
    """Two runs with equal options have equal ids, but each has its own record."""
    for name in ("a", "b"):
        Recommender(**SMALL).fit(dataset, tmp_path / name / "run", track="tensorboard")
    shutil.rmtree(tmp_path / "b" / "tensorboard")
    shutil.copytree(tmp_path / "a" / "tensorboard", tmp_path / "b" / "tensorboard")  # the record of a
    Recommender(**SMALL | {"epochs": 3}).fit(dataset, tmp_path / "b" / "run", resume=True, track="tensorboard")
    found = {path.name: of_tensorboard(path).steps("train/loss") for path in (tmp_path / "b" / "tensorboard").iterdir()}
    assert found == {"run": [1, 2], "run-2": [1, 2, 3]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlflow"])
def test_the_settings_of_mlflow_hold(
    mlflow: Any, records: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del records
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    with mlflow.start_run() as parent:
        Recommender(**SMALL).fit(dataset, tmp_path / "run", track="mlflow")
        assert mlflow.active_run().info.run_id == parent.info.run_id
    child = next(record for record in of_mlflow(uri, "other") if record.name == "run")
    assert child.texts["mlflow.parentRunId"] == parent.info.run_id
    assert _shown("postgresql://me:secret@host/db") == "postgresql://host/db"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlflow"])
def test_by_default_mlflow_writes_to_its_own_default(
    records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del records
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    LOG.frame.write_csv(tmp_path / "log.csv")
    assert main(["fit", "log.csv", "--out", "run", "--epochs", "1", "--ensemble", "1", "--track", "mlflow"]) == 0
    shown = f"mlflow server --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'} shows it"
    assert capsys.readouterr().out.count(shown) == 1
    with sqlite3.connect(tmp_path / "mlflow.db") as file:
        assert file.execute("select name, status from runs").fetchall() == [("run", "FINISHED")]


def of_group(kind: str, records: Any, name: str) -> tuple[Record, dict[str, Record]]:
    """The record of a search or a comparison, and those below it."""
    if kind == "tensorboard":
        folder = Path("tensorboard") / name
        below = [of_tensorboard(path) for path in folder.iterdir() if path.is_dir()]
        return of_tensorboard(folder), {record.name: record for record in below}
    (above,) = [record for record in records() if record.name == name and "mlflow.parentRunId" not in record.texts]
    below = [record for record in records() if "mlflow.parentRunId" in record.texts]
    assert len(records()) == 1 + len(below)
    client = importlib.import_module("mlflow").MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (parent,) = {record.texts["mlflow.parentRunId"] for record in below}
    assert client.get_run(parent).info.run_name == name
    return above, {record.name: record for record in below}


@BOTH
def test_a_search_has_a_record_and_its_trials_below(kind: str, records: Any, dataset: Dataset, tmp_path: Path) -> None:
    for trials in (1, 2):  # the second call goes on with the record
        found = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=trials), track=kind, **SMALL)  # type: ignore[arg-type]
    search, below = of_group(kind, records, "run.tune")
    assert search.status == "FINISHED"
    values = [row.value for row in found.rows]
    assert search.values["compared/ndcg_at_10"] == [(n, pytest.approx(v, rel=1e-6)) for n, v in enumerate(values)]
    assert {"trial-0", "trial-1", "run"} <= set(below)
    for row in found.rows:
        trial = below[f"trial-{row.trial}"]
        assert (trial.status, trial.steps("train/loss")) == ("FINISHED", [1, 2])
        assert max(value for _, value in trial.values["valid/ndcg_at_10"]) == pytest.approx(row.alone, rel=1e-6)
        assert trial.values["compared/ndcg_at_10"] == [(2, pytest.approx(row.value, rel=1e-6))]
        assert_option(kind, trial, "learning_rate", row.options["learning_rate"])
    test = found.recommender.metrics["test"]["full"]["metrics"]["ndcg@10"]  # type: ignore[union-attr]
    fits = [record for name, record in below.items() if name.startswith("run")]  # two, if the second trial was better
    tested = [value for record in fits for _, value in record.values["test/full/ndcg_at_10"]]
    assert any(value == pytest.approx(test, rel=1e-6) for value in tested)


@BOTH
def test_a_comparison_has_a_record_and_its_trainings_below(
    kind: str, records: Any, dataset: Dataset, tmp_path: Path
) -> None:
    for seeds in (1, 2):
        terms = CompareConfig(seeds=seeds, test_negatives=7)
        found = compare_models(dataset, ["sasrec", "popularity"], terms, out=tmp_path / "out", track=kind, **SMALL)  # type: ignore[arg-type]
    comparison, below = of_group(kind, records, "out")
    sasrec = found.entries[0]
    assert comparison.status == "FINISHED"
    assert set(below) == {"sasrec-seed-0", "sasrec-seed-1", "popularity-seed-0"}
    for training in sasrec.trainings:
        record, name = below[f"sasrec-seed-{training.seed}"], "test/full/ndcg_at_10"
        wanted = pytest.approx(training.metrics["full"]["ndcg@10"], rel=1e-6)
        assert (record.status, record.steps("train/loss")) == ("FINISHED", [1, 2])
        assert record.values[name] == [(2, wanted)]
        assert comparison.values[f"sasrec/{name}"][training.seed] == (training.seed, wanted)


def test_a_record_that_fails_in_the_middle_ends_no_comparison(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    real = TensorBoardTracker.begin

    def begin(self: TensorBoardTracker, key: str, name: str, resume: bool) -> Any:
        if name == "markov-seed-0":
            raise OSError("No space left on device")
        return real(self, key, name, resume)

    monkeypatch.setattr(TensorBoardTracker, "begin", begin)
    with pytest.warns(TrainingWarning, match="No space left on device.*markov-seed-0 is not recorded"):
        found = compare_models(dataset, ["markov", "popularity"], out=tmp_path / "out", track="tensorboard")
    assert all(entry.results for entry in found.entries)
    assert set(of_group("tensorboard", None, "out")[1]) == {"popularity-seed-0"}


@pytest.mark.parametrize("kind", ["mlflow", "tensorboard"])
def test_a_missing_library_is_one_line_before_anything_is_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    assert main(["fit", "not-there.csv", "--out", str(tmp_path / "run"), "--track", kind]) == 2
    assert capsys.readouterr().err == (
        f"error: track {kind} needs libraries that are not installed; pip install 'seqrec[{kind}]' installs them\n"
    )
    with pytest.raises(InputError, match="pip install"):
        Recommender(**SMALL).fit(LOG.frame, tmp_path / "run", track=kind)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "settings", "message"),
    [
        ("run", {"track": "wandb"}, "track is 'wandb'; give mlflow or tensorboard"),
        ("run", {"folder": "file"}, "is a file; set TENSORBOARD_LOGGING_DIR to a folder"),
        ("run", {"folder": "file/below"}, "track tensorboard: can't be used"),
        ("run", {"folder": "run/inside"}, "is in the run folder; set TENSORBOARD_LOGGING_DIR to another folder"),
        ("tensorboard", {}, "is in the run folder"),
        pytest.param("run", {"uri": "file:mlruns"}, "track mlflow: can't be used", marks=pytest.mark.slow),
        pytest.param("run", {"uri": "what://ever"}, "track mlflow: can't be used", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_used_is_one_line_and_no_run(
    out: str, settings: dict[str, str], message: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    if "uri" in settings:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", settings["uri"])
    if "folder" in settings:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / settings["folder"]))
    kind: Any = settings.get("track", "mlflow" if "uri" in settings else "tensorboard")
    with pytest.raises(InputError) as caught:
        Recommender(**SMALL).fit(dataset, tmp_path / out, track=kind)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit log.csv --out run --track wandb", "--track"),
        ("fit log.csv --out run --track mlflow --engine ray", "track is not available with engine ray"),
        ("tune log.csv --out run --track mlflow --engine ray", "track is not available with engine ray"),
        ("compare log.csv --models sasrec --track wandb", "--track"),
    ],
)
def test_where_there_is_no_tracking_one_line_says_so(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_of_an_epoch_is_that_of_its_last_step(schedule: Any, split: Split) -> None:
    rows: list[dict[str, Any]] = []
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=0.01, learning_rate_schedule=schedule, warmup_steps=2)
    model = SASRec(SASRecConfig(embedding_dim=4, num_blocks=1), split.train.dataset.num_items)
    trained = train(model, split, config, watch=rows.append)
    per_epoch = -(-len(split.train) // 8)
    done = np.arange(1, 4) * per_epoch - 1 - 2  # steps after the warm-up, before the last of the epoch
    part = done / (3 * per_epoch - 2)
    share = {"constant": np.ones(3), "linear": 1 - part, "cosine": (1 + np.cos(np.pi * part)) / 2}[schedule]
    assert [row["learning_rate"] for row in rows] == pytest.approx(0.01 * share)
    assert [{**row, "learning_rate": 0} for row in rows] == [{**row, "learning_rate": 0} for row in trained.epochs]
    assert "learning_rate" not in trained.epochs[0]
