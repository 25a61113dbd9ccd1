# ruff: noqa: F401, F811 fixtures are used by their names
"""Training with its checkpoints in an S3-compatible server that fails for a while: run by hand, it takes minutes.

python -m pytest tests/cluster/storage_fails.py
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from test_train import LONGER, check_equal, cluster, dataset, expected_longer, workers_of

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.train import fit_on_cluster
from seqrec.errors import RunWarning, TrainingWarning


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server that can be stopped and started again."""
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import FileSystem, FileType

    class Server:
        port = 0
        system: Any = None

        def has(self, name: str) -> bool:
            return self.system.get_file_info(f"bucket/{name}").type != FileType.NotFound

        def wait_for(self, name: str) -> None:
            for _ in range(6000):
                if self.has(name):
                    return
                time.sleep(0.1)

        def start(self) -> None:
            self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
            self.server.start()
            self.port = self.server._server.port

        def stop(self) -> None:
            self.server.stop()

        def url(self, name: str) -> str:
            return f"s3://key:secret@bucket/{name}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    server = Server()
    server.start()
    system, path = FileSystem.from_uri(server.url("runs") + "&allow_bucket_creation=true")
    system.create_dir(path.partition("/")[0])
    server.system = system
    yield server
    server.stop()


def test_training_outlasts_a_storage_that_fails_for_a_while(cluster, dataset, expected_longer, s3, tmp_path):
    out, text = tmp_path / "run", "the storage can't be written"
    config = ClusterConfig("ray", workers=2, storage=s3.url("runs"))

    def fail() -> None:
        s3.wait_for("runs/run/checkpoint_manager_snapshot.json")
        s3.stop()
        for _ in range(3000):
            if any(text in str(one.message) for one in seen):
                break
            time.sleep(0.1)
        s3.start()

    breaker = threading.Thread(target=fail)
    with pytest.warns(RunWarning, match=text) as seen:  # noqa: PT031 the thread reads what was warned of
        breaker.start()
        fit_on_cluster(dataset, out, config, "sasrec", LONGER)
    breaker.join()
    check_equal(out, expected_longer)
    assert not s3.has("runs/run")  # nothing is left in the storage
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_lost_worker_continues_from_the_storage(cluster, dataset, expected_longer, s3, tmp_path):
    out = tmp_path / "run"
    config = ClusterConfig("ray", workers=2, storage=s3.url("runs"))

    def kill() -> None:
        s3.wait_for("runs/run/checkpoint_manager_snapshot.json")
        os.kill(next(pid for node in cluster.nodes for pid in workers_of(node)), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.warns(TrainingWarning, match="goes on from the last checkpoint"):
        fit_on_cluster(dataset, out, config, "sasrec", LONGER)
    killer.join()
    check_equal(out, expected_longer)
