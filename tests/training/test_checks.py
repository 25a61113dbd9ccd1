"""Trainings that cannot learn: errors and warnings; and the state of the process after a fit."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, PrepareConfig, Recommender, TrainingWarning, prepare
from seqrec.cli.app import main
from seqrec.models import MODELS
from seqrec.training.checks import MOST_TENSORS

pytestmark = pytest.mark.usefixtures("few_constants")

TINY: dict[str, Any] = {"epochs": 1, "batch_size": 16, "threads": 1, "evaluate_every": 1, "transitions": "off"}
TRAINED = [name for name, model in MODELS.items() if not model.COUNTED]


def log_of(histories: list[list[int]]) -> pl.DataFrame:
    rows = [(user, item, step) for user, items in enumerate(histories) for step, item in enumerate(items)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def walks(users: int = 30, items: int = 40, length: int = 6) -> pl.DataFrame:
    """A log in which no user has an item twice."""
    return log_of([[(7 * user + step) % items for step in range(length)] for user in range(users)])


def everything(users: int = 6, items: int = 4) -> pl.DataFrame:
    """A log in which every user goes through all items, three times."""
    return log_of([[(user + step) % items for step in range(3 * items)] for user in range(users)])


@pytest.mark.parametrize("model", TRAINED)
@pytest.mark.parametrize("loss", ["sampled-softmax", "gbce", "bpr-max", "top1-max", "bce"])
def test_nobody_has_a_negative(tmp_path: Path, model: str, loss: str) -> None:
    with pytest.raises(InputError, match=rf"6 of 6 users have seen every item .*, so {loss} .* --loss cross-entropy"):
        Recommender(model, loss=loss, **TINY).fit(everything(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nobody_has_a_negative_that_popularity_draws() -> None:
    # Two items occur only in validation and test, so training never draws them.
    log = log_of([[1, 2, 1, 2, 3, 4]] * 5)
    with pytest.raises(InputError, match="5 of 5 users have seen every item"):
        Recommender(loss="sampled-softmax", popularity=1.0, **TINY).fit(log)
    Recommender(loss="sampled-softmax", popularity=0.0, **TINY).fit(log)


def test_some_users_have_no_negative() -> None:
    log = pl.concat([everything(2, 8), walks(20, 8, 5).with_columns(pl.col("user_id") + 10)])
    with pytest.warns(
        TrainingWarning, match="2 of 22 users have seen every item .* the model learns nothing from them"
    ):
        assert Recommender(loss="sampled-softmax", **TINY).fit(log).epochs[0]["loss"] > 0
    with pytest.raises(InputError, match=r"2 of 22 users have seen every item .* so bce"):
        Recommender(loss="bce", **TINY).fit(log)


def test_most_predictions_have_no_negative() -> None:
    # Users have all items but one, and there is one negative per batch.
    log = log_of([[(user + step) % 9 for step in range(20)] for user in range(100)])
    log = pl.concat([log, log_of([[9]] * 3).with_columns(pl.col("user_id") + 1000)])
    options = TINY | {"negatives": 1, "batch_size": 2, "keep_seen": True}
    with pytest.warns(TrainingWarning, match=r"\d\d% of the predictions of the first epoch had no negative"):
        Recommender(**options, popularity=0.0, seed=1).fit(log)


@pytest.mark.parametrize("loss", ["sampled-softmax", "cross-entropy", "bce"])
def test_a_catalogue_of_one_item(loss: str) -> None:
    with pytest.raises(InputError, match="the catalogue has only one item"):
        Recommender(loss=loss, **TINY).fit(log_of([[5, 5, 5, 5]] * 3))


def test_a_loss_of_zero_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.training.step.training_loss", lambda model, *_: 0 * model.item_embedding.weight.sum())
    with pytest.raises(InputError, match="loss of the first epoch is exactly 0"):
        Recommender(**TINY).fit(walks(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [{"learning_rate": 1e-45}, {"learning_rate": 1e-300}, {"clip_norm": 1e-300}])
def test_weights_that_never_change_are_an_error(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match="changed no weight"):
        Recommender(**TINY | option).fit(walks())


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("sasrec", {"max_length": 2**63}),
        ("sasrec", {"max_length": 2**63 - 1}),
        ("sasrec", {"embedding_dim": 2**40}),
        ("sasrec", {"attention_dim": 2**63}),
        ("sasrec", {"feedforward_dims": (2**63,)}),
        ("sasrec", {"feedforward_dims": (10**12,)}),
        ("sasrec", {"num_blocks": 10**6}),
        ("gru4rec", {"embedding_dim": 10**9}),
        ("tisasrec", {"max_length": 10**12}),
        ("sasrec", {"negatives": 2**62, "popularity": 1.0}),
        ("sasrec", {"negatives": 2**62, "loss": "bce"}),
    ],
)
def test_sizes_that_cannot_be_made(tmp_path: Path, model: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"give (a smaller|smaller|fewer|1 to)") as caught:
        Recommender(model, **options, **TINY).fit(walks(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert list(tmp_path.iterdir()) == []


def test_the_largest_number_of_tensors_is_far_from_what_is_trained() -> None:
    model = Recommender("sasrec", num_blocks=12, **TINY | {"evaluate_every": 0}).fit(walks()).model
    assert 10 * len(list(model.parameters())) < MOST_TENSORS


@pytest.mark.parametrize("device", ["privateuseone", "meta", "cuda:99", "xla", "", "cpu\n", "mkldnn", "hpu"])
def test_devices_that_are_not_there(tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    walks().write_csv(tmp_path / "log.csv")
    assert main(["fit", str(tmp_path / "log.csv"), "--out", str(tmp_path / "run"), "--device", device]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: device ")
    assert "is not available" in error
    assert not (tmp_path / "run").exists()


# Logs in which most users repeat items.


def rounds(users: int = 20, items: int = 30, own: int = 4) -> pl.DataFrame:
    """A log in which every user goes round a few own items."""
    random = np.random.default_rng(0)
    return log_of([list(random.choice(items, own, replace=False)) * 4 for _ in range(users)])


def test_seen_items_stay_where_most_validation_items_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = TINY | {"epochs": 3, "embedding_dim": 8}
    with pytest.warns(TrainingWarning, match=r"100% of the validation items .* --keep-seen=false removes them"):
        fitted = Recommender(**options).fit(rounds(), tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["split"]["keep_seen"] is True
    assert fitted.metrics["test"]["full"]["seen"] == "kept"
    assert fitted.metrics["test"]["full"]["unreachable"] == 0
    assert fitted.epochs[-1]["hr@10"] > 0
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.evaluate().metrics == fitted.evaluations["full"].metrics
    assert loaded.evaluate(keep_seen=False).unreachable == 20
    items = loaded.dataset.num_items
    assert loaded.recommend(k=items).height == 20 * items
    assert loaded.recommend(k=items, keep_seen=False).height == 20 * (items - 4)
    for flag, seen in (([], "kept"), (["--keep-seen=false"], "removed"), (["--keep-seen"], "kept")):
        assert main(["evaluate", str(tmp_path / "run"), *flag]) == 0
        assert f"seen items {seen}" in capsys.readouterr().out


def test_seen_items_are_removed_where_a_person_says_so() -> None:
    with pytest.warns(TrainingWarning, match=r"100% of the validation items .* count as misses .* --keep-seen ranks"):
        fitted = Recommender(**TINY, keep_seen=False).fit(rounds())
    assert fitted.epochs[0]["hr@10"] == 0
    assert fitted.evaluate().seen == "removed"


@pytest.mark.parametrize("asked", [None, False, True])
def test_nothing_is_said_where_few_items_repeat(asked: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = Recommender(**TINY | {"transitions": "auto"}, keep_seen=asked, split="last-two").fit(walks())
    assert fitted.evaluate().seen == ("kept" if asked else "removed")


@pytest.mark.parametrize("model", ["sasrec", "markov"])
def test_nobody_validates_or_tests(model: str) -> None:
    with pytest.warns(TrainingWarning, match="nothing validates or tests: no user has 3 interactions"):
        Recommender(model, epochs=1).fit(log_of([[1, 2], [2, 3], [3, 1]]))


def test_a_period_without_targets_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = pl.concat([walks(10), log_of([[1]]).with_columns(pl.col("user_id") + 99, pl.col("timestamp") + 50)])
    log.write_csv(tmp_path / "log.csv")
    command = ["fit", str(tmp_path / "log.csv"), "--out", str(tmp_path / "run"), "--model", "markov", "--split", "time"]
    assert main([*command, "--valid-from", "4", "--test-from", "1970-01-01T00:00:50"]) == 0
    shown = capsys.readouterr()
    assert "warning: nothing tests: no user has interactions both before and in the period" in shown.err
    assert json.loads((tmp_path / "run/config.json").read_text())["split"]["test_from"] == 50


# The state of the process after a fit.


def torch_state() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().tolist(), repr(np.random.get_state()), torch.get_default_dtype(),  # noqa: NPY002
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(),
        torch.get_default_device(), torch.is_autocast_enabled("cpu"),
    )  # fmt: skip


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


WAYS: list[Callable[[], AbstractContextManager[Any]]] = [
    torch.no_grad, torch.inference_mode, default_dtype, lambda: torch.autocast("cpu"), lambda: torch.device("meta"),
]  # fmt: skip


def small(model: str) -> Recommender:
    options = TINY | {"epochs": 2, "embedding_dim": 8, "transitions": "auto"} if model != "markov" else {}
    return Recommender(model, **options).fit(walks())


@pytest.fixture(scope="module")
def plain() -> Callable[[str], Recommender]:
    """A function that returns a fitted model of a kind, always the same."""
    return cache(small)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "bert4rec", "markov"])
@pytest.mark.parametrize("way", WAYS, ids=["no_grad", "inference_mode", "default_dtype", "autocast", "device"])
def test_fit_is_the_same_whatever_the_program_set_and_leaves_it_so(
    plain: Callable[[str], Recommender], model: str, way: Callable[[], AbstractContextManager[Any]]
) -> None:
    wanted = plain(model).model.state_dict()
    torch.manual_seed(5)
    with way():
        before = torch_state()
        fitted = small(model)
        assert torch_state() == before
    for name, weight in fitted.model.state_dict().items():
        assert torch.equal(weight, wanted[name])


def test_a_second_fit_has_nothing_of_the_first(tmp_path: Path) -> None:
    recommender = Recommender(**TINY).fit(walks(), tmp_path / "first")
    assert recommender.metrics["test"]["full"]["users"] == 30
    recommender.fit(walks(users=12))
    assert recommender.metrics == {}
    assert recommender.evaluations == {}
    recommender.save(tmp_path / "second")
    assert json.loads((tmp_path / "second/metrics.json").read_text()) == {}
    assert recommender.evaluate().users == 12


@pytest.mark.parametrize("failure", [InputError, RuntimeError, KeyboardInterrupt])
def test_a_second_fit_that_fails_leaves_the_first(tmp_path: Path, failure: type[BaseException]) -> None:
    recommender = Recommender(**TINY | {"epochs": 2}).fit(walks(), tmp_path / "run")
    before = dict(vars(recommender))
    expected = recommender.recommend(k=3)

    def fails() -> bool:
        raise failure("no")

    with pytest.raises(failure):
        recommender.fit(walks(users=12), stop=fails)
    assert vars(recommender) == before
    assert recommender.recommend(k=3).equals(expected)
    with pytest.raises(InputError, match="give a function"):
        recommender.fit(walks(users=12), stop=True)  # type: ignore[arg-type]
    assert vars(recommender) == before


@pytest.mark.parametrize("answer", [1, "yes", np.True_, [0]])
def test_stop_may_answer_with_anything_true(answer: Any) -> None:
    fitted = Recommender(**TINY | {"epochs": 9}).fit(walks(), stop=lambda: answer)
    assert len(fitted.epochs) == 1
    assert "the end of the budget" in fitted.summary


def test_filters_of_a_dataset_are_its_own(tmp_path: Path) -> None:
    frame = pl.concat([walks(), log_of([[1, 1, 2]]).with_columns(pl.col("user_id") + 100)])
    plain, dropped = prepare(frame), prepare(frame, PrepareConfig(duplicates="drop", min_user_interactions=3))
    for options in ({"duplicates": "drop"}, {"min_user_interactions": 3}):
        with pytest.raises(InputError, match=rf"{next(iter(options))} is .*, but the Dataset was made with"):
            Recommender("markov", **options).fit(plain, tmp_path / "run")
    with pytest.raises(InputError, match=r"min_user_interactions is 2, but the Dataset was made with .* = 3"):
        Recommender("markov", min_user_interactions=2).fit(dropped)
    dropped.save(tmp_path / "dataset")
    kinds = {"same": dropped, "saved": type(dropped).load(tmp_path / "dataset")}
    for name, dataset in kinds.items():
        for options in ({}, {"duplicates": "drop"}, {"duplicates": "drop", "min_user_interactions": 3}):
            Recommender("markov", **options).fit(dataset, tmp_path / name, overwrite=(tmp_path / name).exists())
            said = json.loads((tmp_path / name / "config.json").read_text())["prepare"]
            assert (said["duplicates"], said["min_user_interactions"]) == ("drop", 3)
    again = Recommender.load(tmp_path / "same").dataset
    with pytest.raises(InputError, match="the Dataset was made with"):
        Recommender("markov", min_item_interactions=2).fit(again)


def test_the_whole_time_of_an_epoch_is_kept(tmp_path: Path) -> None:
    rows = Recommender(**TINY | {"epochs": 3, "checkpoint_minutes": 0}).fit(walks(), tmp_path / "run").epochs
    assert all(0 < row["seconds"] < row["total_seconds"] for row in rows)
    again = Recommender(**TINY | {"epochs": 4, "checkpoint_minutes": 0}).fit(walks(), tmp_path / "run", resume=True)
    assert [row["seconds"] for row in again.epochs[:3]] == [row["seconds"] for row in rows]
    assert pl.read_csv(tmp_path / "run/epochs.csv").height == 4
    assert all(row["seconds"] < row["total_seconds"] for row in again.epochs)
