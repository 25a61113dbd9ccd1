"""The one visible training loop.

All randomness of a step (the order of the users, negatives, dropout) is a function of seed, epoch and
step, so a checkpoint needs no state of a generator, and a run that was killed and resumed ends with
the same bytes as the one that was not.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from seqrec.data.batches import trainable
from seqrec.data.split import Split, Targets
from seqrec.device import pick_device, threads
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.ranking import metrics
from seqrec.ranking.protocols import ranks
from seqrec.run.folder import Run
from seqrec.training.config import BETA1, TrainConfig
from seqrec.training.objective import Objective, default_popularity, mark_tables
from seqrec.training.optim import RowAdam
from seqrec.training.progress import described, epoch_bar
from seqrec.training.state import TrainingState
from seqrec.training.step import optimizer_step, tasks_of


@dataclass(frozen=True)
class Trained:
    """What training gave: a row an epoch, the best validated epoch (from 1), and how it ended."""

    epochs: list[dict[str, Any]]
    best_epoch: int
    ended: Literal["epochs", "early", "interrupted", "stopped"]


def train(
    model: Model,
    split: Split,
    config: TrainConfig | None = None,
    *,
    run: Run | None = None,
    resume: bool = False,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train a model; afterwards it holds the weights of the best validated epoch, on the CPU.

    Args:
        model: with fresh weights.
        split: training histories and validation targets; ``split.train`` has each user at its index.
        config: how to train.
        run: where weights, epochs and checkpoints go; nothing is written without it.
        resume: go on from the run's last checkpoint.
        progress: show a bar.
        stop: asked after every step; once it says True, the epoch ends there, is validated, and is the last. A run
            that a clock ended so can not be repeated to the byte.

    Raises:
        InputError: nothing to train on, or the loss is no longer a number.
    """
    config = config or TrainConfig()
    check_trainable(split, config)
    if len(split.train) != split.train.dataset.num_users:
        raise ValueError("split.train must hold every user of the dataset, each at its index")
    device = pick_device(config.device)
    loss_name = config.loss or model.LOSS
    popularity = config.popularity
    if popularity is None:
        popularity = default_popularity(loss_name, config.negatives, model.num_items)
    objective = Objective(loss_name, config.negatives, popularity, config.bpr_penalty, config.calibration)
    sampler = objective.sampler(split.train)
    mark_tables(model)
    model.to(device).train()
    optimizer = RowAdam(model, config.learning_rate, config.table_learning_rate, (BETA1, config.beta2))
    encode = torch.compile(model.encode, dynamic=True) if config.compile else model.encode
    validation = _validation(split.valid, config)
    dropouts = dropouts_of(model)
    steps = -(-len(trainable(split.train)) // config.batch_size)
    loop = TrainingState(model, optimizer, run, config.average_decay)
    if resume and run is not None:
        loop.restore(steps)
    tokens = int(np.minimum(trainable(split.train).lengths - 1, model.config.max_length).sum())
    every = -(-100 // steps) if config.evaluate_every is None else config.evaluate_every

    cut = False
    with (
        threads(config.threads) as count,
        closing(optimizer),
        _stop_signals() as stopped,
        epoch_bar(progress, tokens) as bar,
    ):
        bar.say(described(device, count))
        while not cut and loop.epoch < config.epochs and not loop.ended_early(config.patience):
            bar.start(loop.epoch + 1, config.epochs)
            model.train()
            clock = time.perf_counter()
            for task in tasks_of(model, split.train, config, objective, sampler, loop.epoch, loop.step):
                where = [config.seed, loop.epoch, loop.step, 2]
                seed_dropout(dropouts, where)
                if device.type != "cpu":  # which has dropout of its own
                    torch.manual_seed(int(np.random.default_rng(where).integers(2**62)))
                loss = optimizer_step(model, encode, optimizer, task, config, objective, device)
                # Added up on the device: reading a number at every step would wait for it.
                loop.loss_sum += loss.detach().to(loop.loss_sum.dtype) * len(task.batch.items)
                loop.tokens += len(task.batch.items)
                loop.step += 1
                bar.update(loop.tokens)
                if stopped():
                    loop.seconds += time.perf_counter() - clock
                    loop.checkpoint()
                    loop.finish(interrupted=True)
                    return Trained(loop.rows, loop.best_epoch, "interrupted")
                cut = stop is not None and stop()
                if cut:
                    break
                if run is not None and loop.step < steps and loop.due(config.checkpoint_minutes):
                    loop.checkpoint()
            loop.seconds += time.perf_counter() - clock
            row = loop.end_of_epoch()
            with loop.averaged():
                if not every or not validation:
                    loop.keep_weights()
                elif cut or loop.epoch % every == 0 or loop.epoch == config.epochs:
                    row |= _accuracy(model, validation)
                    loop.keep_if_better(row["ndcg@10"], counts=loop.epoch % every == 0)
            loop.checkpoint()
            bar.row(row)
            if stopped():  # while it was validated
                loop.finish(interrupted=True)
                return Trained(loop.rows, loop.best_epoch, "interrupted")
        loop.finish(interrupted=False)
    ended: Literal["epochs", "early", "stopped"] = "early" if loop.epoch < config.epochs else "epochs"
    return Trained(loop.rows, loop.best_epoch, "stopped" if cut else ended)


def check_trainable(split: Split, config: TrainConfig) -> None:
    """Raise an InputError for what makes training impossible from the start."""
    if len(trainable(split.train)) == 0:
        raise InputError("no user has two interactions to train on; give a longer log or a looser filter")
    pick_device(config.device)


def _validation(targets: Targets, config: TrainConfig) -> Targets | None:
    """The users that validation looks at: the same ones at every epoch."""
    if len(targets) == 0:
        return None
    if len(targets) > config.validation_users:
        random = np.random.default_rng([config.seed, 3])
        targets = targets.take(np.sort(random.choice(len(targets), config.validation_users, replace=False)))
    return targets


def _accuracy(model: Model, targets: Targets) -> dict[str, float]:
    """NDCG@10 and HR@10 of the full ranking."""
    greater, ties = ranks(model, targets)
    return {
        "ndcg@10": float(metrics.ndcg(greater, ties, 10).mean()),
        "hr@10": float(metrics.hit_rate(greater, ties, 10).mean()),
    }


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second one ends at once."""
    asked = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may take signals
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
        for number, handler in before.items():
            signal.signal(number, handler)
