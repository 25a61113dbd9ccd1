"""Blocks of work on the processes of a cluster, with Ray Data, which restarts processes that end and their blocks."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.engine import workers_of
from seqrec.errors import InputError

#: Ray Data shows neither progress nor its log, as the commands have their own lines, and raises errors as they are.
SETTINGS: dict[str, Any] = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    "raise_original_map_exception": True,
}


@contextmanager
def quiet_ray_data() -> Iterator[ModuleType]:
    """The module ``ray.data``, with :data:`SETTINGS` for the block."""
    import ray.data

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before, level = {name: getattr(context, name, None) for name in SETTINGS}, logger.level
    try:
        for name, value in SETTINGS.items():
            setattr(context, name, value)
        logger.setLevel(logging.CRITICAL)
        yield ray.data
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


def answers(
    ray: ModuleType, config: ClusterConfig, numbers: Sequence[int], worker: type, *arguments: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Call a worker with the number of each block, on the processes of the cluster; yields answers in any order.

    A process that is killed is started again by Ray, and computes the block that it was computing from the beginning.
    So a block may be computed more than once, and yields one answer.

    Args:
        ray: the connection, from :func:`seqrec.cluster.engine.connected`.
        config: number of processes and their threads.
        numbers: numbers of the blocks.
        worker: class whose objects are made once per process from the ``arguments``, and called with the number of a
            block. They return arrays by name, with the same length.
        arguments: what the objects are made from. The processes of a machine share the memory of numpy arrays in them.

    Raises:
        InputError: a worker raised it.
    """
    if not numbers:
        return
    shared = ray.put(arguments)
    with quiet_ray_data() as data:
        asked = data.from_items([int(number) for number in numbers], override_num_blocks=len(numbers))
        found = asked.map_batches(
            _Calling,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(workers_of(config, ray), len(numbers))),
            num_cpus=config.worker_threads,
            fn_constructor_args=(worker, [shared], config.worker_threads),
        )
        try:
            yield from found.iter_batches(batch_size=None)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise


class _Calling:
    """What Ray Data makes once per process."""

    def __init__(self, worker: type, shared: list[Any], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.worker, self.shared = worker, shared
        self.made: Any = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.made is None:  # not when the process starts: errors of a call reach the command as they are
            import ray

            self.made = self.worker(*ray.get(self.shared[0]))
        (number,) = batch["item"].tolist()
        found: dict[str, np.ndarray] = self.made(number)
        return found
