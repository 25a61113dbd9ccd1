"""Trials side by side on a Ray cluster, one worker of which is killed."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from seqrec import prepare, synthetic_log
from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import connected
from seqrec.cluster.trials import SideBySide
from seqrec.data.dataset import Dataset
from seqrec.tools.config import TuneConfig
from seqrec.tools.trial import Job, Outcome, attempted
from seqrec.tools.tune import tune_model

pytestmark = pytest.mark.cluster
CLUSTER = ClusterConfig(engine="ray", workers=2)
SMALL: dict[str, Any] = {"epochs": 3, "num_blocks": 1, "evaluate_every": 1, "transitions": "off"}


@pytest.fixture(scope="module")
def ray() -> Iterator[ModuleType]:
    with connected(CLUSTER) as module:
        # Workers can't import this file.
        module.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield module


def failed(reason: str) -> Outcome:
    return Outcome("failed", reason=reason)


def slow(shared: tuple[Dataset, str], job: Job, report: Callable[[int, float], bool]) -> Outcome:
    """A trial that notes its process at each validation, and waits there the first time it runs, until it is killed."""
    dataset, folder = shared

    def noted(step: int, value: float) -> bool:
        pruned = report(step, value)
        marks = len(list(Path(folder).glob(f"trial-{job.number}-*")))
        (Path(folder) / f"trial-{job.number}-{step}-{os.getpid()}").touch()
        if job.number == 1 and step == 2 and marks == 1:
            time.sleep(120)
        return pruned

    return attempted(dataset, job, noted)


class Killing(SideBySide):
    """Kills the worker of trial 1 once it has validated twice."""

    folder: Path
    killed: int | None = None

    def wait(self, judge: Any) -> list[tuple[int, Any]]:
        found = super().wait(judge)
        marks = list(self.folder.glob("trial-1-2-*"))
        if marks and self.killed is None:
            self.killed = int(marks[0].name.split("-")[-1])
            os.kill(self.killed, signal.SIGKILL)
        return found


def test_a_killed_worker_costs_no_trial(ray: ModuleType, tmp_path: Path) -> None:
    dataset = prepare(synthetic_log(80, genres=2, items_per_genre=12, mean_length=6).frame)
    marks = tmp_path / "marks"
    marks.mkdir()
    workers = Killing(ray, CLUSTER, slow, failed, (dataset, str(marks)))
    workers.folder = marks
    found = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=4), workers=workers, **SMALL)
    assert workers.killed is not None
    assert [row.trial for row in found.rows] == [0, 1, 2, 3]
    assert {row.state for row in found.rows} <= {"complete", "pruned"}
    processes = {path.name.split("-")[-1] for path in marks.glob("trial-1-*")}
    assert len(processes) == 2  # Ray started it again in another process
    assert len({path.name.split("-")[-1] for path in marks.iterdir()}) >= 2
    # The trials, and the fit at the end, are those of one process.
    for row in found.rows:
        alone = attempted(dataset, Job(0, "sasrec", {**SMALL, **_options(dataset, row.options)}), lambda *_: False)
        if row.state == "complete":
            assert row.value == pytest.approx(alone.value, abs=0.02)
    assert found.recommender is not None
    assert found.recommender.metrics["test"]["full"]["metrics"]["ndcg@10"] > 0


def _options(dataset: Dataset, values: dict[str, Any]) -> dict[str, Any]:
    from seqrec.tools.space import applied, base_of
    from seqrec.tools.trial import plan_of

    return applied({}, base_of(plan_of(dataset, "sasrec", SMALL).recipe, "sasrec"), values)


def test_a_trial_that_dies_every_time_is_a_failed_one(ray: ModuleType) -> None:
    workers = SideBySide(ray, CLUSTER, dies, failed, None)
    workers.submit(7, None)
    ended: list[tuple[int, Any]] = []
    end = time.monotonic() + 120
    while not ended and time.monotonic() < end:
        ended = workers.wait(lambda *_: False)
    assert ended[0][0] == 7
    assert ended[0][1].state == "failed"
    assert "its worker died 4 times" in ended[0][1].reason
    assert "\n" not in ended[0][1].reason


def dies(shared: Any, job: Any, report: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pruned_trial_stops(ray: ModuleType) -> None:
    workers = SideBySide(ray, CLUSTER, reports, failed, 1000)
    workers.submit(3, None)
    seen: list[int] = []

    def judge(number: int, step: int, value: float) -> bool:
        seen.append(step)
        return step >= 2

    ended: list[tuple[int, Any]] = []
    while not ended:
        ended = workers.wait(judge)
    assert ended[0] == (3, "pruned")
    assert seen == sorted(seen)
    assert 2 <= len(seen) < 1000


def reports(most: int, job: Any, report: Callable[[int, float], bool]) -> str:
    for step in range(1, most):
        time.sleep(0.05)
        if report(step, 0.5):
            return "pruned"
    return "complete"
