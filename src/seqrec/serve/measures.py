"""What the server measures about itself, for Prometheus."""

import os
import shutil
import tempfile
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where several workers share their numbers; prometheus_client reads it too

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """The numbers of one process, in a registry of their own, so that a program may have several servers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter("seqrec_requests", "Requests by route and status", ["route", "status"], **own)
        self.seconds = Histogram(
            "seqrec_request_seconds", "Time from a request to its answer", ["route"], buckets=_SECONDS, **own
        )
        self.batch = Histogram("seqrec_batch_size", "Requests ranked together", buckets=_SIZES, **own)
        self.queue = Gauge("seqrec_queue", "Requests that wait", multiprocess_mode="livesum", **own)
        self.fallbacks = Counter("seqrec_fallbacks", "Recommendations by popularity, without a known history", **own)
        self.events = Counter("seqrec_events", "Events by result", ["result"], **own)
        self.reloads = Counter("seqrec_reloads", "Replacements of a run by result", ["run", "result"], **own)
        self.model = Gauge(
            "seqrec_model_loaded_seconds",
            "When the version of a run was loaded, in seconds since 1970",
            ["run", "version"],
            multiprocess_mode="max",
            **own,
        )

    def text(self) -> bytes:
        """All numbers in Prometheus' text format; those of all workers, if there are several."""
        if os.environ.get(FOLDER):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            return generate_latest(registry)
        return generate_latest(self.registry)


def share_between_workers() -> str:
    """Make a folder in which the workers of this server share their numbers. Call it before they start."""
    folder = tempfile.mkdtemp(prefix="seqrec-metrics-")
    os.environ[FOLDER] = folder
    return folder


def forget_shared(folder: str) -> None:
    """Remove the folder of :func:`share_between_workers`."""
    os.environ.pop(FOLDER, None)
    shutil.rmtree(folder, ignore_errors=True)
