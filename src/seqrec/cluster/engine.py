"""The connection to a Ray cluster."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from seqrec.cluster.config import ClusterConfig
from seqrec.device import usable_processors
from seqrec.errors import InputError, missing_extra, one_line

#: Settings of Ray unless somebody has set them: no telemetry, no tokens of its own on a cluster of one command, and no
#: log of each result that is not asked for because another one of the same task was an error.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}


def import_ray() -> ModuleType:
    """The module ``ray``, with telemetry turned off.

    Raises:
        InputError: it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise missing_extra("engine ray", "ray") from error
    module: ModuleType = ray
    return module


@contextmanager
def connected(config: ClusterConfig) -> Iterator[ModuleType]:
    """Connect to the cluster for the block; yields the module ``ray``.

    A connection that the program made before is used and left open. Without an address, a cluster on this machine is
    started, which listens on the loopback address only and ends with the block.

    Raises:
        InputError: Ray is not installed, or the cluster can't be reached.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        processors = max(usable_processors(), (config.workers or 1) * config.worker_threads)
        options |= {"num_cpus": processors, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address or "local", **options)  # without "local", Ray takes any cluster that it finds on this machine
    except Exception as error:
        where = f"the cluster at {address}" if address else "a cluster on this machine"
        raise InputError(f"{where} can't be used ({one_line(error)}); check that it runs, and its address") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def workers_of(config: ClusterConfig, ray: ModuleType) -> int:
    """The number of worker processes: as given, or one per two processors of the cluster."""
    if config.workers is not None:
        return config.workers
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // 2 // config.worker_threads)
