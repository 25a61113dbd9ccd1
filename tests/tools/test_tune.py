"""Tuning: trials on validation items only, a study that can be killed and continued, and the fit at its end."""

import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
from rich.console import Console

from seqrec import InputError, Recommender, prepare, synthetic_log
from seqrec.data.dataset import Dataset
from seqrec.models import MODELS
from seqrec.tools.config import TuneConfig
from seqrec.tools.space import SPACE, Span, applied, base_of, defaults, searched
from seqrec.tools.study import ALONE, SUMMED, Study
from seqrec.tools.trial import Job, OneByOne, Outcome, attempted, plan_of
from seqrec.tools.tune import STUDY, _Search, study_folder, tune_model
from seqrec.training.budget import Budget
from seqrec.training.recipe import RULES

LOG = synthetic_log(80, genres=2, items_per_genre=12, mean_length=6)
SMALL: dict[str, Any] = {"epochs": 2, "num_blocks": 1, "evaluate_every": 1, "transitions": "off"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return prepare(LOG.frame)


@pytest.fixture(scope="module")
def tuned(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("tune") / "run"
    return tune_model(dataset, out, config=TuneConfig(trials=4), **SMALL)


def test_the_first_trial_is_the_recipe(dataset: Dataset, tuned) -> None:
    alone = Recommender(**SMALL).fit(dataset)
    first = tuned.rows[0]
    assert first.is_recipe
    assert first.value == max(row["ndcg@10"] for row in alone.epochs)
    assert [row.is_recipe for row in tuned.rows] == [True, False, False, False]
    assert tuned.best.value == max(row.value for row in tuned.rows if row.state == "complete") >= first.value


def test_it_ends_with_a_run_of_the_best_options(tuned) -> None:
    run = Recommender.load(tuned.run)
    values = run._config.model_config | run._config.training
    for name, value in tuned.best.options.items():
        assert values[name] == value, name
    assert max(row["ndcg@10"] for row in tuned.recommender.epochs) == tuned.best.value  # to the last bit
    assert set(run.metrics["test"]) == {"full", "sampled"}
    assert "popularity" in json.dumps(run.metrics["test"])


def test_the_table_and_the_json(tuned) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tuned.table())
    text = console.export_text()
    assert "the recipe" in text
    assert text.count("←") == 1
    for row in tuned.rows:
        assert f"{row.value:.4f}" in text
    found = json.loads(json.dumps(tuned.to_dict()))
    assert [trial["trial"] for trial in found["trials"]] == [0, 1, 2, 3]
    assert found["best"] == tuned.best.trial
    assert all(trial["options"] for trial in found["trials"])


def test_the_study_is_one_of_optuna(tuned) -> None:
    study = optuna.load_study(study_name="seqrec", storage=f"sqlite:///{tuned.study}")
    assert study.best_value == tuned.best.value
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    # every validation is reported, one per epoch here
    assert all(len(trial.intermediate_values) == 2 for trial in study.trials if trial.state.name == "COMPLETE")


def test_trials_are_compared_with_the_counts_that_the_fit_adds(dataset: Dataset, tmp_path: Path) -> None:
    found = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=2), **SMALL | {"transitions": "auto"})
    best, metrics = found.best, found.recommender.metrics["transitions"]
    assert best.weight == metrics["weight"] > 0
    assert (best.value, best.alone) == (metrics["validation"]["summed"], metrics["validation"]["alone"])
    alone = Recommender(**SMALL | {"transitions": "auto"}).fit(dataset)
    first = found.rows[0]
    assert (first.alone, first.weight) == (max(row["ndcg@10"] for row in alone.epochs), alone.model.addition.weight)
    for name in ("decay", "distance", "neighbours"):
        assert metrics["constants"][name] == getattr(alone.model.addition.transitions.config, name)


def test_the_best_trial_is_that_of_the_best_sum(dataset: Dataset, tmp_path: Path) -> None:
    class Given(OneByOne):
        def wait(self, judge):
            job = self.jobs.pop(0)
            assert job.constants is not None
            sums, alone = ((0.3, 0.1), (0.2, 0.2))[job.number]
            judge(job.number, 1, alone)
            return [(job.number, Outcome("complete", sums, alone=alone, weight=1.0))]

    workers, console = Given(dataset), Console(width=150, record=True, file=io.StringIO())
    small = SMALL | {"transitions": "auto", "epochs": 1}
    found = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=2), workers=workers, **small)
    assert (found.best.trial, found.best.value, found.best.alone) == (0, 0.3, 0.1)
    console.print(found.table())
    text = console.export_text()
    assert "with transition counts where they help" in text
    assert [line.split()[:3] for line in text.splitlines() if "complete" in line] == [
        ["0", "0.3000", "0.1000"],
        ["1", "0.2000", "0.2000"],
    ]


