"""Training: it learns, the same seed gives the same bytes, and a resumed run ends like an uninterrupted one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import rich
import torch
from safetensors.torch import load_file

from seqrec import InputError, Recommender, Split, TrainConfig, prepare, split_last_two
from seqrec.cli.app import main
from seqrec.data.split import all_histories
from seqrec.errors import RunWarning
from seqrec.models import MODELS, SASRec
from seqrec.models.sasrec import SASRecConfig
from seqrec.ranking.metrics import hit_rate, ndcg
from seqrec.ranking.protocols import ranks
from seqrec.run.folder import Run, check_free
from seqrec.run.tensors import load_tensors
from seqrec.training.checks import objective_of
from seqrec.training.loop import train
from seqrec.training.state import TrainingState
from seqrec.training.step import epoch_of, tasks_of

SMALL: dict[str, Any] = {
    "embedding_dim": 16, "num_blocks": 1, "max_length": 8, "dropout": 0.1, "batch_size": 16, "epochs": 4,
    "evaluate_every": 1, "learning_rate": 0.01, "transitions": "off",
}  # fmt: skip

RISING = SMALL | {"learning_rate": 0.0003, "item_init": "random"}  # each epoch ranks better than those before


def ring(users: int = 60, items: int = 12, seed: int = 0) -> pl.DataFrame:
    """A log in which every user walks round the same ring of items from a different start: the next item is certain."""
    random = np.random.default_rng(seed)
    starts, lengths = random.integers(items, size=users), random.integers(4, 9, size=users)
    rows = [(u, int(starts[u] + step) % items, step) for u in range(users) for step in range(lengths[u])]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def same_weights(one: Path, other: Path) -> bool:
    """Whether the weights are the same, of whatever run."""
    found = [load_file(folder / "weights.safetensors") for folder in (one, other)]
    return all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def epochs(folder: Path) -> pl.DataFrame:
    """``epochs.csv`` without the columns of times."""
    return pl.read_csv(folder / "epochs.csv").drop("seconds", "total_seconds", "tokens_per_second")


def same_run(one: Path, other: Path) -> bool:
    return weights(one) == weights(other) and epochs(one).equals(epochs(other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    Recommender(**SMALL).fit(ring(), folder)
    return folder


@pytest.mark.parametrize("loss", ["sampled-softmax", "bce"])
def test_learns_what_is_certain(loss: str) -> None:
    split = split_last_two(prepare(ring()))
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(max_length=8, embedding_dim=16, num_blocks=1, dropout=0.0), 12)
    config = TrainConfig(loss=loss, epochs=60, batch_size=16, learning_rate=0.01, evaluate_every=5, patience=0)
    trained = train(model, split, config)
    losses = [row["loss"] for row in trained.epochs]
    assert trained.ended == "epochs"
    assert losses[-1] < losses[10] < losses[0]
    assert float(hit_rate(*ranks(model, split.test), 1).mean()) > 0.9
    assert not model.training


def test_epochs_have_the_columns_promised(whole: Path) -> None:
    frame = pl.read_csv(whole / "epochs.csv")
    assert frame.columns == ["epoch", "loss", "seconds", "total_seconds", "tokens_per_second", "ndcg@10", "hr@10"]
    assert frame["epoch"].to_list() == [1, 2, 3, 4]
    assert frame["loss"].is_sorted(descending=True)
    assert frame.null_count().sum_horizontal().item() == 0
    assert (frame["tokens_per_second"] > 0).all()


def test_one_seed_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    Recommender(**SMALL).fit(ring(), tmp_path / "same")
    Recommender(**SMALL, seed=1).fit(ring(), tmp_path / "other")
    assert same_run(whole, tmp_path / "same")
    assert weights(whole) != weights(tmp_path / "other")
    assert not epochs(whole).equals(epochs(tmp_path / "other"))


def test_checkpoints_change_nothing(whole: Path, tmp_path: Path) -> None:
    Recommender(**SMALL, checkpoint_minutes=0).fit(ring(), tmp_path / "run")
    assert same_run(whole, tmp_path / "run")


def only_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch, error_at: int | None = None) -> Callable[[], bool]:
    """Called after every step of ``RISING`` on ``ring``: as if writing had taken long, but before the end of one epoch.

    The step with the number ``error_at`` is interrupted.
    """
    taken: list[int] = []

    def stop() -> bool:
        taken.append(1)
        monkeypatch.setattr("seqrec.training.state._TIMES", 0 if (len(taken) - 1) // 4 == number - 1 else 10**9)
        if len(taken) == error_at:
            raise KeyboardInterrupt
        return False

    return stop


@pytest.mark.parametrize("evaluate_every", [0, 1])
def test_an_epoch_need_not_end_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate_every: int
) -> None:
    saved: list[tuple[int, int, bool]] = []
    save = Run.save_state

    def counted(run: Run, tensors: Any, facts: Any, best: Any) -> None:
        saved.append((facts["epoch"], facts["best_epoch"], best is not None))
        save(run, tensors, facts, best)

    monkeypatch.setattr(Run, "save_state", counted)
    options = RISING | {"epochs": 5, "evaluate_every": evaluate_every}
    Recommender(**options).fit(ring(), tmp_path / "whole", stop=only_in_epoch(2, monkeypatch))
    assert saved == [(2, 2, True), (5, 5, True)]
    saved.clear()
    with pytest.raises(KeyboardInterrupt):
        Recommender(**options).fit(ring(), tmp_path / "run", stop=only_in_epoch(2, monkeypatch, error_at=15))
    assert saved == [(2, 2, True)]
    assert epochs(tmp_path / "run").height == 3  # the weights are older, but those that training goes on from
    Recommender(**options | {"epochs": 2}).fit(ring(), tmp_path / "two")
    assert same_weights(tmp_path / "run", tmp_path / "two")
    Recommender(**options).fit(ring(), tmp_path / "run", resume=True)
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_a_copy_of_the_folder_at_any_file_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves what such a copy holds."""
    copies: list[Path] = []
    best: dict[int, dict[str, torch.Tensor]] = {}
    replace, keep = Path.replace, TrainingState.keep_weights

    def copied(path: Path, target: Path) -> Path:
        if len(copies) < 7:  # transition counts and the test follow
            copies.append(Path(shutil.copytree(tmp_path / "whole", tmp_path / f"copy-{len(copies)}")))
        return replace(path, target)

    def kept(state: TrainingState) -> None:
        best[state.epoch] = {name: value.clone() for name, value in state.model.state_dict().items()}
        keep(state)

    options = RISING | {"epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", copied)
        patch.setattr(TrainingState, "keep_weights", kept)
        Recommender(**options).fit(ring(), tmp_path / "whole", stop=only_in_epoch(2, patch))
    found = []
    for copy in copies:
        file, header = copy / "weights.safetensors", Run(copy).state_header()
        there = load_file(file) if file.exists() else {}
        epoch = next((n for n in best if there and all(torch.equal(best[n][key], there[key]) for key in there)), 0)
        found.append((header[1]["best_epoch"] if header else 0, epoch))
        Recommender(**options).fit(ring(), copy, resume=True)
        assert same_run(copy, tmp_path / "whole")
        assert not list(copy.rglob("*.partial"))
    # Best epoch of the state and epoch of the weights, before: epochs.csv; weights, state and epochs.csv, twice.
    assert found == [(0, 0), (0, 0), (0, 2), (2, 2), (2, 2), (2, 3), (3, 3)]


