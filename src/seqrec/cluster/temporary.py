"""Prepares a log on a cluster for one command, which needs the dataset no longer than it runs."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

from seqrec.cluster.config import ClusterConfig
from seqrec.cluster.parts import can_be_blocks
from seqrec.cluster.prepare import prepare_with_summary
from seqrec.cluster.storage import is_url
from seqrec.data.dataset import Dataset
from seqrec.data.formats.summary import LogSummary
from seqrec.data.prepare import PrepareConfig
from seqrec.errors import InputError
from seqrec.files import beside

__all__ = ["can_be_blocks", "prepare_for_a_while"]


def prepare_for_a_while(
    log: str | Path,
    columns: Mapping[str, str | None],
    config: PrepareConfig | None,
    cluster: ClusterConfig,
    out: Path | None,
) -> tuple[Dataset, LogSummary]:
    """Prepare a log into a temporary folder, which is removed when the dataset is no longer used.

    Args:
        log: the log.
        columns: names of the columns, as :func:`prepare_on_cluster` takes them, and the format of the file.
        config: filters.
        cluster: the cluster.
        out: folder beside which the temporary folder is made, so that a run there can take over its files. By default
            in the storage of the cluster, or where this machine has its temporary files.

    Raises:
        InputError: as :func:`prepare_on_cluster` does; or a format is asked for that is not Parquet.
    """
    given = dict(columns)
    if given.pop("format", None) not in (None, "parquet"):
        raise InputError(f"{log}: a cluster reads Parquet only; leave out --format, or give --engine local")
    if out is not None:
        folder = beside(out.absolute(), "data")
    else:
        base = tempfile.gettempdir() if cluster.storage is None or is_url(cluster.storage) else cluster.storage
        folder = beside(Path(base).absolute() / "seqrec", "data")
    dataset, summary = prepare_with_summary(log, folder, config, given, cluster)
    assert dataset.saved is not None
    dataset.saved.is_temporary = True
    weakref.finalize(dataset.saved, shutil.rmtree, folder, ignore_errors=True)
    return dataset, summary
