"""Frames to a file: Parquet, CSV or JSON lines, whole or not at all."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import polars as pl

from seqrec.errors import InputError
from seqrec.files import replacing

KINDS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl"}  # of tables, by the ending of the file
_ROWS = 65536  # of a table as text at once


def write_frames(frames: Iterable[pl.DataFrame], path: str | Path, kind: str | None = None) -> None:
    """Write frames of one schema as one table, there under its name when it is whole; see :func:`replacing`.

    Args:
        frames: at least one; the next is asked for when the one before is written and let go.
        path: the file.
        kind: parquet, csv or jsonl; what its ending says without it.

    Raises:
        InputError: an ending that says nothing, or a file that can't be written.
    """
    kind = kind or KINDS.get(Path(path).suffix)
    if kind is None:
        raise InputError(f"{path}: is of no known kind; give a name that ends in {', '.join(KINDS)}")
    with replacing(path) as new, new.open("wb") as file:
        if kind == "parquet":
            write_parquet(frames, file)
        else:
            file.writelines(text_of(frames, kind))


def write_parquet(frames: Iterable[pl.DataFrame], file: IO[bytes]) -> None:
    """Write frames of one schema as one Parquet file, each in row groups of its own."""
    from pyarrow.parquet import ParquetWriter  # takes its time, and few commands write tables

    with ExitStack() as stack:
        writer = None
        for frame in frames:
            table = frame.to_arrow()
            if writer is None:
                # No two scores are equal, as a rule: a table of them costs time and makes the file larger.
                names = [name for name, kind in frame.schema.items() if not kind.is_float()]
                made = ParquetWriter(file, table.schema, compression="zstd", use_dictionary=names)
                writer = stack.enter_context(made)
            writer.write_table(table)
            del frame, table  # or they would stay while the next frame is computed


def text_of(frames: Iterable[pl.DataFrame], kind: str) -> Iterator[bytes]:
    """Frames of one schema as CSV under one header, or as JSON lines, in pieces."""
    header = True
    for frame in frames:
        for start in range(0, max(frame.height, 1), _ROWS):
            rows = slice(start, start + _ROWS)
            text = frame[rows].write_ndjson() if kind == "jsonl" else frame[rows].write_csv(include_header=header)
            yield text.encode()
            header = False
        del frame  # as in write_parquet
