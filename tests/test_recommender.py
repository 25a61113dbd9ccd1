"""``Recommender``: its input, its results, and its warnings about unknown ids."""

import io
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from seqrec import MODELS, InputError, Recommender, Run, SASRec, TrainingWarning, UnknownIdWarning, prepare
from seqrec.data.batches import pack
from seqrec.data.split import all_histories
from seqrec.ranking.topk import best, best_of

pytestmark = pytest.mark.usefixtures("few_constants")

OPTIONS: dict[str, Any] = {"embedding_dim": 8, "num_blocks": 1, "max_length": 5, "epochs": 3, "batch_size": 8,
                           "learning_rate": 0.01, "feedforward_dims": (6,)}  # fmt: skip
ITEMS = 15


def log(text: bool = True) -> pl.DataFrame:
    """30 users with 4 to 9 of 15 items each. Everybody has item 0, so it is the most popular."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(30):
        items = [0, *(1 + random.permutation(ITEMS - 1)[: 3 + user % 6]).tolist()]
        rows += [(user + 100, item + 500, step) for step, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    if text:
        frame = frame.with_columns(
            pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id")
        )
    return frame


@pytest.fixture(scope="module")
def fitted() -> Recommender:
    return Recommender(**OPTIONS).fit(log())


@pytest.fixture(scope="module")
def numbered() -> Recommender:
    return Recommender(**OPTIONS).fit(log(text=False))


@pytest.fixture(scope="module", params=["markov", "popularity", "recent-popularity"])
def counted(request: pytest.FixtureRequest) -> Recommender:
    return Recommender(request.param).fit(log())


def history(user: str) -> list[str]:
    return log().filter(pl.col("user_id") == user)["item_id"].to_list()


def naive(recommender: Recommender, row: int, k: int, seen: bool = False) -> tuple[list[Any], list[float]]:
    """The recommendations for one user, by sorting the whole catalogue."""
    model, dataset = recommender.model, recommender.dataset
    one = all_histories(dataset).take(np.array([row]))
    with torch.no_grad():
        batch = pack(one, model.config.max_length)
        scores = model.score(model.encode(batch)[batch.last])[0].double().numpy().copy()
    scores[0] = -np.inf
    if not seen:
        scores[dataset.items[one.starts[0] : one.ends[0]]] = -np.inf
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > -np.inf][:k]
    return dataset.item_ids.gather(order - 1).to_list(), scores[order].tolist()


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Check that lists are equal. Scores may differ in the last bits, because rounding depends on batch shapes."""
    columns = ["user_id", "item_id", "rank"]
    return one[columns].equals(other[columns]) and np.allclose(one["score"], other["score"], atol=1e-5)


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "arrow", "csv", "parquet", "dataset"])
def test_takes_a_log_in_any_form(fitted: Recommender, tmp_path: Path, kind: str) -> None:
    frame = log()
    frame.write_csv(tmp_path / "log.csv")
    frame.write_parquet(tmp_path / "log.parquet")
    given = {
        "polars": frame, "lazy": frame.lazy(), "pandas": frame.to_pandas(), "arrow": frame.to_arrow(),
        "csv": str(tmp_path / "log.csv"), "parquet": tmp_path / "log.parquet", "dataset": prepare(frame),
    }[kind]  # fmt: skip
    recommender = Recommender(**OPTIONS)
    assert recommender.fit(given) is recommender
    assert recommender.recommend(k=3).equals(fitted.recommend(k=3))
    assert isinstance(recommender.model, SASRec)


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("k", [1, 4, ITEMS])
def test_equals_brute_force(numbered: Recommender, k: int, keep_seen: bool) -> None:
    found = numbered.recommend(k=k, keep_seen=keep_seen)
    assert found.columns == ["user_id", "item_id", "score", "rank"]
    assert found.dtypes == [pl.Int64, pl.Int64, pl.Float32, pl.Int64]
    assert found["user_id"].unique(maintain_order=True).equals(numbered.dataset.user_ids)
    for row, (_, part) in enumerate(found.group_by("user_id", maintain_order=True)):
        items, scores = naive(numbered, row, k, keep_seen)
        assert part["item_id"].to_list() == items
        assert part["score"].to_list() == pytest.approx(scores, abs=1e-5)
        assert part["rank"].to_list() == list(range(1, len(items) + 1))


