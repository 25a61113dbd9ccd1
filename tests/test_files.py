"""Tables written frame by frame: their content, the memory that writing needs, and failures."""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from seqrec import InputError
from seqrec.data.formats.write import KINDS, write_frames
from seqrec.files import replacing

READERS = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}


def table(rows: int, first: int = 0) -> pl.DataFrame:
    numbers = pl.int_range(first, first + rows, eager=True)
    text = pl.select(pl.format('a "{}", b', numbers)).to_series()
    return pl.DataFrame({"name": text, "score": (numbers / 7).cast(pl.Float32), "rank": numbers})


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("sizes", [[5], [3, 0, 4, 1], [0], [0, 0, 2], [70_000, 3]])
def test_frames_become_one_table(tmp_path: Path, kind: str, sizes: list[int]) -> None:
    frames = [table(size, 1000 * place) for place, size in enumerate(sizes)]
    whole = pl.concat(frames)
    write_frames(iter(frames), tmp_path / "deep" / f"out.{kind}")  # the ending decides the format
    write_frames(iter(frames), tmp_path / "named", kind)
    content = (tmp_path / "named").read_bytes()
    assert content == (tmp_path / "deep" / f"out.{kind}").read_bytes()
    if kind == "parquet":
        found = pl.read_parquet(content)
        assert found.equals(whole)
        assert found.schema == whole.schema
        # Other readers see the same as in a file that polars wrote.
        memory = BytesIO()
        whole.write_parquet(memory)
        assert pq.read_schema(tmp_path / "named").equals(pq.read_schema(memory))
    else:
        assert content.decode() == (whole.write_csv() if kind == "csv" else whole.write_ndjson())


@pytest.mark.parametrize("kind", KINDS.values())
def test_no_more_than_one_frame_is_held(tmp_path: Path, kind: str) -> None:
    before: list[weakref.ref[pl.DataFrame]] = []

    def frames() -> Iterator[pl.DataFrame]:
        for place in range(5):
            assert [frame() for frame in before] == [None] * place
            frame = table(10, 10 * place)
            before.append(weakref.ref(frame))
            yield frame
            del frame

    write_frames(frames(), tmp_path / f"out.{kind}")
    assert len(before) == 5
    assert READERS[kind](tmp_path / f"out.{kind}").height == 50


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("error", [InputError("diverged"), ZeroDivisionError("a fault"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_midway_leaves_what_was(tmp_path: Path, kind: str, error: BaseException, old: bytes | None) -> None:
    out = tmp_path / f"out.{kind}"
    if old is not None:
        out.write_bytes(old)

    def frames() -> Iterator[pl.DataFrame]:
        yield table(100_000)
        raise error

    with pytest.raises(type(error)):
        write_frames(frames(), out)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({} if old is None else {out.name: old})


SCRIPT = """
import os, signal, sys, polars as pl
from seqrec.data.formats.write import write_frames

def frames():
    for place in range(30):
        yield pl.DataFrame({"x": pl.Series(range(100_000)).hash(place)})
        if place == 20 and sys.argv[2] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

try:
    write_frames(frames(), sys.argv[1])
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("kind", KINDS.values())
def test_killed_midway(tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"out.{kind}"
    out.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(out), "kill"], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert out.read_bytes() == b"old"
    assert all(path == out or path.suffix == ".partial" for path in tmp_path.iterdir())


@pytest.mark.slow_but_one
@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("blocks", [1, 4000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, kind: str, blocks: int) -> None:
    out = tmp_path / f"out.{kind}"
    command = f"ulimit -f {blocks}; exec '{sys.executable}' -B -c '{SCRIPT}' '{out}' write"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"InputError: {out}: no space left on the disk")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS.values())
def test_into_a_pipe(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_frames([table(5), table(4, 5)], tmp_path / "pipe", kind)
    assert READERS[kind](reader.communicate(timeout=60)[0]).equals(table(9)) or kind != "parquet"
    assert (tmp_path / "pipe").is_fifo()


def test_names_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    def frames() -> Iterator[pl.DataFrame]:
        raise AssertionError("the work has begun")
        yield

    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for name in ("folder.csv", "file/x.csv"):
        with pytest.raises(InputError, match=rf"{name}: cannot be written"):
            write_frames(frames(), tmp_path / name)
    for name in ("out", "out.txt", "out.CSV.gz"):
        with pytest.raises(InputError, match=r"ends in \.parquet, \.csv, \.jsonl$"):
            write_frames(frames(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.csv"]


def test_a_replacement_of_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with replacing(tmp_path / "link") as new:
        new.write_text("content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "content"
