"""Parquet files that somebody else may have made: what they would take is known before they are read."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec.data.checked import MOST_UNPACKED, read_parquet
from seqrec.errors import InputError

IDS = {"item_id": None}


def bomb(path: Path, rows: int) -> None:
    """A small Parquet file of very many rows, each different, as delta encoding makes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"item_id": pa.int64()})
    with pq.ParquetWriter(path, schema, use_dictionary=False, column_encoding="DELTA_BINARY_PACKED",
                          compression="zstd") as writer:  # fmt: skip
        for start in range(0, rows, 2**22):
            writer.write_table(pa.table({"item_id": np.arange(start, start + 2**22)}, schema=schema))


def refused(path: Path, rows: int, columns: Any = None) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(InputError) as caught:
        read_parquet(path, columns or IDS, rows, "train again")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; train again")
    assert "\n" not in message
    return message


def test_a_small_file_does_not_become_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    bomb(path, 2**22)
    assert "4194304 rows, not 9" in refused(path, 9)
    rows = MOST_UNPACKED // 16
    bomb(path, rows)
    assert path.stat().st_size < rows // 20
    assert "in memory" in refused(path, rows)


def test_a_deeply_nested_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.parquet").write_bytes(deep_parquet(100_000))  # where polars overflows the stack
    refused(tmp_path / "deep.parquet", 9)


COLUMNS: dict[str, pl.Series] = {
    "float": pl.Series([i + 0.5 for i in range(9)]),
    "bool": pl.Series([True] * 9),
    "binary": pl.Series([bytes([i]) for i in range(9)]),
    "struct": pl.Series([{"a": i} for i in range(9)]),
    "list": pl.Series([[i] for i in range(9)]),
    "categorical": pl.Series([f"i{i}" for i in range(9)], dtype=pl.Categorical),
    "date": pl.Series(range(9)).cast(pl.Date),
    "null": pl.Series([None] * 9),
    "one null": pl.Series([None, *(f"i{i}" for i in range(8))]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_another_type(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": COLUMNS[kind]}).write_parquet(path)
    refused(path, 9)
    pl.DataFrame({"item_id": [f"i{i}" for i in range(9)], "title": COLUMNS[kind]}).write_parquet(path)
    refused(path, 9, IDS | {"title": pl.String})
    assert read_parquet(path, IDS, 9, "train again").columns == ["item_id"]


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 100])
def test_damaged_files(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "items.parquet"
    path.write_bytes(damage)
    assert "is damaged" in refused(path, 9)
    path.unlink()
    assert "is missing" in refused(path, 9)


def deep_parquet(depth: int) -> bytes:
    """A Parquet file whose schema is so deep, in Thrift's compact encoding."""

    def number(value: int) -> bytes:
        low = b""
        while value > 127:
            low += bytes([value & 127 | 128])
            value >>= 7
        return low + bytes([value])

    group = b"\x35\x02\x18\x01a\x15\x02\x00"  # repetition, name, number of children
    leaf = b"\x15\x02\x25\x02\x18\x01x\x00"  # type, repetition, name
    schema = b"\x48\x01s\x15\x02\x00" + group * depth + leaf
    foot = b"\x15\x02\x19\xfc" + number(depth + 2) + schema + b"\x16\x00\x19\x0c\x00"
    return b"PAR1" + foot + struct.pack("<I", len(foot)) + b"PAR1"
