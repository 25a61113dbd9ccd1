"""Numbers of ids against numpy's unique, with one thread and with several."""

import numpy as np
import polars as pl
import pytest

from seqrec.data import numbering
from seqrec.data.numbering import indexed, pieces, split_evenly, taken


@pytest.fixture(params=[1, 2, 7])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As many parts, also of few rows."""
    monkeypatch.setattr(numbering, "LEAST_ROWS", 3)
    monkeypatch.setattr(pl, "thread_pool_size", lambda: request.param)
    return request.param


def logs() -> list[pl.Series]:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 40, 200)
    texts = pl.Series("user_id", [f"käufer-{number}" if number % 3 else "x" * number for number in numbers.tolist()])
    chunks = pl.concat([texts[:50], texts[50:57], texts[57:]], rechunk=False)
    return [
        texts, chunks, texts[:0], texts[:1], texts[:4], pl.Series("user_id", ["b", "a", "c", "a"] * 5),
        pl.Series("user_id", numbers), pl.Series("user_id", numbers * 10**15 - 7), pl.Series("user_id", numbers / 8),
    ]  # fmt: skip


@pytest.mark.parametrize("place", range(9))
def test_indices_are_those_of_sorted_ids(threads: int, place: int) -> None:
    ids = logs()[place]
    index, known = indexed(ids)
    values, inverse = np.unique(np.array(ids.to_list(), dtype=object), return_inverse=True)
    assert known.to_list() == sorted(values.tolist(), key=lambda one: one.encode() if isinstance(one, str) else one)
    assert index.dtype == np.int32
    assert (known.dtype, known.name) == (ids.dtype, "user_id")
    assert [known[number] for number in index.tolist()] == ids.to_list()
    assert len(values) == len(set(inverse.tolist())) == len(known)


def test_texts_that_share_a_hash_are_told_apart(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = indexed(logs()[0])
    asked = []

    def hashed(texts: pl.Series) -> pl.Series:
        asked.append(len(texts))
        return texts.str.len_bytes().cast(pl.UInt64)  # many texts have the same length

    monkeypatch.setattr(pl.Series, "hash", hashed)
    index, known = indexed(logs()[0])
    assert sum(asked) == 200
    assert np.array_equal(index, right[0])
    assert known.equals(right[1])


def test_rows_are_taken_of_every_column(threads: int) -> None:
    random = np.random.default_rng(1)
    columns = [random.integers(0, 9, 50, dtype=np.int32), random.random(50), random.random(50) < 0.5]
    rows = random.permutation(50)
    given = list(columns)
    for column, result in zip(columns, taken(given, rows), strict=True):
        assert result.dtype == column.dtype
        assert np.array_equal(result, column[rows])
    assert given == []


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 10, 23])
def test_parts_cover_all_rows_once(threads: int, rows: int) -> None:
    for parts in (split_evenly(rows), pieces(rows)):
        assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert len(split_evenly(rows)) == max(1, min(threads, rows // 3))
    assert all(part.stop - part.start <= 3 for part in pieces(rows))
