"""Ids of any type: what they become, and where they stand in a table of either type."""

from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from seqrec.data.id_table import IdTable
from seqrec.data.ids import ids_of
from seqrec.data.mapped import Mapped, write_array
from seqrec.errors import InputError

NUMBERS = pl.Series([7, 12, 128])
TEXTS = pl.Series(["12", "128", "7", "x"])
POINTED = pl.Series(["12.0", "128.0", "7.0", "x"])
NAME = UUID(int=5)

FORMS: list[Any] = [
    [128, 7, 9], ["128", "7", "9"], [128.0, 7.0, 9.0], ["128.0", "7.0", "9.0"], [128, "7", 9.0], (128, 7, 9),
    {128: 1, 7: 2, 9: 3}, iter([128, 7, 9]), (number for number in (128, 7, 9)), range(128, 0, -121),
    [np.int64(128), np.float64(7), np.uint8(9)], [np.str_("128"), np.float32(7), 9], [Decimal(128), Decimal("7.0"), 9],
    np.array([128, 7, 9]), np.array([128, 7, 9], dtype=">i4"), np.array([128.0, 7, 9]), np.array(["128", "7", "9"]),
    np.array([128, "7", 9.0], dtype=object), np.array([128, 7, 9])[::1], np.array([9, 0, 7, 0, 128])[::-2],
    pl.Series([128, 7, 9], dtype=pl.UInt8), pl.Series([128.0, 7.0, 9.0], dtype=pl.Float32),
    pl.Series(["128", "7", "9"]), pl.Series(["128", "7", "9"], dtype=pl.Categorical),
    pl.Series(["128", "7", "9"], dtype=pl.Enum(["9", "7", "128"])),
    pl.Series([Decimal(128), Decimal(7), Decimal(9)]), pl.Series([128, "7", NAME], dtype=pl.Object),
    pd.Series([128, 7, 9]), pd.Series([128.0, 7, 9]), pd.Series(["128", "7", "9"], dtype="string"),
    pd.Series([128, 7, 9], dtype="Int64"), pd.Index([128, 7, 9]), pd.Index([128.0, 7, 9]),
    pd.Categorical(["128", "7", "9"]), pd.Series(["128", "7", "9"], dtype="category"),
    pa.array([128, 7, 9]), pa.array(["128", "7", "9"]), pa.chunked_array([[128], [7, 9]]), list(pa.array([128, 7, 9])),
]  # fmt: skip


@pytest.mark.parametrize("ids", FORMS, ids=lambda ids: type(ids).__name__)
def test_one_id_however_it_is_written(ids: Any) -> None:
    asked = ids_of(ids)
    wanted = {2: [2, 0, -1], 3: [1, 2, -1]}
    if "range" in repr(ids):
        wanted = {number: places[:2] for number, places in wanted.items()}
    assert IdTable(NUMBERS).find(asked).tolist() == wanted[2]
    assert IdTable(TEXTS).find(asked).tolist() == wanted[3]
    assert IdTable(POINTED).find(asked).tolist() == wanted[3]


@pytest.mark.parametrize(
    ("single", "places"),
    [(128, [2]), ("128", [2]), (128.0, [2]), (np.int64(128), [2]), (np.float64(128), [2]), (np.array(128), [2]),
     (np.array(128.0), [2]), (np.str_("128"), [2]), (Decimal(128), [2]), (pa.scalar(128), [2]), (1.5, [-1]),
     ("", [-1])],
)  # fmt: skip
def test_a_single_id(single: Any, places: list[int]) -> None:
    assert IdTable(NUMBERS).find(ids_of(single)).tolist() == places


@pytest.mark.parametrize(
    "ids",
    [[7, None], [7.0, float("nan")], [7, pd.NA], [7, pd.NaT], pd.Series([7, None], dtype="Int64"), pd.Series([7, None]),
     pa.array([7, None]), pl.Series([7, None]), pl.Series([7.0, None]), np.array([7, np.nan]), ["7", None], [None]],
)  # fmt: skip
def test_a_missing_id_is_unknown_and_not_the_word_none(ids: Any) -> None:
    asked = ids_of(ids)
    assert asked.null_count() == 1
    words = pl.Series(["7", "None", "nan"])
    for table, place in ((NUMBERS, 0), (words, 0)):
        assert IdTable(table).find(asked).tolist() == [place, -1][-len(asked) :]


def test_uuids_are_their_text() -> None:
    table = IdTable(pl.Series([str(NAME), "x"]))
    for ids in ([NAME], NAME, [str(NAME), NAME], np.array([NAME], dtype=object), pd.Series([NAME])):
        assert table.find(ids_of(ids))[0] == 0


