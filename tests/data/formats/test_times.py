"""Times in any way of writing them → Unix seconds, against Python's datetime; one unit per log."""

import warnings
from datetime import UTC, datetime, timedelta, timezone

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.formats.read import read_log
from seqrec.errors import InputError, LogWarning

NOW = 1_600_000_000  # 2020-09-13 12:26:40 UTC
moments = st.datetimes(datetime(1980, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC))


def seconds_of(values, **options) -> list[int]:
    frame = pl.DataFrame({"user": range(len(values)), "item": range(len(values)), "time": values})
    return read_log(frame, **options).sort("user_id")["timestamp"].to_list()


WHOLE = {
    "%Y%m": "yyyymm",
    "%Y%m%d": "yyyymmdd",
    "%Y%m%d%H": "yyyymmddHH",
    "%Y%m%d%H%M": "yyyymmddHHMM",
    "%Y%m%d%H%M%S": "yyyymmddHHMMSS",
}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", WHOLE)
@settings(max_examples=25, deadline=None)
@given(times=st.lists(st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31)), min_size=1, max_size=9))
def test_dates_as_whole_numbers(pattern, times):
    written = [time.strftime(pattern) for time in times]
    expected = [int(datetime.strptime(w, pattern).replace(tzinfo=UTC).timestamp()) for w in written]
    for values in (written, list(map(int, written)), [f"{w}.0" for w in written], list(map(float, written))):
        with pytest.warns(LogWarning, match=f"read as whole numbers {WHOLE[pattern]}$"):
            assert seconds_of(values) == expected


def test_dates_with_milliseconds_as_whole_numbers():
    with pytest.warns(LogWarning, match="yyyymmddHHMMSSfff"):
        frame = read_log(pl.DataFrame({"user": [1, 1], "item": [1, 2], "time": [20200913122640500, 20200913122640123]}))
    assert frame["timestamp"].to_list() == [NOW, NOW]
    assert frame["item_id"].to_list() == [2, 1]  # in the order of the milliseconds


@pytest.mark.parametrize("bad", [20200931, 2020091, 20201301, 202009130])
def test_a_number_that_is_no_date_among_dates(bad):
    with pytest.raises(
        InputError, match=rf"row 3: timestamp {bad} is not a date like most others \(whole numbers yyyymmdd\)"
    ):
        seconds_of([20200913, 20200914, bad, 20200915, 20200916])


@settings(max_examples=50, deadline=None)
@given(times=st.lists(st.datetimes(datetime(1983, 1, 1), datetime(2060, 1, 1)), min_size=1, max_size=9))
def test_days_of_excel(times):
    times = [time.replace(microsecond=0) for time in times]
    days = [(time - datetime(1899, 12, 30)) / timedelta(days=1) for time in times]
    expected = [int(time.replace(tzinfo=UTC).timestamp()) for time in times]
    for values in (days, [repr(day) for day in days]):
        with pytest.warns(LogWarning, match="read as days of Excel"):
            assert seconds_of(values) == expected


@pytest.mark.parametrize("values", [[1, 2, 3], [0, 5], list(range(0, 90_000, 9000)), ["3", "1"], [1990, 2224]])
def test_places_in_an_order_stay_what_they_are(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seconds_of(values) == [int(value) for value in values]


@pytest.mark.parametrize("values", [[26_666_666, 26_666_667], [444_444, 444_445], [18_518, 18_519]])
def test_times_before_1980_are_told(values):
    with pytest.warns(LogWarning, match="seconds since 1970 and are before 1980; if that is wrong"):
        assert seconds_of(values) == values


def test_times_beyond_2100_are_told():
    with pytest.warns(LogWarning, match="go beyond the year 2100"):
        seconds_of([NOW, 9_999_999_999])


# ---- one unit per log

SCALES = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("other", SCALES)
@pytest.mark.parametrize("most", SCALES)
def test_one_time_of_another_unit(most, other, as_text):
    values = [(NOW + n) * SCALES[most] for n in range(9)]
    values[4] = NOW * SCALES[other]
    values = list(map(str, values)) if as_text else values
    if most == other:
        assert seconds_of(values)[0] == NOW
        return
    with pytest.raises(
        InputError, match=rf"row 5: timestamp '?{values[4]}'? is in another unit than most others, or cut off"
    ):
        seconds_of(values)


@pytest.mark.parametrize("scale", SCALES.values())
@pytest.mark.parametrize("lost", range(1, 10))
def test_a_last_line_cut_off_inside_of_its_time(tmp_path, scale, lost):
    path = tmp_path / "log.csv"
    text = "user,item,timestamp\n" + "\n".join(f"{n % 3},{n},{(NOW + n) * scale}" for n in range(9))
    path.write_text(text[:-lost])
    with pytest.raises(InputError, match=r"line 10: timestamp '\d+' is in another unit than most others, or cut off"):
        read_log(path)


@pytest.mark.parametrize("early", [0, -1, 16_000, -62_135_596_800])
def test_numbers_for_no_time_among_times(early):
    with pytest.raises(InputError, match="row 1: timestamp"):
        seconds_of([early, NOW, NOW + 1])


@settings(max_examples=50, deadline=None)
@given(times=st.lists(st.datetimes(datetime(1990, 1, 1), datetime(2032, 1, 1)), min_size=1, max_size=9))
def test_numbers_of_each_unit(times):
    seconds = [int(time.replace(tzinfo=UTC).timestamp()) for time in times]
    for scale in SCALES.values():
        assert seconds_of([value * scale for value in seconds]) == seconds


# ---- zones


@settings(max_examples=40, deadline=None)
@given(times=st.lists(moments, min_size=1, max_size=5), minutes=st.integers(-14 * 60, 14 * 60))
def test_iso_times_of_any_zone(times, minutes):
    zone = timezone(timedelta(minutes=minutes))
    expected = [int(time.replace(microsecond=0).timestamp()) for time in times]
    written = [time.replace(microsecond=0).astimezone(zone).isoformat() for time in times]
    assert seconds_of(written) == expected
    assert seconds_of([text.replace("T", " ") for text in written]) == expected


@pytest.mark.parametrize("zone", ["+05:30", "-03:00", "Asia/Kolkata", "UTC"])
def test_zones_of_frames(zone):
    times = pd.to_datetime([NOW, NOW + 1], unit="s", utc=True).tz_convert(zone)
    frame = pd.DataFrame({"user": [1, 2], "item": [1, 2], "time": times})
    assert read_log(frame)["timestamp"].to_list() == [NOW, NOW + 1]
    table = pa.table({"user": [1], "item": [1], "time": pa.array([NOW], pa.timestamp("s", zone))})
    assert read_log(table)["timestamp"].to_list() == [NOW]


def test_moments_written_without_marks():
    assert seconds_of(["20200913T122640Z", "20200913 12:26:41"]) == [NOW, NOW + 1]


def test_dates_that_begin_with_the_day_are_told(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\na,1,15.11.2023\na,2,16.11.2023 10:30\nb,3,1/2/2023\n")
    with pytest.raises(InputError, match=r"'15\.11\.2023' is not a number or an ISO date; write all"):
        read_log(path)
    path.write_text("user_id,item_id,timestamp\na,1,15.11.2023\na,2,2023-11-16\n")
    with pytest.raises(InputError, match="is not a number or an ISO date; correct or remove it"):
        read_log(path)
