"""Where training stands, and its checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.errors import InputError, one_line
from seqrec.models.base import Model
from seqrec.run.folder import Run
from seqrec.training.averaging import RunningMean
from seqrec.training.optim import RowAdam


class TrainingState:
    """Where training stands, and how it is kept."""

    def __init__(self, model: Model, optimizer: RowAdam, run: Run | None, average_decay: float) -> None:
        self.model, self.optimizer, self.run = model, optimizer, run
        self.mean = RunningMean(average_decay, run)
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []
        self.best_epoch, self.best_value, self.worse = 0, -1.0, 0
        self.best: dict[str, Tensor] | None = None
        self.saved_at = time.monotonic()
        self.start_clock()
        self._start_epoch()

    def _start_epoch(self) -> None:
        device = next(self.model.parameters()).device
        kind = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.step, self.tokens, self.seconds, self.total_seconds = 0, 0, 0.0, 0.0
        self.loss_sum = torch.zeros((), dtype=kind, device=device)

    def start_clock(self) -> None:
        """Count time from now on."""
        self.clock = time.perf_counter()

    def _count_time(self, steps: bool) -> None:
        """Give the time since it was last counted to the epoch that is open, or else to the one that ended last."""
        passed = time.perf_counter() - self.clock
        self.clock += passed
        if self.step:
            self.total_seconds += passed
            self.seconds += passed * steps
        elif self.rows:
            self.rows[-1]["total_seconds"] += passed

    def ended_early(self, patience: int) -> bool:
        """Whether validation got no better for so many times."""
        return patience > 0 and self.worse >= patience

    def due(self, minutes: float) -> bool:
        """Whether the last checkpoint is so many minutes old."""
        return time.monotonic() - self.saved_at >= 60 * minutes

    def end_of_epoch(self) -> dict[str, Any]:
        """Close the epoch; the row of ``epochs.csv``."""
        loss = self.loss_sum.item() / self.tokens
        self._count_time(steps=True)
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
            "total_seconds": self.total_seconds,
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
        self._count_time(steps=True)
        self.saved_at = time.monotonic()
        if self.run is None:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()}
        facts = {
            "epoch": self.epoch, "step": self.step, "tokens": self.tokens, "seconds": self.seconds,
            "total_seconds": self.total_seconds, "loss_sum": self.loss_sum.item(), "rows": self.rows,
            "worse": self.worse, "best_epoch": self.best_epoch, "best_value": self.best_value,
        }  # fmt: skip
        self.run.save_state(tensors, facts)
        self.run.forget_means(but=self.epoch)
        self._count_time(steps=False)
        self.run.save_epochs(self.rows)
        self.run.take_over()

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
            for name in ("epoch", "step", "tokens", "seconds", "total_seconds", "rows", "worse",
                         "best_epoch", "best_value"):  # fmt: skip
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
