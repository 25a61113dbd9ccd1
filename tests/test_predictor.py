"""The predictor: its recommendations, the shapes of its input, threads, and global state that it leaves unchanged."""

import json
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from seqrec import MODELS, Dataset, InputError, Predictor, Recommendations, Recommender, SASRec, UnknownIdWarning
from seqrec.errors import MissingTimesWarning, TrainingWarning

pytestmark = pytest.mark.usefixtures("few_constants")

OPTIONS: dict[str, Any] = {"embedding_dim": 8, "max_length": 5, "epochs": 1, "batch_size": 40, "threads": 1,
                           "evaluate_every": 0}  # fmt: skip
ITEMS = 30


def log(text: bool = True) -> pl.DataFrame:
    """40 users with 3 to 8 of 30 items each, minutes to weeks apart."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(40):
        now = 1_600_000_000 + int(random.integers(10**6))
        for item in random.permutation(ITEMS)[: 3 + user % 6].tolist():
            now += int(random.choice([600, 90_000, 2_000_000]))
            rows.append((f"u{user}", f"i{item}", now) if text else (user, item, now))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def fit(model: str, frame: pl.DataFrame) -> Recommender:
    counted = MODELS[model].COUNTED
    return Recommender(model, **{} if counted else OPTIONS, split="last-two").fit(frame)


@pytest.fixture(scope="module", params=sorted(MODELS))
def every(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recommender, Predictor]:
    return saved(fit(request.param, log()), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    fit("sasrec", log()).save(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor.load(run)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return saved(fit("markov", log(text=False)), tmp_path_factory.mktemp("run") / "run")[1]


def saved(recommender: Recommender, folder: Path) -> tuple[Recommender, Predictor]:
    recommender.save(folder)
    return recommender, Predictor.load(folder)


def people() -> dict[str, tuple[list[str], list[int]]]:
    """Items and times of each user."""
    found = {}
    for (user,), part in log().group_by("user_id", maintain_order=True):
        found[str(user)] = part["item_id"].to_list(), part["timestamp"].to_list()
    return found


def rows_of(table: pl.DataFrame) -> list[list[tuple[Any, float]]]:
    """The recommendations of a table, by user."""
    return [list(zip(part["item_id"], part["score"], strict=True))
            for _, part in table.group_by("user_id", maintain_order=True)]  # fmt: skip


def agree(one: list[Any], other: list[Any]) -> bool:
    """Check that items are equal, and scores equal up to rounding."""
    return [[item for item, _ in row] for row in one] == [[item for item, _ in row] for row in other] and all(
        np.allclose([score for _, score in a], [score for _, score in b], rtol=1e-5, atol=1e-6)
        for a, b in zip(one, other, strict=True)
    )


def knows_users(predictor: Predictor) -> bool:
    """Whether the model has a vector for each user of the log, which is unknown for a given history."""
    return type(predictor.model).__name__ in ("Caser", "SSEPT")


@pytest.mark.slow_but_one
def test_a_person_is_scored_alike_by_name_and_by_history(every: tuple[Recommender, Predictor]) -> None:
    recommender, predictor = every
    known = people()
    names, histories, times = list(known), *([part[place] for part in known.values()] for place in (0, 1))
    by_history, by_name = predictor.recommend(histories, 6, times), predictor.recommend_users(names, 6)
    # The scores equal those of the recommender to the last bit.
    assert by_name == rows_of(recommender.recommend(names, k=6))
    assert by_history == rows_of(recommender.recommend(histories=histories, times=times, k=6))
    assert agree(by_history, by_name) != knows_users(predictor)
    for row in (0, 7, 39):
        backwards = predictor.recommend(histories[row][::-1], 6, times[row][::-1])
        assert backwards == predictor.recommend(histories[row], 6, times[row])
        assert agree([backwards, predictor.recommend_users(names[row], 6)], [by_history[row], by_name[row]])


def test_what_it_gives(predictor: Predictor) -> None:
    one = predictor.recommend(["i1", "i2"])
    assert isinstance(one, list)
    assert isinstance(one, Recommendations)
    assert len(one) == 10
    assert [score for _, score in one] == sorted((score for _, score in one), reverse=True)
    assert all(type(item) is str and type(score) is float for item, score in one)
    assert not {"i1", "i2"} & {item for item, _ in one}
    assert (one.used, one.unknown, one.popular) == (2, (), False)
    assert json.loads(json.dumps(one)) == [list(pair) for pair in one]
    again = pickle.loads(pickle.dumps(one))
    assert (again, again.used, again.popular) == (one, 2, False)
    assert predictor.recommend([f"i{number}" for number in range(8)]).used == 5  # as many as the model sees


def test_one_history_or_many(numbered: Predictor) -> None:
    one = numbered.recommend([3, 4], 5)
    assert isinstance(one[0], tuple)
    flat = [(3, 4), np.array([3, 4]), pl.Series([3, 4]), pd.Series([3, 4]), iter([3, 4]), ["3", "4"], [3.0, "4.0"],
            [np.int32(3), np.int64(4)], {3: 0, 4: 0}.keys()]  # fmt: skip
    for history in flat:
        assert numbered.recommend(history, 5) == one
    many = [[[3, 4]], ([3, 4],), np.array([[3, 4]]), [np.array([3, 4])], [pl.Series(["3", "4"])], iter([iter([3, 4])]),
            pl.Series([[3, 4]])]  # fmt: skip
    for histories in many:
        assert numbered.recommend(histories, 5) == [one]
    assert numbered.recommend([[3, 4], [5], ["4", "3"]], 5)[0] == one
    assert numbered.recommend(np.empty((0, 5), dtype=np.int64)) == []
    # A single item is a history of one item; an empty list is one history without items.
    assert numbered.recommend([3], 5) == numbered.recommend([[3]], 5)[0]
    tensor = torch.tensor([3, 4])
    assert numbered.recommend(tensor, 5) == numbered.recommend([3, 4], 5)
    assert numbered.recommend(tensor[None], 5) == [numbered.recommend([3, 4], 5)]
    assert numbered.recommend([], 5).popular
    assert numbered.recommend([[]], 5)[0].popular
    thousand = [[item % ITEMS, (item * 7 + 1) % ITEMS] for item in range(1000)]
    found = numbered.recommend(thousand, 3)
    assert len(found) == 1000
    assert agree([found[77]], [numbered.recommend(thousand[77], 3)])


NO_HISTORIES: list[tuple[Any, str]] = [
    ("i1", "not str"), (b"i1", "not bytes"), (5, "not int"), (None, "not NoneType"), ({"a": ["i1"]}, "not dict"),
    (pl.DataFrame({"item_id": ["i1"]}), "not DataFrame"), (["i1", ["i2"]], "one history or many"),
    ([["i1"], "i2"], "one history or many"), ([[["i1"]]], "ids are integers or strings"), ([True], "not bool"),
    ([[1.5, object()]], "not object"), ({"i1", "i2"}, "in time order, not a set"),
    ([{"i1", "i2"}], "in time order, not a set"), ([{"item_id": "i1"}], "in time order, not a dict"),
]  # fmt: skip


@pytest.mark.parametrize(("histories", "said"), NO_HISTORIES)
def test_what_is_no_history_is_one_line(predictor: Predictor, histories: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        predictor.recommend(histories)
    assert "\n" not in str(caught.value)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"k": 0}, "k is 0"), ({"k": ITEMS + 1}, "give at most 30"), ({"k": 2.5}, "give a whole number"),
    ({"times": [1]}, "history 1 has 2 items and 1 times"), ({"times": 5}, "list"),
    ({"times": ["x", "y"]}, "not a time"), ({"keep_seen": "false"}, "give True or False"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "said"), BAD)
def test_what_does_not_fit_is_one_line(predictor: Predictor, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        predictor.recommend(["i1", "i2"], **asked)
    assert "\n" not in str(caught.value)


def test_of_whom_nothing_is_known_gets_what_is_popular(predictor: Predictor) -> None:
    counts = log()["item_id"].value_counts()
    order = sorted(counts.rows(), key=lambda row: (-row[1], row[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fields hold the information instead
        nobody = predictor.recommend([], 4)
        assert nobody == [(item, float(count)) for item, count in order[:4]]
        assert (nobody.used, nobody.unknown, nobody.popular) == (0, (), True)
        mixed = predictor.recommend([["i3", "zz", "i4", "yy"], ["zz"], [], [None, "i5"]], 4)
        assert [found.unknown for found in mixed] == [("zz", "yy"), ("zz",), (), (None,)]
        assert [found.popular for found in mixed] == [False, True, True, False]
        assert [found.used for found in mixed] == [2, 0, 0, 1]
        assert mixed[1] == mixed[2] == nobody
        assert agree([mixed[0]], [predictor.recommend(["i3", "i4"], 4)])
        users = predictor.recommend_users(["u3", "nobody"], 4)
        assert (users[0].popular, users[1].popular, users[1]) == (False, True, nobody)
        allowed = predictor.recommend([], 4, allow=[order[2][0], order[9][0]], deny=[order[9][0]])
        assert allowed == [nobody[2]]
        assert predictor.recommend([], 2, deny=[order[0][0]]) == nobody[1:3]


def test_filters(predictor: Predictor) -> None:
    full = predictor.recommend(["i1", "i2"], ITEMS)
    best = [item for item, _ in full]
    assert sorted(best) == sorted(set(log()["item_id"]) - {"i1", "i2"})
    kept = predictor.recommend(["i1", "i2"], ITEMS, keep_seen=True)
    assert agree([[pair for pair in kept if pair[0] not in ("i1", "i2")]], [full])
    assert len(kept) == ITEMS
    assert agree([predictor.recommend(["i1", "i2"], 3, deny=best[:2])], [full[2:5]])
    few = predictor.recommend(["i1", "i2"], 3, allow=[best[6], best[4], "i1"], deny=iter([best[6]]))
    assert agree([few], [[full[4]]])
    assert predictor.recommend(["i1"], 3, allow=[]) == []
    for name in ("allow", "deny"):
        with pytest.warns(UnknownIdWarning, match=rf"unknown items \({name}\).*zz") as caught:
            predictor.recommend(["i1"], 2, **{name: ["zz", "i5"]})
        assert caught[0].filename == __file__


def test_items_of_the_history_stay_where_the_run_kept_them(tmp_path: Path) -> None:
    again = pl.DataFrame({"user_id": [1] * 6 + [2] * 6, "item_id": [1, 2, 1, 2, 1, 2] * 2, "timestamp": range(12)})
    with pytest.warns(TrainingWarning, match="stay in the rankings"):
        recommender = Recommender("markov").fit(again.vstack(again.with_columns(pl.col("item_id") + 1)))
    recommender.save(tmp_path / "run")
    predictor = Predictor.load(tmp_path / "run")
    assert predictor.keep_seen
    assert {item for item, _ in predictor.recommend([1, 2], 3)} == {1, 2, 3}
    assert {item for item, _ in predictor.recommend([1, 2], 3, keep_seen=False)} == {3}
    assert predictor.recommend_users(1, 2) == rows_of(recommender.recommend([1], k=2))[0]


def test_a_model_that_knows_time_warns_where_it_gets_none(every: tuple[Recommender, Predictor]) -> None:
    predictor = every[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predictor.recommend(["i1", "i2"], 3)
    said = [w for w in caught if w.category is MissingTimesWarning]
    assert len(said) == len(caught) == predictor.model.USES_TIMES


def test_similar_is_that_of_the_recommender(every: tuple[Recommender, Predictor]) -> None:
    recommender, predictor = every
    if predictor.model.COUNTED or not predictor.model.FACTORED:
        for one in every:
            with pytest.raises(InputError, match="no item embeddings"):
                one.similar(["i1"])
        return
    wanted = recommender.similar(["i3", "i7"], k=4)
    found = predictor.similar(["i3", "i7"], 4)
    assert list(found) == ["i3", "i7"]
    for item, pairs in found.items():
        part = wanted.filter(pl.col("item_id") == item)
        assert pairs == list(zip(part["similar_item_id"], part["score"], strict=True))
        assert agree([predictor.similar(item, 4)], [pairs])
    with pytest.warns(UnknownIdWarning, match="zz"):
        assert list(predictor.similar(["zz", "i3"], 4)) == ["i3"]
    for items, k, said in ((["zz"], 4, "none of the items"), (["i3"], ITEMS, "give at most 29")):
        with pytest.raises(InputError, match=said):
            predictor.similar(items, k)


@pytest.mark.slow_but_one
def test_many_threads_get_the_answers_of_one(every: tuple[Recommender, Predictor]) -> None:
    recommender, _ = every
    predictor = Predictor(recommender.model, recommender.dataset)  # it has not answered before
    known = list(people().values())
    count = 80 if isinstance(predictor.model, SASRec) else 16
    asked = [number % len(known) for number in range(count)]

    def ask(row: int) -> tuple[Any, ...]:
        items, times = known[row]
        similar = predictor.similar(items[0], 3) if predictor.model.FACTORED and not predictor.model.COUNTED else None
        return predictor.recommend(items, 5, times), predictor.recommend([], 3), similar

    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = list(pool.map(ask, asked))
    assert found == list(map(ask, asked))


def test_nothing_that_others_share_is_changed(
    every: tuple[Recommender, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = every[1]

    def refuse(*given: Any, **_: Any) -> None:
        raise AssertionError(f"changed what others share: {given}")

    for name in ("set_num_threads", "set_default_dtype", "manual_seed", "set_default_device"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(torch.nn.Module, "train", refuse)  # eval calls it too
    random = torch.get_rng_state()
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            predictor.recommend([["i1", "i2"], ["zz"], ["i3"]], 3, [[1, 2], [1], [3]], deny=["i5"])
            predictor.recommend_users(["u1"], 3)
            assert torch.is_grad_enabled() is grad
            assert not torch.is_inference_mode_enabled()
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in predictor.model.state_dict().items())
    for name in ("model", "dataset", "keep_seen"):
        with pytest.raises(AttributeError):
            setattr(predictor, name, None)


def test_a_model_in_training_is_refused(predictor: Predictor) -> None:
    model = MODELS["sasrec"](predictor.model.config, ITEMS)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"model\.eval"):
        Predictor(model, predictor.dataset)


def test_it_works_in_a_forked_process(run: Path, two_threads: None, in_a_fork: Any) -> None:
    del two_threads
    predictor = Predictor.load(run)
    log().sort("user_id", "item_id").join(log(), on="user_id")  # starts polars' threads
    (torch.ones(400, 400) @ torch.ones(400, 400)).tanh()  # and torch's

    def work() -> list[Any]:
        return [
            predictor.recommend(["i1", "zz", "i2"], 3),
            predictor.recommend([["i1", "i2"], ["i3"], [], ["i4"] * 9] * 4, 3, deny=["i7"]),
            predictor.recommend_users(["u1", "nobody"], 3),
            predictor.recommend_users("u2", 3),
            list(predictor.similar(["i1", "i2"], 3).items()),
        ]

    def scores(value: Any) -> Iterator[Any]:
        for part in value if isinstance(value, list | tuple) else ():
            yield from scores(part)
        if not isinstance(value, list | tuple):
            yield round(value, 4) if isinstance(value, float) else value

    found = in_a_fork(work)  # before its first answer
    assert list(scores(found)) == list(scores(json.loads(json.dumps(work()))))


def test_opening_reads_neither_people_nor_histories(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("opening touches what it does not need")

    for name in ("user_ids", "item_counts", "statistics", "seen_keys", "fingerprint"):
        monkeypatch.setattr(Dataset, name, property(refuse))
    predictor = Predictor.load(run)
    assert len(predictor.recommend(["i1", "zz"], 3, deny=["i2"])) == 3
    assert len(predictor.recommend([["i1"], ["i2", "i3"]], 3)) == 2
    assert len(predictor.recommend_users("u1", 3)) == 3


def test_damaged_runs_are_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        Predictor.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a run folder"):
        Predictor.load(tmp_path)
    flat = fit("sasrec", log())
    with torch.no_grad():
        flat.model.item_embedding.weight[1:] = 1.0  # type: ignore[union-attr]
    flat.save(tmp_path / "flat")
    with pytest.raises(InputError, match="scores all items alike"):
        Predictor.load(tmp_path / "flat")
    broken = fit("sasrec", log())
    broken.save(tmp_path / "broken")
    (tmp_path / "broken/weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        Predictor.load(tmp_path / "broken")