def test_counted_models_equal_brute_force(counted: Recommender) -> None:
    for row, (_, part) in enumerate(counted.recommend(k=5).group_by("user_id", maintain_order=True)):
        items, scores = naive(counted, row, 5)
        assert part["item_id"].to_list() == items
        assert part["score"].to_list() == pytest.approx(scores, abs=1e-4)


def test_users_in_any_form(numbered: Recommender) -> None:
    wanted = numbered.recommend(users=[103, 101], k=2)
    assert wanted["user_id"].to_list() == [103, 103, 101, 101]
    every = numbered.recommend(k=2)
    assert same(wanted.filter(pl.col("user_id") == 101), every.filter(pl.col("user_id") == 101))
    forms = [(103, 101), np.array([103, 101]), pl.Series("x", [103, 101]), iter([103, 101]), [103.0, 101.0],
             pl.Series([103, 101], dtype=pl.Int16)]  # fmt: skip
    for users in [*forms, ["103", "101"], [103, "101"], np.array(["103", "101"])]:
        assert numbered.recommend(users=users, k=2)["item_id"].to_list() == wanted["item_id"].to_list()
    for user in (103, "103", np.int64(103)):
        assert numbered.recommend(users=user, k=2)["item_id"].to_list() == wanted["item_id"].to_list()[:2]
    nobody = numbered.recommend(users=[], k=2)
    assert nobody.height == 0
    assert nobody.schema == wanted.schema


def test_a_user_may_be_asked_for_twice(fitted: Recommender) -> None:
    found = fitted.recommend(users=["u101", "u100", "u101"], k=2)
    assert found["user_id"].to_list() == ["u101", "u101", "u100", "u100", "u101", "u101"]
    assert found["item_id"].to_list()[:2] == found["item_id"].to_list()[4:]


def test_histories_in_any_form(fitted: Recommender) -> None:
    mine = [["i503", "i501"], ["i502"]]
    wanted = fitted.recommend(histories=mine, k=3)
    assert wanted["user_id"].to_list() == [0, 0, 0, 1, 1, 1]
    forms = [
        tuple(map(tuple, mine)),
        map(iter, mine),
        ((item for item in one) for one in mine),
        [np.array(one) for one in mine],
        [np.array(one, dtype=object) for one in mine],
        [pl.Series(one) for one in mine],
        pl.Series(mine),
        {7: mine[0], 9: mine[1]}.values(),
    ]
    for histories in forms:
        assert fitted.recommend(histories=histories, k=3).equals(wanted)
    named = fitted.recommend(histories={"anna": mine[0], "bob": iter(mine[1])}, k=3)
    assert named["user_id"].to_list() == ["anna"] * 3 + ["bob"] * 3
    assert named.drop("user_id").equals(wanted.drop("user_id"))


def test_histories_as_a_table(fitted: Recommender) -> None:
    wanted = fitted.recommend(histories={"a": ["i503", "i501"], "b": ["i502"]}, k=3)
    frame = pl.DataFrame({"user_id": ["b", "a", "a"], "item_id": ["i502", "i501", "i503"], "timestamp": [5, 2, 1]})
    for table in (frame, frame.to_pandas(), frame.to_arrow(), frame.lazy()):
        assert fitted.recommend(histories=table, k=3).equals(wanted)


def test_histories_as_a_file(fitted: Recommender, tmp_path: Path) -> None:
    log().write_csv(tmp_path / "log.csv")
    wanted = fitted.recommend(k=3)
    assert same(fitted.recommend(histories=tmp_path / "log.csv", k=3), wanted)
    assert same(fitted.recommend(histories=str(tmp_path / "log.csv"), k=3), wanted)


