"""Who is asked for: ids of any kind, times of histories, what the filters dropped, blocks, forks and threads."""

import json
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from forging import put

from seqrec import Dataset, InputError, PrepareConfig, Recommender, UnknownIdWarning, prepare
from seqrec.cli.app import main
from seqrec.errors import MissingTimesWarning

pytestmark = pytest.mark.usefixtures("few_constants")

SMALL: dict[str, Any] = {"embedding_dim": 8, "max_length": 5, "epochs": 1, "batch_size": 40, "threads": 1,
                         "evaluate_every": 0}  # fmt: skip


def log() -> pl.DataFrame:
    """40 people, 3 to 8 items each of 15, hours or days apart, and a rating."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(40):
        now = 1_600_000_000 + int(random.integers(10**6))
        for item in random.permutation(15)[: 3 + user % 6]:
            now += int(random.choice([600, 90_000, 2_000_000]))
            rows.append((f"u{user}", f"i{item}", now, int(random.integers(1, 6))))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")


@pytest.fixture(scope="module", params=["sasrec", "tisasrec", "slirec", "hstu"])
def fitted(request: pytest.FixtureRequest) -> Recommender:
    return Recommender(request.param, **SMALL).fit(log())


@pytest.fixture(scope="module")
def plain() -> Recommender:
    return Recommender(**SMALL).fit(log())


def close(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """The same lists; other people asked for with somebody may change the last bit of a score."""
    columns = ["user_id", "item_id", "rank"]
    return one[columns].equals(other[columns]) and np.allclose(one["score"], other["score"], atol=1e-5)


def lists(column: str) -> dict[str, list[Any]]:
    """A column of the log by user."""
    return {user: part[column].to_list() for (user,), part in log().group_by("user_id", maintain_order=True)}


def test_times_of_histories_give_what_the_users_of_the_log_get(fitted: Recommender, tmp_path: Path) -> None:
    wanted = fitted.recommend(k=4).sort("user_id", "rank")
    shuffled = log().sample(fraction=1, shuffle=True, seed=1)
    shuffled.write_csv(tmp_path / "log.csv")
    items, times = lists("item_id"), lists("timestamp")
    backwards = {user: times[user][::-1] for user in reversed(times)}
    dates = {user: [datetime.fromtimestamp(one, UTC) for one in part] for user, part in times.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in (
            {"histories": shuffled},
            {"histories": tmp_path / "log.csv"},
            {"histories": items, "times": times},
            {"histories": {user: part[::-1] for user, part in items.items()}, "times": backwards},
            {"histories": items, "times": dates},
            {"histories": items, "times": {user: [1000 * one for one in part] for user, part in times.items()}},
        ):
            assert close(fitted.recommend(**asked, k=4).sort("user_id", "rank"), wanted)
        found = fitted.recommend(histories=list(items.values()), times=list(times.values()), k=4)
    names = pl.Series(list(items)).gather(found["user_id"])
    assert close(found.with_columns(user_id=names).sort("user_id", "rank"), wanted)


def test_a_model_that_knows_time_warns_where_it_gets_none(fitted: Recommender, tmp_path: Path) -> None:
    items = list(lists("item_id").values())
    table = pl.DataFrame({"user_id": ["a", "a"], "item_id": ["i1", "i2"]})
    for histories in (items, dict(enumerate(items)), table):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitted.recommend(histories=histories, k=2)
        said = [w for w in caught if w.category is MissingTimesWarning]
        assert len(said) == fitted.model.USES_TIMES
        assert all("give times (--times)" in str(w.message) and w.filename == __file__ for w in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.recommend(histories=[["i1"], ["i2"]], k=2)  # nothing lies between one item and none


def test_times_go_with_items_that_are_left_out(fitted: Recommender) -> None:
    with pytest.warns(UnknownIdWarning, match="left out of the histories: zz, yy"):
        found = fitted.recommend(histories=[["zz", "i1", "yy", "i2"]], times=[[5, 10**6, 10**7, 3 * 10**7]], k=3)
    assert found.equals(fitted.recommend(histories=[["i1", "i2"]], times=[[10**6, 3 * 10**7]], k=3))
    # Equal times keep their order.
    tied = fitted.recommend(histories=[["i3", "i1", "i2"]], times=[[9, 7, 7]], k=3)
    assert tied.equals(fitted.recommend(histories=[["i1", "i2", "i3"]], times=[[7, 7, 9]], k=3))
    with pytest.warns(UnknownIdWarning, match="histories: None"):
        found = fitted.recommend(histories=[["i1", None, "i2"], np.array(["i3"])], times=[[1, 2, 3], [4]], k=3)
    assert found.height == 6


def test_times_of_another_kind_than_those_of_the_log_warn(fitted: Recommender) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.recommend(histories=[["i1", "i2"]], times=[[20200913, 20200914]], k=3)
    said = [w for w in caught if w.category is MissingTimesWarning]
    assert len(said) == fitted.model.USES_TIMES
    assert all("lie before 1980" in str(w.message) for w in said)


TIMES: list[tuple[dict[str, Any], str]] = [
    ({"histories": [["i1", "i2"]], "times": [[1]]}, "history 1 has 2 items and 1 times"),
    ({"histories": [["i1"]], "times": [[1], [2]]}, "times for 2 histories"),
    ({"histories": {"a": ["i1"]}, "times": [[1]]}, "need the same names"),
    ({"histories": {"a": ["i1"]}, "times": {"b": [1]}}, "need the same names"),
    ({"histories": [["i1"]], "times": [["x"]]}, "'x' is not a time"),
    ({"histories": [["i1"]], "times": 5}, "one per history"),
    ({"histories": pl.DataFrame({"user_id": [1], "item_id": ["i1"]}), "times": [[1]]}, "into a column"),
    ({"users": ["u1"], "times": [[1]]}, "give histories too"),
]


@pytest.mark.parametrize(("asked", "said"), TIMES)
def test_times_that_do_not_fit_are_one_line(fitted: Recommender, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        fitted.recommend(**asked, k=2)
    assert "\n" not in str(caught.value)


def test_times_for_a_model_of_a_log_without() -> None:
    recommender = Recommender("tisasrec", **SMALL).fit(log().drop("timestamp"))
    with pytest.warns(MissingTimesWarning, match="only set their order"):
        found = recommender.recommend(histories=[["i2", "i1"]], times=[[10**6, 5]], k=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.equals(recommender.recommend(histories=[["i1", "i2"]], k=3))


def test_times_on_the_command_line(fitted: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    fitted.save(run)
    wanted = fitted.recommend(histories=[["i1", "i2"]], times=[[1_600_000_000, 1_600_009_000]], k=3)
    asked = ["recommend", run, "-k", "3", "--format", "csv", "--history", "i2", "i1", "--times"]
    for times in (["1600009000", "1600000000"], ["2020-09-13T14:56:40", "2020-09-13T12:26:40Z"]):
        assert main([*asked, *times]) == 0
        out, errors = capsys.readouterr()
        assert out == wanted.write_csv()
        assert errors == ""
    assert main([*asked, "5"]) == 2
    assert "history 1 has 2 items and 1 times" in capsys.readouterr().err
    assert main(["recommend", run, "--users", "u1", "--times", "5"]) == 2
    assert "give both" in capsys.readouterr().err
    assert main(asked[:-1]) == 0
    assert ("give times (--times)" in capsys.readouterr().err) == fitted.model.USES_TIMES


@pytest.mark.parametrize("pointed", [False, True])
def test_integer_ids_however_they_are_written(pointed: bool) -> None:
    frame = log().with_columns(pl.col("user_id").str.slice(1), pl.col("item_id").str.slice(1))
    if pointed:  # as pandas writes integers after a join; beside a word, so that they stay text
        frame = frame.with_columns(pl.col("user_id") + ".0", pl.concat_str("item_id", pl.lit(".0")))
        frame = frame.extend(frame.head(4).with_columns(user_id=pl.lit("x")))
    else:
        frame = frame.with_columns(pl.col("user_id", "item_id").cast(pl.Int64))
    recommender = Recommender("markov").fit(frame)
    wanted = recommender.recommend(users=["12", "7"], k=3)
    mine = recommender.recommend(histories=[["3", "4"]], k=3, deny=["5"], allow=["1", "2", "5"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for users in ([12, 7], [12.0, 7.0], ["12.0", 7], pd.Series([12.0, 7.0]), pl.Series([12.0, 7.0]), (12, "7.0")):
            assert recommender.recommend(users=users, k=3)["item_id"].equals(wanted["item_id"])
        for item in (float, int, "{}.0".format):
            found = recommender.recommend(
                histories=[[item(3), item(4)]], k=3, deny=[item(5)], allow=(item(one) for one in (1, 2, 5))
            )
            assert found.equals(mine)
        for single in (12, 12.0, np.array(12), np.float64(12), "12", np.int32(12)):
            assert recommender.recommend(users=single, k=3)["item_id"].equals(wanted["item_id"].head(3))
    with pytest.warns(UnknownIdWarning, match=r"unknown users .not in the log, or filtered out.*: None"):
        recommender.recommend(users=pd.Series([12, None], dtype="Int64"), k=3)


def test_frames_are_no_users(fitted: Recommender) -> None:
    frame = log()[["user_id"]]
    for users in (frame, frame.to_pandas(), frame.to_arrow(), frame.lazy()):
        for asked in ({"users": users}, {"users": ["u1"], "deny": users}, {"users": ["u1"], "allow": users}):
            with pytest.raises(InputError, match="give one column of it"):
                fitted.recommend(**asked, k=2)


def rated() -> tuple[pl.DataFrame, Recommender]:
    frame = log()
    return frame, Recommender("popularity", min_rating=3, min_user_interactions=2).fit(frame)


def test_what_the_minimum_rating_drops_counts_as_met(tmp_path: Path) -> None:
    frame, recommender = rated()
    recommender.save(tmp_path / "run")
    recommender.dataset.save(tmp_path / "data")
    saved = Dataset.load(tmp_path / "data")
    dataset = recommender.dataset
    assert dataset.met_items is not None
    assert saved.met_items is not None
    assert isinstance(saved.met_items, np.memmap)
    np.testing.assert_array_equal(saved.met_items, dataset.met_items)
    np.testing.assert_array_equal(saved.met_offsets, dataset.met_offsets)
    pairs = frame.filter(
        pl.col("rating") < 3,
        *(pl.col(f"{name}_id").is_in(getattr(dataset, f"{name}_ids").to_list()) for name in ("user", "item")),
    )
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.met_offsets))
    found = zip(dataset.user_ids.gather(users), dataset.item_ids.gather(dataset.met_items - 1), strict=True)
    assert sorted(found) == sorted(pairs[["user_id", "item_id"]].unique().rows())
    for one in (recommender, Recommender.load(tmp_path / "run"), Recommender("popularity").fit(saved)):
        given = one.recommend(k=len(dataset.item_ids))
        assert given.join(frame, on=["user_id", "item_id"]).height == 0
        assert given.height == sum(
            dataset.num_items - part["item_id"].is_in(dataset.item_ids.to_list()).sum()
            for (user,), part in frame.group_by("user_id")
            if user in dataset.user_ids
        )
        kept = one.recommend(k=len(dataset.item_ids), keep_seen=True)
        assert kept.height == dataset.num_items * dataset.num_users
    assert recommender.evaluate().metrics == Recommender.load(tmp_path / "run").evaluate().metrics


def test_without_dropped_ratings_nothing_is_kept_of_them(tmp_path: Path) -> None:
    for config in (PrepareConfig(min_rating=1), PrepareConfig(duplicates="drop", min_user_interactions=4)):
        dataset = prepare(log(), config)
        assert dataset.met_items is None
        assert dataset.met_offsets is None
        dataset.save(tmp_path / "data")
        assert not any("met" in path.name for path in (tmp_path / "data").iterdir())
    Recommender("popularity").fit(log(), tmp_path / "run")
    assert not list((tmp_path / "run/data").glob("met*"))


def test_dropped_ratings_that_are_damaged_are_one_line(tmp_path: Path) -> None:
    _, recommender = rated()
    recommender.save(tmp_path / "run")
    recommender.dataset.save(tmp_path / "data")
    for items in (np.array([99], dtype=np.int32), np.zeros(3), np.array([[1]], dtype=np.int32)):
        put(tmp_path / "run/data", "met_items", items)
        with pytest.raises(InputError) as caught:
            Recommender.load(tmp_path / "run").recommend(k=2)
        assert "\n" not in str(caught.value)
        put(tmp_path / "data", "met_items", items)
        with pytest.raises(InputError, match="prepare it again"):
            Dataset.load(tmp_path / "data").check()


def test_what_was_met_goes_with_allow_and_deny() -> None:
    frame, recommender = rated()
    dataset = recommender.dataset
    allow, deny = dataset.item_ids.to_list()[::2], dataset.item_ids.to_list()[::4]
    met = {user: set(part["item_id"]) for (user,), part in frame.group_by("user_id")}
    users = ["nobody", *dataset.user_ids[::-1]]
    with pytest.warns(UnknownIdWarning, match="nobody"):
        found = recommender.recommend(users=users, k=len(dataset.item_ids), allow=iter(allow), deny=iter(deny))
    given = {user: set(part["item_id"]) for (user,), part in found.group_by("user_id")}
    assert given == {user: left for user in users if (left := set(allow) - set(deny) - met.get(user, set()))}


def test_blocks_of_any_size_give_the_same_bits(fitted: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", 9)
    for asked in ({}, {"users": ["u3", "u1", "u2"]}, {"histories": list(lists("item_id").values())}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = fitted.recommend(**asked, k=5)
            for size in (1, 7, 9, 13, 1000):
                assert pl.concat(list(fitted.recommend_batches(**asked, k=5, batch_size=size))).equals(wanted)
    for size in (0, 1.5, True, "2"):
        with pytest.raises(InputError, match="batch_size is"):
            fitted.recommend_batches(k=5, batch_size=size)  # type: ignore[arg-type]


def test_many_threads_ask_one_recommender(fitted: Recommender) -> None:
    wanted = fitted.recommend(k=5)

    def ask(number: int) -> bool:
        if number % 2:
            return fitted.recommend(k=5).equals(wanted)
        users = [f"u{number}", "u1"]
        return close(fitted.recommend(users=users[1:], k=5), wanted.filter(pl.col("user_id") == "u1"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(24)))


@pytest.mark.slow_but_one
@pytest.mark.parametrize("whence", ["fit", "load", "just loaded"])
def test_a_forked_process_works(
    plain: Recommender, tmp_path: Path, two_threads: None, in_a_fork: Any, whence: str
) -> None:
    del two_threads
    log().sort("user_id", "item_id").join(log(), on="user_id")  # polars' threads are there
    (torch.ones(400, 400) @ torch.ones(400, 400)).tanh()  # and those of torch
    recommender = plain
    if whence != "fit":
        plain.save(tmp_path / "run")
        recommender = Recommender.load(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        everybody = recommender.recommend(k=3)
        works: list[Callable[[], Any]] = [
            lambda: recommender.recommend(k=3).rows(),
            lambda: recommender.recommend(users=["u1", "nobody", "u2"], k=3).to_dicts(),
            lambda: recommender.recommend(users=np.array(["u1"]), k=3, allow=["i1", "i2", "zz"], deny=["i2"]).rows(),
            lambda: recommender.recommend(histories=[["i1", "zz", "i2"], ["i3"], []], k=3).rows(),
            lambda: recommender.recommend(histories={"a": ["i1", "i2"]}, times={"a": [1, 10**6]}, k=3).rows(),
            lambda: [frame.rows() for frame in recommender.recommend_batches(k=3, batch_size=7)],
            lambda: recommender.evaluate().metrics,
            lambda: recommender.evaluate("sampled", negatives=5).metrics,
            lambda: recommender.similar(["i1", "zz"], k=3).rows(),
        ]
        for work in works:
            if whence == "just loaded":  # the other process is the first to read what this one opened
                recommender = Recommender.load(tmp_path / "run")
            found = in_a_fork(work)
            wanted = json.loads(json.dumps(work()))
            assert json.dumps(found) == json.dumps(wanted) or np.allclose(numbers(found), numbers(wanted), atol=1e-5)
        assert everybody.equals(recommender.recommend(k=3))
    assert in_a_fork(torch.get_num_threads) == 1


def numbers(values: Any) -> list[float]:
    """All numbers in what JSON has."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return [number for value in values for number in numbers(value)]
    return [values] if isinstance(values, int | float) else []


