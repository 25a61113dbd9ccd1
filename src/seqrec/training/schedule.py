"""The learning rate of each step, as a function of the step and of how many there are."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

ScheduleName = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """Shares of the learning rate, step by step.

    The rate rises evenly over the first ``warmup`` steps and is the whole one at the last of them. Then it stays
    (``constant``), falls evenly (``linear``), or falls as half a wave of the cosine does (``cosine``; Loshchilov &
    Hutter 2017, without restarts) so that it would be 0 one step after the last.

    Args:
        name: how it falls.
        warmup: steps.
        total: steps of the whole training.
    """

    name: ScheduleName
    warmup: int
    total: int

    def __call__(self, steps: np.ndarray) -> np.ndarray:
        """``float64[S]`` from 0 to 1, for steps that count from 1."""
        done = np.asarray(steps, dtype=np.float64) - 1
        rise = np.minimum((done + 1) / max(self.warmup, 1), 1.0)
        if self.name == "constant":
            return rise
        fallen = np.clip((done - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0)
        return rise * (1 - fallen if self.name == "linear" else 0.5 * (1 + np.cos(np.pi * fallen)))


def schedule_of(name: ScheduleName, warmup: float, total: int) -> Schedule | None:
    """The schedule of a training of ``total`` steps; None where the rate is the same at every step.

    Args:
        name: of the schedule.
        warmup: steps, or, below 1, a share of all.
        total: steps.
    """
    steps = round(warmup * total) if warmup < 1 else int(warmup)
    return None if name == "constant" and steps <= 1 else Schedule(name, steps, total)