def test_ids_of_histories_as_numbers_or_text(numbered: Recommender) -> None:
    wanted = numbered.recommend(histories=[[503, 501], [502]], k=3)
    for histories in (
        [["503", "501"], ["502"]],
        [["503", 501], [502.0]],
        [[503, 501], ["502"]],
        np.array([[503, 501]]),
    ):
        assert same(numbered.recommend(histories=histories, k=3), wanted.head(3 * len(histories)))
    assert numbered.recommend(histories=np.array([[503, 501], [502, 502]]), k=3).height == 6


def test_a_known_history_equals_the_user(fitted: Recommender) -> None:
    people = ["u104", "u109", "u111"]
    wanted = fitted.recommend(users=people, k=4)
    assert same(fitted.recommend(histories={user: history(user) for user in people}, k=4), wanted)


def test_new_interactions_count_at_once(fitted: Recommender) -> None:
    before = fitted.recommend(histories=[history("u104")], k=4)
    new = before["item_id"][0]
    after = fitted.recommend(histories=[[*history("u104"), new]], k=4)
    assert new not in after["item_id"].to_list()
    assert not np.allclose(before["score"], after["score"])
    assert fitted.recommend(histories=[history("u104")[::-1]], k=4)["score"].to_list() != before["score"].to_list()


@pytest.mark.parametrize(
    "histories",
    ["", "i501", b"i501", [["i501"], "i502"], ["i501", "i502"], [501, 502], [None], 5, [["i501"], b"i502"]],
)
def test_what_is_no_history(fitted: Recommender, histories: Any) -> None:
    with pytest.raises(InputError) as caught:
        fitted.recommend(histories=histories, k=2)
    assert "\n" not in str(caught.value)


def test_nobody_is_an_empty_table(fitted: Recommender) -> None:
    for histories in ([], {}, iter([])):
        found = fitted.recommend(histories=histories, k=2)
        assert found.height == 0
        assert found["item_id"].dtype == pl.String


SILENT = [[[]], [[], ["i501"]], [["i501"], []], {"a": [], "b": ["i501"]}, [["zz"], ["i501"]]]


@pytest.mark.filterwarnings("ignore:unknown items are left out")
@pytest.mark.parametrize("histories", SILENT)
def test_of_whom_nothing_is_known(fitted: Recommender, histories: Any) -> None:
    with pytest.warns(UnknownIdWarning, match="most popular"):
        found = fitted.recommend(histories=histories, k=3)
    counts = log()["item_id"].value_counts(sort=True)
    lists = [part["item_id"].to_list() for _, part in found.group_by("user_id", maintain_order=True)]
    popular = [items for items in lists if items[0] == "i500"]
    assert len(lists) == len(histories)
    assert len(popular) == 1
    found_counts = [counts.filter(pl.col("item_id") == item)["count"].item() for item in popular[0]]
    assert found_counts == counts["count"].head(3).to_list()
    with pytest.raises(InputError, match=r"empty|unknown"):
        fitted.recommend(histories=histories, k=3, strict=True)


def test_unknown_users(fitted: Recommender, numbered: Recommender) -> None:
    with pytest.warns(UnknownIdWarning, match="nobody") as caught:
        found = fitted.recommend(users=["u101", "nobody", "u102"], k=3)
    assert caught[0].filename == __file__  # the warning points to the line of the caller
    assert found["user_id"].to_list() == ["u101"] * 3 + ["nobody"] * 3 + ["u102"] * 3
    assert found["item_id"][3] == "i500"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = fitted.recommend(users=["u101", "u102"], k=3)
    assert same(found.filter(pl.col("user_id") != "nobody"), known)
    with pytest.raises(InputError, match="unknown users: nobody"):
        fitted.recommend(users=["u101", "nobody"], k=3, strict=True)
    for users in ([7, 101], ["x", "101"], [None, 101], [1.5, 101.0]):
        with pytest.warns(UnknownIdWarning, match="unknown users"):
            assert numbered.recommend(users=users, k=1)["item_id"][0] == 500
    with pytest.warns(UnknownIdWarning, match="a0, a1, a2, a3, a4 and 3 more"):
        fitted.recommend(users=[f"a{number}" for number in range(8)], k=1)