def test_what_a_forked_process_cannot_do_is_one_line(
    plain: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_fork: Any
) -> None:
    monkeypatch.setattr("seqrec.device._PATIENCE", 0.2)
    log().sort("user_id", "item_id").join(log(), on="user_id")
    plain.save(tmp_path / "run")

    def refused() -> list[str]:
        said = []
        for work in (
            lambda: plain.recommend(histories=log(), k=2),
            lambda: plain.recommend_to(tmp_path / "out.csv", k=2),
            lambda: plain.save(tmp_path / "again"),
            lambda: Recommender.load(tmp_path / "run"),
            lambda: Recommender("markov").fit(log()),
        ):
            try:
                work()
            except InputError as error:
                said.append(str(error))
        return said

    said = in_a_fork(refused)
    assert len(said) == 5
    assert all("start the process with spawn" in line and "\n" not in line for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def first_row(recommender: Recommender, user: str) -> list[Any]:
    return recommender.recommend(users=[user], k=1).rows()


@pytest.mark.parametrize("loaded", [False, True])
def test_a_pool_of_forked_workers(plain: Recommender, tmp_path: Path, loaded: bool) -> None:
    plain.save(tmp_path / "run")
    one = Recommender.load(tmp_path / "run") if loaded else plain
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap_async(first_row, [(one, f"u{user}") for user in range(6)]).get(timeout=60)
    assert [rows[0][0] for rows in found] == [f"u{user}" for user in range(6)]
