"""The recipe: what is chosen from a log, that given options win, and that a resumed run keeps its choices."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import MODELS, InputError, Recommender, TrainConfig, prepare
from seqrec.data.batches import Epoch
from seqrec.data.dataset import Dataset
from seqrec.data.split import all_histories
from seqrec.run.config import run_id
from seqrec.training import recipe as rules
from seqrec.training.config import default_negatives
from seqrec.training.recipe import Facts, Recipe, choose, facts_of, lines

MODELS_PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TRAINED = [name for name in MODELS if not MODELS[name].COUNTED]
OTHERS: dict[str, Any] = {
    "max_length": 7, "dropout": 0.1, "windows": "all", "loss": "bce", "batch_size": 3, "learning_rate": 0.5,
    "ensemble": 2, "ensemble_kinds": "same",
}  # fmt: skip


def made(lengths: list[int], items: int = 12, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    rows = [(u, int(item), n) for u, length in enumerate(lengths)
            for n, item in enumerate(random.permutation(max(items, length))[:length])]  # fmt: skip
    return prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


def chosen(model: str, lengths: np.ndarray, items: int, minutes: float | None = None, **given: Any) -> Recipe:
    kinds = {name: value for name, value in given.items() if hasattr(MODELS[model].Config(), name)}
    sizes = MODELS[model].Config(**kinds)
    training = TrainConfig(**{name: value for name, value in given.items() if name not in kinds})
    return choose(model, sizes, training, Facts(lengths, items, minutes))


@pytest.mark.parametrize("seed", range(4))
def test_facts_are_those_of_an_epoch(seed: int) -> None:
    random = np.random.default_rng(seed)
    histories = all_histories(made(random.integers(1, 40, 30).tolist()))
    facts = facts_of(histories)
    for length in (1, 5, 50):
        for windows in ("last", "all"):
            epoch = Epoch(histories, batch_size=1, max_length=length, seed=0, windows=windows)  # type: ignore[arg-type]
            assert (facts.tokens(length, windows), facts.windows(length, windows)) == (epoch.tokens, len(epoch))


@pytest.mark.parametrize(
    ("model", "lengths", "items", "expected"),
    [
        # games.txt: many short histories
        ("sasrec", np.full(31_000, 6), 23_715, (50, 0.5, "last", "sampled-softmax", 128)),
        # a smaller catalogue
        ("sasrec", np.full(22_000, 7), 4_000, (50, 0.5, "last", "cross-entropy", 128)),
        # ml-1m: few long histories, a third of which are beyond the last 200 items
        ("sasrec", np.repeat([50, 100, 400], 2_000), 3_416, (200, 0.2, "all", "cross-entropy", 32)),
        ("ssept", np.repeat([20, 60], 3_000), 3_416, (100, 0.3, "last", "cross-entropy", 32)),
        # a large catalogue, and models whose best loss is another
        ("sasrec", np.full(10**6, 10), 10**5, (50, 0.5, "last", "sampled-softmax", 128)),
        ("bert4rec", np.full(31_000, 6), 23_715, (50, 0.2, "last", "sampled-softmax", 128)),
        ("caser", np.full(400, 60), 1_000, (50, 0.5, "last", "bce", 16)),
        ("tisasrec", np.full(2_500, 199), 1_000, (200, 0.2, "last", "sampled-softmax", 16)),
    ],
)
def test_what_is_chosen_for_logs_of_known_shapes(
    model: str, lengths: np.ndarray, items: int, expected: tuple[Any, ...]
) -> None:
    found = chosen(model, lengths, items)
    names = ("max_length", "dropout", "windows", "loss", "batch_size")
    assert tuple(found.get(name) for name in names) == expected
    assert found.get("learning_rate") == 0.001
    plain = MODELS[model].Config.PLAIN | TrainConfig.PLAIN | {"loss": MODELS[model].LOSS}
    for name in names:
        if found.get(name) != plain.get(name, found.get(name)):
            assert found.reasons[name], name
            assert any(line.strip().startswith(f"{name} {found.get(name)}: ") for line in lines(found))


@pytest.mark.parametrize("model", TRAINED)
@pytest.mark.parametrize("seed", range(5))
def test_options_that_are_given_stay(model: str, seed: int) -> None:
    random = np.random.default_rng([seed, len(model)])
    lengths = random.integers(2, int(random.integers(3, 500)), int(random.integers(1, 5000)))
    known = {*vars(MODELS[model].Config()), *vars(TrainConfig())}
    names = [name for name in OTHERS if name in known and random.random() < 0.5]
    minutes = random.choice([None, 0.1, 10.0])
    found = chosen(model, lengths, int(random.integers(2, 10**6)), minutes, **{name: OTHERS[name] for name in names})
    assert {name: found.get(name) for name in names} == {name: OTHERS[name] for name in names}
    assert not set(names) & set(found.reasons)
    assert all(found.get(name) is not None for name in rules.RULES if name in known)
    assert choose(model, found.sizes, found.training, Facts(lengths, 5, minutes)) == replace(found, reasons={})


@pytest.mark.parametrize(
    "given", [{"negatives": 10}, {"popularity": 0.0}, {"logq_correction": "negatives"}, {"loss": "gbce"}]
)
def test_options_of_negatives_mean_a_loss_that_has_them(given: dict[str, Any]) -> None:
    found = chosen("sasrec", np.full(31_000, 6), 3_000, **given)
    assert found.get("loss") == given.get("loss", "sampled-softmax")
    assert chosen("gru4rec", np.full(31_000, 6), 3_000, elu=0.5).get("loss") == "sampled-softmax"
    assert chosen("sasrec", np.full(500, 300), 3_000, random_start=0.5).get("windows") == "last"


def test_minutes_change_the_recipe_the_same_way_everywhere() -> None:
    """Ever more time: first one model with a fast learning rate, then several, then several with cross-entropy."""
    lengths = np.full(31_000, 7)
    found = [chosen("sasrec", lengths, 23_715, minutes) for minutes in (0.1, 1, 3, 10, None, 100)]
    assert [one.get("loss") for one in found] == ["sampled-softmax"] * 5 + ["cross-entropy"]
    assert [one.get("ensemble") for one in found] == [1, 1, 2, 6, 6, 6]
    assert [one.get("ensemble_kinds") for one in found] == ["same"] * 2 + ["mixed"] * 4
    assert [one.get("learning_rate") for one in found] == [0.003, 0.002, 0.001, 0.001, 0.001, 0.001]
    assert "0.1 minutes are too few for several models with cross-entropy" in found[0].reasons["loss"]
    assert "10 minutes are enough" in found[3].reasons["ensemble"]
    assert found[2].reasons["ensemble_kinds"].startswith("sasrec, ssept in turn")
    assert found[3].reasons["ensemble_kinds"].startswith("sasrec, ssept, gru4rec in turn")
    assert "learning_rate" not in found[-1].reasons


@pytest.mark.parametrize(
    ("model", "items", "minutes", "expected"),
    [
        ("sasrec", 23_715, None, "spectral"), ("gru4rec", 500_000, 10, "spectral"), ("ssept", 700_000, 10, "random"),
        ("sasrec", 700_000, 60, "spectral"), ("sasrec", 23_715, 0.1, "random"), ("tisasrec", 1_000, None, "random"),
        ("caser", 1_000, None, "random"), ("lrurec", 23_715, None, "spectral"),
    ],
)  # fmt: skip
def test_where_item_vectors_start(model: str, items: int, minutes: float | None, expected: str) -> None:
    found = chosen(model, np.full(31_000, 7), items, minutes)
    assert found.get("item_init") == expected
    assert bool(found.reasons.get("item_init")) == (model in rules.WITH_CROSS_ENTROPY)


@pytest.mark.parametrize(
    ("model", "users", "given", "count"),
    [
        ("sasrec", 31_000, {}, 6), ("sasrec", 499, {}, 1), ("sasrec", 500, {}, 6),
        ("sasrec", 31_000, {"ensemble": 2}, 2),
        ("sasrec", 499, {"ensemble_kinds": "mixed"}, 2),
        ("gru4rec", 31_000, {}, 6), ("gru4rec", 31_000, {"elu": 0.5}, 1), ("slirec", 31_000, {}, 1),
        ("sasrec", 3_000_000, {}, 1), ("sasrec", 300_000, {"minutes": 1.0}, 1),
        # the slower an epoch, the fewer models
        ("bert4rec", 31_000, {"minutes": 4.0}, 2), ("hstu", 31_000, {"minutes": 4.0}, 3),
        ("lrurec", 31_000, {"minutes": 4.0}, 3), ("lrurec", 31_000, {"minutes": 3.0}, 2),
        ("hstu", 31_000, {"minutes": 3.0}, 2), ("esasrec", 31_000, {"minutes": 3.0}, 1),
    ],
)  # fmt: skip
def test_how_many_models(model: str, users: int, given: dict[str, Any], count: int) -> None:
    minutes = given.pop("minutes", None)
    assert chosen(model, np.full(users, 7), 23_715, minutes, **given).get("ensemble") == count


@pytest.mark.parametrize("model", TRAINED)
def test_an_epoch_is_assumed_to_take_as_long_as_was_measured(model: str) -> None:
    """The last column of the table in docs/models.md, beside SASRec with its loss."""
    rows = [line.strip("| ").split(" | ") for line in MODELS_PAGE.read_text().splitlines() if line.startswith("| `")]
    measured = {row[0].strip("`"): row[-1] for row in rows}
    facts = Facts(np.full(31_000, 7), 23_715, 10.0)
    epochs = {}
    for name in ("sasrec", model):
        loss = MODELS[name].LOSS
        recipe = chosen(name, facts.lengths, facts.num_items, loss=loss)
        epochs[name] = rules.epochs_within(name, facts, recipe, default_negatives(loss))
    assert epochs["sasrec"] / epochs[model] == pytest.approx(float(measured[model]), rel=0.04)


def test_nothing_is_chosen_without_histories() -> None:
    found = chosen("sasrec", np.zeros(0, dtype=np.int64), 5)
    assert (found.get("loss"), found.get("max_length"), lines(found)) == (None, None, [])
    with pytest.raises(InputError, match="no user has two interactions"):
        Recommender("sasrec").fit(made([1, 1, 1]))


def test_a_run_keeps_what_was_chosen_and_why(tmp_path: Path) -> None:
    log = made([9] * 40)
    recommender = Recommender("sasrec", epochs=1, embedding_dim=8, split="last-two").fit(log, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = choose("sasrec", recommender.model_config, recommender.train_config, Facts(np.full(40, 7), 12))
    assert values["recipe"] == expected.reasons
    assert "batch_size" in values["recipe"]
    assert values["model_config"]["max_length"] == expected.get("max_length")
    assert values["training"]["batch_size"] == expected.get("batch_size")
    assert values["training"]["loss"] == expected.get("loss") == "cross-entropy"
    assert run_id(values) == run_id(values | {"recipe": {"loss": "another reason"}})
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.train_config.batch_size == expected.get("batch_size")


def test_a_resumed_run_keeps_its_recipe_whatever_the_rules_would_choose_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, given = made([9] * 40), {"epochs": 1, "embedding_dim": 8, "split": "last-two"}
    Recommender("sasrec", **given).fit(log, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "config.json").read_text())
    monkeypatch.setattr(rules, "BATCH_SIZES", (100, 50))
    Recommender("sasrec", **given | {"epochs": 2}).fit(log, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == before
    assert pl.read_csv(tmp_path / "run" / "epochs.csv").height == 2
    with pytest.raises(InputError, match="batch_size = 16, not 4"):
        Recommender("sasrec", **given, batch_size=4).fit(log, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="the run was started with"):
        Recommender("gru4rec", **given).fit(log, tmp_path / "run", resume=True)
