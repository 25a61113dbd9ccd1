"""The training loop.

The random numbers of a step (order, negatives, dropout) are a function of seed, epoch and step. So a checkpoint needs
no random state, and a run that was killed and resumed ends with the same bytes as one that was not.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from seqrec.data.batches import Epoch
from seqrec.data.split import TRAINED, Split, Targets
from seqrec.device import own_random_state, pick_device, threads, usual_torch
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import dropouts_of
from seqrec.ranking import metrics
from seqrec.ranking.protocols import ranks
from seqrec.run.folder import METRICS, Run
from seqrec.run.refit import RefitPlan
from seqrec.run.start import Start
from seqrec.training.checks import (
    FirstEpoch,
    check_passes,
    check_trainable,
    objective_of,
    warn_of_users_without_negatives,
)
from seqrec.training.config import BETA1, TrainConfig
from seqrec.training.objective import Task, mark_tables
from seqrec.training.optim import RowAdam
from seqrec.training.prefetch import prefetched
from seqrec.training.processes import Processes
from seqrec.training.progress import EpochBar, described, epoch_bar
from seqrec.training.schedule import schedule_of
from seqrec.training.start import start_from_neighbours
from seqrec.training.state import TrainingState
from seqrec.training.step import epoch_of, optimizer_step, seed_step, tasks_of
from seqrec.training.warm import begin_from

Ending = Literal["running", "saving", "stopped", "interrupted"]
ENDINGS: tuple[Ending, ...] = ("running", "saving", "stopped", "interrupted")


@dataclass(frozen=True)
class Trained:
    """The result of training: one row per epoch, the best validated epoch (from 1), and how it ended."""

    epochs: list[dict[str, Any]]
    best_epoch: int
    ended: Literal["epochs", "early", "interrupted", "stopped"]

    @property
    def summary(self) -> str:
        """One line for people."""
        how = {"early": ", stopped because validation no longer improved", "interrupted": ", interrupted",
               "stopped": ", stopped at the end of the budget"}.get(self.ended, "")  # fmt: skip
        return f"epochs: {len(self.epochs)}{how}; the weights are those of epoch {self.best_epoch}"


def train(
    model: Model,
    split: Split,
    config: TrainConfig | None = None,
    *,
    run: Run | None = None,
    resume: bool = False,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
    keep_seen: bool = False,
    refit: RefitPlan | None = None,
    processes: Processes | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
    start: Callable[[], Start] | None = None,
) -> Trained:
    """Train a model. It then holds the weights of the best validated epoch, on the CPU.

    Args:
        model: model with fresh weights.
        split: training histories and validation targets; ``split.train`` has each user at its index.
        config: training options. Those that :class:`Recommender` would choose from the log take their plain values
            (``TrainConfig.PLAIN``, and the model's own loss).
        run: run folder for weights, epochs and checkpoints. By default nothing is written.
        resume: continue from the run's last checkpoint.
        progress: show a progress bar.
        stop: function that is called after every step. When it returns True, the current epoch ends early, is
            validated, and is the last one. If it depends on a clock, the run cannot be reproduced byte for byte.
        keep_seen: also rank items of the history in validation.
        refit: train for exactly this number of epochs without validation, and save only the last weights. The schedule
            of the learning rate still spans ``config.epochs``.
        processes: processes that train together, each of which makes this call, the first one with the run. The model
            is trained as by one process, up to rounding. The first process holds the best weights afterwards.
        watch: function that is called with the row of every epoch and its ``learning_rate``; when training resumes,
            first with those of the epochs before. An exception that it raises ends training.
        start: function that returns weights of another run to start from.

    Raises:
        InputError: there is nothing to train on or to learn, the split leaks (:meth:`Split.check`), or it diverges.

    Warns:
        TrainingWarning: the model learns nothing from some users.
    """
    config = (config or TrainConfig()).resolved()
    split.check()
    check_trainable(split, config, model)
    check_passes(model, split.train, config)
    if len(split.train) != split.train.dataset.num_users:
        raise ValueError("split.train must hold every user of the dataset, each at its index")
    if stop is not None and not callable(stop):
        raise InputError(f"stop is {stop!r}; give a function that returns True to stop")
    device = pick_device(config.device)
    with usual_torch(), own_random_state(device), threads(config.threads) as count, _stop_signals(processes) as stopped:
        work = _Work(model, split, config, device, run, keep_seen, refit, processes)
        with closing(work.optimizer), epoch_bar(progress, work.tokens, "refit " if refit else "") as bar:
            bar.say(described(device, count) if refit is None else f"refit: training again {TRAINED[refit.trained_on]}")
            if refit is None:
                warn_of_users_without_negatives(split, work.objective, work.sampler)
            work.start(resume, start)
            return work.until_the_end(bar, stopped, stop, watch)


class _Work:
    """The objects that all epochs of one training share."""

    def __init__(
        self,
        model: Model,
        split: Split,
        config: TrainConfig,
        device: torch.device,
        run: Run | None,
        keep_seen: bool,
        refit: RefitPlan | None,
        processes: Processes | None,
    ) -> None:
        self.model, self.config, self.device, self.histories = model, config, device, split.train
        self.processes = processes
        self.is_first = processes is None or processes.is_first
        self.objective = objective_of(model, model.num_items, config)
        self.sampler = self.objective.sampler(split.train)
        mark_tables(model)
        model.prepare_training(split.train)
        model.to(device).train()
        epoch = epoch_of(model, split.train, config)
        self.tokens, self.steps = epoch.tokens, len(epoch)
        assert config.learning_rate is not None
        schedule = schedule_of(config.learning_rate_schedule, config.warmup_steps, config.epochs * self.steps)
        self.optimizer = RowAdam(
            model, config.learning_rate, config.table_learning_rate, (BETA1, config.beta2), schedule=schedule
        )
        self.validation = validated_users(split.valid, config)
        self.keep_seen, self.refit = keep_seen, refit
        self.epochs = config.epochs if refit is None else refit.epochs
        self.dropouts = dropouts_of(model)
        self.state = self._state(run)
        self.first: FirstEpoch | None = None
        self.every = config.resolved_for(model.LOSS, model.num_items, self.steps).evaluate_every or 0

    def _state(self, run: Run | None) -> TrainingState:
        if self.config.shard_items:
            from seqrec.training.sharded_state import ShardedState  # imports much of torch that others do not need

            assert self.processes is not None
            return ShardedState(self.model, self.optimizer, run, self.processes)
        decay = self.config.average_decay if self.is_first else 0.0
        return TrainingState(self.model, self.optimizer, run, decay, keeps=self.is_first)

    def start(self, resume: bool, start: Callable[[], Start] | None = None) -> None:
        """Start from the run's last checkpoint, if there is one and ``resume`` asks for it, or from the beginning."""
        restored, spectral = self.state.restored(resume, self.steps), self.config.item_init == "spectral"
        run = self.state.run
        if restored and run is not None and not (run.folder / METRICS).exists():
            run.save_epochs(self.state.rows)  # a kill may have come between the state and its rows
        if not restored and self.is_first:
            if start is not None:
                begin_from(start(), self.model, self.histories, near_neighbours=spectral)
            elif spectral:
                start_from_neighbours(self.model, self.histories, self.config.seed)
        if self.processes is not None:
            self.state.start_as_first(self.processes)

    def until_the_end(
        self,
        bar: EpochBar,
        stopped: Callable[[], bool],
        stop: Callable[[], bool] | None = None,
        watch: Callable[[dict[str, Any]], None] | None = None,
    ) -> Trained:
        """Run epoch after epoch, starting from the current state."""
        state = self.state
        ended: Ending = "running"
        if watch is not None:
            for row in state.rows:
                watch(self._with_rate(row))
        state.start_clock()
        while ended == "running" and state.epoch < self.epochs and not self._ended_early():
            bar.start(state.epoch + 1, self.epochs)
            how = self._steps(bar, stopped, stop)
            if how == "interrupted":
                state.checkpoint()
                return self._ended("interrupted")
            ended = how
            row = self._end_of_epoch(cut=how == "stopped")
            bar.row(row)
            if watch is not None:
                watch(self._with_rate(row))
            if self._any(stopped()):  # during validation
                state.checkpoint()
                return self._ended("interrupted")
        if ended == "stopped":
            return self._ended("stopped")
        return self._ended("early" if state.epoch < self.epochs else "epochs")

    def _steps(self, bar: EpochBar, stopped: Callable[[], bool], stop: Callable[[], bool] | None) -> Ending:
        """Run the remaining steps of an epoch. Returns how it ended."""
        state, config, device, model, processes = self.state, self.config, self.device, self.model, self.processes
        model.train()
        if state.epoch == state.step == 0 and self.refit is None and self.is_first:  # a refit is known to learn
            self.first = FirstEpoch(model)
        epoch = epoch_of(model, self.histories, config, state.epoch, processes.shard if processes else (0, 1))
        drawn = tasks_of(model, epoch, self.histories, self.objective, self.sampler, state.step)
        if self.first is not None:
            drawn = self.first.watch(drawn)
        with prefetched(drawn, device) as tasks:
            return self._take(tasks, epoch, bar, stopped, stop)

    def _take(
        self,
        tasks: Iterator[Task],
        epoch: Epoch,
        bar: EpochBar,
        stopped: Callable[[], bool],
        stop: Callable[[], bool] | None,
    ) -> Ending:
        """Take a step for each task. Returns how it ended."""
        state, config, device, model, processes = self.state, self.config, self.device, self.model, self.processes
        for task in tasks:
            seed_step(self.dropouts, epoch, state.step, device)
            ways: dict[str, Any] = {"clip_norm": config.clip_norm, "reduce": processes}
            loss = optimizer_step(model, self.optimizer, task, self.objective, device, **ways)
            tokens = len(task.batch.items) if processes is None else processes.totals.tokens
            # The sum stays on the device: reading it at every step would wait for the GPU.
            state.loss_sum += loss.detach().to(state.loss_sum.dtype) * tokens
            state.tokens += tokens
            state.step += 1
            bar.update(state.tokens)
            how = self._asked(self._wanted(stopped, stop))
            if how in ("stopped", "interrupted"):
                return how
            if how == "saving" and state.step < self.steps:  # its end has a checkpoint of its own
                self._save(None)
        return "running"

    def _wanted(self, stopped: Callable[[], bool], stop: Callable[[], bool] | None) -> Ending:
        """What this process asks for after a step."""
        state = self.state
        if stopped():
            return "interrupted"
        if stop is not None and stop():
            return "stopped"
        is_due = state.step < self.steps and state.due(self.config.checkpoint_minutes)
        return "saving" if is_due else "running"

    def _save(self, row: dict[str, Any] | None, checkpoint: bool = True) -> None:
        """Write a checkpoint, with the row of the epoch if one ended; or without a checkpoint, only the rows."""
        if checkpoint:
            self.state.checkpoint()
        else:
            self.state.save_epochs()
        if self.processes is not None:
            if self.processes.request == ENDINGS.index("saving"):
                self.processes.request = 0
            self.processes.saved(self.state.run.folder if self.state.run is not None else None, row)

    def _asked(self, how: Ending) -> Ending:
        """How training goes on, given what this process asks. Several processes agree at the next step."""
        if self.processes is None:
            return how
        self.processes.request = ENDINGS.index(how)
        return ENDINGS[self.processes.totals.request]

    def _any(self, asked: bool) -> bool:
        """Whether any process asks for something."""
        return asked if self.processes is None else bool(self.processes.most_of(int(asked)))

    def _end_of_epoch(self, cut: bool) -> dict[str, Any]:
        """Average, validate and save the weights at the end of an epoch, and return its row.

        A checkpoint, which has the best weights too, is written when it is due and at the end.
        """
        state, config = self.state, self.config
        row = state.end_of_epoch()
        is_last = cut or state.epoch == self.epochs
        saves = is_last or self._any(state.due(config.checkpoint_minutes))
        with state.averaged():
            if self.first is not None:
                self.first.check(row["loss"])
                self.first = None
            if self.refit is not None:
                if state.epoch == self.epochs:
                    state.keep_weights()
            elif not self.every or not self.validation:
                if saves or (state.run is None and self.processes is None):
                    state.keep_weights()
            elif is_last or state.epoch % self.every == 0:
                row |= self._accuracy()
                state.keep_if_better(row["ndcg@10"], state.epoch % self.every == 0, config.min_gain)
        self._save(row, checkpoint=saves or self._ended_early())
        return row

    def _ended_early(self) -> bool:
        """Whether ``patience`` is used up."""
        return self.state.ended_early(self.config.patience, self.every * self.steps)

    def _with_rate(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of an epoch with the learning rate of its last step."""
        last = min(row["epoch"] * self.steps, self.optimizer.steps)  # a time limit may have ended an epoch early
        return row | {"learning_rate": self.optimizer.learning_rate * self.optimizer.share(last)}

    def _accuracy(self) -> dict[str, float]:
        """NDCG@10 and HR@10 of the validation users in the full ranking."""
        assert self.validation is not None
        if self.config.shard_items and self.processes is not None:
            from seqrec.training.sharded import sharded_ranks

            return accuracy_of(*sharded_ranks(self.model, self.validation, self.keep_seen))
        found = accuracy_of(*ranks(self.model, self.validation, keep_seen=self.keep_seen)) if self.is_first else {}
        return found if self.processes is None else self.processes.same_on_all(found)

    def _ended(self, how: Literal["epochs", "early", "interrupted", "stopped"]) -> Trained:
        self.state.finish(save_current=how == "interrupted" and self.refit is None)
        return Trained(self.state.rows, self.state.best_epoch, how)


def validated_users(targets: Targets, config: TrainConfig) -> Targets | None:
    """The users to validate on. They are the same at every epoch."""
    return targets.sampled(config.validation_users, [config.seed, 3]) if len(targets) else None


def accuracy_of(greater: np.ndarray, ties: np.ndarray) -> dict[str, float]:
    """NDCG@10 and HR@10 of ranks."""
    return {name: float(metrics.named(name, greater, ties).mean()) for name in metrics.MAIN}


@contextmanager
def _stop_signals(processes: Processes | None) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM stop training after the current step; a second one stops it at once."""
    asked = False
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield (lambda: False) if processes is None else processes.interrupted
        return

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        del number, frame
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():  # None is a handler that was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
