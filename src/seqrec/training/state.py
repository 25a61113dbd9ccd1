"""The state of a training, and its checkpoints."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.data.fields import fits
from seqrec.errors import InputError, one_line
from seqrec.models.base import Model
from seqrec.run.folder import Run
from seqrec.run.tensors import check_finite, load_tensors
from seqrec.training.averaging import RunningMean, copied
from seqrec.training.config import VALIDATION_STEPS
from seqrec.training.optim import RowAdam
from seqrec.training.processes import Processes

#: Attributes of :class:`TrainingState` in a checkpoint, in addition to the tensors and the sum of losses.
FACTS = ("epoch", "step", "tokens", "seconds", "total_seconds", "rows", "worse", "best_epoch", "best_value")
_MOST = 2.0**60  # a checkpoint with more tokens, seconds or loss than this is damaged
_TIMES = 30  # a checkpoint at the end of an epoch waits for this many times as long as the last one took
_SPEED = 2.5e8  # bytes per second at which the first one is expected to be written


class TrainingState:
    """Epoch, step, losses and best weights of a training, and how they are saved and restored."""

    def __init__(
        self, model: Model, optimizer: RowAdam, run: Run | None, average_decay: float, keeps: bool = True
    ) -> None:
        self.keeps = keeps  # the best weights; of several processes, only the first one does
        self.model, self.optimizer, self.run = model, optimizer, run
        self.folder = None if run is None else run.folder / "state"
        self.mean = RunningMean(average_decay, self.folder)
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []
        self.best_epoch, self.best_value, self.worse = 0, -1.0, 0
        # The best weights of this process's epochs, and whether the run folder lacks them: a checkpoint writes both.
        self.best: dict[str, Tensor] | None = None
        self.unsaved = False
        # When the last checkpoint was complete, how long it took, and the epoch and step that it holds.
        self.saved_at, self.took, self.saved = time.monotonic(), 5 * size_of(model) / _SPEED, (0, 0)
        self.start_clock()
        self._start_epoch()

    def _start_epoch(self) -> None:
        device = next(self.model.parameters()).device
        kind = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.step, self.tokens, self.seconds, self.total_seconds = 0, 0, 0.0, 0.0
        self.loss_sum = torch.zeros((), dtype=kind, device=device)

    def start_clock(self) -> None:
        """Start counting time."""
        self.clock = time.perf_counter()

    def _count_time(self, steps: bool) -> None:
        """Add the time since the last call to the current epoch, or to the last one if no epoch is running."""
        passed = time.perf_counter() - self.clock
        self.clock += passed
        if self.step:
            self.total_seconds += passed
            self.seconds += passed * steps
        elif self.rows:
            self.rows[-1]["total_seconds"] += passed

    def ended_early(self, patience: int, steps: int) -> bool:
        """Whether ``patience`` validations, and 100 steps for each of them, have passed without a better result.

        A validation after a few steps measures hardly anything new. Without the condition on steps, a small log that is
        validated after every epoch would stop because of noise.

        Args:
            patience: number of validations; 0 never stops early.
            steps: number of steps between validations.
        """
        return 0 < patience <= self.worse and self.worse * steps >= patience * VALIDATION_STEPS

    def due(self, minutes: float) -> bool:
        """Whether the last checkpoint is at least this many minutes old, or less after an epoch.

        Within an epoch, the steps since the last checkpoint would be lost. At the end of an epoch a checkpoint is due
        earlier, but not so early that writing took more than a thirtieth of the time: with 10^6 items it is 1 GB.
        """
        if self.run is None:
            return False
        age = time.monotonic() - self.saved_at
        return age >= 60 * minutes or (self.step == 0 and age >= _TIMES * self.took)

    def end_of_epoch(self) -> dict[str, Any]:
        """Close the epoch and return its row of ``epochs.csv``."""
        loss = self.loss_sum.item() / self.tokens
        self._count_time(steps=True)
        if not np.isfinite(loss):
            kept = " (the last good weights are kept)" if self.best_epoch and self._save_good() else ""
            raise InputError(
                f"the loss of epoch {self.epoch + 1} is {loss}: training diverged; lower the learning rate or give "
                f"a clip norm{kept}"
            )
        self.epoch += 1
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "loss": loss,
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
        }
        self.rows.append(row)
        self._start_epoch()
        return row

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """At the end of an epoch, bring the weights up to date. Inside the context, they hold their running mean."""
        self.optimizer.catch_up()
        weights = self.model.state_dict(keep_vars=True)
        self.mean.update(weights)
        with self.mean.in_place(weights):
            yield

    def keep_if_better(self, value: float, counts: bool, min_gain: float) -> None:
        """Keep the weights if this validation is the best so far.

        Args:
            value: its NDCG@10.
            counts: whether it uses up patience if it does not gain enough.
            min_gain: share of the best value so far that it must gain for that.
        """
        if value > self.best_value * (1 + min_gain):
            self.worse = 0
        elif counts:
            self.worse += 1
        if value > self.best_value:
            self.best_value = value
            self.keep_weights()

    def keep_weights(self) -> None:
        """Keep a copy of the current weights as the best ones. The next checkpoint writes it.

        Writing it now would make the weights in the run folder younger than the state, or need a new state too: with
        10^6 items and short epochs, that takes longer than the epoch. If the process is killed, the same steps give
        the same weights again.
        """
        self.best_epoch = self.epoch
        if not self.keeps:
            return
        weights = self.model.state_dict()
        if self.best is None:
            self.best = copied({name: value.cpu() for name, value in weights.items()}, self.folder)
        else:
            for name, value in weights.items():
                self.best[name].copy_(value)
        self.unsaved = True

    def _save_good(self) -> bool:
        """After training diverged, write the best weights. Returns whether they stay, as runs with a checkpoint do."""
        if not self._begun():
            return False
        if self.unsaved:
            self._save_best()
        if self.run is not None:
            self.run.take_over()
        return True

    def _begun(self) -> bool:
        """Whether there is a checkpoint; True if there is no run."""
        return self.run is None or self.run.begun

    def _save_best(self) -> None:
        """Write only the best weights."""
        if self.run is not None and self.best is not None:
            self.run.save_weights(self.best)

    def checkpoint(self) -> None:
        """Write everything that ``restore`` needs, unless the last checkpoint holds it.

        Table rows are not caught up first, because that would round differently from a run without a checkpoint.
        """
        if self.saved == (self.epoch, self.step):
            return
        began = time.monotonic()
        self._count_time(steps=True)
        self._write()
        self._count_time(steps=False)
        self.saved, self.saved_at = (self.epoch, self.step), time.monotonic()
        self.took = self.saved_at - began
        self.save_epochs()
        if self.run is not None:
            self.run.take_over()

    def save_epochs(self) -> None:
        """Write ``epochs.csv``."""
        self._count_time(steps=False)
        if self.run is not None:
            self.run.save_epochs(self.rows)

    def _write(self) -> None:
        if self.run is None:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()}
        tensors |= {f"mean.{name}": value for name, value in self.mean.values.items()}
        facts = {name: getattr(self, name) for name in FACTS} | {"loss_sum": self.loss_sum.item()}
        self.run.save_state(tensors, facts, self.best if self.unsaved else None)
        self.unsaved = False

    def restored(self, resume: bool, steps: int) -> bool:
        """Continue from the last checkpoint if ``resume`` asks for it and there is one."""
        return resume and self.run is not None and self.restore(steps)

    def restore(self, steps: int) -> bool:
        """Continue from the run's last checkpoint. Without a checkpoint, training starts from the beginning.

        Everything is checked before it is used, because the file may come from somebody else.

        Args:
            steps: number of steps per epoch.

        Returns:
            Whether there was a checkpoint.
        """
        assert self.run is not None
        state = self.run.state_header()
        if state is None:
            return False
        header, facts = state
        weights = self.model.state_dict(keep_vars=True)
        try:
            check_facts(facts, steps)
            moments = {name for name in header.names if name.startswith("optimizer.")}
            names = [name.removeprefix("optimizer.") for name in moments]
            expected = {f"model.{name}": value for name, value in weights.items()}
            expected |= {f"optimizer.{name}": value for name, value in self.optimizer.expected_state(names).items()}
            if self.mean.decay and facts["epoch"]:
                expected |= {f"mean.{name}": value for name, value in weights.items()}
            header.check_shapes(expected)
            tensors = load_tensors(header)
            check_finite(header.path, ((name, value) for name, value in tensors.items() if name not in moments))
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "mean": {}}
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor
            # An epoch that a time limit ended has fewer steps than the others, but at least one.
            least, most = (facts["epoch"] * each + facts["step"] for each in (1, steps))
            if not least <= int(parts["optimizer"]["steps"]) <= most:
                raise ValueError(f"the optimizer took {int(parts['optimizer']['steps'])} steps, not {least} to {most}")
            if facts["best_epoch"]:
                self.run.read_weights(self.model, self.run.trains)  # training will end with these weights
            self.optimizer.load_state_dict(parts["optimizer"])
            self.model.load_state_dict(parts["model"])
            self.mean.load({name: value.to(weights[name].device) for name, value in parts["mean"].items()})
        except InputError:
            raise
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{header.path}: does not fit the run ({one_line(error)}); train again with --overwrite"
            ) from error
        for name in FACTS:
            setattr(self, name, facts[name])
        self.loss_sum.fill_(facts["loss_sum"])
        return True

    def start_as_first(self, processes: Processes) -> None:
        """Start from the weights, moments and counters of the first of several processes."""
        given = self.optimizer.state_dict() if processes.is_first else {}
        facts = {name: getattr(self, name) for name in FACTS} | {"loss_sum": self.loss_sum.item()}
        names, facts = processes.same_on_all(([*given], facts))
        processes.copy_from_first(self.model.state_dict())
        expected, moments = self.optimizer.expected_state(names), given or self.optimizer.state_dict()
        moments = {name: moments[name] if name in moments else torch.empty_like(expected[name]) for name in names}
        processes.copy_from_first(moments)
        if processes.is_first:
            return
        self.optimizer.load_state_dict(moments)
        for name in FACTS:
            setattr(self, name, facts[name])
        self.loss_sum.fill_(facts["loss_sum"])

    def finish(self, save_current: bool) -> None:
        """Leave the best weights in the model, or the current ones if none were kept; ``save_current`` saves those."""
        if self.best_epoch == 0:
            self.optimizer.catch_up()
        self.optimizer.close()
        self.model.cpu()
        if self.best_epoch == 0:
            if self.run is not None and save_current:
                self.run.save_weights(self.model.state_dict())
        elif self.best is not None:
            self.model.load_state_dict(self.best)
        elif self.run is not None:  # none of the epochs since a resume was better
            self.run.load_weights(self.model, self.run.trains)
        self.model.eval()


def size_of(model: Model) -> int:
    """Bytes of the weights of a model."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def check_facts(facts: Mapping[str, Any], steps: int) -> None:
    """Raise a ValueError for values of a checkpoint (JSON) that have the wrong type or contradict each other."""
    kinds = {"epoch": int, "step": int, "tokens": int, "seconds": float, "total_seconds": float, "rows": list[Any],
             "worse": int, "best_epoch": int, "best_value": float, "loss_sum": float}  # fmt: skip
    for name, kind in kinds.items():
        if name not in facts:
            raise ValueError(f"{name} is missing")
        value = facts[name]
        if not fits(value, kind) or (kind is float and not abs(value) <= _MOST):
            raise ValueError(f"{name} is not a {'list' if name == 'rows' else 'number'}, or is out of range")
    most = {"epoch": len(facts["rows"]), "step": steps, "tokens": _MOST, "seconds": _MOST,
            "total_seconds": _MOST, "worse": facts["epoch"], "best_epoch": facts["epoch"]}  # fmt: skip
    for name, high in most.items():
        if not 0 <= facts[name] <= high:
            raise ValueError(f"{name} is {facts[name]}, not 0 to {high}")
    if (facts["step"] == 0) != (facts["tokens"] == 0) or not -1 <= facts["best_value"] <= 1:
        raise ValueError("tokens or best_value are out of range")
    numbers = [row.get("epoch") for row in facts["rows"] if isinstance(row, dict)]
    if numbers != list(range(1, facts["epoch"] + 1)) or len(numbers) != len(facts["rows"]):
        raise ValueError("rows do not count the epochs")
    for row in facts["rows"]:
        if any(
            not fits(value, float | None) or (value is not None and not np.isfinite(value)) for value in row.values()
        ):
            raise ValueError("a row holds values that are not numbers")
