"""Changes to saved datasets as a stranger would make them: with matching checksums."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.id_table import IdTable
from seqrec.data.mapped import write_array


def put(folder: Path, name: str, array: np.ndarray | None) -> None:
    """Replace, add or remove (None) an array of a saved dataset."""
    path = folder / "dataset.json"
    facts = json.loads(path.read_text())
    if array is None:
        (folder / f"{name}.npy").unlink()
        del facts["checksums"][name]
    else:
        facts["checksums"][name] = write_array(folder / f"{name}.npy", array)
    path.write_text(json.dumps(facts))


def put_ids(folder: Path, which: str, ids: pl.Series) -> None:
    """Replace the id table of users or items."""
    values, offsets = IdTable(ids).arrays()
    put(folder, f"{which}_ids", values)
    if offsets is not None:
        put(folder, f"{which}_id_offsets", offsets)
    elif (folder / f"{which}_id_offsets.npy").exists():
        put(folder, f"{which}_id_offsets", None)


def change(folder: Path, **facts: Any) -> None:
    """Change values in dataset.json."""
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
