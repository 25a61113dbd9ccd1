"""What the trainings on a Ray cluster are given, how they are disturbed, and what is checked at their end."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from seqrec.cluster.config import ClusterConfig
from seqrec.recommender import Recommender

OPTIONS: dict[str, Any] = {
    "max_length": 10, "embedding_dim": 8, "num_blocks": 1, "epochs": 12, "batch_size": 4, "evaluate_every": 1,
    "transitions": "off", "threads": 1, "checkpoint_minutes": 0.0,
}  # fmt: skip
TWO = ClusterConfig("ray", workers=2)


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