def test_a_study_that_compared_models_alone(tmp_path: Path) -> None:
    study, given = Study(tmp_path / STUDY, 0), {"fingerprint": "x", "model": "auto", "epochs": 2}
    study.begin({"given": given})  # as an earlier seqrec did
    study.check(given | {"compared": ALONE})
    with pytest.raises(InputError, match="compared models alone, not with transition counts; --overwrite") as found:
        study.check(given | {"compared": SUMMED})
    assert "\n" not in str(found.value)
    study.close()


def test_test_items_are_not_read(dataset: Dataset, tuned, tmp_path: Path) -> None:
    frame = LOG.frame.sort("user_id", "timestamp")
    last = frame.with_row_index().group_by("user_id").agg(pl.col("index").max())["index"]
    is_last = frame.with_row_index()["index"].is_in(last.implode())
    other = frame["item_id"].unique().sort()
    changed = frame.with_columns(pl.when(is_last).then(pl.lit(other[0])).otherwise(pl.col("item_id")).alias("item_id"))
    again = prepare(changed)
    if again.num_items != dataset.num_items:
        pytest.fail("the changed log has another catalogue")
    found = tune_model(again, tmp_path / "run", config=TuneConfig(trials=4), **SMALL)
    same = [(row.options, row.value, row.state) for row in found.rows]
    assert same == [(row.options, row.value, row.state) for row in tuned.rows]
    tests = [one.recommender.metrics["test"]["full"]["metrics"]["ndcg@10"] for one in (found, tuned)]
    assert tests[0] != tests[1]


KILLED = """
import sys
from seqrec import prepare, synthetic_log
from seqrec.tools.config import TuneConfig
from seqrec.tools.tune import tune_model
import seqrec.tools.trial as trial
real = trial.train
def train(*args, **more):
    watch = more.pop("watch")
    def told(row):
        watch(row)
        print("epoch", flush=True)
    return real(*args, watch=told, **more)
trial.train = train
log = synthetic_log(80, genres=2, items_per_genre=12, mean_length=6)
tune_model(prepare(log.frame), sys.argv[1], config=TuneConfig(trials=4), epochs=2, num_blocks=1, evaluate_every=1,
           transitions="off")
"""


@pytest.mark.slow
def test_a_killed_search_goes_on(dataset: Dataset, tuned, tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(3):  # trial 0 has ended, trial 1 is in the middle
        assert child.stdout.readline() == "epoch\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    with sqlite3.connect(study_folder(out) / STUDY) as file:
        before = file.execute("select number, state from trials order by number").fetchall()
    assert before[0] == (0, "COMPLETE")
    assert before[-1][1] in ("RUNNING", "WAITING", "COMPLETE")
    killed = [number for number, state in before if state == "RUNNING"]
    found = tune_model(dataset, out, config=TuneConfig(trials=4), **SMALL)
    assert found.rows[0] == found.rows[0].__class__(**(vars(tuned.rows[0]) | {"seconds": found.rows[0].seconds}))
    ended = [row for row in found.rows if row.reason != "the process was stopped"]
    assert len(ended) == 4
    for number in killed:
        row = found.rows[number]
        assert row.state == "failed"
        assert [other.trial for other in found.rows if other.options == row.options] == [number, number + 1]
    assert found.recommender is not None


@pytest.mark.slow
def test_more_trials_keep_those_that_ended(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = tune_model(dataset, out, config=TuneConfig(trials=2), **SMALL)
    again = tune_model(dataset, out, config=TuneConfig(trials=2), **SMALL)
    assert again.rows == first.rows
    with warnings.catch_warnings(action="ignore"):  # that a better trial replaces the run
        more = tune_model(dataset, out, config=TuneConfig(trials=5), **SMALL)
    assert more.rows[:2] == first.rows
    assert len(more.rows) == 5
    assert len({str(row.options) for row in more.rows}) == 5  # a resumed sampler does not draw the same again
    assert max(row["ndcg@10"] for row in Recommender.load(out).epochs) == more.best.value


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 3}, "epochs = 2, not 3"),
    ({"seed": 5}, "seed = 0, not 5"),
    ({"dropout": 0.1}, "dropout = None, not 0.1"),
    ({"model": "ssept"}, "model = auto, not ssept"),
    ({"split": "time"}, "split"),
]


