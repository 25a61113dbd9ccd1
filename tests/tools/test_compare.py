"""Comparisons: statistics checked independently, the budget, failures, and the written files."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
from matplotlib.image import imread
from rich.console import Console

from seqrec import InputError, Recommender, prepare, read_log, synthetic_log
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import with_tables
from seqrec.errors import TrainingWarning
from seqrec.models.sasrec import SASRec
from seqrec.ranking import metrics
from seqrec.ranking.protocols import ranks
from seqrec.ranking.statistics import holm, paired_t_test
from seqrec.report.pictures import comparison_picture
from seqrec.report.tables import with_interval
from seqrec.tools.compare import CompareConfig, Comparison, compare_models

pytestmark = pytest.mark.usefixtures("few_constants")

ALONE: dict[str, Any] = {"transitions": "off"}  # models alone
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 32, "num_blocks": 1, "embedding_dim": 8, "max_length": 10}
LOG = synthetic_log(120, genres=2, items_per_genre=12, mean_length=6)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return prepare(LOG.frame)


@pytest.fixture(scope="module")
def found(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("compare") / "deep" / "out"
    models = ["sasrec", "markov", "popularity"]
    return compare_models(
        dataset, models, CompareConfig(test_negatives=7), out=folder, seed=3, **SMALL, **ALONE
    ), folder


@pytest.mark.parametrize("users", [2, 3, 30, 1000, 50_000])
@pytest.mark.parametrize("shift", [0.0, 0.01, 0.3, 3.0])
def test_paired_t_test_is_that_of_scipy(users: int, shift: float) -> None:
    random = np.random.default_rng(users)
    first, second = random.random((2, users, 3))
    wanted = scipy.stats.ttest_rel(first + shift, second).pvalue
    assert paired_t_test(first + shift - second) == pytest.approx(wanted, rel=1e-8, abs=1e-290)


def test_paired_t_test_at_its_ends() -> None:
    same, always = np.zeros(5), np.full(5, 0.25)
    assert paired_t_test(np.column_stack([same, always])).tolist() == [1.0, 0.0]
    assert paired_t_test(np.array([[0.3, -0.3]])).tolist() == [1.0, 1.0]  # one user is not enough for a test
    balanced = np.array([[0.5], [-0.5]])
    assert paired_t_test(balanced).tolist() == [1.0]
    assert paired_t_test(np.empty((9, 0))).shape == (0,)
    with np.errstate(all="raise"):
        far = paired_t_test(np.linspace(1, 1 + 1e-9, 1000)[:, None])
    assert far.tolist() == [0.0]


def test_paired_t_test_errs_as_often_as_it_says() -> None:
    """For differences like those of NDCG, mostly 0, between two equally good models."""
    random = np.random.default_rng(0)
    gains = 1 / np.log2(np.arange(2, 12))
    values = np.where(random.random((300, 4000)) < 0.1, random.choice(gains, (300, 4000)), 0.0)
    differences = values * random.choice([-1.0, 1.0], values.shape)
    assert (paired_t_test(differences) < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def holm_by_hand(p: list[float]) -> list[float]:
    """Step down: an adjusted value is the maximum of (n - i) p(i) up to its position."""
    result = []
    for mine in p:
        smaller = sorted(p)[: sorted(p).index(mine) + 1]
        result.append(min(1.0, max((len(p) - place) * value for place, value in enumerate(smaller))))
    return result


@pytest.mark.parametrize("p", [[], [0.3], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.0, 1.0], [0.02, 0.02]])
def test_holm(p: list[float]) -> None:
    assert holm(np.array(p)).tolist() == pytest.approx(holm_by_hand(p))
    if p == [0.01, 0.04, 0.03, 0.005]:  # computed by hand
        assert holm(np.array(p)).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_results_are_those_of_evaluate(dataset: Dataset, found: tuple[Comparison, Path]) -> None:
    comparison, _ = found
    alone = Recommender("sasrec", seed=3, **SMALL, **ALONE).fit(dataset)
    for protocol in ("full", "sampled"):
        evaluation = alone.evaluate(protocol, negatives=7, seed=3)  # type: ignore[arg-type]
        beside = {"sasrec": evaluation, **evaluation.baselines}
        for entry in comparison.entries:
            assert entry.results is not None
            for name, value in entry.results[protocol]["metrics"].items():
                assert value == pytest.approx(beside[entry.model].metrics[name])
                wanted = beside[entry.model].intervals[name]
                assert entry.results[protocol]["intervals"][name] == pytest.approx(list(wanted))


def test_transition_counts_are_added_as_in_a_fit(dataset: Dataset) -> None:
    """Those of the training histories: a fitted model has those of the whole log, held-out items among them."""
    comparison = compare_models(dataset, ["sasrec", "markov"], CompareConfig(test_negatives=7), seed=3, **SMALL)
    sasrec, markov = comparison.entries
    assert sasrec.transitions is not None
    assert sasrec.transitions > 0
    assert (sasrec.label, markov.label, markov.transitions) == ("sasrec + transitions", "markov", None)
    fitted = Recommender("sasrec", seed=3, **SMALL).fit(dataset)
    for protocol in ("full", "sampled"):
        expected = fitted.evaluate(protocol, negatives=7, seed=3).metrics["ndcg@10"]  # type: ignore[arg-type]
        assert sasrec.results is not None
        assert sasrec.results[protocol]["metrics"]["ndcg@10"] == pytest.approx(expected)


def test_differences_are_tested_user_by_user(dataset: Dataset, found: tuple[Comparison, Path]) -> None:
    comparison, _ = found
    assert comparison.reference == "sasrec"
    counted = Recommender("markov").fit(dataset)
    learnt = Recommender("sasrec", seed=3, **SMALL, **ALONE).fit(dataset)
    targets = learnt.split_config.apply(dataset).test
    for protocol in ("full", "sampled"):
        mine, other = (
            metrics.ndcg(*ranks(r.model, targets, protocol=protocol, negatives=7, seed=3), 10)  # type: ignore[arg-type]
            for r in (learnt, counted)
        )
        results = {entry.model: (entry.results or {})[protocol] for entry in comparison.entries}
        assert results["markov"]["difference"] == pytest.approx((other - mine).mean())
        assert results["markov"]["p"] == pytest.approx(scipy.stats.ttest_rel(other, mine).pvalue)
        low, high = results["markov"]["difference_interval"]
        assert low < results["markov"]["difference"] < high
        spread = (other - mine).std(ddof=1) / math.sqrt(len(mine))
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
        p = [results[name]["p"] for name in ("markov", "popularity")]
        assert [results[name]["p_holm"] for name in ("markov", "popularity")] == pytest.approx(holm_by_hand(p))
        assert all(results["sasrec"][name] is None for name in ("difference", "difference_interval", "p", "p_holm"))


def test_what_is_written(found: tuple[Comparison, Path]) -> None:
    comparison, folder = found
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["compare.csv", "compare.json", "compare.png", "trainings"]
    written = json.loads((folder / "compare.json").read_text())
    assert written == json.loads(json.dumps(comparison.to_dict()))
    assert (written["reference"], written["users"], written["test_negatives"]) == ("sasrec", 120, 7)
    assert (written["training"]["seed"], written["training"]["epochs"], written["minutes"]) == (3, 2, None)
    assert "Holm" in written["method"]
    sasrec, markov, _ = written["models"]
    weights = Recommender("sasrec", **SMALL).fit(LOG.frame).model.state_dict()
    assert sasrec["parameters"] == sum(weight.numel() for weight in weights.values())
    assert sasrec["bytes"] == 4 * sasrec["parameters"]
    assert sasrec["transitions"] is markov["transitions"] is None
    assert (sasrec["epochs"], sasrec["config"]["embedding_dim"]) == (2, 8)
    assert (markov["epochs"], markov["parameters"], markov["bytes"] > 0) == (None, 0, True)
    frame = pl.read_csv(folder / "compare.csv")
    assert frame.height == 6
    assert frame["protocol"].to_list() == ["full", "sampled"] * 3
    row = frame.row(2, named=True)
    assert row["model"] == "markov"
    assert row["ndcg@10_low"] <= row["ndcg@10"] <= row["ndcg@10_high"]
    assert row["p_holm"] == markov["results"]["full"]["p_holm"]
    assert (row["failed"], row["seconds"]) == (None, markov["seconds"])
    assert imread(folder / "compare.png").std() > 0.01


def test_intervals_of_few_hits_fit_a_terminal() -> None:
    """A log in which every user's last item is unique, so that nothing can predict it."""
    log = pl.DataFrame({"user_id": np.repeat(np.arange(60), 4), "item_id": np.arange(240), "timestamp": np.arange(240)})
    comparison = compare_models(prepare(log), ["popularity", "recent-popularity"], CompareConfig(test_negatives=50))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(comparison.table())
    text = console.export_text()
    assert "…" not in text
    for entry in comparison.entries:
        result = (entry.results or {})["full"]
        low, high = result["intervals"]["hr@10"]
        assert low <= result["metrics"]["hr@10"] < high
        assert with_interval(result["metrics"]["hr@10"], low, high) in text
        if entry.model != comparison.reference:
            low, high = result["difference_interval"]
            assert low < result["difference"] < high