def test_unknown_items_of_a_history(fitted: Recommender) -> None:
    wanted = fitted.recommend(histories=[["i501", "i502"]], k=3)
    with pytest.warns(UnknownIdWarning, match="left out of the histories: zz"):
        found = fitted.recommend(histories=[["i501", "zz", "i502", "zz"]], k=3)
    assert found.equals(wanted)
    with pytest.raises(InputError, match="unknown items in a history: zz"):
        fitted.recommend(histories=[["i501", "zz"]], k=3, strict=True)


def test_allow_and_deny(fitted: Recommender) -> None:
    full = fitted.recommend(users=["u102"], k=ITEMS)
    best = full["item_id"].to_list()
    chosen = [best[4], best[1], best[2]]
    found = fitted.recommend(users=["u102"], k=3, allow=chosen)
    assert found["item_id"].to_list() == [best[1], best[2], best[4]]
    assert found["score"].to_list() == pytest.approx([full["score"][place] for place in (1, 2, 4)], abs=1e-5)
    assert fitted.recommend(users=["u102"], k=2, deny=best[:2])["item_id"].to_list() == best[2:4]
    both = fitted.recommend(users=["u102"], k=3, allow=iter(chosen), deny={best[1]})
    assert both["item_id"].to_list() == [best[2], best[4]]
    seen = history("u102")
    assert fitted.recommend(users=["u102"], k=3, allow=seen).height == 0
    assert set(fitted.recommend(users=["u102"], k=9, allow=seen, keep_seen=True)["item_id"]) == set(seen)
    assert fitted.recommend(users=["u102"], k=3, allow=[]).height == 0
    assert fitted.recommend(users=["u102"], k=3, allow=best[0])["item_id"].to_list() == [best[0]]
    assert fitted.recommend(users=["u102"], k=3, deny=fitted.dataset.item_ids).schema == full.schema
    with pytest.warns(UnknownIdWarning, match=r"unknown items \(allow\).*zz"):
        assert fitted.recommend(users=["u102"], k=2, allow=[best[1], "zz"])["item_id"].to_list() == [best[1]]
    for name in ("allow", "deny"):
        with pytest.raises(InputError, match=rf"unknown items \({name}\): zz"):
            fitted.recommend(users=["u102"], k=2, strict=True, **{name: ["zz"]})
    with pytest.warns(UnknownIdWarning):
        found = fitted.recommend(users=["nobody"], k=3, allow=["i507", "i500"], deny=["i500"])
    assert found["item_id"].to_list() == ["i507"]


def test_fewer_where_fewer_are_left(fitted: Recommender) -> None:
    found = fitted.recommend(k=ITEMS)
    heights = {user: part.height for (user,), part in found.group_by("user_id")}
    lengths = {user: ITEMS - part["item_id"].n_unique() for (user,), part in log().group_by("user_id")}
    assert heights == lengths


def at_once(recommender: Recommender, k: int) -> pl.DataFrame:
    """The recommendations for all users in one call, as one table."""
    dataset = recommender.dataset
    items, scores = best(recommender.model, all_histories(dataset), k)
    row, rank = np.nonzero(items)
    ids = {"user_id": dataset.user_ids.gather(row), "item_id": dataset.item_ids.gather(items[row, rank] - 1)}
    return pl.DataFrame({**ids, "score": scores[row, rank], "rank": rank + 1})


@pytest.mark.slow_but_one
@pytest.mark.parametrize("model", MODELS)
def test_blocks_change_nothing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Recommender(model, **{} if MODELS[model].COUNTED else {"epochs": 1}).fit(log())
    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", 4)  # 30 users: complete groups and a rest
    wanted = at_once(recommender, 5)
    assert recommender.recommend(k=5).equals(wanted)
    for size, heights in ((8, [8, 8, 8, 6]), (7, [7, 7, 7, 7, 2]), (1, [1] * 30), (31, [30])):
        frames = list(recommender.recommend_batches(k=5, batch_size=size))
        assert [frame["user_id"].n_unique() for frame in frames] == heights
        assert {(*frame.schema.items(),) for frame in frames} == {(*wanted.schema.items(),)}
        assert pl.concat(frames).equals(wanted)
    recommender.recommend_to(tmp_path / "out.parquet", k=5, batch_size=8)
    assert pl.read_parquet(tmp_path / "out.parquet").equals(wanted)
    for kind in ("csv", "jsonl"):
        recommender.recommend_to(tmp_path / f"out.{kind}", k=5, batch_size=8)
    assert (tmp_path / "out.csv").read_text() == wanted.write_csv()
    assert (tmp_path / "out.jsonl").read_text() == wanted.write_ndjson()


