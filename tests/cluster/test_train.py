"""Training on a Ray cluster of several small nodes on this machine, with workers, nodes and the storage failing."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from failing_s3 import Server

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import import_ray
from seqrec.cluster.train import fit_on_cluster
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import prepare
from seqrec.errors import InputError, RunWarning, TrainingWarning
from seqrec.recommender import Recommender

pytestmark = pytest.mark.cluster
ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

OPTIONS: dict[str, Any] = {
    "max_length": 10, "embedding_dim": 8, "num_blocks": 1, "epochs": 12, "batch_size": 4, "evaluate_every": 1,
    "transitions": "off", "threads": 1, "checkpoint_minutes": 0.0,
}  # fmt: skip
TWO = ClusterConfig("ray", workers=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors, so that it does not train, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
    import_ray()
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    made.nodes = [made.add_node(num_cpus=1, **small) for _ in range(2)]
    made.small = small
    ray.init(made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.pop("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    if before is not None:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = before


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Users who walk through the items in order, with some jumps."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(120):
        steps = np.where(random.random(random.integers(6, 15)) < 0.3, random.integers(1, 20, 1), 1)
        items = (random.integers(20) + steps.cumsum()) % 20
        rows.append(pl.DataFrame({"user_id": user, "item_id": items, "timestamp": np.arange(len(items))}))
    return prepare(pl.concat(rows))


@pytest.fixture(scope="module")
def expected(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The epochs of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    Recommender("sasrec", **OPTIONS).fit(dataset, out)
    return pl.read_csv(out / "epochs.csv")


def check_equal(out: Path, expected: pl.DataFrame, is_longer: bool = False) -> None:
    """The epochs of a run, or the first of them, are those of one process, up to rounding."""
    found = pl.read_csv(out / "epochs.csv")
    found = found.head(len(expected)) if is_longer else found
    assert found["epoch"].to_list() == expected["epoch"].to_list()
    assert found["loss"].to_list() == pytest.approx(expected["loss"].to_list(), rel=1e-4)
    assert found["ndcg@10"].to_list() == pytest.approx(expected["ndcg@10"].to_list(), abs=0.02)
    assert Recommender.load(out).recommend(k=3).height > 0


def workers_of(node: Any) -> list[int]:
    """The process ids of the training workers on a node."""
    raylet = next(iter(node.all_processes["raylet"])).process.pid
    found = []
    for process in psutil.Process(raylet).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


class Later(threading.Thread):
    """Does something in the middle of a training: once a condition holds. ``join`` raises what went wrong there."""

    def __init__(self, is_time: Callable[[], bool], change: Callable[[], Any]) -> None:
        super().__init__()
        self.is_time, self.change = is_time, change
        self.problem: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for _ in range(30000):
                if self.is_time():
                    self.change()
                    return
                time.sleep(0.02)
            raise TimeoutError("nothing was changed: the condition never held")
        except Exception as error:  # noqa: BLE001 the other thread raises it
            self.problem = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.problem is not None:
            raise self.problem


def kill_a_worker_of(nodes: list[Any]) -> None:
    """Kill the first training worker that one of the nodes has."""
    os.kill(next(pid for node in nodes for pid in workers_of(node)), signal.SIGKILL)


def has_checkpoint(out: Path) -> Callable[[], bool]:
    """Whether a run folder has a checkpoint."""
    return (out / "state/training.safetensors").exists


def test_two_workers_train_as_one_process_does(cluster, dataset, expected, tmp_path, capsys):
    out = tmp_path / "run"
    outcome = fit_on_cluster(dataset, out, TWO, "sasrec", OPTIONS)
    check_equal(out, expected)
    assert (outcome.interrupted, outcome.label, len(outcome.epochs)) == (False, "sasrec", 12)
    assert set(outcome.evaluations) == {"full", "sampled"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing is left beside it


def test_workers_start_from_an_earlier_run(cluster, dataset, expected, tmp_path):
    old, options = tmp_path / "old", OPTIONS | {"epochs": 3, "patience": 9}
    Recommender("sasrec", **options).fit(dataset, old)
    Recommender("sasrec", **options).fit(dataset, tmp_path / "one", init_from=old)
    fit_on_cluster(dataset, tmp_path / "run", TWO, "sasrec", options, init_from=old)
    check_equal(tmp_path / "run", pl.read_csv(tmp_path / "one/epochs.csv"))
    assert pl.read_csv(tmp_path / "run/epochs.csv")["loss"][0] < expected["loss"][1]


def test_a_killed_worker_costs_no_checkpoint(cluster, dataset, expected, tmp_path):
    out = tmp_path / "run"
    killer = Later(has_checkpoint(out), lambda: kill_a_worker_of(cluster.nodes))
    with pytest.warns(TrainingWarning, match="goes on from the last checkpoint"):
        fit_on_cluster(dataset, out, TWO, "sasrec", OPTIONS)
    killer.join()
    check_equal(out, expected)


def test_a_lost_node_is_replaced_by_a_spare_one(cluster, dataset, expected, tmp_path):
    out = tmp_path / "run"
    lost: list[Any] = []

    def remove() -> None:
        lost.append(next(node for node in cluster.nodes if workers_of(node)))
        cluster.remove_node(lost[0], allow_graceful=False)

    spare = cluster.add_node(num_cpus=1, **cluster.small)
    cluster.nodes.append(spare)
    remover = Later(has_checkpoint(out), remove)
    with pytest.warns(TrainingWarning, match="goes on from the last checkpoint"):
        fit_on_cluster(dataset, out, TWO, "sasrec", OPTIONS)
    remover.join()
    cluster.nodes.remove(lost[0])
    check_equal(out, expected)


def test_ctrl_c_leaves_a_checkpoint_that_one_worker_resumes(cluster, dataset, expected, tmp_path):
    out = tmp_path / "run"
    presser = Later(has_checkpoint(out), lambda: os.kill(os.getpid(), signal.SIGINT))
    long = OPTIONS | {"epochs": 1000, "patience": 1000}  # so that it does not end before the signal arrives
    outcome = fit_on_cluster(dataset, out, TWO, "sasrec", long)
    presser.join()
    assert outcome.interrupted
    done = pl.read_csv(out / "epochs.csv").height
    assert done < long["epochs"]
    more = OPTIONS | {"epochs": max(done + 1, OPTIONS["epochs"]), "patience": 1000}
    again = fit_on_cluster(dataset, out, ClusterConfig("ray", workers=1), "sasrec", more, resume=True)
    assert (again.interrupted, len(again.epochs)) == (False, more["epochs"])
    check_equal(out, expected, is_longer=True)


def test_an_input_error_of_a_worker_is_one_line_here(cluster, tmp_path):
    pairs = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 2, 1], "timestamp": [1, 2, 3, 4]})
    with pytest.raises(InputError, match="so the model learns nothing") as found:
        fit_on_cluster(prepare(pairs), tmp_path / "run", TWO, "sasrec", OPTIONS)
    assert "\n" not in str(found.value)
    assert not (tmp_path / ".run.cluster").exists()


@pytest.fixture
def s3() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def test_training_outlasts_a_storage_that_fails_for_a_while(cluster, dataset, expected, s3, tmp_path):
    out, text = tmp_path / "run", "the storage can't be written"

    def fail() -> None:
        s3.fails = True
        for _ in range(3000):
            if any(text in str(one.message) for one in seen):
                break
            time.sleep(0.1)
        s3.fails = False

    with pytest.warns(RunWarning, match=text) as seen:  # noqa: PT031 the thread reads what was warned of
        breaker = Later(s3.has_checkpoint, fail)
        fit_on_cluster(dataset, out, ClusterConfig("ray", workers=2, storage=s3.url("runs")), "sasrec", OPTIONS)
    breaker.join()
    assert s3.refused > 0
    check_equal(out, expected)
    assert not s3.has("runs/run")  # nothing is left in the storage
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_lost_worker_continues_from_the_storage(cluster, dataset, expected, s3, tmp_path):
    out = tmp_path / "run"
    killer = Later(s3.has_checkpoint, lambda: kill_a_worker_of(cluster.nodes))
    with pytest.warns(TrainingWarning, match="goes on from the last checkpoint"):
        fit_on_cluster(dataset, out, ClusterConfig("ray", workers=2, storage=s3.url("runs")), "sasrec", OPTIONS)
    killer.join()
    check_equal(out, expected)