@pytest.mark.parametrize(("changed", "text"), REFUSED)
def test_other_options_are_refused(dataset: Dataset, tuned, changed: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as found:
        tune_model(dataset, tuned.run, **{"config": TuneConfig(trials=4), **SMALL, **changed})
    assert "\n" not in str(found.value)


def test_another_log_and_other_files_are_refused(dataset: Dataset, tuned, tmp_path: Path) -> None:
    other = prepare(synthetic_log(60, genres=2, items_per_genre=12, mean_length=6).frame)
    with pytest.raises(InputError, match="another log"):
        tune_model(other, tuned.run, config=TuneConfig(trials=4), **SMALL)
    folder = study_folder(tmp_path / "run")
    folder.mkdir()
    (folder / STUDY).write_text("no database " * 100)
    with pytest.raises(InputError, match="is not a study that can be used"):
        tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=1), **SMALL)
    assert (folder / STUDY).exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds something that is not a run"):
        tune_model(dataset, tmp_path / "full", config=TuneConfig(trials=1), **SMALL)


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        ("markov", {}, "markov is counted"),
        ("sasrec", {"evaluate_every": 0}, "tuning needs validations"),
        ("nothing", {}, "unknown model"),
        ("sasrec", {"embeding_dim": 3}, "no option 'embeding_dim'"),
    ],
)
def test_what_cannot_be_tuned(dataset: Dataset, tmp_path: Path, model: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        tune_model(dataset, tmp_path / "run", model, TuneConfig(trials=1), **options)
    assert not list(tmp_path.iterdir())  # no empty study is left either


def test_an_impossible_trial_is_a_failed_one(dataset: Dataset, tmp_path: Path) -> None:
    # 5 heads do not divide 32, 64 or 128, but the width of the recipe is given as 60 here and is not searched ...
    job = Job(0, "sasrec", {**SMALL, "embedding_dim": 32, "num_heads": 5})
    outcome = attempted(dataset, job, lambda step, value: False)
    assert (outcome.state, outcome.value) == ("failed", None)
    assert "not a multiple of num_heads 5" in outcome.reason
    # ... and in a study the others go on.

    class OneFails(OneByOne):
        def wait(self, judge):
            if self.jobs[0].number == 1:
                return [(self.jobs.pop(0).number, Outcome("failed", reason="MemoryError: no room"))]
            return super().wait(judge)

    found = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=3), workers=OneFails(dataset), **SMALL)
    assert [row.state for row in found.rows][:2] == ["complete", "failed"]
    assert found.rows[1].reason == "MemoryError: no room"
    assert found.rows[1].value is None
    assert len(found.rows) == 3


def test_no_possible_trial(dataset: Dataset, tmp_path: Path) -> None:
    class AllFail(OneByOne):
        def wait(self, judge):
            return [(self.jobs.pop(0).number, Outcome("failed", reason="MemoryError: no room"))]

    with pytest.raises(InputError, match="no trial was possible; trial 0: MemoryError: no room; trial 1"):
        tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=2), workers=AllFail(dataset), **SMALL)


def test_bad_trials_are_pruned(dataset: Dataset, tmp_path: Path) -> None:
    """Values are given by trial; the median of the complete trials decides from the third validation on."""
    told: dict[int, list[bool]] = {}

    class Given(OneByOne):
        def wait(self, judge):
            job = self.jobs.pop(0)
            value = 0.2 if job.number < 4 else 0.1
            told[job.number] = []
            for step in range(1, 6):
                told[job.number].append(judge(job.number, step, value))
                if told[job.number][-1]:
                    return [(job.number, Outcome("pruned", value, 1.0, step))]
            return [(job.number, Outcome("complete", value, 1.0, 5))]

    found = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=6), workers=Given(dataset), **SMALL)
    assert [row.state for row in found.rows] == ["complete"] * 4 + ["pruned"] * 2
    assert told[4] == [False, False, True]
    assert (found.rows[4].value, found.rows[4].alone) == (None, 0.1)
    assert found.best.trial == 0


