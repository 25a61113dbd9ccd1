"""A time limit: what it takes, when it ends training, and what it expects of what follows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import InputError, Recommender, TrainingWarning, prepare, split_last_two
from seqrec.cli import begin
from seqrec.cli.app import main
from seqrec.models.transitions import TransitionsConfig
from seqrec.training import recipe
from seqrec.training.ahead import settled_constants
from seqrec.training.budget import SECONDS_KEPT, SHARE_KEPT, Ahead, Budget, Limit, extrapolated


class Clock:
    """A clock that stands still unless told otherwise."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def log(users: int = 60) -> pl.DataFrame:
    random = np.random.default_rng(0)
    rows = [(u, (u + n + int(random.integers(2))) % 15, n) for u in range(users) for n in range(8)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), 10**7, "5", True, None, [1]])
def test_minutes_that_are_none(minutes: Any) -> None:
    with pytest.raises(InputError, match=r"minutes is .*; give a number above 0"):
        Budget(minutes)


@pytest.mark.parametrize("seed", range(20))
def test_a_command_ends_in_time(seed: int) -> None:
    """Steps, the rest and the refit, each of some known time, end within the limit, and not a step too early."""
    random, clock = np.random.default_rng(seed), Clock(50.0)
    minutes, step = float(random.uniform(0.5, 20)), float(random.uniform(0.01, 0.3))
    ahead = Ahead(float(random.uniform(0, 10 * minutes)), float(random.choice([0.0, 1.0, 1.4])))
    budget = Budget(minutes, clock=clock)
    steps_per_epoch = int(random.integers(1, int(4 * minutes / step)))
    earlier = int(random.integers(3)) if steps_per_epoch * step < minutes else 0  # epochs before a resume
    clock.wait(float(random.uniform(0, 10 * minutes)))  # reading the log
    limit, steps = Limit(budget, ahead, steps_per_epoch, earlier), 0
    while True:
        clock.wait(step)
        steps += 1
        if limit():
            break
    assert limit.reached
    epochs = earlier + -(-steps // steps_per_epoch)
    clock.wait(ahead.after + ahead.refit * epochs * steps_per_epoch * step)
    kept = max(SECONDS_KEPT, SHARE_KEPT * 60 * minutes)
    another = step + ahead.refit * steps_per_epoch * step  # a step more may begin an epoch more
    assert kept - step - 1e-6 <= budget.left() <= kept + another
    assert ahead.refit or budget.left() <= kept


def test_a_limit_that_is_past_allows_one_step_and_others_may_stop_it_too() -> None:
    clock = Clock()
    assert Limit(Budget(1, clock=clock), Ahead(1000), 5)()
    asked = Limit(Budget(1, clock=clock), Ahead(0), 5, stop=lambda: True)
    assert asked()
    assert not asked.reached
    assert Budget(1, begun=-90, clock=clock).left() == -30


@pytest.mark.parametrize(("fixed", "each", "first"), [(2.0, 0.01, 0.0), (0.0, 0.5, 0.0), (1.0, 0.01, 3.0)])
def test_seconds_for_many_from_those_for_few(fixed: float, each: float, first: float) -> None:
    clock, calls = Clock(), []

    def work(users: int) -> None:
        clock.wait(fixed + each * users + (0 if calls else first))
        calls.append(users)

    found = extrapolated(work, 10_000, (50, 500), clock)
    truth = fixed + each * 10_000
    assert sorted(calls) == [50, 500]
    assert found == pytest.approx(truth) if first == 0 else found >= truth
    calls.clear()
    assert extrapolated(work, 20, (50, 500), clock) == pytest.approx(fixed + each * 20 + first)


def test_constants_of_counts_are_not_chosen_in_a_hurry() -> None:
    split = split_last_two(prepare(log()))
    clock = Clock()
    hurried = settled_constants(split, False, 0, Budget(1e-9, begun=-1, clock=clock))
    assert hurried == TransitionsConfig().resolved()
    chosen = settled_constants(split, False, 0)
    assert settled_constants(split, False, 0, Budget(10, clock=clock)) == chosen
    assert chosen != hurried


@pytest.mark.slow_but_one
@pytest.mark.parametrize("refit", ["off", "valid"])
def test_a_small_budget_ends_in_a_whole_run_that_more_minutes_continue(
    refit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "RATE", 1000)  # too slow for cross-entropy, with few minutes and with many
    given: dict[str, Any] = {"embedding_dim": 8, "split": "last-two", "refit": refit}
    with pytest.warns(TrainingWarning, match="training has no time left"):  # nor the refit, if one is asked for
        first = Recommender("sasrec", **given).fit(log(), tmp_path / "run", minutes=1e-4)
    assert not first.interrupted
    assert "budget" in first.summary
    assert len(first.epochs) == 1
    assert first.metrics["budget"] == {"minutes": 1e-4, "ended_training": True}
    assert set(first.metrics["test"]) == {"full", "sampled"}
    before = json.loads((tmp_path / "run" / "config.json").read_text())
    assert before["training"]["loss"] == "sampled-softmax"
    assert "0.0001 minutes are too few" in before["recipe"]["loss"]
    monkeypatch.undo()
    more = Recommender("sasrec", **given, epochs=3).fit(log(), tmp_path / "run", minutes=5, resume=True)
    assert len(more.epochs) == 3
    assert more.metrics["budget"] == {"minutes": 5, "ended_training": False}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == before
    assert len(Recommender.load(tmp_path / "run").recommend(users=[0], k=3)) == 3


def test_looking_ahead_changes_no_weight() -> None:
    given: dict[str, Any] = {"embedding_dim": 8, "split": "last-two", "epochs": 2, "learning_rate": 0.01}
    plain = Recommender("sasrec", **given, loss="bce").fit(log())
    limited = Recommender("sasrec", **given, loss="bce").fit(log(), minutes=30)
    assert all((a == b).all() for a, b in zip(plain.model.parameters(), limited.model.parameters(), strict=True))
    assert plain.epochs[-1]["ndcg@10"] == limited.epochs[-1]["ndcg@10"]


def test_the_command_has_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    log().write_csv(path)
    fit = ["fit", str(path), "--out", str(tmp_path / "run"), "--embedding-dim", "8", "--split", "last-two"]
    assert main([*fit, "--minutes", "0"]) == 2
    assert "minutes is 0.0; give a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*fit, "--minutes", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "chosen from the log, as not given:" in out
    assert "stopped at the end of the budget" in out


def test_a_command_begins_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    begin.note(of_process=False)
    assert begin.began() == 100.0
    monkeypatch.setattr(begin, "_age", lambda: 2.5)
    begin.note(of_process=True)
    assert begin.began() == 97.5


def test_the_refit_of_a_resumed_run_is_estimated_from_its_epochs() -> None:
    """A few steps, which include whatever is done once, and the tests after training say nothing about an epoch."""
    now = [0.0]
    limit = Limit(Budget(10, clock=lambda: now[0]), Ahead(0, refit=1.5), 100, 7, seconds=20.0)
    now[0] = 30.0
    assert not limit()  # the first step
    now[0] = 130.0  # tests
    assert limit.refit(7) == pytest.approx(1.5 * 7 * 20)
    fresh = Limit(Budget(10, clock=lambda: now[0]), Ahead(0, refit=1.0), 2)
    now[0] = 134.0
    fresh()
    now[0] = 138.0
    fresh()
    now[0] = 300.0
    assert fresh.refit(3) == pytest.approx(3 * 8)
