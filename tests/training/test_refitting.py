"""The refit: what it trains on, what a run then says and keeps, and what a kill or an interrupt leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from seqrec import InputError, Predictor, Recommender, Split, TrainConfig, prepare, split_by_time, split_last_two
from seqrec.cli.app import main
from seqrec.data.dataset import Dataset
from seqrec.data.split import Histories
from seqrec.errors import RunWarning
from seqrec.models import build_model
from seqrec.run.folder import Run
from seqrec.run.refit import RefitRun
from seqrec.training.loop import train
from seqrec.training.step import epoch_of

pytestmark = pytest.mark.usefixtures("few_constants")

SMALL: dict[str, Any] = {
    "embedding_dim": 8, "num_blocks": 1, "max_length": 6, "batch_size": 8, "epochs": 4, "evaluate_every": 1,
    "learning_rate": 0.01, "loss": "sampled-softmax", "seed": 3,
}  # fmt: skip
KINDS = {"all": "all", "valid": "train+valid"}


def log(users: int = 40, items: int = 12, seed: int = 0) -> pl.DataFrame:
    """Users who mostly walk round a ring of items; some have only one or two interactions."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start, length = random.integers(items), random.integers(1, 9)
        rows += [(user, int(start + n) % items if random.random() < 0.8 else int(random.integers(items)), n + user % 5)
                 for n in range(length)]  # fmt: skip
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def files(folder: Path) -> dict[str, Any]:
    """The content of a run that is the same each time: without the seconds that something took."""
    found: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
                             if path.is_file() and path.parent.name != "state"}  # fmt: skip
    metrics = json.loads(found["metrics.json"])
    for tests in (metrics.get("test", {}), metrics.get("refit", {}).get("test", {})):
        for test in tests.values():
            del test["seconds"]
    epochs = pl.read_csv(folder / "epochs.csv").drop("seconds", "total_seconds", "tokens_per_second")
    return found | {"metrics.json": metrics, "epochs.csv": epochs.write_csv()}


