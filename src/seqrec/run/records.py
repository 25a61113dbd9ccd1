"""The JSON and CSV files of a run."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrec.errors import InputError, one_line


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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise the one line that says what is wrong."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); copy it back or train again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: is not a JSON object; copy it back or train again")
    return values
