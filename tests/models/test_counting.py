"""Counts of pairs and sums of rows: the compiled loops and numpy give what loops over all pairs give."""

from typing import Any

import numpy as np
import pytest
import torch
from counted import histories_of, naive_pairs, naive_sums, rows_of, weights_of

from seqrec.models.counting import Rows, sum_rows, sums_at, weigh_pairs


@pytest.fixture(params=["as it is", "numpy", "small blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "as it is":
        monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)
    if request.param == "small blocks":
        monkeypatch.setattr("seqrec.models.counting.CELLS", 5)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num_items", [0, 3, 30, 2000])
def test_pairs_are_those_of_a_loop(num_items: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    items, starts, ends = histories_of(random, num_items, 5 * (seed % 4), 9)
    weights = weights_of(random, num_items, seed % 7, seed % 3)
    wanted = random.random(num_items + 1) < 0.5 if seed % 2 else None
    most = (1, 3, 1000)[seed % 3]
    items.flags.writeable = False  # as where they are mapped from a file
    found = weigh_pairs(items, starts, ends, **weights, most=most, wanted=wanted)
    expected = naive_pairs(items, starts, ends, **weights, most=most, wanted=wanted)
    assert rows_of(*found) == pytest.approx(expected, rel=1e-6)
    assert [part.dtype.name for part in found] == ["int64", "int32", "float32"]
    assert len(found.offsets) == num_items + 2


@pytest.mark.loops
@pytest.mark.parametrize("cells", [300, 2**22])
def test_numpy_gives_what_the_compiled_loops_give(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with weights whose sums are rounded."""
    random = np.random.default_rng(5)
    items, starts, ends = histories_of(random, 200, 60, 30)
    given: dict[str, Any] = {
        name: random.random(count).astype(np.float32)
        for name, count in {"after": 20, "beside": 11, "gains": 201, "factors": 201}.items()
    }
    compiled = weigh_pairs(items, starts, ends, **given, most=15)
    monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)
    monkeypatch.setattr("seqrec.models.counting.CELLS", cells)
    found = weigh_pairs(items, starts, ends, **given, most=15)
    assert len(found.columns) > 1000
    np.testing.assert_array_equal(found.offsets, compiled.offsets)
    np.testing.assert_array_equal(found.columns, compiled.columns)
    np.testing.assert_allclose(found.values, compiled.values, rtol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num_items", [0, 3, 30, 2000])
def test_sums_of_rows_are_those_of_a_loop(num_items: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(random.integers(0, seed + 1, num_items + 1))])
    columns = random.integers(0, num_items + 1, offsets[-1]).astype(np.int32)
    table = Rows(offsets, columns, random.standard_normal(len(columns)).astype(np.float32))
    limits = np.concatenate([[0], np.cumsum(random.integers(0, 5, seed))]).astype(np.int64)
    entries = random.integers(0, num_items + 1, limits[-1]).astype(np.int32)
    coefficients = random.standard_normal(len(entries)).astype(np.float32)
    found = sum_rows(table, limits, entries, coefficients)
    expected = naive_sums(table, limits, entries, coefficients)
    assert rows_of(*found) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert [part.dtype.name for part in found] == ["int64", "int64", "float32"]
    assert len(found.offsets) == len(limits)
    asked = random.integers(0, num_items + 1, (len(limits) - 1, 9))
    at = sums_at(table, limits, entries, coefficients, torch.from_numpy(asked))
    sums = rows_of(*found)
    assert at.tolist() == [[sums.get((row, column), 0.0) for column in own] for row, own in enumerate(asked.tolist())]


def pairs() -> dict[str, Any]:
    return {"items": np.array([1, 2, 0, 3], dtype=np.int32), "starts": np.array([0, 2]), "ends": np.array([2, 4]),
            "after": np.ones(2, dtype=np.float32), "beside": np.ones(1, dtype=np.float32),
            "gains": np.ones(4, dtype=np.float32), "factors": np.ones(4, dtype=np.float32), "most": 2,
            "wanted": np.ones(4, dtype=bool)}  # fmt: skip


TABLE = Rows(np.array([0, 1, 3, 3]), np.array([2, 0, 2], dtype=np.int32), np.ones(3, dtype=np.float32))


def sums() -> dict[str, Any]:
    return {"table": TABLE, "offsets": np.array([0, 2, 2]), "entries": np.array([0, 1], dtype=np.int32),
            "coefficients": np.ones(2, dtype=np.float32)}  # fmt: skip


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "wrong",
    [
        {"items": np.array([1, 2, 0, 4], dtype=np.int32)}, {"items": np.array([1, -2, 0, 3], dtype=np.int32)},
        {"starts": np.array([0, 1])}, {"starts": np.array([-1, 2])}, {"starts": np.array([1, 0])},
        {"ends": np.array([2, 5])}, {"ends": np.array([2, 1])}, {"starts": np.array([0])}, {"most": 0},
        {"wanted": np.ones(3, dtype=bool)}, {"factors": np.ones(3, dtype=np.float32)},
        {"factors": np.ones(3, dtype=np.float32), "gains": np.ones(3, dtype=np.float32), "wanted": None},
        *({name: np.array(number, dtype=np.float32)} for number in ([np.inf], [np.nan], [-1.0])
          for name in ("after", "beside")),
        *({name: np.array([1, 1, 1, number], dtype=np.float32)} for number in (np.inf, np.nan, -1.0)
          for name in ("gains", "factors")),
    ],
)  # fmt: skip
def test_histories_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    assert rows_of(*weigh_pairs(**pairs())).keys() == {(1, 2), (2, 1)}
    with pytest.raises(ValueError, match=r"\w+"):  # the reasons differ
        weigh_pairs(**pairs() | wrong)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "wrong",
    [
        *({"table": TABLE._replace(offsets=np.array(offsets))} for offsets in (
            [0, 4, 3, 3], [0, -1, 3, 3], [0, 3, 1, 3], [0, 1, 4, 4], [0, -(2**62), 2**62, 3], [0], [],
        )),
        *({"table": TABLE._replace(columns=np.array(columns, dtype=np.int32))} for columns in (
            [2, 3, 0], [2, 0, -1], [2, 0], [-(2**31), 0, 2],
        )),
        {"table": TABLE._replace(values=np.ones(2, dtype=np.float32))}, {"offsets": np.array([0, 2, 3])},
        {"offsets": np.array([0, 3, 2])}, {"offsets": np.array([1, 2, 2])}, {"offsets": np.array([], dtype=np.int64)},
        {"entries": np.array([0, 3], dtype=np.int32)}, {"entries": np.array([-1, 0], dtype=np.int32)},
        {"coefficients": np.ones(3, dtype=np.float32)},
    ],
)  # fmt: skip
def test_tables_and_rows_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    assert len(sum_rows(**sums()).columns) == 2
    with pytest.raises(ValueError, match=r"\w+"):  # the reasons differ
        sum_rows(**sums() | wrong)
