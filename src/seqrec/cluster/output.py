"""Completes the files of a dataset whose interactions were written by many processes."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from seqrec.cluster.pool import Pool
from seqrec.cluster.rows import Written
from seqrec.data.mapped import bytes_of, checksums_of, make_array, pieces_of, write_array, write_rows
from seqrec.data.saved import digest_of, write_rest


def finish(pool: Pool, folder: Path, fields: dict[str, Any], written: list[Written], met: list[Any]) -> None:
    """Write what follows from the interactions, and the files about the whole dataset.

    Args:
        pool: the cluster.
        folder: folder with the interactions.
        fields: the other fields of the dataset.
        written: what was written of each span of users, in order.
        met: references to the ``met_items`` of each span.
    """
    offsets = _offsets([one.lengths for one in written])
    checksums = {}
    for name in ("items", "timestamps"):
        known = {block: sum for one in written for block, sum in one.checksums[name].items()}
        checksums[name] = checksums_of(folder / f"{name}.npy", known)
    checksums["offsets"] = write_array(folder / "offsets.npy", offsets)
    met_offsets = _offsets([one.met_lengths for one in written])
    if met_offsets[-1]:
        checksums["met_items"] = _write_met(pool, folder / "met_items.npy", met, int(met_offsets[-1]))
        checksums["met_offsets"] = write_array(folder / "met_offsets.npy", met_offsets)
    content = chain(pieces_of(folder / "items.npy"), pieces_of(folder / "timestamps.npy"), [bytes(bytes_of(offsets))])
    fingerprint = digest_of(content, fields["users"], fields["catalogue"])
    write_rest(folder, fields, int(offsets[-1]), fingerprint, checksums)


def _offsets(lengths: list[np.ndarray]) -> np.ndarray:
    """The offsets of histories with these lengths, ``int64[U + 1]``."""
    return np.concatenate([np.zeros(1, dtype=np.int64), *lengths]).cumsum()


def _write_met(pool: Pool, path: Path, met: list[Any], rows: int) -> str:
    """Write the ``met_items`` of all spans, of which this process holds one span at a time."""
    make_array(path, np.int32, rows)
    known: dict[int, int] = {}
    first = 0
    for reference in met:
        items = pool.get(reference)
        known |= write_rows(path, first, items)
        first += len(items)
    return checksums_of(path, known)
