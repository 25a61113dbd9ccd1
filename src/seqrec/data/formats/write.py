"""Writes frames to a file: Parquet, CSV or JSON lines, completely or not at all."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import polars as pl

from seqrec.errors import InputError
from seqrec.files import replacing

KINDS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl"}  # format of a table, by extension
_ROWS = 65536  # rows that are converted to text at once


def write_frames(frames: Iterable[pl.DataFrame], path: str | Path, kind: str | None = None) -> None:
    """Write frames of the same schema as one table. The file appears once it is complete, see :func:`replacing`.

    Args:
        frames: at least one frame; each is written and freed before the next one is requested.
        path: file to write.
        kind: parquet, csv or jsonl; by default the extension of the file decides.

    Raises:
        InputError: the extension is unknown, or the file cannot be written.
    """
    kind = kind or KINDS.get(Path(path).suffix)
    if kind is None:
        raise InputError(f"{path}: has no known extension; give a name that ends in {', '.join(KINDS)}")
    with replacing(path) as new, new.open("wb") as file:
        if kind == "parquet":
            write_parquet(frames, file)
        else:
            file.writelines(text_of(frames, kind))


def write_parquet(frames: Iterable[pl.DataFrame], file: IO[bytes], facts: Mapping[str, str] | None = None) -> None:
    """Write frames of the same schema as one Parquet file, each in its own row groups.

    ``facts`` are texts that are kept in the file beside the table. They may change until the last frame is consumed.
    """
    from pyarrow.parquet import ParquetWriter  # slow to import, and few commands write tables

    with ExitStack() as stack:
        writer = None
        for frame in frames:
            table = frame.to_arrow()
            if writer is None:
                # Scores are rarely equal, so a dictionary would cost time and make the file larger.
                names = [name for name, kind in frame.schema.items() if not kind.is_float()]
                made = ParquetWriter(file, table.schema, compression="zstd", use_dictionary=names)
                writer = stack.enter_context(made)
            writer.write_table(table)
            del frame, table  # free the memory before the next frame is computed
        if writer is not None and facts:
            writer.add_key_value_metadata(dict(facts))


def text_of(frames: Iterable[pl.DataFrame], kind: str) -> Iterator[bytes]:
    """Frames of the same schema as CSV with one header, or as JSON lines, in pieces."""
    header = True
    for frame in frames:
        for start in range(0, max(frame.height, 1), _ROWS):
            rows = slice(start, start + _ROWS)
            text = frame[rows].write_ndjson() if kind == "jsonl" else frame[rows].write_csv(include_header=header)
            yield text.encode()
            header = False
        del frame  # as in write_parquet
