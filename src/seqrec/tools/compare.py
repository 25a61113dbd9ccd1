"""Compare several models on one log, with the same budget and the same candidates, and test the differences."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import PrepareConfig
from seqrec.data.shuffled import without_order
from seqrec.data.split import Split, SplitConfig
from seqrec.errors import InputError, TrainingWarning, warn
from seqrec.files import make_folder
from seqrec.models import MODELS
from seqrec.ranking import metrics, statistics
from seqrec.ranking.additions import recounted
from seqrec.ranking.protocols import ranks
from seqrec.recommender import Recommender
from seqrec.tools.comparison import METRICS, PROTOCOLS, Comparison, Entry, Training
from seqrec.tools.config import CompareConfig
from seqrec.tools.judging import judge, sizes_of
from seqrec.training.checks import say_split, settle_split
from seqrec.training.config import TrainConfig

__all__ = ["CompareConfig", "Comparison", "compare_models"]

NOT_TRAINED = "not trained, because the comparison was interrupted"


def compare_models(
    dataset: Dataset,
    models: Sequence[str],
    config: CompareConfig | None = None,
    *,
    out: str | Path | None = None,
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
        out: folder for ``compare.json``, ``compare.csv`` and ``compare.png``. They are rewritten after each training,
            so that a crash loses only one.
        progress: show a progress bar.
        console: console for the outcome of each training.
        options: options of :class:`Recommender`. An option that only some models have applies to those.

    Raises:
        InputError: a model or option is unknown, there is no user to test on, or no model could be trained.
    """
    config = config or CompareConfig()
    sizes = {name: getattr(config, name) for name in ("embedding_dim", "max_length") if getattr(config, name)}
    chosen = _options(models, sizes | options)
    _check_terms(models, config)
    plan = Recommender(models[0], **{k: v for k, v in chosen[models[0]].items() if k in _common()})
    found, split, same = _planned(plan, dataset, config, console)
    console = console or Console(quiet=True)
    made = out is not None and make_folder(Path(out))
    work = _Work(found, split, {name: chosen[name] | same for name in models}, progress, console)
    for training in work.trainings():
        work.train(*training)
        if found.interrupted:
            missing = set(models) - {entry.model for entry in found.entries}
            found.entries += [Entry(name, failed=NOT_TRAINED) for name in models if name in missing]
        if out is not None and work.values:
            found.write(out)
        if found.interrupted:
            break
    if not work.values and made:
        Path(out or "").rmdir()
    if not work.values and not found.interrupted:
        raise InputError("; ".join(f"{entry.model}: {entry.failed}" for entry in found.entries))
    return found


def _check_terms(models: Sequence[str], config: CompareConfig) -> None:
    """Refuse, or warn of, terms that have no effect because no model is trained."""
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
        self.sizes = sizes_of(split)
        self.values: dict[str, list[dict[str, np.ndarray]]] = {}
        self.shuffled: dict[str, list[dict[str, np.ndarray]]] = {}

    def trainings(self) -> Iterator[tuple[str, int, Split | None]]:
        """Model and seed of each training, and for histories in random order their split, when its turn comes."""
        for seed in self.found.seeds:
            other = without_order(self.split, seed) if self.found.config.shuffled else None
            for name in self.options:
                if seed == self.found.seeds[0] or not MODELS[name].COUNTED:
                    yield name, seed, None
                    if other is not None and not MODELS[name].COUNTED:
                        yield name, seed, other

    def train(self, name: str, seed: int, other: Split | None) -> None:
        """Train and test a model, unless it failed before, and judge all models anew."""
        entry, values, split = self.found.entry(name), self.values, self.split
        label = name if self.found.config.seeds == 1 or MODELS[name].COUNTED else f"{name}, seed {seed}"
        if other is not None and entry.failed is None:
            entry.shuffled = entry.shuffled or Entry(name)
            entry, values, split, label = entry.shuffled, self.shuffled, other, f"{label}, shuffled"
        if entry.failed is not None:
            return
        self.console.print(f"{label} …", highlight=False)
        scored = self._tried(entry, split, self.options[name] | {"seed": seed})
        if scored is not None:
            values.setdefault(name, []).append(scored)
            judge(self.found, self.values, self.shuffled, self.sizes)
        self.console.print(f"{label}: {entry.outcome}", highlight=False, markup=False, soft_wrap=True)

    def _tried(self, entry: Entry, split: Split, options: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Train one model and rank with it. Returns None if it failed or was interrupted; its entry has the reason."""
        found = self.found
        try:
            training, recommender = _fit(entry, split, options, found.config.minutes, self.progress)
            if not recommender.interrupted:
                values = _values(recommender, split, found)
                training.metrics = {
                    protocol: dict(zip(METRICS, statistics.mean(block).tolist(), strict=True))
                    for protocol, block in values.items()
                }
                entry.add(training)
                return values
            found.interrupted = True
            entry.failed = "its training was interrupted"
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
    return chosen


def _fit(
    entry: Entry, split: Split, options: Mapping[str, Any], minutes: float | None, progress: bool
) -> tuple[Training, Recommender]:
    """Train a model, and fill in what is the same for all of its trainings."""
    recommender = Recommender(entry.model, **options)
    entry.config = entry.config or asdict(recommender.model_config)
    begin = time.monotonic()
    recommender.fit(split.train.dataset, progress=progress, minutes=minutes)
    if (used := recommender._config) is not None and not entry.trainings:
        entry.config, entry.training, entry.recipe = used.model_config, used.training, used.recipe
    seconds = time.monotonic() - begin
    model = recommender.model
    entry.parameters = sum(weight.numel() for weight in model.parameters())
    entry.bytes = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    epochs = None if model.COUNTED else len(recommender.epochs)
    weight = None if model.addition is None else model.addition.weight
    return Training(options["seed"], recommender.summary, seconds, epochs, weight, {}), recommender


def _values(recommender: Recommender, split: Split, found: Comparison) -> dict[str, np.ndarray]:
    """The metrics of each user by protocol, ``float64[U, len(METRICS)]``. All trainings rank the same candidates."""
    # The counts of the recommender are of the whole log.
    model = recounted(recommender.model, split.train)
    values: dict[str, np.ndarray] = {}
    more: dict[str, Any] = {"negatives": found.config.test_negatives, "keep_seen": found.keep_seen}
    for protocol in PROTOCOLS:
        greater, ties = ranks(model, split.test, protocol=protocol, seed=found.training["seed"], **more)
        values[protocol] = np.column_stack([metrics.named(name, greater, ties) for name in METRICS])
    return values
