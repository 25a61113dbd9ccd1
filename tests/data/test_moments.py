"""Times that a program gives: any unit, any form, and one line for what is none."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from seqrec.data.moments import moments_of
from seqrec.errors import InputError

START = 1_600_000_000
PLAIN = datetime(2020, 9, 13, 12, 26, 40)

FORMS: list[Any] = [
    [START, START + 1], [float(START), START + 1], [START * 1000, (START + 1) * 1000],
    [START * 10**6, (START + 1) * 10**6], [START * 10**9, (START + 1) * 10**9], (START, START + 1),
    iter([START, START + 1]), np.array([START, START + 1]),
    [str(START), str(START + 1)], [PLAIN, PLAIN + timedelta(seconds=1)],
    [PLAIN.replace(tzinfo=UTC), PLAIN.replace(tzinfo=UTC) + timedelta(seconds=1)],
    [PLAIN.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=5, minutes=30))), PLAIN + timedelta(seconds=1)],
    ["2020-09-13T12:26:40", "2020-09-13 12:26:41Z"], ["2020-09-13 14:26:40+02:00", "2020-09-13 12:26:41 UTC"],
    np.array(["2020-09-13T12:26:40", "2020-09-13T12:26:41"], dtype="datetime64[ns]"),
    list(np.array(["2020-09-13T12:26:40", "2020-09-13T12:26:41"], dtype="datetime64[s]")),
    pd.Series(pd.to_datetime([START, START + 1], unit="s")), pd.to_datetime([START, START + 1], unit="s", utc=True),
    pl.Series([PLAIN, PLAIN + timedelta(seconds=1)]), pl.Series([START, START + 1]), pa.array([START, START + 1]),
]  # fmt: skip


@pytest.mark.parametrize("times", FORMS, ids=lambda times: type(times).__name__)
def test_one_moment_however_it_is_written(times: Any) -> None:
    assert moments_of([times], [2]).tolist() == [START * 10**6, (START + 1) * 10**6]


def test_one_unit_for_all_histories_and_parts_of_seconds() -> None:
    assert moments_of([[], [3, 4.5]], [0, 2]).tolist() == [3_000_000, 4_500_000]
    assert moments_of([], []).tolist() == []
    assert moments_of([[date(2020, 9, 13)]], [1]).tolist() == [1_599_955_200 * 10**6]
    assert moments_of([[-5, 0]], [2]).tolist() == [-5_000_000, 0]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (5, "one per history"), ("2020", "one per history"), ([5], "are a list"), (["2020"], "are a list"),
        ([[1], [2]], "times for 2 histories"), ([[1]], "history 1 has 2 items and 1 times"),
        ([[1, None]], "None is not a time"), ([[1, "x"]], "'x' is not a time"),
        ([[1, float("nan")]], "nan is not a time"),
        ([[1, pd.NaT]], "NaT is not a time"), ([[1, True]], "True is not a time"), ([[1, PLAIN]], "some are dates"),
        ([[START, START * 1000]], "different units"), ([[1, float("inf")]], "inf is not a time"),
        ([[1, 1j]], "not a time"),
        ([[1, np.datetime64("NaT")]], "not a time"), ([[1, "13.09.2020"]], "not a time"),
    ],
)  # fmt: skip
def test_what_is_no_time_is_one_line(times: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        moments_of(times, [2])
    assert "\n" not in str(caught.value)