def test_a_pruned_trial_stops_training(dataset: Dataset) -> None:
    steps: list[int] = []

    def report(step: int, value: float) -> bool:
        steps.append(step)
        return step == 2

    outcome = attempted(dataset, Job(0, "sasrec", {**SMALL, "epochs": 9}), report)
    assert (outcome.state, outcome.epochs, steps) == ("pruned", 2, [1, 2])
    assert outcome.value is None
    assert outcome.alone is not None


@pytest.mark.parametrize("model", [name for name in MODELS if not MODELS[name].COUNTED])
def test_every_model_can_train_with_any_value_of_its_space(dataset: Dataset, model: str) -> None:
    base = base_of(plan_of(dataset, model, {"num_blocks": 1} if "num_blocks" in SPACE[model] else {}).recipe, model)
    space = searched(model, {}, base)
    assert {"learning_rate", "embedding_dim", "max_length"} <= set(space)
    assert set(space) <= set(defaults(model))
    for end in (0, -1):
        values = {}
        for name, domain in space.items():
            values[name] = (domain.least, domain.most)[end] if isinstance(domain, Span) else domain[end]
        if values.get("loss", base.get("loss")) == "cross-entropy":
            values.pop("negatives", None)
        plan = plan_of(dataset, model, applied({}, base, values))
        chosen = plan.config.model_config | plan.config.training
        assert {name: chosen[name] for name in values} == values
        assert not plan.recipe.reasons  # the recipe has nothing left to choose


def test_given_options_are_not_searched(dataset: Dataset) -> None:
    base = base_of(plan_of(dataset, "sasrec", {}).recipe, "sasrec")
    free = searched("sasrec", {"dropout": None, "embedding_dim": 64}, base)
    fixed = searched("sasrec", {"dropout": 0.5, "embedding_dim": 16, "loss": "gbce"}, base)
    assert set(free) - set(fixed) == {"dropout", "embedding_dim", "loss"}
    for name, value in base.items():  # the recipe is always one of the choices
        domain = free.get(name)
        if isinstance(domain, tuple):
            assert value in domain
        elif domain is not None:
            assert domain.least <= value <= domain.most
    assert {"windows", "ensemble"} & set(RULES)
    no_cross_entropy = searched("sasrec", {}, base | {"loss": "sampled-softmax"})["loss"]
    assert "cross-entropy" not in no_cross_entropy  # type: ignore[operator]


