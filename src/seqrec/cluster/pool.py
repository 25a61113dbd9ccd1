"""Runs functions as tasks of a Ray cluster, as many at once as there are to be workers."""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import workers_of
from seqrec.errors import InputError


class Pool:
    """Tasks of a cluster. Ray places them, and repeats those that a killed process or machine had.

    Args:
        ray: the module, connected to a cluster.
        config: number of workers, and of their threads.
    """

    def __init__(self, ray: ModuleType, config: ClusterConfig) -> None:
        self.ray, self.workers, self.threads = ray, workers_of(config, ray), config.worker_threads

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], returns: int = 1) -> list[list[Any]]:
        """Call a function once per tuple of arguments.

        Args:
            function: a function of a module, with ``returns`` results, the last of which is small.
            calls: arguments; references to objects in the cluster's store are replaced by the objects.
            returns: number of results.

        Returns:
            For each call, references to all results but the last, and the last result itself.

        Raises:
            InputError: a call raised it.
        """
        task = self.ray.remote(num_cpus=self.threads, num_returns=returns)(function)
        made: list[list[Any]] = []
        running: list[Any] = []
        for arguments in calls:
            if len(running) >= self.workers:
                done, running = self.ray.wait(running, num_returns=1)
                self.get(done)
            references = task.remote(*arguments)
            made.append(list(references) if returns > 1 else [references])
            running.append(made[-1][-1])
        last = self.get([references[-1] for references in made])
        return [[*references[:-1], result] for references, result in zip(made, last, strict=True)]

    def put(self, value: Any) -> Any:
        """A reference to an object that several calls need."""
        return self.ray.put(value)

    def get(self, references: Any) -> Any:
        """The objects that references stand for."""
        try:
            return self.ray.get(references)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise
