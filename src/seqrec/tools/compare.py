"""Compare several models on one log, with the same budget and the same candidates, and test the differences."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import PrepareConfig
from seqrec.data.shuffled import without_order
from seqrec.data.split import Split, SplitConfig
from seqrec.device import check_polars, usual_torch, watch_forks
from seqrec.errors import InputError, TrainingWarning, warn
from seqrec.files import make_folder
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.ranking import metrics, statistics
from seqrec.ranking.additions import recounted
from seqrec.ranking.protocols import ranks
from seqrec.recommender import Recommender
from seqrec.run.folder import Run
from seqrec.run.place import Place
from seqrec.tools.comparison import METRICS, PROTOCOLS, Comparison, Entry, Training
from seqrec.tools.config import CompareConfig
from seqrec.tools.judging import judge, sizes_of
from seqrec.tools.kept import Kept, Ranks, terms_of
from seqrec.tools.trial import plan_of
from seqrec.training.budget import Budget
from seqrec.training.checks import say_split, settle_split
from seqrec.training.config import TrainConfig
from seqrec.training.fitting import Fitted, fitted
from seqrec.training.plan import say_plan
from seqrec.training.tracking import Records, Tracking, check_tracker, recorded

__all__ = ["CompareConfig", "Comparison", "compare_models"]

#: Terms that are options of the models that have them.
_SHARED = ("embedding_dim", "max_length", "features", "user_features")
NOT_TRAINED = "not trained, because the comparison was interrupted"


def compare_models(
    dataset: Dataset,
    models: Sequence[str],
    config: CompareConfig | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    track: Literal["mlflow", "tensorboard"] | None = None,
    progress: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Comparison:
    """Train models one after another on the same data, and rank the same candidates with all of them.

    If a model fails, its entry has the reason, and the comparison continues. Models are not kept, only their metrics.
    With several seeds, all models are trained with the first one, then all with the next, so that an interrupted
    comparison has whole rounds. A model that failed is not trained again.

    As in :meth:`Recommender.fit`, transition counts are added to the scores of trained models where that helps on
    validation items; ``transitions="off"`` compares the models alone.

    Args:
        dataset: dataset that all models are trained and tested on.
        models: names of models in ``seqrec.MODELS``. The others are tested against the first.
        config: terms that are the same for all models.
        out: folder for ``compare.json``, ``compare.csv`` and ``compare.png``, which are rewritten after each training,
            and for what is trained, so that the same call continues a killed comparison, or adds models and seeds.
        overwrite: begin anew in a folder that holds a comparison.
        track: what records the comparison and each training, as in :meth:`Recommender.fit`.
        progress: show a progress bar.
        console: console for the outcome of each training.
        options: options of :class:`Recommender`. An option that only some models have applies to those.

    Raises:
        InputError: a model or option is unknown, there is no user to test on, no model could be trained, or ``out``
            holds a comparison on another log or with other options.
    """
    watch_forks()
    check_polars("compare")
    config = config or CompareConfig()
    chosen = _options(models, {name: value for name in _SHARED if (value := getattr(config, name))} | options)
    _check_terms(models, config, track)
    plan = Recommender(models[0], **{k: v for k, v in chosen[models[0]].items() if k in _common()})
    found, split, same = _planned(plan, dataset, config, console)
    console = console or Console(quiet=True)
    work = _Work(found, split, {name: chosen[name] | same for name in models}, progress, console)
    made = out is not None and make_folder(Path(out))
    with nullcontext() if out is None else Kept(Path(out)) as work.kept:
        goes_on = work.kept is not None and work.kept.begin(terms_of(dataset, config, work.options), overwrite)
        if goes_on:
            console.print(f"going on with {out}", highlight=False, markup=False, soft_wrap=True)
        about = {"models": ", ".join(models), "test": f"{found.users:,} users, {found.held_out}"}
        with recorded(track, out, "", about, goes_on, console) as work.records:
            work.all_trainings(out)
    if not work.values and not found.interrupted:
        if made:
            Path(out or "").rmdir()
        raise InputError("; ".join(f"{entry.model}: {entry.failed}" for entry in found.entries))
    return found


def _check_terms(models: Sequence[str], config: CompareConfig, track: str | None) -> None:
    """Refuse a tracker that can't be used, and refuse, or warn of, terms without effect because no model is trained."""
    if track is not None:
        check_tracker(track)
    if not all(MODELS[name].COUNTED for name in models):
        return
    if config.shuffled:
        raise InputError(f"shuffled needs a model that is trained, and {', '.join(models)} only count; add one")
    if config.seeds > 1:
        warn(f"seeds is {config.seeds}, but {', '.join(models)} only count, so it has no effect", TrainingWarning)


