"""Choice of columns: times with any name and in any place, ratings that nobody needs, and warnings about guesses."""

import csv
import re
import warnings
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from seqrec.data.formats.read import read_log, read_log_with_summary
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.errors import InputError, LogWarning
from seqrec.recommender import Recommender

START = 1_600_000_000  # 2020-09-13 12:26:40 UTC
SECONDS = [START + (7919 * n) % 100_003 * 50 for n in range(30)]  # in no order
USERS = [f"u{n % 7}" for n in range(30)]
ITEMS = [str(214_536_500 + n % 11) for n in range(30)]


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


WAYS = {
    "seconds": str,
    "milliseconds": lambda s: str(s * 1000),
    "microseconds": lambda s: str(s * 10**6),
    "nanoseconds": lambda s: str(s * 10**9),
    "ISO": iso,
    "ISO with a blank": lambda s: iso(s).replace("T", " ").rstrip("Z"),
}


def write(folder: Path, header: list[str] | None, columns: list[list], name: str = "log.csv") -> Path:
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header] if header else [])
        writer.writerows(zip(*columns, strict=True))
    return path


def read(source, **options) -> tuple[pl.DataFrame, list[str]]:
    """The frame and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = read_log(source, **options)
    assert {warning.category for warning in caught} <= {LogWarning}
    assert {warning.filename for warning in caught} <= {__file__}  # the line that called the package
    return frame, [str(warning.message) for warning in caught]


# ---- times of other names

TIME_NAMES = """purchase_time t_dat InvoiceDate timestamp_utc created created_at click_time order_date event_ts unixtime
date_time dt watched_on orderDate server_time_ms ORDER_DATE UNIXTIME Click-Time eventTimestamp"""


@pytest.mark.parametrize("name", [*TIME_NAMES.split(), "purchase time", "Created At"])
@pytest.mark.parametrize("way", WAYS)
def test_times_of_other_names(tmp_path, name, way):
    path = write(tmp_path, ["user_id", "item_id", name], [USERS, ITEMS, [WAYS[way](s) for s in SECONDS]])
    frame, said = read(path)
    assert frame["timestamp"].to_list() == SECONDS
    assert frame.columns == ["user_id", "item_id", "timestamp"]
    assert all(f"'{name}' is used, a guess" in line for line in said)


@pytest.mark.parametrize(
    ("columns", "likely"),
    [
        ({"sale_date": "ISO", "ship_date": "ISO"}, ["sale_date", "ship_date"]),
        ({"birth_date": "ISO"}, ["birth_date"]),
        ({"x": "ISO"}, ["x"]),
        ({"moment of it": "seconds", "added on": "ISO"}, ["moment of it", "added on"]),
        ({"x": "milliseconds"}, ["x"]),
    ],
)
def test_what_only_looks_like_times_is_named(columns, likely):
    frame = pl.DataFrame(
        {"user": USERS, "item": ITEMS} | {n: [WAYS[w](s) for s in SECONDS] for n, w in columns.items()}
    )
    result, said = read(frame)
    assert "timestamp" not in result.columns
    assert len(said) == 1
    assert "no time column found" in said[0]
    for name in likely:
        assert re.search(rf"--timestamp '?{name}\b", said[0])
        assert read(frame, timestamp=name)[0]["timestamp"].to_list() == SECONDS


@pytest.mark.parametrize(
    "values", [["12/1/2010 8:26"] * 30, [None] + [iso(s) for s in SECONDS[1:]], [*SECONDS[1:], None], ["9:30"] * 30]
)
def test_times_that_cannot_be_read_are_named(values):
    result, said = read(pl.DataFrame({"user": USERS, "item": ITEMS, "InvoiceDate": values}))
    assert result.columns == ["user_id", "item_id", "InvoiceDate"]
    assert "'InvoiceDate' may be one, but not all values can be read: --timestamp InvoiceDate shows which" in said[0]
    with pytest.raises(InputError, match=r"row \d+: timestamp"):
        read_log(pl.DataFrame({"user": USERS, "item": ITEMS, "InvoiceDate": values}), timestamp="InvoiceDate")


@pytest.mark.parametrize("values", [["1.5"] * 30, ["soon"] * 30, [str(n) for n in range(30)], ["4111"] * 30])
def test_a_name_alone_makes_no_times(values):
    result, said = read(pl.DataFrame({"user": USERS, "item": ITEMS, "watch_time": values}))
    assert result.columns == ["user_id", "item_id", "watch_time"]
    assert said == [
        "the DataFrame: no time column; the lines are taken to be in time order (--timestamp names a column)"
    ]


def test_lines_that_stand_together_need_no_times(tmp_path):
    assert read(pl.DataFrame({"user": sorted(USERS), "item": ITEMS}))[1] == []
    path = tmp_path / "log.txt"
    path.write_text("1 2 3\n2 4 5 6\n3 4\n")
    assert read(path)[1] == []


# ---- dates and times of the day


@pytest.mark.parametrize(
    ("day", "clock"),
    [
        ("%Y-%m-%d", "%H:%M"),
        ("%Y-%m-%d", "%H%M"),
        ("%Y-%m-%d", "%H:%M:%S"),
        ("%Y-%m-%d", "%I:%M:%S %p"),
        ("%Y-%m-%d", "%I:%M%p"),
        ("%Y%m%d", "%H%M%S"),
        ("%Y/%m/%d", "%H:%M:%S.%f"),
    ],
)
@pytest.mark.parametrize("names", [("date", "time"), ("Date", "TIME"), ("purchase_date", "time")])
def test_a_date_and_a_time_of_the_day_are_put_together(tmp_path, day, clock, names):
    moments = [datetime.fromtimestamp(s, UTC) for s in SECONDS]
    days, clocks = [m.strftime(day) for m in moments], [m.strftime(clock) for m in moments]
    fmt = f"{day} {clock}"
    expected = [
        int(datetime.strptime(f"{d} {c}", fmt).replace(tzinfo=UTC).timestamp())
        for d, c in zip(days, clocks, strict=True)
    ]
    path = write(tmp_path, ["user", "item", *names], [USERS, ITEMS, days, clocks])
    frame, said = read(path)
    assert frame["timestamp"].to_list() == expected
    assert "joined" in said[0] or "is used" in said[0]
    typed = pl.DataFrame(
        {"user": USERS, "item": ITEMS, names[0]: [m.date() for m in moments], names[1]: [m.time() for m in moments]}
    )
    assert read(typed)[0]["timestamp"].to_list() == SECONDS


def test_whole_times_beside_a_date_stand_alone():
    frame = pl.DataFrame({"user": USERS, "item": ITEMS, "date": ["2020-01-01"] * 30, "time": SECONDS})
    result, said = read(frame)
    assert (result["timestamp"].to_list(), said) == (SECONDS, [])


@pytest.mark.parametrize("bad", [["morning"] * 30, [None] * 30, ["10:20:30"] * 29 + ["late"]])
def test_another_column_where_the_best_name_holds_no_times(bad):
    frame = pl.DataFrame({"user": USERS, "item": ITEMS, "time": bad, "created": [iso(s) for s in SECONDS]})
    result, said = read(frame)
    assert result["timestamp"].to_list() == SECONDS
    assert "column 'time' holds no times; 'created' is used" in said[0]


def test_one_bad_value_is_an_error_and_no_reason_to_take_another_column():
    times = [iso(s) for s in SECONDS[:-1]] + ["soon"]
    frame = pl.DataFrame({"user": USERS, "item": ITEMS, "timestamp": times, "date": ["2020-01-01"] * 30})
    with pytest.raises(InputError, match=r"row 30: timestamp 'soon'"):
        read_log(frame)


# ---- without a header

ORDERS = {
    "user, time, item": ("uti", "1", "3", "2"),
    "time, user, item": ("tui", "2", "3", "1"),
    "user, time, item, category": ("utic", "1", "3", "2"),
    "user, time, item, rating": ("utir", "1", "3", "2"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ORDERS)
def test_other_orders_without_a_header(tmp_path, order, way):
    letters, user, item, time = ORDERS[order]
    users = [str(n % 7) for n in range(30)]
    columns = {"u": users, "i": ITEMS, "t": [WAYS[way](s) for s in SECONDS], "c": ["S"] * 30,
               "r": [str(n % 5 + 1) for n in range(30)]}  # fmt: skip
    path = write(tmp_path, None, [columns[letter] for letter in letters])
    asked = {"user": user, "item": item, "timestamp": time}
    flags = f"--user {user} --item {item} --timestamp {time}"
    if way.startswith("ISO"):  # nothing but a time
        frame, said = read(path)
        assert f"column {time} holds times; read as {flags}" in said[0]
    else:
        with pytest.raises(InputError, match=f"column {time} looks like times.*{flags}"):
            read_log(path)
        frame, _ = read(path, **asked)
    assert frame["timestamp"].to_list() == SECONDS
    assert frame["item_id"].cast(pl.String).to_list() == ITEMS
    assert frame["user_id"].cast(pl.String).to_list() == users
    assert (
        read(path, timestamp=time)[0]
        .select("user_id", "item_id", "timestamp")
        .equals(frame.select("user_id", "item_id", "timestamp"))
    )


def test_four_columns_with_the_time_first_are_asked_about(tmp_path):
    path = write(tmp_path, None, [[iso(s) for s in SECONDS], USERS, ITEMS, [n % 5 for n in range(30)]])
    with pytest.raises(InputError, match="--user 2 --item 3 --timestamp 1"):
        read_log(path)


@pytest.mark.parametrize(("place", "flags"), [(0, "--user 2 --item 3 --timestamp 1"), (1, "--user 1 --item 3 --tim")])
def test_dates_as_whole_numbers_in_another_place(tmp_path, place, flags):
    columns = [USERS, ITEMS]
    columns.insert(place, [20_200_101 + n % 28 for n in range(30)])
    with pytest.raises(InputError, match=f"column {place + 1} looks like times.*{flags}"):
        read_log(write(tmp_path, None, columns))


def test_small_catalogues_are_no_ratings(tmp_path):
    path = write(tmp_path, None, [USERS, [n % 5 for n in range(30)], list(range(100, 130))])
    assert read(path)[0]["timestamp"].to_list() == list(range(100, 130))


def test_ids_that_look_like_times_stay_ids_beside_times(tmp_path):
    users = [str(1_500_000_000 + n % 7) for n in range(30)]
    path = write(tmp_path, None, [users, ITEMS, list(map(str, SECONDS))])
    frame, said = read(path)
    assert (frame["user_id"].cast(pl.String).to_list(), frame["timestamp"].to_list(), said) == (users, SECONDS, [])
    # … and where people come back, without times too.
    assert read(write(tmp_path, None, [users, ITEMS]))[0]["user_id"].cast(pl.String).to_list() == users


def test_ratings_in_the_place_of_items(tmp_path):
    path = write(tmp_path, None, [USERS, [n % 5 + 1 for n in range(30)], [f"{n * 7}x" for n in range(30)], SECONDS])
    with pytest.raises(InputError, match="--user 1 --item 3 --rating 2 --timestamp 4"):
        read_log(path)
    assert read(path, user="1", item="3", rating="2", timestamp="4")[0]["timestamp"].to_list() == SECONDS


def test_pairs_of_a_user_and_a_time(tmp_path):
    with pytest.raises(InputError, match="column 2 holds times, so the user or the item is missing"):
        read_log(write(tmp_path, None, [USERS, [iso(s) for s in SECONDS]]))


def test_a_date_and_a_clock_between_blanks(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("1 5 2020-09-13 12:26:40\n1 6 2020-09-13 12:26:41\n")
    frame, said = read(path)
    assert frame["timestamp"].to_list() == [START, START + 1]
    assert "joined" in said[0]


# ---- ratings


@pytest.mark.parametrize(("values", "expected"), [(["", "4", "5"], [None, 4, 5]), (["NaN", "4", "5"], [None, 4, 5])])
def test_gaps_between_ratings(tmp_path, values, expected):
    frame, said = read(write(tmp_path, ["user", "item", "rating"], [["u"] * 3, "abc", values]))
    assert (frame["rating"].to_list(), said) == (expected, [])


@pytest.mark.parametrize("name", ["rating", "score", "stars", "overall"])
@pytest.mark.parametrize("values", [["tbd", "4", "5"], ["like", "like", "no"]])
def test_words_for_ratings_are_left_as_they_are(tmp_path, name, values):
    path = write(tmp_path, ["user", "item", name], [["u"] * 3, "abc", values])
    frame, said = read(path)
    assert frame.drop("user_id", "item_id").to_dict(as_series=False) == {
        "rating_other" if name == "rating" else name: values
    }
    assert len(said) == 1
    assert f"column '{name}' holds '{values[0]}', so it is not used as a rating" in said[0]
    with pytest.raises(InputError, match=f"line 2: rating '{values[0]}' is not a number"):
        Recommender("popularity", min_rating=4).fit(path)
    with pytest.raises(InputError, match=f"line 2: rating '{values[0]}' is not a number"):
        read_log(path, rating=name)


def test_json_lines_where_only_some_have_a_rating(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"user": 1, "item": 2}\n{"user": 1, "item": 3, "rating": 4}\n')
    assert read(path)[0]["rating"].to_list() == [None, 4.0]
    with pytest.raises(InputError, match=r"line 1: rating \(empty\)"):
        Recommender("popularity", min_rating=3).fit(path)
    with pytest.raises(InputError, match="1 of 2 interactions have none"):
        prepare(read_log(path), PrepareConfig(min_rating=3))


# ---- nobody there


@pytest.mark.parametrize("empty", ["", "NA", "NaN", "null", "None"])
def test_a_user_column_of_nothing(tmp_path, empty):
    path = write(tmp_path, ["user_id", "session_id", "item_id"], [[empty] * 3, [7, 7, 8], "abc"])
    with pytest.raises(InputError, match=r"line 2: .*as in 3 of 3 rows.*--user session_id") as caught:
        read_log(path)
    assert "\n" not in str(caught.value)
    assert read_log(path, user="session_id")["user_id"].to_list() == [7, 7, 8]


@pytest.mark.parametrize("users", [["", "a", ""], ["NA", "1", "NA"], ["", "1.0", ""]])
def test_a_user_column_with_gaps(tmp_path, users):
    path = write(tmp_path, ["user_id", "session_id", "item_id"], [users, [7, 7, 8], "abc"])
    with pytest.raises(InputError, match=r"line 2: .*as in 2 of 3 rows.*--user session_id"):
        read_log(path)
    none = [None if user in ("", "NA") else user for user in users]
    with pytest.raises(InputError, match=r"row 1: .*--user session_id"):
        read_log(pl.DataFrame({"user_id": none, "session_id": [7, 7, 8], "item_id": list("abc")}))


def test_words_for_nothing_among_names_are_told(tmp_path):
    path = write(tmp_path, ["user_id", "session_id", "item_id"], [["NA", "NA", "ann"], [7, 7, 8], "abc"])
    frame, said = read(path)
    assert frame["user_id"].to_list() == ["NA", "NA", "ann"]
    assert "in 2 of 3 rows the user id is the word 'NA'; 'session_id' may be the user (--user)" in said[0]


# ---- the summary


def test_summary(tmp_path):
    header = ["price", "reviewerID", "asin", "InvoiceDate", "overall"]
    path = write(tmp_path, header, [[1] * 30, USERS, ITEMS, [iso(s) for s in SECONDS], [5] * 30])
    with pytest.warns(LogWarning, match="InvoiceDate"):
        frame, summary = read_log_with_summary(path)
    assert summary.name == str(path)
    assert summary.columns == {"user": "reviewerID", "item": "asin", "timestamp": "InvoiceDate", "rating": "overall"}
    assert summary.ignored == ["price"]
    assert summary.time_unit == "dates"
    assert summary.frame_columns == frame.columns
    assert len(summary.notes) == 1


@pytest.mark.parametrize(
    ("line", "odd"),
    [
        ("{u}\t2020-09-{day:02d}\t{hour:02d}:10:05\ti{i}", "column 3, expected to be the item, holds times of the day"),
        ("{u},2020-09-{day:02d}T{hour:02d}:10:05,0,{i}", "column 3, expected to be the item, holds one value"),
        ("{u},c,{i},2020-09-{day:02d}T{hour:02d}:10:05", "column 2, expected to be the item, holds one value"),
        ("{k},u{u},i{i},{time}", "column 1, expected to be the user, holds the numbers of the rows"),
    ],
)
def test_guesses_without_a_header_that_can_hardly_be_right(tmp_path: Path, line: str, odd: str) -> None:
    rows = [
        line.format(k=k, u=k % 9, i=k % 13, day=k % 28 + 1, hour=k % 24, time=1_600_000_000 + 977 * k)
        for k in range(60)
    ]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=odd):
            read_log(path)


def test_years_are_no_seconds_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n1,2,2019\n1,3,2018\n2,3,2020\n")
    with pytest.warns(LogWarning, match="look like years"):
        read_log(path)


def test_a_first_row_without_digits_above_dates_is_a_header(tmp_path):
    rows = [f"k{n % 7};b{n % 5};2024-01-{n + 1:02};5,50" for n in range(20)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["kunde;buch;zeit;preis", *rows]))
    with pytest.raises(InputError, match=r"columns: kunde, buch, zeit, preis$"):
        read_log(path)
    assert read_log(path, user="kunde", item="buch", timestamp="zeit").height == 20
    path.write_text("\n".join(["anna;dune;x", *(f"bob;dune;{'abc'[n % 3]}{n}" for n in range(5))]))
    assert read_log(path, user="1", item="2").height == 6  # too few rows to tell


def test_repeated_names_are_told(tmp_path: Path) -> None:
    header = ["item_id", "item_id_4", "user_id", "item_id", ""]
    path = write(tmp_path, header, [ITEMS, SECONDS, USERS, USERS, SECONDS])
    frame, said = read(path)
    assert frame["item_id"].cast(str).to_list() == ITEMS
    assert [one for one in said if "like an earlier one" in one] == [
        f"{path}: column 4 is called 'item_id' like an earlier one; it is 'item_id_4_4' here"
    ]