def weights(recommender: Recommender) -> dict[str, torch.Tensor]:
    return recommender.model.state_dict()


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def naive_histories(dataset: Dataset, trained_on: str, split: Split) -> Histories:
    """The complete histories, or for a split of the last two items all but the last one of those with three."""
    ends = dataset.offsets[1:].copy()
    if trained_on == "train+valid":
        for user in split.test.histories.users:
            ends[user] -= 1
    return Histories(dataset, np.arange(dataset.num_users), np.asarray(dataset.offsets[:-1]), ends)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each kind."""
    folder = tmp_path_factory.mktemp("refit")
    for kind in ("off", *KINDS):
        Recommender(**SMALL, refit=kind).fit(log(), folder / kind)
    return {kind: folder / kind for kind in ("off", *KINDS)}


@pytest.fixture
def copy(runs: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(runs[kind], tmp_path / kind))


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("kind", "model", "more"),
    [
        ("all", "sasrec", {}),
        ("valid", "sasrec", {}),
        ("valid", "sasrec", {"average_decay": 0.0, "loss": "bce", "seed": 3}),
        ("all", "sasrec", {"learning_rate_schedule": "cosine", "warmup_steps": 0.2, "patience": 0, "epochs": 6}),
        ("valid", "gru4rec", {}),
        ("all", "bert4rec", {}),
    ],
)
def test_it_is_the_same_recipe_on_more_data(kind: str, model: str, more: dict[str, Any]) -> None:
    """Compared with training the same number of steps, without validation, on a split made by hand."""
    options = SMALL | {"item_init": "random" if model == "bert4rec" else "spectral"} | more
    if model == "gru4rec":
        options = {name: value for name, value in options.items() if name != "num_blocks"}
    found = Recommender(model, refit=kind, **options).fit(log())
    assert found.trained_on == KINDS[kind]
    best = max(found.epochs, key=lambda row: row["ndcg@10"])["epoch"]

    dataset = found.dataset
    split = split_last_two(dataset)
    histories = naive_histories(dataset, KINDS[kind], split)
    config = TrainConfig(**{name: options[name] for name in options if name in vars(TrainConfig())} |
                         {"evaluate_every": 0})  # fmt: skip
    torch.manual_seed(config.seed)
    again = build_model(model, vars(found.model_config), dataset.num_items, dataset.num_users)
    left, steps = [best * len(epoch_of(again, histories, config))], []

    def stop() -> bool:
        steps.append(1)
        return len(steps) == left[0]

    train(again, Split(histories, split.valid.take(slice(0)), split.test.take(slice(0))), config, stop=stop)
    assert same(weights(found), again.state_dict())
    assert not same(weights(found), weights(Recommender(model, **options).fit(log())))


def test_it_trains_as_many_epochs_as_were_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = SMALL | {"learning_rate": 0.1, "epochs": 6, "refit": "all"}
    found = Recommender(**options).fit(log(), tmp_path / "run", progress=True)
    best = found.metrics["best_epoch"]
    assert best < 6
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("refit: ")] == ["refit: training again with all items"]
    assert sum(line.startswith("refit epoch ") for line in out.splitlines()) == best
    assert found.metrics["refit"] == {"epochs": best, "trained_on": "all"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_says_and_keeps(runs: dict[str, Path], kind: str) -> None:
    off, on = files(runs["off"]), files(runs[kind])
    assert on["weights-train.safetensors"] == off["weights.safetensors"] != on["weights.safetensors"]
    assert on.keys() - off.keys() == {"weights-train.safetensors"}
    assert sorted(path.name for path in (runs[kind] / "state").iterdir()) == ["training.safetensors"]
    for name in off.keys() - {"weights.safetensors", "metrics.json", "config.json"}:
        assert on[name] == off[name]
    assert json.loads(on["config.json"]) == json.loads(off["config.json"]) | {"refit": kind}
    metrics = on["metrics.json"]
    assert metrics["test"] == off["metrics.json"]["test"]  # the honest figures do not change
    assert {test["trained_on"] for test in metrics["test"].values()} == {"train"}
    assert off["metrics.json"]["trained_on"] == "train"
    assert metrics["trained_on"] == metrics["refit"]["trained_on"] == KINDS[kind]
    assert ("test" in metrics["refit"]) == (kind == "valid")
    for test in metrics["refit"].get("test", {}).values():
        assert test["trained_on"] == "train+valid"
        assert test["metrics"] != metrics["test"][test["protocol"]]["metrics"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_refit_recommends(runs: dict[str, Path], kind: str) -> None:
    wanted = Recommender(**SMALL, refit=kind).fit(log()).recommend(k=3)
    loaded = Recommender.load(runs[kind])
    assert loaded.trained_on == KINDS[kind]
    assert loaded.refit == kind
    assert loaded.recommend(k=3).equals(wanted)
    assert not Recommender.load(runs["off"]).recommend(k=3).equals(wanted)
    users = wanted["user_id"].unique(maintain_order=True).to_list()
    served = Predictor.load(runs[kind]).recommend_users(users, k=3)
    assert [item for one in served for item, _ in one] == wanted["item_id"].to_list()


def figures(run: Path, split: str, protocol: str = "full") -> tuple[dict[str, Any], list[str]]:
    """The evaluation of a loaded run, and the warnings that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Recommender.load(run).evaluate(protocol, split).to_dict()  # type: ignore[arg-type]
    del found["seconds"]
    return found, [str(one.message) for one in caught if one.category is RunWarning]


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_no_figure_is_of_weights_that_saw_the_items(runs: dict[str, Path], protocol: str) -> None:
    kept = {kind: files(runs[kind])["metrics.json"] for kind in runs}
    for kind, split in (("all", "test"), ("all", "valid"), ("valid", "valid")):
        found, said = figures(runs[kind], split, protocol)
        [line] = said
        assert f"so the {split} items are not held out" in line
        assert "\n" not in line
        assert found == figures(runs["off"], split, protocol)[0]
        assert found["trained_on"] == "train"
    assert figures(runs["all"], "test", protocol)[0] == kept["all"]["test"][protocol]
    assert figures(runs["valid"], "test", protocol) == (kept["valid"]["refit"]["test"][protocol], [])
    assert figures(runs["off"], "test", protocol) == (kept["off"]["test"][protocol], [])


def test_baselines_see_what_the_model_saw(runs: dict[str, Path]) -> None:
    found = files(runs["valid"])["metrics.json"]
    dataset = Run(runs["valid"]).dataset
    for trained_on, test in (("train", found["test"]), ("train+valid", found["refit"]["test"])):
        split = split_last_two(dataset)
        histories = split.train if trained_on == "train" else naive_histories(dataset, trained_on, split)
        popularity = build_model("popularity", {}, dataset.num_items, dataset.num_users)
        popularity.count(histories)
        from seqrec import evaluate

        alone = evaluate(popularity, split.test, train_counts=histories.item_counts())
        assert test["full"]["baselines"]["popularity"]["metrics"] == alone.metrics
        assert test["full"]["cold"] == alone.cold


def test_in_memory_and_saved(runs: dict[str, Path], tmp_path: Path) -> None:
    for kind, split in (("all", "test"), ("valid", "valid")):
        memory = Recommender(**SMALL, refit=kind).fit(log())
        assert memory.metrics == {}
        with pytest.warns(RunWarning, match="not held out"):
            found = memory.evaluate(split=split)
        assert found.metrics == figures(runs["off"], split)[0]["metrics"]
        memory.save(tmp_path / kind)
        loaded = Recommender.load(runs[kind])
        loaded.save(tmp_path / f"again {kind}")
        for folder in (tmp_path / kind, tmp_path / f"again {kind}"):
            assert Recommender.load(folder).trained_on == KINDS[kind]
            assert same(weights(Recommender.load(folder)), weights(memory))
            assert figures(folder, split)[0] == figures(runs[kind], split)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert memory.evaluate(split="test").trained_on == "train+valid"


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("model", "split"),
    [("markov", "last-two"), ("markov", "time"), ("popularity", "last-two"), ("recent-popularity", "time")],
)
def test_counted_models_count_again(tmp_path: Path, model: str, split: str) -> None:
    dataset = prepare(log())
    for kind, trained_on in KINDS.items():
        found = Recommender(model, refit=kind, split=split).fit(log(), tmp_path / kind)
        divided = split_by_time(dataset) if split == "time" else split_last_two(dataset)
        counted = build_model(model, {}, dataset.num_items, dataset.num_users)
        counted.count(divided.refit(trained_on).train)  # type: ignore[arg-type]
        assert same(weights(found), counted.state_dict())
        assert same(weights(Recommender.load(tmp_path / kind)), counted.state_dict())
        off = Recommender(model, split=split).fit(log(), tmp_path / f"off {kind}")
        assert found.evaluations["full"].metrics == off.evaluations["full"].metrics
        before = files(tmp_path / kind)
        Recommender(model, refit=kind, split=split).fit(log(), tmp_path / kind, resume=True)
        assert files(tmp_path / kind) == before


def test_categories_are_those_of_the_first_training() -> None:
    items = pl.DataFrame({"item_id": list(range(12)), "category": ["a", "b", "b", "c"] * 3})
    options: dict[str, Any] = {"category_dim": 4, "embedding_dim": 8, "max_length": 6, "batch_size": 8, "epochs": 1}
    found = Recommender("slirec", refit="all", **options).fit(log(), items=items)
    first = Recommender("slirec", **options).fit(log(), items=items)
    name = next(name for name in weights(found) if name.endswith("categories"))
    assert weights(found)[name].unique().numel() > 1
    assert torch.equal(weights(found)[name], weights(first)[name])
    assert not same(weights(found), weights(first))


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_a_refit_can_be_added_and_changed_but_not_removed(runs: dict[str, Path], copy: Callable[[str], Path]) -> None:
    run = copy("off")
    for kind in ("valid", "all"):
        Recommender(**SMALL, refit=kind).fit(log(), run, resume=True)
        assert files(run) == files(runs[kind])
    with pytest.raises(InputError, match=r"started with refit = all, not off.*--overwrite"):
        Recommender(**SMALL).fit(log(), run, resume=True)
    assert files(run) == files(runs["all"])


def test_resuming_what_is_complete_trains_nothing(runs: dict[str, Path], copy: Callable[[str], Path]) -> None:
    run = copy("all")
    again = Recommender(**SMALL, refit="all").fit(log(), run, resume=True, stop=lambda: pytest.fail("it trains"))
    assert files(run) == files(runs["all"])
    assert again.trained_on == "all"
    assert again.recommend(k=2).equals(Recommender.load(run).recommend(k=2))


@pytest.mark.parametrize("kind", KINDS)
def test_more_epochs_equal_one_long_run(copy: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    run = copy(kind)
    longer = SMALL | {"epochs": 7, "refit": kind}
    Recommender(**longer).fit(log(), run, resume=True)
    Recommender(**longer).fit(log(), tmp_path / "long")
    assert {name: part for name, part in files(run).items() if name != "config.json"} == {
        name: part for name, part in files(tmp_path / "long").items() if name != "config.json"
    }


def interrupting(number: int, sent: list[int], times: int = 1) -> Callable[..., Any]:
    """An ``optimizer_step`` that sends a signal at one of the steps of a refit."""
    module = sys.modules["seqrec.training.loop"]
    step: Callable[..., Any] = module.optimizer_step  # type: ignore[attr-defined]

    def stepped(*arguments: Any, **more: Any) -> Any:
        if sys._getframe(1).f_locals["self"].refit is not None:
            sent.append(1)
            for _ in range(times if len(sent) == number else 0):
                os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments, **more)

    return stepped


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("number", "kind"), [(1, "valid"), (7, "all"), (15, "valid")])
def test_an_interrupted_refit_leaves_the_first_weights(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("seqrec.training.loop.optimizer_step", interrupting(number, sent))
    run = tmp_path / "run"
    stopped = Recommender(**SMALL, refit=kind).fit(log(), run)
    monkeypatch.undo()
    assert len(sent) == number
    assert stopped.interrupted
    assert stopped.trained_on == Recommender.load(run).trained_on == "train"
    assert same(weights(stopped), weights(Recommender.load(runs["off"])))
    assert same(load_file(run / "weights.safetensors"), load_file(runs["off"] / "weights.safetensors"))
    assert "trained_on" not in Run(run).metrics()
    assert figures(run, "test") == figures(runs["off"], "test")
    resumed = Recommender(**SMALL, refit=kind).fit(log(), run, resume=True)
    assert not resumed.interrupted
    assert files(run) == files(runs[kind])


def test_ctrl_c_when_the_refit_is_complete(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = RefitRun.save_weights

    def interrupted(self: RefitRun, given: Any) -> None:
        save(self, given)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RefitRun, "save_weights", interrupted)
    stopped = Recommender(**SMALL, refit="valid").fit(log(), tmp_path / "run")
    monkeypatch.undo()
    assert stopped.interrupted
    assert stopped.trained_on == Recommender.load(tmp_path / "run").trained_on == "train+valid"
    assert same(weights(stopped), weights(Recommender.load(runs["valid"])))
    Recommender(**SMALL, refit="valid").fit(log(), tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(runs["valid"])


@pytest.mark.slow
def test_ctrl_c_twice_and_another_kind(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log().write_csv(tmp_path / "log.csv")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = ["fit", str(tmp_path / "log.csv"), "--out", str(tmp_path / "run"), *flags, "--checkpoint-minutes=0"]
    monkeypatch.setattr("seqrec.training.loop.optimizer_step", interrupting(7, [], times=2))
    assert main([*command, "--refit", "valid"]) == 130
    monkeypatch.undo()
    assert "--resume continues" in capsys.readouterr().err
    monkeypatch.setattr("seqrec.training.loop.optimizer_step", interrupting(1, []))
    assert main([*command, "--refit", "valid", "--resume"]) == 130
    monkeypatch.undo()
    assert "has the weights from before the refit, --resume continues" in capsys.readouterr().out
    assert any(path.name.startswith("refit-valid-") for path in (tmp_path / "run/state").iterdir())
    assert main([*command, "--refit", "all", "--resume"]) == 0  # what was begun for the other kind is not used
    assert not any(path.name.startswith("refit-") for path in (tmp_path / "run/state").iterdir())
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (runs["all"] / "weights.safetensors").read_bytes()


def test_an_error_in_the_refit_leaves_the_first_weights(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*arguments: Any, **more: Any) -> Any:
        raise InputError("the loss of epoch 1 is nan")

    monkeypatch.setattr("seqrec.training.refitting.train", diverges)
    recommender = Recommender(**SMALL, refit="all")
    with pytest.raises(InputError, match=r"^the refit failed: the loss of epoch 1 is nan"):
        recommender.fit(log(), tmp_path / "run")
    with pytest.raises(InputError, match="not trained"):
        recommender.recommend(k=1)
    assert figures(tmp_path / "run", "test") == figures(runs["off"], "test")
    monkeypatch.undo()
    recommender.fit(log(), tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(runs["all"])


# A child is forked for each file that the refit writes or removes, from a process that has imported everything. It is
# killed before or after that; then the run is looked at and resumed in other children.
KILLER = """
import json, os, pathlib, shutil, signal, sys, traceback, warnings
import torch
torch.set_num_threads(1)
from seqrec import Recommender
import seqrec.files, seqrec.run.refit, seqrec.training.additions, seqrec.training.fitting

seqrec.training.additions.VALUES = {name: values[:1] for name, values in seqrec.training.additions.VALUES.items()}
log, folder, options, after = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4] == "after"
warnings.simplefilter("ignore")

def child(work):
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

def killed(number):
    count, begun = [0], []
    def counting(function):
        def counted(*arguments, **more):
            if begun:
                count[0] += 1
            if not after and count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **more)
            if after and count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return counted
    pathlib.Path.replace, pathlib.Path.unlink = map(counting, (pathlib.Path.replace, pathlib.Path.unlink))
    tested = seqrec.training.fitting._tested
    def noted(*arguments):
        begun.append(1)
        return tested(*arguments)
    seqrec.training.fitting._tested = noted
    Recommender(**options).fit(log, folder)

def looked_at():
    found = Recommender.load(folder)
    print(json.dumps([found.trained_on, found.evaluate().trained_on, found.metrics.get("trained_on")]), flush=True)

for number in range(1, 200):
    shutil.rmtree(folder, ignore_errors=True)
    status = child(lambda: killed(number))
    if status == 0:
        sys.exit(0)
    assert status == -signal.SIGKILL, status
    assert child(looked_at) == 0
    shutil.copytree(folder, f"{folder}-{number}")
    assert child(lambda: Recommender(**options).fit(log, f"{folder}-{number}", resume=True)) == 0
sys.exit(2)
"""


@pytest.mark.parametrize(
    ("model", "kind", "when"),
    [
        pytest.param("sasrec", "valid", "before", marks=pytest.mark.slow),
        pytest.param("sasrec", "all", "after", marks=pytest.mark.slow),
        pytest.param("markov", "all", "before", marks=pytest.mark.slow),
        pytest.param("markov", "valid", "after", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_file_it_ends_as_the_run_that_was_not(tmp_path: Path, model: str, kind: str, when: str) -> None:
    log().write_csv(tmp_path / "log.csv")
    options: dict[str, Any] = {"model": model, "refit": kind}
    if model == "sasrec":
        options |= SMALL | {"epochs": 2, "batch_size": 20, "checkpoint_minutes": 0}
    command = [
        sys.executable,
        "-c",
        KILLER,
        str(tmp_path / "log.csv"),
        str(tmp_path / "run"),
        json.dumps(options),
        when,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    met = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(met) >= (10 if model == "sasrec" else 4)
    # Until the weights of the refit are in use, they are the first ones; metrics.json never says anything else.
    trained_on = KINDS[kind]
    evaluated = "train" if kind == "all" else trained_on
    assert {*met} <= {("train", "train", None), (trained_on, evaluated, None), (trained_on, evaluated, trained_on)}
    assert met[0] == ("train", "train", None)
    assert (trained_on, evaluated, None) in met
    Recommender(**options).fit(str(tmp_path / "log.csv"), tmp_path / "whole")
    for number in range(1, len(met) + 1):
        assert files(tmp_path / f"run-{number}") == files(tmp_path / "whole"), number
        left = {path.name for path in (tmp_path / f"run-{number}").rglob("*")}
        assert not any(name.startswith((".", "refit-")) for name in left)


# ---- what strangers or accidents do to it --------------------------------------------------------------------------


def one_line(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_are_not_what_their_name_says(runs: dict[str, Path], copy: Callable[[str], Path]) -> None:
    run = copy("all")
    names = ("weights.safetensors", "weights-train.safetensors")
    used, first = (run / name for name in names)
    shutil.copy(used, first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        for action in (lambda: Recommender.load(run).evaluate(), lambda: Recommender(**SMALL, refit="all").fit(
                log(), run, resume=True)):  # fmt: skip
            assert "is not the weights of this run but its 'weights of a refit on all'" in one_line(action)
        first.unlink()
        assert "is not the weights of this run" in one_line(lambda: Recommender.load(run).evaluate())
        first.write_bytes(b"half")
        assert str(first) in one_line(lambda: Recommender.load(run).evaluate())
    assert Recommender.load(run).recommend(k=1).height == 40  # they are not needed for that
    shutil.copy(runs["off"] / names[0], first)
    content = used.read_bytes()
    for kind in (b"refit on ill", b"refit on train and val1d"):
        used.write_bytes(content.replace(b"refit on all", kind[:12]))
        assert "is not the weights of this run" in one_line(lambda: Recommender.load(run))
    used.unlink()
    used.symlink_to(first)
    assert "symbolic link" in one_line(lambda: Recommender.load(run))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose refit was interrupted, not to be changed."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqrec.training.loop.optimizer_step", interrupting(13, []))
        assert Recommender(**SMALL, refit="all").fit(log(), folder).interrupted
    return folder


@pytest.mark.parametrize("damage", ["cut", "other part"])
def test_a_damaged_state_of_a_refit(interrupted: Path, tmp_path: Path, damage: str) -> None:
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    path = run / "state/refit-all-3-training.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        shutil.copy(run / "state/training.safetensors", path)
    before = (run / "weights.safetensors").read_bytes()
    assert str(path) in one_line(lambda: Recommender(**SMALL, refit="all").fit(log(), run, resume=True))
    assert (run / "weights.safetensors").read_bytes() == before
    assert Recommender.load(run).recommend(k=1).height == 40
    Recommender("popularity").fit(log(), run, overwrite=True)
    assert not list(run.rglob("refit-*"))


@pytest.mark.parametrize("refit", ["everything", "", None, True, "train"])
def test_what_is_no_refit(refit: Any, copy: Callable[[str], Path]) -> None:
    assert "give off, all or valid" in one_line(lambda: Recommender(refit=refit))
    run = copy("off")
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(values | {"refit": refit}))
    assert "refit" in one_line(lambda: Recommender.load(run))


def test_a_run_from_before_there_were_refits(runs: dict[str, Path], copy: Callable[[str], Path]) -> None:
    run = copy("off")
    values = json.loads((run / "config.json").read_text())
    del values["refit"]
    (run / "config.json").write_text(json.dumps(values))
    assert Recommender.load(run).refit == "off"
    Recommender(**SMALL, refit="all").fit(log(), run, resume=True)
    assert (run / "weights.safetensors").read_bytes() == (runs["all"] / "weights.safetensors").read_bytes()


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_commands_say_what_was_trained_on_what(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log().write_csv(tmp_path / "log.csv")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = ["fit", str(tmp_path / "log.csv"), "--out", str(tmp_path / "run"), *flags]
    said = {}
    for more in ([], ["--refit", "valid", "--resume"], ["--refit=all", "--resume", "--json", str(tmp_path / "facts")]):
        assert main([*command, *more]) == 0
        out, errors = capsys.readouterr()
        assert errors == ""
        said[str(more[:1])] = " ".join(out.split())
    off, valid, all_ = said["[]"], said["['--refit']"], said["['--refit=all']"]
    assert "the weights in use were trained without validation and test items; --resume --refit all trains" in off
    assert off.count("trained without validation and test items") == 3  # both tables and the last line
    assert valid.count("; trained without test items") == 2
    assert "the weights in use were trained without test items run written to" in valid
    assert "the weights in use were trained with all items, so nothing is left to test them on" in all_
    facts = json.loads((tmp_path / "facts").read_text())
    assert (facts["trained_on"], facts["test"]["full"]["trained_on"]) == ("all", "train")

    assert main(["evaluate", str(runs["all"]), "--json", str(tmp_path / "evaluated")]) == 0
    out, errors = capsys.readouterr()
    assert errors.startswith("warning: the weights in use were trained with all items, so the test items are not held")
    assert len(errors.splitlines()) == 1
    assert "trained without validation and test items" in " ".join(out.split())
    assert json.loads((tmp_path / "evaluated").read_text())["trained_on"] == "train"