def test_another_thread_trains_the_same(whole: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: Recommender(**SMALL).fit(ring(), tmp_path / "run"))
    thread.start()
    thread.join()
    assert same_run(whole, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


def test_training_leaves_the_process_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    Recommender(**SMALL | {"epochs": 1}).fit(ring())
    assert capsys.readouterr().out == ""
    rich.print("still to be seen")
    assert capsys.readouterr().out == "still to be seen\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


# Children are forked from a process that has imported everything, so that a kill hits training and not the imports.
# Each child is killed with SIGKILL at a random moment, after its first new checkpoint or without waiting for one, and
# the next one resumes.
KILLER = """
import json, os, random, signal, sys, time, traceback
import torch
torch.set_num_threads(1)
from seqrec import Recommender
from seqrec.run.folder import STATE, Run

log, folder, options, kills, seed = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
random.seed(int(seed))
state = os.path.join(folder, STATE)

def train():
    child = os.fork()
    if child == 0:
        try:
            Recommender(**options).fit(log, folder, resume=True)
            assert "torch._dynamo" not in sys.modules, "the compiler of torch, whose import takes a second"
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child

def changed():
    return os.stat(state).st_mtime_ns if os.path.exists(state) else 0

met = []
for _ in range(kills):
    before = changed()
    child = train()
    ended = 0
    while changed() == before and not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.06))
    if ended or os.waitpid(child, os.WNOHANG)[0]:
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    facts = Run(folder).state_header()[1]
    met.append([facts["epoch"], facts["step"]])
print(json.dumps(met))
child = train()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("loss", ["sampled-softmax", "bce"])
@pytest.mark.slow
def test_killed_and_resumed_ends_as_the_run_that_was_not(tmp_path: Path, loss: str) -> None:
    log = tmp_path / "log.csv"
    ring(users=200).write_csv(log)
    options = SMALL | {"checkpoint_minutes": 0, "loss": loss, "epochs": 3, "batch_size": 8, "clip_norm": 1.0}
    command = [sys.executable, "-c", KILLER, str(log), str(tmp_path / "killed"), json.dumps(options), "6", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    met = json.loads(done.stdout)
    assert len(met) >= 3
    assert any(step > 0 for _, step in met)
    assert not list(tmp_path.rglob("*.partial"))
    Recommender(**options | {"checkpoint_minutes": 10}).fit(str(log), tmp_path / "whole")
    assert same_run(tmp_path / "killed", tmp_path / "whole")
    frames = [Recommender.load(tmp_path / name).recommend(k=3) for name in ("killed", "whole")]
    assert frames[0].equals(frames[1])


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_run(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    ring(users=200).write_csv(log)
    options = ["--embedding-dim", "16", "--num-blocks", "1", "--batch-size", "4", "--epochs", "2", "--max-length", "8",
               "--evaluate-every", "1"]  # fmt: skip
    command = [sys.executable, "-m", "seqrec.cli", "fit", str(log), "--out", str(tmp_path / "run"), *options]
    command += ["--checkpoint-minutes", "0"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: rounding depends on the number of threads
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread)
    state = tmp_path / "run/state/training.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors == ""
    assert "--resume continues" in out
    stopped = Run(tmp_path / "run")
    assert stopped.metrics() == {}
    assert (stopped.state_header() or ({}, {}))[1]["epoch"] < 2
    assert not list(tmp_path.rglob("*.partial"))
    assert Recommender.load(tmp_path / "run").recommend(k=3).height == 600

    assert main(["fit", str(log), "--out", str(tmp_path / "run"), *options, "--resume"]) == 0
    assert main(["fit", str(log), "--out", str(tmp_path / "whole"), *options]) == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_a_stop_while_the_last_epoch_is_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["seqrec.training.loop"]
    values = module.accuracy_of  # type: ignore[attr-defined]

    def interrupted(*arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return values(*arguments)

    monkeypatch.setattr(module, "accuracy_of", interrupted)
    options = SMALL | {"epochs": 1}
    assert Recommender(**options).fit(ring(), tmp_path / "run").interrupted
    assert Run(tmp_path / "run").metrics() == {}
    monkeypatch.undo()
    resumed = Recommender(**options).fit(ring(), tmp_path / "run", resume=True)
    assert not resumed.interrupted
    Recommender(**options).fit(ring(), tmp_path / "whole")
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_what_kills_left_is_swept_when_a_run_goes_on(tmp_path: Path) -> None:
    Recommender(**SMALL | {"epochs": 1}).fit(ring(), tmp_path / "run")
    for name in ("state/.tmpAbC12x", "state/.training.safetensors.abcdefgh.partial", ".weights.safetensors.x.partial"):
        (tmp_path / "run" / name).write_text("half")
    for name in (".run.abcdefgh.old", ".run.abc_efgh.partial", ".run.other.old", ".other.abcdefgh.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    check_free(tmp_path / "run", overwrite=True)  # left-over files count as the run's own
    Recommender(**SMALL).fit(ring(), tmp_path / "run", resume=True)
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.abcdefgh.old", ".run.other.old", "run"]


def test_resuming_a_finished_run_returns_at_once(whole: Path, tmp_path: Path) -> None:
    Recommender(**SMALL).fit(ring(), tmp_path / "run")
    before = weights(tmp_path / "run"), (tmp_path / "run/epochs.csv").read_bytes()
    again = Recommender(**SMALL).fit(ring(), tmp_path / "run", resume=True)
    assert (weights(tmp_path / "run"), (tmp_path / "run/epochs.csv").read_bytes()) == before
    assert len(again.epochs) == 4
    assert again.recommend(k=3).equals(Recommender.load(whole).recommend(k=3))


@pytest.mark.parametrize("evaluate_every", [0, 1])
def test_more_epochs_equal_one_long_run(tmp_path: Path, evaluate_every: int) -> None:
    options = SMALL | {"evaluate_every": evaluate_every}
    Recommender(**options | {"epochs": 2}).fit(ring(), tmp_path / "two")
    Recommender(**options).fit(ring(), tmp_path / "two", resume=True)
    Recommender(**options).fit(ring(), tmp_path / "four")
    assert same_run(tmp_path / "two", tmp_path / "four")


def test_resume_where_nothing_is_begins_anew(whole: Path, tmp_path: Path) -> None:
    Recommender(**SMALL).fit(ring(), tmp_path / "run", resume=True)
    assert same_run(whole, tmp_path / "run")
    (tmp_path / "run/state/training.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no state/training\.safetensors to resume from"):
        Recommender(**SMALL).fit(ring(), tmp_path / "run", resume=True)
    (tmp_path / "run/metrics.json").unlink()  # killed before the first checkpoint
    Recommender(**SMALL).fit(ring(), tmp_path / "run", resume=True)
    assert same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"learning_rate": 0.02}, "learning_rate"),
        ({"loss": "bce"}, "loss"),
        ({"seed": 5}, "seed"),
        ({"embedding_dim": 8}, "embedding_dim"),
        ({"feedforward_dims": (4, 4)}, "feedforward_dims"),
        ({"split": "time"}, "split"),
        ({"min_item_interactions": 2}, "min_item_interactions"),
        ({"batch_size": 17}, "batch_size"),
        ({"patience": 1}, "patience"),
    ],
)
def test_resume_with_other_options_is_refused(whole: Path, change: dict[str, Any], hint: str) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"started with {hint}") as caught:
        Recommender(**SMALL | change).fit(ring(), whole, resume=True)
    assert "--overwrite" in str(caught.value)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_resume_with_another_log_or_model_is_refused(whole: Path) -> None:
    with pytest.raises(InputError, match="another log"):
        Recommender(**SMALL).fit(ring(seed=1), whole, resume=True)
    with pytest.raises(InputError, match="model = sasrec, not popularity"):
        Recommender("popularity").fit(ring(), whole, resume=True)
    with pytest.raises(InputError, match="give out"):
        Recommender(**SMALL).fit(ring(), resume=True)
    with pytest.raises(InputError, match="exclude each other"):
        Recommender(**SMALL).fit(ring(), whole, resume=True, overwrite=True)


def noise() -> pl.DataFrame:
    """A log without structure: validation soon gets worse."""
    random = np.random.default_rng(0)
    return pl.DataFrame({"user_id": np.repeat(np.arange(50), 6), "item_id": random.integers(30, size=300)})


def test_early_stopping_keeps_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.training.state.VALIDATION_STEPS", 1)
    options = SMALL | {"epochs": 200, "patience": 3, "learning_rate": 0.03}
    recommender = Recommender(**options).fit(noise(), tmp_path / "run")
    rows = recommender.epochs
    values = [row["ndcg@10"] for row in rows]
    best = int(np.argmax(values)) + 1
    assert len(rows) == best + 3 < 200
    assert recommender.metrics["best_epoch"] == best
    loaded = Recommender.load(tmp_path / "run")
    split = split_last_two(loaded.dataset)
    assert float(ndcg(*ranks(loaded.model, split.valid), 10).mean()) == values[best - 1]
    assert float(ndcg(*ranks(recommender.model, split.valid), 10).mean()) == values[best - 1]
    before = weights(tmp_path / "run")
    assert len(Recommender(**options).fit(noise(), tmp_path / "run", resume=True).epochs) == len(rows)
    assert weights(tmp_path / "run") == before


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.2])
def test_small_gains_use_up_patience(gain: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.training.state.VALIDATION_STEPS", 1)
    options = RISING | {"epochs": 90, "patience": 2, "min_gain": gain}
    found = Recommender(**options).fit(ring(), tmp_path / "run")
    values, worse, best = [row["ndcg@10"] for row in found.epochs], [0], -1.0
    for value in values:
        worse.append(0 if value - best > gain * best else worse[-1] + 1)
        best = max(best, value)
    assert worse.index(2) == len(values) < 90
    assert found.metrics["best_epoch"] == values.index(best) + 1


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "validations"), [(50, 100), (1, 2)])
def test_patience_waits_for_a_hundred_steps_per_validation(batch_size: int, validations: int) -> None:
    options = SMALL | {"epochs": 600, "patience": 1, "batch_size": batch_size, "learning_rate": 0.03,
                       "embedding_dim": 4, "average_decay": 0.0}  # fmt: skip
    recommender = Recommender(**options).fit(noise())
    rows = recommender.epochs
    best = int(np.argmax([row["ndcg@10"] for row in rows])) + 1
    steps = -(-50 // batch_size)
    assert len(rows) == best + 100 // steps == best + validations < 600


def test_validation_looks_at_so_many_users_and_the_same_ones() -> None:
    split = split_last_two(prepare(ring()))

    def fit(users: int) -> list[float]:
        torch.manual_seed(0)
        model = SASRec(SASRecConfig(max_length=8, embedding_dim=8, num_blocks=0), 12)
        found = train(model, split, TrainConfig(epochs=2, evaluate_every=1, validation_users=users, patience=0))
        return [row["hr@10"] for row in found.epochs]

    assert fit(7) == fit(7)
    assert all(abs(7 * value - round(7 * value)) < 1e-9 for value in fit(7))
    assert fit(60) == fit(10_000)


def test_validation_comes_every_so_many_epochs_and_last() -> None:
    rows = Recommender(**SMALL | {"epochs": 5, "evaluate_every": 3}).fit(ring()).epochs
    assert ["ndcg@10" in row for row in rows] == [False, False, True, False, True]


def test_trains_without_anybody_to_validate_on(tmp_path: Path) -> None:
    pairs = pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 3, 4], "item_id": [1, 2, 2, 3, 3, 1, 2]})
    recommender = Recommender(**SMALL).fit(pairs, tmp_path / "run")
    assert pl.read_csv(tmp_path / "run/epochs.csv").columns == [
        "epoch",
        "loss",
        "seconds",
        "total_seconds",
        "tokens_per_second",
    ]
    assert recommender.metrics.keys() == {"best_epoch", "epochs", "split", "trained_on"}
    assert [recommender.metrics[name] for name in ("best_epoch", "epochs")] == [4, 4]
    assert recommender.metrics["split"]["test_users"] == 0
    assert Recommender.load(tmp_path / "run").recommend(users=[1], k=3)["item_id"].to_list() == [3]
    with pytest.raises(InputError, match="nobody to evaluate on"):
        recommender.evaluate()


def test_nothing_to_train_on(tmp_path: Path) -> None:
    singles = pl.DataFrame({"user_id": [1, 2, 3], "item_id": [1, 2, 3]})
    with pytest.raises(InputError, match="no user has two interactions"):
        Recommender(**SMALL).fit(singles, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    split = split_last_two(prepare(singles))
    with pytest.raises(InputError, match="no user has two interactions"):
        train(SASRec(SASRecConfig(), 3), split)


def test_divergence_ends_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower the learning rate"):
        Recommender(**SMALL | {"learning_rate": 1e6}).fit(ring(), tmp_path / "first")
    assert not (tmp_path / "first").exists()  # there were never good weights

    # A run that fails later: the embedding gets a NaN after two epochs.
    options = SMALL | {"epochs": 2}
    Recommender(**options).fit(ring(), tmp_path / "run")
    good = weights(tmp_path / "run")
    run = Run(tmp_path / "run")
    header, facts = run.state_header() or (None, {})
    assert header is not None
    tensors = load_tensors(header)
    tensors["model.item_embedding.weight"][3] = torch.nan
    run.save_state(tensors, facts)
    with pytest.raises(InputError, match="diverged"):
        Recommender(**SMALL).fit(ring(), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == good
    assert Recommender.load(tmp_path / "run").recommend(k=3).height > 0


@pytest.mark.parametrize(("checkpoint", "overwrite"), [(1, False), (9, False), (9, True)])
def test_better_weights_without_a_checkpoint_are_kept_after_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: int, overwrite: bool
) -> None:
    module: Any = sys.modules["seqrec.training.loop"]
    step, taken = module.optimizer_step, []

    def broken(*arguments: Any, **more: Any) -> torch.Tensor:
        taken.append(1)
        return step(*arguments, **more) * (torch.nan if len(taken) > 3 * 4 else 1)

    if overwrite:
        Recommender("markov").fit(ring(), tmp_path / "run")
    monkeypatch.setattr(module, "optimizer_step", broken)
    with pytest.raises(InputError, match="diverged") as caught:
        Recommender(**RISING).fit(
            ring(), tmp_path / "run", overwrite=overwrite, stop=only_in_epoch(checkpoint, monkeypatch)
        )
    monkeypatch.undo()
    assert ("the last good weights are kept" in str(caught.value)) == (checkpoint == 1)
    if checkpoint == 1:
        Recommender(**RISING | {"epochs": 3}).fit(ring(), tmp_path / "three")
        assert same_weights(tmp_path / "run", tmp_path / "three")
    elif overwrite:
        assert Run(tmp_path / "run").config.model == "markov"
    else:
        assert not (tmp_path / "run").exists()


def test_negatives_of_somebody_who_met_everything() -> None:
    everything = pl.DataFrame({"user_id": [1] * 6 + [2] * 4, "item_id": [1, 2, 3, 4, 1, 2, 2, 3, 4, 1]})
    dataset = prepare(everything)
    nobody = split_last_two(dataset).test.take(slice(0))
    longer = Split(all_histories(dataset), nobody, nobody)
    model = SASRec(SASRecConfig(max_length=8, embedding_dim=8, num_blocks=1), 4)
    with pytest.raises(
        InputError, match=r"2 of 2 users have seen every item .*, so bce has no negative .*--loss cross-entropy"
    ):
        train(model, longer, TrainConfig(loss="bce", epochs=1))


def steps_of(clip_norm: float | None, table_learning_rate: float | None = None) -> torch.Tensor:
    """The movement of a fresh model's table in one step."""
    split = split_last_two(prepare(ring()))
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(max_length=8, embedding_dim=8, num_blocks=1, dropout=0.0), 12)
    before = model.item_embedding.weight.detach().clone()
    config = TrainConfig(epochs=1, batch_size=1000, clip_norm=clip_norm, table_learning_rate=table_learning_rate,
                         learning_rate=0.01, evaluate_every=0)  # fmt: skip
    train(model, split, config)
    return (model.item_embedding.weight.detach() - before).abs()


def test_clipping_and_the_tables_own_rate() -> None:
    free, tiny, loose = steps_of(None), steps_of(1e-10), steps_of(1e10)
    assert torch.allclose(free, loose, rtol=1e-5, atol=1e-7)  # a row's gradients may be summed in another order
    assert free.max() == pytest.approx(0.01, rel=0.01)  # Adam's first step equals its rate
    assert tiny.max() < 0.5 * free.max()  # except where gradients are below its epsilon
    assert steps_of(None, 0.002).max() == pytest.approx(0.002, rel=0.01)
    assert (free[0] == 0).all()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"loss": "hinge"}, "sampled-softmax, bce"),
        ({"epochs": 0}, "1 or more"),
        ({"batch_size": 0}, "1 or more"),
        ({"negatives": 0}, "1 or more"),
        ({"evaluate_every": -1}, "0 or more"),
        ({"patience": -1}, "0 or more"),
        ({"validation_users": 0}, "1 or more"),
        ({"seed": -1}, "0 or more"),
        ({"learning_rate": 0}, "more than 0"),
        ({"learning_rate": float("nan")}, "more than 0"),
        ({"table_learning_rate": -1.0}, "more than 0"),
        ({"clip_norm": 0.0}, "more than 0"),
        ({"calibration": 1.5}, "0 to 1"),
        ({"popularity": float("nan")}, "0 to 10"),
        ({"popularity": 400.0}, "0 to 10"),
        ({"beta2": 0.85}, "at least 0.9 and less than 1"),
        ({"checkpoint_minutes": float("nan")}, "0 to 1000000"),
        ({"negatives": 5, "loss": "cross-entropy"}, "whole catalogue"),
        ({"threads": 100_000}, "1 to 1024"),
        ({"windows": "first"}, "give last or all"),
        ({"learning_rate_schedule": "step"}, "give constant, linear or cosine"),
        ({"warmup_steps": -1}, "0 to"),
        ({"warmup_steps": 1.5}, "whole number, or a share below 1"),
    ],
)
def test_options_out_of_range(change: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError, match=hint) as caught:
        TrainConfig(**change)
    assert next(iter(change)) in str(caught.value)