@pytest.mark.parametrize(
    "ids",
    [[True], True, np.array([True]), pl.Series([True]), [b"7"], b"7", [(1, 2)], [[7]], np.array([[7]]), [1j], 1j,
     np.array([1j]), pl.Series([[7]]), pd.Series([pd.Timestamp(0)]), [object()], pa.array([b"7"]), ["7", True]],
    ids=lambda ids: type(ids).__name__,
)  # fmt: skip
def test_what_is_no_id_is_one_line(ids: Any) -> None:
    with pytest.raises(InputError, match="ids are integers or strings, not") as caught:
        ids_of(ids, "users")
    assert str(caught.value).startswith("users: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "arrow"])
def test_a_whole_frame_is_no_ids(kind: str) -> None:
    frame = pl.DataFrame({"user_id": [7]})
    given = {"polars": frame, "lazy": frame.lazy(), "pandas": frame.to_pandas(), "arrow": frame.to_arrow()}[kind]
    with pytest.raises(InputError, match="give one column of it"):
        ids_of(given, "users")


def test_ids_that_a_float_cannot_hold() -> None:
    with pytest.raises(InputError, match="is a float, which is not exact"):
        ids_of([2.0**53 + 2])
    table = IdTable(pl.Series([2**53, 2**53 + 1, 2**63 - 1]))
    assert table.find(ids_of([2**53 + 1, 2**63 - 1, 2**63, 2**64 + 7, -(2**70)])).tolist() == [1, 2, -1, -1, -1]
    assert table.find(pl.Series([2**63 - 1, 2**63], dtype=pl.UInt64)).tolist() == [2, -1]
    assert table.find(ids_of(["9223372036854775807", "9223372036854775808", "9" * 5000])).tolist() == [2, -1, -1]


def test_what_is_written_otherwise_is_another_id() -> None:
    asked = ids_of(["07", "+7", " 7", "7.5", "7.", "-0", "7,0", "７"])
    for table in (NUMBERS, TEXTS, POINTED):
        assert IdTable(table).find(asked).tolist() == [-1] * 8


def in_files(table: pl.Series, folder: Path) -> IdTable:
    """The same table, in files."""
    files = []
    for number, array in enumerate(IdTable(table).arrays()):
        if array is not None:
            path = folder / f"{number}.npy"
            files.append(Mapped(path, write_array(path, array), array.dtype, None, "train again"))
    return IdTable.mapped(table.name, *files)


@pytest.mark.parametrize("asked", [1, 3, 400])  # few are searched for, many looked up
def test_tables_of_any_text(asked: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    letters = [*"abz09 -é￿𝄞", "\ud7ff", "\U0010ffff"]
    texts = {"".join(random.choice(letters, random.integers(0, 6))) for _ in range(3000)}
    table = pl.Series(sorted(texts)).sort()
    wanted = random.integers(0, len(table), asked)
    ids = [*table.gather(wanted).to_list(), "not there", "\U0010ffff" * 7, ""]
    for one in (IdTable(table), in_files(table, tmp_path)):
        assert one.find(ids_of(ids)).tolist() == [*wanted.tolist(), -1, -1, 0]
        assert one.take(wanted).equals(table.gather(wanted))
        assert len(one) == len(table)
        assert one.series.equals(table)
        one.check()


@pytest.mark.parametrize("asked", [1, 3, 400])
def test_tables_of_any_integers(asked: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    numbers = np.unique(np.concatenate([random.integers(-(2**63), 2**63 - 1, 3000), [-(2**63), 2**63 - 1]]))
    table = pl.Series("item_id", numbers)
    wanted = random.integers(0, len(table), asked)
    for one in (IdTable(table), in_files(table, tmp_path)):
        for ids in (table.gather(wanted), table.gather(wanted).cast(pl.String)):
            assert one.find(ids_of([*ids, 5, "x", None])).tolist() == [*wanted.tolist(), -1, -1, -1]
        assert one.take(wanted).equals(table.gather(wanted))
        assert one.series.equals(table)
        one.check()


def test_tables_of_one_id_or_of_none(tmp_path: Path) -> None:
    for table in (pl.Series([""]), pl.Series(["x"]), pl.Series([7]), pl.Series([], dtype=pl.String)):
        for one in (IdTable(table), in_files(table, tmp_path)):
            assert one.find(ids_of(table)).tolist() == list(range(len(table)))
            assert one.find(ids_of(["y", 8])).tolist() == [-1, -1]
            assert one.series.equals(table)


def test_a_table_that_is_not_sorted() -> None:
    assert IdTable(pl.Series([128, 7, 12])).find(ids_of([7, 128, 9])).tolist() == [1, 0, -1]
    long = [*map(str, range(1000)), "aa"][::-1]
    assert IdTable(pl.Series(long)).find(ids_of(["999", "aa", "b"])).tolist() == [1, 0, -1]


def test_a_table_that_is_followed_by_more_ids(tmp_path: Path) -> None:
    more = [pl.Series(["10", "11.0", "8"]), pl.Series([10, 11, 99])]
    for ids, new in [(TEXTS, more[0]), (NUMBERS, more[1])]:
        for first in (IdTable(ids), in_files(ids, tmp_path)):
            table = first.followed_by(new).followed_by(new.head(0)).followed_by(pl.Series(["01", "9"]).cast(new.dtype))
            every = [*ids.to_list(), *new.to_list(), *table.series.to_list()[-2:]]
            assert table.series.to_list() == table.values(np.arange(len(table))) == every
            assert table.find(ids_of(every)).tolist() == list(range(len(every)))
            assert table.find(ids_of(["11", 128, None, "nowhere"])).tolist() == [len(ids) + 1, every.index(ids[-1])
                   if ids is NUMBERS else 1, -1, -1]  # fmt: skip


def test_whole_floats_come_back_as_integers() -> None:
    assert ids_of([128.0, float("nan")]).to_list() == [128, None]
    assert ids_of(pd.Series([128.0, 7.0])).dtype == pl.Int64
    assert ids_of([1.5, 2.0]).dtype == pl.Float64
    assert ids_of([]).dtype == pl.Null
