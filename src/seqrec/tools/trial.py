"""One trial of tuning: training with some options, and NDCG@10 on validation items."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from seqrec.data.dataset import Dataset
from seqrec.data.split import Split
from seqrec.device import threads
from seqrec.errors import InputError
from seqrec.models.transitions import Addition, Transitions, TransitionsConfig
from seqrec.ranking.protocols import ranks
from seqrec.recommender import Recommender
from seqrec.training.additions import choose_weight
from seqrec.training.loop import accuracy_of, train, validated_users
from seqrec.training.plan import Plan, planned
from seqrec.training.tracking import Records, Status, Tracking

#: Called with the number of a validation, from 1, and its NDCG@10; returns whether the trial is pruned.
Report = Callable[[int, float], bool]
#: Makes the transition counts of a split.
Count = Callable[[TransitionsConfig, Split], Transitions]
#: Name of the value that trials are compared by, in their records.
COMPARED = "compared/ndcg@10"


@dataclass(frozen=True)
class Job:
    """What a trial needs to know.

    Args:
        number: number of the trial.
        model: name of the model.
        options: options of :class:`Recommender`.
        ends: time, in seconds since 1970, by which a fit with the best options after this trial has to end. None for
            no limit.
        kept: seconds before it for everything in the fit that is not training.
        repeat: seconds of the best trial so far, as which the fit will take at least.
        most: most seconds of the trial's own training.
        constants: constants of the transition counts that are added where they help. None to judge the model alone.
        choosing: seconds after the training of a trial for choosing the weight of these counts.
    """

    number: int
    model: str
    options: Mapping[str, Any]
    ends: float | None = None
    kept: float = 0.0
    repeat: float = 0.0
    most: float = float("inf")
    constants: TransitionsConfig | None = None
    choosing: float = 0.0

    def is_late(self, elapsed: float) -> bool:
        """Whether a trial that has taken ``elapsed`` seconds has to end, so that it can be repeated in time."""
        if self.ends is None:
            return False
        needed = self.choosing + max(elapsed, self.repeat) + self.kept
        return elapsed >= self.most or time.time() + needed >= self.ends


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        state: complete; pruned: stopped because others were better; failed: impossible, ``reason`` says why;
            interrupted: by the user.
        value: NDCG@10 on validation items that trials are compared by, of a complete one: with transition counts where
            the fit would add them, else of the model alone.
        seconds: time that it took.
        epochs: number of trained epochs.
        reason: one line, if it failed or the time limit ended it.
        alone: best NDCG@10 of its validations, if there was one, which is that of the model alone.
        weight: weight of the transition counts; 0 if they do not help, None if they were not tried.
    """

    state: Literal["complete", "pruned", "failed", "interrupted"]
    value: float | None = None
    seconds: float = 0.0
    epochs: int = 0
    reason: str = ""
    alone: float | None = None
    weight: float | None = None


@dataclass
class _Seen:
    """The rows of the epochs so far."""

    values: list[float] = field(default_factory=list)
    epochs: int = 0


class _Pruned(Exception):
    pass


def counted(constants: TransitionsConfig, split: Split) -> Transitions:
    """Transition counts of the training histories."""
    counts = Transitions(constants, split.train.dataset.num_items)
    counts.count(split.train)
    return counts.eval()


def plan_of(dataset: Dataset, model: str, options: Mapping[str, Any], **more: Any) -> Plan:
    """The plan of a fit with some options; ``more`` is for :func:`seqrec.training.plan.planned`."""
    asked = Recommender(model, **options)
    return planned(
        dataset, asked.model_name, asked.model_config, asked.train_config, asked.prepare_config, asked.split_config,
        **more,
    )  # fmt: skip