ASKED: list[dict[str, Any]] = [
    {"users": ["u103", "nobody", "u101", "u103", "no one"], "k": 3},
    {"users": ["nobody"], "k": 3, "deny": ["i500"]},
    {"users": [], "k": 3},
    {"histories": {}, "k": 2},
    {"histories": [["i503"], [], ["i501", "zz"]], "k": 3, "allow": ["i500", "i507", "yy"]},
    {"histories": {"ann": ["i503"], "bob": ["i502"]}, "k": 15, "keep_seen": True},
    {"k": 3, "allow": ["i500"]},
]


@pytest.mark.parametrize("asked", ASKED)
def test_all_that_can_be_asked_comes_in_blocks(fitted: Recommender, tmp_path: Path, asked: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as wanted_warnings:
        warnings.simplefilter("always")
        wanted = fitted.recommend(**asked)
    with warnings.catch_warnings(record=True) as found_warnings:
        warnings.simplefilter("always")
        fitted.recommend_to(tmp_path / "out.parquet", **asked, batch_size=2)
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found.schema == wanted.schema
    assert same(found, wanted)
    # One warning, which points to the line of the caller.
    assert [str(w.message) for w in found_warnings] == [str(w.message) for w in wanted_warnings]
    assert {w.filename for w in (*found_warnings, *wanted_warnings)} <= {__file__}


def test_a_block_is_made_when_it_is_asked_for(fitted: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counts(catalogue: Any, people: Any, *more: Any, **options: Any) -> Any:
        sizes.append(len(people))
        return best_of(catalogue, people, *more, **options)

    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", 12)
    monkeypatch.setattr("seqrec.predictor.best_of", counts)
    frames = fitted.recommend_batches(k=2, batch_size=12, progress=True)
    assert sizes == []
    assert next(frames).height == 24
    assert sizes == [12]
    frames.close()
    assert sizes == [12]
    with pytest.raises(InputError, match="batch_size is 0"):
        fitted.recommend_batches(batch_size=0)
    with pytest.raises(InputError, match="unknown users: zz"):
        fitted.recommend_batches(users=["zz"], strict=True)  # raises at the call, not at the first frame


def test_a_failure_midway_leaves_no_file(
    fitted: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(catalogue: Any, people: Any, *more: Any, **options: Any) -> Any:
        if people.users[0] >= 10:
            raise InputError("the model gives scores that are not numbers")
        return best_of(catalogue, people, *more, **options)

    monkeypatch.setattr("seqrec.ranking.scoring.USERS_AT_ONCE", 10)
    monkeypatch.setattr("seqrec.predictor.best_of", fails)
    for name in ("out.parquet", "out.csv", "out.jsonl"):
        with pytest.raises(InputError, match="not numbers"):
            fitted.recommend_to(tmp_path / name, batch_size=10, progress=True)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")  # the bar appears only on terminals
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    fitted.recommend_to(tmp_path / "out.csv", users=["u101"], progress=True)
    out, errors = capsys.readouterr()
    assert out == ""
    assert "recommending" in errors


@pytest.mark.parametrize("given", ["path", "frame"])
def test_the_log_is_gone_while_the_model_trains(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    read, alive = [log()], []
    frame = weakref.ref(read[0])
    monkeypatch.setattr(
        "seqrec.data.prepare.read_log_with_summary",
        lambda log, **_: (read.pop() if given == "path" else log, None),
    )
    recommender = Recommender(**OPTIONS)
    recommender.fit(
        "log.csv" if given == "path" else read.pop(), stop=lambda: alive.append(frame() is not None) or False
    )
    assert alive
    assert not any(alive)


@pytest.mark.parametrize("k", [0, -1, ITEMS + 1, 2.5, True, "3", None])
def test_k_out_of_range(fitted: Recommender, k: Any) -> None:
    with pytest.raises(InputError, match="k is"):
        fitted.recommend(k=k)
    with pytest.raises(InputError, match="k is"):
        fitted.similar(["i501"], k=k)


def test_similar_is_the_cosine(fitted: Recommender) -> None:
    found = fitted.similar(["i503", "i500"], k=4)
    assert found.columns == ["item_id", "similar_item_id", "score", "rank"]
    vectors = fitted.model.item_vectors().detach()
    for asked in ("i503", "i500"):
        index = int(fitted.dataset.item_indices([asked])[0])
        cosines = F.cosine_similarity(vectors[index], vectors).numpy().copy()
        cosines[[0, index]] = -2
        order = np.argsort(-cosines)[:4]
        part = found.filter(pl.col("item_id") == asked)
        assert part["similar_item_id"].to_list() == fitted.dataset.item_ids.gather(order - 1).to_list()
        assert part["score"].to_list() == pytest.approx(cosines[order].tolist(), abs=1e-5)
        assert part["rank"].to_list() == [1, 2, 3, 4]
    assert found["item_id"].to_list() == ["i503"] * 4 + ["i500"] * 4
    assert fitted.similar("i503", k=4)["similar_item_id"].equals(found["similar_item_id"].head(4))
    assert fitted.similar(iter(["i503"]), k=ITEMS - 1).height == ITEMS - 1
    with pytest.raises(InputError, match="give at most 14"):
        fitted.similar(["i503"], k=ITEMS)


def test_similar_to_what_is_unknown(fitted: Recommender) -> None:
    with pytest.warns(UnknownIdWarning, match="zz") as caught:
        assert fitted.similar(["zz", "i503"], k=2)["item_id"].unique().to_list() == ["i503"]
    assert caught[0].filename == __file__
    with pytest.raises(InputError, match="zz"):
        fitted.similar(["zz", "i503"], k=2, strict=True)
    for items in (["zz"], []):
        with pytest.raises(InputError, match="none of the items"):
            fitted.similar(items, k=2)


def test_counted_models_have_no_similar_items(counted: Recommender) -> None:
    with pytest.raises(InputError, match="no item embeddings"):
        counted.similar(["i501"], k=2)


def test_save_and_load(fitted: Recommender, numbered: Recommender, counted: Recommender, tmp_path: Path) -> None:
    for name, recommender in (("text", fitted), ("numbers", numbered), ("counted", counted)):
        recommender.save(tmp_path / name)
        loaded = Recommender.load(str(tmp_path / name))
        assert loaded.recommend(k=4).equals(recommender.recommend(k=4))
        assert loaded.recommend(k=4).schema == recommender.recommend(k=4).schema
        assert loaded.model_config == recommender.model_config.resolved()
        given = {key: value for key, value in vars(recommender.train_config).items() if value is not None}
        assert given.items() <= vars(loaded.train_config).items()
        assert loaded.evaluate().metrics == recommender.evaluate().metrics
        loaded.save(tmp_path / f"{name}-again")
        for file in ("weights.safetensors", "config.json", "data/dataset.json", "data/items.npy", "metrics.json"):
            assert (tmp_path / f"{name}-again" / file).read_bytes() == (tmp_path / name / file).read_bytes()
        with pytest.raises(InputError, match="--overwrite"):
            loaded.save(tmp_path / name)
        fitted.save(tmp_path / name, overwrite=True)
        assert Recommender.load(tmp_path / name).model_name == "sasrec"


def test_fit_into_a_folder_keeps_the_test_metrics(tmp_path: Path) -> None:
    recommender = Recommender(**OPTIONS).fit(log(), tmp_path / "run")
    kept = Recommender.load(tmp_path / "run").metrics["test"]
    assert kept["full"]["metrics"] == pytest.approx(recommender.evaluate().metrics)
    assert kept["sampled"]["metrics"] == pytest.approx(recommender.evaluate("sampled").metrics)
    assert set(kept["full"]["baselines"]) - {"sasrec"} == {"popularity", "recent-popularity", "markov", "transitions"}
    with pytest.raises(InputError, match="already holds a run"):
        Recommender(**OPTIONS).fit(log(), tmp_path / "run")
    assert Recommender("popularity").fit(log(), tmp_path / "run", overwrite=True).metrics["epochs"] == 1


def test_evaluate(fitted: Recommender, counted: Recommender) -> None:
    found = fitted.evaluate("sampled", "valid", negatives=5)
    assert (found.protocol, found.split, found.users, found.negatives) == ("sampled", "valid", 30, 5)
    assert found.metrics["hr@10"] == 1.0
    assert fitted.evaluate(baselines=False).baselines == {}
    assert counted.model_name not in counted.evaluate().baselines
    without_times = Recommender("popularity").fit(log().drop("timestamp"))
    assert set(without_times.evaluate().baselines) == {"markov", "transitions"}
    for arguments in ({"protocol": "half"}, {"split": "train"}, {"protocol": "sampled", "negatives": 0}):
        with pytest.raises(InputError):
            fitted.evaluate(**arguments)


def test_untrained() -> None:
    recommender = Recommender()
    for action in (recommender.recommend, recommender.evaluate, lambda: recommender.similar(["a"])):
        with pytest.raises(InputError, match="call fit or load first"):
            action()
    with pytest.raises(InputError, match="call fit or load first"):
        recommender.save("nowhere")
    with pytest.raises(InputError, match="call fit or load first"):
        _ = recommender.dataset


def test_unknown_options_and_models() -> None:
    with pytest.raises(InputError, match=r"unknown model 'gru'.*sasrec"):
        Recommender("gru")
    with pytest.raises(InputError, match=r"no option 'embeding_dim'.*embedding_dim"):
        Recommender(embeding_dim=3)
    with pytest.raises(InputError, match=r"dropout is 1\.5"):
        Recommender(dropout=1.5)
    with pytest.raises(InputError, match="no option 'alpha'"):
        Recommender("sasrec", alpha=1.0)
    with pytest.raises(InputError, match="split is 'sideways'; give auto, time or last-two"):
        Recommender(**OPTIONS, split="sideways").fit(log())
    with pytest.raises(InputError, match="exclude each other"):
        Recommender(**OPTIONS).fit(log()).recommend(users=["u101"], histories=[["i501"]])


def test_a_model_that_cannot_count_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs timestamps"):
        Recommender("recent-popularity").fit(log().drop("timestamp"), tmp_path / "run")
    with pytest.raises(InputError, match="device"):
        Recommender(**OPTIONS, device="tpu9").fit(log(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_bias_says_nothing_of_likeness() -> None:
    recommender = Recommender("ssept", epochs=1, embedding_dim=4, user_dim=4).fit(
        pl.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2, 2], "item_id": [1, 2, 3, 4, 2, 3, 4, 1]})
    )
    table = recommender.model.item_embedding.weight.detach().double().numpy()[1:]  # type: ignore[union-attr]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    found = recommender.similar([1], k=3)
    expected = np.sort((unit @ unit[0])[1:])[::-1]
    assert found["score"].to_numpy() == pytest.approx(expected, abs=1e-5)


def test_a_replacement_that_fails_leaves_the_old_run(tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2, 2], "item_id": [1, 2, 3, 4, 2, 3, 4, 1]})
    Recommender(epochs=1, embedding_dim=4).fit(log, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(InputError, match="training diverged"):
        Recommender(epochs=1, embedding_dim=4, learning_rate=1e30).fit(log, tmp_path / "run", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files too \(notes\.txt\)"):
        Recommender(epochs=1, embedding_dim=4).fit(log, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_a_run_is_replaced_through_a_link_and_not_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pl.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2, 2], "item_id": [1, 2, 3, 4, 2, 3, 4, 1]})
    Recommender("markov").fit(log, tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    Recommender("popularity").fit(log, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert Recommender.load(tmp_path / "run").model_name == "popularity"
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(InputError, match="cannot be written"):
        Recommender("markov").fit(log, ".", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]
    assert Recommender.load(tmp_path / "run").model_name == "popularity"


def test_brackets_in_a_folder_name_are_a_name(tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": [1, 1, 1, 1, 2, 2, 2, 2], "item_id": [1, 2, 3, 4, 2, 3, 4, 1]})
    recommender = Recommender("markov").fit(log, tmp_path / "run[1]*?")
    again = Recommender.load(tmp_path / "run[1]*?")
    assert again.recommend(k=2, keep_seen=True).equals(recommender.recommend(k=2, keep_seen=True))


def busy(users: int = 60) -> pl.DataFrame:
    """Users who are all active all the time, so that the log can be split by time."""
    rows = [(u, (7 * u + step) % 30, 1_600_000_000 + 9000 * step + u) for u in range(users) for step in range(20)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def test_a_split_is_chosen_once(tmp_path: Path) -> None:
    recommender = Recommender(**OPTIONS).fit(busy(), tmp_path / "run")
    facts = recommender.metrics["split"]
    assert (facts["split"], facts["reason"], facts["test_users"]) == ("time", "the log has times", 60)
    assert facts["train_interactions"] == 960
    opened = Run(tmp_path / "run")
    assert (opened.config.split.split, opened.metrics()["split"]) == ("time", facts)
    assert opened.split.cuts == (facts["valid_from"], facts["test_from"])
    again = Recommender.load(tmp_path / "run")
    assert again.split_config.split == "time"
    stated = [recommender.metrics["test"]["full"][name] for name in ("held_out", "trained_on", "users", "seen", "seed")]
    assert stated == ["each user's first item from 2020-09-15T09:26:40 on", "train", 60, "removed", 0]
    assert again.evaluate().metrics == recommender.evaluate().metrics == recommender.metrics["test"]["full"]["metrics"]
    Recommender(**OPTIONS).fit(busy(), tmp_path / "run", resume=True)  # auto is the same again
    Recommender(**OPTIONS, split="time").fit(busy(), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="was started with split = time, not last-two; resume with the same options"):
        Recommender(**OPTIONS, split="last-two").fit(busy(), tmp_path / "run", resume=True)


def test_times_that_are_ignored_are_said(tmp_path: Path) -> None:
    with pytest.warns(
        TrainingWarning, match="has times, but the split is last-two, because the number of users with two"
    ):
        found = Recommender("popularity").fit(busy(users=30), tmp_path / "run")
    assert Run(tmp_path / "run").config.split.split == "last-two"
    assert found.evaluate().held_out == "each user's last item, for comparison with papers"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recommender("popularity").fit(busy())
        Recommender("popularity").fit(busy(users=30).drop("timestamp"))
        Recommender("popularity", split="last-two").fit(busy(users=30))
        said = io.StringIO()
        Recommender("popularity").fit(busy(users=30), console=Console(file=said))  # says it there
    assert "split: last-two, for comparison with papers (because the number of users with two" in said.getvalue()
    assert "split checked: no target is in its own history" in said.getvalue()


def test_recent_popularity_ends_with_training() -> None:
    """Its days are the last before validation: what is popular later, even in the test's histories, doesn't count."""
    late = [(u, 99, 1_600_000_000 + 9000 * step + u) for u in range(60) for step in (16, 17)]
    frame = pl.concat([busy(), pl.DataFrame(late, schema=busy().schema, orient="row")])
    found = Recommender("recent-popularity", split="time", valid_from=1_600_000_000 + 9000 * 16, days=0.5).fit(frame)
    dataset, model = found.dataset, found.model
    times, items = dataset.timestamps, dataset.items
    last = times[times < 1_600_000_000 + 9000 * 16].max()
    recent = (times <= last) & (times >= last - 43_200)
    assert model.recent.tolist() == np.bincount(items[recent], minlength=dataset.num_items + 1).tolist()
    assert model.recent[dataset.item_indices([99])[0]] == 0
