"""A cluster whose head is killed in a training: the command ends with one line, and --resume goes on."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from together import free_port

from seqrec.cluster.engine import SETTINGS

pytestmark = pytest.mark.cluster
pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

OPTIONS = "--model sasrec --max-length 10 --embedding-dim 8 --num-blocks 1 --batch-size 4 --threads 1 --epochs 12"
TRAINING = "--evaluate-every 1 --transitions off --split last-two --checkpoint-minutes 0"


class Head:
    """The head of a cluster with two processors, as ``ray start`` starts it."""

    def __init__(self) -> None:
        self.port, self.folder = free_port(), tempfile.mkdtemp(prefix="ray")  # sockets need a short path
        ray = Path(sys.executable).with_name("ray")
        arguments = ["--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={self.port}",
                     "--include-dashboard=false", f"--temp-dir={self.folder}",
                     f"--object-store-memory={80 << 20}"]  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([ray, "start", *arguments], env=os.environ | SETTINGS, **quiet)

    def kill(self) -> None:
        """Kill all of its processes at once."""
        found = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for one in found:
            one.kill()
        psutil.wait_procs(found)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def heads() -> Iterator[list[Head]]:
    started: list[Head] = []
    yield started
    for head in started:
        if head.process.poll() is None:
            head.kill()


def fit(log: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    arguments = ["-m", "seqrec", "fit", str(log), "--out", str(out), *f"{OPTIONS} {TRAINING}".split(), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], stdout=pipe, stderr=pipe, text=True)


def test_a_killed_head_is_one_line_and_resume_goes_on(heads, tmp_path):
    random = np.random.default_rng(0)
    lengths = random.integers(6, 15, 120)
    users = np.repeat(np.arange(120), lengths)
    items = np.where(random.random(len(users)) < 0.3, random.integers(1, 20, len(users)), 1).cumsum() % 20
    log, out, alone = tmp_path / "log.csv", tmp_path / "run", tmp_path / "alone"
    pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))}).write_csv(log)
    assert fit(log, alone).wait(timeout=300) == 0

    heads.append(Head())
    on_cluster = ["--engine", "ray", "--workers", "2", "--address"]
    command = fit(log, out, *on_cluster, f"127.0.0.1:{heads[0].port}")
    for _ in range(6000):
        if (out / "state/training.safetensors").exists() or command.poll() is not None:
            break
        time.sleep(0.02)
    heads[0].kill()
    printed, errors = command.communicate(timeout=200)
    assert command.returncode == 2, printed + errors
    assert errors.splitlines()[-1].startswith("error: the cluster no longer answers"), errors
    assert "Traceback" not in errors

    heads.append(Head())
    again = fit(log, out, *on_cluster, f"127.0.0.1:{heads[1].port}", "--resume")
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    expected, found = pl.read_csv(alone / "epochs.csv"), pl.read_csv(out / "epochs.csv")
    assert found["epoch"].to_list() == expected["epoch"].to_list()
    assert found["loss"].to_list() == pytest.approx(expected["loss"].to_list(), rel=3e-4)
