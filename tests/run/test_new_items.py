"""Features from the item table to the ranking, and new items that are ranked by them."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, LogWarning, Predictor, Recommender, Run
from seqrec.cli.app import main
from seqrec.errors import RunWarning
from seqrec.models.features import ItemEmbedding

GROUPS, SIZE = 5, 8
NEW = 2  # items of each group that the log does not have
SMALL: dict[str, Any] = {
    "embedding_dim": 16, "max_length": 6, "batch_size": 32, "epochs": 6, "split": "last-two", "ensemble": 1,
    "learning_rate": 0.01, "dropout": 0.1, "num_blocks": 1, "average_decay": 0.0, "loss": "cross-entropy",
}  # fmt: skip


def log(text_ids: bool = True, users: int = 150) -> pl.DataFrame:
    """Users go through the groups of items in turn, each time to any item of the group."""
    random = np.random.default_rng(0)
    start = random.integers(0, GROUPS, users)
    steps = np.arange(8)
    groups = (start[:, None] + steps) % GROUPS
    items = groups * 100 + random.integers(NEW, SIZE, groups.shape)
    ids = items.ravel().astype(str).tolist() if text_ids else items.ravel()
    return pl.DataFrame({"user_id": np.repeat(np.arange(users), 8), "item_id": ids, "timestamp": np.tile(steps, users)})


def described(low: int, high: int, text_ids: bool = True) -> pl.DataFrame:
    """The group of each item as a category, a number, a vector, and a text that says nothing."""
    rows = [(group, group * 100 + number) for group in range(GROUPS) for number in range(low, high)]
    groups, ids = np.array(rows).T
    return pl.DataFrame(
        {
            "item_id": [str(one) for one in ids] if text_ids else ids,
            "title": [f"title {one}" for one in ids],
            "categories": [[f"g{one}", "all"] for one in groups],
            "price": groups * 10.0 + 1,
            "vector": np.eye(GROUPS, dtype=np.float32)[groups].tolist(),
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "run"
    recommender = Recommender("sasrec", **SMALL, features="all", id_dropout=0.1)
    recommender.fit(log(), folder, items=described(NEW, SIZE))
    return folder


def scores_of(recommender: Recommender, history: list[str]) -> dict[str, float]:
    size = recommender.dataset.num_items
    frame = recommender.recommend(histories=[history], k=size, keep_seen=True)
    return dict(zip(frame["item_id"].to_list(), frame["score"].to_list(), strict=True))


def test_what_is_learned_is_kept_and_read_again(run: Path):
    config = json.loads((run / "config.json").read_text())
    sizes = {name: config["model_config"][name] for name in ("features", "num_codes", "num_values", "id_dropout")}
    assert sizes == {"features": "categories,price,vector", "num_codes": 2 * GROUPS, "num_values": GROUPS,
                     "id_dropout": 0.1}  # fmt: skip
    assert config["recipe"]["features"] == (
        "sasrec learns categories (5 values), price (5 bins), vector (vectors of 5); not title (its texts differ "
        "between most items (give vectors of them))"
    )
    recommender, history = Recommender.load(run), ["102", "203", "304"]
    table = recommender.model.item_embedding
    assert isinstance(table, ItemEmbedding)
    assert table.encoder is not None
    assert len(table.encoder.codes) == 2 * recommender.dataset.num_items
    scores = scores_of(recommender, history)
    found = dict(Predictor.load(run).recommend(history, k=len(scores), keep_seen=True))
    assert found == pytest.approx(scores, abs=1e-5)


def test_features_rank_new_items(run: Path):
    recommender = Recommender.load(run)
    history = ["102", "203", "304"]
    before = scores_of(recommender, history)
    assert recommender.add_items(described(0, NEW)) is recommender
    after = scores_of(recommender, history)
    assert len(after) == len(before) + GROUPS * NEW == recommender.dataset.num_items
    np.testing.assert_allclose([after[item] for item in before], list(before.values()), atol=1e-5)
    new = sorted(set(after) - set(before), key=lambda item: -after[item])
    assert {int(item) // 100 for item in new[:NEW]} == {4}  # the group that comes next
    titles = recommender.recommend(histories=[history], k=3, allow=new)
    assert titles["title"].to_list() == [f"title {item}" for item in titles["item_id"]]
    for what, action in [("evaluate", recommender.evaluate), ("save", lambda: recommender.save("nowhere"))]:
        with pytest.raises(InputError, match=f"items were added that no training has seen; {what} a recommender"):
            action()
    assert not Path("nowhere").exists()
    similar = recommender.similar([new[0]], k=4)["similar_item_id"].to_list()
    assert {int(item) // 100 for item in similar} == {4}


def test_items_may_be_added_one_by_one(run: Path):
    together, apart = Recommender.load(run).add_items(described(0, NEW)), Recommender.load(run)
    for row in range(GROUPS * NEW):
        apart.add_items(described(0, NEW)[row])
    history = ["102", "200", "304"]  # 200 is new
    assert scores_of(apart, history) == pytest.approx(scores_of(together, history), abs=1e-5)
    found = apart.dataset.item_indices([400, "401", 9, "302"])
    assert apart.dataset.catalogue.values(found[found > 0] - 1) == ["400", "401", "302"]
    assert found.tolist().index(0) == 2


def test_a_new_item_scores_as_one_with_its_features_and_without_a_vector(run: Path):
    recommender = Recommender.load(run)
    index = int(recommender.dataset.item_indices(["302"])[0])
    with torch.no_grad():
        recommender.model.item_embedding.weight[index] = 0  # type: ignore[union-attr, operator]
    scores = scores_of(recommender, ["102", "203"])
    recommender.add_items(described(0, NEW))
    after = scores_of(recommender, ["102", "203"])
    assert after["300"] == pytest.approx(scores["302"] - _counted(recommender, scores, "302"), abs=1e-4)


def _counted(recommender: Recommender, scores: dict[str, float], item: str) -> float:
    """The part of a score that transition counts add."""
    addition = recommender.model.addition
    if addition is None:
        return 0.0
    recommender.model.addition = None
    alone = scores_of(recommender, ["102", "203"])[item]
    recommender.model.addition = addition
    return scores[item] - alone


def test_ids_that_are_numbers(tmp_path: Path):
    options = SMALL | {"epochs": 1, "transitions": "off"}
    recommender = Recommender("gru4rec", **{n: v for n, v in options.items() if n not in ("dropout", "num_blocks")},
                              features="categories")  # fmt: skip
    recommender.fit(log(text_ids=False), items=described(NEW, SIZE, text_ids=False))
    items = tmp_path / "new.json"
    items.write_text(json.dumps({str(100 * group): [f"g{group}", "unheard of"] for group in range(GROUPS)}))
    recommender.add_items(items)
    assert set(scores_of(recommender, ["102"])) >= {0, 100, 200, 300, 400}


def test_what_is_not_known_of_new_items_is_told(run: Path):
    new = described(0, NEW).with_columns(
        categories=pl.Series([["g0", "g9"], ["g0"], ["x"], [], *[["g3"]] * 6]),
        price=pl.Series([1.0, 2.0, None, None, *[3.0] * 6]),
        vector=pl.Series([[1.0, 0, 0, 0, 0], None, None, None, *[[0.0, 0, 0, 0, 1]] * 6], dtype=pl.List(pl.Float64)),
    )
    recommender = Recommender.load(run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recommender.add_items(new)
    said = [str(one.message) for one in caught if one.category is LogWarning]
    assert "ignored in column categories: 2 values that no item of the run has (g9, x)" in said[0]
    assert "nothing that the model knows is said of 2 of 10 new items, such as 100, 101; they are ranked" in said[1]
    assert len(said) == 2
    with pytest.raises(InputError, match="the run knows all of its 10 items; give items that are new"):
        recommender.add_items(new)
    assert set(scores_of(Recommender.load(run).add_items(new.with_columns(price=None)), ["102"])) >= {"0", "1"}


def bad_items() -> list[tuple[Any, str]]:
    new = described(0, NEW)
    return [
        (described(NEW, SIZE), "the run knows all of its 30 items; give items that are new"),
        (new.drop("price"), "has no price, which the model reads; give the columns categories,price,vector"),
        (new.with_columns(price=pl.lit("cheap")), "its price holds texts, but that of the run's items numbers; give"),
        (new.with_columns(vector=pl.lit([1.0, 2.0])), "its vector holds vectors of 2, but that of the run's items "
         "vectors of 5; give the same"),
    ]  # fmt: skip


@pytest.mark.parametrize(("items", "message"), bad_items())
def test_new_items_that_cannot_be_ranked(run: Path, items: pl.DataFrame, message: str):
    recommender = Recommender.load(run)
    before = scores_of(recommender, ["102"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)
        with pytest.raises(InputError) as raised:
            recommender.add_items(items)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert scores_of(recommender, ["102"]) == before


def test_what_is_ignored_of_new_items_is_said(run: Path):
    frame = pl.concat([described(0, NEW), described(0, NEW)[:1], described(NEW, SIZE)[:3]])
    with pytest.warns(LogWarning) as caught:
        Recommender.load(run).add_items(frame)
    (said,) = [str(one.message) for one in caught]
    assert "ignored rows: 3 are in the log, whose descriptions stay; 1 describe an item again" in said


def test_models_that_read_no_features():
    for name, options in [("popularity", {}), ("sasrec", SMALL | {"epochs": 1})]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            recommender = Recommender(name, **options, **({} if options else {"split": "last-two"})).fit(log())
        with pytest.raises(InputError, match=f"{name} learned no features of items, so it can't rank items that"):
            recommender.add_items(described(0, NEW))


def test_the_command(run: Path, tmp_path: Path, capsys):
    items = tmp_path / "new.parquet"
    described(0, NEW).write_parquet(items)
    asked = ["recommend", str(run), "--history", "102", "203", "304", "--keep-seen", "--format", "csv", "-k"]
    assert main([*asked, "30"]) == 0
    known = capsys.readouterr().out.splitlines()
    assert main([*asked, "40", "--new-items", str(items)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) - len(known) == GROUPS * NEW
    assert main([*asked, "9", "--new-items", str(tmp_path / "none.csv")]) != 0
    assert "none.csv" in capsys.readouterr().err
    assert main(["similar", str(run), "100", "-k", "1", "--new-items", str(items), "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("100,title 100,101,title 101,")


def test_resuming_and_refitting_read_the_same_features(tmp_path: Path):
    options = SMALL | {"epochs": 2, "transitions": "off", "features": "all"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Recommender("sasrec", **options).fit(log(), whole, items=described(NEW, SIZE))
    Recommender("sasrec", **options | {"epochs": 1}).fit(log(), parts, items=described(NEW, SIZE))
    for price in (pl.col("price") * 2, pl.int_range(pl.len())):
        other = described(NEW, SIZE).with_columns(price=price)
        with pytest.raises(InputError, match="the run was started with another item table; give the same items"):
            Recommender("sasrec", **options).fit(log(), parts, items=other, resume=True)
    Recommender("sasrec", refit="all", **options).fit(log(), parts, items=described(NEW, SIZE), resume=True)
    first, second = Run(whole).model("train").state_dict(), Run(parts).model("train").state_dict()
    assert {name: torch.equal(weight, second[name]) for name, weight in first.items()} == dict.fromkeys(first, True)
    assert Recommender.load(parts).trained_on == "all"
    Recommender.load(parts).add_items(described(0, NEW))


def test_warm_start_finds_features_by_name(run: Path, tmp_path: Path):
    more = pl.concat([log(), log().head(80).with_columns(item_id=pl.lit("999"), user_id=pl.col("user_id") + 1000)])
    items = pl.concat([
        described(NEW, SIZE).with_columns(categories=pl.lit(["a new one"]).list.concat("categories")).head(3),
        described(NEW, SIZE)[3:],
        pl.DataFrame({"item_id": ["999"], "title": ["t"], "categories": [["g1"]], "price": [11.0],
                      "vector": [[0.0, 1.0, 0.0, 0.0, 0.0]]}, schema=described(0, 1).schema),
    ])  # fmt: skip
    still = {"learning_rate": 1e-9, "average_decay": 0.0, "epochs": 1, "split": "last-two"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        found = Recommender(**still).fit(more, tmp_path / "later", items=items, init_from=run)
    facts = json.loads((tmp_path / "later/config.json").read_text())["init_from"]["features"]
    assert facts == {"kept": 2 * GROUPS, "new": 2, "gone": 0}  # not all items have "all" now
    before, after = Recommender.load(run).model.item_embedding.encoder, found.model.item_embedding.encoder  # type: ignore[union-attr]
    assert torch.allclose(before.code_vectors, after.code_vectors[2:], atol=1e-5)  # the new ones come first


@pytest.mark.parametrize(
    ("options", "items", "message"),
    [
        ({"features": "all"}, None, "features is 'all', but there is no item table; give items"),
        ({"features": "colour"}, described(NEW, SIZE), "features name 'colour', but the item table has title, cat"),
        ({"features": "title"}, described(NEW, SIZE), "features name 'title', but its texts differ between most"),
        ({"id_dropout": 0.2}, described(NEW, SIZE), "id_dropout is 0.2, but there are no features; give features"),
        ({"features": "all", "shard_items": True}, described(NEW, SIZE), "features need the whole item table, but"),
    ],
)
def test_features_that_cannot_be_learned(tmp_path: Path, options: dict[str, Any], items: Any, message: str):
    plain = {name: value for name, value in SMALL.items() if name != "loss" or "shard_items" not in options}
    with pytest.raises(InputError) as raised:
        Recommender("sasrec", **plain, **options).fit(log(), tmp_path / "run", items=items)
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_item_table_is_gone_or_another(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["model_config"]["num_codes"] = 9
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as raised:
        Recommender.load(copy)
    assert "\n" not in str(raised.value)
    (copy / "data/item_table.parquet").unlink()
    with pytest.raises(InputError, match="item_table"):
        Recommender.load(shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("item_table*")))


def test_the_item_table_that_nobody_learns_is_said(tmp_path: Path, capsys):
    log().write_csv(tmp_path / "log.csv")
    described(NEW, SIZE).write_parquet(tmp_path / "items.parquet")
    options = ["--epochs", "1", "--embedding-dim", "8", "--batch-size", "64", "--ensemble", "1", "--transitions", "off"]
    arguments = ["fit", str(tmp_path / "log.csv"), "--items", str(tmp_path / "items.parquet"), "--split", "last-two"]
    assert main([*arguments, "--model", "sasrec", *options, "--out", str(tmp_path / "run")]) == 0
    assert "not learned: the items' categories, price, vector; --features all would" in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_onnx_file_has_the_features_in_its_table(run: Path, tmp_path: Path):
    from seqrec import export_onnx, onnx_predictor

    assert export_onnx(run, tmp_path / "model.onnx").difference < 1e-4  # from the scores of the run
    found = dict(onnx_predictor(run).recommend(["102", "203", "304"], k=20))
    assert found == pytest.approx(dict(Predictor.load(run).recommend(["102", "203", "304"], k=20)), abs=1e-4)


def test_a_mixed_ensemble_learns_features(tmp_path: Path):
    options = SMALL | {"ensemble": 3, "ensemble_kinds": "mixed", "epochs": 1, "embedding_dim": 8, "features": "price"}
    Recommender("auto", **options).fit(log(), tmp_path / "run", items=described(NEW, SIZE))
    recommender = Recommender.load(tmp_path / "run")
    tables = [part.item_embedding for part in recommender.model.parts]
    assert all(isinstance(table, ItemEmbedding) and table.encoder is not None for table in tables)
    assert len(scores_of(recommender.add_items(described(0, NEW)), ["102"])) == GROUPS * SIZE
