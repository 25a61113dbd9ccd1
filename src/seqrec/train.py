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
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from seqrec import kernels, metrics
from seqrec.averaging import RunningMean
from seqrec.data.batches import Batch, trainable, training_batches
from seqrec.data.negatives import Sampler
from seqrec.data.split import Histories, Split, Targets
from seqrec.errors import InputError, one_line
from seqrec.evaluate import ranks
from seqrec.models.base import Loss, Model
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.objective import Objective, Task, check_loss, default_popularity, draw_task, mark_tables, training_loss
from seqrec.optim import RowAdam, clip_gradients
from seqrec.run import Run, pick_device
from seqrec.threads import threads

BETA1 = 0.9
MOST_THREADS = 1024  # the system refuses a process that asks for very many, which torch does not say


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        loss: ``sampled-softmax``, ``gbce``, ``bpr-max`` or ``top1-max`` with negatives that a batch shares, ``bce``
            with negatives of each position as in the SASRec paper, or ``cross-entropy`` over the whole catalogue; what
            the model's own default is (sasrec: sampled-softmax) without it.
        negatives: negatives a batch (without it 1024, for gbce 256) or, for bce, a position (1).
        popularity: power of an item's training count in the probability of being a negative; 0 for uniform. Without
            it 0.25 for sampled-softmax, unless the negatives are the whole catalogue, and 0 for the others.
        bpr_penalty: weight of the score regularisation in bpr-max.
        calibration: how far gbce corrects the confidence that sampled negatives give: 0 not at all, 1 wholly.
        epochs: passes over the training histories, at most.
        batch_size: users a step.
        learning_rate: Adam's, of all but the embedding tables.
        table_learning_rate: Adam's for the embedding tables; the same without it.
        beta2: decay of Adam's second moment; 0.98 as in the SASRec authors' code.
        clip_norm: joint norm that gradients are scaled down to; no clipping without it.
        average_decay: where above 0, what is validated and kept are not the weights themselves but their running
            mean over the ends of epochs, of which each epoch keeps this share; 0 for none.
        evaluate_every: epochs between validations; without it as many as make 100 steps; 0 for none.
        patience: validations without a better NDCG@10 before training stops; 0 for never.
        validation_users: users drawn for validation, at most.
        seed: of everything random; with the same number of threads, the same seed gives the same bytes.
        device: ``auto`` (CUDA, MPS or CPU, in this order), or a torch device.
        threads: of the CPU; without it a core each, as far as affinity, a container's quota and OMP_NUM_THREADS go.
        compile: whether the encoder goes through ``torch.compile``.
        checkpoint_minutes: minutes between checkpoints inside an epoch, whose end has one too.
    """

    loss: Loss | None = None
    negatives: int | None = None
    popularity: float | None = None
    bpr_penalty: float = 1.0
    calibration: float = 0.75
    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.001
    table_learning_rate: float | None = None
    beta2: float = 0.98
    clip_norm: float | None = None
    average_decay: float = 0.6
    evaluate_every: int | None = None
    patience: int = 5
    validation_users: int = 10_000
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    compile: bool = False
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        check_loss(self.loss)
        for name, high, said in (("popularity", 10, "to 10"), ("bpr_penalty", 1e9, "or more"),
                                 ("calibration", 1, "to 1"), ("checkpoint_minutes", 1e9, "or more")):  # fmt: skip
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 {said}")
        for name, least in (("batch_size", 1), ("epochs", 1), ("negatives", 1), ("evaluate_every", 0), ("patience", 0),
                            ("validation_users", 1), ("seed", 0), ("threads", 1)):  # fmt: skip
            value, most = getattr(self, name), MOST_THREADS if name == "threads" else 2**63 - 1
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} is {value}; give {least} or more, at most {most}")
        for name in ("beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 0 and less than 1")
        if self.beta2 < BETA1:
            raise InputError(f"beta2 is {self.beta2}; give {BETA1:g} or more")
        if self.loss == "cross-entropy" and (self.negatives, self.popularity) != (None, None):
            raise InputError("cross-entropy is over the whole catalogue; leave out negatives and popularity")
        for name in ("learning_rate", "table_learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; give more than 0")


#: Fields that may differ between a run and its resumption. It computes the same but for what another device or number
#: of threads rounds otherwise, and but for the validation at the end of fewer epochs, which counts too.
RESUMABLE = ("epochs", "device", "threads", "checkpoint_minutes")


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
    loop = _Loop(model, optimizer, run, config.average_decay)
    if resume and run is not None:
        loop.restore()
    tokens = int(np.minimum(trainable(split.train).lengths - 1, model.config.max_length).sum())
    steps = -(-len(trainable(split.train)) // config.batch_size)
    every = -(-100 // steps) if config.evaluate_every is None else config.evaluate_every

    cut = False
    with (
        threads(config.threads) as count,
        closing(optimizer),
        _stop_signals() as stopped,
        _bar(progress, tokens) as bar,
    ):
        bar.say(_where(device, count))
        while not cut and loop.epoch < config.epochs and not loop.ended_early(config.patience):
            bar.start(loop.epoch + 1, config.epochs)
            model.train()
            clock = time.perf_counter()
            for task in _tasks(model, split.train, config, objective, sampler, loop.epoch, loop.step):
                where = [config.seed, loop.epoch, loop.step, 2]
                seed_dropout(dropouts, where)
                if device.type != "cpu":  # which has dropout of its own
                    torch.manual_seed(int(np.random.default_rng(where).integers(2**62)))
                loss = _step(model, encode, optimizer, task, config, objective, device)
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


def _where(device: torch.device, count: int) -> str:
    loops = "" if kernels.library() else ", without the compiled loops (no C++ compiler at install, or turned off)"
    return f"on {device}, {count} thread{'s' * (count != 1)}" + (loops if device.type == "cpu" else "")


def check_trainable(split: Split, config: TrainConfig) -> None:
    """Raise an InputError for what makes training impossible from the start."""
    if len(trainable(split.train)) == 0:
        raise InputError("no user has two interactions to train on; give a longer log or a looser filter")
    pick_device(config.device)


def _tasks(
    model: Model,
    histories: Histories,
    config: TrainConfig,
    objective: Objective,
    sampler: Sampler,
    epoch: int,
    first_step: int,
) -> Iterator[Task]:
    """What each step of an epoch is to predict, from ``first_step`` on; a function of the seed and these numbers."""
    batches = training_batches(
        histories,
        batch_size=config.batch_size,
        max_length=model.config.max_length,
        seed=config.seed,
        epoch=epoch,
        first_step=first_step,
        random_start=model.random_start,
    )
    for step, batch in enumerate(batches, start=first_step):
        random = np.random.default_rng([config.seed, epoch, step, 1])
        yield draw_task(model, batch, histories.take(batch.users.numpy()), objective, sampler, random)


def _step(
    model: Model,
    encode: Callable[[Batch], Tensor],
    optimizer: RowAdam,
    task: Task,
    config: TrainConfig,
    objective: Objective,
    device: torch.device,
) -> Tensor:
    """One optimizer step; the loss, a mean over its predictions."""
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
        loss = training_loss(model, encode, task, objective, device)
    optimizer.zero_grad()
    loss.backward()
    if config.clip_norm is not None:
        clip_gradients(optimizer.gradients(), config.clip_norm)
    optimizer.step()
    return loss


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


class _Loop:
    """Where training stands, and how it is kept."""

    def __init__(self, model: Model, optimizer: RowAdam, run: Run | None, average_decay: float) -> None:
        self.model, self.optimizer, self.run = model, optimizer, run
        self.mean = RunningMean(average_decay, run)
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []
        self.best_epoch, self.best_value, self.worse = 0, -1.0, 0
        self.best: dict[str, Tensor] | None = None
        self.saved_at = time.monotonic()
        self._start_epoch()

    def _start_epoch(self) -> None:
        device = next(self.model.parameters()).device
        kind = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.loss_sum = torch.zeros((), dtype=kind, device=device)

    def ended_early(self, patience: int) -> bool:
        return patience > 0 and self.worse >= patience

    def due(self, minutes: float) -> bool:
        return time.monotonic() - self.saved_at >= 60 * minutes

    def end_of_epoch(self) -> dict[str, Any]:
        """Close the epoch; the row of ``epochs.csv``."""
        loss = self.loss_sum.item() / self.tokens
        if not np.isfinite(loss):
            kept = " (the last good weights are kept)" if self.best_epoch else ""
            raise InputError(
                f"the loss of epoch {self.epoch + 1} is {loss}: training diverged; lower the learning rate or give "
                f"a clip norm{kept}"
            )
        self.epoch += 1
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "loss": loss,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
        }
        self.rows.append(row)
        self._start_epoch()
        return row

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Bring the weights up to date, and while within, put their running mean in their place."""
        self.optimizer.catch_up()
        with self.mean.in_place(self.model.state_dict(keep_vars=True), self.epoch):
            yield

    def keep_if_better(self, value: float, counts: bool) -> None:
        """Keep the weights of a better validation; one out of turn, at the end, says nothing about patience."""
        if value > self.best_value:
            self.best_value, self.worse = value, 0
            self.keep_weights()
        elif counts:
            self.worse += 1

    def keep_weights(self) -> None:
        """The weights as they are become the best; they are kept in the run, or in memory where there is none."""
        self.best_epoch = self.epoch
        if self.run is not None:
            self.run.save_weights(self.model.state_dict())
        else:
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def checkpoint(self) -> None:
        """All that ``restore`` needs. Rows are not caught up, which would round otherwise than without a checkpoint."""
        self.saved_at = time.monotonic()
        if self.run is None:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()}
        facts = {
            "epoch": self.epoch, "step": self.step, "tokens": self.tokens, "seconds": self.seconds,
            "loss_sum": self.loss_sum.item(), "rows": self.rows, "worse": self.worse,
            "best_epoch": self.best_epoch, "best_value": self.best_value,
        }  # fmt: skip
        self.run.save_state(tensors, facts)
        self.run.forget_means(but=self.epoch)
        self.run.save_epochs(self.rows)

    def restore(self) -> None:
        """Take up the run's last checkpoint; without one, begin anew."""
        assert self.run is not None
        state = self.run.load_state()
        if state is None:
            return
        tensors, facts = state
        try:
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor
            self.model.load_state_dict(parts["model"])
            self.optimizer.load_state_dict(parts["optimizer"])
            for name in ("epoch", "step", "tokens", "seconds", "rows", "worse", "best_epoch", "best_value"):
                setattr(self, name, facts[name])
            self.loss_sum.fill_(facts["loss_sum"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(
                f"{self.run.folder}: the training state does not fit the run ({one_line(error)}); "
                "train again with --overwrite"
            ) from error
        self.mean.check(self.epoch)

    def finish(self, interrupted: bool) -> None:
        """Leave the best weights in the model; an interrupted run without any gets those of now."""
        if self.best_epoch == 0:
            self.optimizer.catch_up()
        self.optimizer.close()
        self.model.cpu()
        if self.best_epoch == 0:
            if self.run is not None and interrupted:
                self.run.save_weights(self.model.state_dict())
        elif self.run is not None:
            self.run.load_weights(self.model)
        else:
            assert self.best is not None
            self.model.load_state_dict(self.best)
        self.model.eval()


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


class _Bar:
    """Progress of the epoch on the terminal: tokens, tokens a second, time left; a line an epoch."""

    def __init__(self, progress: Progress, tokens: int) -> None:
        self.progress, self.tokens = progress, tokens
        self.task = progress.add_task("", total=tokens, rate="", visible=False)
        self.started = 0.0
        self.first = 0

    def start(self, epoch: int, epochs: int) -> None:
        self.started = time.perf_counter()
        self.first = -1
        self.progress.reset(self.task, description=f"epoch {epoch}/{epochs}", total=self.tokens, visible=True)

    def update(self, done: int) -> None:
        if self.first < 0:
            self.first, self.started = done, time.perf_counter()
        rate = (done - self.first) / max(time.perf_counter() - self.started, 1e-9)
        self.progress.update(self.task, completed=done, rate=f"{rate:,.0f} tokens/s" if rate else "")

    def say(self, text: str) -> None:
        self.progress.console.print(text, highlight=False)

    def row(self, row: dict[str, Any]) -> None:
        found = f"  valid ndcg@10 {row['ndcg@10']:.4f}" if "ndcg@10" in row else ""
        self.progress.console.print(
            f"epoch {row['epoch']:>3}  loss {row['loss']:.4f}  {row['seconds']:.1f} s"
            f"  {row['tokens_per_second']:,.0f} tokens/s{found}",
            highlight=False,
        )


@contextmanager
def _bar(show: bool, tokens: int) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    # A console of its own: to silence rich's shared one would silence whoever else prints with it.
    with Progress(*columns, console=Console(quiet=not show), transient=True, disable=not show) as progress:
        yield _Bar(progress, tokens)
