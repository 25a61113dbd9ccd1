"""The options of the commands that can run on a cluster."""

from dataclasses import dataclass
from typing import Literal

from seqrec.data.fields import Count, Options
from seqrec.errors import InputError


@dataclass(frozen=True)
class ClusterConfig(Options):
    """Where a command computes: in this process, or on a Ray cluster.

    Args:
        engine: What runs the command. local: this process; ray: processes of a Ray cluster (extra ``ray``).
        address: Address of the cluster, such as ray://HOST:10001 or HOST:6379. By default that of the environment
            variable RAY_ADDRESS; without it, a cluster is started on this machine for the command.
        workers: Number of processes on the cluster. By default one per two processors.
        worker_threads: Threads per process, each of which the cluster reserves a processor for.
        storage: Folder or URL (s3://, gs://, hdfs://) that every machine of the cluster can write to. It holds
            checkpoints and what is not finished. By default beside the output, for machines that share a file system.
    """

    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: Count | None = None
    worker_threads: Count = 1
    storage: str | None = None

    def check(self) -> None:
        """Raise an InputError if options of the cluster are given, but no cluster is used."""
        if self.engine == "local":
            given = {"address": self.address, "workers": self.workers, "storage": self.storage}
            names = [name for name, value in given.items() if value is not None]
            if names:
                raise InputError(f"{names[0]} has no effect with engine local; give --engine ray too, or leave it out")