SCHEDULE = {"learning_rate_schedule": "cosine", "warmup_steps": 0.2}


def test_a_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    options = SMALL | SCHEDULE | {"checkpoint_minutes": 0, "table_learning_rate": 0.03}
    steps = 0

    def stop() -> bool:  # a signal after the sixth of 16 steps
        nonlocal steps
        steps += 1
        if steps == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    assert Recommender(**options).fit(ring(), tmp_path / "run", stop=stop).interrupted
    assert (Run(tmp_path / "run").state_header() or ({}, {}))[1]["step"] > 0
    with pytest.raises(InputError, match="started with epochs = 4, not 5"):  # its steps would have had other rates
        Recommender(**options | {"epochs": 5}).fit(ring(), tmp_path / "run", resume=True)
    Recommender(**options).fit(ring(), tmp_path / "run", resume=True)
    Recommender(**options).fit(ring(), tmp_path / "whole")
    assert same_run(tmp_path / "run", tmp_path / "whole")
    Recommender(**SMALL).fit(ring(), tmp_path / "constant")
    assert weights(tmp_path / "whole") != weights(tmp_path / "constant")


@pytest.mark.parametrize("loss", ["bce", "cross-entropy"])
def test_learns_with_a_schedule(loss: str) -> None:
    options = SMALL | SCHEDULE | {"epochs": 40, "loss": loss, "dropout": 0.0, "patience": 0, "evaluate_every": 0}
    found = Recommender(**options).fit(ring())
    assert found.model is not None
    assert float(hit_rate(*ranks(found.model, split_last_two(found.dataset).test), 1).mean()) > 0.9


