"""Comparisons over several seeds, by groups of users, and with histories in random order."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread
from rich.console import Console

from seqrec import InputError, Recommender, prepare, synthetic_log
from seqrec.data.dataset import Dataset
from seqrec.errors import TrainingWarning
from seqrec.models.sasrec import SASRec
from seqrec.ranking import metrics, statistics
from seqrec.ranking.groups import grouped
from seqrec.ranking.protocols import ranks
from seqrec.ranking.statistics import Spread
from seqrec.tools import compare
from seqrec.tools.compare import CompareConfig, Comparison, compare_models

pytestmark = pytest.mark.usefixtures("few_constants")

OPTIONS: dict[str, Any] = {
    "epochs": 2, "batch_size": 32, "num_blocks": 1, "embedding_dim": 8, "max_length": 10, "transitions": "off"
}  # fmt: skip
MODELS = ["sasrec", "markov"]
SEEDS = (3, 4, 5)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return prepare(synthetic_log(120, genres=2, items_per_genre=12, mean_length=6).frame)


@pytest.fixture(scope="module")
def found(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, str]:
    folder = tmp_path_factory.mktemp("seeds") / "out"
    terms = CompareConfig(seeds=3, shuffled=True, test_negatives=7)
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    comparison = compare_models(dataset, MODELS, terms, out=folder, console=console, seed=3, **OPTIONS)
    return comparison, folder, console.export_text()


@pytest.fixture(scope="module")
def gains(dataset: Dataset) -> dict[str, list[np.ndarray]]:
    """NDCG@10 of each user in the full ranking by model, from trainings by hand."""
    made = {
        "sasrec": [Recommender("sasrec", seed=seed, **OPTIONS).fit(dataset) for seed in SEEDS],
        "markov": [Recommender("markov").fit(dataset)],
    }
    test = made["markov"][0].split_config.apply(dataset).test
    return {name: [metrics.ndcg(*ranks(one.model, test), 10) for one in each] for name, each in made.items()}


def text_of(*shown: Any, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(*shown, sep="\n")
    return console.export_text()


@pytest.mark.slow
def test_each_training_is_a_fit_with_its_seed(
    found: tuple[Comparison, Path, str], gains: dict[str, list[np.ndarray]]
) -> None:
    sasrec, markov = found[0].entries
    assert [training.seed for training in sasrec.trainings] == list(SEEDS)
    assert [training.seed for training in markov.trainings] == [3]  # counting has no randomness
    for training, values in zip(sasrec.trainings, gains["sasrec"], strict=True):
        assert training.metrics["full"]["ndcg@10"] == pytest.approx(values.mean())
    assert (sasrec.epochs, sasrec.training and sasrec.training["seed"]) == (2, 3)
    assert sasrec.seconds == pytest.approx(np.mean([training.seconds for training in sasrec.trainings]))


def test_means_intervals_and_tests_include_the_trainings(
    found: tuple[Comparison, Path, str], gains: dict[str, list[np.ndarray]]
) -> None:
    results = {entry.model: (entry.results or {})["full"] for entry in found[0].entries}
    mean = np.mean(gains["sasrec"], axis=0)[:, None]
    spread = Spread.of(np.array([[one.mean()] for one in gains["sasrec"]]))
    assert spread.variance[0] > 0
    assert results["sasrec"]["metrics"]["ndcg@10"] == pytest.approx(mean.mean())
    ends = statistics.gain_intervals(mean, spread=spread)[0]
    assert results["sasrec"]["intervals"]["ndcg@10"] == pytest.approx(list(ends))
    assert np.diff(ends) > np.diff(statistics.gain_intervals(mean)[0])
    counted = gains["markov"][0][:, None]
    assert results["markov"]["intervals"]["ndcg@10"] == pytest.approx(list(statistics.gain_intervals(counted)[0]))
    assert results["markov"]["difference"] == pytest.approx((counted - mean).mean())
    ends = statistics.difference_intervals(counted - mean, spread=spread)[0]
    assert results["markov"]["difference_interval"] == pytest.approx(list(ends))
    assert results["markov"]["p"] == pytest.approx(statistics.paired_t_test(counted - mean, spread)[0])
    assert results["markov"]["p_holm"] == results["markov"]["p"]


def test_groups_of_users(
    dataset: Dataset, found: tuple[Comparison, Path, str], gains: dict[str, list[np.ndarray]]
) -> None:
    comparison, folder, _ = found
    split = Recommender("markov").split_config.apply(dataset)
    sizes = {"history": split.test.histories.lengths, "popularity": split.train.item_counts()[split.test.items]}
    shown = text_of(*comparison.tables())
    for entry in comparison.entries:
        assert entry.results is not None
        for by, size in sizes.items():
            wanted = grouped(by, size, {"ndcg@10": np.array(gains[entry.model])})
            groups = entry.results["full"]["groups"][by]
            assert [group.users for group in groups] == [group.users for group in wanted]
            for group, other in zip(groups, wanted, strict=True):
                assert group.metrics["ndcg@10"] == pytest.approx(other.metrics["ndcg@10"])
                assert group.intervals["ndcg@10"] == pytest.approx(other.intervals["ndcg@10"])
                row = next(
                    line for line in shown.splitlines() if f" {group.name} " in line and f" {group.users} " in line
                )
                assert f"{group.metrics['ndcg@10']:.4f}" in row
    written = json.loads((folder / "compare.json").read_text())["models"][0]["results"]["sampled"]["groups"]
    assert sum(group["users"] for group in written["history"]) == comparison.users
    assert {"least", "most", "users", "metrics", "intervals"} == set(written["history"][0])


def test_what_the_order_is_worth(found: tuple[Comparison, Path, str]) -> None:
    comparison, _, _ = found
    sasrec, markov = comparison.entries
    assert markov.shuffled is None
    assert sasrec.shuffled is not None
    assert [training.seed for training in sasrec.shuffled.trainings] == list(SEEDS)
    for protocol in ("full", "sampled"):
        before = (sasrec.results or {})[protocol]["metrics"]["ndcg@10"]
        result = (sasrec.shuffled.results or {})[protocol]
        after = np.mean([training.metrics[protocol]["ndcg@10"] for training in sasrec.shuffled.trainings])
        assert result["metrics"]["ndcg@10"] == pytest.approx(after)
        assert result["lost"] == pytest.approx(1 - after / before)
        low, high = result["lost_interval"]
        assert low < result["lost"] < high <= 1.5
        assert 0 <= result["p"] <= 1


def test_what_is_written_and_shown(found: tuple[Comparison, Path, str]) -> None:
    comparison, folder, said = found
    written = json.loads((folder / "compare.json").read_text())
    assert written == json.loads(json.dumps(comparison.to_dict()))
    assert (written["seeds"], written["shuffled"], written["training"]["seed"]) == (3, True, 3)
    assert all(
        name in written["method"] for name in ("Cochran & Cox", "Owen & Eckles", "Welch", "Klenitskiy", "Fieller")
    )
    assert "do not include the variation between trainings of the same model" not in written["method"]
    assert [training["seed"] for training in written["models"][0]["trainings"]] == list(SEEDS)
    frame = pl.read_csv(folder / "compare.csv")
    assert frame["trainings"].to_list() == [3, 3, 1, 1]
    shuffled = written["models"][0]["shuffled"]["results"]["full"]
    assert frame["lost"][0] == pytest.approx(shuffled["lost"])
    assert frame["lost_high"][0] == pytest.approx(shuffled["lost_interval"][1])
    assert frame["lost"].null_count() == 2  # what only counts is not shuffled
    assert imread(folder / "compare.png").std() > 0.01
    text = text_of(*comparison.tables())
    assert "…" not in text
    for part in (
        "seeds 3 to 5",
        "3 × 2 epochs",
        "t-test over users and trainings",
        "history 5-9",
        "in order",
        "shuffled",
    ):
        assert part in text
    assert f"{100 * shuffled['lost']:.1f} % (" in text
    assert said.count("…") == 7
    for line in ("sasrec, seed 4 …", "sasrec, seed 5, shuffled: ", "markov …"):
        assert said.count(line) == 1


def test_one_seed_says_that_trainings_are_left_out(dataset: Dataset) -> None:
    comparison = compare_models(dataset, ["markov", "popularity"])
    assert "do not include the variation between trainings" in comparison.method
    assert "Klenitskiy" not in comparison.method
    assert "lost" not in comparison.frame().columns
    assert "paired t-test over users, Holm" in text_of(comparison.table())


def failing_at(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = compare._fit

    def fails(entry: Any, split: Any, options: Any, *rest: Any) -> Any:
        if options["seed"] == seed and entry.model == "sasrec":
            raise MemoryError("no room")
        return fit(entry, split, options, *rest)

    monkeypatch.setattr(compare, "_fit", fails)


@pytest.mark.slow
def test_a_failure_keeps_the_trainings_before_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(1, monkeypatch)
    models, options = ["sasrec", "markov", "gru4rec"], OPTIONS | {"epochs": 1}
    comparison = compare_models(dataset, models, CompareConfig(seeds=3), out=tmp_path, **options)
    sasrec, markov, gru4rec = comparison.entries
    assert sasrec.failed == "with seed 1, MemoryError: no room"
    assert (markov.failed, gru4rec.failed, comparison.reference) == (None, None, "sasrec")
    assert [len(entry.trainings) for entry in comparison.entries] == [1, 1, 3]
    alone = compare_models(dataset, models[:2], **options)
    assert sasrec.results == alone.entries[0].results
    for name in ("metrics", "intervals", "difference", "p"):
        assert (markov.results or {})["full"][name] == (alone.entries[1].results or {})["full"][name]
    text = text_of(comparison.table())
    assert "sasrec failed: with seed 1, MemoryError: no room" in " ".join(text.split())
    assert "sasrec: 1 of 3 trainings, so its intervals are over users only" in " ".join(text.split())
    assert json.loads((tmp_path / "compare.json").read_text())["models"][0]["results"] is not None


def test_an_interruption_keeps_whole_rounds(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, fit = SASRec.encode, compare._fit
    running: list[int] = []

    def begin(entry: Any, split: Any, options: Any, *rest: Any) -> Any:
        running.append(options["seed"])
        return fit(entry, split, options, *rest)

    def press(self: SASRec, batch: Any) -> Any:
        if running[-1] == 2:
            signal.raise_signal(signal.SIGINT)
        return encode(self, batch)

    monkeypatch.setattr(compare, "_fit", begin)
    monkeypatch.setattr(SASRec, "encode", press)
    comparison = compare_models(dataset, ["markov", "sasrec"], CompareConfig(seeds=5), out=tmp_path, **OPTIONS)
    assert comparison.interrupted
    markov, sasrec = comparison.entries
    why = "with seed 2, its training was interrupted; the same command goes on with it"
    assert (markov.failed, sasrec.failed) == (None, why)
    assert [training.seed for training in sasrec.trainings] == [0, 1]
    written = json.loads((tmp_path / "compare.json").read_text())["models"][1]
    assert [training["seed"] for training in written["trainings"]] == [0, 1]
    assert written["results"]["full"]["metrics"] == (sasrec.results or {})["full"]["metrics"]


TERMS = {"seeds": 3, "shuffled": True, "test_negatives": 7}


@pytest.mark.slow
def test_the_same_call_goes_on_where_it_was_stopped(
    dataset: Dataset, found: tuple[Comparison, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, fit = SASRec.encode, compare._fit
    fits: list[tuple[str, int, str]] = []
    calls: list[int] = []

    def begin(entry: Any, split: Any, options: Any, minutes: Any, progress: Any, folder: Path, *rest: Any) -> Any:
        fits.append((entry.model, options["seed"], folder.name))
        calls.clear()
        return fit(entry, split, options, minutes, progress, folder, *rest)

    def press(self: SASRec, batch: Any) -> Any:
        calls.append(1)
        if fits[-1][2] == "sasrec-seed-4" and len(calls) == 7:  # in the second epoch
            signal.raise_signal(signal.SIGINT)
        return encode(self, batch)

    monkeypatch.setattr(compare, "_fit", begin)
    with monkeypatch.context() as patch:
        patch.setattr(SASRec, "encode", press)
        first = compare_models(dataset, MODELS, CompareConfig(**TERMS), out=tmp_path, seed=3, **OPTIONS)
    assert first.interrupted
    kept = tmp_path / "trainings"
    assert (kept / "sasrec-seed-4" / "state" / "training.safetensors").exists()
    fits.clear()
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    again = compare_models(dataset, MODELS, CompareConfig(**TERMS), out=tmp_path, console=console, seed=3, **OPTIONS)
    assert [name for _, _, name in fits] == [
        "sasrec-seed-4", "sasrec-seed-4-shuffled", "sasrec-seed-5", "sasrec-seed-5-shuffled"
    ]  # fmt: skip
    assert console.export_text().count("(kept from before)") == 3
    for one, other in zip(again.entries, found[0].entries, strict=True):
        assert one.results == other.results  # as those of the comparison that nothing stopped
        assert (one.shuffled and one.shuffled.results) == (other.shuffled and other.shuffled.results)
        assert [training.epochs for training in one.trainings] == [training.epochs for training in other.trainings]
    assert not [path for path in kept.iterdir() if path.is_dir()]  # the checkpoints have served
    fits.clear()
    fewer = CompareConfig(**TERMS | {"seeds": 1})
    compare_models(dataset, ["popularity", *MODELS], fewer, out=tmp_path, seed=3, **OPTIONS)
    assert [name for name, _, _ in fits] == ["popularity"]
    written = json.loads((tmp_path / "compare.json").read_text())["models"]
    assert [(one["model"], len(one["trainings"]), one["results"] is not None) for one in written] == [
        ("popularity", 1, True), ("sasrec", 1, True), ("markov", 1, True)
    ]  # fmt: skip


KILLED = """
import sys
from seqrec import prepare, synthetic_log
from seqrec.tools import compare
from seqrec.training import fitting
real = fitting.train
def train(*args, **more):
    def watch(row):
        print("epoch", flush=True)
    return real(*args, watch=watch, **more)
