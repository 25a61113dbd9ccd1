"""A fit, from a dataset to a finished run: training, the test, and the refit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from seqrec.data.dataset import Dataset
from seqrec.data.split import Split, TrainedOn, all_histories
from seqrec.device import threads
from seqrec.errors import InputError, TrainingWarning, one_line, warn
from seqrec.models.base import Model
from seqrec.models.features import SIZES
from seqrec.models.transitions import TransitionsConfig
from seqrec.ranking.additions import counted_addition
from seqrec.ranking.baselines import evaluate_beside
from seqrec.ranking.protocols import Evaluation, Protocol
from seqrec.run.additions import write_addition
from seqrec.run.config import RunConfig
from seqrec.run.folder import DATA, Run
from seqrec.run.place import Place
from seqrec.run.refit import RefitPlan
from seqrec.run.start import Start, read_start
from seqrec.training.additions import ChosenWeight, choose_weight, facts_of
from seqrec.training.ahead import look_ahead, settled_constants
from seqrec.training.budget import Ahead, Budget, Limit
from seqrec.training.config import TrainConfig
from seqrec.training.following import Job
from seqrec.training.loop import train
from seqrec.training.plan import Plan, check_tables, counted
from seqrec.training.processes import Processes, joined
from seqrec.training.refitting import refit
from seqrec.training.step import epoch_of
from seqrec.training.tracking import Status, Tracking

PROTOCOLS: tuple[Protocol, ...] = ("full", "sampled")
BY_TABLES = tuple(size for sizes in SIZES.values() for size in sizes)  # follow from tables, which are compared
LATE = 0.1  # of a time limit, by which a refit may be late


@dataclass
class Fitted:
    """What a fit leaves.

    Args:
        config: configuration of the run.
        split: split of the dataset.
        model: model to recommend with.
        first: model that was trained without held-out items; the same one unless there was a refit.
        trained_on: what ``model`` was trained on.
        epochs: rows of ``epochs.csv``.
        best_epoch: epoch that validation chose.
        metrics: content of ``metrics.json``; empty without a run folder, or if the fit was interrupted.
        chosen: weight of the transition counts, if they were tried.
        evaluations: test of ``first`` by protocol, if there is a run folder.
        refit_evaluations: the same of ``model``, if a refit left out the test items.
        interrupted: whether the user stopped the fit.
        summary: how training ended, for people.
        constants: constants of transition counts, once they were chosen.
        limit: what ends training in time, if there is a time limit.
        start: function that returns the weights of another run that training starts from.
        tracking: record of the training, if there is one.
        tests: whether the model is tested.
    """

    config: RunConfig
    split: Split
    model: Model
    first: Model
    trained_on: TrainedOn = "train"
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 1
    metrics: dict[str, Any] = field(default_factory=dict)
    chosen: ChosenWeight | None = None
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    refit_evaluations: dict[str, Evaluation] = field(default_factory=dict)
    interrupted: bool = False
    summary: str = ""
    constants: TransitionsConfig | None = None
    limit: Limit | None = None
    start: Callable[[], Start] | None = None
    tracking: Tracking | None = None
    tests: bool = True


def fitted(
    dataset: Dataset,
    plan: Plan,
    place: Place | None,
    *,
    resume: bool = False,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
    budget: Budget | None = None,
    tracking: Tracking | None = None,
    constants: TransitionsConfig | None = None,
    tests: bool = True,
) -> Fitted:
    """Train, test and refit a model as planned.

    Args:
        dataset: dataset to fit.
        plan: what to do, from :func:`seqrec.training.plan.planned`.
        place: locked run folder to write. By default nothing is written and nothing tested.
        resume: continue the run in ``place``.
        progress: show a progress bar.
        stop: see :func:`seqrec.train`. The refit is not stopped.
        budget: time limit, which ends training early enough for everything after it.
        tracking: record of the training.
        constants: constants of transition counts. By default chosen on validation items.
        tests: whether the run is tested.
    """
    found = Fitted(plan.config, plan.split, plan.model, plan.model, tracking=tracking, constants=constants)
    found.tests = tests and place is not None
    with _recorded(found):
        _fit(found, dataset, plan, place, resume, progress, stop, budget)
    return found


@contextmanager
def _recorded(found: Fitted) -> Iterator[None]:
    """Record how a fit ends, if it is recorded."""
    tracking = found.tracking
    if tracking is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        tracking.end(status, found.metrics, f"{type(error).__name__}: {one_line(error)}")
        raise
    for row in found.epochs if found.model.COUNTED else ():
        tracking.epoch(row)
    tracking.end("KILLED" if found.interrupted else "FINISHED", found.metrics, found.summary)


def _fit(
    found: Fitted,
    dataset: Dataset,
    plan: Plan,
    place: Place | None,
    resume: bool,
    progress: bool,
    stop: Callable[[], bool] | None,
    budget: Budget | None,
) -> None:
    """Train, test and refit; what each leaves goes to ``found``."""
    config, split, model, training = plan.config, plan.split, plan.model, plan.recipe.training
    if model.COUNTED and budget is not None:
        warn(f"{config.model} is counted in one pass, which minutes do not shorten", TrainingWarning)
    processes = joined()
    if processes is not None and model.COUNTED:
        raise InputError(f"{config.model} is counted in one pass by one process; start only one")
    if processes is not None and place is None:
        raise InputError("several processes share the data through the run folder; give out")
    run = _trained(found, dataset, plan, place, resume, progress, stop, budget, processes)
    model.eval()
    if found.interrupted:
        _dismiss(processes)
        return
    if not model.COUNTED and training.transitions == "auto":
        _add_transitions(found, dataset, training)
    if run is not None:
        run.check_there()
        write_addition(run.folder, run.id, model.addition)
        found.metrics = {"best_epoch": found.best_epoch, "epochs": len(found.epochs), "split": asdict(split.check())}
        if budget is not None:
            reached = found.limit is not None and found.limit.reached
            found.metrics["budget"] = {"minutes": budget.minutes, "ended_training": reached}
        if found.chosen is not None and model.addition is not None:
            found.metrics["transitions"] = facts_of(model.addition, found.chosen)
        if found.tests:
            found.evaluations = _tested(found, training, found.metrics)
    if config.refit != "off" and _has_time(found):
        if run is not None:
            run.save_metrics(found.metrics)  # they do not yet say what the weights in use were trained on
        _train_again(found, training, run, progress, processes)
    _dismiss(processes)
    if run is not None and not found.interrupted:
        run.check_there()
        found.metrics["trained_on"] = found.trained_on
        run.save_metrics(found.metrics)


def _dismiss(processes: Processes | None) -> None:
    """Tell the other processes that there is nothing left to train."""
    if processes is not None:
        processes.same_on_all(None)


def _has_time(found: Fitted) -> bool:
    """Whether the time limit, if there is one, allows the refit; a warning says if not."""
    limit = found.limit
    if limit is None:
        return True
    seconds, left = limit.refit(found.best_epoch), limit.budget.left()
    if seconds <= left + LATE * 60 * limit.budget.minutes:
        return True
    warn(
        f"minutes is {limit.budget.minutes:g}, which leaves {max(0.0, left):.0f} s for a refit of about "
        f"{seconds:.0f} s; it is left out, --resume with more minutes adds it",
        TrainingWarning,
    )
    return False


def _add_transitions(found: Fitted, dataset: Dataset, training: TrainConfig) -> None:
    """Choose the weight of transition counts, and add those of the whole log to the scores of the model.

    The test counts them again, in the histories that the model was trained on.
    """
    model, split = found.model, found.split
    if len(split.valid) == 0:
        return
    keep_seen = bool(found.config.split.keep_seen)
    with threads(training.threads):
        constants = found.constants or settled_constants(split, keep_seen, training.seed, near=_near(found))
        near = found.config.init_from.get("weight")
        found.chosen = choose_weight(model, constants, split, keep_seen, training.seed, near=near)
        model.addition = counted_addition(constants, found.chosen.weight, all_histories(dataset))


def _near(found: Fitted) -> dict[str, float] | None:
    """The constants of the counts of the run that training started from, if it did and there were any."""
    return found.config.init_from.get("constants")


def _limit(
    found: Fitted, training: TrainConfig, run: Run | None, resume: bool, stop: Callable[[], bool] | None, budget: Budget
) -> Limit:
    """What ends training in time. The constants of transition counts are chosen now, so that their time is known."""
    split = found.split
    with threads(training.threads):
        if training.transitions == "auto" and len(split.valid) and found.constants is None:
            keep_seen = bool(found.config.split.keep_seen)
            found.constants = settled_constants(split, keep_seen, training.seed, budget, _near(found))
    ahead = _ahead(found, training, budget.clock)
    rows = run.epochs() if run is not None and resume else None
    earlier = rows["total_seconds"].to_list() if rows is not None and rows.height else []
    steps = len(epoch_of(found.model, split.train, training))
    seconds = sum(earlier) / len(earlier) if earlier else None
    found.limit = Limit(budget, ahead, steps, len(earlier), stop, seconds)
    if found.limit.left() <= 0:
        gone = 60 * budget.minutes - budget.left()
        warn(
            f"minutes is {budget.minutes:g}, and training has no time left: the start, the log and the estimates took "
            f"{gone:.0f} s, and what follows training takes about {ahead.after:.0f} s; training ends after one step, "
            "give more minutes",
            TrainingWarning,
        )
    return found.limit


def _ahead(found: Fitted, training: TrainConfig, clock: Callable[[], float]) -> Ahead:
    """Estimate of what follows training."""

    def test(model: Model, some: Split) -> None:
        _tested(replace(found, model=model, split=some), training, {})

    with threads(training.threads):
        return look_ahead(
            found.model, found.config, found.split, training, found.constants, test if found.tests else None, clock
        )


def seconds_besides_training(plan: Plan, constants: TransitionsConfig | None, clock: Callable[[], float]) -> float:
    """Estimated seconds that a fit with a time limit takes in addition to training, with a test and without a refit.

    It measures what the fit itself will measure again, which is part of the estimate. ``constants`` are those of the
    counts, which the fit does not choose again.
    """
    begin = clock()
    config = replace(plan.config, refit="off")
    found = Fitted(config, plan.split, plan.model, plan.model, constants=constants)
    after = _ahead(found, plan.recipe.training, clock).after
    return after + clock() - begin


def _trained(
    found: Fitted,
    dataset: Dataset,
    plan: Plan,
    place: Place | None,
    resume: bool,
    progress: bool,
    stop: Callable[[], bool] | None,
    budget: Budget | None,
    processes: Processes | None,
) -> Run | None:
    """Train without the held-out items. Returns the run."""
    config, split, model, training = plan.config, plan.split, plan.model, plan.recipe.training
    # All checks, and the counting of a counted model, come before the first write.
    if model.COUNTED:
        found.epochs, found.summary = counted(model, split.train)
    run = Run.resume(place, config, (*training.resumable, *BY_TABLES)) if place is not None and resume else None
    if run is not None:
        check_tables(run, dataset, model)
    if place is not None and run is None:
        more = {"weights": model.state_dict(), "epochs": found.epochs} if model.COUNTED else {}
        run = Run.begin(place, config, dataset, start=plan.start, **more)  # type: ignore[arg-type]
    elif run is not None and model.COUNTED:
        run.save_weights(model.state_dict())
        run.save_epochs(found.epochs)
    if config.init_from:
        found.start = partial(_start_of, plan, run)
    if found.tracking is not None:
        found.tracking.begin(config, resume)
    if not model.COUNTED:
        if budget is not None:
            stop = _limit(found, training, run, resume, stop, budget)
        ways: dict[str, Any] = {"run": run, "resume": resume, "progress": progress, "stop": stop, "start": found.start}
        if found.tracking is not None:
            ways["watch"] = found.tracking.epoch
        if processes is not None and run is not None:
            processes.same_on_all(Job(config, training, str((run.folder / DATA).resolve())))
            ways["processes"] = processes
        trained = train(model, split, training, keep_seen=bool(config.split.keep_seen), **ways)
        found.epochs, found.best_epoch = trained.epochs, trained.best_epoch
        found.interrupted, found.summary = trained.ended == "interrupted", trained.summary
        if training.shard_items and run is not None and not found.interrupted:
            found.model = found.first = run.model(mapped=True)  # the whole table, without the memory for it
    if run is not None:
        run.check_there()
        run.take_over()
    return run


def _start_of(plan: Plan, run: Run | None) -> Start:
    """The weights that training starts from: those that the run keeps, if there is one."""
    if run is not None:
        return read_start(run.folder, run.id, run.config, plan.model)
    assert plan.start is not None
    return plan.start


def _tested(found: Fitted, training: TrainConfig, metrics: dict[str, Any]) -> dict[str, Evaluation]:
    """Test the model in both protocols, and add the result to ``metrics``; nothing if nobody has a test item."""
    if len(found.split.test) == 0:
        return {}
    keep_seen = bool(found.config.split.keep_seen)
    with threads(training.threads):
        tests: dict[str, Evaluation] = {
            protocol: evaluate_beside(
                found.model, found.config.label, found.split, found.trained_on, protocol=protocol, keep_seen=keep_seen
            )
            for protocol in PROTOCOLS
        }
    metrics["test"] = {name: evaluation.to_dict() for name, evaluation in tests.items()}
    return tests


def _train_again(
    found: Fitted, training: TrainConfig, run: Run | None, progress: bool, processes: Processes | None
) -> None:
    """Refit, and test the weights if they have not seen the test items."""
    plan = RefitPlan(found.config.refit, found.best_epoch)
    watch = None if found.tracking is None else found.tracking.refit_epoch
    ways = run, progress, processes, found.start, watch
    model, found.interrupted = refit(found.config, found.split, training, plan, *ways)
    if model is None:
        return
    model.addition = found.first.addition
    found.model, found.trained_on = model, plan.trained_on
    if run is not None and not found.interrupted:
        again: dict[str, Any] = {"epochs": plan.epochs, "trained_on": plan.trained_on}
        if plan.kind == "valid":
            found.refit_evaluations = _tested(found, training, again)
        found.metrics["refit"] = again
