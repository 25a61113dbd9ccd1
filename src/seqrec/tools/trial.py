"""One trial of tuning: training with some options, and NDCG@10 on validation items."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from seqrec.data.dataset import Dataset
from seqrec.errors import InputError
from seqrec.recommender import Recommender
from seqrec.training.loop import train
from seqrec.training.plan import Plan, planned

#: Called with the number of a validation, from 1, and its NDCG@10; returns whether the trial is pruned.
Report = Callable[[int, float], bool]


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
        most: most seconds of the trial itself.
    """

    number: int
    model: str
    options: Mapping[str, Any]
    ends: float | None = None
    kept: float = 0.0
    repeat: float = 0.0
    most: float = float("inf")

    def is_late(self, elapsed: float) -> bool:
        """Whether a trial that has taken ``elapsed`` seconds has to end, so that it can be repeated in time."""
        if self.ends is None:
            return False
        return elapsed >= self.most or time.time() + max(elapsed, self.repeat) + self.kept >= self.ends


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        state: complete; pruned: stopped because others were better; failed: impossible, ``reason`` says why;
            interrupted: by the user.
        value: best NDCG@10 of its validations, if there was one.
        seconds: time that it took.
        epochs: number of trained epochs.
        reason: one line, if it failed or the time limit ended it.
    """

    state: Literal["complete", "pruned", "failed", "interrupted"]
    value: float | None = None
    seconds: float = 0.0
    epochs: int = 0
    reason: str = ""


@dataclass
class _Seen:
    """The rows of the epochs so far."""

    values: list[float] = field(default_factory=list)
    epochs: int = 0


class _Pruned(Exception):
    pass


def plan_of(dataset: Dataset, model: str, options: Mapping[str, Any], **more: Any) -> Plan:
    """The plan of a fit with some options; ``more`` is for :func:`seqrec.training.plan.planned`."""
    asked = Recommender(model, **options)
    return planned(
        dataset, asked.model_name, asked.model_config, asked.train_config, asked.prepare_config, asked.split_config,
        **more,
    )  # fmt: skip


def attempted(dataset: Dataset, job: Job, report: Report) -> Outcome:
    """Train as a trial says, and validate. Test items are not ranked.

    A trial that is impossible is an outcome, not an error, so that tuning goes on without it.
    """
    begin, seen = time.monotonic(), _Seen()

    def watch(row: dict[str, Any]) -> None:
        seen.epochs += 1
        if "ndcg@10" in row:
            seen.values.append(row["ndcg@10"])
            if report(len(seen.values), row["ndcg@10"]):
                raise _Pruned

    def stop() -> bool:
        return job.is_late(time.monotonic() - begin)

    state: Literal["complete", "pruned", "failed", "interrupted"] = "failed"
    reason = ""
    try:
        plan = plan_of(dataset, job.model, job.options)
        keep_seen = bool(plan.config.split.keep_seen)
        trained = train(plan.model, plan.split, plan.recipe.training, stop=stop, keep_seen=keep_seen, watch=watch)
        state = "interrupted" if trained.ended == "interrupted" else "complete" if seen.values else "failed"
        reason = {"complete": "ended by the time limit" * (trained.ended == "stopped"),
                  "failed": "it was never validated"}.get(state, "")  # fmt: skip
    except _Pruned:
        state = "pruned"
    except (InputError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        # One combination that does not fit this log or machine must not end the search.
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())}"
    seconds = time.monotonic() - begin
    return Outcome(state, max(seen.values, default=None), seconds, seen.epochs, reason)


Judge = Callable[[int, int, float], bool]


class OneByOne:
    """Runs trials in this process, one after another. :class:`seqrec.cluster.trials.SideBySide` does on a cluster.

    Args:
        dataset: dataset that every trial trains on.
    """

    slots: int = 1
    threads: int | None = None

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.jobs: list[Job] = []

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
        return [(job.number, attempted(self.dataset, job, lambda step, value: judge(job.number, step, value)))]
