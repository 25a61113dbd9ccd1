"""Features of users from the user table to the ranking: planted data, unknown people, and all that reads a run."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, Predictor, Recommender, Run, UnknownIdWarning, prepare
from seqrec.cli.app import main
from seqrec.data.batches import pack
from seqrec.data.split import histories_of_users
from seqrec.errors import RunWarning
from seqrec.export.session import OnnxModel
from seqrec.models import build_model
from seqrec.models.features import give_features

GROUPS, NOISE, LEARNED, ASKED = 4, 12, 160, 40
SMALL: dict[str, Any] = {
    "embedding_dim": 16, "max_length": 6, "batch_size": 32, "epochs": 8, "split": "last-two", "ensemble": 1,
    "learning_rate": 0.01, "dropout": 0.1, "num_blocks": 1, "average_decay": 0.0, "loss": "cross-entropy",
    "transitions": "off",
}  # fmt: skip
QUICK = SMALL | {"epochs": 1, "embedding_dim": 8}


def log() -> pl.DataFrame:
    """After three random items comes the item of the user's group, which nothing else tells.

    Users from ``LEARNED`` on have only the three items: what comes next is asked.
    """
    random = np.random.default_rng(0)
    users = np.arange(LEARNED + ASKED)
    noise = random.integers(0, NOISE, (len(users), 5))
    rows = np.concatenate([noise[:, :3], 100 + users[:, None] % GROUPS, noise[:, 3:]], axis=1)
    frame = pl.DataFrame({
        "user_id": np.repeat(users, 6), "item_id": rows.ravel(), "timestamp": np.tile(np.arange(6), len(users)),
    })  # fmt: skip
    return frame.filter((pl.col("user_id") < LEARNED) | (pl.col("timestamp") < 3))


def people() -> pl.DataFrame:
    """The group of each user, in a column of each kind, as parts that only together tell it; and what tells nothing."""
    users = np.arange(LEARNED + ASKED)
    groups = users % GROUPS
    return pl.DataFrame(
        {
            "user_id": users,
            "gender": np.where(groups % 2 == 0, "F", "M"),
            "age": 20.0 + 30 * (groups // 2),
            "interests": [["all", f"g{group}"] for group in groups],
            "vector": np.eye(GROUPS, dtype=np.float32)[groups].tolist(),
            "name": [f"name {user}" for user in users],
        }
    )


def items() -> pl.DataFrame:
    ids = [*range(NOISE), *range(100, 100 + GROUPS)]
    return pl.DataFrame({"item_id": ids, "categories": [["noise"] if one < 100 else ["group"] for one in ids]})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("users") / "run"
    Recommender("sasrec", **SMALL, user_features="all", features="all").fit(
        log(), folder, users=people(), items=items()
    )
    return folder


def right(recommender: Recommender) -> float:
    """Share of the users who are asked about whose first item is that of their group."""
    asked = np.arange(LEARNED, LEARNED + ASKED)
    found = recommender.recommend(users=asked.tolist(), k=1)
    return float((found["item_id"].to_numpy() == 100 + asked % GROUPS).mean())


def scores_of(recommender: Recommender, **who: Any) -> dict[int, float]:
    frame = recommender.recommend(k=recommender.dataset.num_items, keep_seen=True, **who)
    return dict(zip(frame["item_id"].to_list(), frame["score"].to_list(), strict=True))


def test_what_follows_from_an_attribute_alone_is_learned(run: Path):
    assert right(Recommender.load(run)) == 1.0
    without = Recommender("sasrec", **SMALL, features="all").fit(log(), items=items())
    assert right(without) <= 0.5  # by chance 0.25
    config = json.loads((run / "config.json").read_text())
    assert config["model_config"]["user_features"] == "gender,age,interests,vector"
    assert config["recipe"]["user_features"] == (
        "sasrec learns of users gender (2 values), age (2 bins), interests (4 values), vector (vectors of 4); not name "
        "(its texts differ between most users (give vectors of them))"
    )


@pytest.mark.parametrize("name", ["ssept", "gru4rec"])
def test_other_models_learn_it_too(name: str):
    options = {one: value for one, value in SMALL.items() if name == "ssept" or one not in ("dropout", "num_blocks")}
    recommender = Recommender(name, **options, user_features="gender,age").fit(log(), users=people())
    assert right(recommender) >= 0.9


def test_somebody_unknown_adds_nothing(run: Path):
    recommender = Recommender.load(run)
    dataset = recommender.dataset
    user = LEARNED
    history = dataset.item_ids.gather(
        dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]].astype(np.int64) - 1
    ).to_list()
    known = scores_of(recommender, users=[user])
    with pytest.warns(UnknownIdWarning, match="the model reads features of users, which are unknown for the owners"):
        unknown = scores_of(recommender, histories=[history])
    assert known != pytest.approx(unknown, abs=0.1)
    # As a user of whom the table says nothing.
    encoder = recommender.model.user_encoder.encoder  # type: ignore[union-attr]
    row = user + 1
    keep = torch.ones(len(encoder.codes), dtype=torch.bool)  # type: ignore[arg-type]
    keep[encoder.offsets[row] : encoder.offsets[row + 1]] = False  # type: ignore[misc]
    count = encoder.offsets[row + 1] - encoder.offsets[row]  # type: ignore[index]
    encoder.codes, encoder.offsets[row + 1 :] = encoder.codes[keep], encoder.offsets[row + 1 :] - count  # type: ignore[index]
    encoder.values[row] = 0  # type: ignore[index]
    assert scores_of(recommender, users=[user]) == pytest.approx(unknown, abs=1e-5)
    # The item of some group comes next; nobody knows of which.
    assert sorted(unknown, key=lambda item: -unknown[item])[0] >= 100
    predictor = Predictor.load(run)
    most = {"k": NOISE + GROUPS, "keep_seen": True}
    assert dict(predictor.recommend(history, **most)) == pytest.approx(unknown, abs=1e-5)
    assert dict(predictor.recommend_users(user, **most)) == pytest.approx(known, abs=1e-5)


def test_evaluation_and_new_items_read_them(run: Path):
    recommender = Recommender.load(run)
    before = scores_of(recommender, users=[LEARNED])
    recommender.add_items(pl.DataFrame({"item_id": [200, 201], "categories": [["group"], ["noise"]]}))
    after = scores_of(recommender, users=[LEARNED])
    assert len(after) == len(before) + 2
    assert {item: after[item] for item in before} == pytest.approx(before, abs=1e-5)
    held_out = Recommender.load(run)
    own = held_out.evaluate("full", "valid", baselines=False).metrics["ndcg@10"]
    held_out.model.user_encoder.encoder.codes.zero_()  # type: ignore[union-attr, operator]
    assert held_out.evaluate("full", "valid", baselines=False).metrics["ndcg@10"] != own


def test_an_onnx_file_reads_them(run: Path, tmp_path: Path):
    from seqrec import export_onnx, onnx_predictor

    found = export_onnx(run, tmp_path / "model.onnx")
    assert found.difference < 1e-4  # from the scores of the run
    assert found.metadata["num_users"] == str(LEARNED + ASKED)
    assert len(json.loads(found.ids.read_text())["users"]) == LEARNED + ASKED
    for user in (LEARNED, LEARNED + 1):
        wanted = dict(Predictor.load(run).recommend_users(user))
        assert dict(onnx_predictor(run).recommend_users(user)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["sasrec", "ssept", "gru4rec", "hstu", "esasrec", "lrurec", "tisasrec"])
def test_the_graph_of_every_model_reads_them(name: str):
    dataset = prepare(log()).with_users(people())
    sizes = {"embedding_dim": 8, "max_length": 6, "user_features": "age,vector", "num_user_codes": 2}
    model = build_model(name, sizes | {"num_user_values": 4}, dataset.num_items, dataset.num_users)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    give_features(model.eval(), dataset)
    batch = pack(histories_of_users(dataset, np.array([0, 1, 2, LEARNED])), 6)
    batch.users[2] = -1
    with torch.no_grad():
        wanted = model.encode_last(batch)
        assert torch.allclose(OnnxModel(model).encode_last(batch), wanted, atol=1e-4)
        batch.users[0] = 1
        assert not torch.allclose(model.encode_last(batch)[0], wanted[0], atol=1e-3)


def test_resuming_and_refitting_read_the_same_users(tmp_path: Path):
    options = QUICK | {"epochs": 2, "user_features": "gender,vector"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Recommender("sasrec", **options).fit(log(), whole, users=people())
    Recommender("sasrec", **options | {"epochs": 1}).fit(log(), parts, users=people())
    other = people().with_columns(gender=pl.col("gender").reverse())
    with pytest.raises(InputError, match="the run was started with another user table; give the same users, or"):
        Recommender("sasrec", **options).fit(log(), parts, users=other, resume=True)
    Recommender("sasrec", refit="all", **options).fit(log(), parts, users=people(), resume=True)
    first, second = Run(whole).model("train").state_dict(), Run(parts).model("train").state_dict()
    assert {name: torch.equal(weight, second[name]) for name, weight in first.items()} == dict.fromkeys(first, True)
    assert Recommender.load(parts).trained_on == "all"


def test_a_run_of_an_earlier_version_is_opened_and_resumed(tmp_path: Path):
    folder = tmp_path / "run"
    Recommender("sasrec", **QUICK).fit(log(), folder)
    config, before = json.loads((folder / "config.json").read_text()), Run(folder).id
    for name in ("user_features", "num_user_codes", "num_user_values"):
        del config["model_config"][name]
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.rglob("*"):  # they name the run, whose name follows from its config
        if file.is_file():
            file.write_bytes(file.read_bytes().replace(before.encode(), Run(folder).id.encode()))
    assert scores_of(Recommender.load(folder), users=[LEARNED])
    with pytest.raises(InputError, match="the run was started with user_features = , not age; resume with the same"):
        Recommender("sasrec", **QUICK, user_features="age").fit(log(), folder, users=people(), resume=True)
    later = Recommender("sasrec", **QUICK | {"epochs": 2}).fit(log(), folder, resume=True)
    assert [row["epoch"] for row in later.epochs] == [1, 2]


def test_warm_start_finds_features_of_users_by_name(run: Path, tmp_path: Path):
    interests = [["a new one", *row] if user < 3 else row for user, row in enumerate(people()["interests"].to_list())]
    more = people().with_columns(interests=pl.Series(interests))
    still = {"learning_rate": 1e-9, "average_decay": 0.0, "epochs": 1, "split": "last-two"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        found = Recommender(**still).fit(log(), tmp_path / "later", items=items(), users=more, init_from=run)
        facts = json.loads((tmp_path / "later/config.json").read_text())["init_from"]["user_features"]
        assert facts == {"kept": 8, "new": 1, "gone": 0}
        before, after = (one.model.user_encoder.encoder for one in (Recommender.load(run), found))  # type: ignore[union-attr]
        assert torch.allclose(before.value_vectors, after.value_vectors, atol=1e-5)
        assert torch.allclose(before.code_vectors[:4], after.code_vectors[:4], atol=1e-5)
        assert torch.allclose(before.code_vectors[4:], after.code_vectors[5:], atol=1e-5)  # the new one comes first
        for options, users, message in [
            ({"user_features": "age"}, people(), "its user_features is gender,age,interests,vector, not age, so its"),
            (
                {},
                None,
                "learned from the users' gender,age,interests,vector, but there is no user table; give --users FILE",
            ),
            ({}, people().drop("age"), "vector, but user_features name 'age', but the user table has .*; give --users"),
        ]:
            with pytest.raises(InputError, match=message):
                Recommender(**still, **options).fit(log(), items=items(), users=users, init_from=run)


@pytest.mark.parametrize(
    ("options", "users", "message"),
    [
        ({"user_features": "all"}, None, "user_features is 'all', but there is no user table; give users (--users"),
        ({"user_features": "job"}, people(), "user_features name 'job', but the user table has gender, age, inter"),
        ({"user_features": "name"}, people(), "user_features name 'name', but its texts differ between most users"),
        (
            {"user_features": "one"},
            people().with_columns(one=pl.lit("same")),
            "user_features name 'one', but no value is shared by some users and not by others; leave it out",
        ),
        (
            {"user_features": "all"},
            people().select("user_id", "name"),
            "there is nothing to learn of the user table: name: its texts differ between most users (give vectors of "
            "them); leave out user_features",
        ),
        (
            {"user_features": "gender"},
            people().with_columns(gender=pl.struct("gender")),
            "user_features name 'gender', but the user table has age, interests, vector, name; give some of these",
        ),
        ({}, people().with_columns(pl.col("user_id") + 1000), "describes no user of the log: its column 'user_id'"),
        ({}, people().with_columns(user_id=pl.lit(None, pl.Int64)), "user"),
        ({}, people().head(0), "the DataFrame: describes no user below the header; give a file that describes users"),
        ({}, "", "the path of the user file is empty; give a file"),
    ],
)
def test_user_tables_that_cannot_be_learned(tmp_path: Path, options: dict[str, Any], users: Any, message: str):
    with pytest.raises(InputError) as raised:
        Recommender("sasrec", **QUICK, **options).fit(log(), tmp_path / "run", users=users)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_models_that_take_no_features_of_users_refuse(tmp_path: Path, capsys):
    for name in ("popularity", "bert4rec", "caser", "slirec"):
        with pytest.raises(InputError, match=f"{name} has no option 'user_features'"):
            Recommender(name, user_features="all")
    log().write_csv(tmp_path / "log.csv")
    people().write_parquet(tmp_path / "users.parquet")
    given = [
        "fit",
        str(tmp_path / "log.csv"),
        "--users",
        str(tmp_path / "users.parquet"),
        "--split",
        "last-two",
        "--model",
    ]
    assert main([*given, "popularity", "--user-features", "all", "--out", str(tmp_path / "run")]) != 0
    assert "--user-features" in capsys.readouterr().err
    assert main([*given, "popularity", "--out", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not learned: the users' gender, age, interests, vector, name; popularity takes no features of users" in said


def test_the_command(tmp_path: Path, capsys):
    log().write_csv(tmp_path / "log.csv")
    some = people().filter(pl.col("user_id") != 7).select("user_id", "gender", "age")
    twice = pl.concat([some, some.head(1), some.head(2).with_columns(user_id=pl.col("user_id") + 5000)])
    twice.write_csv(tmp_path / "users.csv")
    options = ["--epochs", "1", "--embedding-dim", "8", "--batch-size", "64", "--ensemble", "1", "--transitions", "off"]
    given = [str(tmp_path / "log.csv"), "--users", str(tmp_path / "users.csv")]
    fit = ["fit", *given, "--split", "last-two", "--model", "sasrec", *options]
    assert main([*fit, "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert (
        "users.csv: users without a description: 1 of 200 (7); ignored descriptions of users that are not in the log "
        "or were filtered out: 2 (5000, 5001); ignored rows that describe a user again: 1 (0)"
    ) in err
    shown = " ".join(out.split())
    assert "not learned: the users' gender, age; --user-features all would" in shown
    assert "users described: 199 of 200" in shown
    assert main([*fit, "--out", str(tmp_path / "run"), "--overwrite", "--user-features", "all"]) == 0
    assert "sasrec learns of users gender (2 values), age (2 bins)" in " ".join(capsys.readouterr().out.split())
    assert scores_of(Recommender.load(tmp_path / "run"), users=[7])


def test_a_mixed_ensemble_learns_features_of_users(tmp_path: Path):
    options = QUICK | {"ensemble": 3, "ensemble_kinds": "mixed", "user_features": "gender"}
    Recommender("auto", **options).fit(log(), tmp_path / "run", users=people())
    recommender = Recommender.load(tmp_path / "run")
    assert all(part.user_encoder.encoder.is_set for part in recommender.model.parts)  # type: ignore[union-attr]
    assert scores_of(recommender, users=[LEARNED]) != scores_of(recommender, users=[LEARNED + 1])


def test_a_run_whose_user_table_is_gone_or_another(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["model_config"]["num_user_codes"] = 9
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as raised:
        Recommender.load(copy)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="user_table"):
        Recommender.load(shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("user_table*")))