def attempted(
    dataset: Dataset, job: Job, report: Report, count: Count = counted, tracking: Tracking | None = None
) -> Outcome:
    """Train as a trial says, and validate. Test items are not ranked.

    A trial that is impossible is an outcome, not an error, so that tuning goes on without it.

    Args:
        dataset: dataset to train on.
        job: what to try.
        report: function that is called after each validation, with the NDCG@10 of the model alone.
        count: what counts transitions, which are the same in all trials.
        tracking: record of the trial.
    """
    begin, seen = time.monotonic(), _Seen()

    def watch(row: dict[str, Any]) -> None:
        seen.epochs += 1
        if tracking is not None:
            tracking.epoch(row)
        if "ndcg@10" in row:
            seen.values.append(row["ndcg@10"])
            if report(len(seen.values), row["ndcg@10"]):
                raise _Pruned

    def stop() -> bool:
        return job.is_late(time.monotonic() - begin)

    state: Literal["complete", "pruned", "failed", "interrupted"] = "failed"
    reason, value, weight = "", None, None
    try:
        plan = plan_of(dataset, job.model, job.options)
        if tracking is not None:
            tracking.begin(plan.config, resume=False)
        keep_seen = bool(plan.config.split.keep_seen)
        trained = train(plan.model, plan.split, plan.recipe.training, stop=stop, keep_seen=keep_seen, watch=watch)
        state = "interrupted" if trained.ended == "interrupted" else "complete" if seen.values else "failed"
        reason = {"complete": "ended by the time limit" * (trained.ended == "stopped"),
                  "failed": "it was never validated"}.get(state, "")  # fmt: skip
        if state == "complete":
            weight, value = _with_counts(plan, job.constants, count)
            value = max(seen.values) if value is None else value
    except _Pruned:
        state = "pruned"
    except (InputError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        # One combination that does not fit this log or machine must not end the search.
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        state, reason = "failed", f"{kind}{' '.join(str(error).split())}"
    seconds = time.monotonic() - begin
    found = Outcome(state, value, seconds, seen.epochs, reason, max(seen.values, default=None), weight)
    if tracking is not None:
        _record(tracking, found)
    return found


def _with_counts(plan: Plan, constants: TransitionsConfig | None, count: Count) -> tuple[float | None, float | None]:
    """Weight of the counts as the fit would choose it, and NDCG@10 of the sum for the users of each validation.

    None for what is not known: the weight without constants, the sum where counts do not help.
    """
    if constants is None:
        return None, None
    model, split, training = plan.model, plan.split, plan.recipe.training
    keep_seen = bool(plan.config.split.keep_seen)
    with threads(training.threads):
        counts = count(constants, split)
        weight = choose_weight(model, constants, split, keep_seen, training.seed, counts).weight
        if not weight:
            return weight, None
        model.addition = Addition(counts, weight)
        users = validated_users(split.valid, training)
        assert users is not None
        return weight, accuracy_of(*ranks(model, users, keep_seen=keep_seen))["ndcg@10"]


def _record(tracking: Tracking, found: Outcome) -> None:
    """Record how a trial ended."""
    if found.value is not None:
        tracking.add({COMPARED: found.value}, found.epochs)
    statuses: dict[str, Status] = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
    said = f"{found.state}: {found.reason}" if found.reason else found.state
    tracking.end(statuses.get(found.state, "KILLED"), {}, said)


Judge = Callable[[int, int, float], bool]


class Workers(Protocol):
    """What runs the trials: :class:`OneByOne` in this process, or ``seqrec.cluster.trials.SideBySide``."""

    @property
    def slots(self) -> int:
        """Number of trials at the same time."""

    @property
    def threads(self) -> int | None:
        """Threads of a trial, or None for those that the options say."""

    def submit(self, number: int, job: Job) -> None:
        """Add a trial."""

    def wait(self, judge: Judge) -> list[tuple[int, Outcome]]:
        """Wait until a trial has ended, or for a moment; returns those that have ended."""


class OneByOne:
    """Runs trials in this process, one after another. :class:`seqrec.cluster.trials.SideBySide` does on a cluster.

    Args:
        dataset: dataset that every trial trains on.
        records: where trials are recorded.
    """

    slots: int = 1
    threads: int | None = None

    def __init__(self, dataset: Dataset, records: Records | None = None) -> None:
        self.dataset, self.records = dataset, records
        self.jobs: list[Job] = []
        self.counts: Transitions | None = None

    def submit(self, number: int, job: Job) -> None:
        """Add a trial."""
        del number
        self.jobs.append(job)

    def wait(self, judge: Judge) -> list[tuple[int, Outcome]]:
        """Wait until a trial has ended; returns the numbers and outcomes of those that have.

        Args:
            judge: function that gets the number of a trial, the number of its validation and the NDCG@10, and returns
                whether the trial is pruned.
        """
        job = self.jobs.pop(0)
        tracking = None if self.records is None else self.records.below(f"trial-{job.number}")

        def report(step: int, value: float) -> bool:
            return judge(job.number, step, value)

        return [(job.number, attempted(self.dataset, job, report, self._counted, tracking))]

    def _counted(self, constants: TransitionsConfig, split: Split) -> Transitions:
        """The counts, which all trials share."""
        if self.counts is None:
            self.counts = counted(constants, split)
        return self.counts