def long_rings() -> pl.DataFrame:
    """A log in which every user walks round one ring, and only in the last steps round a second one."""
    rows = []
    for user in range(40):
        rows += [(user, (user + step) % 12, step) for step in range(30)]
        rows += [(user, 12 + (user + step) % 12, 30 + step) for step in range(12)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.mark.slow
def test_all_windows_learn_what_the_last_ones_do_not_show(tmp_path: Path) -> None:
    options = SMALL | {"epochs": 25, "max_length": 6, "dropout": 0.0, "patience": 0, "evaluate_every": 0}
    found = {}
    for windows in ("last", "all"):
        recommender = Recommender(**options, windows=windows, loss="cross-entropy").fit(long_rings())
        early = [[f"{start + step}" for step in range(4)] for start in range(6)]
        frame = recommender.recommend(histories=[[int(item) for item in history] for history in early], k=1)
        found[windows] = frame["item_id"].to_list()
    assert found["all"] == [4, 5, 6, 7, 8, 9]
    assert sum(map(int.__eq__, found["last"], found["all"])) < 3


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", [name for name, kind in MODELS.items() if not kind.COUNTED])
def test_every_model_trains_on_all_windows(name: str) -> None:
    special = {"caser": {"window": 3}, "ssept": {"sse_user": 0.0, "sse_item": 0.0}}.get(name, {})
    options: dict[str, Any] = {"max_length": 4, "embedding_dim": 8, "batch_size": 16, "epochs": 2, "loss": "bce"}
    options |= {"transitions": "off"} | special
    recommender = Recommender(name, **options, windows="all").fit(ring())
    split = split_last_two(recommender.dataset)
    model = recommender.model
    epoch = epoch_of(model, split.train, recommender.train_config)
    assert epoch.tokens == int((split.train.lengths - 1).sum())
    assert len(epoch) > -(-len(split.train) // 16)
    # A user's own items are never negatives, even outside the window.
    objective = objective_of(model, 12, recommender.train_config)
    for task in tasks_of(model, epoch, split.train, objective, objective.sampler(split.train)):
        rows = task.batch.rows if task.tokens is None else task.batch.rows[task.tokens]
        for user, drawn in zip(task.batch.users[rows].tolist(), task.items[:, 1].tolist(), strict=True):
            start, end = split.train.starts[user], split.train.ends[user]
            assert drawn not in recommender.dataset.items[start:end]
    again = Recommender(name, **options, windows="all").fit(ring())
    assert [row["loss"] for row in again.epochs] == [row["loss"] for row in recommender.epochs]
    assert all(map(torch.equal, again.model.state_dict().values(), model.state_dict().values()))


def test_passes_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"random_start draws one window .* windows=all uses all of them"):
        Recommender(**SMALL, random_start=0.5, windows="all").fit(ring(), tmp_path / "run")
    with pytest.raises(InputError, match="warmup_steps is 500, but training has 16 steps; give fewer"):
        Recommender(**SMALL, warmup_steps=500).fit(ring(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.warns(RunWarning, match="nothing: holds no run to continue, so a new one begins"):
        Recommender(**SMALL | {"epochs": 1}).fit(ring(), tmp_path / "nothing", resume=True)
    assert (tmp_path / "nothing/weights.safetensors").exists()