fitting.train = train
log = synthetic_log(120, genres=2, items_per_genre=12, mean_length=6)
compare.compare_models(prepare(log.frame), ["sasrec", "markov"], compare.CompareConfig(seeds=3, test_negatives=7),
                       out=sys.argv[1], seed=3, batch_size=32, num_blocks=1, embedding_dim=8, max_length=10, epochs=2,
                       transitions="off")
"""


@pytest.mark.slow
def test_a_killed_comparison_goes_on(
    dataset: Dataset, found: tuple[Comparison, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(3):  # seed 3 has ended, seed 4 is in the middle
        assert child.stdout.readline() == "epoch\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = out / "trainings"
    assert (kept / "sasrec-seed-3.safetensors").exists()
    fit, resumed = compare._fit, []

    def begin(entry: Any, split: Any, options: Any, minutes: Any, progress: Any, folder: Path, *rest: Any) -> Any:
        resumed.append((folder.name, (folder / "state" / "training.safetensors").exists()))
        return fit(entry, split, options, minutes, progress, folder, *rest)

    monkeypatch.setattr(compare, "_fit", begin)
    terms = CompareConfig(seeds=3, test_negatives=7)
    again = compare_models(dataset, MODELS, terms, out=out, seed=3, **OPTIONS)
    assert "sasrec-seed-3" not in [name for name, _ in resumed]
    assert ("sasrec-seed-5", False) in resumed
    assert [entry.results for entry in again.entries] == [entry.results for entry in found[0].entries]


@pytest.mark.parametrize(
    ("terms", "options", "text"),
    [
        ({}, {"epochs": 3}, "started with epochs of sasrec = 2, not 3; give the same options, or --overwrite"),
        ({}, {"seed": 4}, "seed = 3, not 4"),
        ({}, {"keep_seen": True}, "keep_seen of sasrec = False, not True"),
        ({"test_negatives": 8}, {}, "test_negatives = 7, not 8"),
        ({"minutes": 1.0}, {}, "minutes = None, not 1.0"),
    ],
)
def test_changed_options_are_refused(
    dataset: Dataset, found: tuple[Comparison, Path, str], terms: dict[str, Any], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError) as error:
        compare_models(
            dataset, MODELS, CompareConfig(**TERMS | terms), out=found[1], **{"seed": 3, **OPTIONS, **options}
        )
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_other_logs_and_damaged_files_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    compare_models(dataset, ["markov"], out=tmp_path)
    other = prepare(synthetic_log(60, genres=2, items_per_genre=12, mean_length=6).frame)
    with pytest.raises(InputError, match="was started on another log"):
        compare_models(other, ["markov"], out=tmp_path)
    file = tmp_path / "trainings" / "markov-seed-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), b"", bytes(content[:-8])):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"markov-seed-0\.safetensors: is damaged"):
            compare_models(dataset, ["markov"], out=tmp_path)
    assert compare_models(other, ["markov"], out=tmp_path, overwrite=True).entries[0].results is not None


def chain(users: int, ordered: bool) -> Dataset:
    """Histories that walk through a shuffled circle of items, or the same items in random order."""
    random = np.random.default_rng(0)
    circle = random.permutation(24)
    rows = []
    for user in range(users):
        steps = (random.integers(24) + np.arange(7)) % 24
        items = circle[steps if ordered else random.permutation(steps)]
        rows += [(user, int(item), 10 * place + user) for place, item in enumerate(items)]
    return prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [True, False])
def test_order_is_worth_something_only_where_there_is_one(ordered: bool) -> None:
    options = OPTIONS | {"epochs": 12, "embedding_dim": 16, "learning_rate": 0.01, "patience": 0, "split": "last-two"}
    terms = CompareConfig(shuffled=True, test_negatives=10)
    (entry,) = compare_models(chain(400, ordered), ["sasrec"], terms, **options).entries
    assert entry.shuffled is not None
    low, high = (entry.shuffled.results or {})["full"]["lost_interval"]
    if ordered:
        assert low > 0.05
    else:
        assert low < 0 < high


BAD: list[tuple[list[str], dict[str, Any], dict[str, Any], str]] = [
    (["sasrec"], {"seeds": 0}, {}, "seeds is 0; give 1 or more"),
    (["sasrec"], {"seeds": -2}, {}, "seeds is -2"),
    (["sasrec"], {"seeds": 1.5}, {}, "seeds is 1.5; give a whole number"),
    (["sasrec"], {"seeds": (1, 1)}, {}, r"seeds is \(1, 1\); give a whole number"),
    (["sasrec"], {"seeds": 2}, {"seed": 2**63 - 1}, "seed is 9223372036854775808"),
    (
        ["markov", "popularity"],
        {"shuffled": True},
        {},
        "shuffled needs a model that is trained, and markov, popularity",
    ),
    (["sasrec"], {"shuffled": "yes"}, {}, "shuffled is 'yes'; give true or false"),
]


@pytest.mark.parametrize(("models", "terms", "options", "wanted"), BAD)
def test_bad_terms(
    dataset: Dataset, tmp_path: Path, models: list[str], terms: dict[str, Any], options: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(InputError, match=wanted) as error:
        compare_models(dataset, models, CompareConfig(**terms), out=tmp_path / "new", **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_seeds_of_models_that_count(dataset: Dataset) -> None:
    with pytest.warns(TrainingWarning, match="seeds is 3, but markov, popularity only count, so it has no effect"):
        comparison = compare_models(dataset, ["markov", "popularity"], CompareConfig(seeds=3))
    assert [len(entry.trainings) for entry in comparison.entries] == [1, 1]