def test_the_table_fits_a_terminal(found: tuple[Comparison, Path]) -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(found[0].table())
    text = console.export_text()
    entry = found[0].entries[1]
    result = (entry.results or {})["sampled"]
    assert f"{result['metrics']['ndcg@10']:.4f} ±" in text
    assert f"{result['difference']:+.4f}" in text
    assert "…" not in text
    assert "over sasrec; paired t-test over users, Holm's correction" in text


def test_same_seed_same_numbers(dataset: Dataset, found: tuple[Comparison, Path]) -> None:
    models = [entry.model for entry in found[0].entries]
    again = compare_models(dataset, models, CompareConfig(test_negatives=7), seed=3, **SMALL, **ALONE)
    assert [entry.results for entry in again.entries] == [entry.results for entry in found[0].entries]


def test_one_that_fails_tells_why_and_the_others_go_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SASRec, batch: Any) -> Any:
        raise RuntimeError("out of [memory]\nof some kind")

    monkeypatch.setattr(SASRec, "encode", broken)
    orderless = prepare(read_log(LOG.frame.drop("timestamp")))
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    models = ["recent-popularity", "sasrec", "popularity", "markov"]
    result = compare_models(orderless, models, out=tmp_path, console=console, **SMALL)
    first, second, third, fourth = result.entries
    assert "timestamps" in (first.failed or "")
    assert second.failed == "RuntimeError: out of [memory] of some kind"
    assert (first.results, third.failed, fourth.failed) == (None, None, None)
    assert result.reference == "popularity"
    assert (fourth.results or {})["full"]["p"] is not None
    console.print(result.table())
    assert console.export_text().count("out of [memory] of some kind") == 2
    frame = pl.read_csv(tmp_path / "compare.csv")
    assert frame.filter(pl.col("model") == "sasrec")["failed"].to_list() == [second.failed] * 2
    assert frame.filter(pl.col("model") == "sasrec")["ndcg@10"].null_count() == 2
    with pytest.raises(InputError, match=r"recent-popularity: .*timestamps.*sasrec: RuntimeError: out of"):
        compare_models(orderless, models[:2], out=tmp_path / "new", **SMALL)
    assert not (tmp_path / "new").exists()


