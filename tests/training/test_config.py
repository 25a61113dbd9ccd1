"""Training options: their ranges and their defaults."""

import json
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest

from seqrec import MODELS, InputError, Recommender, TrainConfig
from seqrec.data.negatives import Loss
from seqrec.training.config import default_negatives, default_popularity
from seqrec.training.recipe import WITH_CROSS_ENTROPY


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_model_is_a_loss(name: str) -> None:
    assert MODELS[name].LOSS in get_args(Loss)


def test_unknown_losses_are_refused() -> None:
    for loss in (None, *get_args(Loss)):
        assert TrainConfig(loss=loss).loss == loss
    with pytest.raises(
        InputError, match=r"loss is 'hinge'; give sampled-softmax, bce, .* or top1-max, or leave it out"
    ):
        TrainConfig(loss="hinge")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0}, "learning_rate is 0; give more than 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; give more than 0"),
        ({"beta2": 0.5}, "beta2 is 0.5; give at least 0.9 and less than 1"),
        ({"average_decay": 1.0}, "average_decay is 1.0; give at least 0 and less than 1"),
        ({"threads": 2000}, "threads is 2000; give 1 to 1024, or leave it out"),
        ({"popularity": -0.1}, "popularity is -0.1; give 0 to 10, or leave it out"),
        ({"calibration": float("nan")}, "calibration is nan; give 0 to 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; give a smaller number"),
        ({"loss": "cross-entropy", "negatives": 5}, "leave out negatives and popularity"),
        ({"logq_correction": "some"}, "logq_correction is 'some'; give all or negatives"),
    ],
)
def test_what_is_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        TrainConfig(**options)
    assert "\n" not in str(caught.value)


def test_negatives_where_none_are_given() -> None:
    assert [default_negatives(loss) for loss in ("bce", "gbce", "sampled-softmax", "bpr-max")] == [1, 256, 1024, 1024]
    assert default_popularity("sampled-softmax", 1024, 3000) == 0.25
    assert default_popularity("sampled-softmax", 1024, 1024) == 0.0
    assert default_popularity("bce", 1, 3000) == default_popularity("bpr-max", 10, 3000) == 0.0


def test_what_is_left_open_is_resolved_once() -> None:
    resolved = TrainConfig(learning_rate=0.01).resolved_for("gbce", 3000, 30)
    assert (resolved.loss, resolved.negatives, resolved.popularity) == ("gbce", 256, 0.0)
    assert (resolved.evaluate_every, resolved.table_learning_rate) == (4, 0.01)
    assert resolved.resolved_for("bce", 10, 1) == resolved
    plain = TrainConfig(loss="cross-entropy", evaluate_every=0).resolved_for("bce", 3000, 30)
    assert (plain.loss, plain.negatives, plain.popularity, plain.evaluate_every) == ("cross-entropy", None, None, 0)


#: Options for which None is a value: no clipping, no negatives, no categories, or the machine's number of threads.
OF_NEGATIVES = {"negatives", "popularity"}
OPEN = {"clip_norm", "threads"} | OF_NEGATIVES


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", [name for name in MODELS if not MODELS[name].COUNTED])
def test_config_json_holds_what_was_used(name: str, tmp_path: Path) -> None:
    rows = [(u, (u + i) % 7, i) for u in range(9) for i in range(5)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    options = {"epochs": 1, "embedding_dim": 8, "evaluate_every": None, "transitions": "off"}
    first = Recommender(name, **options).fit(log, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    training = values["training"]
    has_negatives = training["loss"] != "cross-entropy"
    left_open = OPEN - OF_NEGATIVES if has_negatives else OPEN
    assert {key for key, value in training.items() if value is None} <= left_open
    assert training["loss"] == ("cross-entropy" if name in WITH_CROSS_ENTROPY else MODELS[name].LOSS)
    assert training["evaluate_every"] == 100
    assert None not in values["model_config"].values()
    # Explicit and default options give the same run.
    Recommender(name, **options, loss=training["loss"], negatives=training["negatives"]).fit(
        log, tmp_path / "run", resume=True
    )
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.recommend(users=[3], k=3).equals(first.recommend(users=[3], k=3))
    with pytest.raises(InputError, match="negatives" if has_negatives else "loss = cross-entropy"):
        Recommender(name, **options, negatives=3).fit(log, tmp_path / "run", resume=True)
