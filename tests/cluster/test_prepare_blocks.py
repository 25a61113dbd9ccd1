"""Preparation by blocks gives the files of one machine; here with tasks that run in this process."""

import decimal
import pickle
import uuid
import warnings
from datetime import date, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from seqrec import InputError, PrepareConfig, prepare
from seqrec.cluster import parts as cluster_parts
from seqrec.cluster import prepare as cluster_prepare
from seqrec.data.formats.read import read_log_with_summary

ROWS = 600


class Here:
    """A pool whose tasks run in this process, with arguments that were pickled as those of a cluster are."""

    workers = 2

    def run(self, function, calls, returns=1):
        made = [function(*pickle.loads(pickle.dumps(arguments))) for arguments in calls]
        assert returns == 1 or all(len(results) == returns for results in made)
        return [list(results) if returns > 1 else [results] for results in made]

    def put(self, value):
        return value

    def get(self, references):
        return references


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(cluster_parts, "BLOCK_ROWS", 150)
    monkeypatch.setattr(cluster_prepare, "PART_ROWS", 250)


def written(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def locally(log, folder, config, columns):
    needs = config.min_rating is not None
    frame, summary = read_log_with_summary(log, **columns, needs_rating=needs)
    dataset = prepare(frame, config)
    if dataset.item_table is not None:
        summary.use(dataset.item_table.summary.columns)
    dataset.save(folder)
    return written(folder), summary


def by_blocks(log, folder, config, columns):
    folder.mkdir()
    given = {name if name in ("timestamp", "rating") else f"{name}_id": value for name, value in columns.items()}
    parts = cluster_parts.open_parts(log)
    summary = cluster_prepare._prepared(Here(), parts, folder, config, given)
    return written(folder), summary


def same(tmp_path, log, config=None, **columns):
    """Prepare both ways, and compare every file and how the log was understood. Returns the warnings of both."""
    config, results, said = config or PrepareConfig(), [], []
    for name, way in (("local", locally), ("blocks", by_blocks)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(way(log, tmp_path / name, config, columns))
        said.append([str(warning.message) for warning in caught])
    (expected, summary), (found, other) = results
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    for name in ("columns", "ignored", "frame_columns", "time_unit"):
        assert getattr(other, name) == getattr(summary, name), name
    return said


def frame_of(rng, rows=ROWS, users=40, items=30):
    return pl.DataFrame({
        "user_id": rng.integers(0, users, rows),
        "item_id": rng.integers(5, 5 + items, rows),
        "timestamp": rng.integers(1_600_000_000, 1_600_000_090, rows),
        "rating": rng.integers(1, 6, rows).astype(float),
    })  # fmt: skip


def save(frames, folder, **options):
    """Write each frame as a part with row groups of 75 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        frame.write_parquet(folder / f"part-{number:03}.parquet", row_group_size=75, **options)
    return folder


def cut(frame, parts=5):
    edges = np.linspace(0, frame.height, parts + 1).astype(int).tolist()
    return [frame[a:b] for a, b in pairwise(edges)]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


FILTERS = [
    PrepareConfig(),
    PrepareConfig(min_rating=3),
    PrepareConfig(min_rating=4, duplicates="drop", min_user_interactions=3, min_item_interactions=6),
    PrepareConfig(duplicates="drop-copies"),
    PrepareConfig(duplicates="drop-consecutive", min_user_interactions=12),
    PrepareConfig(duplicates="drop"),
    PrepareConfig(min_item_interactions=16, min_user_interactions=9),
    PrepareConfig(min_item_interactions=16, min_user_interactions=9, core="once"),
    PrepareConfig(min_rating=2, min_item_interactions=18),
]


@pytest.mark.parametrize("config", FILTERS, ids=str)
def test_filters(tmp_path, rng, config):
    same(tmp_path, save(cut(frame_of(rng)), tmp_path / "log"), config)


def test_filters_that_leave_nothing(tmp_path, rng):
    log, config = save(cut(frame_of(rng)), tmp_path / "log"), PrepareConfig(min_user_interactions=500)
    with pytest.raises(InputError, match="nothing is left of 600") as expected:
        locally(log, tmp_path / "local", config, {})
    with pytest.raises(InputError) as found:
        by_blocks(log, tmp_path / "blocks", config, {})
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(tmp_path, seed):
    rng = np.random.default_rng(seed)
    users, items, rows = (int(size) for size in rng.integers(1, [60, 40, 700]))
    frame = frame_of(rng, rows, users, items)
    if seed % 3 == 0:
        frame = frame.with_columns(pl.col("user_id").cast(pl.String), pl.format("i{}é", "item_id").alias("item_id"))
    if seed % 4 == 0:
        frame = frame.drop("timestamp")
    if seed % 4 == 1:
        frame = frame.with_columns(pl.col("timestamp") * 1000 + rng.integers(0, 1000, rows))
    if seed % 4 == 2:
        frame = frame.with_columns(pl.col("timestamp") + pl.Series(rng.random(rows)))
    few = PrepareConfig(min_rating=2, duplicates="drop", min_item_interactions=2)
    same(tmp_path, save(cut(frame, int(rng.integers(1, 9))), tmp_path / "log"), few if seed % 2 else None)


def stamped(frame, values):
    return frame.with_columns(pl.Series("timestamp", values))


def moments(rng, unit="us", zone=None):
    start = datetime(2020, 1, 1)
    values = [start + timedelta(microseconds=int(n)) for n in rng.integers(0, 10**8, ROWS)]
    return pl.Series(values, dtype=pl.Datetime(unit, zone)) if zone is None else pl.Series(values).cast(
        pl.Datetime(unit)
    ).dt.replace_time_zone(zone)  # fmt: skip


TIMES = {
    "milliseconds": lambda frame, rng: frame["timestamp"] * 1000,
    "fine": lambda frame, rng: frame["timestamp"] * 1000 + rng.integers(0, 1000, ROWS),
    "microseconds": lambda frame, rng: frame["timestamp"] * 10**6 + rng.integers(0, 10**6, ROWS),
    "nanoseconds": lambda frame, rng: frame["timestamp"] * 10**9 + rng.integers(0, 10**9, ROWS),
    "floats": lambda frame, rng: frame["timestamp"] + rng.random(ROWS),
    "before 1970": lambda frame, rng: -frame["timestamp"] // 4 + rng.random(ROWS),
    "rows": lambda frame, rng: np.arange(ROWS),
    "rows, long ago": lambda frame, rng: np.arange(ROWS)[::-1] + 35_000_000_000 // 60,
    "small": lambda frame, rng: rng.integers(0, 3, ROWS),
    "yyyymmdd": lambda frame, rng: 20200900 + rng.integers(1, 30, ROWS),
    "yyyymmddHHMMSS": lambda frame, rng: 20200900000000 + rng.integers(1, 30, ROWS) * 10**6 + rng.integers(0, 60, ROWS),
    "like dates, but not": lambda frame, rng: 20_000_000 + rng.integers(0, 10, ROWS),
    "across the range of dates": lambda frame, rng: np.sort(rng.integers(10**6, 4 * 10**7, ROWS)),
    "excel": lambda frame, rng: 40_000 + rng.random(ROWS) * 100,
    "not excel": lambda frame, rng: np.sort(rng.integers(29_000, 70_000, ROWS)),
    "uint64": lambda frame, rng: frame["timestamp"].cast(pl.UInt64),
    "int32": lambda frame, rng: frame["timestamp"].cast(pl.Int32),
    "decimal": lambda frame, rng: frame["timestamp"].cast(pl.Decimal(20, 2)),
    "dates": lambda frame, rng: [date(2020, 1, 1) + timedelta(days=int(n)) for n in rng.integers(0, 9, ROWS)],
    "datetimes": lambda frame, rng: moments(rng),
    "datetimes in ms": lambda frame, rng: moments(rng, "ms"),
    "datetimes in ns": lambda frame, rng: moments(rng, "ns"),
    "datetimes in a zone": lambda frame, rng: moments(rng, "us", "Europe/Berlin"),
    "text of seconds": lambda frame, rng: frame["timestamp"].cast(pl.String),
    "text of floats": lambda frame, rng: (frame["timestamp"] + rng.integers(0, 2, ROWS) / 2).cast(pl.String),
    "text of dates": lambda frame, rng: moments(rng).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ"),
    "text of two formats": lambda frame, rng: [
        f"2020-01-{n + 1:02}" + (" 10:20" if n % 2 else "") for n in rng.integers(0, 20, ROWS)
    ],
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("kind", TIMES)
def test_times(tmp_path, rng, kind):
    frame = frame_of(rng)
    frame = stamped(frame, TIMES[kind](frame, rng))
    notes = same(tmp_path, save(cut(frame), tmp_path / "log"), PrepareConfig(duplicates="drop-copies"))
    assert notes[0] == notes[1]


IDS = {
    "text": lambda n: [f"u{k}" for k in n],
    "text of integers": lambda n: [str(k) for k in n],
    "leading zeros": lambda n: [f"{k:05}" for k in n],
    "other alphabets": lambda n: ["äöü日本"[k % 5] + str(k) for k in n],
    "a word for nothing among names": lambda n: ["nan" if k == 3 else f"u{k}" for k in n],
    "negative": lambda n: n - 20,
    "far apart": lambda n: n * 10**15 - 3,
    "int8": lambda n: pl.Series(n * 6 - 128, dtype=pl.Int8),
    "uint64": lambda n: pl.Series([2**63 + int(k) if k % 7 == 1 else int(k) for k in n], dtype=pl.UInt64),
    "floats": lambda n: pl.Series(n, dtype=pl.Float64),
    "float32": lambda n: pl.Series(n, dtype=pl.Float32),
    "decimals": lambda n: pl.Series([decimal.Decimal(int(k)) for k in n], dtype=pl.Decimal(20, 2)),
    "large decimals": lambda n: pl.Series([decimal.Decimal(int(k) * 10**19) for k in n], dtype=pl.Decimal(30, 0)),
    "categories": lambda n: pl.Series([f"u{k}" for k in n], dtype=pl.Categorical),
    "bytes of text": lambda n: [f"u{k}".encode() for k in n],
    "uuids": lambda n: [uuid.UUID(int=int(k) * 2**100 + 255 * 2**64).bytes for k in n],
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ids(tmp_path, rng, kind, column):
    frame = frame_of(rng)
    frame = frame.with_columns(pl.Series(column, IDS[kind](frame[column].to_numpy())))
    notes = same(tmp_path, save(cut(frame), tmp_path / "log"), PrepareConfig(min_rating=2))
    assert notes[0] == notes[1]


def test_large_integers_in_one_block_only(tmp_path, rng):
    frame = frame_of(rng).with_columns(pl.col("user_id").cast(pl.UInt64))
    last = frame[-1:].with_columns(pl.Series("user_id", [2**64 - 5], dtype=pl.UInt64))
    same(tmp_path, save(cut(pl.concat([frame, last])), tmp_path / "log"))


# Types of two kinds of parts, and the column that has them.
MIXED = {
    "int32 and int64": ("user_id", pl.Int32, pl.Int64),
    "uint8 and int64": ("item_id", pl.UInt8, pl.Int64),
    "int and whole float": ("user_id", pl.Int64, pl.Float64),
    "int and text": ("item_id", pl.Int64, pl.String),
    "text and category": ("item_id", pl.String, pl.Categorical),
    "float32 and float64": ("rating", pl.Float32, pl.Float64),
    "int and float times": ("timestamp", pl.Int64, pl.Float64),
    "int and float ratings": ("rating", pl.Int64, pl.Float64),
    "ms and us": ("timestamp", pl.Datetime("ms"), pl.Datetime("us")),
    "dates and times": ("timestamp", pl.Date, pl.Datetime("us")),
    "zone and zone": ("timestamp", pl.Datetime("us", "Europe/Berlin"), pl.Datetime("us", "UTC")),
}


@pytest.mark.parametrize("kind", MIXED)
def test_parts_of_different_types(tmp_path, rng, kind):
    name, one, other = MIXED[kind]
    frame = frame_of(rng)
    if isinstance(one, pl.Datetime) or one == pl.Date:
        frame = frame.with_columns(pl.from_epoch(pl.col("timestamp")).dt.cast_time_unit("us"))
    parts = cut(frame)
    for number, part in enumerate(parts):
        kind = (one, other)[number % 2]
        column = part[name]
        if isinstance(kind, pl.Datetime) and kind.time_zone:
            column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(kind.time_zone)
        else:
            column = column.cast(pl.String).cast(kind) if kind == pl.Categorical else column.cast(kind)
        parts[number] = part.with_columns(column)
    notes = same(tmp_path, save(parts, tmp_path / "log"))
    assert notes[0] == notes[1]


def test_fractions_in_one_part_only(tmp_path, rng):
    parts = cut(frame_of(rng))
    parts[4] = parts[4].with_columns(pl.col("timestamp") + 0.5, pl.col("rating") + 0.25)
    same(tmp_path, save(parts, tmp_path / "log"), PrepareConfig(min_rating=2.1))


def test_columns_in_another_order_and_null_parts(tmp_path, rng):
    parts = cut(frame_of(rng).with_columns(pl.lit("x").alias("note")))
    parts[2] = parts[2].select("rating", "note", "item_id", "timestamp", "user_id")
    parts[3] = parts[3].with_columns(pl.lit(None).alias("note"), pl.lit(None).alias("rating"))
    same(tmp_path, save(parts, tmp_path / "log"))


def test_key_value_folders(tmp_path, rng):
    for day in (3, 1, 2):
        save(cut(frame_of(rng), 2), tmp_path / "log" / f"day={day}" / "_src=a%20b")
    save(cut(frame_of(rng), 2), tmp_path / "log" / "day=__HIVE_DEFAULT_PARTITION__" / "_src=a%20b")
    (tmp_path / "log" / "_SUCCESS").write_text("")
    (tmp_path / "log" / "notes.txt").write_text("x")
    same(tmp_path, tmp_path / "log")


@pytest.mark.parametrize("key", ["user_id", "item_id", "category", "timestamp"])
def test_key_value_folders_with_a_role(tmp_path, rng, key):
    for value in (7, 11, 9):
        frame = frame_of(rng)
        frame = frame.drop(key) if key in frame.columns else frame.with_columns(item_id=pl.col("item_id") + 100 * value)
        save(cut(frame, 2), tmp_path / "log" / f"{key}={value}")
    same(tmp_path, tmp_path / "log")


def test_keys_that_repeat_a_column(tmp_path, rng):
    for value in (7, 11):
        save(cut(frame_of(rng).with_columns(day=value), 2), tmp_path / "log" / f"day={value}")
    same(tmp_path, tmp_path / "log")


def test_one_file(tmp_path, rng):
    save([frame_of(rng)], tmp_path / "log")
    same(tmp_path, tmp_path / "log" / "part-000.parquet")


def test_named_columns(tmp_path, rng):
    frame = frame_of(rng).rename({"user_id": "who", "item_id": "what", "timestamp": "then", "rating": "how"})
    frame = frame.with_columns(user_id=pl.lit(1), timestamp=pl.lit(2), item_id=pl.lit(3))
    log = save(cut(frame), tmp_path / "log")
    same(tmp_path, log, PrepareConfig(min_rating=3), user="who", item="what", timestamp="then", rating="how")


def test_guessed_time(tmp_path, rng):
    frame = frame_of(rng).rename({"timestamp": "clicked_on"}).with_columns(born_on=pl.lit(date(1990, 5, 1)))
    notes = same(tmp_path, save(cut(frame), tmp_path / "log"))
    assert notes[0] == notes[1]
    assert "a guess" in notes[1][0]


@pytest.mark.parametrize("gap", ["null", "old"])
def test_a_likely_time_that_is_none(tmp_path, rng, gap):
    frame = frame_of(rng).rename({"timestamp": "clicked_on"})
    filler = None if gap == "null" else 3
    frame = frame.with_columns(pl.when(pl.arange(ROWS) == 590).then(filler).otherwise("clicked_on").alias("clicked_on"))
    big = pl.concat([frame[:580]] * 2 + [frame])  # the first thousand rows look like times
    same(tmp_path, save(cut(big), tmp_path / "log"))


def test_no_times(tmp_path, rng):
    log = save(cut(frame_of(rng).drop("timestamp")), tmp_path / "log")
    notes = same(tmp_path, log)
    assert notes[0] == notes[1]
    assert "no time column" in notes[1][0]


@pytest.mark.parametrize("fine", [False, True])
def test_item_table(tmp_path, rng, fine):
    frame = frame_of(rng)
    names = np.where(rng.random(ROWS) < 0.9, frame["item_id"].cast(pl.String), rng.integers(0, 9, ROWS).astype(str))
    if fine:
        frame = frame.with_columns(timestamp=pl.col("timestamp") * 1000 + rng.integers(0, 1000, ROWS))
    titles = pl.Series([f"title {name}" if name[-1] != "7" else None for name in names])
    cats = pl.Series([f"c{int(i) % 3}|d{int(i) % 2}" for i in frame["item_id"]])
    log = save(cut(frame.with_columns(title=titles, genres=cats, name=frame["user_id"].cast(pl.String) + "x")),
               tmp_path / "log")  # fmt: skip
    notes = same(tmp_path, log, PrepareConfig(min_item_interactions=15))
    assert notes[0] == notes[1]


def test_texts_that_do_not_describe_items(tmp_path, rng):
    frame = frame_of(rng).with_columns(
        title=pl.Series([f"review {n}" for n in range(ROWS)]), category=pl.col("item_id") % 4
    )
    notes = same(tmp_path, save(cut(frame), tmp_path / "log"))
    assert notes[0] == notes[1]
    assert "differs between rows" in notes[1][0]


def edited(column, value, row=417):
    def edit(frame):
        values = frame[column].to_list()
        values[row] = value
        return frame.with_columns(pl.Series(column, values, strict=False))

    return edit


BAD = {
    "a null user": edited("user_id", None),
    "a null item": edited("item_id", None),
    "a null time": edited("timestamp", None),
    "a time in another unit": edited("timestamp", 1_600_000_000_000),
    "a time cut off": edited("timestamp", 16),
    "a blank id": lambda frame: edited("user_id", " ")(frame.with_columns(pl.col("user_id").cast(pl.String))),
    "a word for nothing": lambda frame: edited("user_id", "nan")(frame.with_columns(pl.col("user_id").cast(pl.String))),
    "a fraction of an id": lambda frame: edited("user_id", 1.5)(frame.with_columns(pl.col("user_id").cast(float))),
    "an infinite id": lambda frame: edited("item_id", np.inf)(frame.with_columns(pl.col("item_id").cast(float))),
    "an id that is NaN": lambda frame: edited("item_id", np.nan)(frame.with_columns(pl.col("item_id").cast(float))),
    "a rounded id": lambda frame: edited("item_id", 2.0**60)(frame.with_columns(pl.col("item_id").cast(float))),
    "ids that are dates": lambda frame: frame.with_columns(pl.from_epoch("user_id")),
    "ids that are lists": lambda frame: frame.with_columns(pl.concat_list("user_id")),
    "ids that are true or false": lambda frame: frame.with_columns(item_id=pl.col("item_id") > 7),
    "no item": lambda frame: frame.drop("item_id"),
    "a time that is no date": lambda frame: edited("timestamp", "soon")(
        frame.with_columns(pl.from_epoch("timestamp").cast(pl.String))
    ),
    "times that are lists": lambda frame: frame.with_columns(pl.concat_list("timestamp")),
    "a rating that is null": edited("rating", None),
    "a rating that is a word": lambda frame: edited("rating", "good")(frame.with_columns(pl.col("rating").cast(str))),
    "a rating that is infinite": edited("rating", np.inf),
    "no rating": lambda frame: frame.drop("rating"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_logs_are_refused_as_on_one_machine(tmp_path, rng, kind):
    log, config = save(cut(BAD[kind](frame_of(rng))), tmp_path / "log"), PrepareConfig(min_rating=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError) as expected:
            locally(log, tmp_path / "local", config, {})
        with pytest.raises(InputError) as found:
            by_blocks(log, tmp_path / "blocks", config, {})
    assert "\n" not in str(found.value)
    if ", row " in str(found.value) and "engine local" not in str(found.value):
        row = str(expected.value).split("row ")[1].split(":")[0]
        assert f"row {row}:" in str(found.value)


def parts_with(name, *kinds):
    return lambda frame: [
        part.with_columns(part[name].cast(kind)) for part, kind in zip(cut(frame, 2), kinds, strict=True)
    ]


BAD_PARTS = {
    "int and date": parts_with("user_id", pl.Int64, pl.Date),
    "uint64 beyond int64": lambda frame: [
        frame, frame.with_columns(pl.Series("user_id", [2**63 + 9] * ROWS, dtype=pl.UInt64))],
    "int and fraction of time": lambda frame: [
        frame.with_columns(pl.col("timestamp") * 10**9 + 1), frame.with_columns(pl.col("timestamp") + 0.5)],
    "another column": lambda frame: [frame, frame.with_columns(extra=1)],
    "a column less": lambda frame: [frame, frame.drop("rating")],
    "naive and zoned": lambda frame: [
        frame.with_columns(pl.from_epoch("timestamp")),
        frame.with_columns(pl.from_epoch("timestamp").dt.replace_time_zone("UTC"))],
    "no rows": lambda frame: [frame[:0], frame[:0]],
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_PARTS)
def test_parts_that_do_not_belong_together(tmp_path, rng, kind):
    log = save(BAD_PARTS[kind](frame_of(rng)), tmp_path / "log")
    with pytest.raises(InputError) as expected:
        locally(log, tmp_path / "local", PrepareConfig(), {})
    with pytest.raises(InputError) as found:
        cluster_prepare.prepare_on_cluster(log, tmp_path / "out") if kind == "no rows" else by_blocks(
            log, tmp_path / "blocks", PrepareConfig(), {}
        )
    assert str(found.value).split(" (")[0] == str(expected.value).split(" (")[0]
    assert not (tmp_path / "out").exists()


def test_a_url_that_fsspec_knows(tmp_path, rng):
    fsspec = pytest.importorskip("fsspec")
    for day in (2, 10):
        save(cut(frame_of(rng), 2), tmp_path / "log" / f"day={day}")
    (tmp_path / "log" / "_SUCCESS").write_text("")
    (tmp_path / "log" / "day=2" / ".part.crc").write_text("")
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "log"), "/logs/one", recursive=True)
    expected, _ = locally(tmp_path / "log", tmp_path / "local", PrepareConfig(), {})
    found, summary = by_blocks("memory://logs/one", tmp_path / "blocks", PrepareConfig(), {})
    assert found == expected
    assert summary.name == "memory://logs/one"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("day=1/_delta_log/0.json", "is a Delta table"),
        ("inner/part.parquet", "has Parquet in a folder inside of it"),
        ("part.csv", "is a folder of .csv files|give the file in it"),
        ("none", "is a folder without"),
    ],
)
def test_urls_of_other_folders(name, message):
    store = pytest.importorskip("fsspec").filesystem("memory")
    folder = f"/logs/{name.replace('/', '-')}"
    store.pipe(f"{folder}/{name}", b"")
    with pytest.raises(InputError, match=message):
        cluster_parts.open_parts(f"memory:/{folder}")


@pytest.mark.parametrize("url", ["nothing://bucket/log", "memory://logs/missing"])
def test_urls_that_lead_nowhere(url):
    pytest.importorskip("fsspec")
    with pytest.raises(InputError, match=r"cannot be opened|there is no such"):
        cluster_parts.open_parts(url)


def test_a_damaged_part(tmp_path, rng):
    log = save(cut(frame_of(rng)), tmp_path / "log")
    part = log / "part-002.parquet"
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"part-002\.parquet: is not Parquet, or is damaged"):
        by_blocks(log, tmp_path / "blocks", PrepareConfig(), {})
    part.write_bytes(b"")
    with pytest.raises(InputError, match=r"part-002\.parquet"):
        cluster_parts.open_parts(log)


# Logs that one machine understands and blocks do not, and the message.
REFUSED = {
    "a date and a time of day": (
        lambda frame: frame.drop("timestamp").with_columns(date=pl.lit("2020-01-02"), time=pl.lit("10:20:30")),
        "looks like times of day",
    ),
    "two likely times": (
        lambda frame: frame.rename({"timestamp": "clicked_at"}).with_columns(viewed_at=pl.col("clicked_at")),
        "several columns may hold the times",
    ),
    "bytes of text and of UUIDs": (
        lambda frame: frame.with_columns(
            pl.Series("user_id", [b"0123456789abcdef"] * 300 + [uuid.UUID(int=n << 64).bytes for n in range(300)])
        ),
        "text or UUIDs",
    ),
    "times written in different ways": (
        lambda frame: frame.with_columns(
            pl.Series("timestamp", ["1600000000"] * 300 + ["1600000000.5"] * 300)
        ),
        "written in different ways",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_blocks_do_not_tell_is_refused(tmp_path, rng, kind):
    change, message = REFUSED[kind]
    log = save(cut(change(frame_of(rng))), tmp_path / "log")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        locally(log, tmp_path / "local", PrepareConfig(), {})
    with pytest.raises(InputError, match=message) as found:
        by_blocks(log, tmp_path / "blocks", PrepareConfig(), {})
    assert "\n" not in str(found.value)
    assert "--engine local" in str(found.value) or "--timestamp" in str(found.value)


@pytest.mark.parametrize("rows", [1, 2, 65_535, 65_536, 65_537, 200_000])
def test_parts_of_an_array_have_the_checksums_of_the_whole(tmp_path, rng, rows):
    from seqrec.data.mapped import checksums_of, make_array, pieces_of, write_array, write_rows

    array = rng.integers(0, 1000, rows).astype(np.int32)
    expected = write_array(tmp_path / "whole.npy", array)
    make_array(tmp_path / "parts.npy", np.int32, rows)
    edges = np.unique(np.concatenate([[0, rows], rng.integers(0, rows, 5)])).tolist()
    known = {}
    for a, b in pairwise(edges):
        known |= write_rows(tmp_path / "parts.npy", a, array[a:b])
    assert checksums_of(tmp_path / "parts.npy", known) == expected
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert b"".join(pieces_of(tmp_path / "parts.npy")) == array.tobytes()