def test_minutes_end_the_training(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by one second per reading."""
    ticks = iter(range(100_000))
    monkeypatch.setattr("seqrec.tools.compare.time.monotonic", lambda: next(ticks))
    steps = -(-120 // SMALL["batch_size"])
    result = compare_models(dataset, ["sasrec"], CompareConfig(minutes=(2 * steps + 1) / 60), **SMALL | {"epochs": 50})
    (entry,) = result.entries
    assert entry.epochs is not None
    assert entry.epochs <= 3
    assert "budget" in (entry.how or "")
    assert entry.results is not None


def test_stop_ends_an_epoch_where_it_says_so(dataset: Dataset) -> None:
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 6

    steps = -(-120 // SMALL["batch_size"])
    assert steps == 4
    recommender = Recommender("sasrec", **SMALL | {"epochs": 50}).fit(dataset, stop=stop)
    assert len(asked) == 6
    assert not recommender.interrupted
    assert [row["epoch"] for row in recommender.epochs] == [1, 2]
    assert "ndcg@10" in recommender.epochs[1]  # the epoch that the budget cut short is validated
    assert "budget" in recommender.summary
    never = Recommender("sasrec", **SMALL).fit(dataset, stop=lambda: False)
    plain = Recommender("sasrec", **SMALL).fit(dataset)
    assert all((a == b).all() for a, b in zip(never.model.parameters(), plain.model.parameters(), strict=True))


def test_a_person_may_stop_it(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SASRec.encode

    def press(self: SASRec, batch: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return whole(self, batch)

    monkeypatch.setattr(SASRec, "encode", press)
    result = compare_models(dataset, ["markov", "sasrec", "popularity"], out=tmp_path, **SMALL)
    assert result.interrupted
    assert [entry.results is not None for entry in result.entries] == [True, False, False]
    assert all("interrupted" in (entry.failed or "") for entry in result.entries[1:])
    assert len(json.loads((tmp_path / "compare.json").read_text())["models"]) == 3


BAD: list[tuple[list[str], dict[str, Any], str]] = [
    ([], {}, "no model given"),
    (["sasrec", "nothing"], {}, "unknown model 'nothing'; choose one of sasrec"),
    (["markov", "sasrec", "markov"], {}, "markov is named twice"),
    (["sasrec"], {"nonsense": 1}, "none of sasrec has an option 'nonsense'"),
    (["markov"], {"embedding_dim": 8}, "none of markov has an option 'embedding_dim'"),
    (["sasrec"], {"learning_rate": -1.0}, "learning_rate is -1.0"),
    (["sasrec"], {"embedding_dim": 0}, "sasrec: embedding_dim is 0"),
    (["sasrec"], {"split": "halves"}, "split is 'halves'; give auto, time or last-two"),
]


@pytest.mark.parametrize(("models", "options", "wanted"), BAD)
def test_bad_input(dataset: Dataset, tmp_path: Path, models: list[str], options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        compare_models(dataset, models, out=tmp_path / "new", **options)
    assert not list(tmp_path.iterdir())


def test_bad_terms(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="minutes is 0"):
        CompareConfig(minutes=0)
    with pytest.raises(InputError, match="test_negatives is 0"):
        CompareConfig(test_negatives=0)
    (tmp_path / "file").write_text("")
    for out in ("file", "file/deep"):
        with pytest.raises(InputError, match="file"):
            compare_models(dataset, ["markov"], out=tmp_path / out)
    short = prepare(pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"]}))
    with pytest.raises(InputError, match="no user to test on"):
        compare_models(short, ["popularity"])
    with pytest.raises(InputError, match="no model to draw"):
        comparison_picture({"full": []}, tmp_path / "none.png")


def test_all_models_are_split_alike() -> None:
    rows = [(u, (7 * u + step) % 30, 1_600_000_000 + 9000 * step + u) for u in range(60) for step in range(20)]
    log = prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    found = compare_models(log, ["markov", "recent-popularity"])
    assert (found.split["split"], found.split["reason"], found.users) == ("time", "the log has times", 60)
    assert found.held_out == "each user's first item from 2020-09-15T09:26:40 on"
    by_hand = Recommender("markov", split="time").fit(log).evaluate()
    assert found.entries[0].results is not None
    assert found.entries[0].results["full"]["metrics"]["ndcg@10"] == pytest.approx(by_hand.metrics["ndcg@10"])
    beside = by_hand.baselines["recent-popularity"].metrics["ndcg@10"]
    assert found.entries[1].results is not None
    assert found.entries[1].results["full"]["metrics"]["ndcg@10"] == pytest.approx(beside)
    papers = compare_models(log, ["markov"], split="last-two")
    assert (papers.split["split"], papers.held_out) == ("last-two", "each user's last item, for comparison with papers")


def test_models_learn_the_features_that_are_given(dataset: Dataset, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": dataset.item_ids, "kind": [f"k{n % 3}" for n in range(dataset.num_items)]})
    users = pl.DataFrame({"user_id": dataset.user_ids, "age": np.arange(dataset.num_users) % 50})
    described = with_tables(dataset, items, users)
    config, models = CompareConfig(features="kind", user_features="age"), ["sasrec", "caser", "popularity"]
    options = {"out": tmp_path / "out", "epochs": 1, "embedding_dim": 8, "max_length": 10, **ALONE}
    with pytest.warns(
        TrainingWarning, match="is given, but has no effect on caser, popularity, which cannot learn it"
    ) as said:
        both = compare_models(described, models, config, **options)
    assert [str(one.message).split()[0] for one in said if "caser" in str(one.message)] == ["features", "user_features"]
    assert both.entries[0].config["features"] == "kind"
    plain = compare_models(described, models, **options | {"out": None})
    gains = [now.parameters - before.parameters for now, before in zip(both.entries, plain.entries, strict=True)]
    assert gains[0] > 8 * 3  # the three kinds, and groups of ages
    assert gains[1:] == [0, 0]
    assert both.entries[0].trainings[0].metrics != plain.entries[0].trainings[0].metrics
    other = with_tables(dataset, items, users.with_columns(pl.col("age") + 1))
    with pytest.raises(InputError, match="started on other users"):
        compare_models(other, models, config, **options)
