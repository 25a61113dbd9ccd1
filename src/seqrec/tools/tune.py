"""Tuning: search options by NDCG@10 on validation items, then fit with the best ones."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from seqrec.data.dataset import Dataset
from seqrec.device import threads
from seqrec.errors import InputError, RunWarning, TrainingWarning, warn
from seqrec.files import make_folder
from seqrec.models import MODELS, named_model
from seqrec.models.transitions import TransitionsConfig
from seqrec.recommender import Recommender
from seqrec.run.config import fingerprint
from seqrec.run.layout import RESUMABLE, is_run
from seqrec.run.lock import Lock
from seqrec.run.place import check_free
from seqrec.tools.config import TuneConfig
from seqrec.tools.space import Domain, applied, base_of, searched
from seqrec.tools.study import ALONE, FORMAT, SUMMED, Row, Study, import_optuna
from seqrec.tools.trial import COMPARED, Job, OneByOne, Outcome, Workers, plan_of
from seqrec.training.ahead import seconds_of_weight, settled_constants
from seqrec.training.budget import SECONDS_KEPT, SHARE_KEPT, Budget, budget_of
from seqrec.training.fitting import seconds_besides_training
from seqrec.training.plan import Plan, say_plan
from seqrec.training.tracking import Records, check_tracker, recorded

STUDY = "study.db"
#: Most of the time limit that a trial takes.
TRIAL_SHARE = 0.2
#: Options that do not change the result, or not that of the trials.
_MAY_DIFFER = frozenset(RESUMABLE) - {"epochs"}


@dataclass
class Tuned:
    """The result of tuning.

    Args:
        run: run folder.
        study: SQLite file of the study.
        rows: trials.
        best: best trial, or None if none was complete before the user stopped.
        recommender: the fit with its options, or None if the user stopped before it.
    """

    run: Path
    study: Path
    rows: list[Row]
    best: Row | None = None
    recommender: Recommender | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it."""
        return self.recommender is None or self.recommender.interrupted

    def to_dict(self) -> dict[str, Any]:
        """The trials for JSON."""
        best = None if self.best is None else self.best.trial
        return {"study": str(self.study), "best": best, "trials": [asdict(row) for row in self.rows]}

    def table(self) -> Table:
        """The trials as a table, with the options in which each differs from the recipe."""
        recipe = next((row.options for row in self.rows if row.is_recipe), {})
        tried = any(row.weight is not None for row in self.rows)
        what = "with transition counts where they help" if tried else "of the model alone"
        shown = Table(title=f"trials (NDCG@10 on validation items, full ranking, {what})", box=SIMPLE_HEAD)
        for name, side in (("trial", "right"), ("NDCG@10", "right"), *[("alone", "right")] * tried, ("state", "left"),
                           ("options", "left"), ("epochs", "right"), ("time", "right")):  # fmt: skip
            shown.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
        for row in self.rows:
            changed = [f"{name} {_short(value)}" for name, value in row.options.items() if recipe.get(name) != value]
            values = (row.value, row.alone) if tried else (row.alone,)
            what = "the recipe" if row.is_recipe else ", ".join(changed)
            shown.add_row(
                str(row.trial),
                *(("" if value is None else f"{value:.4f}") for value in values),
                row.state + " ←" * (self.best is not None and row.trial == self.best.trial),
                f"{what} ({row.reason})" if row.reason else what,
                "" if row.epochs is None else str(row.epochs),
                "" if row.seconds is None else f"{row.seconds:.1f} s",
            )
        return shown


def study_folder(out: Path) -> Path:
    """The folder of the study, beside the run folder."""
    return out.with_name(f"{out.name}.tune")


def check_tunable(model: str, evaluate_every: int | None = None) -> str:
    """The name of the model that is tuned.

    Raises:
        InputError: there is nothing to tune, no validation to tune by, or Optuna is not installed.
    """
    name = named_model(model)[0]
    if MODELS[name].COUNTED:
        raise InputError(f"{name} is counted, and chooses its constants itself; tune one of the trained models")
    if evaluate_every == 0:
        raise InputError("evaluate_every is 0, but tuning needs validations; leave it out")
    import_optuna()
    return name


