"""Parquet, one file or the parts of a folder → a frame."""

from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.formats.blocks import short
from seqrec.data.formats.text import Origin
from seqrec.errors import InputError


def read_parquet(path: Path, sources: dict[Path, Any]) -> tuple[pl.DataFrame, Origin]:
    """One file, or the parts of a folder one below the other."""
    frames: list[pl.DataFrame] = []
    for part, source in sources.items():
        try:
            frame = pl.read_parquet(source, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{part}: no Parquet, or damaged ({short(error)}); write it again") from None
        differ = ", ".join(sorted(set(frame.columns) ^ set((frames or [frame])[0].columns)))
        if differ:
            raise InputError(f"{part}: has other columns than the first part ({differ}); make them alike")
        frames.append(frame.select((frames or [frame])[0].columns))
    try:
        return pl.concat(frames, how="vertical_relaxed"), Origin(str(path))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: the parts differ in types ({short(error)}); make them alike") from None
