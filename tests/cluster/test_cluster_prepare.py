"""Preparation on a real Ray cluster of two processes: the files of one machine, whatever happens on the way."""

import gc
import json
import os
import signal
import threading
import time

import numpy as np
import polars as pl
import pytest

from seqrec import Dataset, InputError, PrepareConfig, prepare, read_log
from seqrec.cli.app import main
from seqrec.cluster import parts as cluster_parts
from seqrec.cluster import prepare as cluster_prepare
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.prepare import prepare_on_cluster

pytestmark = pytest.mark.cluster
CLUSTER = ClusterConfig(engine="ray", workers=2)
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    before = dict(os.environ)
    os.environ.update(KEYS)  # the workers inherit them
    ray.init(
        "local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    yield ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Eight parts with texts, ties, titles and ratings."""
    folder, rng = tmp_path_factory.mktemp("cluster") / "log", np.random.default_rng(3)
    folder.mkdir()
    for number in range(8):
        rows = int(rng.integers(2000, 4000))
        items = rng.integers(0, 400, rows)
        pl.DataFrame({
            "user_id": [f"u{user}" for user in rng.integers(0, 900, rows)],
            "item_id": items,
            "timestamp": rng.integers(1_600_000_000_000, 1_600_000_100_000, rows),
            "rating": rng.integers(1, 6, rows),
            "title": [f"title {item}" for item in items],
        }).write_parquet(folder / f"part-{number}.parquet", row_group_size=700)  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(cluster_parts, "BLOCK_ROWS", 2000)
    monkeypatch.setattr(cluster_prepare, "PART_ROWS", 4000)


def written(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


CONFIGS = [
    PrepareConfig(),
    PrepareConfig(min_rating=3, duplicates="drop", min_user_interactions=8, min_item_interactions=20),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["all", "filtered"])
def test_eight_parts_give_the_files_of_one_machine(ray, log, tmp_path, config):
    prepare(read_log(log), config).save(tmp_path / "local")
    dataset = prepare_on_cluster(log, tmp_path / "out", config, cluster=CLUSTER)
    assert written(tmp_path / "out") == written(tmp_path / "local")
    assert dataset.check().num_items == len(dataset.item_table)


def test_workers_killed_on_the_way(ray, log, tmp_path):
    expected = prepare(read_log(log), CONFIGS[1])
    expected.save(tmp_path / "local")
    ended, killed = threading.Event(), []

    def kill():
        while not ended.is_set() and len(killed) < 3:
            for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
                try:
                    with open(f"/proc/{pid}/cmdline", "rb") as file:
                        name = file.read().split(b"\0")[0]
                    if name.startswith((b"ray::code_block", b"ray::split_block", b"ray::order_part")):
                        with open(f"/proc/{pid}/status") as file:
                            mine = f"PPid:\t{raylet}\n" in file.read()
                        if mine and name not in killed:
                            os.kill(pid, signal.SIGKILL)
                            killed.append(name)
                except OSError:
                    continue
            time.sleep(0.001)

    def parent():
        return os.getppid()

    raylet = ray.get(ray.remote(parent).remote())
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        prepare_on_cluster(log, tmp_path / "out", CONFIGS[1], cluster=CLUSTER)
    finally:
        ended.set()
        thread.join()
    assert killed
    assert written(tmp_path / "out") == written(tmp_path / "local")


def test_a_failure_leaves_what_was_there(ray, log, tmp_path):
    prepare_on_cluster(log, tmp_path / "out", cluster=CLUSTER)
    before = written(tmp_path / "out")
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in sorted(log.iterdir())[:2]:
        (bad / path.name).write_bytes(path.read_bytes())
    frame = pl.read_parquet(bad / "part-1.parquet")
    users = frame["user_id"].to_list()
    users[-1] = " "
    frame.with_columns(pl.Series("user_id", users)).write_parquet(bad / "part-1.parquet")
    rows = pl.read_parquet(bad / "part-0.parquet").height + frame.height
    with pytest.raises(InputError, match=f"row {rows}: the user id is empty") as found:
        prepare_on_cluster(bad, tmp_path / "out", cluster=CLUSTER)
    assert "\n" not in str(found.value)
    assert written(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "out"]


def test_inspect_on_a_cluster_prints_what_it_prints_on_one_machine(ray, log, tmp_path, capsys, monkeypatch):
    outputs, temporary = [], tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for more in ([], ["--engine", "ray", "--workers", "2"]):
        assert main(["inspect", str(log), "--min-rating", "2", "--json", str(tmp_path / "facts.json"), *more]) == 0
        outputs.append((capsys.readouterr(), json.loads((tmp_path / "facts.json").read_text())))
    assert outputs[0] == outputs[1]
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_a_text_log_is_read_by_this_process(ray, log, tmp_path, capsys):
    read_log(log).write_csv(tmp_path / "log.csv")
    assert main(["inspect", str(tmp_path / "log.csv"), "--engine", "ray"]) == 0
    assert "is not Parquet, so it is read by this process" in capsys.readouterr().err


def test_a_run_takes_over_the_files_of_a_dataset(ray, log, tmp_path):
    run = tmp_path / "run"
    arguments = ["fit", str(log), "--out", str(run), "--model", "popularity", "--engine", "ray"]
    assert main(arguments) == 0
    gc.collect()
    prepare(read_log(log)).save(tmp_path / "local")
    assert written(run / "data") == written(tmp_path / "local")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_s3_bucket(ray, log, tmp_path):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        where = f"endpoint_override=127.0.0.1:{port}&scheme=http&allow_bucket_creation=true"
        from pyarrow import fs

        system, _ = fs.FileSystem.from_uri(f"s3://logs/some?{where}")
        system.create_dir("logs")
        for path in log.iterdir():
            with system.open_output_stream(f"logs/some/day=1/{path.name}") as file:
                file.write(path.read_bytes())
        with system.open_output_stream("logs/some/_SUCCESS") as file:
            file.write(b"")
        prepare_on_cluster(f"s3://logs/some?{where}", tmp_path / "out", cluster=CLUSTER)
        with pytest.raises(InputError, match="there is no such file or folder"):
            prepare_on_cluster(f"s3://logs/none?{where}", tmp_path / "none", cluster=CLUSTER)
    finally:
        server.stop()
    prepare(read_log(log)).save(tmp_path / "local")
    assert written(tmp_path / "out") == written(tmp_path / "local")
    assert Dataset.load(tmp_path / "out").check().has_timestamps
