"""Trials side by side on a Ray cluster.

Each trial is a Ray task, which Ray starts again if its worker or node dies. Ray Tune's ``OptunaSearch`` would keep a
state of its own beside the study, and would not use the study's pruner.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import workers_of
from seqrec.errors import one_line

#: How often Ray starts a trial again whose worker or node died.
RETRIES = 3
#: Seconds between two looks at the validations of the running trials.
POLL = 0.2


class Board:
    """The actor where trials leave their validations, and see whether they are pruned.

    If it is lost with its node, Ray starts an empty one: the validations not fetched yet are lost, and nothing else.
    """

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, float]] = []
        self.pruned: set[int] = set()

    def report(self, number: int, step: int, value: float) -> bool:
        """Leave a validation of a trial. Returns whether the trial is pruned."""
        self.reports.append((number, step, value))
        return number in self.pruned

    def exchange(self, pruned: set[int]) -> list[tuple[int, int, float]]:
        """Set which trials are pruned, and take the validations since the last call."""
        reports, self.reports, self.pruned = self.reports, [], pruned
        return reports


class SideBySide:
    """Runs trials on the workers of a cluster.

    A trial learns that it is pruned at the validation after the one that shows it.

    Args:
        ray: the module ``ray``, connected.
        config: number of workers and of threads per worker.
        work: function ``work(shared, job, report)`` that runs a trial and returns its outcome; ``report(step, value)``
            returns whether it is pruned.
        failed: function that makes the outcome of a trial that died again and again, from a line that says so.
        shared: first argument of ``work``, sent once.
    """

    def __init__(
        self,
        ray: ModuleType,
        config: ClusterConfig,
        work: Callable[[Any, Any, Callable[[int, float], bool]], Any],
        failed: Callable[[str], Any],
        shared: Any,
    ) -> None:
        self.ray, self.work, self.failed = ray, work, failed
        self.slots, self.threads = workers_of(config, ray), config.worker_threads
        self._shared = ray.put(shared)
        self._board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        self._task = ray.remote(run_trial).options(num_cpus=self.threads, max_retries=RETRIES)
        self._running: dict[Any, int] = {}
        self._pruned: set[int] = set()

    def submit(self, number: int, job: Any) -> None:
        """Add a trial."""
        task = self._task.remote(self.work, self._shared, job, self._board, number)
        self._running[task] = number

    def wait(self, judge: Callable[[int, int, float], bool]) -> list[tuple[int, Any]]:
        """Wait for a moment; returns the numbers and outcomes of the trials that have ended.

        Args:
            judge: function that gets the number of a trial, the number of its validation and the value, and returns
                whether the trial is pruned.
        """
        ended, _ = self.ray.wait(list(self._running), num_returns=1, timeout=POLL)
        numbers = set(self._running.values())
        for number, step, value in self.ray.get(self._board.exchange.remote(self._pruned)):
            if number in numbers and judge(number, step, value):
                self._pruned.add(number)
        return [(self._running.pop(task), self._outcome(task)) for task in ended]

    def _outcome(self, task: Any) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(task)
        except errors.RayTaskError:
            raise  # a bug in the work, which starting again would repeat
        except errors.RayError as error:
            return self.failed(f"its worker died {RETRIES + 1} times ({one_line(error)})")


def run_trial(
    work: Callable[[Any, Any, Callable[[int, float], bool]], Any], shared: Any, job: Any, board: Any, number: int
) -> Any:
    """Run a trial in the process of a worker."""
    import ray

    return work(shared, job, lambda step, value: bool(ray.get(board.report.remote(number, step, value))))
