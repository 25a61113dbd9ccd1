"""Recommendation and evaluation on a Ray cluster of this machine: processes that are killed, and an object store."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import torch

from seqrec import Dataset, Recommender
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import import_ray
from seqrec.cluster.evaluate import evaluate_on_cluster
from seqrec.cluster.recommend import recommend_on_cluster
from seqrec.data.id_table import IdTable
from seqrec.data.split import SplitConfig
from seqrec.errors import InputError
from seqrec.run.config import RunConfig
from seqrec.run.folder import Run

pytestmark = pytest.mark.cluster
CONFIG = ClusterConfig(engine="ray", workers=2)
USERS, ITEMS, BLOCK = 8 * 8192 - 99, 20_000, 8192


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket in an S3-compatible server on this machine, which is the default of all processes."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import FileSystem

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            environment.setenv(f"AWS_{name}", value)
        FileSystem.from_uri("s3://bucket/x?allow_bucket_creation=true")[0].create_dir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="module")
def address(bucket: str) -> Iterator[str]:
    """The address of a cluster that this process is connected to, started after the bucket."""
    ray = import_ray()
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=2, object_store_memory=150 * 2**20, _node_ip_address="127.0.0.1", **options)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def make_run(folder: Path, users: int, items: int) -> Path:
    """Write a run of an untrained model and a generated log."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 8, users)
    dataset = Dataset(
        items=random.integers(1, items + 1, int(lengths.sum()), dtype=np.int32),
        timestamps=np.arange(1_600_000_000, 1_600_000_000 + int(lengths.sum())),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        users=IdTable(pl.Series("user_id", np.arange(users)).cast(pl.String).str.zfill(8)),
        catalogue=IdTable(pl.Series("item_id", np.arange(items))),
        has_timestamps=True,
    )
    config = RunConfig(
        model="sasrec",
        model_config={"embedding_dim": 16, "max_length": 8},
        num_items=items,
        num_users=users,
        has_timestamps=True,
        fingerprint=dataset.fingerprint,
        split=SplitConfig("last-two"),
    )
    torch.manual_seed(0)
    Run.create(folder, config, dataset, weights=config.build().state_dict())
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that takes some seconds to recommend from, so that something can be killed in the middle."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", USERS, ITEMS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two blocks of targets."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", 10_000, 300)


@pytest.fixture(scope="module")
def wanted(run: Path) -> pl.DataFrame:
    """What the local command recommends."""
    return Recommender.load(run).recommend()


def read(folder: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(part) for part in sorted(folder.glob("part-*.parquet")))


def workers() -> list[int]:
    """The processes of Ray Data that this process and its children have started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.cmdline()[:1]
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if name and name[0].startswith("ray::MapWorker"):
            found.append(process.pid)
    return found


def once(is_so: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def test_a_worker_that_is_killed_costs_nothing_but_time(
    address: str, run: Path, wanted: pl.DataFrame, tmp_path: Path
) -> None:
    del address
    out, killed = tmp_path / "out", []

    def kill() -> None:
        once(lambda: len(list(out.glob("part-*"))) >= 2)
        killed.append((workers()[0], len(list(out.glob("part-*")))))
        os.kill(killed[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = recommend_on_cluster(run, out, CONFIG, block=BLOCK)
    killer.join()
    ((pid, parts),) = killed
    assert parts < found["parts"] == 8  # in the middle
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert found["complete"] == {"rows": 10 * USERS, "left_out": 0}
    table = read(out)
    assert table["user_id"].n_unique() == USERS
    assert table.select("user_id", "rank").is_unique().all()
    assert table.equals(wanted)
    assert not list(out.glob(".*"))


def test_a_command_that_is_killed_goes_on_where_it_was(
    address: str, run: Path, wanted: pl.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = (
        "from seqrec.cluster.recommend import *; import sys; "
        f"recommend_on_cluster(sys.argv[1], sys.argv[2], ClusterConfig('ray', sys.argv[3], 2), block={BLOCK})"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(run), str(out), address]) as command:
        once(lambda: len(list(out.glob("part-*"))) >= 2 or command.poll() is not None)
        command.kill()
    assert command.returncode == -signal.SIGKILL
    # Its processes may live on for a while, as they may where a command is started again. They write the same bytes.
    before = {part.name: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert 2 <= len(before) < 8
    recommend_on_cluster(run, out, CONFIG, block=BLOCK)
    after = {part.name: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert len(after) == 8
    assert before.items() <= after.items()
    assert read(out).equals(wanted)


def test_run_and_parts_in_an_object_store(
    address: str, bucket: str, run: Path, wanted: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del address
    from pyarrow.fs import FileSystem, LocalFileSystem, copy_files

    system, path = FileSystem.from_uri(f"{bucket}/runs/one")
    copy_files(str(run), path, LocalFileSystem(), system)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    asked = wanted["user_id"].unique(maintain_order=True)[100 : 100 + 3 * BLOCK]
    out = f"{bucket}/deep/out"
    found = recommend_on_cluster(f"{bucket}/runs/one", out, CONFIG, users=asked, block=BLOCK)
    assert found["complete"]["rows"] == 30 * BLOCK
    (tmp_path / "parts").mkdir()
    copy_files(out, str(tmp_path / "parts"))
    assert read(tmp_path / "parts").equals(Recommender.load(run).recommend(users=asked))
    system.delete_file("bucket/deep/out/part-000001.parquet")
    again = recommend_on_cluster(f"{bucket}/runs/one", out, CONFIG, users=asked, block=BLOCK)
    assert again == found
    with pytest.raises(InputError, match="k differs"):
        recommend_on_cluster(f"{bucket}/runs/one", out, CONFIG, users=asked, block=BLOCK, k=3)


def test_the_evaluation_is_the_local_one(address: str, small: Path) -> None:
    del address
    found, _ = evaluate_on_cluster(small, CONFIG, "full", seed=5)
    wanted = Recommender.load(small).evaluate("full", seed=5)
    assert found.users == 10_000
    assert set(found.baselines) >= {"popularity", "markov", "transitions"}
    assert found.to_dict() | {"seconds": 0} == wanted.to_dict() | {"seconds": 0}


def test_the_error_of_a_worker_is_one_line(address: str, small: Path, tmp_path: Path) -> None:
    del address
    copy = shutil.copytree(small, tmp_path / "run")
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-100] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"weights.safetensors: is damaged \(its checksum differs\)") as caught:
        recommend_on_cluster(copy, tmp_path / "out", CONFIG)
    assert "\n" not in str(caught.value)