def _planned(
    plan: Recommender, dataset: Dataset, config: CompareConfig, console: Console | None
) -> tuple[Comparison, Split, dict[str, Any]]:
    """A comparison without models yet, its split, and the options that all models share so that they get the same."""
    replace(plan.train_config, seed=plan.train_config.seed + config.seeds - 1)  # the last seed must be in range, too
    split = plan.split_config.apply(dataset)
    targets = split.test
    if len(targets) == 0:
        raise InputError("there is no user to test on: nobody has a target; give a longer log or another split")
    say_split(split, console)
    settled = settle_split(split, plan.split_config)
    facts = (len(targets), targets.held_out, asdict(split.check()), asdict(plan.train_config), config)
    same = {"split": settled.split, "keep_seen": settled.keep_seen}
    return Comparison([], *facts, bool(settled.keep_seen)), split, same


class _Work:
    """The trainings of a comparison.

    Args:
        found: comparison to fill in.
        split: split of the log.
        options: options of each model by name, except for the seed.
        progress: show a progress bar.
        console: console for the outcome of each training.
    """

    def __init__(
        self, found: Comparison, split: Split, options: Mapping[str, Any], progress: bool, console: Console
    ) -> None:
        self.found, self.split, self.options, self.progress, self.console = found, split, options, progress, console
        self.kept: Kept | None = None  # where trainings are kept
        self.records: Records | None = None  # where they are recorded
        self.sizes = sizes_of(split)
        self.values: dict[str, list[dict[str, np.ndarray]]] = {}
        self.shuffled: dict[str, list[dict[str, np.ndarray]]] = {}

    def all_trainings(self, out: str | Path | None) -> None:
        """Do all trainings, and write the files after each that is new, and after the last one that was kept."""
        found, is_written = self.found, False
        for training in self.trainings():
            is_new = self.train(*training)
            if found.interrupted:
                missing = set(self.options) - {entry.model for entry in found.entries}
                found.entries += [Entry(name, failed=NOT_TRAINED) for name in self.options if name in missing]
            is_written = out is not None and bool(self.values) and is_new
            if out is not None and is_written:
                found.write(out)
            if found.interrupted:
                break
        if out is not None and self.values and not is_written:
            found.write(out)
        if self.kept is not None and not self.values and not found.interrupted:
            self.kept.clear()
        if self.records is not None:
            self.records.interrupted = found.interrupted

    def trainings(self) -> Iterator[tuple[str, int, Split | None]]:
        """Model and seed of each training, and for histories in random order their split, when its turn comes."""
        for seed in self.found.seeds:
            other = without_order(self.split, seed) if self.found.config.shuffled else None
            for name in self.options:
                if seed == self.found.seeds[0] or not MODELS[name].COUNTED:
                    yield name, seed, None
                    if other is not None and not MODELS[name].COUNTED:
                        yield name, seed, other

    def train(self, name: str, seed: int, other: Split | None) -> bool:
        """Train and test a model, unless that was done or failed before, and judge all models anew.

        Returns:
            Whether something was trained.
        """
        entry, values, split = self.found.entry(name), self.values, self.split
        label = name if self.found.config.seeds == 1 or MODELS[name].COUNTED else f"{name}, seed {seed}"
        if other is not None and entry.failed is None:
            entry.shuffled = entry.shuffled or Entry(name)
            entry, values, split, label = entry.shuffled, self.shuffled, other, f"{label}, shuffled"
        if entry.failed is not None:
            return False
        key = f"{name}-seed-{seed}" + "-shuffled" * (other is not None)
        scored = self._done_before(entry, key)
        is_new = scored is None
        if is_new:
            self.console.print(f"{label} …", highlight=False)
            scored = self._tried(entry, split, self.options[name] | {"seed": seed}, key)
        if scored is not None:
            values.setdefault(name, []).append(scored)
            judge(self.found, self.values, self.shuffled, self.sizes)
        before = "" if is_new else " (kept from before)"
        self.console.print(f"{label}: {entry.outcome}{before}", highlight=False, markup=False, soft_wrap=True)
        return is_new

    def _done_before(self, entry: Entry, key: str) -> dict[str, np.ndarray] | None:
        """Take a training that is kept. Returns its metrics by user, or None if there is none."""
        known = None if self.kept is None else self.kept.read(key, self.found.users)
        if known is None:
            return None
        training, shared, found = known
        for name, value in shared.items():
            if getattr(entry, name) is None:
                setattr(entry, name, value)
        entry.add(training)
        self._record(key, training)
        return _metrics(found)

    def _record(self, key: str, training: Training, tracking: Tracking | None = None) -> None:
        """Record the test of a training, in its own record and in that of the comparison."""
        flat = {f"test/{protocol}/{name}": value
                for protocol, values in training.metrics.items() for name, value in values.items()}  # fmt: skip
        if tracking is not None:
            tracking.add(flat, training.epochs or 1)
        if self.records is not None:
            name = key.replace(f"-seed-{training.seed}", "")
            self.records.add({f"{name}/{one}": value for one, value in flat.items()}, training.seed)

    def _tried(self, entry: Entry, split: Split, options: Mapping[str, Any], key: str) -> dict[str, np.ndarray] | None:
        """Train one model and rank with it. Returns None if it failed or was interrupted; its entry has the reason."""
        found, folder = self.found, None if self.kept is None else self.kept.run(key)
        tracking = None if self.records is None else self.records.below(key, folder)
        try:
            training, fit = _fit(entry, split, options, found.config.minutes, self.progress, folder, tracking)
            if not fit.interrupted:
                ranked = _ranks(fit.model, split, found)
                values = _metrics(ranked)
                training.metrics = {
                    protocol: dict(zip(METRICS, statistics.mean(block).tolist(), strict=True))
                    for protocol, block in values.items()
                }
                self._record(key, training, tracking)
                if self.kept is not None:
                    self.kept.keep(key, entry, training, ranked)
                entry.add(training)
                return values
            found.interrupted = True
            entry.failed = "its training was interrupted"
            if folder is not None:
                entry.failed += "; the same command goes on with it"
        except (InputError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
            # If one model does not fit this log or machine, the results of the others must not be lost.
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            entry.failed = f"{kind}{' '.join(str(error).split())}"
        if entry.trainings:
            entry.failed = f"with seed {options['seed']}, {entry.failed}"
        return None


def _common() -> set[str]:
    """The names of options that do not belong to a model."""
    return {field.name for kind in (TrainConfig, PrepareConfig, SplitConfig) for field in fields(kind)}


def _options(models: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each model, selected from the options for all."""
    if not models:
        raise InputError("no model given; name at least one")
    twice = sorted({name for name in models if models.count(name) > 1})
    if twice:
        raise InputError(f"{twice[0]} is named twice; name each model once")
    chosen = {}
    for name in models:
        if name not in MODELS:
            raise InputError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
        known = _common() | {field.name for field in fields(MODELS[name].Config)}
        chosen[name] = {key: value for key, value in options.items() if key in known}
    unknown = sorted(set(options) - set().union(*chosen.values()))
    if unknown:
        raise InputError(f"none of {', '.join(models)} has an option {unknown[0]!r}; leave it out")
    for option in ("features", "user_features"):
        without = [name for name in models if options.get(option) and option not in chosen[name]]
        if without:
            text = f"{option} is given, but has no effect on {', '.join(without)}, which cannot learn it"
            warn(text, TrainingWarning)
    return chosen


def _fit(
    entry: Entry, split: Split, options: Mapping[str, Any], minutes: float | None, progress: bool,
    folder: Path | None = None, tracking: Tracking | None = None,
) -> tuple[Training, Fitted]:  # fmt: skip
    """Train a model, and fill in what is the same for all of its trainings.

    A trained model has a run folder while it is trained, if ``folder`` is given, from which a killed training resumes.
    """
    asked = Recommender(entry.model, **options)
    entry.config = entry.config or asdict(asked.model_config)
    begin, dataset, is_counted = time.monotonic(), split.train.dataset, MODELS[entry.model].COUNTED
    with usual_torch(), nullcontext() if folder is None or is_counted else Place(folder) as place:
        resume = place is not None and place.settle(resume=True, overwrite=False)
        before = _seconds(place) if place is not None and resume else 0.0
        budget = None if minutes is None else Budget(minutes, begin - before)
        plan = plan_of(dataset, entry.model, options, budget=budget, resumed=place if resume else None)
        say_plan(plan, None)
        ways: dict[str, Any] = {"progress": progress, "budget": budget, "tracking": tracking, "tests": False}
        fit = fitted(dataset, plan, place, resume=resume, **ways)
    if not entry.trainings:
        entry.config, entry.training, entry.recipe = fit.config.model_config, fit.config.training, fit.config.recipe
    seconds = before + time.monotonic() - begin
    model = fit.model
    entry.parameters = sum(weight.numel() for weight in model.parameters())
    entry.bytes = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    epochs = None if model.COUNTED else len(fit.epochs)
    weight = None if model.addition is None else model.addition.weight
    return Training(options["seed"], fit.summary, seconds, epochs, weight, {}), fit


def _seconds(place: Place) -> float:
    """Seconds of the epochs that a killed process trained."""
    rows = Run(place.folder).epochs()
    return float(rows["total_seconds"].sum()) if rows.height else 0.0


def _ranks(model: Model, split: Split, found: Comparison) -> Ranks:
    """The ranks of the test users by protocol. All trainings rank the same candidates."""
    model = recounted(model, split.train)  # the counts of a fit are of the whole log
    more: dict[str, Any] = {"negatives": found.config.test_negatives, "keep_seen": found.keep_seen}
    seed = found.training["seed"]
    return {protocol: ranks(model, split.test, protocol=protocol, seed=seed, **more) for protocol in PROTOCOLS}


def _metrics(found: Ranks) -> dict[str, np.ndarray]:
    """The metrics of each user by protocol, ``float64[U, len(METRICS)]``."""
    return {
        protocol: np.column_stack([metrics.named(name, *pair) for name in METRICS]) for protocol, pair in found.items()
    }