def tune_model(
    dataset: Dataset,
    out: str | Path,
    model: str = "auto",
    config: TuneConfig | None = None,
    *,
    workers: Workers | None = None,
    overwrite: bool = False,
    budget: Budget | None = None,
    track: Literal["mlflow", "tensorboard"] | None = None,
    progress: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Tuned:
    """Search options by NDCG@10 on validation items, and write a fit with the best ones to a run folder.

    The first trial has the options that ``fit`` would choose. The study is ``OUT.tune/study.db``; a killed search is
    continued by the same call. Test items are ranked only by the fit at the end.

    Args:
        dataset: dataset to tune on.
        out: run folder to write.
        model: name of a model in ``seqrec.MODELS``, or auto.
        config: how long to search.
        workers: what runs the trials. By default they run in this process.
        overwrite: replace the run and the study.
        budget: time limit that began before this call. By default ``config.minutes`` begin now.
        track: what records the search, each trial and the fit, as in :meth:`Recommender.fit`; not with ``workers``.
        progress: show a progress bar for the fit at the end.
        console: console for the outcome of each trial.
        options: options of :class:`Recommender`. Those that differ from their defaults are not searched.

    Raises:
        InputError: there is nothing to tune, the study is of another log or other options, or no trial was possible.
    """
    config, out = config or TuneConfig(), Path(out)
    name = check_tunable(model, options.get("evaluate_every"))
    check_local(track, workers is None)
    budget, folder = budget or budget_of(config.minutes), study_folder(out)
    make_folder(folder)
    lock = Lock(folder.resolve(), folder)
    lock.take()
    is_new = begun = False
    try:
        if overwrite:
            (folder / STUDY).unlink(missing_ok=True)
        is_new = not (folder / STUDY).exists()
        with closing(Study(folder / STUDY, options.get("seed", 0))) as study:
            _check_place(study, out, overwrite)
            search = _begun(study, dataset, name, model, options, budget, console or Console(quiet=True))
            with recorded(track, out, folder.name, {"run": str(out)}, not is_new, search.console) as search.records:
                begun = True
                search.run(workers or OneByOne(dataset, search.records), config.most_trials)
                return _ended(search, dataset, out, overwrite, progress)
    finally:
        if is_new and not begun:
            (folder / STUDY).unlink(missing_ok=True)
        lock.release()
        if not any(folder.iterdir()):
            folder.rmdir()


def check_local(track: str | None, is_local: bool) -> None:
    """Refuse a tracker that is not installed, and one of trials that run in other processes. None is no tracker.

    Raises:
        InputError: so it is.
    """
    if track is None:
        return
    if not is_local:
        raise InputError("track is not available with engine ray; leave out one of them")
    check_tracker(track)


def _check_place(study: Study, out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless this study wrote it or may replace it."""
    may_replace = overwrite or bool(study.noted("replaces"))
    if study.noted("fitted") is None:
        if is_run(out) and not may_replace:
            raise InputError(f"{out}: already holds a run, not of this study; replace it with --overwrite")
        check_free(out, may_replace)
    if overwrite:
        study.mark("replaces", True)


def _begun(
    study: Study, dataset: Dataset, name: str, model: str, options: dict[str, Any], budget: Budget | None,
    console: Console,
) -> "_Search":  # fmt: skip
    """Start a study, or go on with one. What the recipe chose for it is not chosen again."""
    options = dict(options)
    refit = options.pop("refit", "off")
    asked = Recommender(model, **options)
    configs = asked.model_config, asked.train_config, asked.prepare_config, asked.split_config
    given = {key: value for one in configs for key, value in vars(one).items() if key not in _MAY_DIFFER}
    given |= {"model": model, "fingerprint": fingerprint(dataset), "format": FORMAT}
    given |= {"categories": _categories(dataset) if "category" in MODELS[name].READS else None}
    counts = asked.train_config.transitions == "auto"
    given |= {"compared": SUMMED if counts else ALONE}
    facts = study.facts()
    if facts is None:
        of_trial = None if budget is None else Budget(TRIAL_SHARE * budget.minutes, clock=budget.clock)
        plan = plan_of(dataset, model, options, budget=of_trial)  # the recipe for as long as a trial takes
        say_plan(plan, console)
        base = base_of(plan.recipe, name)
    else:
        study.check(given)
        base = facts["base"]
        plan = plan_of(dataset, name, applied(options, base, {}))
    if len(plan.split.valid) == 0:
        raise InputError("there is nothing to tune by, because nobody has a validation item; give a longer log")
    constants = None
    if counts and facts is not None:
        constants = TransitionsConfig(**facts["constants"])
    elif counts:
        training, keep_seen = plan.recipe.training, bool(plan.config.split.keep_seen)
        with threads(training.threads):
            constants = settled_constants(plan.split, keep_seen, training.seed, budget)
    if facts is None:
        chosen = None if constants is None else asdict(constants)
        study.begin({"given": given, "base": base, "constants": chosen})
    space = searched(name, options, base)
    killed = study.repeat_killed({key: base[key] for key in space if key in base})
    if facts is not None:
        left = f", {killed} of them unfinished, which will be repeated" if killed else ""
        console.print(f"going on with {study.path}: {len(study.rows())} trials{left}", soft_wrap=True)
    search = _Search(study, name, options, base, space, budget, console, refit, constants=constants)
    if budget is not None:
        search.keep_time(plan, budget)
    return search


def _categories(dataset: Dataset) -> int | None:
    """Number of categories that a model may learn, or None."""
    table = dataset.item_table
    return None if table is None or table.categories is None else len(table.first_categories(None)[1])


@dataclass
class _Search:
    """A study, and what every trial of it shares."""

    study: Study
    model: str
    options: Mapping[str, Any]
    base: Mapping[str, Any]
    space: Mapping[str, Domain]
    budget: Budget | None
    console: Console
    refit: str
    kept: float = 0.0
    constants: TransitionsConfig | None = None
    choosing: float = 0.0
    records: Records | None = None
    interrupted: bool = False

    def keep_time(self, plan: Plan, budget: Budget) -> None:
        """Estimate the time for everything that is not training, which a few users show."""
        kept = seconds_besides_training(plan, self.constants, budget.clock)
        self.kept = kept + SECONDS_KEPT + SHARE_KEPT * 60 * budget.minutes
        if self.constants is not None:
            training, keep_seen = plan.recipe.training, bool(plan.config.split.keep_seen)
            with threads(training.threads):
                self.choosing = seconds_of_weight(
                    plan.model, self.constants, plan.split, keep_seen, training.seed, budget.clock
                )

    def run(self, workers: Workers, most: float) -> None:
        """Run trials until there are enough, the time is over, or the user stops."""
        running = 0
        while True:
            while running < workers.slots and self.study.ended() + running < most and self._has_time():
                several = self._several(most - self.study.ended() - running)
                number, values = self.study.ask(self.space, self.base, several)
                workers.submit(number, self._job(number, values, workers.threads))
                running += 1
            if not running:
                break
            for number, outcome in workers.wait(self.study.judge):
                self.study.tell(number, outcome)
                running -= 1
                self._say(number, outcome)
                if self.records is not None and outcome.value is not None:
                    self.records.add({COMPARED: outcome.value}, number)
                if outcome.state == "interrupted":
                    self.interrupted = True
                    return
        if self.study.ended() == 1 < most:
            text = "the recipe took all the time, and nothing else was tried; give more minutes, or --ensemble 1"
            warn(text, TrainingWarning)

    def _several(self, trials: float) -> dict[str, Any] | None:
        """The best options of one model for as many as the recipe chose, once it is time to try them, else None.

        That is the last trial, or the last moment that leaves time for it and the fit, which will take as long. Where
        the time limit would end it, it is not tried: several models that are half trained rank worse than one.
        """
        found = self.study.untried(self.base["ensemble"]) if "ensemble" in self.space else None
        if found is None:
            return None
        if self.budget is None or trials == 1:
            return found.options if trials == 1 else None
        left, takes = self.budget.left() - self.kept, found.seconds
        is_time = 1.5 * takes < left < 2 * takes + found.longest
        return found.options if is_time and takes < self._most_seconds(self.budget) else None

    def options_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All options of a trial."""
        return applied(self.options, self.base, values)

    @staticmethod
    def _most_seconds(budget: Budget) -> float:
        return TRIAL_SHARE * 60 * budget.minutes

    def _job(self, number: int, values: Mapping[str, Any], threads: int | None) -> Job:
        options = self.options_of(values) | ({} if threads is None else {"threads": threads})
        job = Job(number, self.model, options, constants=self.constants, choosing=self.choosing)
        if self.budget is None:
            return job
        ends, most = time.time() + self.budget.left(), self._most_seconds(self.budget)
        return replace(job, ends=ends, kept=self.kept, repeat=self._best_seconds(), most=most)

    def _has_time(self) -> bool:
        """Whether another trial is worth beginning: for half of the best one and the fit after it."""
        best = self._best_seconds()
        return self.budget is None or not best or self.budget.left() > 1.5 * best + self.kept

    def _best_seconds(self) -> float:
        best = self.study.best()
        return 0.0 if best is None or best.seconds is None else best.seconds

    def _say(self, number: int, outcome: Outcome) -> None:
        value = "" if outcome.alone is None else f", NDCG@10 {outcome.alone:.4f} alone on validation"
        if outcome.value is not None:
            alone = f" with transition counts ({outcome.alone:.4f} alone)" if outcome.weight else ""
            value = f", NDCG@10 {outcome.value:.4f} on validation{alone}"
        reason = f" ({outcome.reason})" if outcome.reason else ""
        text = f"trial {number} {outcome.state} after {outcome.seconds:.1f} s{value}{reason}"
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _ended(search: "_Search", dataset: Dataset, out: Path, overwrite: bool, progress: bool) -> Tuned:
    """The trials, and the fit with the best options unless the user stopped before."""
    found = Tuned(out, search.study.path, search.study.rows(), search.study.best())
    if not search.interrupted:
        found.recommender = _fit(found, dataset, search, overwrite, progress)
    if search.records is not None:
        search.records.interrupted = found.interrupted
    return found


def _fit(found: Tuned, dataset: Dataset, search: _Search, overwrite: bool, progress: bool) -> Recommender:
    """The fit with the best options. A run that this study wrote before is continued, or replaced by a better one."""
    best, study, out = found.best, search.study, found.run
    if best is None:
        reasons = [f"trial {row.trial}: {row.reason}" for row in found.rows if row.reason]
        raise InputError(f"no trial was possible; {'; '.join(reasons[:3])}")
    fitted = study.noted("fitted")
    resume = fitted == best.trial and is_run(out)
    replaces = not resume and (fitted is not None or overwrite or bool(study.noted("replaces")))
    if replaces and fitted is not None and is_run(out):
        warn(f"{out}: trial {best.trial} is better than trial {fitted}, whose run it replaces", RunWarning)
    study.mark("fitted", best.trial)
    search.console.print(
        f"trial {best.trial} is the best{', the recipe itself' if best.is_recipe else ''}; fitting with its options"
    )
    recommender = Recommender(search.model, refit=search.refit, **search.options_of(best.options))  # type: ignore[arg-type]
    recommender._constants = search.constants
    track = None if search.records is None else search.records.below(out=out)
    return recommender.fit(
        dataset, out, resume=resume, overwrite=replaces, progress=progress, minutes=search.budget,
        console=search.console, track=track,
    )  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
