"""Kill, interrupt and full-disk trials of ``fit``, ``fit --overwrite`` and ``--resume``: is a run ever lost or mixed?

``python tests/trials.py --trials 200 --seed 0`` prints the trials and every failure; the tests run a short form.
After each trial the folder must give exactly the recommendations of the old run or of the new one, and its config,
histories and weights must belong to the same run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import torch
from disk import disk_that_ends_at

from seqrec import InputError, Recommender
from seqrec.files import all_beside

TRAINED = {"embedding_dim": 8, "num_blocks": 1, "max_length": 6, "batch_size": 8, "patience": 0, "threads": 1}
ENDINGS = ("kill", "interrupt", "interrupt twice", "terminate", "full disk", "nothing")
ACTIONS = ("fit", "overwrite", "resume", "overwrite by two", "resume by two", "fit by two")


def log(seed: int) -> pl.DataFrame:
    draw = random.Random(seed)
    rows = []
    for user in range(40):
        for step in range(5):
            item = (user + step * (seed % 3 + 1)) % 11 if draw.random() < 0.8 else draw.randrange(11)
            rows.append((f"u{user}", f"{'ab'[seed % 2]}{item}", step))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def options(draw: random.Random, seed: int) -> dict[str, Any]:
    """Random options of a fit: a counted or a trained model, with many or no checkpoints within an epoch."""
    refit = {"refit": draw.choice(["off", "all", "valid"])}
    if draw.random() < 0.3:
        return refit | {"model": draw.choice(["markov", "popularity"])}
    return TRAINED | refit | {
        "model": "sasrec", "seed": seed, "epochs": draw.choice([2, 3, 6]), "evaluate_every": draw.choice([1, 2, 3]),
        "checkpoint_minutes": draw.choice([0, 10]), "average_decay": draw.choice([0.0, 0.8]),
    }  # fmt: skip


def work(chosen: dict[str, Any], seed: int, out: Path, how: str, room: int | None) -> int:
    """Fit in a forked child process, which needs no imports. Returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        with nullcontext() if room is None else disk_that_ends_at(room):
            done = Recommender(**chosen).fit(log(seed), out, overwrite=how == "overwrite", resume=how == "resume")
        status = 130 if done.interrupted else 0
    except (KeyboardInterrupt, pl.exceptions.PanicException):  # polars panics if it is interrupted in an import
        status = 130
    except InputError:
        status = 2
    except BaseException:  # noqa: BLE001
        (out.parent / f"traceback-{os.getpid()}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a child process, because polars must not be used before a fork: its threads would hang."""
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                result = function(*arguments)
            except BaseException:  # noqa: BLE001
                result = [traceback.format_exc()]
            Path(file.name).write_text(json.dumps(result))
            os._exit(0)
        os.waitpid(child, 0)
        return json.loads(file.read())


def made(chosen: dict[str, Any], seed: int, out: Path) -> list[str] | None:
    """Fit a run. Returns its answers."""
    Recommender(**chosen).fit(log(seed), out)
    return answers(out)


def answers(folder: Path) -> list[str] | None:
    """The marks of log and model and the recommendations of a run; None if there is no run with weights."""
    if not (folder / "config.json").is_file() or not (folder / "weights.safetensors").is_file():
        return None
    recommender = Recommender.load(folder)  # checks histories against the configuration
    facts = json.loads((folder / "config.json").read_text())
    mark = json.dumps([facts["fingerprint"], facts["model"], facts["training"].get("seed")])
    return [mark, recommender.recommend(k=3).write_csv()]


def is_complete(folder: Path) -> bool:
    """Whether the fit of a run has ended: only then do its metrics say what its weights were trained on."""
    metrics = folder / "metrics.json"
    return metrics.exists() and "trained_on" in json.loads(metrics.read_text())


def mark_of(recommender: Recommender) -> str:
    facts = recommender._config
    assert facts is not None
    return json.dumps([facts.fingerprint, facts.model, facts.training.get("seed")])


def problems(place: Path, out: Path, old: list[str] | None, new: list[tuple[dict[str, Any], int]]) -> list[str]:
    """The failures after a trial."""
    found = [path.read_text() for path in place.glob("traceback-*")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if out.exists() or all_beside(out, "old") or all_beside(out, "new"):
                try:
                    Recommender.load(out)  # the next command cleans up
                except InputError as error:
                    if old is not None or "weights.safetensors: is missing" not in str(error):
                        found.append(f"does not open: {error}")
            now = answers(out)
        except InputError as error:
            return [*found, f"does not answer: {error}"]
        if old is not None and now is None:
            found.append("the old run is lost")
        if now is not None and now != old:
            complete = [(chosen, seed, Recommender(**chosen)) for chosen, seed in new]
            # The weights of a new run are those of the end of an epoch or of a stop, or from before its refit. When
            # resumed, it must end like an uninterrupted run.
            ends = {}
            for chosen, seed, recommender in complete:
                recommender.fit(log(seed))
                ends[mark_of(recommender)] = (chosen, seed, recommender.recommend(k=3).write_csv())
            if now[0] not in ends:
                found.append(f"is neither old nor new: {now[0]}")
            else:
                chosen, seed, wanted = ends[now[0]]
                try:
                    if not is_complete(out):
                        Recommender(**chosen).fit(log(seed), out, resume=True)
                    if answers(out) != [now[0], wanted]:
                        found.append("resumed, it ends otherwise than the run that nothing stopped")
                except InputError as error:
                    found.append(f"does not go on: {error}")
        elif now is not None and now == old:
            resumed = next(((c, s) for c, s in new if "epochs" in c and all_beside(out, "new")), None)
            if resumed is not None:
                Recommender(**resumed[0]).fit(log(resumed[1]), out, resume=True)
        try:
            Recommender("popularity").fit(log(0), out, overwrite=(out / "config.json").exists())
        except InputError as error:
            found.append(f"cannot be overwritten: {error}")
    rest = sorted(path.name for path in place.iterdir() if path != out and not path.name.startswith("traceback-"))
    if rest:
        found.append(f"left for good: {rest}")
    return found


def trial(draw: random.Random, place: Path) -> tuple[str, str, list[str]]:
    """Run one trial. Returns what was done, how it ended, and the failures."""
    out = place / "run"
    action, ending = draw.choice(ACTIONS), draw.choice(ENDINGS)
    how = action.split()[0]
    two = action.endswith("two")
    old = None
    new = [(options(draw, 10 + number), 2 + number) for number in range(2 if two else 1)]
    if how == "overwrite":
        old = apart(made, options(draw, 1), 1, out)
    elif how == "resume":
        first = new[0] = ({"epochs": 3} | options(draw, 10) | {"model": "sasrec"} | TRAINED, 2)
        new = [first] * len(new)
        child = work(first[0], 2, out, "fit", None)
        time.sleep(draw.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    room = draw.choice([0, 500, 1500, 3000, 6000, 12000]) if ending == "full disk" else None
    children = [work(chosen, seed, out, how, room) for chosen, seed in new]
    if ending not in ("full disk", "nothing"):
        time.sleep(draw.uniform(0, 0.4 if all(chosen["refit"] == "off" for chosen, _ in new) else 0.8))
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}.get(ending, signal.SIGINT)
        for _ in range(2 if ending.endswith("twice") else 1):
            for child in children:
                os.kill(child, number)  # the child is not reaped yet, so the process id is still its own
            time.sleep(draw.choice([0, 0.002, 0.02]))
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    found = apart(problems, place, out, old, new)
    if ending == "nothing" and two and ended.count(0) != 1 and how != "resume":
        both = [status in (0, 2) for status in ended]
        if not all(both) or (ended == [0, 0] and how == "fit"):
            found.append(f"two at a time ended with {ended}")
    return action, ending, found


def trials(number: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Run ``number`` trials. Returns the number of each kind, and the failures."""
    torch.set_num_threads(1)
    kinds: Counter[str] = Counter()
    failures = []
    for count in range(number):
        place = folder / f"trial-{count}"
        place.mkdir()
        action, ending, found = trial(random.Random(seed * 100_003 + count), place)
        kinds[f"{action}, {ending}"] += 1
        failures += [f"trial {count} of seed {seed} ({action}, {ending}): {text}" for text in found]
        if not found:
            shutil.rmtree(place)
    return kinds, failures


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds, failures = trials(arguments.trials, arguments.seed, Path(folder))
    for kind, count in sorted(kinds.items()):
        print(f"{count:4} {kind}")
    print(*failures, sep="\n")
    print(f"{sum(kinds.values())} trials, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
