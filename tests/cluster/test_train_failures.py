"""Training on a Ray cluster whose workers, nodes and storage fail."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from failing_s3 import Server
from training_cluster import OPTIONS, TWO, Later, check_equal, has_checkpoint, kill_a_worker_of, workers_of

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.train import fit_on_cluster
from seqrec.errors import RunWarning, TrainingWarning

pytestmark = pytest.mark.cluster


@pytest.fixture
def s3() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


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
