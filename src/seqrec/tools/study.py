"""The study of tuning: trials in an SQLite file, asked for and told with Optuna, which can be resumed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from seqrec.errors import InputError, missing_extra, one_line
from seqrec.tools.space import Domain, drawn
from seqrec.tools.trial import Outcome

NAME = "seqrec"
FORMAT = 1
#: What trials are compared by.
ALONE, SUMMED = "alone", "with transition counts"
#: Trials with random options before the sampler has something to learn from, beside that of the recipe.
RANDOM_TRIALS = 5
#: How often a trial is repeated that did not end, and the reason that the study keeps for it.
REPEATS, KILLED = 2, "the process was stopped"
#: A trial is pruned only if so many are complete, and at this validation or a later one.
COMPLETE_TRIALS, FIRST_VALIDATION = 3, 3


def import_optuna() -> ModuleType:
    """The module ``optuna``, which prints nothing.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("seqrec tune", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    module: ModuleType = optuna
    return module


@dataclass(frozen=True)
class Row:
    """A trial for people and for JSON.

    Args:
        trial: its number.
        state: complete, pruned, failed or interrupted.
        value: NDCG@10 on validation items that trials are compared by; None for a trial that is not complete.
        alone: best NDCG@10 of the model alone.
        weight: weight of the transition counts; 0 if they do not help, None if they were not tried.
        options: options that were varied.
        epochs: number of trained epochs.
        seconds: time that it took.
        reason: why it failed, or that the time limit ended it.
        is_recipe: whether its options are those of the recipe.
    """

    trial: int
    state: str
    value: float | None
    alone: float | None
    weight: float | None
    options: dict[str, Any]
    epochs: int | None
    seconds: float | None
    reason: str
    is_recipe: bool


@dataclass(frozen=True)
class Untried:
    """Options that are worth a trial of several models.

    Args:
        options: the options.
        seconds: estimate of the time that the trial takes.
        longest: longest time of a trial of one model.
    """

    options: dict[str, Any]
    seconds: float
    longest: float


class Study:
    """An Optuna study. Only one process may have it open.

    Args:
        path: SQLite file, made if it does not exist.
        seed: random seed of the sampler.

    Raises:
        InputError: the file is not a study, or Optuna is not installed.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.optuna, self.path, self.seed = import_optuna(), path, seed
        pruner = self.optuna.pruners.MedianPruner(COMPLETE_TRIALS, FIRST_VALIDATION)
        try:
            self._storage = self.optuna.storages.RDBStorage(f"sqlite:///{path}")
            self._study = self.optuna.create_study(
                storage=self._storage, study_name=NAME, direction="maximize", pruner=pruner, load_if_exists=True
            )
            count = len(self._study.trials)
        except Exception as error:
            text = f"{path}: is not a study that can be used ({one_line(error)}); remove it, or give --overwrite"
            raise InputError(text) from error
        # With the seed alone, a resumed study would draw its first options again.
        self._study.sampler = self.optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, seed=seed + 1000 * count, constant_liar=True
        )
        self._running: dict[int, Any] = {}
        self._reported: dict[int, int] = {}

    def facts(self) -> dict[str, Any] | None:
        """What the study was started with, or None for a new one."""
        text = self._study.user_attrs.get("facts")
        return None if text is None else dict(json.loads(text))

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Note what the study is started with."""
        self._study.set_user_attr("facts", json.dumps(facts, default=str))

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse another log or other options than those that the study was started with, and trials that an earlier
        seqrec compared without transition counts.

        Raises:
            InputError: something differs.
        """
        before = {"compared": ALONE} | (self.facts() or {}).get("given", {})
        now = json.loads(json.dumps(given, default=str))
        if before.get("fingerprint") != now["fingerprint"]:
            raise InputError(f"{self.path}: the study was started on another log; give that log, or --overwrite")
        for name in sorted(before | now, key=lambda name: (name == "compared", name != "model", name)):
            if name == "compared" and before[name] != now[name]:
                raise InputError(
                    f"{self.path}: the study is of an earlier seqrec, which compared models {before[name]}, not "
                    f"{now[name]}; --overwrite begins a new one"
                )
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{self.path}: the study was started with {name} = {before.get(name)}, not {now.get(name)}; "
                    "give the same options, or --overwrite"
                )

    def mark(self, name: str, value: Any) -> None:
        """Note something in the study."""
        self._study.set_user_attr(name, value)

    def noted(self, name: str) -> Any:
        """What was noted, or None."""
        return self._study.user_attrs.get(name)

    def repeat_killed(self, recipe: Mapping[str, Any]) -> int:
        """Fail the trials that were running when a process was killed, and repeat them, but none a third time.

        Args:
            recipe: options of the first trial, which is added if it is not there yet.

        Returns:
            Number of trials that were running.
        """
        state = self.optuna.trial.TrialState
        killed = self._study.get_trials(states=(state.RUNNING,))
        for trial in killed:
            self._storage.set_trial_user_attr(trial._trial_id, "reason", KILLED)
            self._study.tell(trial.number, state=state.FAIL)
            times = trial.user_attrs.get("repeats", 0) + 1
            known = {name: value for name, value in trial.user_attrs.items() if name == "recipe"}
            if trial.params and times <= REPEATS:
                self._study.enqueue_trial(trial.params, user_attrs=known | {"repeats": times})
        recipes = [trial for trial in self._study.trials if "recipe" in trial.user_attrs]
        if all(trial.user_attrs.get("reason") == KILLED for trial in recipes):
            self._study.enqueue_trial(recipe, user_attrs={"recipe": True})
        return len(killed)

    def ask(
        self, space: Mapping[str, Domain], base: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The number of a new trial, and the values to try.

        Args:
            space: what is varied.
            base: values of the recipe.
            options: values to try. By default they are drawn, for one model even if the recipe chose several: many
                trials of one find better options in the same time than few trials of several.
        """
        waiting = self._study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.WAITING,))
        if not waiting and (options is not None or "ensemble" in space):
            self._study.enqueue_trial({"ensemble": 1} if options is None else dict(options))
        trial = self._study.ask()
        values = drawn(trial, space, base)
        self._running[trial.number] = trial
        return trial.number, values

    def judge(self, number: int, step: int, value: float) -> bool:
        """Note a validation of a trial. Returns whether the trial is pruned."""
        trial = self._running[number]
        if step > self._reported.get(number, 0):  # one that was started again reports again
            trial.report(value, step)
            self._reported[number] = step
        return bool(trial.should_prune()) and "recipe" not in trial.user_attrs

    def tell(self, number: int, outcome: Outcome) -> None:
        """Note how a trial ended."""
        trial, state = self._running.pop(number), self.optuna.trial.TrialState
        if outcome.state == "interrupted":
            return  # the next process finds it running, and repeats it
        for name in ("seconds", "epochs", "reason", "weight"):
            trial.set_user_attr(name, getattr(outcome, name))
        states = {"complete": state.COMPLETE, "pruned": state.PRUNED, "failed": state.FAIL}
        value = outcome.value if outcome.state == "complete" else None
        self._study.tell(trial, value, state=states[outcome.state])

    def ended(self) -> int:
        """Number of trials that have ended, without those that a killed process left."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(trial.state.is_finished() and trial.user_attrs.get("reason") != KILLED for trial in trials)

    def rows(self) -> list[Row]:
        """The trials in order."""
        state = self.optuna.trial.TrialState
        names = {state.COMPLETE: "complete", state.PRUNED: "pruned", state.FAIL: "failed"}
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == state.WAITING:
                continue
            known = trial.user_attrs
            value = trial.value if trial.state == state.COMPLETE else None
            alone = max(trial.intermediate_values.values(), default=None)
            found.append(
                Row(
                    trial.number, names.get(trial.state, "interrupted"), value, alone, known.get("weight"),
                    dict(trial.params), known.get("epochs"), known.get("seconds"), known.get("reason", ""),
                    "recipe" in known,
                )
            )  # fmt: skip
        return found

    def best(self) -> Row | None:
        """The complete trial with the highest value; of equal ones the first."""
        return _best(self.rows())

    def untried(self, models: int) -> "Untried | None":
        """The best options of one model for several, unless they were tried; None if no trial of one is complete."""
        rows = self.rows()
        single = [row for row in rows if row.options.get("ensemble") == 1]
        best = _best(single)
        if best is None or any(row.options == best.options | {"ensemble": models} for row in rows):
            return None
        longest = max(row.seconds or 0.0 for row in single)
        return Untried(best.options | {"ensemble": models}, models * (best.seconds or 0.0), longest)

    def close(self) -> None:
        """Close the file."""
        self._storage.remove_session()


def _best(rows: Iterable[Row]) -> Row | None:
    complete = [row for row in rows if row.state == "complete"]
    return max(complete, key=lambda row: row.value or 0.0, default=None)
