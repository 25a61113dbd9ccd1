"""The JSON and CSV files of a run."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.checked import size_of
from seqrec.errors import InputError, one_line

_ADVICE = "copy it back from where the run was made, or train again"


def write_epochs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``epochs.csv``."""
    names = dict.fromkeys(
        ("epoch", "loss", "seconds", "total_seconds", "tokens_per_second")
    )  # before the first epoch ends, too
    for row in rows:
        names |= dict.fromkeys(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_epochs(path: Path) -> pl.DataFrame:
    """Read ``epochs.csv``: one row per epoch, counted from 1. Each column holds numbers or is empty."""
    size_of(path, _ADVICE)
    try:
        frame = pl.read_csv(path, glob=False, infer_schema_length=None)  # validation may start after 100 rows
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); {_ADVICE}") from error
    for name in ("epoch", "loss"):
        if name not in frame.columns:
            raise InputError(f"{path}: is damaged (column {name} is missing); {_ADVICE}")
    if frame.height and frame["epoch"].to_list() != list(range(1, frame.height + 1)):
        raise InputError(f"{path}: is damaged (column epoch does not count from 1); {_ADVICE}")
    for column in frame.get_columns():
        # A counted model has no loss, and not every epoch is validated.
        if frame.height and not (column.dtype.is_numeric() or column.null_count() == len(column)):
            raise InputError(f"{path}: is damaged (column {column.name[:80]!r} holds no numbers); {_ADVICE}")
    return frame


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