def test_a_trial_may_train_one_model_where_the_recipe_mixes_several(dataset: Dataset) -> None:
    options = {"ensemble": 3, "ensemble_kinds": "mixed"}
    base = base_of(plan_of(dataset, "sasrec", options).recipe, "sasrec")
    assert "ensemble" not in searched("sasrec", options, base)
    assert searched("sasrec", {}, base)["ensemble"] == (1, 3)
    assert "ensemble" not in searched("sasrec", {}, base | {"ensemble": 1})
    training = plan_of(dataset, "sasrec", applied({}, base, {"ensemble": 1})).config.training
    assert (training["ensemble"], training["ensemble_kinds"]) == (1, "same")
    training = plan_of(dataset, "sasrec", applied({}, base, {"ensemble": 3})).config.training
    assert (training["ensemble"], training["ensemble_kinds"]) == (3, "mixed")


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe chooses two models, as it does where there is time for them."""
    chosen = {"ensemble": 2, "ensemble_kinds": "mixed"}
    monkeypatch.setattr("seqrec.tools.tune.base_of", lambda *given: base_of(*given) | chosen)


@pytest.mark.slow
@pytest.mark.usefixtures("several")
def test_trials_train_one_model_and_the_last_one_several_of_the_best(dataset: Dataset, tmp_path: Path) -> None:
    rows = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=4), **SMALL).rows
    assert [row.options["ensemble"] for row in rows] == [2, 1, 1, 2]
    assert [row.is_recipe for row in rows] == [True, False, False, False]
    best = max(rows[1:3], key=lambda row: row.value)
    assert rows[3].options == best.options | {"ensemble": 2}
    assert rows[3].value != best.value
    # A search that goes on tries several models again only for other options.
    with warnings.catch_warnings(action="ignore"):  # that a better trial replaces the run
        more = tune_model(dataset, tmp_path / "run", config=TuneConfig(trials=6), **SMALL).rows
    best = max((row for row in more[:5] if row.options["ensemble"] == 1), key=lambda row: row.value)
    assert [row.options["ensemble"] for row in more] == [2, 1, 1, 2, 1, 2 if best.trial == 4 else 1]


def test_several_of_the_best_are_tried_when_there_is_just_time_for_them_and_the_fit(tmp_path: Path) -> None:
    space, base = {"ensemble": (1, 3), "dropout": Span(0.0, 1.0)}, {"ensemble": 3, "dropout": 0.5}
    study = Study(tmp_path / "study.db", 0)
    for seconds, value in ((30.0, 0.2), (20.0, 0.3)):
        study.tell(study.ask(space, base)[0], Outcome("complete", value, seconds, 5))
    best = study.best()
    assert best is not None

    def several(left: float, minutes: float = 10) -> Any:
        budget = Budget(minutes, 0.0, lambda: 60 * minutes - left)
        return _Search(study, "sasrec", {}, base, space, budget, Console(), "off", kept=7.0)._several(float("inf"))

    wanted = best.options | {"ensemble": 3}  # takes 3 times 20 seconds, as does the fit
    assert [several(7 + left) for left in (89, 91, 149, 151)] == [None, wanted, wanted, None]
    assert several(7 + 120, minutes=4.9) is None  # a trial may take 58.8 seconds, so it would be cut short
    number, values = study.ask(space, base, wanted)
    assert values == wanted
    assert several(7 + 120) is None
    study.tell(number, Outcome("complete", 0.25, 50.0, 5))
    assert several(7 + 120) is None


def test_a_trial_ends_in_time_to_be_repeated() -> None:
    late = Job(0, "sasrec", {}, ends=time.time() + 100, kept=20, choosing=15)
    assert late.is_late(70)  # 15 s for its own counts, 70 s once more and 20 s do not fit
    assert not late.is_late(60)
    now = time.time()
    job = Job(0, "sasrec", {}, ends=now + 100, kept=20, repeat=10, most=30)
    assert not job.is_late(29)
    assert job.is_late(30)
    assert Job(0, "sasrec", {}, ends=now + 100, kept=20).is_late(81)  # 81 s once more and 20 s do not fit
    assert not Job(0, "sasrec", {}, ends=now + 100, kept=20).is_late(70)
    assert not Job(0, "sasrec", {}).is_late(10**9)


@pytest.mark.slow
def test_a_time_limit_ends_the_search_with_a_run(dataset: Dataset, tmp_path: Path) -> None:
    budget = Budget(0.15)
    more = SMALL | {"epochs": 10**6, "patience": 0}  # neither a trial nor the fit ends by itself
    found = tune_model(dataset, tmp_path / "run", budget=budget, config=TuneConfig(minutes=0.15), **more)
    assert found.recommender is not None
    assert found.rows[0].reason == "ended by the time limit"
    assert found.recommender.metrics["budget"] == {"minutes": 0.15, "ended_training": True}


def test_two_searches_do_not_share_a_study(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    inside: list[str] = []

    class Second(OneByOne):
        def wait(self, judge):
            with pytest.raises(InputError, match="is in use by this process"):
                tune_model(dataset, out, config=TuneConfig(trials=1), **SMALL)
            inside.append("refused")
            return super().wait(judge)

    tune_model(dataset, out, config=TuneConfig(trials=1), workers=Second(dataset), **SMALL)
    assert inside == ["refused"]


@pytest.mark.slow
def test_overwrite_begins_anew(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    Recommender(**SMALL).fit(dataset, out)
    with pytest.raises(InputError, match="already holds a run"):
        tune_model(dataset, out, config=TuneConfig(trials=1), **SMALL)
    tune_model(dataset, out, config=TuneConfig(trials=1), overwrite=True, **SMALL)
    found = tune_model(dataset, out, config=TuneConfig(trials=1), overwrite=True, **SMALL | {"seed": 3})
    assert len(found.rows) == 1
    assert Recommender.load(out)._config.training["seed"] == 3


def test_an_interrupted_trial_is_repeated(dataset: Dataset, tmp_path: Path) -> None:
    class Stopped(OneByOne):
        def wait(self, judge):
            return [(self.jobs.pop(0).number, Outcome("interrupted", seconds=1.0))]

    out = tmp_path / "run"
    first = tune_model(dataset, out, config=TuneConfig(trials=1), workers=Stopped(dataset), **SMALL)
    assert first.interrupted
    assert first.recommender is None
    assert not out.exists()
    again = tune_model(dataset, out, config=TuneConfig(trials=1), **SMALL)
    assert [(row.state, row.is_recipe) for row in again.rows] == [("failed", True), ("complete", True)]
    study = Study(again.study, 0)
    assert study.best().trial == 1
    study.close()
